//! Numbers for packs, and the stored form of locations that they make short.
//!
//! Promises: a location takes 17 bytes; one whose pack has no number, or whose kind is unknown, is passed over, never
//! misread; a pack counts as usable only after it was seen listed with the right size. Knows nothing of the database.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::ids::{BlobKind, ChunkId, Location, PackId};
use crate::repository::segment::Fact;

/// Length of one stored location: pack number (4), offset (4), stored length (4), raw length (4), kind (1); integers
/// little-endian.
pub const RECORD_BYTES: usize = 17;
/// Length of one stored pack: id (16), bytes (8).
pub const ROW_BYTES: usize = 24;

/// A location as it stands in the index's values.
pub type Record = [u8; RECORD_BYTES];

/// A pack that index segments name.
#[derive(Debug, Clone, Copy)]
struct Row {
    pack: PackId,
    bytes: u64,
    usable: bool,
}

/// The packs that index segments name, by number and by id, and which of them may be used.
#[derive(Debug, Default)]
pub struct PackTable {
    rows: Vec<Row>,
    numbers: HashMap<PackId, u32>,
    /// Copies that somebody found damaged once.
    quarantined: HashSet<(ChunkId, PackId)>,
    /// Copies that this process has read and found damaged.
    damaged: HashSet<(ChunkId, PackId)>,
    /// Packs that this process could not read, whatever the listing says of them.
    gone: HashSet<PackId>,
}

