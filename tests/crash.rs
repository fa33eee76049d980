//! What is left when a backup ends before its time: the storage stops after any of its writes, or one of its calls
//! fails, or its answer is lost.
//!
//! Whatever the moment: only whole backups are listed, each of them restores, and the next backup builds on what the
//! ended one had stored.

#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong in a helper of a test fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgcairn_engine::actions::{self, open_repository};
use pgcairn_engine::ids::ChunkId;
use pgcairn_engine::pack::reader::parse_footer;
use pgcairn_engine::repository::Repository;
use pgcairn_engine::repository::snapshot::{self, BackupType, Register};
use pgcairn_engine::storage::memory::MemoryStorage;
use pgcairn_engine::storage::{ErrorKind, Storage};
use pgcairn_tests::crashing::Crashing;
use pgcairn_tests::faulty::{Faulty, Moment};
use pgcairn_tests::host::{Host, STANZA};
use pgcairn_tests::pgdata::{Pgdata, assert_equal, tree};
use pgcairn_tests::postgres::Server;
use pgcairn_tests::recording::{Call, Verb};
use pgcairn_tests::server::Eventful;

/// A relation that fills more than one pack of 32 MiB.
const LARGE: (&str, usize) = ("base/1/90001", 36 << 7);

type Tree = BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>;

/// A cluster, a repository and a cache, as they were before a run, of which copies are made.
struct Scene {
    pgdata: Pgdata,
    storage: MemoryStorage,
    cache: PathBuf,
    /// What the listed backups hold.
    backups: BTreeMap<String, Tree>,
    copies: u32,
}

/// A copy of the scene on which something runs.
struct Copy {
    storage: MemoryStorage,
    host: Host,
}

impl Scene {
    fn new(pgdata: Pgdata) -> Self {
        let storage = MemoryStorage::new();
        let cache = pgdata.folder().join("cache");
        fs::create_dir(&cache).unwrap();
        Host::new(&pgdata.path, &cache).stanza_create(Arc::new(storage.clone()));
        Scene {
            pgdata,
            storage,
            cache,
            backups: BTreeMap::new(),
            copies: 0,
        }
    }

    /// Makes a backup that all copies then have.
    fn backup(&mut self, backup_type: BackupType) {
        let host = Host::new(&self.pgdata.path, &self.cache);
        let repository = open_repository(Arc::new(self.storage.clone())).unwrap();
        let summary = host.backup(&repository, backup_type).unwrap();
        let label = summary.manifest.label;
        self.backups.insert(label, tree(&self.pgdata.path));
    }

    fn copy(&mut self) -> Copy {
        let storage = MemoryStorage::new();
        for object in self.storage.list("", None, usize::MAX).unwrap() {
            let body = self.storage.get(&object.key).unwrap();
            storage.put(&object.key, &body).unwrap();
        }
        let cache = self.folder("cache");
        copy_folder(&self.cache, &cache);
        let host = Host::new(&self.pgdata.path, &cache);
        Copy { storage, host }
    }

    /// The same storage, seen by a host that has no cache.
    fn elsewhere(&mut self, copy: &Copy) -> Host {
        Host::new(&copy.host.pgdata, &self.folder("elsewhere"))
    }

    /// A new empty folder; the one before goes.
    fn folder(&mut self, name: &str) -> PathBuf {
        let name_of = |number| format!("{name}-{number}");
        self.copies += 1;
        let path = self.pgdata.folder().join(name_of(self.copies));
        fs::create_dir(&path).unwrap();
        path
    }

