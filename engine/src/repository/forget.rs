//! Tombstones: a backup that has one is no longer kept.
//!
//! Promises: a tombstone is never deleted, nor is the register it stands on; setting one twice is setting it once.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::codec::RecordKind;
use crate::ids::RunId;
use crate::repository::layout;
use crate::repository::{Repository, Result, list_all, put_record};

/// What is stored with a tombstone, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// When it was set, by the clock of the host: milliseconds since 1970-01-01 UTC.
    pub forgotten_ms: i64,
    /// The host that set it.
    pub host: String,
}

/// Forgets a backup; its space is freed by a later prune.
pub fn put(
    repository: &Repository,
    stanza: &str,
    label: &str,
    run: RunId,
    tombstone: &Tombstone,
) -> Result<()> {
    let key = layout::forget(stanza, label, run)?;
    match put_record(repository, &key, RecordKind::Tombstone, tombstone) {
        Err(error) if !error.is_already_there() => Err(error),
        _ => Ok(()),
    }
}

/// The (label, run) of every forgotten backup of a stanza. The key says it all: no record is read.
pub fn list(repository: &Repository, stanza: &str) -> Result<BTreeSet<(String, RunId)>> {
    let objects = list_all(repository.storage.as_ref(), &layout::forget_prefix(stanza)?)?;
    let parsed = objects
        .iter()
        .filter_map(|object| layout::parse_forget(object.key.as_str()));
    Ok(parsed.map(|(_, label, run)| (label, run)).collect())
}
