//! One process's presence in a repository: announced before it reads, withdrawn after it is done.
//!
//! Promises: the announcement is durable before the gc log, and then the tombstones, are read (design: whoever deletes
//! either sees the announcement, or the announced run sees what is being deleted); what is read is published as k = 1;
//! an announcement that its process could not take back is taken back by the next run of this host (`run_lock.rs`). Who
//! only reads, and may not write to the repository, goes on without one and is told what that means.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::pipeline::beside;
use crate::actions::run_lock::{self, RunLock};
use crate::ids::{ChunkId, PackId, RunId};
use crate::monitor::{Monitor, Problem};
use crate::repository::gc_log::{self, GcState};
use crate::repository::quarantine::Finding;
use crate::repository::run::{self, Announcement, Role};
use crate::repository::{self, Repository, quarantine};

/// Seconds between two beats.
pub(super) const BEAT_SECONDS: u64 = 600;

/// An announced run.
pub(super) struct Session<'a> {
    /// Where.
    pub(super) repository: &'a Repository,
    /// As what.
    pub(super) role: Role,
    /// The run's id.
    pub(super) run: RunId,
    /// This host's name.
    host: String,
    /// When it began, in milliseconds since 1970.
    now_ms: i64,
    /// The gc log as it was read after the announcement.
    pub(super) gc: GcState,
    /// It could not be read, and nobody but readers goes on without.
    pub(super) gc_is_damaged: bool,
    /// Why there is no announcement: the repository may not be written to.
    denied: Option<repository::Error>,
    lock: RunLock,
}

/// Announces a run, after it has ended the dead ones of this host, of which `cache` knows. The gc log is not yet read:
/// see [`Session::read_gc`]. Who only reads goes on unannounced where that is denied.
pub(super) fn announce<'a>(
    repository: &'a Repository,
    role: Role,
    cache: &Path,
    host: &str,
    now_ms: i64,
) -> Result<Session<'a>> {
    let run = RunId::random().map_err(Error::Random)?;
    let announcement = Announcement {
        host: host.to_owned(),
        pid: std::process::id(),
        role: role.name().to_owned(),
        start_ms: now_ms,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    run_lock::end_the_dead(repository, cache);
    let lock = RunLock::take(repository, cache, &role, run)?;
    let session = Session {
        repository,
        role,
        run,
        host: host.to_owned(),
        now_ms,
        gc: GcState::default(),
        gc_is_damaged: false,
        denied: None,
        lock,
    };
    match run::announce(repository, &session.role, run, &announcement) {
        Ok(()) => Ok(session),
        // Better a restore that a prune of this moment may disturb than none.
        Err(error) if session.only_reads() && error.is_denied() => Ok(Session {
            denied: Some(error),
            ..session
        }),
        Err(error) => {
            // The announcement may be there all the same: only the answer was lost.
            drop(session.withdraw());
            Err(Error::Repository(error))
        }
    }
}

/// Runs `body` as an announced run that makes no backup: the gc log is read before it, beats are sent beside it, and the
/// announcement is taken back whatever comes of it.
pub(super) fn present<T>(
    repository: &Repository,
    role: Role,
    cache: &Path,
    (host, now_ms): (&str, i64),
    monitor: &dyn Monitor,
    body: impl FnOnce(&Session<'_>) -> Result<T>,
) -> Result<T> {
    let mut session = announce(repository, role, cache, host, now_ms)?;
    if let Some(denied) = &session.denied {
        monitor.problem(&Problem {
            object: repository.storage.describe(),
            message: format!(
                "may not be written to, so that nobody sees this run; a prune elsewhere may delete what it reads: {}",
                with_causes(denied)
            ),
        });
    }
    let read = match session.read_gc() {
        // What a kept backup needs was never swept, and who only reads adds nothing that others could lose.
        Err(Error::Repository(damage)) if session.only_reads() && damage.is_damage() => {
            let object = repository.storage.describe();
            let message = with_causes(&damage);
            monitor.problem(&Problem { object, message });
            session.gc_is_damaged = true;
            Ok(())
        }
        read => read,
    };
    let outcome = read.and_then(|()| {
        let session = &session;
        let mut beats = 1;
        let beat = move || {
            beats += 1;
            session.beat(beats)
        };
        beside(Duration::from_secs(BEAT_SECONDS), beat, || body(session))
    });
    let withdrawn = session.withdraw();
    let value = outcome?;
    if let Err(error) = withdrawn {
        monitor.problem(&Problem {
            object: repository.storage.describe(),
            message: format!("announcement stays: {error}"),
        });
    }
    Ok(value)
}

impl Session<'_> {
    /// Reads the gc log and publishes how far.
    pub(super) fn read_gc(&mut self) -> Result<()> {
        self.gc = gc_log::read(self.repository).map_err(Error::Repository)?;
        if self.denied.is_some() {
            return Ok(());
        }
        run::publish_gc_seen(self.repository, &self.role, self.run, self.gc.newest)
            .map_err(Error::Repository)
    }

    /// Whether the run adds nothing to the repository that others could lose.
    fn only_reads(&self) -> bool {
        matches!(self.role, Role::Restore | Role::Verify)
    }

    /// Packs whose chunks must not be used any more. Nothing may be built on a condemned pack; but until it is swept it
    /// may hold the only copy of what a backup needs that was committed while it was being condemned.
    pub(super) fn unusable(&self) -> BTreeSet<PackId> {
        if self.only_reads() {
            return self.gc.dead.clone();
        }
        self.gc.condemned.union(&self.gc.dead).copied().collect()
    }

    /// Notes for all who come later that a copy was read twice and is damaged: the next backup that has the chunk stores
    /// it again. It is a help, not a duty: who may not write to the repository restores all the same.
    pub(super) fn quarantine(&self, chunk: ChunkId, pack: PackId, reason: &str) {
        let finding = Finding {
            found_ms: self.now_ms,
            host: self.host.clone(),
            reason: reason.to_owned(),
        };
        drop(quarantine::put(self.repository, chunk, pack, &finding));
    }

    /// Copies of chunks that were found damaged.
    pub(super) fn quarantined(&self) -> Result<BTreeSet<(ChunkId, PackId)>> {
        quarantine::list(self.repository).map_err(Error::Repository)
    }

    /// Says that the run is alive; `k` counts from 2.
    pub(super) fn beat(&self, k: u32) -> Result<()> {
        if self.denied.is_some() {
            return Ok(());
        }
        run::beat(self.repository, &self.role, self.run, k).map_err(Error::Repository)
    }

    /// Takes the announcement back.
    pub(super) fn withdraw(&self) -> Result<()> {
        if self.denied.is_none() {
            run::withdraw(self.repository, &self.role, self.run).map_err(Error::Repository)?;
        }
        self.lock.remove();
        Ok(())
    }
}
