//! What the storage really does: whether a second put is refused, whether a put is listed at once.
//!
//! Promises: writes only below `probe/` and removes what it wrote. Races with nobody: a storage that loses races between
//! hosts is not found out by one process alone.

use crate::ids::RunId;
use crate::repository::config::Capabilities;
use crate::repository::{Error, Result, layout, storage_failed};
use crate::storage::{ErrorKind, Storage};

/// What a probe saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// What the storage can do.
    pub capabilities: Capabilities,
    /// The store's clock: milliseconds since 1970-01-01 UTC.
    pub now_ms: i64,
}

/// Puts an object, puts it again, lists, reads and deletes it. Fails where the storage could hold no repository at all.
pub fn probe(storage: &dyn Storage) -> Result<Probed> {
    let run = RunId::random().map_err(|source| Error::Random { source })?;
    let key = layout::probe(run, 0);
    let unfit = |lacks| Error::UnfitStorage {
        place: storage.describe(),
        lacks,
    };
    storage.put(&key, b"first").map_err(storage_failed)?;
    let put_if_absent = match storage.put(&key, b"second") {
        Ok(()) => false,
        Err(error) if error.kind == ErrorKind::AlreadyExists => true,
        Err(error) => return Err(storage_failed(error)),
    };
    let listed = storage
        .list(key.as_str(), None, 2)
        .map_err(storage_failed)?;
    let body = storage.get(&key).map_err(storage_failed)?;
    storage.delete(&key).map_err(storage_failed)?;
    let object = listed.first().filter(|object| object.key == key);
    let object = object.ok_or_else(|| unfit("an object that was put is not listed at once"))?;
    let expected: &[u8] = if put_if_absent { b"first" } else { b"second" };
    if body != expected || object.bytes != expected.len() as u64 {
        return Err(unfit("what was put is not what is read back"));
    }
    let gone = storage
        .list(key.as_str(), None, 1)
        .map_err(storage_failed)?;
    if !gone.is_empty() {
        return Err(unfit("an object that was deleted is still listed"));
    }
    let capabilities = Capabilities {
        put_if_absent,
        list_after_put: true,
    };
    Ok(Probed {
        capabilities,
        now_ms: object.modified_ms,
    })
}
