//! A cluster, a repository and a cache in one place; and ways to damage what is stored.
//!
//! Promises: actions run as the command line runs them, on a storage in a directory; damage is done to the files beneath
//! it, as a disk or a person would do it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgcairn_engine::actions::{
    self, ArchiveOptions, BackupOptions, BackupSummary, Goal, Got, RestoreOptions, RestoreSummary,
    StanzaCreateOptions, StorageLocation, TimelineGoal, VerifyOptions, VerifySummary,
};
use pgcairn_engine::cluster::recovery::{Recovery, RecoveryType};
use pgcairn_engine::monitor::{Monitor, NoMonitor, Problem, Stage, Tally};
use pgcairn_engine::repository::Repository;
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_engine::storage::Storage;

use crate::places::only;
use crate::small_cluster::{SmallCluster, copy};

/// The stanza of all of these tests.
pub const STANZA: &str = "demo";

/// What an action answers.
pub type Answer<T> = actions::Result<T>;

/// Keeps what it is told.
#[derive(Debug, Default)]
pub struct Told(Mutex<Vec<String>>);

impl Told {
    /// All problems so far, one each.
    pub fn problems(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Monitor for Told {
    fn stage(&self, _stage: Stage, _total_bytes: u64, _total_files: u64) {}
    fn progress(&self, _tally: &Tally) {}
    fn problem(&self, problem: &Problem) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(problem.to_string());
    }
    fn note(&self, _text: &str) {}
}

/// A cluster with its repository.
#[derive(Debug)]
pub struct Site {
    /// The cluster.
    pub cluster: SmallCluster,
    /// Counts the backups, so that each has a time of its own.
    second: i64,
}

impl Site {
    /// A cluster with a repository that has its stanza and no backup.
    pub fn new() -> Self {
        let site = Site {
            cluster: SmallCluster::new(),
            second: 0,
        };
        site.stanza_create(STANZA)
            .expect("a stanza can be made in an empty folder");
        site
    }

    /// A path beside the cluster.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.cluster.folder().join(name)
    }

    /// The repository's directory.
    pub fn repository_path(&self) -> PathBuf {
        self.beside("repository")
    }

    /// The repository, opened anew.
    pub fn repository(&self) -> Answer<Repository> {
        actions::open_repository(self.storage()?)
    }

    /// Its storage, opened anew.
    pub fn storage(&self) -> Answer<Arc<dyn Storage>> {
        actions::open_storage(&StorageLocation::Directory(self.repository_path()))
    }

    /// Makes a stanza, and the repository with the first.
    pub fn stanza_create(&self, stanza: &str) -> Answer<()> {
        let storage = actions::create_storage(&StorageLocation::Directory(self.repository_path()))?;
        let options = StanzaCreateOptions {
            stanza: stanza.to_owned(),
            pgdata: self.cluster.data.clone(),
        };
        actions::stanza_create(storage, &options, None, &NoMonitor).map(drop)
    }

    /// What a backup is asked for.
    pub fn backup_options(&mut self, backup_type: BackupType) -> BackupOptions {
        self.second += 1;
        BackupOptions {
            stanza: STANZA.to_owned(),
            pgdata: self.cluster.data.clone(),
            backup_type,
            cache: self.beside("cache"),
            threads: 2,
            compress_level: 1,
            start_fast: true,
            checksum_page: None,
            delta: false,
            archive_check: false,
            archive_mode_check: false,
            archive_timeout: Duration::ZERO,
            exclude: Vec::new(),
            force: false,
            host: "host".to_owned(),
            // Well after the files were written: what is newer than a backup's start is read again.
            now_ms: 1_900_000_000_000 + self.second * 1000,
            stamp,
        }
    }

    /// Backs the cluster up.
    pub fn backup(
        &mut self,
        backup_type: BackupType,
        monitor: &dyn Monitor,
    ) -> Answer<BackupSummary> {
        let options = self.backup_options(backup_type);
        actions::backup(
            &self.repository()?,
            None,
            &options,
            &Tally::default(),
            monitor,
        )
    }

