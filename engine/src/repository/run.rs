//! Runs: processes that announced themselves, so that prune waits for them.
//!
//! Promises: an announcement is durable before its owner reads anything that prune may invalidate; a beat replaces the
//! beat before, never objects 0 and 1; of a run that withdraws, the announcement goes last. Nothing here decides that a run
//! is dead: that is prune's, by the store's clock.

use serde::{Deserialize, Serialize};

use crate::codec::RecordKind;
use crate::ids::RunId;
use crate::repository::layout;
use crate::repository::{
    Error, Repository, Result, get_record, list_all, put_record, storage_failed,
};

/// Which of a run's objects says what gc record it has read.
const GC_SEEN: u32 = 1;
/// The first of a run's objects that is a beat.
const FIRST_BEAT: u32 = 2;

/// What a run is doing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Makes a backup.
    Backup {
        /// Of this stanza.
        stanza: String,
        /// Under this label.
        label: String,
    },
    /// Restores one.
    Restore,
    /// Archives or fetches WAL.
    Archive,
    /// Verifies what is stored.
    Verify,
    /// Frees space.
    Prune,
    /// Rebuilds the index.
    Rebuild,
    /// Does what needs the repository for itself.
    Exclusive,
}

impl Role {
    /// Its name, which is part of its keys.
    pub fn name(&self) -> &'static str {
        match self {
            Role::Backup { .. } => "backup",
            Role::Restore => "restore",
            Role::Archive => "archive",
            Role::Verify => "verify",
            Role::Prune => "prune",
            Role::Rebuild => "rebuild",
            Role::Exclusive => "exclusive",
        }
    }

    /// The role of this name, if it is one that needs no stanza.
    pub fn without_stanza(name: &str) -> Option<Self> {
        let roles = [
            Role::Restore,
            Role::Archive,
            Role::Verify,
            Role::Prune,
            Role::Rebuild,
            Role::Exclusive,
        ];
        roles.into_iter().find(|role| role.name() == name)
    }
}

/// What a run says of itself when it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The host it runs on.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// Its role's name.
    pub role: String,
    /// When it began, by its host's clock: milliseconds since 1970-01-01 UTC. For people; nothing is decided by it.
    pub start_ms: i64,
    /// The version of the program.
    pub tool_version: String,
}

/// What a run's objects hold. The numbers are stored.
#[derive(Debug, Serialize, Deserialize)]
enum RunRecord {
    Announced(Announcement),
    GcSeen(u64),
    Beat,
}

/// A run that is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRun {
    /// What it does.
    pub role: Role,
    /// Its id.
    pub run: RunId,
    /// The highest number among its objects.
    pub newest_k: u32,
    /// When that object was put, by the store's clock: milliseconds since 1970-01-01 UTC.
    pub newest_ms: i64,
    /// The number of the gc record that it has read, if it has said so.
    pub gc_seen: Option<u64>,
}

/// Announces a run: object 0. Before this returns, the run must not read the gc log.
pub fn announce(
    repository: &Repository,
    role: &Role,
    run: RunId,
    announcement: &Announcement,
) -> Result<()> {
    put_one(
        repository,
        role,
        run,
        0,
        &RunRecord::Announced(announcement.clone()),
    )
}

/// Says which gc record the run has read (0: the log was empty): object 1.
pub fn publish_gc_seen(repository: &Repository, role: &Role, run: RunId, gc: u64) -> Result<()> {
    put_one(repository, role, run, GC_SEEN, &RunRecord::GcSeen(gc))
}

/// Says that the run lives: object `k`, which counts from 2; the beat before it is deleted.
pub fn beat(repository: &Repository, role: &Role, run: RunId, k: u32) -> Result<()> {
    if k < FIRST_BEAT {
        let expected = "the number of a beat (2 or above)";
        return Err(Error::Name {
            name: k.to_string(),
            expected,
        });
    }
    put_one(repository, role, run, k, &RunRecord::Beat)?;
    if k > FIRST_BEAT {
        repository
            .storage
            .delete(&layout::run(role, run, k - 1)?)
            .map_err(storage_failed)?;
    }
    Ok(())
}

