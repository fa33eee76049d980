//! The gc log: what prune is about to delete, and what it has decided to delete.
//!
//! Promises: records are numbered without gaps from 1, each carries the checksum of the one before, so a repository that
//! was copied or rolled back is told from its other line; a `Condemn` is resolved by the next record: packs that it names
//! and a `Sweep` does not are usable again. Refuses a log with a hole, a broken chain, or a record that does not follow.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::codec::{self, RecordKind};
use crate::ids::PackId;
use crate::repository::layout;
use crate::repository::{
    Error, Repository, Result, list_after, open_record, seal_record, storage_failed,
};
use crate::storage::ErrorKind;
use crate::wal_name::Timeline;

/// A record of the log. The numbers are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GcRecord {
    /// From now on nobody may build on these; whether they go is decided by the next record.
    Condemn {
        /// Packs.
        packs: Vec<PackId>,
        /// Parts of the WAL archive.
        wal: Vec<WalRange>,
        /// How many tombstones there were.
        tombstones: u64,
    },
    /// These are dead for ever and may be deleted.
    Sweep {
        /// Packs.
        packs: Vec<PackId>,
        /// Parts of the WAL archive.
        wal: Vec<WalRange>,
        /// The number of the `Condemn` that named them.
        of: u64,
    },
    /// Reserved: all packs that are dead.
    Checkpoint {
        /// Packs.
        dead: Vec<PackId>,
    },
}

/// Consecutive segments of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    /// The stanza.
    pub stanza: String,
    /// The epoch's name.
    pub epoch: String,
    /// The timeline.
    pub timeline: Timeline,
    /// The first segment's file name.
    pub first: String,
    /// The last segment's file name.
    pub last: String,
}

/// A record as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Chained {
    previous: Option<[u8; 16]>,
    record: GcRecord,
}

/// What the log says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GcState {
    /// The number of the newest record; 0 if there is none.
    pub newest: u64,
    /// The checksum of the newest record; zeros if there is none.
    pub checksum: [u8; 16],
    /// Packs that the newest record condemns.
    pub condemned: BTreeSet<PackId>,
    /// All packs that were ever swept.
    pub dead: BTreeSet<PackId>,
    /// How many tombstones the last `Condemn` counted.
    pub tombstones: u64,
    /// The newest record.
    pub last: Option<GcRecord>,
}

/// Reads the whole log.
pub fn read(repository: &Repository) -> Result<GcState> {
    let mut state = GcState::default();
    refresh(repository, &mut state)?;
    Ok(state)
}

/// Reads the records after those that `state` knows.
pub fn refresh(repository: &Repository, state: &mut GcState) -> Result<()> {
    let known = (state.newest > 0).then(|| layout::gc(state.newest));
    let tail = list_after(
        repository.storage.as_ref(),
        layout::GC_PREFIX,
        known.as_ref().map(crate::storage::Key::as_str),
    )?;
    for object in tail {
        let Some(number) = layout::parse_gc(object.key.as_str()) else {
            continue;
        };
        if number != state.newest + 1 {
            return Err(Error::GcLog {
                number: state.newest + 1,
                reason: "missing, though later records exist",
            });
        }
        let bytes = repository
            .storage
            .get(&object.key)
            .map_err(storage_failed)?;
        let chained: Chained = open_record(repository, &object.key, RecordKind::GcRecord, &bytes)?;
        if chained.previous != previous_of(state) {
            return Err(Error::GcLog {
                number,
                reason: "does not carry the checksum of the record before it",
            });
        }
        let checksum = codec::envelope_checksum(&bytes).unwrap_or_default();
        advance(state, checksum, chained.record)?;
    }
    Ok(())
}

/// Appends the record after those that `state` knows, and adds it to `state`. False: another writer appended one first;
/// refresh and decide again.
pub fn append(repository: &Repository, state: &mut GcState, record: GcRecord) -> Result<bool> {
    let number = state.newest + 1;
    if matches!(&record, GcRecord::Condemn { packs, wal, .. } if packs.is_empty() && wal.is_empty())
    {
        return Err(Error::GcLog {
            number,
            reason: "would condemn nothing",
        });
    }
    let mut next = state.clone();
    let key = layout::gc(number);
    let chained = Chained {
        previous: previous_of(state),
        record,
    };
    let bytes = seal_record(repository, &key, RecordKind::GcRecord, &chained)?;
    let checksum = codec::envelope_checksum(&bytes).unwrap_or_default();
    advance(&mut next, checksum, chained.record)?;
    if let Err(source) = repository.storage.put(&key, &bytes) {
        if !matches!(
            source.kind,
            ErrorKind::AlreadyExists | ErrorKind::Unreachable
        ) {
            return Err(storage_failed(source));
        }
        match repository.storage.get(&key) {
            // Ours, or another's that says the same.
            Ok(found) if found == bytes => {}
            Ok(_) => return Ok(false),
            Err(_) => return Err(Error::OutcomeUnknown { key, source }),
        }
    }
    *state = next;
    Ok(true)
}

/// The checksum of a record; `None` if the log has no such record. A cache that was bound to another checksum follows
/// another line of the repository.
pub fn checksum(repository: &Repository, number: u64) -> Result<Option<[u8; 16]>> {
    let key = layout::gc(number);
    match repository.storage.get(&key) {
        Ok(bytes) => {
            open_record::<Chained>(repository, &key, RecordKind::GcRecord, &bytes)?;
            Ok(codec::envelope_checksum(&bytes))
        }
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(storage_failed(error)),
    }
}

