//! What is written comes back; what was damaged, cut or swapped is noticed; nothing panics.

use std::convert::Infallible;

use proptest::prelude::*;

use crate::ids::{BlobKind, ChunkId, Location, Namer, PackId, digest, short_digest};
use crate::pack::format::{ENTRY_BYTES, FRAME_BYTES, TRAILER_BYTES, Trailer, encode_trailer};
use crate::pack::reader::{
    Opener, ReadError, framed, parse_footer, read_blob, read_footer, scan_frames,
};
use crate::pack::wal;
use crate::pack::writer::{PackWriter, Sealer};
use crate::pack::{Error, Result};

const PACK: PackId = PackId([9; 16]);

fn pack_of(blobs: &[(BlobKind, Vec<u8>)]) -> Vec<u8> {
    let namer = Namer::plain();
    let mut sealer = Sealer::new(3).unwrap();
    let mut pack = PackWriter::with_buffer(Vec::new());
    for (kind, raw) in blobs {
        let id = namer.name(*kind, raw);
        pack.push(&sealer.seal(&namer, *kind, id, raw).unwrap())
            .unwrap();
    }
    let finished = pack.finish();
    assert_eq!(parse_footer(&finished.bytes).unwrap(), finished.entries);
    finished.bytes
}

/// A raw data blob, a zstd one, a tree node.
fn small_blobs() -> Vec<(BlobKind, Vec<u8>)> {
    vec![
        (BlobKind::Data, b"incompressible".to_vec()),
        (BlobKind::Data, b"stone upon stone, ".repeat(30)),
        (BlobKind::Node, vec![0; 300]),
    ]
}

/// Footer and all blobs, as a caller that holds the whole pack reads them.
fn open_all(pack: &[u8]) -> Result<Vec<Vec<u8>>> {
    let namer = Namer::plain();
    let mut opener = Opener::new()?;
    let mut blobs = Vec::new();
    for entry in parse_footer(pack)? {
        let location = entry.location(PACK);
        let mut out = Vec::new();
        opener.open(
            &namer,
            &entry.id,
            &location,
            framed(pack, &location)?,
            &mut out,
        )?;
        blobs.push(out);
    }
    Ok(blobs)
}

/// A fetch from a pack at hand that notes what was asked for.
fn fetch_from<'a>(
    pack: &'a [u8],
    asked: &'a mut Vec<(u64, usize)>,
) -> impl FnMut(u64, &mut [u8]) -> std::result::Result<(), Infallible> + 'a {
    move |offset, buffer| {
        asked.push((offset, buffer.len()));
        let from = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&pack[from..from + buffer.len()]);
        Ok(())
    }
}

/// Makes the trailer of `pack` match the bytes before it, as a writer with a defect would.
fn with_matching_trailer(pack: &[u8], footer_bytes: u32) -> Vec<u8> {
    let (before, _) = pack.split_at(pack.len() - TRAILER_BYTES);
    let (_, footer) = before.split_at(before.len() - footer_bytes as usize);
    let trailer = Trailer {
        footer_bytes,
        footer_digest: short_digest(footer),
        pack_digest: digest(before),
    };
    [before, &encode_trailer(&trailer)].concat()
}

#[test]
fn blobs_come_back_as_they_were() {
    let blobs = small_blobs();
    let raw: Vec<_> = blobs.iter().map(|(_, raw)| raw.clone()).collect();
    assert_eq!(open_all(&pack_of(&blobs)).unwrap(), raw);
    assert_eq!(open_all(&pack_of(&[])).unwrap(), Vec::<Vec<u8>>::new());
}

#[test]
fn the_same_blobs_make_the_same_pack() {
    assert_eq!(pack_of(&small_blobs()), pack_of(&small_blobs()));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let pack = pack_of(&small_blobs());
    for bit in 0..pack.len() * 8 {
        let mut damaged = pack.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(open_all(&damaged).is_err(), "bit {bit}");
    }
}

