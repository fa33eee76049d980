//! What is left when a backup ends before its time: the storage stops after any of its writes, or one of its calls
//! fails, or its answer is lost.
//!
//! Whatever the moment: only whole backups are listed, each of them restores, and the next backup builds on what the
//! ended one had stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgcairn_engine::actions::open_repository;
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
use pgcairn_tests::recording::{Recording, Verb};

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