    /// What a restore into `target` is asked for.
    pub fn restore_options(&self, set: Option<&str>, target: &Path) -> RestoreOptions {
        RestoreOptions {
            stanza: STANZA.to_owned(),
            pgdata: target.to_owned(),
            cache: self.beside("cache"),
            threads: 2,
            delta: true,
            force: false,
            set: set.map(str::to_owned),
            tablespace_map: Vec::new(),
            tablespace_map_all: None,
            link_map: Vec::new(),
            link_all: false,
            // So that every file is as it was.
            recovery: Recovery {
                kind: RecoveryType::Preserve,
                restore_command: String::new(),
                settings: Vec::new(),
            },
            recovery_given: true,
            host: "host".to_owned(),
            now_ms: 1_900_000_000_000,
            stamp: "now".to_owned(),
            goal: Goal::Open,
            timeline: TimelineGoal::Latest,
            time: |ms| ms.to_string(),
        }
    }

    /// Restores with options made by [`Site::restore_options`].
    pub fn restore(
        &self,
        options: &RestoreOptions,
        monitor: &dyn Monitor,
    ) -> Answer<RestoreSummary> {
        actions::restore(&self.repository()?, options, &Tally::default(), monitor)
    }

    /// Verifies everything.
    pub fn verify(&self, monitor: &dyn Monitor) -> Answer<VerifySummary> {
        self.verify_set(None, monitor)
    }

    /// Verifies one backup, or everything. The chunk index is one of its own.
    pub fn verify_set(&self, set: Option<&str>, monitor: &dyn Monitor) -> Answer<VerifySummary> {
        self.verify_on(&self.repository()?, set, monitor)
    }

    /// Verifies one backup, or everything, of a repository that is seen through another storage.
    pub fn verify_on(
        &self,
        repository: &Repository,
        set: Option<&str>,
        monitor: &dyn Monitor,
    ) -> Answer<VerifySummary> {
        let options = VerifyOptions {
            stanza: set.map(|_| STANZA.to_owned()),
            set: set.map(str::to_owned),
            cache: self.beside("cache of verify"),
            threads: 2,
            host: "host".to_owned(),
            now_ms: 1_900_000_000_000,
        };
        actions::verify(repository, &options, &Tally::default(), monitor)
    }

    /// The backups that verify calls restorable, and how many problems it found.
    pub fn verdict(&self) -> (Vec<String>, u64) {
        let verified = self.verify(&NoMonitor).expect("the store can be asked");
        restorable(&verified)
    }

    /// What archiving is asked for.
    pub fn archive_options(&self) -> ArchiveOptions {
        ArchiveOptions {
            stanza: STANZA.to_owned(),
            pgdata: self.cluster.data.clone(),
            cache: self.beside("cache"),
            compress_level: 1,
            threads: 1,
            header_check: true,
            timeout: Duration::ZERO,
        }
    }

    /// Pushes a WAL segment of the cluster as the first and as the second one: its header is made to fit.
    pub fn push_two_segments(&self) -> [String; 2] {
        [1, 2].map(|number| {
            let path = self.segment(number, 0);
            let storage = self.storage().expect("the storage can be opened");
            actions::archive_push(&only(storage), &self.archive_options(), &path)
                .expect("a segment can be pushed");
            segment_name(number)
        })
    }

    /// A WAL segment of the cluster, made the one of this number, beside the cluster under its name; its last byte is
    /// `last`.
    pub fn segment(&self, number: u32, last: u8) -> PathBuf {
        let listed = fs::read_dir(self.cluster.data.join("pg_wal")).expect("initdb makes pg_wal");
        let mut segments = listed.map(|entry| entry.expect("it can be listed").path());
        let segment = segments
            .find(|path| path.is_file())
            .expect("it holds a segment");
        let mut wal = fs::read(segment).expect("it can be read");
        let address = u64::from(number) << 20;
        wal[8..16].copy_from_slice(&address.to_le_bytes());
        *wal.last_mut().expect("it is not empty") = last;
        let path = self.beside(&segment_name(number));
        write(&path, &wal);
        path
    }

