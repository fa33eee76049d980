//! Creating and opening, and records of several kinds, against a storage in memory.

use std::sync::Arc;

use super::test_storage::MemoryStorage;
use super::*;
use crate::ids::{PackId, RunId};
use layout::PackClass;
use packs::ListedPack;
use snapshot::{BackupType, Decision, Manifest, Register, Sums};

const RUN: RunId = RunId([1; 16]);
const LABEL: &str = "20261124-010203F";

const CAPABLE: Capabilities = Capabilities {
    put_if_absent: true,
    list_after_put: true,
};

/// A repository in memory.
pub(crate) fn repository() -> Repository {
    repository_in(&Arc::new(MemoryStorage::new()))
}

/// A repository in this storage.
pub(crate) fn repository_in(storage: &Arc<MemoryStorage>) -> Repository {
    let storage = Arc::clone(storage) as Arc<dyn Storage>;
    match open(Arc::clone(&storage)) {
        Ok(found) => complete(found).unwrap(),
        Err(_) => create(storage, CAPABLE, 1).unwrap(),
    }
}

/// A manifest with something in every kind of field.
pub(crate) fn manifest() -> Manifest {
    Manifest {
        label: LABEL.into(),
        backup_type: BackupType::Full,
        prior: None,
        run: RUN,
        nonce: [5; 16],
        tool_version: "0.1.0".into(),
        host: "db1".into(),
        stanza: "main".into(),
        epoch: 1,
        system_id: 7_000_000_000_000_000_042,
        version: 15,
        catalog_version: 202_209_061,
        page_bytes: 8192,
        segment_blocks: 131_072,
        wal_segment_bytes: 16 << 20,
        checksums: true,
        wal_level: "replica".into(),
        online: true,
        start_ms: 1_795_000_000_000,
        stop_ms: 1_795_000_003_000,
        start_lsn: crate::wal_name::Lsn(0x0300_0028),
        stop_lsn: crate::wal_name::Lsn(0x0300_0100),
        timeline: crate::wal_name::Timeline(1),
        stop_timeline: crate::wal_name::Timeline(1),
        wal_start: Some("000000010000000000000003".into()),
        wal_stop: Some("000000010000000000000003".into()),
        databases: vec![snapshot::Database {
            oid: 5,
            name: "postgres".into(),
        }],
        tablespaces: vec![snapshot::Tablespace {
            oid: 16_400,
            name: "fast".into(),
            location: b"/srv/fast".to_vec(),
        }],
        root: ChunkId([3; 32]),
        sums: Sums {
            files: 970,
            file_bytes: 23_000_000,
            ..Sums::default()
        },
        options: vec![("compress-level".into(), "3".into())],
        pg_control: vec![1; 300],
        pg_control_mode: 0o600,
        backup_label: Some(b"START WAL LOCATION: 0/3000028".to_vec()),
        tablespace_map: None,
        page_list: None,
    }
}

fn committed(nonce: u8) -> Register {
    Register::Committed(Box::new(Manifest {
        nonce: [nonce; 16],
        ..manifest()
    }))
}

#[test]
fn creating_twice_opens_what_is_there() {
    let storage = Arc::new(MemoryStorage::new());
    let first = repository_in(&storage);
    let again = repository_in(&storage);
    assert_eq!((first.id, &first.config), (again.id, &again.config));
    assert!(first.config.capabilities.put_if_absent && first.config.created_ms == 1);
    let keys: Vec<String> = list_all(storage.as_ref(), "")
        .unwrap()
        .iter()
        .map(|object| object.key.to_string())
        .collect();
    assert_eq!(keys, ["config", "config.copy"]);
}

#[test]
fn a_place_without_config_is_no_repository_and_one_with_other_things_is_left_alone() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    assert!(matches!(
        open(Arc::clone(&storage)),
        Err(Error::NotARepository { .. })
    ));
    storage
        .put(&Key::new("holiday/photo.jpg").unwrap(), b"")
        .unwrap();
    assert!(matches!(
        refuse_foreign_objects(storage.as_ref()),
        Err(Error::NotEmpty { .. })
    ));
    assert!(matches!(open(storage), Err(Error::NotARepository { .. })));
}

