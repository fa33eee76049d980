//! What the storage really does: whether of racing puts one wins, whether a put is listed at once.
//!
//! Promises: believes only what it sees, for some stores accept a condition and ignore it. Writes only below `probe/` and
//! removes what it wrote. What it does not see: a store that keeps its promises to one host and breaks them between two.

use crate::actions::error::{Error, Result};
use crate::actions::pipeline::map;
use crate::ids::RunId;
use crate::repository::config::Capabilities;
use crate::repository::{self, layout};
use crate::storage::{ErrorKind, Key, Storage};

/// Races when a repository is made: what is seen then holds for good.
pub(super) const RACES_AT_CREATION: u32 = 4;
/// Races when it is looked at again.
pub(super) const RACES_AT_CHECK: u32 = 1;
/// Who race for one key at once.
const RACERS: u8 = 16;
/// What each puts, in bytes: a store that looks first and reads the body afterwards is open while it reads.
const BODY_BYTES: usize = 64 << 10;

/// What a probe saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probed {
    /// What the storage can do.
    pub(super) capabilities: Capabilities,
    /// The store's clock: milliseconds since 1970-01-01 UTC.
    pub(super) now_ms: i64,
}

/// Races for some keys, puts to them again, lists, reads and deletes them. Fails where the storage could hold no
/// repository at all.
pub(super) fn probe(storage: &dyn Storage, races: u32) -> Result<Probed> {
    let run = RunId::random()
        .map_err(|source| Error::Repository(repository::Error::Random { source }))?;
    let keys: Vec<Key> = (0..races).map(|n| layout::probe(run, n)).collect();
    let seen = look(storage, &keys, &layout::probe_prefix(run));
    let deleted = storage.delete_all(&keys).map_err(Error::Storage);
    let seen = seen?;
    deleted?;
    let left = storage
        .list(&layout::probe_prefix(run), None, 1)
        .map_err(Error::Storage)?;
    if left.is_empty() {
        Ok(seen)
    } else {
        Err(unfit(storage, "an object that was deleted is still listed"))
    }
}

fn look(storage: &dyn Storage, keys: &[Key], prefix: &str) -> Result<Probed> {
    let mut put_if_absent = true;
    for key in keys {
        put_if_absent &= race(storage, key)?;
    }
    let listed = storage
        .list(prefix, None, keys.len() + 1)
        .map_err(Error::Storage)?;
    let whole = |key: &Key| {
        let of_key = |object: &&crate::storage::Object| object.key == *key;
        listed
            .iter()
            .find(of_key)
            .is_some_and(|object| object.bytes == BODY_BYTES as u64)
    };
    if !keys.iter().all(whole) {
        let lacks = "an object that was put is not listed at once, with its size";
        return Err(unfit(storage, lacks));
    }
    Ok(Probed {
        capabilities: Capabilities {
            put_if_absent,
            list_after_put: true,
        },
        now_ms: listed.last().map_or(0, |object| object.modified_ms),
    })
}

/// Whether of racing puts of one key exactly one won, and kept what it won.
fn race(storage: &dyn Storage, key: &Key) -> Result<bool> {
    let body = |racer: u8| vec![racer; BODY_BYTES];
    let racers: Vec<u8> = (0..RACERS).collect();
    let won = map(racers.len(), &racers, |racers, keep| {
        for (at, racer) in racers {
            match storage.put(key, &body(*racer)) {
                Ok(()) => keep(at, true),
                Err(error) if error.kind == ErrorKind::AlreadyExists => keep(at, false),
                Err(error) => return Err(Error::Storage(error)),
            }
        }
        Ok(())
    })?;
    let late_refused = match storage.put(key, &body(RACERS)) {
        Ok(()) => false,
        Err(error) if error.kind == ErrorKind::AlreadyExists => true,
        Err(error) => return Err(Error::Storage(error)),
    };
    let stored = storage.get(key).map_err(Error::Storage)?;
    let winners: Vec<u8> = racers
        .into_iter()
        .zip(won)
        .filter_map(|(racer, won)| won.then_some(racer))
        .collect();
    let is_of = |racer: u8| stored == body(racer);
    match (winners.as_slice(), late_refused) {
        ([], _) => Err(unfit(storage, "of racing puts none succeeds")),
        ([winner], true) if is_of(*winner) => Ok(true),
        (winners, _) if is_of(RACERS) || winners.iter().any(|winner| is_of(*winner)) => Ok(false),
        _ => Err(unfit(storage, "what was put is not what is read back")),
    }
}

fn unfit(storage: &dyn Storage, lacks: &'static str) -> Error {
    Error::Repository(repository::Error::UnfitStorage {
        place: storage.describe(),
        lacks,
    })
}
