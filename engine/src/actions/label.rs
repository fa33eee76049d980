//! Choosing a backup's type, its prior and its label.
//!
//! Promises: labels of a stanza are unique and rise, whichever hosts make them (the announcement comes first, then the
//! listing: of two runs with one label at least one sees the other and takes the next second); a label never lies
//! before an existing one.

use std::collections::BTreeSet;

use crate::actions::backup::BackupOptions;
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::session::{Session, announce};
use crate::monitor::{Monitor, Problem};
use crate::repository::run::{self, Role};
use crate::repository::snapshot::{self, BackupType, Manifest, Register, Snapshot};
use crate::repository::{self, Repository, layout};

/// A newest backup this far ahead of the clock means that the clock is wrong.
const FAR_AHEAD_MS: i64 = 3_600_000;

/// A committed backup.
pub(super) struct Committed {
    pub(super) snapshot: Snapshot,
    pub(super) manifest: Manifest,
}

/// A register that cannot be read.
pub(super) struct Unreadable {
    pub(super) label: String,
    pub(super) error: repository::Error,
}

/// The backups of a stanza that are not forgotten, oldest first.
#[derive(Default)]
pub(super) struct Backups {
    pub(super) committed: Vec<Committed>,
    /// What these say is not known: they must not be taken for absent.
    pub(super) unreadable: Vec<Unreadable>,
}

