//! Which chunks this run is storing, so that no two threads store the same one.
//!
//! Promises: of any number of threads that claim an id, exactly one is told that it is new; a claim stands until it is
//! released, which the run does once the chunk's fact is in the index (or once storing it failed). Looking up a claim
//! allocates nothing. Memory grows with what is claimed and not yet released, not with the backup.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ids::ChunkId;

/// Enough that the threads of one machine rarely wait for each other; a power of two, so that the first byte of an id,
/// which is a hash, chooses a shard evenly.
const SHARDS: usize = 64;

/// One part of the table: stored length by id, 0 while the chunk is on its way.
type Shard = Mutex<HashMap<ChunkId, u32>>;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nobody claimed it before: the caller stores it.
    New,
    /// Somebody stores it, or has done so.
    Taken {
        /// Length of its payload as stored, in bytes; 0 while that is not known.
        stored_bytes: u32,
    },
}

/// The ids claimed by this run.
pub struct Claims(Box<[Shard]>);

impl Claims {
    /// An empty table.
    pub fn new() -> Self {
        Claims((0..SHARDS).map(|_| Shard::default()).collect())
    }

    /// Claims `id` for the caller, unless it is claimed already.
    pub fn claim(&self, id: &ChunkId) -> Claim {
        match self.shard(id).entry(*id) {
            Entry::Occupied(entry) => Claim::Taken {
                stored_bytes: *entry.get(),
            },
            Entry::Vacant(entry) => {
                entry.insert(0);
                Claim::New
            }
        }
    }

    /// Notes what a claimed chunk takes as stored, in bytes. An id that is not claimed any more stays so.
    pub fn fulfil(&self, id: &ChunkId, stored_bytes: u32) {
        if let Some(entry) = self.shard(id).get_mut(id) {
            *entry = stored_bytes;
        }
    }

    /// Forgets claims.
    pub fn release<'a>(&self, ids: impl IntoIterator<Item = &'a ChunkId>) {
        for id in ids {
            self.shard(id).remove(id);
        }
    }

    /// How many claims stand.
    pub fn len(&self) -> usize {
        self.0.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether none stands.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: &ChunkId) -> MutexGuard<'_, HashMap<ChunkId, u32>> {
        lock(&self.0[usize::from(id.0[0]) % SHARDS])
    }
}

impl Default for Claims {
    fn default() -> Self {
        Claims::new()
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claims({})", self.len())
    }
}

/// Every change of a shard is one call of the map, so one that a panicking thread left behind is whole.
fn lock(shard: &Shard) -> MutexGuard<'_, HashMap<ChunkId, u32>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn id(number: u32) -> ChunkId {
        ChunkId(crate::ids::digest(&number.to_le_bytes()))
    }

    #[test]
    fn a_claim_stands_until_it_is_released() {
        let claims = Claims::new();
        assert_eq!(claims.claim(&id(1)), Claim::New);
        assert_eq!(claims.claim(&id(1)), Claim::Taken { stored_bytes: 0 });
        claims.fulfil(&id(1), 42);
        assert_eq!(claims.claim(&id(1)), Claim::Taken { stored_bytes: 42 });
        claims.release(&[id(1), id(2)]);
        assert!(claims.is_empty());
        assert_eq!(claims.claim(&id(1)), Claim::New);
    }

    #[test]
    fn a_late_fulfilment_brings_no_claim_back() {
        let claims = Claims::new();
        claims.fulfil(&id(1), 42);
        assert!(claims.is_empty());
    }

    #[test]
    fn of_racing_threads_exactly_one_is_told_that_an_id_is_new() {
        let claims = Claims::new();
        let new = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let won = (0..5_000)
                        .filter(|&n| claims.claim(&id(n)) == Claim::New)
                        .count();
                    new.fetch_add(won, Ordering::Relaxed);
                });
            }
        });
        assert_eq!((new.into_inner(), claims.len()), (5_000, 5_000));
    }
}