fn previous_of(state: &GcState) -> Option<[u8; 16]> {
    (state.newest > 0).then_some(state.checksum)
}

fn advance(state: &mut GcState, checksum: [u8; 16], record: GcRecord) -> Result<()> {
    let number = state.newest + 1;
    match &record {
        GcRecord::Condemn {
            packs, tombstones, ..
        } => {
            state.condemned = packs.iter().copied().collect();
            state.tombstones = *tombstones;
        }
        GcRecord::Sweep { packs, of, .. } => {
            let pending =
                matches!(state.last, Some(GcRecord::Condemn { .. })) && *of == state.newest;
            if !pending || packs.iter().any(|pack| !state.condemned.contains(pack)) {
                return Err(Error::GcLog {
                    number,
                    reason: "sweeps what the record before it does not condemn",
                });
            }
            state.dead.extend(packs);
            state.condemned.clear();
        }
        GcRecord::Checkpoint { dead } => {
            state.dead.extend(dead);
            state.condemned.clear();
        }
    }
    (state.newest, state.checksum, state.last) = (number, checksum, Some(record));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::put_record;
    use crate::repository::test_storage::MemoryStorage;
    use crate::repository::tests::{repository, repository_in};
    use std::sync::Arc;

    fn pack(n: u8) -> PackId {
        PackId([n; 16])
    }

    fn condemn(packs: &[PackId]) -> GcRecord {
        GcRecord::Condemn {
            packs: packs.to_vec(),
            wal: Vec::new(),
            tombstones: 3,
        }
    }

    fn sweep(packs: &[PackId], of: u64) -> GcRecord {
        GcRecord::Sweep {
            packs: packs.to_vec(),
            wal: Vec::new(),
            of,
        }
    }

    #[test]
    fn a_condemned_pack_is_hidden_until_the_next_record_decides() {
        let repository = repository();
        let mut state = read(&repository).unwrap();
        assert_eq!(state, GcState::default());
        assert!(append(&repository, &mut state, condemn(&[pack(1), pack(2)])).unwrap());
        assert_eq!(state.condemned, BTreeSet::from([pack(1), pack(2)]));
        assert!(append(&repository, &mut state, sweep(&[pack(1)], 1)).unwrap());
        assert_eq!(
            (state.condemned.len(), &state.dead),
            (0, &BTreeSet::from([pack(1)])),
            "2 was rescued"
        );
        assert_eq!(read(&repository).unwrap(), state);
        assert_eq!((state.newest, state.tombstones), (2, 3));
        assert_eq!(checksum(&repository, 2).unwrap(), Some(state.checksum));
        assert_ne!(checksum(&repository, 1).unwrap(), Some(state.checksum));
        assert_eq!(checksum(&repository, 3).unwrap(), None);
        assert_eq!(state.last, Some(sweep(&[pack(1)], 1)));
    }

    #[test]
    fn of_two_writers_one_wins_and_the_other_reads_on() {
        let repository = repository();
        let (mut one, mut two) = (GcState::default(), GcState::default());
        assert!(append(&repository, &mut one, condemn(&[pack(1)])).unwrap());
        assert!(!append(&repository, &mut two, condemn(&[pack(2)])).unwrap());
        assert_eq!(two, GcState::default());
        refresh(&repository, &mut two).unwrap();
        assert_eq!(two, one);
    }

    #[test]
    fn a_lost_answer_is_resolved_by_reading_back() {
        let storage = Arc::new(MemoryStorage::new());
        let repository = repository_in(&storage);
        storage.lose_answer(&layout::gc(1));
        let mut state = GcState::default();
        assert!(append(&repository, &mut state, condemn(&[pack(1)])).unwrap());
        assert_eq!(read(&repository).unwrap(), state);
    }

    #[test]
    fn records_that_do_not_follow_are_refused() {
        let repository = repository();
        let mut state = GcState::default();
        assert!(
            append(&repository, &mut state, condemn(&[])).is_err(),
            "nothing condemned"
        );
        assert!(
            append(&repository, &mut state, sweep(&[pack(1)], 0)).is_err(),
            "nothing to sweep"
        );
        append(&repository, &mut state, condemn(&[pack(1)])).unwrap();
        assert!(
            append(&repository, &mut state, sweep(&[pack(2)], 1)).is_err(),
            "another pack"
        );
        assert!(
            append(&repository, &mut state, sweep(&[pack(1)], 2)).is_err(),
            "another record"
        );
        assert_eq!(state.newest, 1);
    }

    #[test]
    fn a_hole_or_a_broken_chain_stops_the_reader() {
        let repository = repository();
        let mut state = GcState::default();
        append(&repository, &mut state, condemn(&[pack(1)])).unwrap();
        let stray = Chained {
            previous: Some([9; 16]),
            record: condemn(&[pack(3)]),
        };
        put_record(&repository, &layout::gc(2), RecordKind::GcRecord, &stray).unwrap();
        assert!(matches!(
            read(&repository),
            Err(Error::GcLog { number: 2, .. })
        ));
        repository.storage.delete(&layout::gc(1)).unwrap();
        assert!(matches!(
            read(&repository),
            Err(Error::GcLog { number: 1, .. })
        ));
    }
}