/// Reads the registers listed. One that is damaged does not hide the others.
pub(super) fn backups(repository: &Repository, listed: &[Snapshot]) -> Result<Backups> {
    let mut backups = Backups::default();
    for snapshot in listed {
        match read_committed(repository, snapshot) {
            Ok(found) => backups.committed.extend(found),
            Err(Error::BackupUnreadable { label, source }) => {
                let error = *source;
                backups.unreadable.push(Unreadable { label, error });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(backups)
}

/// The newest committed backup, not forgotten, of those `listed` (oldest first) that `wanted` picks by its label and
/// `fits` by its manifest. Only what may be the answer is read: there may be thousands. What one means that cannot be read
/// is for `unreadable` to say: it passes it over, or gives its error back.
pub(super) fn newest(
    repository: &Repository,
    listed: &[Snapshot],
    wanted: impl Fn(&str) -> bool,
    fits: impl Fn(&Manifest) -> bool,
    mut unreadable: impl FnMut(Error) -> Result<()>,
) -> Result<Option<Committed>> {
    for snapshot in listed.iter().rev().filter(|listed| wanted(&listed.label)) {
        let read = match read_committed(repository, snapshot) {
            Err(error @ Error::BackupUnreadable { .. }) => {
                unreadable(error)?;
                None
            }
            read => read?,
        };
        if let Some(found) = read.filter(|found| fits(&found.manifest)) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn read_committed(repository: &Repository, snapshot: &Snapshot) -> Result<Option<Committed>> {
    if snapshot.forgotten {
        return Ok(None);
    }
    match snapshot::read(repository, snapshot) {
        Ok(Register::Committed(manifest)) => Ok(Some(Committed {
            snapshot: snapshot.clone(),
            manifest: *manifest,
        })),
        Ok(Register::Fenced) => Ok(None),
        Err(source @ repository::Error::Record { .. }) => Err(Error::BackupUnreadable {
            label: snapshot.label.clone(),
            source: Box::new(source),
        }),
        Err(error) => Err(Error::Repository(error)),
    }
}

/// What a backup will be called, and what it builds on.
pub(super) struct Chosen {
    pub(super) backup_type: BackupType,
    pub(super) label: String,
    /// The backup it is compared with: the newest for full and incr, the newest full for diff.
    pub(super) prior: Option<Committed>,
}

/// Chooses type and prior, and the full that a diff or incr is filed under: without a full of this cluster to build on,
/// every backup is a full. A backup that cannot be read is told and not built on.
pub(super) fn choose(
    repository: &Repository,
    wanted: BackupType,
    listed: &[Snapshot],
    same_cluster: impl Fn(&Manifest) -> bool,
    monitor: &dyn Monitor,
) -> Result<(BackupType, Option<Committed>, Option<String>)> {
    let mut told = BTreeSet::new();
    let mut newest_of = |kind: fn(&str) -> bool| {
        newest(repository, listed, kind, &same_cluster, |unreadable| {
            let message = with_causes(&unreadable);
            if told.insert(message.clone()) {
                let object = format!("stanza {}", stanza_of(listed));
                let message = format!(
                    "{message}; it cannot be restored, and this backup does not build on it"
                );
                monitor.problem(&Problem { object, message });
            }
            Ok(())
        })
    };
    let prior = newest_of(|_| true)?;
    if wanted == BackupType::Full {
        return Ok((wanted, prior, None));
    }
    let is_full = |found: &Committed| found.manifest.backup_type == BackupType::Full;
    if let Some(full) = prior.as_ref().filter(|prior| is_full(prior)) {
        let full = full.manifest.label.clone();
        return Ok((wanted, prior, Some(full)));
    }
    let Some(full) = newest_of(|label| !label.contains('_'))?.filter(is_full) else {
        return Ok((BackupType::Full, prior, None));
    };
    let label = full.manifest.label.clone();
    let prior = if wanted == BackupType::Diff {
        Some(full)
    } else {
        prior
    };
    Ok((wanted, prior, Some(label)))
}

fn stanza_of(listed: &[Snapshot]) -> &str {
    listed.first().map_or("", |snapshot| &snapshot.stanza)
}

/// The label of a backup that begins at `stamp` (`YYYYMMDD-HHMMSS`); `full` is what a diff or incr is filed under.
fn label(backup_type: BackupType, full: Option<&str>, stamp: &str) -> String {
    match full {
        Some(full) if backup_type != BackupType::Full => {
            format!("{full}_{stamp}{}", backup_type.letter())
        }
        _ => format!("{stamp}F"),
    }
}

/// The time stamp that orders a label.
pub(super) fn stamp_of(label: &str) -> &str {
    let last = label.rsplit('_').next().unwrap_or(label);
    last.trim_end_matches(['F', 'D', 'I'])
}

/// Announces a backup under a label that no other backup of the stanza has or is about to have; `listed` are those that
/// there were before.
pub(super) fn announce_unique<'a>(
    repository: &'a Repository,
    options: &BackupOptions,
    listed: &[Snapshot],
    backup_type: BackupType,
    full: Option<&str>,
) -> Result<(String, Session<'a>)> {
    let (stamp, stanza) = (options.stamp, &options.stanza);
    let mut at_ms = options.now_ms;
    let stamps = listed.iter().map(|snapshot| stamp_of(&snapshot.label));
    if let Some(newest) = stamps.max() {
        while stamp(at_ms).as_str() <= newest {
            at_ms += 1000;
            if at_ms - options.now_ms > FAR_AHEAD_MS {
                let newest = newest.to_owned();
                return Err(Error::ClockBehind { newest });
            }
        }
    }
    loop {
        let label = label(backup_type, full, &stamp(at_ms));
        let role = Role::Backup {
            stanza: stanza.clone(),
            label: label.clone(),
        };
        let (cache, host) = (&options.cache, &options.host);
        let session = announce(repository, role, cache, host, options.now_ms)?;
        // Nothing was decided or built on yet, so the announcement can be taken back whatever the answer.
        match is_taken(repository, stanza, &stamp(at_ms), &session) {
            Ok(false) => return Ok((label, session)),
            Ok(true) => session.withdraw()?,
            Err(error) => {
                drop(session.withdraw());
                return Err(error);
            }
        }
        at_ms += 1000;
    }
}

/// The announced backups of a stanza.
pub(super) fn running(repository: &Repository, stanza: &str) -> Result<Vec<run::ListedRun>> {
    let prefix = layout::backup_runs_prefix(stanza).map_err(Error::Repository)?;
    run::list_runs(repository, &prefix).map_err(Error::Repository)
}

/// Whether another run or backup of the stanza has this time stamp.
fn is_taken(repository: &Repository, stanza: &str, stamp: &str, own: &Session<'_>) -> Result<bool> {
    let running = running(repository, stanza)?;
    let other = |listed: &run::ListedRun| {
        listed.run != own.run
            && matches!(&listed.role, Role::Backup { label, .. } if stamp_of(label) == stamp)
    };
    if running.iter().any(other) {
        return Ok(true);
    }
    let labels = snapshot::labels(repository, stanza).map_err(Error::Repository)?;
    Ok(labels.iter().any(|(label, _)| stamp_of(label) == stamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_pgbackrests_form() {
        assert_eq!(
            label(BackupType::Full, None, "20261124-101112"),
            "20261124-101112F"
        );
        let incr = label(
            BackupType::Incr,
            Some("20261124-101112F"),
            "20261124-121314",
        );
        assert_eq!(incr, "20261124-101112F_20261124-121314I");
        assert_eq!(stamp_of(&incr), "20261124-121314");
        assert_eq!(stamp_of("20261124-101112F"), "20261124-101112");
    }
}