impl PackTable {
    /// The number that the next new pack gets. (There are never 2³² packs: they would hold 128 PiB.)
    pub fn next_number(&self) -> u32 {
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// The number and the size, in bytes, of a pack.
    pub fn find(&self, pack: &PackId) -> Option<(u32, u64)> {
        let number = *self.numbers.get(pack)?;
        Some((number, self.rows.get(number as usize)?.bytes))
    }

    /// Adds a pack under the next number; it is not usable yet.
    pub fn push(&mut self, pack: PackId, bytes: u64) {
        self.numbers.insert(pack, self.next_number());
        self.rows.push(Row {
            pack,
            bytes,
            usable: false,
        });
    }

    /// Adds the packs of another table, in their order.
    pub fn append(&mut self, other: PackTable) {
        for row in other.rows {
            self.push(row.pack, row.bytes);
        }
    }

    /// How many packs it knows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Decides anew which packs are usable: those listed with the size that their segment gives, and not in `unusable`
    /// (condemned or dead). Answers the suspects, in the order of their numbers: not in `unusable`, and yet absent from
    /// the listing or of another size.
    pub fn set_listing(
        &mut self,
        listed: &[(PackId, u64)],
        unusable: &BTreeSet<PackId>,
    ) -> Vec<PackId> {
        let listed: HashMap<PackId, u64> = listed.iter().copied().collect();
        let mut suspects = Vec::new();
        for row in &mut self.rows {
            let sound = listed.get(&row.pack) == Some(&row.bytes);
            let barred = unusable.contains(&row.pack);
            row.usable = sound && !barred;
            if !sound && !barred {
                suspects.push(row.pack);
            }
        }
        suspects
    }

    /// Makes packs usable that are known with this size, and leaves all others as they are.
    pub fn mark_usable(&mut self, packs: &[(PackId, u64)]) {
        for (pack, bytes) in packs {
            if let Some(row) = self.row_mut(pack).filter(|row| row.bytes == *bytes) {
                row.usable = true;
            }
        }
    }

    /// Hides a pack for good, whatever a later listing says.
    pub fn mark_gone(&mut self, pack: PackId) {
        self.gone.insert(pack);
    }

    /// Hides one copy of a chunk; as a last resort it is found all the same.
    pub fn quarantine(&mut self, chunk: ChunkId, pack: PackId) {
        self.quarantined.insert((chunk, pack));
    }

    /// Whether somebody found a copy damaged once.
    pub fn is_quarantined(&self, chunk: &ChunkId, pack: PackId) -> bool {
        !self.quarantined.is_empty() && self.quarantined.contains(&(*chunk, pack))
    }

    /// Hides one copy of a chunk for good.
    pub fn mark_damaged(&mut self, chunk: ChunkId, pack: PackId) {
        self.damaged.insert((chunk, pack));
    }

    /// Whether this process has found that a copy cannot be read.
    pub fn is_lost(&self, chunk: &ChunkId, pack: PackId) -> bool {
        let damaged = !self.damaged.is_empty() && self.damaged.contains(&(*chunk, pack));
        damaged || !self.gone.is_empty() && self.gone.contains(&pack)
    }

    /// The first of the stored locations of `chunk` that may be used.
    pub fn choose(&self, chunk: &ChunkId, value: &[u8]) -> Option<Location> {
        self.usable(chunk, value)
            .find(|location| !self.is_quarantined(chunk, location.pack))
    }

    /// The first of the stored locations of `chunk` that was not found damaged by this process, whatever others found:
    /// it may have been their memory and not the copy.
    pub fn last_resort(&self, chunk: &ChunkId, value: &[u8]) -> Option<Location> {
        self.usable(chunk, value).next()
    }

    fn usable(&self, chunk: &ChunkId, value: &[u8]) -> impl Iterator<Item = Location> {
        let (records, _torn) = value.as_chunks::<RECORD_BYTES>();
        records
            .iter()
            .filter_map(|record| self.decode(record))
            .filter_map(|(location, usable)| usable.then_some(location))
            .filter(|location| !self.is_lost(chunk, location.pack))
    }

    /// All the stored locations of a chunk, those that may not be used too.
    pub fn all(&self, value: &[u8]) -> Vec<Location> {
        let (records, _torn) = value.as_chunks::<RECORD_BYTES>();
        let decoded = records.iter().filter_map(|record| self.decode(record));
        decoded.map(|(location, _)| location).collect()
    }

    /// What a record says, and whether its pack is usable.
    fn decode(&self, record: &Record) -> Option<(Location, bool)> {
        let (fields, rest) = record.as_chunks::<4>();
        let [number, offset, stored_bytes, raw_bytes] = *<&[[u8; 4]; 4]>::try_from(fields).ok()?;
        let row = self.rows.get(u32::from_le_bytes(number) as usize)?;
        let location = Location {
            pack: row.pack,
            offset: u32::from_le_bytes(offset),
            stored_bytes: u32::from_le_bytes(stored_bytes),
            raw_bytes: u32::from_le_bytes(raw_bytes),
            kind: BlobKind::from_code(*rest.first()?)?,
        };
        Some((location, row.usable))
    }

    fn row_mut(&mut self, pack: &PackId) -> Option<&mut Row> {
        let number = *self.numbers.get(pack)?;
        self.rows.get_mut(number as usize)
    }
}

/// The stored form of a fact about a blob of the pack with this number.
pub fn encode_record(number: u32, fact: &Fact) -> Record {
    let mut record = [0; RECORD_BYTES];
    record[..4].copy_from_slice(&number.to_le_bytes());
    record[4..8].copy_from_slice(&fact.offset.to_le_bytes());
    record[8..12].copy_from_slice(&fact.stored_bytes.to_le_bytes());
    record[12..16].copy_from_slice(&fact.raw_bytes.to_le_bytes());
    record[16] = fact.kind.code();
    record
}

/// The stored form of a pack.
pub fn encode_row(pack: &PackId, bytes: u64) -> [u8; ROW_BYTES] {
    let mut row = [0; ROW_BYTES];
    row[..16].copy_from_slice(&pack.0);
    row[16..].copy_from_slice(&bytes.to_le_bytes());
    row
}

/// What a stored pack says: its id and its size in bytes.
pub fn decode_row(stored: &[u8]) -> Option<(PackId, u64)> {
    let (pack, bytes) = stored.split_first_chunk::<16>()?;
    Some((PackId(*pack), u64::from_le_bytes(bytes.try_into().ok()?)))
}

/// Appends the records of `added` that `value` lacks: the same fact stands in many segments, and in each again when
/// prune has merged them.
pub fn append_records(value: &mut Vec<u8>, added: &[u8]) {
    let (records, _torn) = added.as_chunks::<RECORD_BYTES>();
    for record in records {
        if !value.as_chunks::<RECORD_BYTES>().0.contains(record) {
            value.extend_from_slice(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact() -> Fact {
        Fact {
            id: ChunkId([1; 32]),
            kind: BlobKind::Node,
            offset: 2,
            stored_bytes: 3,
            raw_bytes: 4,
        }
    }

    #[test]
    fn a_record_decodes_to_the_location_it_was_made_of() {
        let mut table = PackTable::default();
        table.push(PackId([5; 16]), 100);
        table.push(PackId([6; 16]), 200);
        table.mark_usable(&[(PackId([6; 16]), 200), (PackId([5; 16]), 99)]);
        let mut value = encode_record(0, &fact()).to_vec();
        assert_eq!(
            table.choose(&fact().id, &value),
            None,
            "pack 0 was seen with another size"
        );
        append_records(&mut value, &encode_record(1, &fact()));
        let location = Location {
            pack: PackId([6; 16]),
            offset: 2,
            stored_bytes: 3,
            raw_bytes: 4,
            kind: BlobKind::Node,
        };
        assert_eq!(table.choose(&fact().id, &value), Some(location));
    }

    #[test]
    fn records_that_say_nothing_are_passed_over() {
        let mut table = PackTable::default();
        table.push(PackId([5; 16]), 100);
        table.mark_usable(&[(PackId([5; 16]), 100)]);
        let mut unknown_kind = encode_record(0, &fact());
        unknown_kind[16] = 99;
        assert_eq!(table.choose(&fact().id, &unknown_kind), None);
        assert_eq!(table.choose(&fact().id, &encode_record(1, &fact())), None);
        assert_eq!(
            table.choose(&fact().id, &encode_record(0, &fact())[..16]),
            None
        );
    }

    #[test]
    fn appending_adds_each_record_once() {
        let mut value = Vec::new();
        let two = [encode_record(0, &fact()), encode_record(1, &fact())].concat();
        append_records(&mut value, &two);
        append_records(&mut value, &two);
        assert_eq!(value, two);
    }
}