#[test]
fn an_interrupted_or_damaged_creation_is_completed_by_the_next() {
    let storage = Arc::new(MemoryStorage::new());
    storage
        .put(&layout::probe(RUN, 0), b"left by a crash")
        .unwrap();
    let first = repository_in(&storage);
    for lost in [layout::config(), layout::config_copy()] {
        storage.delete(&lost).unwrap();
        assert_eq!(
            open(Arc::clone(&storage) as Arc<dyn Storage>).unwrap().id,
            first.id
        );
        assert_eq!(repository_in(&storage).id, first.id);
        assert!(storage.get(&lost).is_ok(), "{lost} is there again");
    }
    storage.delete(&layout::config()).unwrap();
    storage.put(&layout::config(), b"noise").unwrap();
    assert_eq!(
        open(Arc::clone(&storage) as Arc<dyn Storage>).unwrap().id,
        first.id,
        "read from the copy"
    );
    storage.delete(&layout::config_copy()).unwrap();
    assert!(
        matches!(open(storage), Err(Error::Record { .. })),
        "damage is not absence"
    );
}

#[test]
fn a_record_of_another_repository_is_refused() {
    let (here, there) = (repository(), repository());
    segment::put(&here, "main", RUN, 0, &segment::IndexSegment::default()).unwrap();
    let key = segment::list(&here, None).unwrap().remove(0);
    there
        .storage
        .put(&key, &here.storage.get(&key).unwrap())
        .unwrap();
    assert!(segment::get(&here, &key).is_ok());
    assert!(matches!(
        segment::get(&there, &key),
        Err(Error::Record { .. })
    ));
}

#[test]
fn segments_are_listed_by_scope() {
    let repository = repository();
    let facts = segment::PackFacts {
        pack: PackId([2; 16]),
        class: PackClass::Meta,
        bytes: 1 << 40,
        blobs: vec![segment::Fact {
            id: ChunkId([3; 32]),
            kind: crate::ids::BlobKind::Node,
            offset: 32,
            stored_bytes: 100,
            raw_bytes: 200,
        }],
    };
    let put = segment::IndexSegment {
        packs: vec![facts],
        replaces: vec!["index/main/x".into()],
    };
    let key = segment::put(&repository, "main", RUN, 7, &put).unwrap();
    segment::put(&repository, layout::MAINTENANCE_SCOPE, RUN, 0, &put).unwrap();
    assert_eq!(
        segment::list(&repository, Some("main")).unwrap(),
        std::slice::from_ref(&key)
    );
    assert_eq!(segment::list(&repository, None).unwrap().len(), 2);
    assert_eq!(segment::get(&repository, &key).unwrap(), put);
}

#[test]
fn packs_are_listed_with_their_sizes_and_read_in_parts() {
    let repository = repository();
    packs::put(&repository, PackClass::Data, PackId([2; 16]), b"0123456789").unwrap();
    packs::put(&repository, PackClass::Meta, PackId([3; 16]), b"").unwrap();
    let listed = packs::list(&repository, PackClass::Data).unwrap();
    assert!(
        matches!(
            listed[..],
            [ListedPack {
                pack: PackId([2, ..]),
                bytes: 10,
                ..
            }]
        ),
        "{listed:?}"
    );
    let mut part = [0; 3];
    packs::get_range(&repository, PackClass::Data, PackId([2; 16]), 4, &mut part).unwrap();
    assert_eq!(&part, b"456");
    packs::delete(&repository, PackClass::Data, PackId([2; 16])).unwrap();
    assert_eq!(packs::list(&repository, PackClass::Data).unwrap(), []);
}

#[test]
fn listing_goes_on_past_one_page() {
    let storage = MemoryStorage::new();
    for n in 0..2 * LIST_PAGE as u64 {
        storage.put(&layout::gc(n), b"").unwrap();
    }
    assert_eq!(
        list_all(&storage, layout::GC_PREFIX).unwrap().len(),
        2 * LIST_PAGE
    );
}

#[test]
fn a_register_is_decided_once() {
    let repository = repository();
    let decide =
        |register: &Register| snapshot::decide(&repository, "main", LABEL, RUN, register).unwrap();
    assert_eq!(decide(&committed(1)), Decision::Decided);
    assert_eq!(decide(&committed(1)), Decision::Decided, "its own nonce");
    assert_eq!(
        decide(&committed(2)),
        Decision::AlreadyDecided(committed(1))
    );
    assert_eq!(
        decide(&Register::Fenced),
        Decision::AlreadyDecided(committed(1))
    );
    let listed = snapshot::list(&repository, "main").unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        snapshot::read(&repository, &listed[0]).unwrap(),
        committed(1)
    );
}

#[test]
fn a_fenced_backup_cannot_commit_and_learns_it() {
    let repository = repository();
    snapshot::decide(&repository, "main", LABEL, RUN, &Register::Fenced).unwrap();
    let late = snapshot::decide(&repository, "main", LABEL, RUN, &committed(1)).unwrap();
    assert_eq!(late, Decision::AlreadyDecided(Register::Fenced));
}

