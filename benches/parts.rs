//! The engine's parts, each on one thread: what a byte passes on its way into the repository, and its bookkeeping.
//!
//! Promises: nothing is measured on data that the part would refuse.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgcairn_benches::{Numbers, PAGE_BYTES, heap_pages, text};
use pgcairn_engine::cluster::page::{self, Verdict};
use pgcairn_engine::dedup::chunker::{Chunker, Structure};
use pgcairn_engine::dedup::index::ChunkIndex;
use pgcairn_engine::ids::{
    BlobKind, ChunkId, Extent, Location, Namer, PackId, Parts, RepositoryId, digest,
};
use pgcairn_engine::pack::format::FRAME_BYTES;
use pgcairn_engine::pack::reader::Opener;
use pgcairn_engine::pack::writer::{PackWriter, Sealer};
use pgcairn_engine::repository::config::{Capabilities, Config};
use pgcairn_engine::repository::layout::PackClass;
use pgcairn_engine::repository::segment::{Fact, IndexSegment, PackFacts};
use pgcairn_engine::repository::tree::{
    Content, Entry, EntryKind, Owner, TreeError, TreeWriter, decode_extent_node, decode_node,
    encode_extent_node,
};

/// Bytes that are worked on: one region.
const REGION: usize = 16 << 20;
/// A relation chunk of average length.
const CHUNK: usize = 256 << 10;
/// Chunks in the index, in so many packs.
const FACTS: u64 = 1_000_000;
const PACKS: u64 = 8_000;
/// Chunks that are looked up together: those of a region.
const LOOKUP: usize = 64;

fn config() -> Config {
    let capabilities = Capabilities {
        put_if_absent: true,
        list_after_put: true,
    };
    Config::new(0, capabilities)
}

fn pages(c: &mut Criterion) {
    let data = heap_pages(REGION / PAGE_BYTES);
    let mut group = c.benchmark_group("pages");
    group.throughput(Throughput::Bytes(REGION as u64));
    group.bench_function("check", |b| {
        b.iter(|| {
            let good = (0u32..)
                .zip(data.chunks_exact(PAGE_BYTES))
                .all(|(block, page)| page::check(page, block) == Verdict::Good);
            assert!(good);
        });
    });
    group.finish();
}

fn chunker(c: &mut Criterion) {
    let chunker = Chunker::new(&config()).expect("the standard sizes are sound");
    let page_bytes = u32::try_from(PAGE_BYTES).unwrap_or(0);
    let (heap, text) = (heap_pages(REGION / PAGE_BYTES), text(REGION));
    let mut group = c.benchmark_group("chunker");
    group.throughput(Throughput::Bytes(REGION as u64));
    for (name, structure, data) in [
        ("pages", Structure::Pages { page_bytes }, &heap),
        ("plain", Structure::Plain, &text),
    ] {
        let mut ends = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| {
                chunker
                    .cut(structure, black_box(data), &mut ends)
                    .expect("one region");
            });
        });
    }
    group.finish();
}

fn names(c: &mut Criterion) {
    let (namer, data) = (Namer::plain(), text(CHUNK));
    let mut group = c.benchmark_group("name");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.bench_function("chunk", |b| {
        b.iter(|| namer.name(BlobKind::Data, black_box(&data)));
    });
    group.finish();
}

/// Sealing (compress, decode again, hash) and opening (decode, hash).
fn seal(c: &mut Criterion) {
    let namer = Namer::plain();
    let mut sealer = Sealer::new(3).expect("level 3 exists");
    let mut opener = Opener::new().expect("a decompressor");
    for (name, data) in [
        ("pages", heap_pages(CHUNK / PAGE_BYTES)),
        ("text", text(CHUNK)),
    ] {
        let id = namer.name(BlobKind::Data, &data);
        let mut group = c.benchmark_group("seal");
        group.throughput(Throughput::Bytes(CHUNK as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let chunk = sealer.seal(&namer, BlobKind::Data, id, black_box(&data));
                chunk.expect("the chunk is what it was named").payload.len()
            });
        });
        group.finish();

        let mut pack = PackWriter::new(CHUNK);
        let chunk = sealer
            .seal(&namer, BlobKind::Data, id, &data)
            .expect("sealed before");
        let entry = pack.push(&chunk).expect("it is small");
        let location = Location {
            pack: PackId([0; 16]),
            offset: entry.offset,
            stored_bytes: entry.stored_bytes,
            raw_bytes: entry.raw_bytes,
            kind: entry.kind,
        };
        let bytes = pack.finish().bytes;
        let length = FRAME_BYTES + entry.stored_bytes as usize;
        let frame = bytes
            .get(entry.offset as usize..)
            .and_then(|rest| rest.get(..length));
        let frame = frame.expect("it was just pushed");
        let mut raw = Vec::new();
        let mut group = c.benchmark_group("open");
        group.throughput(Throughput::Bytes(CHUNK as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let done = opener.open(&namer, &id, &location, black_box(frame), &mut raw);
                done.expect("it was just sealed");
            });
        });
        group.finish();
    }
}

