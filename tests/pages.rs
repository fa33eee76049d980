//! Pages that are damaged in the cluster, and files that change while they are read.
//!
//! Promises: a bad page never stops a backup and is told by relation and block; a file is backed up as long as it was when
//! it was read, never longer than when it was listed, and one that vanished is left out.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Condvar, Mutex};

use pgcairn_engine::actions;
use pgcairn_engine::monitor::{Monitor, NoMonitor, Problem, Stage, Tally};
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_tests::damage::{Site, Told};
use pgcairn_tests::process::{PATIENCE, finish};
use pgcairn_tests::small_cluster::{LARGE, PAGE, SMALL, differences};

/// Writes a byte into a page without its checksum.
fn spoil(cluster: &Path, relation: &str, block: u64) {
    let file = File::options()
        .write(true)
        .open(cluster.join(relation))
        .unwrap();
    file.write_all_at(&[0xAA], block * PAGE as u64 + 5000)
        .unwrap();
}

#[test]
fn a_bad_page_is_told_by_relation_and_block_and_the_backup_completes() {
    let mut site = Site::new();
    let clean = site.backup(BackupType::Full, &NoMonitor).unwrap().manifest;
    assert_eq!((clean.sums.bad_pages, clean.page_list), (0, None));
    let data = site.cluster.data.clone();
    spoil(&data, SMALL, 7);
    spoil(&data, LARGE, 0);
    spoil(&data, LARGE, 767);
    let told = Told::default();
    let manifest = site.backup(BackupType::Incr, &told).unwrap().manifest;
    assert_eq!((manifest.sums.bad_pages, manifest.sums.torn_pages), (3, 0));
    assert!(manifest.page_list.is_some());
    let mut problems = told.problems();
    problems.sort();
    assert_eq!(
        problems,
        [
            "base/5/90001: page checksum of block 7 does not match",
            "base/5/90002: page checksum of block 0 does not match",
            "base/5/90002: page checksum of block 767 does not match",
        ]
    );
    let info = actions::info(&site.repository().unwrap(), Some("demo")).unwrap();
    let bad: Vec<u64> = info[0]
        .backups
        .iter()
        .map(|backup| backup.sums.bad_pages)
        .collect();
    assert_eq!(bad, [0, 3]);
    // What is damaged is backed up as it is: it may be all that is left.
    let target = site.beside("target");
    let options = site.restore_options(None, &target);
    site.restore(&options, &NoMonitor).unwrap();
    assert_eq!(differences(&data, &target), [""; 0]);
    // The damage is still there, though the files have not changed since.
    let again = site.backup(BackupType::Incr, &NoMonitor).unwrap().manifest;
    assert_eq!(again.sums.bad_pages, 3);
}

#[test]
fn without_page_checks_a_bad_page_is_not_told() {
    let mut site = Site::new();
    spoil(&site.cluster.data.clone(), SMALL, 7);
    let mut options = site.backup_options(BackupType::Full);
    options.checksum_page = Some(false);
    let (repository, told) = (site.repository().unwrap(), Told::default());
    let summary = actions::backup(&repository, None, &options, &Tally::default(), &told).unwrap();
    assert_eq!(summary.manifest.sums.bad_pages, 0);
    assert_eq!(told.problems(), [""; 0]);
}

/// What stands behind all files of a database: when it is told of it, the backup has listed them all.
const LAST: &str = "zzz";
/// A relation of two regions.
const HUGE: &str = "base/5/90004";

/// Holds the backup up when it has read its first files, until it has listed all of a database; then acts, once.
struct Meanwhile<F> {
    listed: Mutex<bool>,
    told: Condvar,
    act: Mutex<Option<F>>,
}

impl<F: FnOnce() + Send> Monitor for Meanwhile<F> {
    fn stage(&self, _stage: Stage, _total_bytes: u64, _total_files: u64) {}
    fn progress(&self, _tally: &Tally) {
        let Some(act) = self.act.lock().unwrap().take() else {
            return;
        };
        let listed = self.listed.lock().unwrap();
        let (listed, waited) = self
            .told
            .wait_timeout_while(listed, PATIENCE, |listed| !*listed)
            .unwrap();
        assert!(*listed && !waited.timed_out(), "the files are never listed");
        act();
    }
    fn problem(&self, problem: &Problem) {
        assert!(problem.object.ends_with(LAST), "{problem}");
        *self.listed.lock().unwrap() = true;
        self.told.notify_all();
    }
    fn note(&self, _text: &str) {}
}

#[test]
fn files_that_change_between_listing_and_reading_are_taken_as_they_were_read() {
    let mut site = Site::new();
    let data = site.cluster.data.clone();
    fs::remove_file(data.join(SMALL)).unwrap();
    fs::remove_file(data.join(LARGE)).unwrap();
    site.cluster.write_relation(HUGE, 2304, 4);
    // Small ones: they are read together, after the last of them was listed.
    let names = ["vanished", "shrunk", "grown", "emptied"].map(|name| format!("base/5/{name}"));
    for name in &names {
        site.cluster.write_relation(name, 10, 5);
    }
    finish(Command::new("mkfifo").arg(data.join("base/5").join(LAST))).success();
    let before = |name: &str| fs::read(data.join(name)).unwrap();
    let (huge, small) = (before(HUGE), before(&names[0]));
    let act = || {
        let open = |name: &str| File::options().append(true).open(data.join(name)).unwrap();
        open(HUGE).set_len((10 << 20) + 100).unwrap();
        fs::remove_file(data.join(&names[0])).unwrap();
        open(&names[1]).set_len(3 * PAGE as u64 + 100).unwrap();
        open(&names[2]).write_all(&vec![1; 5 * PAGE]).unwrap();
        open(&names[3]).set_len(0).unwrap();
    };
    let monitor = Meanwhile {
        listed: Mutex::new(false),
        told: Condvar::new(),
        act: Mutex::new(Some(act)),
    };
    let mut options = site.backup_options(BackupType::Full);
    options.threads = 1;
    let repository = site.repository().unwrap();
    let summary = actions::backup(&repository, None, &options, &Tally::default(), &monitor);
    let sums = summary.unwrap().manifest.sums;
    assert!(monitor.act.lock().unwrap().is_none());
    let target = site.beside("target");
    let restored = site.restore(&site.restore_options(None, &target), &NoMonitor);
    let restored = restored.unwrap();
    assert_eq!(
        (restored.files, restored.bytes),
        (sums.files, sums.file_bytes)
    );
    let after = |name: &str| fs::read(target.join(name)).unwrap();
    assert!(!target.join(&names[0]).exists());
    assert!(after(HUGE) == huge[..(10 << 20) + 100]);
    assert!(after(&names[1]) == small[..3 * PAGE + 100]);
    assert!(
        after(&names[2]) == small,
        "only as much as it had when it was listed"
    );
    assert!(after(&names[3]).is_empty());
}
