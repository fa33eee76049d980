//! Choosing the backup from which a recovery target is reached, before anything is written.
//!
//! Promises: without `--set`, a target time or LSN takes the newest backup that ended before it; the backup lies on the
//! timeline that recovery follows; all WAL that the target needs is in the archive, as far as the archive can tell.
//! Refuses a target that cannot be reached, with the reason and with what can be reached; and to pick an older backup by
//! itself because the newest timeline left the newest backup behind: that is how an accidental promotion looks.

use std::cell::RefCell;

use crate::actions::error::{Error, Result};
use crate::actions::label::{Committed, backups, newest};
use crate::actions::restore::RestoreOptions;
use crate::actions::wal_path::{Archives, Coverage, TimelineGoal};
use crate::monitor::Monitor;
use crate::repository::snapshot::{self, Manifest, Snapshot};
use crate::repository::{Repository, stanza};
use crate::wal_name::{Lsn, Timeline};

/// How far the clocks of a server and of a store may be apart; S3 refuses requests beyond it.
const CLOCKS_APART_MS: i64 = 15 * 60 * 1000;

/// Where recovery is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// At the end of the archive.
    End,
    /// As soon as the cluster is consistent.
    Consistency,
    /// At a time: milliseconds since 1970.
    Time(i64),
    /// At a position.
    Lsn(Lsn),
    /// At a transaction or a restore point: where that is, only the WAL's content says.
    Named(String),
    /// It is the server's or the person's affair: a standby, no recovery, settings of their own.
    Open,
}

/// A backup that reaches the target.
pub(super) struct Chosen {
    pub(super) backup: Committed,
    /// Behind what recovery needs, WAL is missing: the server must not look ahead, because it would take what
    /// `archive-get` says of the missing segment as the end of everything.
    pub(super) before_hole: bool,
}

/// The backup that was asked for, or that the target needs; `epochs` are the stanza's, none if its records are damaged.
pub(super) fn choose(
    repository: &Repository,
    options: &RestoreOptions,
    epochs: &[stanza::Epoch],
    monitor: &dyn Monitor,
) -> Result<Chosen> {
    let name = &options.stanza;
    let listed = snapshot::list(repository, name).map_err(Error::Repository)?;
    let chooser = Chooser {
        repository,
        options,
        epochs,
        monitor,
    };
    // Which backup is the newest must not depend on what can be read.
    let backup = match &options.set {
        Some(label) => newest(repository, &listed, |other| other == label, |_| true, Err)?
            .ok_or_else(|| Error::BackupNotFound(format!("stanza {name} has no backup {label}")))?,
        None => chooser.newest(&listed)?,
    };
    let before_hole = chooser.check(&backup.manifest)?;
    Ok(Chosen {
        backup,
        before_hole,
    })
}

struct Chooser<'a> {
    repository: &'a Repository,
    options: &'a RestoreOptions,
    /// The stanza's; none if its records are damaged.
    epochs: &'a [stanza::Epoch],
    monitor: &'a dyn Monitor,
}

