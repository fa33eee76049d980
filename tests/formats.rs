//! The stored formats: old repositories can be read, new ones are written as the format's document says.
//!
//! Promises: every golden repository restores to what was backed up; a repository made anew by one thread has the packs
//! of the newest golden one, byte for byte; sources that define the format do not change behind the document's back.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what goes wrong here fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use pgcairn_engine::ids::{ChunkId, Namer, PackId, RunId, short_digest};
use pgcairn_engine::pack::format::FooterEntry;
use pgcairn_engine::pack::reader::{Opener, framed, parse_footer};
use pgcairn_engine::pack::wal as wal_object;
use pgcairn_engine::repository::layout::PackClass;
use pgcairn_engine::repository::snapshot::{self, Manifest, Register};
use pgcairn_engine::repository::tree::{
    Entry, Node, SUSPECT, TreeError, TreeWriter, decode_node, decode_page_list,
};
use pgcairn_engine::repository::{
    Repository, forget, gc_log, layout, packs, quarantine, run, segment, stanza, wal,
};
use pgcairn_tests::golden::{self, STANZA, VERSIONS};
use pgcairn_tests::source;
use tempfile::TempDir;

/// The labels of a version's backups, oldest first.
fn labels(version: &str) -> Vec<String> {
    let names = fs::read_dir(golden::folder(version).join("expected")).expect("expected/ is there");
    let mut names: Vec<String> = names
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn committed(repository: &Repository) -> Vec<Manifest> {
    let listed = snapshot::list(repository, STANZA).unwrap();
    let kept = listed.iter().filter(|snapshot| !snapshot.forgotten);
    kept.map(|kept| match snapshot::read(repository, kept).unwrap() {
        Register::Committed(manifest) => *manifest,
        Register::Fenced => panic!("{} is fenced and not forgotten", kept.label),
    })
    .collect()
}

#[test]
fn every_golden_repository_restores_to_what_was_backed_up() {
    for version in VERSIONS {
        let work = TempDir::new().unwrap();
        let repository = golden::open_copy(version, &work.path().join("repository"));
        let labels = labels(version);
        let listed: Vec<String> = committed(&repository)
            .into_iter()
            .map(|manifest| manifest.label)
            .collect();
        assert_eq!(listed, labels, "{version}");
        assert!(labels.len() >= 2);
        for label in labels {
            let target = work.path().join(&label);
            fs::create_dir(&target).unwrap();
            let pgdata = golden::restore(&repository, &label, &target);
            let expected = source::read(&golden::folder(version).join("expected").join(&label));
            assert_eq!(golden::listing(&pgdata), expected, "{version}, {label}");
        }
    }
}

#[test]
fn every_golden_folder_is_listed() {
    let folders = fs::read_dir(source::root().join("tests/golden")).expect("tests/golden is there");
    let folders: BTreeSet<String> = folders
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(folders, VERSIONS.map(str::to_owned).into());
}

#[test]
fn every_kind_of_record_in_a_golden_repository_is_read() {
    for version in VERSIONS {
        let work = TempDir::new().unwrap();
        let repository = golden::open_copy(version, work.path());
        let epochs = stanza::epochs(&repository, STANZA).unwrap();
        assert_eq!(epochs.last().unwrap().name(), golden::EPOCH);
        let wal_of =
            |name| wal::get(repository.storage.as_ref(), STANZA, golden::EPOCH, name).unwrap();
        let segment = wal_object::decode(&Namer::plain(), &wal_of(golden::SEGMENT)).unwrap();
        assert_eq!(segment.len(), 16 << 20);
        let history = wal_object::decode(&Namer::plain(), &wal_of("00000002.history")).unwrap();
        assert!(history.starts_with(b"1\t0/2000000"));
        let gap = wal::gap_covering(&repository, STANZA, golden::EPOCH, golden::GAP.0);
        assert_eq!(gap.unwrap().unwrap().last, golden::GAP.1);
        let fenced = (golden::FENCED.to_owned(), golden::RUN);
        assert!(forget::list(&repository, STANZA).unwrap().contains(&fenced));
        let registers = snapshot::list(&repository, STANZA).unwrap();
        let register = registers.iter().find(|listed| listed.run == golden::RUN);
        assert_eq!(
            snapshot::read(&repository, register.unwrap()).unwrap(),
            Register::Fenced
        );
        let runs = run::list_runs(&repository, layout::RUNS_PREFIX).unwrap();
        let left: Vec<_> = runs
            .iter()
            .map(|run| (run.run, run.newest_k, run.gc_seen))
            .collect();
        assert_eq!(left, [(golden::RUN, 2, Some(0))]);
        let state = gc_log::read(&repository).unwrap();
        assert_eq!((state.newest, state.dead), (2, [golden::LOST.1].into()));
        assert_eq!(
            quarantine::list(&repository).unwrap(),
            [golden::LOST].into()
        );
        let named = segment::list(&repository, None).unwrap();
        assert!(!named.is_empty());
        for key in named {
            segment::get(&repository, &key).unwrap();
        }
    }
}

/// A pack: its bytes, and what its footer says.
type Pack = (Vec<u8>, Vec<FooterEntry>);

/// The packs of a class, in an order that does not depend on their ids.
fn packs_of(repository: &Repository, class: PackClass) -> Vec<Pack> {
    let read = |pack: PackId| {
        let bytes = repository.storage.get(&layout::pack(class, pack)).unwrap();
        let footer = parse_footer(&bytes).unwrap();
        (bytes, footer)
    };
    let listed = packs::list(repository, class).unwrap();
    let mut packs: Vec<Pack> = listed.iter().map(|listed| read(listed.pack)).collect();
    packs.sort_by_key(|(_, footer)| footer.first().map(|entry| entry.id));
    packs
}

/// All blobs in meta packs, by their ids.
fn nodes_of(repository: &Repository) -> BTreeMap<ChunkId, Vec<u8>> {
    let (mut opener, namer) = (Opener::new().unwrap(), Namer::plain());
    let mut nodes = BTreeMap::new();
    for (bytes, footer) in packs_of(repository, PackClass::Meta) {
        for entry in footer {
            let location = entry.location(PackId([0; 16]));
            let mut raw = Vec::new();
            let blob = framed(&bytes, &location).unwrap();
            opener
                .open(&namer, &entry.id, &location, blob, &mut raw)
                .unwrap();
            nodes.insert(entry.id, raw);
        }
    }
    nodes
}

fn entries_below(nodes: &BTreeMap<ChunkId, Vec<u8>>, id: ChunkId) -> Vec<Entry> {
    match decode_node(&nodes[&id]).unwrap() {
        Node::Leaf(entries) => entries,
        Node::Inner(children) => children
            .iter()
            .flat_map(|child| entries_below(nodes, child.id))
            .collect(),
    }
}

/// The root of a tree of these entries.
fn root_of(entries: &[Entry]) -> ChunkId {
    let mut writer = TreeWriter::new(&Namer::plain());
    let keep = &mut |_, _| Ok::<(), TreeError>(());
    for entry in entries {
        writer.push(entry, keep).unwrap();
    }
    writer.finish(keep).unwrap().0
}

#[test]
fn a_repository_made_anew_by_one_thread_is_the_golden_one() {
    let newest = VERSIONS[VERSIONS.len() - 1];
    let golden_folder = golden::folder(newest);
    if !golden_folder.exists() {
        golden::make(&golden_folder);
        panic!("tests/golden/{newest} was not there and has been made: look at it, then commit it");
    }
    let work = TempDir::new().unwrap();
    let new_folder = work.path().join("new");
    golden::make(&new_folder);
    let old = golden::open_copy(newest, &work.path().join("old"));
    let new = golden::open(&new_folder.join("repository"));
    // Another compressor makes other bytes of the same chunks: then only what was compressed must be equal.
    let same_zstd = source::read(&golden_folder.join("zstd")).trim() == golden::zstd();
    let comparable = |pack: Pack| -> (Vec<u8>, Vec<(ChunkId, u32)>) {
        let chunks = pack.1.iter().map(|entry| (entry.id, entry.raw_bytes));
        let chunks = chunks.collect();
        (if same_zstd { pack.0 } else { Vec::new() }, chunks)
    };
    let data = |repository| {
        packs_of(repository, PackClass::Data)
            .into_iter()
            .map(comparable)
    };
    assert!(
        data(&new).eq(data(&old)),
        "the data packs differ from those of tests/golden/{newest}: cutting, naming, packing or their order changed, \
         so what is stored from now on does not deduplicate against what was"
    );
    let (old_nodes, new_nodes) = (nodes_of(&old), nodes_of(&new));
    for (was, is) in committed(&old).into_iter().zip(committed(&new)) {
        let stored = entries_below(&old_nodes, was.root);
        assert_eq!(
            root_of(&stored),
            was.root,
            "{}: nodes are written otherwise",
            was.label
        );
        let mut made = entries_below(&new_nodes, is.root);
        assert_eq!(made.len(), stored.len(), "{}", was.label);
        for (made, stored) in made.iter_mut().zip(&stored) {
            // The account that runs the tests is not part of what is compared.
            made.owner.clone_from(&stored.owner);
            made.group.clone_from(&stored.group);
            if !same_zstd {
                made.stored_bytes = stored.stored_bytes;
            }
            assert_eq!(made, stored, "{}", was.label);
        }
        let pages = |manifest: &Manifest, nodes: &BTreeMap<ChunkId, Vec<u8>>| {
            decode_page_list(&nodes[&manifest.page_list.unwrap()]).unwrap()
        };
        assert_eq!(pages(&is, &new_nodes), pages(&was, &old_nodes));
        assert_eq!(pages(&was, &old_nodes).len(), 1, "one page is damaged");
        assert!(stored.iter().any(|entry| entry.flags & SUSPECT != 0));
        let same = |mut manifest: Manifest| {
            (manifest.run, manifest.nonce, manifest.root) = (RunId([0; 16]), [0; 16], was.root);
            manifest.sums = was.sums;
            manifest.tool_version.clear();
            manifest
        };
        assert_eq!(same(is), same(was.clone()));
    }
}

/// What defines the format, next to the document that describes it.
fn format_sources() -> Vec<PathBuf> {
    let engine = source::root().join("engine/src");
    let named = [
        "codec.rs",
        "ids.rs",
        "pack/compress.rs",
        "pack/format.rs",
        "pack/wal.rs",
        "repository/config.rs",
        "repository/forget.rs",
        "repository/gc_log.rs",
        "repository/label.rs",
        "repository/layout.rs",
        "repository/quarantine.rs",
        "repository/run.rs",
        "repository/segment.rs",
        "repository/snapshot.rs",
        "repository/stanza.rs",
        "repository/wal.rs",
    ];
    let mut sources: Vec<PathBuf> = named.iter().map(|name| engine.join(name)).collect();
    sources.extend(source::rust_files(&engine.join("repository/tree")));
    sources
}

#[test]
fn the_document_of_the_format_has_seen_its_sources() {
    let mut text = String::new();
    for path in format_sources() {
        text.push_str(&source::name(&path));
        text.push('\n');
        text.push_str(&source::without_tests(&path, &source::read(&path)));
    }
    // Any type that prints 16 bytes as hex would do.
    let digest = RunId(short_digest(text.as_bytes()));
    let wanted = format!("<!-- sources: {digest} -->");
    let document = source::read(&source::root().join("engine/docs/format.md"));
    let found = document.lines().next().unwrap_or_default();
    assert_eq!(
        found, wanted,
        "\nSources that define the stored format have changed since engine/docs/format.md was last compared with them. \
         Read format.md. If it does not say what is stored now, change it; if the format itself changed so that older \
         programs cannot read it, it needs a new version and a new folder in tests/golden (see tests/support/golden.rs). \
         Then make this its first line:\n{wanted}\n"
    );
}
