//! What each action asks of the storage: performance as an equality.
//!
//! Ids, labels and numbers are blotted out of the keys; a request made several times in a row is one line. Packs are put,
//! and ranges got, by several threads, so neighbours of one kind are sorted.

#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong in a helper of a test fails the test"
)]

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgcairn_engine::actions::{
    self, ArchiveOptions, Got, Pushed, archive_get, archive_push, info, open_repository,
};
use pgcairn_engine::monitor::NoMonitor;
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_engine::storage::memory::MemoryStorage;
use pgcairn_engine::storage::{ErrorKind, Storage};
use pgcairn_tests::faulty::{Faulty, Moment};
use pgcairn_tests::host::{Host, STANZA};
use pgcairn_tests::pgdata::Pgdata;
use pgcairn_tests::places::only;
use pgcairn_tests::recording::{Call, Recording, Verb};

/// A key without what differs from run to run.
fn shape(key: &str) -> String {
    let hex = |text: &str| text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let part = |part: &str| {
        let (name, run) = part.rsplit_once('.').unwrap_or(("", part));
        if hex(part) {
            "ID".to_owned()
        } else if hex(run) && name.contains('F') {
            "LABEL.RUN".to_owned()
        } else if part.get(..32).is_some_and(hex) {
            "RUN-N".to_owned()
        } else if [10, 20].contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()) {
            part.trim_start_matches('0')
                .parse()
                .unwrap_or(0)
                .to_string()
        } else {
            part.to_owned()
        }
    };
    let fan = |at: usize, part: &str| at == 1 && part.len() == 2 && key.ends_with(|c| c != '/');
    let parts = key.split('/').enumerate();
    let parts = parts.filter(|(at, part)| !fan(*at, part));
    parts
        .map(|(_, text)| part(text))
        .collect::<Vec<String>>()
        .join("/")
}

/// The calls, one line each.
fn shapes(calls: &[Call]) -> Vec<String> {
    let mut lines: Vec<(String, usize)> = Vec::new();
    let verb = |verb| match verb {
        Verb::Put => "put",
        Verb::Get => "get",
        Verb::GetRange => "range of",
        Verb::List => "list",
        Verb::Delete => "delete",
    };
    let mut shaped: Vec<String> = calls
        .iter()
        .map(|call| format!("{} {}", verb(call.verb), shape(&call.key)))
        .collect();
    let unordered = |line: &str| line.starts_with("range") || line.ends_with("a/ID");
    shaped
        .chunk_by_mut(|a, b| unordered(a) && unordered(b))
        .for_each(<[String]>::sort);
    for line in shaped {
        match lines.last_mut() {
            Some((last, times)) if *last == line => *times += 1,
            _ => lines.push((line, 1)),
        }
    }
    let print = |(line, times)| match times {
        1 => line,
        _ => format!("{line} ×{times}"),
    };
    lines.into_iter().map(print).collect()
}

/// A recorded repository of a small cluster.
struct Scene {
    pgdata: Pgdata,
    host: Host,
    storage: Arc<Recording>,
}

impl Scene {
    /// With a repository and a stanza, and so many backups.
    fn new(backups: usize) -> Self {
        let pgdata = Pgdata::small();
        pgdata.relation("base/1/90001", 1000, 1);
        let mut host = Host::new(&pgdata.path, &pgdata.folder().join("cache"));
        host.threads = 1;
        let storage = Arc::new(Recording::new(Arc::new(MemoryStorage::new())));
        let repository = host.stanza_create(Arc::clone(&storage) as Arc<dyn Storage>);
        for _ in 0..backups {
            host.backup(&repository, BackupType::Full).unwrap();
        }
        storage.take();
        Scene {
            pgdata,
            host,
            storage,
        }
    }

    /// What a full or incr asks, opening the repository included.
    fn backup(&self, backup_type: BackupType) -> Vec<Call> {
        let repository = open_repository(Arc::clone(&self.storage) as Arc<dyn Storage>).unwrap();
        self.host.backup(&repository, backup_type).unwrap();
        self.storage.take()
    }
}

