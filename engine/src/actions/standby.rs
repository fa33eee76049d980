//! The standby that a backup is copied from, while the primary is in backup mode.
//!
//! Promises: nothing is copied before all that the primary had written when the backup began is on the standby's disk (a
//! restart point at the start checkpoint, or at a later one); that the standby replays this primary's WAL is proven by a
//! checkpoint that both control files tell of; and when all is copied, that it was no primary meanwhile, and had replayed
//! nothing of another timeline, nor beyond what the primary has written.
//! Why that is enough: a page on the standby's disk is then at least as new as the start of the backup, and no newer than
//! its end. A page is flushed only after the control file tells how far replay had come, and on which timeline.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::actions::backup::BackupOptions;
use crate::actions::error::{Error, Result};
use crate::actions::error_kind::ErrorKind;
use crate::actions::online::check_same;
use crate::actions::pipeline::pause;
use crate::cluster::control_file::{self, ControlFile};
use crate::cluster::server::Server;
use crate::monitor::Monitor;
use crate::wal_name::{Lsn, Timeline};

/// How often the standby is asked how far it has come.
const POLL: Duration = Duration::from_millis(50);
/// After so long without reaching the start checkpoint, the primary ends its WAL segment: a standby that only the archive
/// feeds gets the checkpoint in no other way.
const SHIP_AFTER: Duration = Duration::from_millis(1500);

/// A standby to copy from.
pub struct Standby<'s> {
    /// The session with its server.
    pub server: &'s mut dyn Server,
    /// Its data directory.
    pub pgdata: PathBuf,
}

/// Why a standby cannot be copied from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StandbyError {
    /// All servers that answer are standbys.
    #[error("unable to find primary cluster - cannot proceed")]
    NoPrimary,
    /// No server that answers is a standby.
    #[error("unable to find standby cluster - cannot proceed")]
    NoStandby,
    /// Two servers that answer are primaries.
    #[error("more than one primary cluster found: {one} and {other}")]
    SeveralPrimaries {
        /// The data directory of one.
        one: PathBuf,
        /// That of the other.
        other: PathBuf,
    },
    /// It is a standby of another cluster, or of another life of this one.
    #[error(
        "the standby in {pgdata} is not one of this primary: its {what} is {found}, the primary's is {expected}"
    )]
    Foreign {
        /// The standby's data directory.
        pgdata: PathBuf,
        /// What differs.
        what: &'static str,
        /// Its value at the standby.
        found: String,
        /// Its value at the primary.
        expected: String,
    },
    /// It did not come far enough in time.
    #[error(
        "timeout before standby {what} reached {wanted} - only reached {reached}, without progress for {seconds} s"
    )]
    Behind {
        /// `replay` or `checkpoint`.
        what: &'static str,
        /// Where it should be.
        wanted: Lsn,
        /// Where it is.
        reached: Lsn,
        /// How long it did not move.
        seconds: u64,
    },
}

impl StandbyError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            StandbyError::NoPrimary
            | StandbyError::NoStandby
            | StandbyError::SeveralPrimaries { .. } => ErrorKind::DbConnect,
            StandbyError::Foreign { .. } => ErrorKind::DbMismatch,
            StandbyError::Behind { .. } => ErrorKind::ArchiveTimeout,
        }
    }
}

/// Time since something moved.
struct Patience {
    reached: Lsn,
    since: Instant,
    timeout: Duration,
}

impl Patience {
    fn new(timeout: Duration) -> Self {
        Patience {
            reached: Lsn(0),
            since: Instant::now(),
            timeout,
        }
    }

    /// Notes a position; fails if it has not moved for too long.
    fn note(&mut self, reached: Lsn, what: &'static str, wanted: Lsn) -> Result<()> {
        if reached > self.reached {
            self.reached = reached;
            self.since = Instant::now();
        }
        if self.since.elapsed() < self.timeout {
            return Ok(());
        }
        Err(Error::Standby(StandbyError::Behind {
            what,
            wanted,
            reached,
            seconds: self.timeout.as_secs(),
        }))
    }
}