impl Chooser<'_> {
    /// The newest backup that can reach the target.
    fn newest(&self, listed: &[Snapshot]) -> Result<Committed> {
        let any = |_: &str| true;
        // Of a timeline that was asked for by number, every backup will do that lies on it.
        if matches!(self.options.timeline, TimelineGoal::This(_)) {
            let failure = RefCell::new(None);
            let on_it = |manifest: &Manifest| {
                let way = self.way(manifest).map(|(_, trouble)| trouble.is_none());
                let on_it = way.unwrap_or_else(|error| {
                    *failure.borrow_mut() = Some(error);
                    false
                });
                self.ends_before_target(manifest) && on_it
            };
            let found = newest(self.repository, listed, any, on_it, Err)?;
            if let Some(error) = failure.into_inner() {
                return Err(error);
            }
            if let Some(found) = found {
                return Ok(found);
            }
        }
        let fits = |manifest: &Manifest| self.ends_before_target(manifest);
        match newest(self.repository, listed, any, fits, Err)? {
            Some(found) => Ok(found),
            None => Err(self.no_backup(listed)?),
        }
    }

    /// Why no backup will do.
    fn no_backup(&self, listed: &[Snapshot]) -> Result<Error> {
        let stanza = &self.options.stanza;
        let backups = backups(self.repository, listed)?.committed;
        let Some(oldest) = backups.first().map(|backup| &backup.manifest) else {
            return Ok(Error::BackupNotFound(format!("stanza {stanza} has none")));
        };
        let why = format!("no backup ended before it, the oldest is {}", oldest.label);
        let window = match self.options.goal {
            Goal::Lsn(_) => format!("from {} on", oldest.stop_lsn),
            _ => format!("from {} on", (self.options.time)(oldest.stop_ms)),
        };
        Ok(self.unreachable(&why, Some(&window)))
    }

    fn ends_before_target(&self, backup: &Manifest) -> bool {
        match self.options.goal {
            Goal::Time(wanted) => backup.stop_ms < wanted,
            Goal::Lsn(wanted) => backup.stop_lsn <= wanted,
            _ => true,
        }
    }

    /// Whether the restored server is going to read the archive, so that its content matters.
    fn follows(&self, backup: &Manifest) -> bool {
        let recovers = backup.online || self.options.recovery_given;
        recovers && self.options.goal != Goal::Open
    }

    /// Checks a chosen backup against the target; whether there is a hole behind what the target needs.
    fn check(&self, backup: &Manifest) -> Result<bool> {
        if !self.follows(backup) {
            return Ok(false);
        }
        if !self.ends_before_target(backup) {
            let (lsn, time) = (backup.stop_lsn, (self.options.time)(backup.stop_ms));
            let why = format!("backup {} ended at {lsn}, {time}, after it", backup.label);
            let window = match self.options.goal {
                Goal::Lsn(_) => format!("from {lsn} on"),
                _ => format!("from {time} on"),
            };
            return Err(self.unreachable(&why, Some(&window)));
        }
        let (timeline, trouble) = self.way(backup)?;
        if let Some(why) = trouble {
            return Err(self.unreachable(&why, None));
        }
        let archives = self.archives(backup);
        let ancestors = archives.history(timeline)?.unwrap_or_default();
        let coverage = archives.coverage(backup, timeline, &ancestors)?;
        self.check_coverage(backup, &coverage)?;
        Ok(coverage.hole.is_some())
    }

    /// The timeline that recovery from a backup follows, and why the backup is not on it, if it is not.
    fn way(&self, backup: &Manifest) -> Result<(Timeline, Option<String>)> {
        let archives = self.archives(backup);
        // A backup that is made consistent and no more stays on its own timeline.
        let goal = match self.options.goal {
            Goal::Consistency => TimelineGoal::Current,
            _ => self.options.timeline,
        };
        let timeline = archives.timeline(goal, backup)?;
        if timeline == backup.stop_timeline {
            return Ok((timeline, None));
        }
        let Some(ancestors) = archives.history(timeline)? else {
            let why = format!("the archive has no {timeline}.history");
            return Ok((timeline, Some(why)));
        };
        let left = ancestors
            .iter()
            .find(|ancestor| ancestor.timeline == backup.stop_timeline);
        let (label, number) = (&backup.label, timeline.0);
        let trouble = match left {
            None => Some(format!(
                "timeline {number} does not descend from timeline {} of backup {label}",
                backup.stop_timeline.0
            )),
            Some(left) if left.left_at < backup.stop_lsn => Some(format!(
                "timeline {number} branched off at {}, before backup {label} ended at {}; --target-timeline=current \
                 recovers along the backup's own timeline, --set chooses an older backup",
                left.left_at, backup.stop_lsn
            )),
            Some(_) => None,
        };
        Ok((timeline, trouble))
    }

    fn check_coverage(&self, backup: &Manifest, coverage: &Coverage) -> Result<()> {
        let Coverage {
            until,
            until_ms,
            hole,
        } = coverage;
        let label = &backup.label;
        let end = match hole {
            Some((missing, evidence)) => {
                format!("{missing} is missing from the archive, though {evidence}")
            }
            None => format!("the archived WAL ends at {until}"),
        };
        if backup.online && *until < backup.stop_lsn {
            let why = format!(
                "{end}, and backup {label} needs the WAL up to {}",
                backup.stop_lsn
            );
            return Err(self.unreachable(&why, None));
        }
        let until_time = (self.options.time)(until_ms.unwrap_or(backup.stop_ms));
        let window = match self.options.goal {
            Goal::Lsn(_) => format!("from {} to {until} with backup {label}", backup.stop_lsn),
            _ => format!(
                "from {} to about {until_time} with backup {label}; --type=immediate restores that backup alone",
                (self.options.time)(backup.stop_ms)
            ),
        };
        let beyond = match self.options.goal {
            Goal::End => hole.is_some(),
            Goal::Lsn(wanted) => wanted > *until,
            Goal::Time(wanted) => {
                until_ms.is_some_and(|until| wanted > until.saturating_add(CLOCKS_APART_MS))
            }
            Goal::Consistency | Goal::Named(_) | Goal::Open => false,
        };
        if beyond {
            return Err(self.unreachable(&end, Some(&window)));
        }
        let ends_early = matches!(self.options.goal, Goal::Time(_) | Goal::Named(_));
        if ends_early && hole.is_some() {
            self.monitor.note(&format!(
                "{end}: recovery stops with an error there unless it reaches {} before",
                self.target()
            ));
        }
        Ok(())
    }

    fn archives(&self, backup: &Manifest) -> Archives<'_> {
        let own = stanza::of_cluster(self.epochs, backup.system_id, backup.version);
        let mut epochs: Vec<String> = own.iter().map(stanza::Epoch::name).collect();
        if epochs.is_empty() {
            // The stanza's records are damaged.
            epochs.push(format!("{}-{}", backup.version, backup.epoch));
        }
        Archives {
            repository: self.repository,
            stanza: &self.options.stanza,
            epochs,
        }
    }

    fn target(&self) -> String {
        match &self.options.goal {
            Goal::End => "the end of the archive".to_owned(),
            Goal::Consistency => "a consistent state".to_owned(),
            Goal::Time(ms) => (self.options.time)(*ms),
            Goal::Lsn(lsn) => lsn.to_string(),
            Goal::Named(name) => name.clone(),
            Goal::Open => "any target".to_owned(),
        }
    }

    fn unreachable(&self, why: &str, window: Option<&str>) -> Error {
        let reachable = window.map_or_else(String::new, |window| format!("; reachable: {window}"));
        Error::TargetUnreachable {
            target: self.target(),
            why: format!("{why}{reachable}"),
        }
    }
}
