//! Backup mode: what brackets the copying of a running cluster, and of a stopped one.
//!
//! Promises: start and stop happen in one session, which is kept alive and whose loss ends the backup, and on one
//! timeline; nothing is copied before the start checkpoint is on disk and archiving was seen to reach the repository; the
//! label that the server hands out at the end is kept byte for byte.

use std::path::Path;

use crate::actions::backup::BackupOptions;
use crate::actions::error::{Error, Result};
use crate::actions::standby::Standby;
use crate::actions::wal_in_cluster;
use crate::actions::wal_needed::Archive;
use crate::cluster::control_file::{self, ClusterState, ControlFile};
use crate::cluster::running::refuse_running;
use crate::cluster::server::{Identity, Server};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::repository::snapshot::{Database, Tablespace};
use crate::repository::stanza::Epoch;
use crate::wal_name::{Lsn, Segment, Timeline};

/// A cluster about to be copied: with its server, or stopped.
pub(super) enum BackupMode<'s> {
    /// A server in backup mode, or about to be; and the standby that files are copied from, if it is one.
    Online(&'s mut dyn Server, Option<Standby<'s>>),
    /// No server.
    Offline,
}

/// From where to where in the WAL a backup reaches, and what the server said at its ends.
pub(super) struct Window {
    pub(super) start_lsn: Lsn,
    pub(super) stop_lsn: Lsn,
    /// How far the server had written WAL when the copying was over.
    pub(super) written_lsn: Lsn,
    pub(super) timeline: Timeline,
    /// Another one than at the start only if the cluster was stopped while it recovered across a promotion.
    pub(super) stop_timeline: Timeline,
    pub(super) stop_ms: i64,
    pub(super) databases: Vec<Database>,
    pub(super) tablespaces: Vec<Tablespace>,
    pub(super) backup_label: Option<Vec<u8>>,
    pub(super) tablespace_map: Option<Vec<u8>>,
    online: bool,
}

impl Window {
    /// Whether a server was running.
    pub(super) fn online(&self) -> bool {
        self.online
    }

    fn start_segment(&self, segment_bytes: u32) -> Segment {
        Segment::holding(self.timeline, self.start_lsn, segment_bytes)
    }

    fn stop_segment(&self, segment_bytes: u32) -> Segment {
        Segment::holding_end(self.timeline, self.stop_lsn, segment_bytes)
    }

    /// The first segment that the backup needs.
    pub(super) fn wal_start(&self, segment_bytes: u32) -> Option<String> {
        self.online
            .then(|| self.start_segment(segment_bytes).file_name(segment_bytes))
    }

    /// The last segment that the backup needs.
    pub(super) fn wal_stop(&self, segment_bytes: u32) -> Option<String> {
        self.online
            .then(|| self.stop_segment(segment_bytes).file_name(segment_bytes))
    }
}

impl<'s> BackupMode<'s> {
    /// Checks that the cluster can be backed up in this way.
    pub(super) fn prepare(
        server: Option<&'s mut dyn Server>,
        options: &BackupOptions,
        control: &ControlFile,
    ) -> Result<Self> {
        let Some(server) = server else {
            if !options.force {
                refuse_running(&options.pgdata).map_err(Error::Cluster)?;
            }
            let clean = matches!(
                control.state,
                ClusterState::ShutDown | ClusterState::ShutDownInRecovery
            );
            if !clean && !options.force {
                return Err(Error::ClusterRunning(options.pgdata.clone()));
            }
            if control.state == ClusterState::ShutDownInRecovery {
                wal_in_cluster::prove(&options.pgdata, control)?;
            }
            return Ok(BackupMode::Offline);
        };
        let identity = server.identity().map_err(Error::Cluster)?;
        check_identity(&identity, options, control)?;
        Ok(BackupMode::Online(server, None))
    }

    /// The same, for a backup that is copied from a standby.
    pub(super) fn prepare_with_standby(
        primary: &'s mut dyn Server,
        mut standby: Standby<'s>,
        options: &BackupOptions,
        control: &ControlFile,
    ) -> Result<Self> {
        let identity = primary.identity().map_err(Error::Cluster)?;
        check_identity(&identity, options, control)?;
        standby.prepare(control)?;
        Ok(BackupMode::Online(primary, Some(standby)))
    }

    /// The data directory of the standby that files are copied from.
    pub(super) fn standby(&self) -> Option<&Path> {
        match self {
            BackupMode::Online(_, Some(standby)) => Some(&standby.pgdata),
            _ => None,
        }
    }

    /// Keeps the sessions alive.
    pub(super) fn ping(&mut self) -> Result<()> {
        let BackupMode::Online(server, standby) = self else {
            return Ok(());
        };
        server.ping().map_err(Error::Cluster)?;
        match standby {
            Some(standby) => standby.server.ping().map_err(Error::Cluster),
            None => Ok(()),
        }
    }

