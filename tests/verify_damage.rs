//! What verify says of damage that is more than one object, or that a listing does not show; and what becomes of what it notes.
//!
//! Promises: its verdict on each backup is what a restore of it comes to.

#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong in a helper of a test fails the test"
)]

use std::fs;
use std::ops::Range;
use std::sync::Arc;

use pgcairn_engine::actions::{self, IndexOptions};
use pgcairn_engine::monitor::{NoMonitor, Tally};
use pgcairn_engine::repository::Repository;
use pgcairn_engine::repository::quarantine::{self, Finding};
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_engine::storage::local::LocalStorage;
use pgcairn_engine::storage::{self, ErrorKind, Key, Object, Storage};
use pgcairn_tests::damage::{Site, Told, flip, restorable};
use pgcairn_tests::small_cluster::differences;

/// A directory on a disk that cannot read some of it, though it lists all.
struct BadDisk {
    inner: LocalStorage,
    /// The object concerned; all, if it is empty.
    key: String,
    bad: Range<u64>,
    kind: ErrorKind,
}

impl BadDisk {
    fn fails(&self, key: &Key, range: &Range<u64>) -> storage::Result<()> {
        let meets = range.start < self.bad.end && self.bad.start < range.end;
        let concerned = self.key.is_empty() || key.as_str() == self.key;
        if !concerned || !meets {
            return Ok(());
        }
        Err(storage::Error {
            kind: self.kind,
            what: "get",
            key: key.to_string(),
            place: self.describe(),
            source: None,
        })
    }
}

