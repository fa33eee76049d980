//! Choosing a backup's type, its prior and its label.
//!
//! Promises: labels of a stanza are unique and rise, whichever hosts make them (the announcement comes first, then the
//! listing: of two runs with one label at least one sees the other and takes the next second); a label never lies
//! before an existing one.

use crate::actions::error::{Error, Result};
use crate::actions::session::{Session, announce};
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
    pub(super) snapshot: Snapshot,
    pub(super) error: repository::Error,
}

/// The backups of a stanza that are not forgotten, oldest first.
#[derive(Default)]
pub(super) struct Backups {
    pub(super) committed: Vec<Committed>,
    /// What these say is not known: they must not be taken for absent.
    pub(super) unreadable: Vec<Unreadable>,
}

/// Reads the registers of a stanza. One that is damaged does not hide the others.
pub(super) fn backups(repository: &Repository, stanza: &str) -> Result<Backups> {
    let mut backups = Backups::default();
    for snapshot in snapshot::list(repository, stanza).map_err(Error::Repository)? {
        if snapshot.forgotten {
            continue;
        }
        match snapshot::read(repository, &snapshot) {
            Ok(Register::Committed(manifest)) => backups.committed.push(Committed {
                snapshot,
                manifest: *manifest,
            }),
            Ok(Register::Fenced) => {}
            Err(error @ repository::Error::Record { .. }) => {
                backups.unreadable.push(Unreadable { snapshot, error });
            }
            Err(error) => return Err(Error::Repository(error)),
        }
    }
    Ok(backups)
}

/// What a backup will be called, and what it builds on.
pub(super) struct Chosen {
    pub(super) backup_type: BackupType,
    pub(super) label: String,
    /// The backup it is compared with: the newest for full and incr, the newest full for diff.
    pub(super) prior: Option<Committed>,
}

/// Chooses type and prior: without a full of this cluster to build on, every backup is a full.
pub(super) fn choose(
    wanted: BackupType,
    mut existing: Vec<Committed>,
    same_cluster: impl Fn(&Manifest) -> bool,
) -> (BackupType, Option<Committed>, Option<String>) {
    existing.retain(|backup| same_cluster(&backup.manifest));
    let newest_full = existing
        .iter()
        .rposition(|backup| backup.manifest.backup_type == BackupType::Full);
    let Some(newest_full) = newest_full else {
        return (BackupType::Full, existing.pop(), None);
    };
    let full = existing[newest_full].manifest.label.clone();
    match wanted {
        BackupType::Full => (wanted, existing.pop(), None),
        BackupType::Diff => (wanted, Some(existing.swap_remove(newest_full)), Some(full)),
        BackupType::Incr => (wanted, existing.pop(), Some(full)),
    }
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

/// Announces a backup under a label that no other backup of the stanza has or is about to have.
pub(super) fn announce_unique<'a>(
    repository: &'a Repository,
    stanza: &str,
    backup_type: BackupType,
    full: Option<&str>,
    host: &str,
    now_ms: i64,
    stamp: fn(i64) -> String,
) -> Result<(String, Session<'a>)> {
    let mut at_ms = now_ms;
    let newest = newest_stamp(repository, stanza)?;
    if let Some(newest) = newest.filter(|newest| *newest >= stamp(at_ms)) {
        while stamp(at_ms) <= newest {
            at_ms += 1000;
            if at_ms - now_ms > FAR_AHEAD_MS {
                return Err(Error::ClockBehind { newest });
            }
        }
    }
    loop {
        let label = label(backup_type, full, &stamp(at_ms));
        let role = Role::Backup {
            stanza: stanza.to_owned(),
            label: label.clone(),
        };
        let session = announce(repository, role, host, now_ms)?;
        if !is_taken(repository, stanza, &stamp(at_ms), &session)? {
            return Ok((label, session));
        }
        session.withdraw()?;
        at_ms += 1000;
    }
}

/// The announced backups of a stanza.
pub(super) fn running(repository: &Repository, stanza: &str) -> Result<Vec<run::ListedRun>> {
    let prefix = layout::backup_runs_prefix(stanza).map_err(Error::Repository)?;
    run::list_runs(repository, &prefix).map_err(Error::Repository)
}

fn newest_stamp(repository: &Repository, stanza: &str) -> Result<Option<String>> {
    let listed = snapshot::list(repository, stanza).map_err(Error::Repository)?;
    Ok(listed
        .iter()
        .map(|snapshot| stamp_of(&snapshot.label).to_owned())
        .max())
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
    let listed = snapshot::list(repository, stanza).map_err(Error::Repository)?;
    Ok(listed
        .iter()
        .any(|snapshot| stamp_of(&snapshot.label) == stamp))
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
