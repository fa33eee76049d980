//! One process's presence in a repository: announced before it reads, withdrawn after it is done.
//!
//! Promises: the announcement is durable before the gc log, and then the tombstones, are read (design: whoever deletes
//! either sees the announcement, or the announced run sees what is being deleted); what is read is published as k = 1.

use std::collections::BTreeSet;

use crate::actions::error::{Error, Result};
use crate::ids::{ChunkId, PackId, RunId};
use crate::repository::gc_log::{self, GcState};
use crate::repository::quarantine::Finding;
use crate::repository::run::{self, Announcement, Role};
use crate::repository::{Repository, quarantine};

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
}

/// Announces a run. The gc log is not yet read: see [`Session::read_gc`].
pub(super) fn announce<'a>(
    repository: &'a Repository,
    role: Role,
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
    run::announce(repository, &role, run, &announcement).map_err(Error::Repository)?;
    Ok(Session {
        repository,
        role,
        run,
        host: host.to_owned(),
        now_ms,
        gc: GcState::default(),
    })
}

impl Session<'_> {
    /// Reads the gc log and publishes how far.
    pub(super) fn read_gc(&mut self) -> Result<()> {
        self.gc = gc_log::read(self.repository).map_err(Error::Repository)?;
        run::publish_gc_seen(self.repository, &self.role, self.run, self.gc.newest)
            .map_err(Error::Repository)
    }

    /// Packs whose chunks must not be used any more.
    pub(super) fn unusable(&self) -> BTreeSet<PackId> {
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
        run::beat(self.repository, &self.role, self.run, k).map_err(Error::Repository)
    }

    /// Takes the announcement back.
    pub(super) fn withdraw(&self) -> Result<()> {
        run::withdraw(self.repository, &self.role, self.run).map_err(Error::Repository)
    }
}