/// As above, but of a blob read by its location alone, without the checksum of the whole pack.
#[test]
fn every_flipped_bit_of_a_blob_is_noticed_by_its_id_or_frame() {
    let namer = Namer::plain();
    let mut opener = Opener::new().unwrap();
    let pack = pack_of(&small_blobs());
    let mut out = Vec::new();
    for entry in parse_footer(&pack).unwrap() {
        let location = entry.location(PACK);
        let blob = framed(&pack, &location).unwrap();
        opener
            .open(&namer, &entry.id, &location, blob, &mut out)
            .unwrap();
        let good = out.clone();
        for bit in 0..blob.len() * 8 {
            let mut damaged = blob.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // zstd ignores some bits of its frame header; then the content is right all the same.
            if opener
                .open(&namer, &entry.id, &location, &damaged, &mut out)
                .is_ok()
            {
                assert!(out == good && bit >= FRAME_BYTES * 8, "bit {bit}");
            }
        }
        for length in 0..blob.len() {
            assert!(
                opener
                    .open(&namer, &entry.id, &location, &blob[..length], &mut out)
                    .is_err()
            );
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    let pack = pack_of(&small_blobs());
    for length in 0..pack.len() {
        assert!(open_all(&pack[..length]).is_err(), "{length} bytes");
        let footer = read_footer(
            &mut fetch_from(&pack[..length], &mut Vec::new()),
            length as u64,
        );
        assert!(footer.is_err(), "{length} bytes");
    }
}

#[test]
fn another_chunk_than_the_one_asked_for_is_noticed() {
    let namer = Namer::plain();
    let pack = pack_of(&small_blobs());
    let entry = parse_footer(&pack).unwrap()[0];
    let location = entry.location(PACK);
    let mut opener = Opener::new().unwrap();
    let mut open = |id, location| {
        let mut asked = Vec::new();
        let mut fetch = fetch_from(&pack, &mut asked);
        read_blob(
            &mut fetch,
            &namer,
            &mut opener,
            &id,
            &location,
            &mut Vec::new(),
        )
    };
    open(entry.id, location).unwrap();
    let wrong = ChunkId([3; 32]);
    let refused = open(wrong, location);
    let expected = |error: &ReadError<Infallible>| {
        matches!(error, ReadError::Pack(Error::IdMismatch { expected, found, offset: 32 })
            if *expected == wrong && *found == entry.id)
    };
    assert!(refused.as_ref().is_err_and(expected), "{refused:?}");
    for mistaken in [
        Location {
            offset: 33,
            ..location
        },
        Location {
            stored_bytes: 13,
            ..location
        },
        Location {
            raw_bytes: 15,
            ..location
        },
        Location {
            kind: BlobKind::Node,
            ..location
        },
        Location {
            raw_bytes: u32::MAX,
            ..location
        },
        Location {
            stored_bytes: u32::MAX,
            raw_bytes: u32::MAX,
            ..location
        },
        Location {
            stored_bytes: u32::MAX,
            ..location
        },
    ] {
        assert!(open(entry.id, mistaken).is_err(), "{mistaken:?}");
    }
}

#[test]
fn a_blob_is_one_fetch_of_its_frame_and_payload() {
    let namer = Namer::plain();
    let blobs = small_blobs();
    let pack = pack_of(&blobs);
    let mut opener = Opener::new().unwrap();
    let mut out = Vec::new();
    for (entry, (_, raw)) in parse_footer(&pack).unwrap().iter().zip(&blobs) {
        let mut asked = Vec::new();
        let mut fetch = fetch_from(&pack, &mut asked);
        read_blob(
            &mut fetch,
            &namer,
            &mut opener,
            &entry.id,
            &entry.location(PACK),
            &mut out,
        )
        .unwrap();
        drop(fetch);
        assert_eq!(&out, raw);
        assert_eq!(
            asked,
            [(
                u64::from(entry.offset),
                FRAME_BYTES + entry.stored_bytes as usize
            )]
        );
    }
}

#[test]
fn a_footer_is_one_fetch_and_a_long_one_two() {
    for (blobs, fetches) in [(3u32, 1), (1300, 1), (1400, 2), (3000, 2)] {
        let raw = |n: u32| (BlobKind::Data, n.to_le_bytes().to_vec());
        let pack = pack_of(&(0..blobs).map(raw).collect::<Vec<_>>());
        let mut asked = Vec::new();
        let footer = read_footer(&mut fetch_from(&pack, &mut asked), pack.len() as u64).unwrap();
        assert_eq!(footer, parse_footer(&pack).unwrap());
        assert_eq!(asked.len(), fetches, "{blobs} blobs: {asked:?}");
        let fetched: usize = asked.iter().map(|(_, bytes)| bytes).sum();
        let needed = blobs as usize * ENTRY_BYTES + TRAILER_BYTES;
        assert_eq!(
            fetched,
            needed.max(pack.len().min(64 << 10)),
            "nothing is fetched twice"
        );
    }
}

#[test]
fn a_failed_fetch_is_not_damage() {
    let mut fetch = |_: u64, _: &mut [u8]| Err(std::io::Error::other("the network is down"));
    let failed = read_footer(&mut fetch, 1000);
    assert!(matches!(failed, Err(ReadError::Fetch(_))), "{failed:?}");
}

#[test]
fn a_scan_finds_every_blob_of_a_pack_without_footer() {
    let namer = Namer::plain();
    let mut opener = Opener::new().unwrap();
    let pack = pack_of(&small_blobs());
    let entries = parse_footer(&pack).unwrap();
    let body = usize::try_from(entries.last().unwrap().end()).unwrap();
    assert_eq!(
        scan_frames(&namer, &mut opener, &pack),
        entries,
        "footer and trailer do not disturb it"
    );
    assert_eq!(scan_frames(&namer, &mut opener, &pack[..body]), entries);
    assert_eq!(
        scan_frames(&namer, &mut opener, &pack[..body - 1]),
        entries[..2],
        "the last blob is cut"
    );
    let mut damaged = pack[..body].to_vec();
    let length_field = entries[0].offset as usize + 8;
    damaged[length_field..length_field + 4].copy_from_slice(&400u32.to_le_bytes());
    let found = scan_frames(&namer, &mut opener, &damaged);
    assert!(found.iter().all(|entry| entry.id != entries[0].id));
    assert!(
        scan_frames(&namer, &mut opener, &pack[4..body]).len() == 3,
        "a lost start costs nothing"
    );
}

#[test]
fn a_scan_goes_on_behind_a_blob_that_does_not_decode() {
    let namer = Namer::plain();
    let mut opener = Opener::new().unwrap();
    let mut pack = pack_of(&small_blobs());
    let entries = parse_footer(&pack).unwrap();
    pack[entries[1].offset as usize + FRAME_BYTES] ^= 0xff;
    assert_eq!(
        scan_frames(&namer, &mut opener, &pack),
        [entries[0], entries[2]]
    );
}

#[test]
fn a_frame_that_contradicts_the_footer_is_noticed() {
    let pack = pack_of(&small_blobs());
    let entries = parse_footer(&pack).unwrap();
    let footer_bytes = u32::try_from(entries.len() * ENTRY_BYTES).unwrap();
    for (field, value) in [(4, 2), (5, 1), (8, 13)] {
        let mut changed = pack.clone();
        changed[32 + field] = value;
        let refused = parse_footer(&with_matching_trailer(&changed, footer_bytes));
        assert!(
            matches!(refused, Err(Error::FrameMismatch { offset: 32, .. })),
            "{refused:?}"
        );
    }
}

/// What the decoders answer does not matter here, only that they do.
fn read_everything(bytes: &[u8]) {
    let namer = Namer::plain();
    let mut opener = Opener::new().unwrap();
    let mut out = Vec::new();
    drop(open_all(bytes));
    drop(read_footer(
        &mut fetch_from(bytes, &mut Vec::new()),
        bytes.len() as u64,
    ));
    drop(wal::decode(&namer, bytes));
    drop(scan_frames(&namer, &mut opener, bytes));
    for (stored_bytes, raw_bytes) in [(20, 20), (20, 1000), (u32::MAX, u32::MAX)] {
        let location = Location {
            pack: PACK,
            offset: 0,
            stored_bytes,
            raw_bytes,
            kind: BlobKind::Data,
        };
        drop(opener.open(&namer, &ChunkId([0; 32]), &location, bytes, &mut out));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        read_everything(&bytes);
    }

    #[test]
    fn frames_around_arbitrary_bytes_never_panic(
        kind in 0u8..5, codec in 0u8..3, length in 0u32..60, tail in proptest::collection::vec(any::<u8>(), 0..60)
    ) {
        let frame = [b"PGCB".as_slice(), &[kind, codec, 0, 0], &length.to_le_bytes(), &tail];
        read_everything(&frame.concat());
    }

    /// Checksums that match guard nothing here: the fields themselves must be checked.
    #[test]
    fn a_pack_changed_anywhere_and_signed_anew_never_panics(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        entries in 0u32..6,
    ) {
        let mut pack = pack_of(&small_blobs());
        for (at, value) in changes {
            let at = at.index(pack.len());
            pack[at] = value;
        }
        read_everything(&with_matching_trailer(&pack, entries * 48));
    }
}
