//! Giving up a stanza.
//!
//! Promises: the backups are forgotten before the stanza is; what they hold is freed by a later prune, and nothing is
//! deleted here. Doing it again after a crash finishes it. A stanza made later under the name shares nothing with it.
//! Refuses while a server runs in the data directory: it would go on archiving to a stanza that is no more.

use std::path::PathBuf;

use crate::actions::error::{Error, Result};
use crate::actions::stanza::epochs_of;
use crate::cluster::running::refuse_running;
use crate::repository::forget::{self, Tombstone};
use crate::repository::snapshot::{self, Register};
use crate::repository::{Repository, stanza};

/// Which stanza is given up.
#[derive(Debug, Clone)]
pub struct StanzaDeleteOptions {
    /// Its name.
    pub stanza: String,
    /// The cluster's data directory.
    pub pgdata: PathBuf,
    /// Do it although a server runs there.
    pub force: bool,
    /// This host's name.
    pub host: String,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
}

/// What was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StanzaDeleteSummary {
    /// Backups that were forgotten.
    pub backups: u64,
}

/// Forgets a stanza's backups, and the stanza.
pub fn stanza_delete(
    repository: &Repository,
    options: &StanzaDeleteOptions,
) -> Result<StanzaDeleteSummary> {
    epochs_of(repository, &options.stanza)?;
    if !options.force {
        refuse_running(&options.pgdata).map_err(Error::Cluster)?;
    }
    let tombstone = Tombstone {
        forgotten_ms: options.now_ms,
        host: options.host.clone(),
    };
    let mut backups = 0;
    let listed = snapshot::list(repository, &options.stanza).map_err(Error::Repository)?;
    for snapshot in listed.iter().filter(|listed| !listed.forgotten) {
        match snapshot::read(repository, snapshot) {
            Ok(Register::Fenced) => continue,
            // What cannot be read is given up with the rest.
            Err(error) if !error.is_damage() => return Err(Error::Repository(error)),
            Ok(Register::Committed(_)) | Err(_) => {}
        }
        let (label, run) = (&snapshot.label, snapshot.run);
        forget::put(repository, &options.stanza, label, run, &tombstone)
            .map_err(Error::Repository)?;
        backups += 1;
    }
    stanza::delete(repository, &options.stanza).map_err(Error::Repository)?;
    Ok(StanzaDeleteSummary { backups })
}