/// Ends a run: deletes all its objects, the announcement last. For a backup only after its register was read decided.
pub fn withdraw(repository: &Repository, role: &Role, run: RunId) -> Result<()> {
    let mut objects = list_all(repository.storage.as_ref(), &layout::run_prefix(role, run)?)?;
    objects.reverse();
    for object in objects {
        repository
            .storage
            .delete(&object.key)
            .map_err(storage_failed)?;
    }
    Ok(())
}

/// All runs whose keys begin with `prefix` ([`layout::RUNS_PREFIX`], [`layout::backup_runs_prefix`]).
pub fn list_runs(repository: &Repository, prefix: &str) -> Result<Vec<ListedRun>> {
    let mut runs: Vec<ListedRun> = Vec::new();
    for object in list_all(repository.storage.as_ref(), prefix)? {
        let Some((role, run, k)) = layout::parse_run(object.key.as_str()) else {
            continue;
        };
        if runs
            .last()
            .is_none_or(|last| last.run != run || last.role != role)
        {
            runs.push(ListedRun {
                role,
                run,
                newest_k: k,
                newest_ms: object.modified_ms,
                gc_seen: None,
            });
        }
        let Some(last) = runs.last_mut() else {
            continue;
        };
        (last.newest_k, last.newest_ms) = (k, object.modified_ms);
        if k == GC_SEEN {
            last.gc_seen = match get_record(repository, &object.key, RecordKind::Run) {
                Ok(RunRecord::GcSeen(gc)) => Some(gc),
                Ok(_) => None,
                // It ended since it was listed; whoever waits lists again.
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
        }
    }
    Ok(runs)
}

/// What a run said of itself; `None` if it has ended meanwhile.
pub fn read_announcement(
    repository: &Repository,
    role: &Role,
    run: RunId,
) -> Result<Option<Announcement>> {
    match get_record(repository, &layout::run(role, run, 0)?, RecordKind::Run) {
        Ok(RunRecord::Announced(announcement)) => Ok(Some(announcement)),
        Ok(_) => Ok(None),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn put_one(
    repository: &Repository,
    role: &Role,
    run: RunId,
    k: u32,
    record: &RunRecord,
) -> Result<()> {
    put_record(
        repository,
        &layout::run(role, run, k)?,
        RecordKind::Run,
        record,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::repository;

    const RUN: RunId = RunId([1; 16]);

    fn announcement() -> Announcement {
        Announcement {
            host: "db1".into(),
            pid: 7,
            role: "backup".into(),
            start_ms: 5,
            tool_version: "0.1.0".into(),
        }
    }

    #[test]
    fn a_run_lives_from_its_announcement_to_its_withdrawal() {
        let repository = repository();
        let role = Role::Backup {
            stanza: "main".into(),
            label: "20261124-010203F".into(),
        };
        announce(&repository, &role, RUN, &announcement()).unwrap();
        announce(&repository, &Role::Restore, RunId([2; 16]), &announcement()).unwrap();
        let listed = list_runs(&repository, layout::RUNS_PREFIX).unwrap();
        assert_eq!(listed.len(), 2);
        assert_eq!((listed[0].newest_k, listed[0].gc_seen), (0, None));
        publish_gc_seen(&repository, &role, RUN, 12).unwrap();
        for k in 2..5 {
            beat(&repository, &role, RUN, k).unwrap();
        }
        assert!(beat(&repository, &role, RUN, 1).is_err());
        let own = list_runs(&repository, &layout::backup_runs_prefix("main").unwrap()).unwrap();
        assert_eq!(own.len(), 1);
        assert_eq!(
            (own[0].newest_k, own[0].gc_seen, &own[0].role),
            (4, Some(12), &role)
        );
        let objects = list_all(
            repository.storage.as_ref(),
            &layout::run_prefix(&role, RUN).unwrap(),
        )
        .unwrap();
        assert_eq!(objects.len(), 3, "announcement, gc number, newest beat");
        assert_eq!(
            read_announcement(&repository, &role, RUN).unwrap(),
            Some(announcement())
        );
        withdraw(&repository, &role, RUN).unwrap();
        assert_eq!(list_runs(&repository, "runs/backup/").unwrap(), []);
        assert_eq!(read_announcement(&repository, &role, RUN).unwrap(), None);
    }
}