impl Storage for BadDisk {
    fn put(&self, key: &Key, body: &[u8]) -> storage::Result<()> {
        self.inner.put(key, body)
    }
    fn get(&self, key: &Key) -> storage::Result<Vec<u8>> {
        self.fails(key, &(0..u64::MAX))?;
        self.inner.get(key)
    }
    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> storage::Result<()> {
        self.fails(key, &(offset..offset + buffer.len() as u64))?;
        self.inner.get_range(key, offset, buffer)
    }
    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> storage::Result<Vec<Object>> {
        self.inner.list(prefix, start_after, limit)
    }
    fn delete(&self, key: &Key) -> storage::Result<()> {
        self.inner.delete(key)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// A site with a full and an incr of one cluster, to which something was added between.
fn two_backups() -> (Site, [String; 2]) {
    let mut site = Site::new();
    let full = site.backup(BackupType::Full, &NoMonitor).unwrap().manifest;
    site.cluster.write_relation("base/5/90003", 100, 3);
    let incr = site.backup(BackupType::Incr, &NoMonitor).unwrap().manifest;
    site.keep();
    (site, [full.label, incr.label])
}

/// Whether a backup is restored; what verify notes stays.
fn restores(site: &Site, repository: &Repository, label: &str) -> bool {
    let target = site.beside("target");
    if target.exists() {
        fs::remove_dir_all(&target).unwrap();
    }
    let options = site.restore_options(Some(label), &target);
    actions::restore(repository, &options, &Tally::default(), &NoMonitor).is_ok()
}

#[test]
fn with_the_index_lost_too_the_verdict_is_what_a_restore_comes_to() {
    let (site, labels) = two_backups();
    let mut lost = 0;
    for pack in [site.keys("data/"), site.keys("meta/")].concat() {
        let length = usize::try_from(fs::metadata(site.object(&pack)).unwrap().len()).unwrap();
        for warm in [false, true] {
            for at in [40, length / 2, length - 30] {
                let strike = || {
                    site.reset(warm);
                    for segment in site.keys("index/") {
                        fs::remove_file(site.object(&segment)).unwrap();
                    }
                    flip(&site.object(&pack), at);
                };
                strike();
                let (restorable, problems) = site.verdict();
                assert!(problems > 0, "{pack} at {at}");
                for label in &labels {
                    strike();
                    let restored = restores(&site, &site.repository().unwrap(), label);
                    // With a footer that is lost too, only a host that still knows what was in the pack restores it.
                    if !warm || restorable.contains(label) {
                        assert_eq!(
                            restorable.contains(label),
                            restored,
                            "{label}, {pack} at {at}"
                        );
                    }
                    lost += usize::from(!restored);
                }
            }
        }
    }
    assert!(lost > 5, "only {lost}");
}

#[test]
fn what_a_disk_cannot_read_ends_no_verification_and_the_verdict_is_what_a_restore_comes_to() {
    let (site, labels) = two_backups();
    let mut lost = 0;
    for key in site.keys("") {
        let length = fs::metadata(site.object(&key)).unwrap().len();
        // A bad place in the middle, an object that vanished after it was listed, one that may not be read.
        let ways = [
            (length / 2..length / 2 + 1, ErrorKind::Other),
            (0..u64::MAX, ErrorKind::NotFound),
            (0..u64::MAX, ErrorKind::Denied),
        ];
        for (bad, kind) in ways {
            // Who reads a register that is not there, or a stanza, is told so.
            let whole = ["snapshots/", "stanzas/", "config", "runs/"];
            if whole.iter().any(|prefix| key.starts_with(prefix)) {
                continue;
            }
            let opened = || {
                site.reset(true);
                let inner = LocalStorage::open(&site.repository_path()).unwrap();
                let (key, bad) = (key.clone(), bad.clone());
                let disk = BadDisk {
                    inner,
                    key,
                    bad,
                    kind,
                };
                actions::open_repository(Arc::new(disk)).unwrap()
            };
            let verified = site.verify_on(&opened(), None, &NoMonitor).unwrap();
            let (restorable, problems) = restorable(&verified);
            // An index segment that is gone when it is read was merged into another, as far as anybody can tell.
            let may_be_merged = key.starts_with("index/") && kind == ErrorKind::NotFound;
            assert_eq!(problems == 0, may_be_merged, "{key}: {kind}");
            for label in &labels {
                let restored = restores(&site, &opened(), label);
                assert_eq!(
                    restorable.contains(label),
                    restored,
                    "{label}, {key}: {kind}"
                );
                lost += usize::from(!restored);
            }
        }
    }
    assert!(lost > 5, "only {lost}");
}

#[test]
fn a_store_that_forbids_everything_is_not_taken_for_a_damaged_object() {
    let site = Site::new();
    let forbids = |key: &str| -> bool {
        let inner = LocalStorage::open(&site.repository_path()).unwrap();
        let (key, bad, kind) = (key.to_owned(), 0..u64::MAX, ErrorKind::Denied);
        let disk = BadDisk {
            inner,
            key,
            bad,
            kind,
        };
        let one = Key::new("config").unwrap();
        let refused = disk.fails(&Key::new(disk.key.as_str()).unwrap_or(one), &(0..1));
        let mut repository = site.repository().unwrap();
        repository.storage = Arc::new(disk);
        repository.is_about_one_object(&refused.unwrap_err())
    };
    assert!(forbids("data/00/pack"));
    assert!(forbids("config"), "its copy can be read");
    assert!(!forbids(""));
}

#[test]
fn a_pack_in_the_wrong_place_is_a_lost_one_and_a_second_copy_there_is_not() {
    let (site, [_, incr]) = two_backups();
    for is_kept in [false, true] {
        for pack in site.keys("data/") {
            site.reset(true);
            let elsewhere = site.object(&pack.replacen("data/", "meta/", 1));
            fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
            fs::copy(site.object(&pack), &elsewhere).unwrap();
            if !is_kept {
                fs::remove_file(site.object(&pack)).unwrap();
            }
            let (restorable, problems) = site.verdict();
            assert_eq!(restorable.contains(&incr), is_kept, "{pack}");
            assert_eq!(problems > 0, !is_kept, "{pack}");
            let restored = restores(&site, &site.repository().unwrap(), &incr);
            assert_eq!(restored, is_kept, "{pack}");
        }
    }
}

#[test]
fn what_verify_finds_damaged_the_next_backup_stores_again() {
    let mut site = Site::new();
    let first = site.backup(BackupType::Full, &NoMonitor).unwrap().manifest;
    let packs = [site.keys("data/"), site.keys("meta/")].concat();
    for pack in &packs {
        let length = usize::try_from(fs::metadata(site.object(pack)).unwrap().len()).unwrap();
        flip(&site.object(pack), length / 2);
    }
    let told = Told::default();
    let found = site.verify(&told).unwrap();
    assert_eq!(found.problems, packs.len() as u64);
    for (pack, told) in packs.iter().zip(told.problems()) {
        assert!(told.contains("chunks in it are damaged"), "{told}");
        assert!(
            packs.iter().any(|pack| told.contains(pack)),
            "{pack}: {told}"
        );
    }
    assert_eq!(found.unrestorable(), (1, 1));
    site.backup(BackupType::Full, &NoMonitor).unwrap();
    let healed = site.verify(&NoMonitor).unwrap();
    assert_eq!(healed.unrestorable(), (0, 2));
    assert_eq!(healed.problems, 0, "what is known is not told again");
    assert!(
        healed.known_damaged > 0,
        "the damaged copies are still there"
    );
    let target = site.beside("target");
    let options = site.restore_options(Some(&first.label), &target);
    site.restore(&options, &NoMonitor).unwrap();
    assert_eq!(differences(&site.cluster.data, &target), [""; 0]);
}

#[test]
fn a_copy_that_somebody_called_damaged_is_the_last_resort() {
    let mut site = Site::new();
    let backup = site.backup(BackupType::Full, &NoMonitor).unwrap().manifest;
    let repository = site.repository().unwrap();
    let finding = Finding {
        found_ms: 0,
        host: "one with bad memory".to_owned(),
        reason: "none".to_owned(),
    };
    let options = IndexOptions {
        cache: site.beside("cache"),
        host: "host".to_owned(),
        now_ms: 1_900_000_000_000,
    };
    let index = actions::open_index(&repository, &options.cache).unwrap();
    let mut hidden = 0;
    for chunk in index.chunks() {
        let (chunk, copies) = chunk.unwrap();
        for copy in copies {
            quarantine::put(&repository, chunk, copy.pack, &finding).unwrap();
            hidden += 1;
        }
    }
    drop(index);
    assert!(hidden > 10, "{hidden}");
    assert_eq!(site.verdict(), (vec![backup.label.clone()], 0));
    let target = site.beside("target");
    let options = site.restore_options(Some(&backup.label), &target);
    site.restore(&options, &NoMonitor).unwrap();
    assert_eq!(differences(&site.cluster.data, &target), [""; 0]);
    // Nothing is built on them all the same.
    let again = site.backup(BackupType::Full, &NoMonitor).unwrap().manifest;
    assert_eq!(again.sums.new_bytes, backup.sums.new_bytes);
}