#[test]
fn stanza_create_probes_the_storage_and_makes_the_root() {
    let pgdata = Pgdata::small();
    let host = Host::new(&pgdata.path, pgdata.folder());
    let storage = Arc::new(Recording::new(Arc::new(MemoryStorage::new())));
    host.stanza_create(Arc::clone(&storage) as Arc<dyn Storage>);
    assert_eq!(
        shapes(&storage.take()),
        [
            "get config",
            "get config.copy",
            "list ",
            "put probe/ID/0 ×17",
            "get probe/ID/0",
            "put probe/ID/1 ×17",
            "get probe/ID/1",
            "put probe/ID/2 ×17",
            "get probe/ID/2",
            "put probe/ID/3 ×17",
            "get probe/ID/3",
            "list probe/ID/",
            "delete probe/ID/0",
            "delete probe/ID/1",
            "delete probe/ID/2",
            "delete probe/ID/3",
            "list probe/ID/",
            "put config",
            "put config.copy",
            "list stanzas/main/ ×2",
            "put stanzas/main/1",
            "get config",
        ]
    );
}

#[test]
fn a_first_backup_asks_for_nothing_twice() {
    let scene = Scene::new(0);
    assert_eq!(
        shapes(&scene.backup(BackupType::Full)),
        [
            // Opened, and then both copies are looked at: a damaged one is told before it is needed.
            "get config ×2",
            "get config.copy",
            "list stanzas/main/",
            "get stanzas/main/1",
            "list snapshots/main/",
            "list forget/main/",
            "put runs/backup/main/LABEL.RUN/0",
            "list runs/backup/main/",
            "list snapshots/main/",
            "list gc/",
            "put runs/backup/main/LABEL.RUN/1",
            "list index/",
            "list data/",
            "list meta/",
            "list quarantine/",
            "put data/ID",
            "put meta/ID",
            "put index/main/RUN-N",
            "list data/",
            "list meta/",
            "list gc/",
            "put snapshots/main/LABEL.RUN",
            "list runs/backup/main/LABEL.RUN/",
            "delete runs/backup/main/LABEL.RUN/1",
            "delete runs/backup/main/LABEL.RUN/0",
        ]
    );
}

#[test]
fn an_unchanged_full_puts_nothing_but_its_register() {
    let scene = Scene::new(1);
    let calls = scene.backup(BackupType::Full);
    assert_eq!(
        shapes(&calls),
        [
            // Opened, and then both copies are looked at: a damaged one is told before it is needed.
            "get config ×2",
            "get config.copy",
            "list stanzas/main/",
            "get stanzas/main/1",
            "list snapshots/main/",
            "list forget/main/",
            "get snapshots/main/LABEL.RUN",
            "put runs/backup/main/LABEL.RUN/0",
            "list runs/backup/main/",
            "list snapshots/main/",
            "list gc/",
            "put runs/backup/main/LABEL.RUN/1",
            "list index/",
            "list data/",
            "list meta/",
            "list quarantine/",
            "list forget/main/",
            "range of meta/ID ×2",
            "list data/",
            "list meta/",
            "list gc/",
            "put snapshots/main/LABEL.RUN",
            "list runs/backup/main/LABEL.RUN/",
            "delete runs/backup/main/LABEL.RUN/1",
            "delete runs/backup/main/LABEL.RUN/0",
        ]
    );
    assert!(calls.len() <= 50);
}