    /// Checks that exactly the scene's backups, and a newer one if `newer`, are listed, and that all restore.
    fn check_listed(&mut self, host: &Host, storage: &MemoryStorage, newer: usize) {
        let repository = open_repository(Arc::new(storage.clone())).unwrap();
        let listed = host.listed(&repository);
        assert_eq!(listed.len(), self.backups.len() + newer, "{listed:?}");
        let now = tree(&self.pgdata.path);
        for label in listed {
            let target = self.folder("restored");
            host.restore(&repository, &target, Some(&label)).unwrap();
            assert_equal(self.backups.get(&label).unwrap_or(&now), &tree(&target));
            fs::remove_dir_all(target).unwrap();
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The chunks in all packs of a storage; fails if one of them is stored twice.
fn chunks(storage: &dyn Storage) -> BTreeSet<ChunkId> {
    let mut chunks = BTreeSet::new();
    for prefix in ["data/", "meta/"] {
        for object in storage.list(prefix, None, usize::MAX).unwrap() {
            for entry in parse_footer(&storage.get(&object.key).unwrap()).unwrap() {
                assert!(chunks.insert(entry.id), "{} is stored twice", entry.id);
            }
        }
    }
    chunks
}

fn count(storage: &dyn Storage, prefix: &str) -> usize {
    storage.list(prefix, None, usize::MAX).unwrap().len()
}

/// The registers that are not committed.
fn fenced(repository: &Repository) -> usize {
    let listed = snapshot::list(repository, STANZA).unwrap();
    let register = |snapshot| snapshot::read(repository, snapshot).unwrap();
    listed
        .iter()
        .filter(|snapshot| register(snapshot) == Register::Fenced)
        .count()
}

/// Runs a backup on a copy of the scene whose storage stops after `k` writes; answers the copy and whether the backup
/// succeeded.
fn stopped_after(scene: &mut Scene, backup_type: BackupType, k: u64) -> (Copy, bool, u64) {
    let copy = scene.copy();
    let crashing = Arc::new(Crashing::new(Arc::new(copy.storage.clone()), k));
    let repository = open_repository(Arc::clone(&crashing) as Arc<dyn Storage>);
    let outcome = repository.and_then(|repository| copy.host.backup(&repository, backup_type));
    (copy, outcome.is_ok(), crashing.writes())
}

/// Stops a backup after each of its writes and checks all that must hold then.
fn stop_everywhere(scene: &mut Scene, backup_type: BackupType) -> u64 {
    let (whole, succeeded, writes) = stopped_after(scene, backup_type, u64::MAX);
    assert!(succeeded);
    let all_chunks = chunks(&whole.storage);
    for k in 0..writes {
        let (copy, succeeded, _) = stopped_after(scene, backup_type, k);
        scene.check_listed(&copy.host, &copy.storage, usize::from(succeeded));
        let stored = chunks(&copy.storage);
        let announced = count(&copy.storage, "runs/");

        let other = scene.elsewhere(&copy);
        let storage = copy_of(&copy.storage);
        let repository = open_repository(Arc::new(storage.clone())).unwrap();
        other.backup(&repository, backup_type).unwrap();
        assert!(chunks(&storage).is_superset(&stored));
        assert_eq!(count(&storage, "runs/"), announced, "another host's run");
        scene.check_listed(&other, &storage, usize::from(succeeded) + 1);

        let repository = open_repository(Arc::new(copy.storage.clone())).unwrap();
        copy.host.backup(&repository, backup_type).unwrap();
        let now = chunks(&copy.storage);
        assert!(now.is_superset(&stored) && now.is_superset(&all_chunks));
        assert_eq!(count(&copy.storage, "runs/"), 0, "k = {k}: this host's run");
        scene.check_listed(&copy.host, &copy.storage, usize::from(succeeded) + 1);
    }
    writes
}

fn copy_of(storage: &MemoryStorage) -> MemoryStorage {
    let copy = MemoryStorage::new();
    for object in storage.list("", None, usize::MAX).unwrap() {
        copy.put(&object.key, &storage.get(&object.key).unwrap())
            .unwrap();
    }
    copy
}

#[test]
fn a_full_backup_may_stop_after_any_write() {
    let pgdata = Pgdata::small();
    pgdata.relation(LARGE.0, LARGE.1, 1);
    let mut scene = Scene::new(pgdata);
    let writes = stop_everywhere(&mut scene, BackupType::Full);
    // Announcement, gc number, two data packs, a meta pack, a segment, the register, two deletions.
    assert_eq!(writes, 9);
}

#[test]
fn an_incremental_backup_may_stop_after_any_write() {
    let pgdata = Pgdata::small();
    pgdata.relation(LARGE.0, 1000, 1);
    let mut scene = Scene::new(pgdata);
    scene.backup(BackupType::Full);
    for page in [3, 300, 301, 999] {
        scene.pgdata.change_page(LARGE.0, page, page as u64);
    }
    scene.pgdata.relation("base/1/90002", 10, 2);
    fs::remove_file(scene.pgdata.path.join("base/1/1255_vm")).unwrap();
    let writes = stop_everywhere(&mut scene, BackupType::Incr);
    assert_eq!(writes, 8);
}

/// How a call of a backup fails.
fn failing(
    copy: &Copy,
    matches: impl Fn(&Call) -> bool + Send + Sync + 'static,
    nth: usize,
    moment: Moment,
) -> Arc<Faulty> {
    let inner = Arc::new(copy.storage.clone());
    Arc::new(Faulty::new(
        inner,
        matches,
        nth,
        ErrorKind::Unreachable,
        moment,
    ))
}

/// A small cluster with one backup and a change since.
fn small_scene() -> Scene {
    let pgdata = Pgdata::small();
    pgdata.relation(LARGE.0, 40, 1);
    let mut scene = Scene::new(pgdata);
    scene.backup(BackupType::Full);
    scene.pgdata.change_page(LARGE.0, 7, 3);
    scene
}

/// Fails each call of an incr in turn, and checks that it either succeeds or leaves nothing but a fence.
fn fail_everywhere(matches: fn(&Call) -> bool, moment: Moment) -> (usize, usize) {
    let mut scene = small_scene();
    let (mut calls, mut failures) = (0, 0);
    loop {
        let copy = scene.copy();
        let faulty = failing(&copy, matches, calls + 1, moment);
        let repository = open_repository(Arc::clone(&faulty) as Arc<dyn Storage>);
        let outcome =
            repository.and_then(|repository| copy.host.backup(&repository, BackupType::Incr));
        if faulty.matched() <= calls {
            assert!(outcome.is_ok());
            return (calls, failures);
        }
        calls += 1;
        let succeeded = usize::from(outcome.is_ok());
        failures += 1 - succeeded;
        let repository = open_repository(Arc::new(copy.storage.clone())).unwrap();
        assert_eq!(
            copy.host.listed(&repository).len(),
            1 + succeeded,
            "call {calls}"
        );
        let announced = count(&copy.storage, "runs/");
        if succeeded == 0 {
            assert_eq!(
                announced, 0,
                "call {calls} left its announcement: {outcome:?}"
            );
        }
        assert!(fenced(&repository) <= 1 - succeeded, "call {calls}");
        copy.host.backup(&repository, BackupType::Incr).unwrap();
        chunks(&copy.storage);
        assert_eq!(count(&copy.storage, "runs/"), 0, "call {calls}");
        scene.check_listed(&copy.host, &copy.storage, succeeded + 1);
    }
}

fn is_write(call: &Call) -> bool {
    matches!(call.verb, Verb::Put | Verb::Delete)
}

#[test]
fn a_backup_survives_a_lost_answer_or_leaves_a_fence() {
    let (calls, failures) = fail_everywhere(is_write, Moment::After);
    // The register is read back, and the announcement's deletion is not worth failing for.
    assert_eq!((calls, failures), (8, 5));
}

#[test]
fn a_backup_of_which_any_request_fails_is_not_half_there() {
    let (calls, failures) = fail_everywhere(|_| true, Moment::Before);
    // Taking the announcement back (a listing, two deletions) is not worth failing for; and where the previous backup's
    // tree cannot be read, every file is read instead.
    assert_eq!(calls - failures, 4);
}

#[test]
fn a_failed_backup_fences_its_register_and_takes_its_announcement_back() {
    let mut scene = small_scene();
    let copy = scene.copy();
    let is_pack = |call: &Call| call.verb == Verb::Put && call.key.starts_with("data/");
    let faulty = failing(&copy, is_pack, 1, Moment::Before);
    let repository = open_repository(faulty).unwrap();
    let error = copy.host.backup(&repository, BackupType::Incr).unwrap_err();
    assert!(format!("{error:?}").contains("data/"), "{error:?}");
    assert_eq!(fenced(&repository), 1);
    assert_eq!(count(&copy.storage, "runs/"), 0);
}

#[test]
fn the_announcement_stays_if_the_register_cannot_be_fenced() {
    let mut scene = small_scene();
    let copy = scene.copy();
    let is_pack = |call: &Call| call.verb == Verb::Put && call.key.starts_with("data/");
    let is_register = |call: &Call| call.verb == Verb::Put && call.key.starts_with("snapshots/");
    let no_pack = failing(&copy, is_pack, 1, Moment::Before);
    let no_fence = Faulty::new(
        no_pack,
        is_register,
        1,
        ErrorKind::Unreachable,
        Moment::Before,
    );
    let repository = open_repository(Arc::new(no_fence)).unwrap();
    copy.host.backup(&repository, BackupType::Incr).unwrap_err();
    assert_eq!(fenced(&repository), 0);
    assert_eq!(count(&copy.storage, "runs/"), 2, "announced, gc log read");

    // The next run of this host finds that its owner is gone, and fences it.
    copy.host.backup(&repository, BackupType::Incr).unwrap();
    assert_eq!(fenced(&repository), 1);
    assert_eq!(count(&copy.storage, "runs/"), 0);
}

#[test]
fn a_commit_that_turns_out_to_have_succeeded_is_a_success() {
    let mut scene = small_scene();
    let copy = scene.copy();
    let registers = |verb: Verb| move |call: &Call| call.verb == verb && call.key.contains("I.");
    let lost = failing(&copy, registers(Verb::Put), 3, Moment::After);
    // The first two puts of a key with the label are those of the announcement.
    let unread = Faulty::new(
        Arc::clone(&lost) as Arc<dyn Storage>,
        registers(Verb::Get),
        1,
        ErrorKind::Unreachable,
        Moment::Before,
    );
    let repository = open_repository(Arc::new(unread)).unwrap();
    copy.host.backup(&repository, BackupType::Incr).unwrap();
    assert_eq!(lost.matched(), 4, "a fence was tried, and found the commit");
    assert_eq!((count(&copy.storage, "runs/"), fenced(&repository)), (0, 0));
    scene.check_listed(&copy.host, &copy.storage, 1);
}

#[test]
fn a_restore_that_died_is_not_waited_for() {
    let mut scene = small_scene();
    let copy = scene.copy();
    let crashing = Crashing::new(Arc::new(copy.storage.clone()), 2);
    let repository = open_repository(Arc::new(crashing)).unwrap();
    let target = scene.folder("target");
    copy.host.restore(&repository, &target, None).unwrap_err();
    assert_eq!(count(&copy.storage, "runs/restore/"), 2);
    scene.check_listed(&copy.host, &copy.storage, 0);
    assert_eq!(count(&copy.storage, "runs/"), 0);
}

/// The packs that a first backup of `pgdata` with so many threads stores, and the root of its tree.
fn packs_of(pgdata: &Pgdata, cache: &Path, threads: usize) -> (Vec<Vec<u8>>, ChunkId) {
    let storage = MemoryStorage::new();
    let mut host = Host::new(&pgdata.path, cache);
    host.threads = threads;
    let repository = host.stanza_create(Arc::new(storage.clone()));
    let summary = host.backup(&repository, BackupType::Full).unwrap();
    let mut packs = Vec::new();
    for prefix in ["data/", "meta/"] {
        for object in storage.list(prefix, None, usize::MAX).unwrap() {
            packs.push(storage.get(&object.key).unwrap());
        }
    }
    packs.sort_unstable();
    (packs, summary.manifest.root)
}

#[test]
fn one_thread_makes_the_same_packs_and_many_make_the_same_tree() {
    let pgdata = Pgdata::small();
    // The same content twice, side by side: two threads come to the same chunks at the same time.
    for name in ["base/1/90001", "base/1/90002", "base/1/90003"] {
        pgdata.relation(name, 16 << 7, 5);
    }
    let cache = pgdata.folder().join("cache");
    let (packs, root) = packs_of(&pgdata, &cache, 1);
    assert!(packs.len() >= 2);
    assert!(
        packs_of(&pgdata, &cache, 1) == (packs, root),
        "same input, same bytes"
    );
    for _ in 0..5 {
        assert_eq!(packs_of(&pgdata, &cache, 4).1, root);
    }
}

#[test]
fn a_server_that_dies_during_its_backup_ends_it_and_leaves_a_fence() {
    let server = Server::running("");
    let cache = server.make_folder("cache");
    let host = Host::new(&server.data, &cache);
    let storage = MemoryStorage::new();
    let repository = host.stanza_create(Arc::new(storage.clone()));

    let mut dying = Eventful::connect(&server, || server.kill(), || ());
    let outcome = host.backup_with(&repository, BackupType::Full, Some(&mut dying));
    assert!(outcome.is_err());
    assert_eq!((fenced(&repository), count(&storage, "runs/")), (1, 0));
    assert_eq!(host.listed(&repository), [""; 0]);

    server.start();
    let stored = chunks(&storage);
    let mut seen = (String::new(), String::new());
    let position = || server.value("SELECT pg_current_wal_insert_lsn()");
    let mut living = Eventful::connect(&server, || seen.0 = position(), || seen.1 = position());
    let summary = host
        .backup_with(&repository, BackupType::Incr, Some(&mut living))
        .unwrap();
    drop(living);
    let manifest = summary.manifest;
    assert!(manifest.start_lsn < seen.0.parse().unwrap());
    assert!(manifest.stop_lsn >= seen.1.parse().unwrap());
    assert!(chunks(&storage).is_superset(&stored));
    assert_eq!(host.listed(&repository), [manifest.label]);
}

/// A restore whose storage stops before it has fetched anything: what it leaves is a marker.
fn interrupted_restore(scene: &mut Scene, copy: &Copy) -> PathBuf {
    let is_data = |call: &Call| call.verb == Verb::GetRange && call.key.starts_with("data/");
    let repository = open_repository(failing(copy, is_data, 1, Moment::Before)).unwrap();
    let target = scene.folder("target");
    copy.host.restore(&repository, &target, None).unwrap_err();
    assert!(!target.join("global/pg_control").exists());
    target
}

#[test]
fn a_restore_that_was_killed_before_its_marker_was_in_place_can_be_run_again() {
    let mut scene = small_scene();
    let copy = scene.copy();
    let repository = open_repository(Arc::new(copy.storage.clone())).unwrap();
    let target = scene.folder("target");
    File::create(target.join("pgcairn.restore.tmp")).unwrap();
    copy.host.restore(&repository, &target, None).unwrap();
    assert_equal(scene.backups.values().next().unwrap(), &tree(&target));
}

#[test]
fn a_marker_that_outlived_its_restore_gives_no_leave_to_write_over_a_used_cluster() {
    let mut scene = small_scene();
    let copy = scene.copy();
    let repository = open_repository(Arc::new(copy.storage.clone())).unwrap();
    let target = interrupted_restore(&mut scene, &copy);
    let marker = target.join("pgcairn.restore");
    let kept = scene.pgdata.folder().join("marker");
    fs::copy(&marker, &kept).unwrap();
    copy.host.restore(&repository, &target, None).unwrap();
    assert!(!marker.exists());

    // Killed between the last two steps: it may be run again.
    fs::copy(&kept, &marker).unwrap();
    copy.host.restore(&repository, &target, None).unwrap();
    assert!(!marker.exists());

    // The same, but then a server ran: it has written its control file, and tables.
    fs::copy(&kept, &marker).unwrap();
    let control = target.join("global/pg_control");
    let file = File::options().write(true).open(&control).unwrap();
    file.write_all_at(b"written by a server", 100).unwrap();
    let used = tree(&target);
    let error = copy.host.restore(&repository, &target, None).unwrap_err();
    assert_eq!(error.kind(), actions::ErrorKind::PathNotEmpty, "{error}");
    assert_equal(&used, &tree(&target));
}
