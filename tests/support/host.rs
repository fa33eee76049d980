//! A host with a stopped cluster and a cache: what it asks of the engine, with the options that tests do not care about.
//!
//! Promises: a clock of its own that starts after the cluster's files were written and never stands still, so that labels
//! are unique and what is kept unread does not depend on how fast a test runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgcairn_engine::actions::{
    self, BackupOptions, BackupSummary, Goal, RestoreOptions, RestoreSummary, StanzaCreateOptions,
    TimelineGoal, VerifyOptions, VerifySummary,
};
use pgcairn_engine::cluster::recovery::{Recovery, RecoveryType};
use pgcairn_engine::cluster::server::Server;
use pgcairn_engine::monitor::{NoMonitor, Tally};
use pgcairn_engine::repository::Repository;
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_engine::storage::Storage;

/// The stanza of every host.
pub const STANZA: &str = "main";
/// Between two looks at the clock.
const STEP_MS: i64 = 10_000;

/// A host.
#[derive(Debug)]
pub struct Host {
    /// The cluster's data directory.
    pub pgdata: PathBuf,
    /// Where the engine caches.
    pub cache: PathBuf,
    /// Working threads.
    pub threads: usize,
    clock_ms: AtomicI64,
}

impl Host {
    /// The host of the cluster in `pgdata`.
    pub fn new(pgdata: &Path, cache: &Path) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("1970 is over");
        let now_ms = i64::try_from(now.as_millis()).expect("a time of this millennium");
        Host {
            pgdata: pgdata.to_owned(),
            cache: cache.to_owned(),
            threads: 2,
            clock_ms: AtomicI64::new(now_ms),
        }
    }

    /// Makes repository and stanza.
    pub fn stanza_create(&self, storage: Arc<dyn Storage>) -> Repository {
        let options = StanzaCreateOptions {
            stanza: STANZA.to_owned(),
            pgdata: self.pgdata.clone(),
        };
        actions::stanza_create(Arc::clone(&storage), &options, None, &NoMonitor)
            .expect("an empty storage takes a repository");
        actions::open_repository(storage).expect("the repository is there")
    }

    /// The options of a backup.
    pub fn backup_options(&self, backup_type: BackupType) -> BackupOptions {
        BackupOptions {
            stanza: STANZA.to_owned(),
            pgdata: self.pgdata.clone(),
            backup_type,
            cache: self.cache.clone(),
            threads: self.threads,
            compress_level: 1,
            start_fast: true,
            checksum_page: None,
            delta: false,
            archive_check: false,
            archive_mode_check: false,
            archive_timeout: Duration::from_secs(30),
            exclude: Vec::new(),
            force: false,
            host: "host".to_owned(),
            now_ms: self.clock_ms.fetch_add(STEP_MS, Ordering::Relaxed) + STEP_MS,
            stamp,
        }
    }

    /// Backs the stopped cluster up.
    pub fn backup(
        &self,
        repository: &Repository,
        backup_type: BackupType,
    ) -> actions::Result<BackupSummary> {
        self.backup_with(repository, backup_type, None)
    }

    /// Backs the cluster up, with its server if it has one.
    pub fn backup_with(
        &self,
        repository: &Repository,
        backup_type: BackupType,
        server: Option<&mut dyn Server>,
    ) -> actions::Result<BackupSummary> {
        let options = self.backup_options(backup_type);
        actions::backup(repository, server, &options, &Tally::default(), &NoMonitor)
    }

    /// The options of a restore to `target`.
    pub fn restore_options(&self, target: &Path, set: Option<&str>) -> RestoreOptions {
        RestoreOptions {
            stanza: STANZA.to_owned(),
            pgdata: target.to_owned(),
            cache: self.cache.clone(),
            threads: self.threads,
            delta: false,
            force: false,
            set: set.map(str::to_owned),
            tablespace_map: Vec::new(),
            tablespace_map_all: None,
            link_map: Vec::new(),
            link_all: false,
            recovery: Recovery {
                kind: RecoveryType::Preserve,
                restore_command: String::new(),
                settings: Vec::new(),
            },
            recovery_given: true,
            host: "host".to_owned(),
            now_ms: self.clock_ms.load(Ordering::Relaxed),
            stamp: "2026-11-24 01:02:03".to_owned(),
            goal: Goal::Open,
            timeline: TimelineGoal::Latest,
            time: |ms| ms.to_string(),
        }
    }

    /// Restores a backup to `target`.
    pub fn restore(
        &self,
        repository: &Repository,
        target: &Path,
        set: Option<&str>,
    ) -> actions::Result<RestoreSummary> {
        let options = self.restore_options(target, set);
        actions::restore(repository, &options, &Tally::default(), &NoMonitor)
    }

    /// Verifies the stanza.
    pub fn verify(&self, repository: &Repository) -> actions::Result<VerifySummary> {
        let options = VerifyOptions {
            stanza: Some(STANZA.to_owned()),
            set: None,
            cache: self.cache.clone(),
            threads: self.threads,
            host: "host".to_owned(),
            now_ms: self.clock_ms.load(Ordering::Relaxed),
        };
        actions::verify(repository, &options, &Tally::default(), &NoMonitor)
    }

    /// The labels of the backups that the repository lists.
    pub fn listed(&self, repository: &Repository) -> Vec<String> {
        let infos = actions::info(repository, Some(STANZA)).expect("info answers");
        let backups = infos.into_iter().flat_map(|info| info.backups);
        backups.map(|backup| backup.label).collect()
    }
}

/// A time as labels print it, in UTC.
fn stamp(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let (mut day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut year = 1970;
    while day >= 365 + i64::from(leap(year)) {
        day -= 365 + i64::from(leap(year));
        year += 1;
    }
    let february = 28 + i64::from(leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}{month:02}{:02}-{hour:02}{minute:02}{:02}",
        day + 1,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::stamp;

    #[test]
    fn times_are_printed_as_labels_are() {
        assert_eq!(stamp(0), "19700101-000000");
        assert_eq!(stamp(1_709_211_599_999), "20240229-125959");
        assert_eq!(stamp(1_795_478_400_000), "20261124-000000");
    }
}