#[test]
fn an_unchanged_incr_asks_the_same_however_many_backups_there_are() {
    let scene = Scene::new(5);
    let calls = scene.backup(BackupType::Incr);
    assert_eq!(
        shapes(&calls),
        [
            // Opened, and then both copies are looked at: a damaged one is told before it is needed.
            "get config ×2",
            "get config.copy",
            "list stanzas/main/",
            "get stanzas/main/1",
            "list snapshots/main/",
            "list forget/main/",
            "get snapshots/main/LABEL.RUN",
            "put runs/backup/main/LABEL.RUN/0",
            "list runs/backup/main/",
            "list snapshots/main/",
            "list gc/",
            "put runs/backup/main/LABEL.RUN/1",
            "list index/",
            "list data/",
            "list meta/",
            "list quarantine/",
            "list forget/main/",
            "range of meta/ID",
            "list data/",
            "list meta/",
            "list gc/",
            "put snapshots/main/LABEL.RUN",
            "list runs/backup/main/LABEL.RUN/",
            "delete runs/backup/main/LABEL.RUN/1",
            "delete runs/backup/main/LABEL.RUN/0",
        ]
    );
}

#[test]
fn a_restore_reads_the_tree_once_and_each_run_of_chunks_in_one_request() {
    let scene = Scene::new(1);
    let target = scene.pgdata.folder().join("restored");
    let repository = open_repository(Arc::clone(&scene.storage) as Arc<dyn Storage>).unwrap();
    scene.host.restore(&repository, &target, None).unwrap();
    assert_eq!(
        shapes(&scene.storage.take()),
        [
            "get config",
            "list stanzas/main/",
            "get stanzas/main/1",
            "put runs/restore/ID/0",
            "list gc/",
            "put runs/restore/ID/1",
            "list snapshots/main/",
            "list forget/main/",
            "get snapshots/main/LABEL.RUN",
            "list index/main/",
            "list index/_/",
            "list data/",
            "list meta/",
            "list quarantine/",
            "range of data/ID ×8",
            "range of meta/ID ×2",
            "list runs/restore/ID/",
            "delete runs/restore/ID/1",
            "delete runs/restore/ID/0",
        ]
    );
}

#[test]
fn verify_reads_each_pack_in_one_request_and_walks_the_trees_once() {
    let scene = Scene::new(2);
    let repository = open_repository(Arc::clone(&scene.storage) as Arc<dyn Storage>).unwrap();
    let verified = scene.host.verify(&repository).unwrap();
    assert_eq!(verified.problems, 0);
    assert_eq!(
        shapes(&scene.storage.take()),
        [
            "get config",
            "put runs/verify/ID/0",
            "list gc/",
            "put runs/verify/ID/1",
            "get config",
            "get config.copy",
            "list stanzas/main/",
            "get stanzas/main/1",
            "list snapshots/main/",
            "list forget/main/",
            "get snapshots/main/LABEL.RUN ×2",
            "list index/",
            "list data/",
            "list meta/",
            "list quarantine/",
            "range of meta/ID ×2",
            "list index/",
            "get index/main/RUN-N",
            "range of data/ID",
            "range of meta/ID",
            "list wal/main/15-1/",
            "list runs/verify/ID/",
            "delete runs/verify/ID/1",
            "delete runs/verify/ID/0"
        ]
    );
}

#[test]
fn info_reads_the_registers() {
    let scene = Scene::new(2);
    let repository = open_repository(Arc::clone(&scene.storage) as Arc<dyn Storage>).unwrap();
    info(&repository, Some(STANZA)).unwrap();
    assert_eq!(
        shapes(&scene.storage.take()),
        [
            "get config",
            "list stanzas/main/",
            "get stanzas/main/1",
            "list snapshots/main/",
            "list forget/main/",
            "get snapshots/main/LABEL.RUN ×2",
            "list wal/main/15-1/",
            "list runs/backup/main/",
        ]
    );
}

/// What archiving asks of the engine.
fn archive_options(scene: &Scene) -> ArchiveOptions {
    ArchiveOptions {
        stanza: STANZA.to_owned(),
        pgdata: scene.pgdata.path.clone(),
        cache: scene.host.cache.clone(),
        compress_level: 1,
        threads: 1,
        header_check: false,
        timeout: Duration::ZERO,
    }
}

