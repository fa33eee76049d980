//! Index segments: which chunk lies where, for whole packs.
//!
//! Promises: a fact in a segment is never wrong, only dead (its pack was swept). A segment is written after the packs it
//! names are durable; a merged one names those it replaces. Two segments never share a key: the run's id is in it.

use serde::{Deserialize, Serialize};

use crate::codec::RecordKind;
use crate::ids::{BlobKind, ChunkId, PackId, RunId};
use crate::repository::layout::{self, PackClass};
use crate::repository::{Repository, Result, get_record, list_all, put_record};
use crate::storage::Key;

/// The facts of some packs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IndexSegment {
    /// Whole packs, each with all its blobs.
    pub packs: Vec<PackFacts>,
    /// Keys of the segments whose facts are all here, but for swept packs.
    pub replaces: Vec<String>,
}

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackFacts {
    /// The pack.
    pub pack: PackId,
    /// Where it is kept.
    pub class: PackClass,
    /// Its length in bytes: one listed with another length is not usable.
    pub bytes: u64,
    /// Its blobs, in the order they lie.
    pub blobs: Vec<Fact>,
}

/// Where a chunk lies in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The chunk.
    pub id: ChunkId,
    /// What it holds.
    pub kind: BlobKind,
    /// Where its frame begins, in bytes from the start of the pack.
    pub offset: u32,
    /// Length of the payload behind the frame, as stored.
    pub stored_bytes: u32,
    /// Length once decoded.
    pub raw_bytes: u32,
}

/// Puts a run's `n`-th segment; `scope` is a stanza or [`layout::MAINTENANCE_SCOPE`]. The key it now has is returned.
pub fn put(
    repository: &Repository,
    scope: &str,
    run: RunId,
    n: u32,
    segment: &IndexSegment,
) -> Result<Key> {
    let key = layout::index_segment(scope, run, n)?;
    put_record(repository, &key, RecordKind::IndexSegment, segment)?;
    Ok(key)
}

/// The segment under a key.
pub fn get(repository: &Repository, key: &Key) -> Result<IndexSegment> {
    get_record(repository, key, RecordKind::IndexSegment)
}

/// The keys of all segments of a scope, or of all scopes, in key order.
pub fn list(repository: &Repository, scope: Option<&str>) -> Result<Vec<Key>> {
    let objects = list_all(repository.storage.as_ref(), &layout::index_prefix(scope)?)?;
    Ok(objects.into_iter().map(|object| object.key).collect())
}
