//! Copies of chunks that were found damaged.
//!
//! Promises: an entry hides one copy from deduplication and from the question whether another copy exists, and does
//! nothing else: it never makes a pack deletable. The key names the copy, so listing needs no reading.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::codec::RecordKind;
use crate::ids::{ChunkId, PackId};
use crate::repository::layout;
use crate::repository::{Repository, Result, list_all, put_record};

/// What is stored with an entry, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// When it was found, by the clock of the host: milliseconds since 1970-01-01 UTC.
    pub found_ms: i64,
    /// The host that found it.
    pub host: String,
    /// What is wrong with the copy.
    pub reason: String,
}

/// Quarantines the copy of `chunk` in `pack`; once is as good as twice.
pub fn put(repository: &Repository, chunk: ChunkId, pack: PackId, finding: &Finding) -> Result<()> {
    match put_record(
        repository,
        &layout::quarantine(pack, chunk),
        RecordKind::Quarantine,
        finding,
    ) {
        Err(error) if !error.is_already_there() => Err(error),
        _ => Ok(()),
    }
}

/// All quarantined copies.
pub fn list(repository: &Repository) -> Result<BTreeSet<(ChunkId, PackId)>> {
    let objects = list_all(repository.storage.as_ref(), layout::QUARANTINE_PREFIX)?;
    let parsed = objects
        .iter()
        .filter_map(|object| layout::parse_quarantine(object.key.as_str()));
    Ok(parsed.map(|(pack, chunk)| (chunk, pack)).collect())
}