    /// Gets a WAL file into `destination`.
    pub fn archive_get(&self, name: &str, destination: &Path) -> Answer<Got> {
        actions::archive_get(
            &only(self.storage()?),
            &self.archive_options(),
            name,
            destination,
            &NoMonitor,
        )
    }

    /// Keeps the repository and the cache as they are now, for [`Site::reset`].
    pub fn keep(&self) {
        for name in ["repository", "cache"] {
            copy(&self.beside(name), &self.beside(&format!("{name}.kept")));
        }
    }

    /// Makes the repository what was kept, and the cache too, or leaves no cache.
    pub fn reset(&self, warm: bool) {
        for name in ["repository", "cache"] {
            let path = self.beside(name);
            if path.exists() {
                fs::remove_dir_all(&path).expect("the repository can be removed");
            }
            if warm || name != "cache" {
                copy(&self.beside(&format!("{name}.kept")), &path);
            }
        }
    }

    /// The keys of all objects that begin with `prefix`.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let storage = self.storage().expect("the storage can be opened");
        let listed = storage
            .list(prefix, None, usize::MAX)
            .expect("it can be listed");
        listed.iter().map(|object| object.key.to_string()).collect()
    }

    /// The file of an object.
    pub fn object(&self, key: &str) -> PathBuf {
        self.repository_path().join(key)
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

/// The backups that were called restorable, and how many problems were found.
pub fn restorable(verified: &VerifySummary) -> (Vec<String>, u64) {
    let mut stanzas = verified.stanzas.iter();
    let own = stanzas.find(|stanza| stanza.name == STANZA);
    let backups = own.into_iter().flat_map(|stanza| &stanza.backups);
    let restorable = backups.filter(|backup| backup.is_restorable());
    let labels = restorable.map(|backup| backup.label.clone());
    (labels.collect(), verified.problems)
}

/// The name of a segment of the first timeline, of a cluster with segments of 1 MiB.
pub fn segment_name(number: u32) -> String {
    format!("0000000100000000{number:08X}")
}

/// A label's time stamp; the tests' clock begins at a round second.
pub fn stamp(ms: i64) -> String {
    let seconds = ms / 1000 - 1_900_000_000;
    format!(
        "20300317-{:02}{:02}{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// It is gone.
    Missing,
    /// Its second half is gone.
    Cut,
    /// One bit of it is another.
    Flipped,
    /// It has changed places with another of its kind.
    Swapped,
    /// It is whole; something that nobody knows lies beside it.
    Garbage,
}

impl Damage {
    /// All of them.
    pub const ALL: [Damage; 5] = [
        Damage::Missing,
        Damage::Cut,
        Damage::Flipped,
        Damage::Swapped,
        Damage::Garbage,
    ];

    /// Does it to the object in the file `object`; `other` is another of its kind.
    pub fn strike(self, object: &Path, other: &Path) {
        let bytes = fs::read(object).expect("the object is there");
        match self {
            Damage::Missing => fs::remove_file(object).expect("it can be removed"),
            Damage::Cut => write(object, &bytes[..bytes.len() / 2]),
            Damage::Flipped => flip(object, bytes.len() / 3),
            Damage::Swapped => {
                write(object, &fs::read(other).expect("the other object is there"));
                write(other, &bytes);
            }
            Damage::Garbage => {
                let folder = object.parent().expect("an object lies in a folder");
                for name in ["garbage", "What is this?.txt"] {
                    write(&folder.join(name), b"nobody knows");
                }
            }
        }
    }
}

/// Changes one bit of a file.
pub fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).expect("the file is there");
    bytes[at] ^= 0x10;
    write(file, &bytes);
}

fn write(file: &Path, bytes: &[u8]) {
    File::create(file)
        .and_then(|mut file| file.write_all(bytes))
        .expect("the repository can be written to");
}

/// An error and its causes, as the command line tells them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}