    /// Enters backup mode, and shows that archiving works.
    pub(super) fn start(
        &mut self,
        repository: &Repository,
        options: &BackupOptions,
        epoch: &Epoch,
        control: &ControlFile,
        label: &str,
        monitor: &dyn Monitor,
    ) -> Result<Window> {
        let (start_lsn, stop_lsn, stop_timeline) = wal_in_cluster::needed(control);
        let mut window = Window {
            start_lsn,
            stop_lsn,
            written_lsn: stop_lsn,
            timeline: control.timeline,
            stop_timeline,
            stop_ms: options.now_ms,
            databases: Vec::new(),
            tablespaces: Vec::new(),
            backup_label: None,
            tablespace_map: None,
            online: false,
        };
        let BackupMode::Online(server, standby) = self else {
            return Ok(window);
        };
        window.online = true;
        window.start_lsn = server
            .start_backup(&format!("pgcairn backup {label}"), options.start_fast)
            .map_err(Error::Cluster)?
            .lsn;
        let now = control_file::read(&options.pgdata).map_err(Error::Cluster)?;
        if now.system_id != control.system_id || now.checkpoint < window.start_lsn {
            return Err(Error::DifferentCluster {
                what: "the start checkpoint",
                pgdata: options.pgdata.clone(),
            });
        }
        window.timeline = now.timeline;
        window.stop_timeline = now.timeline;
        let databases = server.databases().map_err(Error::Cluster)?;
        window.databases = databases
            .into_iter()
            .map(|(oid, name)| Database { oid, name })
            .collect();
        let tablespaces = server.tablespaces().map_err(Error::Cluster)?;
        let tablespace = |(oid, name, location): (u32, String, String)| Tablespace {
            oid,
            name,
            location: location.into_bytes(),
        };
        window.tablespaces = tablespaces.into_iter().map(tablespace).collect();
        if options.archive_check {
            let archive = archive(repository, options, epoch, control);
            archive.prove_archiving(*server, window.start_segment(control.wal_segment_bytes))?;
        }
        if let Some(standby) = standby {
            standby.catch_up(*server, window.start_lsn, &now, options, monitor)?;
        }
        Ok(window)
    }

    /// Leaves backup mode.
    pub(super) fn stop(&mut self, window: &mut Window) -> Result<()> {
        let BackupMode::Online(server, standby) = self else {
            return Ok(());
        };
        window.written_lsn = server.insert_lsn().map_err(Error::Cluster)?;
        let timeline = server.timeline().map_err(Error::Cluster)?;
        if timeline != window.timeline {
            let (before, now) = (window.timeline.0, timeline.0);
            return Err(Error::ServerChanged(format!(
                "the primary was on timeline {before} and is on {now} now"
            )));
        }
        if let Some(standby) = standby {
            standby.prove_followed(window.timeline, window.written_lsn)?;
        }
        let stopped = server.stop_backup().map_err(Error::Cluster)?;
        window.stop_lsn = stopped.lsn;
        window.stop_ms = stopped.now_ms;
        window.backup_label = Some(stopped.label);
        window.tablespace_map = Some(stopped.tablespace_map).filter(|map| !map.is_empty());
        Ok(())
    }

    /// Waits for the WAL that the backup needs.
    pub(super) fn prove_wal(
        repository: &Repository,
        options: &BackupOptions,
        epoch: &Epoch,
        control: &ControlFile,
        window: &Window,
    ) -> Result<()> {
        if !window.online || !options.archive_check {
            return Ok(());
        }
        let bytes = control.wal_segment_bytes;
        let archive = archive(repository, options, epoch, control);
        archive.wait_for(window.start_segment(bytes), window.stop_segment(bytes))
    }
}

fn archive<'a>(
    repository: &'a Repository,
    options: &'a BackupOptions,
    epoch: &'a Epoch,
    control: &ControlFile,
) -> Archive<'a> {
    Archive {
        repository,
        stanza: &options.stanza,
        epoch,
        segment_bytes: control.wal_segment_bytes,
        threads: options.threads,
        timeout: options.archive_timeout,
    }
}

/// Checks that the server can be backed up: it is the one whose files we read, a primary, and archives to us.
fn check_identity(
    identity: &Identity,
    options: &BackupOptions,
    control: &ControlFile,
) -> Result<()> {
    check_same(identity, &options.pgdata, control)?;
    if identity.in_recovery {
        return Err(Error::ServerChanged(
            "it is a standby: back up the primary".to_owned(),
        ));
    }
    if identity.wal_level == "minimal" {
        return Err(Error::WalLevel(identity.wal_level.clone()));
    }
    if !options.archive_check {
        return Ok(());
    }
    check_archiving(identity, options.archive_mode_check)
}

/// Checks that the server is the one whose files we read.
pub(super) fn check_same(identity: &Identity, pgdata: &Path, control: &ControlFile) -> Result<()> {
    if identity.version_num / 10_000 != control.version {
        return Err(Error::DifferentCluster {
            what: "the version",
            pgdata: pgdata.to_owned(),
        });
    }
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let server = Path::new(&identity.data_directory);
    if real(server) != real(pgdata) {
        return Err(Error::DifferentDirectory {
            server: server.to_owned(),
            configured: pgdata.to_owned(),
        });
    }
    Ok(())
}

/// Checks that the server archives, and does it with this program.
pub(super) fn check_archiving(identity: &Identity, archive_mode_check: bool) -> Result<()> {
    match identity.archive_mode.as_str() {
        "off" => return Err(Error::ArchiveDisabled("off".to_owned())),
        "always" if archive_mode_check => return Err(Error::ArchiveAlways),
        _ => {}
    }
    let ours = identity.archive_command.contains("pgcairn") || !identity.archive_library.is_empty();
    if archive_mode_check && !ours {
        return Err(Error::ArchiveCommand(identity.archive_command.clone()));
    }
    Ok(())
}