impl Standby<'_> {
    /// Checks that this is a standby, and that the files at hand are its own and of the primary's cluster.
    pub(super) fn prepare(&mut self, primary: &ControlFile) -> Result<()> {
        let control = control_file::read(&self.pgdata).map_err(Error::Cluster)?;
        self.same("system id", &control.system_id, &primary.system_id)?;
        self.same("version", &control.version, &primary.version)?;
        self.same(
            "catalog version",
            &control.catalog_version,
            &primary.catalog_version,
        )?;
        self.same(
            "use of page checksums",
            &control.checksums,
            &primary.checksums,
        )?;
        let identity = self.server.identity().map_err(Error::Cluster)?;
        check_same(&identity, &self.pgdata, &control)?;
        if identity.in_recovery {
            return Ok(());
        }
        Err(StandbyError::NoStandby.into())
    }

    /// Waits until all that the primary, whose control file was `started` after the backup began at `start`, had written
    /// before `start` is on the standby's disk.
    pub(super) fn catch_up(
        &mut self,
        primary: &mut dyn Server,
        start: Lsn,
        started: &ControlFile,
        options: &BackupOptions,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let (wanted, timeout) = (started.checkpoint, options.archive_timeout);
        monitor.note(&format!("wait for replay on the standby to reach {wanted}"));
        self.replay(primary, wanted, timeout)?;
        let mut patience = Patience::new(timeout);
        loop {
            self.server.checkpoint().map_err(Error::Cluster)?;
            let control = control_file::read(&self.pgdata).map_err(Error::Cluster)?;
            if control.redo >= start {
                self.same("timeline", &control.timeline.0, &started.timeline.0)?;
                // The primary may have gone on to a later checkpoint, and the standby have replayed it.
                let later = control_file::read(&options.pgdata).map_err(Error::Cluster)?;
                for known in [started, &later] {
                    if known.checkpoint == control.checkpoint {
                        return self.prove_same_checkpoint(&control, known, monitor);
                    }
                }
            }
            if let Err(behind) = patience.note(control.checkpoint, "checkpoint", wanted) {
                // Far enough, and by no checkpoint of the primary: it replays other WAL.
                let stray = control.redo >= start;
                return Err(if stray {
                    self.strayed(&control, started)
                } else {
                    behind
                });
            }
            pause(POLL);
            ping(primary)?;
            ping(self.server)?;
        }
    }

    /// Waits until the record at `wanted` is replayed.
    fn replay(&mut self, primary: &mut dyn Server, wanted: Lsn, timeout: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut patience = Patience::new(timeout);
        let mut shipped = false;
        loop {
            let reached = self.server.insert_lsn().map_err(Error::Cluster)?;
            if reached > wanted {
                return Ok(());
            }
            patience.note(reached, "replay", wanted)?;
            if !shipped && begun.elapsed() >= SHIP_AFTER {
                primary.switch_wal().map_err(Error::Cluster)?;
                shipped = true;
            }
            pause(POLL);
            ping(primary)?;
            ping(self.server)?;
        }
    }

    fn prove_same_checkpoint(
        &self,
        control: &ControlFile,
        known: &ControlFile,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        if !control.has_same_checkpoint(known) {
            return Err(self.strayed(control, known));
        }
        monitor.note(&format!(
            "replay on the standby reached {}, files are copied from {}",
            control.checkpoint,
            self.pgdata.display()
        ));
        Ok(())
    }

    /// Checks, once all is copied, that nothing that was copied is from anywhere but the primary's WAL up to `written`.
    pub(super) fn prove_followed(&mut self, timeline: Timeline, written: Lsn) -> Result<()> {
        ping(self.server)?;
        let control = control_file::read(&self.pgdata).map_err(Error::Cluster)?;
        for found in [control.timeline, control.min_recovery_timeline] {
            if found != timeline {
                let (number, expected) = (found.0, timeline.0);
                return Err(Error::ServerChanged(format!(
                    "the standby went over to timeline {number}, the primary is on {expected}"
                )));
            }
        }
        if control.min_recovery > written {
            return Err(self.foreign(
                "last position in the WAL",
                control.min_recovery.to_string(),
                written.to_string(),
            ));
        }
        Ok(())
    }

    fn strayed(&self, control: &ControlFile, primary: &ControlFile) -> Error {
        let found = format!("another one, at {}", control.checkpoint);
        self.foreign("checkpoint", found, format!("at {}", primary.checkpoint))
    }

    fn same<T: PartialEq + ToString>(
        &self,
        what: &'static str,
        found: &T,
        expected: &T,
    ) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(self.foreign(what, found.to_string(), expected.to_string()))
    }

    fn foreign(&self, what: &'static str, found: String, expected: String) -> Error {
        let pgdata = self.pgdata.clone();
        StandbyError::Foreign {
            pgdata,
            what,
            found,
            expected,
        }
        .into()
    }
}

fn ping(server: &mut dyn Server) -> Result<()> {
    server.ping().map_err(Error::Cluster)
}