fn id_of(number: u64) -> ChunkId {
    ChunkId(digest(&number.to_le_bytes()))
}

fn pack_of(number: u64) -> PackId {
    let mut id = [7; 16];
    for (to, from) in id.iter_mut().zip(number.to_le_bytes()) {
        *to = from;
    }
    PackId(id)
}

/// An index segment with the facts of one pack.
fn pack_facts(pack: u64) -> PackFacts {
    let per_pack = FACTS / PACKS;
    let fact = |number| Fact {
        id: id_of(number),
        kind: BlobKind::Data,
        offset: u32::try_from(number % per_pack * 40_000).unwrap_or(0),
        stored_bytes: 39_000,
        raw_bytes: 270_000,
    };
    PackFacts {
        pack: pack_of(pack),
        class: PackClass::Data,
        bytes: 32 << 20,
        blobs: (pack * per_pack..(pack + 1) * per_pack).map(fact).collect(),
    }
}

fn filled_index(cache: &std::path::Path) -> ChunkIndex {
    let index =
        ChunkIndex::open(cache, RepositoryId([1; 16]), "nowhere", &|_| None).expect("an index");
    for first in (0..PACKS).step_by(64) {
        let packs: Vec<PackFacts> = (first..(first + 64).min(PACKS)).map(pack_facts).collect();
        let usable: Vec<(PackId, u64)> = packs.iter().map(|pack| (pack.pack, pack.bytes)).collect();
        let segment = IndexSegment {
            packs,
            replaces: Vec::new(),
        };
        index
            .apply(&format!("index/bench/{first}"), &segment)
            .expect("a segment");
        index.mark_put(&usable);
    }
    index.flush().expect("the facts are written");
    index
}

fn index(c: &mut Criterion) {
    let cache = tempfile::tempdir().expect("a directory");
    let index = filled_index(cache.path());
    let mut found = Vec::new();
    let mut group = c.benchmark_group("index of 1 M chunks");
    group.throughput(Throughput::Elements(LOOKUP as u64));
    for (name, from) in [("known", 0), ("unknown", FACTS)] {
        let mut numbers = Numbers(3);
        let mut ids = || -> Vec<ChunkId> {
            let mut number = || from + numbers.below(1_000_000) as u64;
            (0..LOOKUP).map(|_| id_of(number())).collect()
        };
        group.bench_function(name, |b| {
            b.iter_batched(
                &mut ids,
                |ids| {
                    index.lookup(&ids, &mut found).expect("a lookup");
                    assert!(found.iter().all(|found| found.is_some() == (from == 0)));
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A cluster's files, as many as a leaf-rich tree needs.
fn entries(count: u64) -> Vec<Entry> {
    let entry = |number: u64| Entry {
        path: format!("base/{:05}/{:07}", number / 400, 100_000 + number).into_bytes(),
        kind: EntryKind::File,
        mode: 0o600,
        owner: Owner::Name("postgres".to_owned()),
        group: Owner::Name("postgres".to_owned()),
        bytes: 24_576,
        modified_ns: 1_700_000_000_000_000_000 + i64::try_from(number * 1_000_003).unwrap_or(0),
        flags: 0,
        target: Vec::new(),
        stored_bytes: 1_900,
        content: Content::Extents(vec![Extent {
            length: 24_576,
            id: id_of(number),
            parts: Parts::Whole,
        }]),
    };
    (0..count).map(entry).collect()
}

fn write_tree(entries: &[Entry]) -> Vec<Vec<u8>> {
    let mut nodes = Vec::new();
    let mut writer = TreeWriter::new(&Namer::plain());
    let mut sink = |_, node| -> Result<(), TreeError> {
        nodes.push(node);
        Ok(())
    };
    for entry in entries {
        writer.push(entry, &mut sink).expect("entries in order");
    }
    writer.finish(&mut sink).expect("a root");
    nodes
}

fn tree(c: &mut Criterion) {
    let entries = entries(20_000);
    let nodes = write_tree(&entries);
    let mut group = c.benchmark_group("tree of 20,000 files");
    group.throughput(Throughput::Elements(entries.len() as u64));
    group.bench_function("write", |b| {
        b.iter(|| write_tree(black_box(&entries)).len());
    });
    group.bench_function("read", |b| {
        b.iter(|| {
            for node in &nodes {
                black_box(decode_node(node).expect("it was just written"));
            }
        });
    });
    group.finish();

    let extents: Vec<Extent> = (0..64u32)
        .map(|number| Extent {
            length: 131_072 + number % 48 * 8192,
            id: id_of(u64::from(number)),
            parts: Parts::Whole,
        })
        .collect();
    let node = encode_extent_node(&extents);
    let mut group = c.benchmark_group("node of 64 extents");
    group.throughput(Throughput::Elements(64));
    group.bench_function("write", |b| {
        b.iter(|| encode_extent_node(black_box(&extents)));
    });
    group.bench_function("read", |b| {
        b.iter(|| decode_extent_node(black_box(&node)).expect("it was just written"));
    });
    group.finish();
}

criterion_group!(parts, pages, chunker, names, seal, index, tree);
criterion_main!(parts);