/// What was asked since the last look, sorted: some of it is asked at the same time.
fn in_any_order(scene: &Scene) -> Vec<String> {
    let mut asked = shapes(&scene.storage.take());
    asked.sort();
    asked
}

#[test]
fn wal_is_pushed_and_fetched_with_one_request_beside_the_proof_of_the_stanza() {
    let scene = Scene::new(0);
    let options = archive_options(&scene);
    let segment = "000000010000000000000007";
    let path = Path::new("pg_wal").join(segment);
    File::create(scene.pgdata.path.join(&path))
        .and_then(|file| file.set_len(16 << 20))
        .unwrap();
    let repositories = only(Arc::clone(&scene.storage) as Arc<dyn Storage>);

    let pushed = archive_push(&repositories, &options, &path).unwrap();
    assert_eq!(pushed[0].pushed, Pushed::Stored);
    assert_eq!(
        shapes(&scene.storage.take()),
        [
            "get config",
            "list stanzas/main/",
            "get stanzas/main/1",
            "put wal/main/15-1/0000000100000000/000000010000000000000007",
        ]
    );

    let pushed = archive_push(&repositories, &options, &path).unwrap();
    assert_eq!(pushed[0].pushed, Pushed::AlreadyThere);
    // The epoch is confirmed while the segment is put.
    assert_eq!(
        in_any_order(&scene),
        [
            "get stanzas/main/1",
            "get stanzas/main/2",
            "get wal/main/15-1/0000000100000000/000000010000000000000007",
            "put wal/main/15-1/0000000100000000/000000010000000000000007",
        ]
    );

    let fetched = Path::new("pg_wal/RECOVERYXLOG");
    let get = |name, to| archive_get(&repositories, &options, name, to, &NoMonitor).unwrap();
    assert_eq!(get(segment, fetched), Got::Fetched { repository: 1 });
    assert_eq!(
        in_any_order(&scene),
        [
            "get stanzas/main/1",
            "get stanzas/main/2",
            "get wal/main/15-1/0000000100000000/000000010000000000000007",
        ]
    );
    let fetched = scene.pgdata.path.join(fetched);
    assert_eq!(fs::metadata(fetched).unwrap().len(), 16 << 20);

    assert_eq!(get("000000010000000000000008", &path), Got::NotThere);
    // That it is absent is never said of what is remembered.
    assert_eq!(
        in_any_order(&scene),
        [
            "get config",
            "get stanzas/main/1",
            "get stanzas/main/1",
            "get stanzas/main/2",
            "get wal/main/15-1/0000000100000000/000000010000000000000008",
            "get wal/main/15-1/0000000100000000/000000010000000000000008",
            "list stanzas/main/",
            "list wal/main/15-1/00000001 ×2",
        ]
    );
}

#[test]
fn a_repository_that_does_not_answer_a_get_is_not_asked_the_other_way_again() {
    let scene = Scene::new(0);
    let options = archive_options(&scene);
    let segment = "000000010000000000000007";
    let path = Path::new("pg_wal").join(segment);
    File::create(scene.pgdata.path.join(&path))
        .and_then(|file| file.set_len(16 << 20))
        .unwrap();
    let inner = Arc::clone(&scene.storage) as Arc<dyn Storage>;
    archive_push(&only(Arc::clone(&inner)), &options, &path).unwrap();
    let is_wal = |call: &Call| call.verb == Verb::Get && call.key.starts_with("wal/");
    let kind = ErrorKind::Unreachable;
    let faulty = Arc::new(Faulty::new(inner, is_wal, 1, kind, Moment::Before));
    let places = only(Arc::clone(&faulty) as Arc<dyn Storage>);
    let to = Path::new("pg_wal/RECOVERYXLOG");
    let failed = archive_get(&places, &options, segment, to, &NoMonitor).unwrap_err();
    assert_eq!(failed.kind(), actions::ErrorKind::StorageUnreachable);
    assert_eq!(faulty.matched(), 1);
}