#[test]
fn a_lost_answer_to_the_commit_is_resolved_by_reading_back() {
    let storage = Arc::new(MemoryStorage::new());
    let repository = repository_in(&storage);
    storage.lose_answer(&layout::snapshot("main", LABEL, RUN).unwrap());
    let decided = snapshot::decide(&repository, "main", LABEL, RUN, &committed(1)).unwrap();
    assert_eq!(decided, Decision::Decided);
}

#[test]
fn a_register_above_64_kib_is_refused() {
    let repository = repository();
    let large = Manifest {
        pg_control: vec![0; snapshot::LARGEST_REGISTER],
        ..manifest()
    };
    let refused = snapshot::decide(
        &repository,
        "main",
        LABEL,
        RUN,
        &Register::Committed(Box::new(large)),
    );
    assert!(
        matches!(refused, Err(Error::RegisterTooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(snapshot::list(&repository, "main").unwrap(), []);
}

#[test]
fn a_register_with_impossible_wal_segments_is_damaged() {
    for bytes in [0, 1 << 19, 3 << 20, 1 << 31] {
        let repository = repository();
        let senseless = Manifest {
            wal_segment_bytes: bytes,
            ..manifest()
        };
        let register = Register::Committed(Box::new(senseless));
        snapshot::decide(&repository, "main", LABEL, RUN, &register).unwrap();
        let listed = snapshot::list(&repository, "main").unwrap();
        let read = snapshot::read(&repository, &listed[0]).unwrap_err();
        assert!(read.is_damage(), "{bytes}: {read}");
    }
}

#[test]
fn snapshots_are_listed_oldest_first_with_their_tombstones() {
    let repository = repository();
    let labels = [
        "20261124-010203F",
        "20261122-010203F_20261126-000000I",
        "20261122-010203F",
        "20261124-010203F_20261125-010203D",
    ];
    for label in labels {
        snapshot::decide(&repository, "main", label, RUN, &Register::Fenced).unwrap();
    }
    let stone = forget::Tombstone {
        forgotten_ms: 1,
        host: "db1".into(),
    };
    forget::put(&repository, "main", labels[2], RUN, &stone).unwrap();
    forget::put(&repository, "main", labels[2], RUN, &stone).unwrap();
    let listed = snapshot::list(&repository, "main").unwrap();
    let order: Vec<(&str, bool)> = listed
        .iter()
        .map(|s| (s.label.as_str(), s.forgotten))
        .collect();
    assert_eq!(
        order,
        [
            (labels[2], true),
            (labels[0], false),
            (labels[3], false),
            (labels[1], false)
        ]
    );
    assert_eq!(snapshot::list(&repository, "other").unwrap(), []);
}

#[test]
fn quarantine_is_read_from_its_keys() {
    let repository = repository();
    let finding = quarantine::Finding {
        found_ms: 1,
        host: "db1".into(),
        reason: "hash differs".into(),
    };
    let copy = (ChunkId([1; 32]), PackId([2; 16]));
    quarantine::put(&repository, copy.0, copy.1, &finding).unwrap();
    quarantine::put(&repository, copy.0, copy.1, &finding).unwrap();
    assert_eq!(
        quarantine::list(&repository)
            .unwrap()
            .into_iter()
            .collect::<Vec<_>>(),
        [copy]
    );
}

/// The bytes that `docs/format.md` shows: of each line, what stands between the offset and the bar.
fn worked_example() -> Vec<u8> {
    let text = include_str!("../../docs/format.md");
    let block = text
        .split("```hex\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let lines = block.lines().map(|line| line.split('|').next().unwrap());
    let bytes = lines.flat_map(|line| line.split_whitespace().skip(1));
    bytes
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn the_worked_example_of_the_format_is_what_is_written_and_read() {
    let id = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
    let record = stanza::StanzaRecord::Epoch {
        system_id: 7_432_109_876_543_210_987,
        version: 15,
    };
    let key = layout::stanza("main", 1).unwrap();
    let sealed = codec::seal(RecordKind::Stanza, id, key.as_str(), &record).unwrap();
    assert_eq!(worked_example(), sealed, "written: {sealed:02x?}");
    let (_, read): (_, stanza::StanzaRecord) = codec::open(
        RecordKind::Stanza,
        Some(id),
        key.as_str(),
        &worked_example(),
    )
    .unwrap();
    assert_eq!(read, record);
}
