//! Packs as opaque objects: put, list, read parts of, delete.
//!
//! Promises: a pack is never replaced. Does not know what is in one.

use crate::ids::PackId;
use crate::repository::layout::{self, PackClass};
use crate::repository::{Repository, Result, list_all, storage_failed};

/// One line of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedPack {
    /// The pack.
    pub pack: PackId,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was put, by the store's clock: milliseconds since 1970-01-01 UTC.
    pub modified_ms: i64,
}

/// Puts a pack; durable when this returns.
pub fn put(repository: &Repository, class: PackClass, pack: PackId, bytes: &[u8]) -> Result<()> {
    repository
        .storage
        .put(&layout::pack(class, pack), bytes)
        .map_err(storage_failed)
}

/// All packs of a class, in order of their ids. Objects that are not named as packs are not packs.
pub fn list(repository: &Repository, class: PackClass) -> Result<Vec<ListedPack>> {
    let objects = list_all(repository.storage.as_ref(), layout::pack_prefix(class))?;
    let listed = objects.iter().filter_map(|object| {
        let (_, pack) = layout::parse_pack(object.key.as_str())?;
        Some(ListedPack {
            pack,
            bytes: object.bytes,
            modified_ms: object.modified_ms,
        })
    });
    Ok(listed.collect())
}

/// Fills `buffer` with a pack's bytes from `offset` on.
pub fn get_range(
    repository: &Repository,
    class: PackClass,
    pack: PackId,
    offset: u64,
    buffer: &mut [u8],
) -> Result<()> {
    repository
        .storage
        .get_range(&layout::pack(class, pack), offset, buffer)
        .map_err(storage_failed)
}

/// Deletes a pack. Only after a Sweep that names it is durable.
pub fn delete(repository: &Repository, class: PackClass, pack: PackId) -> Result<()> {
    repository
        .storage
        .delete(&layout::pack(class, pack))
        .map_err(storage_failed)
}
