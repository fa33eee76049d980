//! The chunk index: where does the repository have this chunk? A local cache in RocksDB, rebuilt from index segments.
//!
//! Promises: answers only with copies whose pack was seen listed with the right size, is neither condemned nor dead,
//! and that are not quarantined; a fact enters only with the durable index segment that states it; a slot that belongs
//! to another repository or place, to another past of this repository, or that is damaged is thrown away. Refuses
//! nothing but contradiction: a pack with two sizes. The only file that knows RocksDB.
//!
//! One column family holds it all. A chunk id (32 bytes) leads to its locations, [`RECORD_BYTES`] each, appended by a
//! merge operator. Everything else has keys that begin with eight zero bytes, with which no chunk id begins: the
//! binding, the packs by number, and a marker for each segment that was applied.
//!
//! There is no write-ahead log. RocksDB flushes the memtables of one column family in the order in which they were
//! filled, so that a crash leaves a prefix of what was written. A pack is written before the facts that use its number,
//! and a segment's marker after its facts, in the same batch or a later one: a marker that survived vouches for all of
//! them, and a lost marker only means that the segment is applied again.
//!
//! Memory, at most: 32 MiB of memtables, 32 MiB of blocks, and filters and block indexes of about 1.1 bytes per chunk
//! (30 MiB at 27 million chunks).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor,
    CompactOptions, DB, DBCompressionType, DEFAULT_COLUMN_FAMILY_NAME, DataBlockIndexType,
    Direction, ErrorKind, IteratorMode, LogLevel, MergeOperands, Options, WriteBatch, WriteOptions,
};

use super::pack_table::{
    PackTable, RECORD_BYTES, append_records, decode_row, encode_record, encode_row,
};
use super::slot::{self, Binding, Slot};
use super::{Error, Result};
use crate::ids::{ChunkId, Location, PackId, RepositoryId};
use crate::repository::segment::{IndexSegment, PackFacts};

/// What keys that are no chunk ids begin with, each followed by a letter.
const BINDING: &[u8; 9] = b"\0\0\0\0\0\0\0\0b";
const PACK: &[u8; 9] = b"\0\0\0\0\0\0\0\0p";
const SEGMENT: &[u8; 9] = b"\0\0\0\0\0\0\0\0s";
/// No chunk id is below it, and nothing else is above.
const FIRST_CHUNK: &[u8; 8] = b"\0\0\0\0\0\0\0\x01";
/// Facts are written in batches of about this many bytes, well below a memtable.
const BATCH_BYTES: usize = 4 << 20;
/// Ids are looked up in batches of this many: enough to share the reading of blocks, few enough to stay in the caches.
const LOOKUP_BATCH: usize = 512;
/// A memtable; there are two at most.
const MEMTABLE_BYTES: usize = 16 << 20;
/// Blocks kept in memory.
const CACHE_BYTES: usize = 32 << 20;

/// The chunk index of one repository, held by this process until it is dropped. Shared by threads.
pub struct ChunkIndex {
    // Closed before the slot is freed: fields are dropped in this order.
    db: DB,
    packs: RwLock<PackTable>,
    /// What the index is bound to; held while writing.
    binding: Mutex<Binding>,
    unflushed: AtomicBool,
    slot: Slot,
}

/// Figures about an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexStats {
    /// How many chunks it knows, as RocksDB estimates.
    pub chunks: u64,
    /// How many packs it knows.
    pub packs: u64,
    /// What its files take, in bytes.
    pub file_bytes: u64,
    /// The slot directory that it lies in.
    pub directory: PathBuf,
}

impl ChunkIndex {
    /// Opens the index of the repository with this id at this place (what its storage calls itself) in the first free
    /// slot below `cache`, or makes an empty one. `gc_at` answers the checksum that the repository's gc log has at a
    /// number: an index that was bound to another checksum has seen another past and is thrown away.
    pub fn open(
        cache: &Path,
        repository: RepositoryId,
        place: &str,
        gc_at: &dyn Fn(u64) -> Option<[u8; 16]>,
    ) -> Result<Self> {
        let slot = slot::take(cache, repository, place)?;
        if slot.damage_mark().exists() {
            slot.clear()?;
        }
        let new = Binding::new(repository, place);
        let fits = |found: &Binding| {
            let same_past =
                found.gc_number == 0 || gc_at(found.gc_number) == Some(found.gc_checksum);
            found.repository == new.repository && found.place == new.place && same_past
        };
        let kept = match load(&slot.database()) {
            Ok(loaded @ Some((_, _, None))) => loaded,
            Ok(Some((db, packs, Some(found)))) if fits(&found) => Some((db, packs, Some(found))),
            Ok(_) => None,
            Err(error) if is_damage(&error) => None,
            Err(error) => return Err(database_error(&slot, error)),
        };
        match kept {
            Some(kept) => Self::of(slot, kept, new),
            None => Self::empty(slot, new),
        }
    }

    /// Makes an empty index in the first free slot, whatever lies there; otherwise as [`ChunkIndex::open`].
    pub fn create(cache: &Path, repository: RepositoryId, place: &str) -> Result<Self> {
        let slot = slot::take(cache, repository, place)?;
        Self::empty(slot, Binding::new(repository, place))
    }

    fn empty(slot: Slot, binding: Binding) -> Result<Self> {
        slot.clear()?;
        let db = open_database(&slot.database()).map_err(|error| database_error(&slot, error))?;
        Self::of(slot, (db, PackTable::default(), None), binding)
    }

    fn of(slot: Slot, (db, packs, found): Loaded, new: Binding) -> Result<Self> {
        if found.is_none() {
            db.put_opt(BINDING, new.encode(), &unlogged())
                .map_err(|error| database_error(&slot, error))?;
        }
        Ok(ChunkIndex {
            db,
            packs: RwLock::new(packs),
            binding: Mutex::new(found.unwrap_or(new)),
            unflushed: AtomicBool::new(found.is_none()),
            slot,
        })
    }

    /// Of these keys of index segments, those that were not applied yet.
    pub fn missing_segments<'a>(&self, keys: &'a [String]) -> Vec<&'a str> {
        let markers: Vec<_> = keys.iter().map(|key| marker(key)).collect();
        // A marker that cannot be read is as good as none: applying a segment again changes nothing.
        let applied = self
            .db
            .multi_get(&markers)
            .into_iter()
            .map(|found| matches!(found, Ok(Some(_))));
        keys.iter()
            .zip(applied)
            .filter(|(_, applied)| !applied)
            .map(|(key, _)| key.as_str())
            .collect()
    }

    /// Enters the facts of a durable index segment. Its packs are not usable until they were seen listed
    /// ([`ChunkIndex::set_packs`]) or this process vouches for them ([`ChunkIndex::mark_put`]).
    pub fn apply(&self, segment_key: &str, segment: &IndexSegment) -> Result<()> {
        let _turn = self.writer();
        let numbers = self.enter_packs(segment_key, segment)?;
        let mut batch = WriteBatch::default();
        for (facts, number) in segment.packs.iter().zip(numbers) {
            for fact in &facts.blobs {
                batch.merge(fact.id.0, encode_record(number, fact));
                if batch.size_in_bytes() >= BATCH_BYTES {
                    self.write(std::mem::take(&mut batch))?;
                }
            }
        }
        batch.put(marker(segment_key), b"");
        self.write(batch)
    }

    /// Binds the index to the newest record of the gc log that this process has read: its number and its checksum.
    pub fn bind_gc(&self, gc: (u64, [u8; 16])) -> Result<()> {
        let mut binding = self.writer();
        let bound = Binding {
            gc_number: gc.0,
            gc_checksum: gc.1,
            ..*binding
        };
        if bound != *binding {
            let mut batch = WriteBatch::default();
            batch.put(BINDING, bound.encode());
            self.write(batch)?;
            *binding = bound;
        }
        Ok(())
    }

    /// Decides which packs are usable: those that are listed with the size that their segment gives, and not in
    /// `unusable` (condemned or dead). Answers the suspects: packs that a segment names and that are not in `unusable`,
    /// but that the listing lacks or shows with another size. Replaces what earlier calls and marks decided.
    pub fn set_packs(&self, listed: &[(PackId, u64)], unusable: &BTreeSet<PackId>) -> Vec<PackId> {
        self.packs_mut().set_listing(listed, unusable)
    }

    /// Makes packs usable that this process has put itself, once the segment that names them is applied; pack and size
    /// in bytes. Without it they wait for the next [`ChunkIndex::set_packs`].
    pub fn mark_put(&self, packs: &[(PackId, u64)]) {
        self.packs_mut().mark_usable(packs);
    }

    /// The length of a pack that a segment names.
    pub fn pack_bytes(&self, pack: &PackId) -> Option<u64> {
        self.packs().find(pack).map(|(_, bytes)| bytes)
    }

    /// For each id, in the order given, a copy that may be used, if there is one. `found` is emptied first. One call
    /// looks many ids up for much less than as many calls would.
    pub fn lookup(&self, ids: &[ChunkId], found: &mut Vec<Option<Location>>) -> Result<()> {
        found.clear();
        found.resize(ids.len(), None);
        let mut sorted: Vec<_> = ids.iter().zip(found.iter_mut()).collect();
        sorted.sort_unstable_by_key(|(id, _)| **id);
        let family = self.family();
        for batch in sorted.chunks_mut(LOOKUP_BATCH) {
            let values =
                self.db
                    .batched_multi_get_cf(family, batch.iter().map(|(id, _)| &id.0), true);
            let packs = self.packs();
            for ((id, answer), value) in batch.iter_mut().zip(values) {
                let value = value.map_err(|error| self.failed(error))?;
                **answer = value.and_then(|records| packs.choose(id, &records));
            }
        }
        Ok(())
    }

    /// Answers with this pack no more: this process could not read it. Not stored here.
    pub fn mark_gone(&self, pack: PackId) {
        self.packs_mut().mark_gone(pack);
    }

    /// Answers with this copy of this chunk as a last resort alone. Not stored here: the repository's quarantine is read
    /// by each run.
    pub fn quarantine(&self, chunk: ChunkId, pack: PackId) {
        self.packs_mut().quarantine(chunk, pack);
    }

    /// Whether a copy is quarantined.
    pub fn is_quarantined(&self, chunk: &ChunkId, pack: PackId) -> bool {
        self.packs().is_quarantined(chunk, pack)
    }

    /// Answers with this copy of this chunk no more: this process has read it, and it is damaged. Not stored here.
    pub fn mark_damaged(&self, chunk: ChunkId, pack: PackId) {
        self.packs_mut().mark_damaged(chunk, pack);
    }

    /// Whether this process has found that a copy cannot be read.
    pub fn is_lost(&self, chunk: &ChunkId, pack: PackId) -> bool {
        self.packs().is_lost(chunk, pack)
    }

    /// A copy of a chunk in a usable pack that only others found damaged.
    pub fn last_resort(&self, id: &ChunkId) -> Result<Option<Location>> {
        let records = self.db.get(id.0).map_err(|error| self.failed(error))?;
        Ok(records.and_then(|records| self.packs().last_resort(id, &records)))
    }

    /// Every chunk in the order of the ids, with all its locations, usable or not.
    pub fn chunks(&self) -> impl Iterator<Item = Result<(ChunkId, Vec<Location>)>> + '_ {
        let from = IteratorMode::From(FIRST_CHUNK, Direction::Forward);
        self.db.iterator(from).filter_map(|entry| match entry {
            Ok((key, records)) => {
                let id = ChunkId(key.as_ref().try_into().ok()?);
                Some(Ok((id, self.packs().all(&records))))
            }
            Err(error) => Some(Err(self.failed(error))),
        })
    }

    /// All locations of one chunk, usable or not.
    pub fn locations(&self, id: &ChunkId) -> Result<Vec<Location>> {
        let records = self.db.get(id.0).map_err(|error| self.failed(error))?;
        Ok(records.map_or_else(Vec::new, |records| self.packs().all(&records)))
    }

    /// The keys of all segments that were applied, in their order.
    pub fn segments(&self) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        for entry in self
            .db
            .iterator(IteratorMode::From(SEGMENT, Direction::Forward))
        {
            let (key, _) = entry.map_err(|error| self.failed(error))?;
            let Some(segment) = key.strip_prefix(SEGMENT) else {
                break;
            };
            keys.push(String::from_utf8_lossy(segment).into_owned());
        }
        Ok(keys)
    }

    /// Lets RocksDB write all its files anew, without what was overwritten or stands in several of them.
    pub fn compact(&self) -> Result<()> {
        self.flush()?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        let all = None::<&[u8]>;
        self.db.compact_range_opt(all, all, &options);
        Ok(())
    }

    /// Figures for people.
    pub fn stats(&self) -> IndexStats {
        let property = |name: &str| self.db.property_int_value(name).ok().flatten().unwrap_or(0);
        IndexStats {
            chunks: property("rocksdb.estimate-num-keys"),
            packs: self.packs().len() as u64,
            file_bytes: property("rocksdb.total-sst-files-size"),
            directory: self.slot.directory.clone(),
        }
    }

    /// Makes durable what was entered; does nothing if nothing was. Dropping the index does the same, but cannot say
    /// that it failed.
    pub fn flush(&self) -> Result<()> {
        if self.unflushed.swap(false, Ordering::AcqRel) {
            self.db.flush().map_err(|error| {
                self.unflushed.store(true, Ordering::Release);
                self.failed(error)
            })?;
        }
        Ok(())
    }

    /// The numbers of a segment's packs, in their order. New packs are written here, before any fact that uses them.
    fn enter_packs(&self, segment_key: &str, segment: &IndexSegment) -> Result<Vec<u32>> {
        let mut batch = WriteBatch::default();
        let mut entered = PackTable::default();
        let mut numbers = Vec::with_capacity(segment.packs.len());
        let first = self.packs().next_number();
        for PackFacts { pack, bytes, .. } in &segment.packs {
            let known = self.packs().find(pack);
            let known = known.or_else(|| {
                entered
                    .find(pack)
                    .map(|(number, bytes)| (first + number, bytes))
            });
            let (number, known_bytes) = known.unwrap_or_else(|| {
                let number = first + entered.next_number();
                batch.put(
                    [&PACK[..], &number.to_be_bytes()].concat(),
                    encode_row(pack, *bytes),
                );
                entered.push(*pack, *bytes);
                (number, *bytes)
            });
            if known_bytes != *bytes {
                let (segment, pack, bytes) = (segment_key.to_owned(), *pack, *bytes);
                return Err(Error::PackSize {
                    segment,
                    pack,
                    bytes,
                    known_bytes,
                });
            }
            numbers.push(number);
        }
        if !entered.is_empty() {
            self.write(batch)?;
            self.packs_mut().append(entered);
        }
        Ok(numbers)
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        self.unflushed.store(true, Ordering::Release);
        self.db
            .write_opt(batch, &unlogged())
            .map_err(|error| self.failed(error))
    }

    /// Damage found while reading is marked in the slot, so that the next process starts anew instead of failing too.
    fn failed(&self, error: rocksdb::Error) -> Error {
        if is_damage(&error) {
            // If even that cannot be written, the next process finds the damage as this one did.
            File::create(self.slot.damage_mark()).ok();
        }
        database_error(&self.slot, error)
    }

    fn family(&self) -> &ColumnFamily {
        self.db
            .cf_handle(DEFAULT_COLUMN_FAMILY_NAME)
            .expect("opened by this name")
    }

    fn writer(&self) -> MutexGuard<'_, Binding> {
        self.binding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn packs(&self) -> RwLockReadGuard<'_, PackTable> {
        self.packs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn packs_mut(&self) -> RwLockWriteGuard<'_, PackTable> {
        self.packs.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What lies in a slot: the database, its packs, what it is bound to; without a binding it is new and empty.
type Loaded = (DB, PackTable, Option<Binding>);

/// Opens what lies there; `None` if it is of another layout, or makes no sense.
fn load(path: &Path) -> std::result::Result<Option<Loaded>, rocksdb::Error> {
    let db = open_database(path)?;
    let mut packs = PackTable::default();
    for entry in db.iterator(IteratorMode::From(PACK, Direction::Forward)) {
        let (key, row) = entry?;
        let Some(number) = key.strip_prefix(PACK) else {
            break;
        };
        match decode_row(&row) {
            Some((pack, bytes)) if number == packs.next_number().to_be_bytes() => {
                packs.push(pack, bytes);
            }
            _ => return Ok(None),
        }
    }
    let Some(stored) = db.get(BINDING)? else {
        return Ok(packs.is_empty().then_some((db, packs, None)));
    };
    Ok(Binding::decode(&stored).map(|binding| (db, packs, Some(binding))))
}

fn open_database(path: &Path) -> std::result::Result<DB, rocksdb::Error> {
    let mut options = options();
    options.create_if_missing(true);
    let family = ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, options.clone());
    DB::open_cf_descriptors(&options, path, [family])
}

/// Tuned for point lookups of random ids, most of which are not there, in little memory.
fn options() -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    blocks.set_block_size(16 << 10);
    blocks.set_format_version(6);
    // Filters answer most lookups: ribbon takes less memory, bloom is built faster, which matters for fresh files.
    blocks.set_hybrid_ribbon_filter(10.0, 1);
    blocks.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    blocks.set_data_block_hash_ratio(0.75);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_merge_operator_associative("pgcairn locations", |_id, value, added| {
        Some(merge_locations(value, added))
    });
    // Ids are random: they do not compress.
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.02);
    // Few files, all of them open.
    options.set_target_file_size_base(64 << 20);
    options.set_max_bytes_for_level_base(256 << 20);
    options.set_max_open_files(-1);
    options.set_max_background_jobs(2);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options
}

fn merge_locations(value: Option<&[u8]>, added: &MergeOperands) -> Vec<u8> {
    let mut merged = value.unwrap_or_default().to_vec();
    merged.reserve_exact(added.len() * RECORD_BYTES);
    for records in added {
        append_records(&mut merged, records);
    }
    merged
}

fn unlogged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

fn marker(segment_key: &str) -> Vec<u8> {
    [SEGMENT, segment_key.as_bytes()].concat()
}

/// Whether throwing the index away would cure this. What the system refuses (no space, no permission) stays refused, but
/// a file that the database misses is damage, and RocksDB reports it as an I/O error.
fn is_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        ErrorKind::Corruption
        | ErrorKind::NotSupported
        | ErrorKind::InvalidArgument
        | ErrorKind::NotFound => true,
        ErrorKind::IOError => error.to_string().contains("No such file"),
        _ => false,
    }
}

fn database_error(slot: &Slot, error: rocksdb::Error) -> Error {
    Error::Database {
        path: slot.directory.clone(),
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use tempfile::TempDir;

    use super::*;
    use crate::ids::{BlobKind, digest};
    use crate::repository::layout::PackClass;
    use crate::repository::segment::Fact;

    const REPOSITORY: RepositoryId = RepositoryId([1; 16]);
    const PACK_BYTES: u64 = 1000;

    fn open_at(cache: &Path, place: &str, gc_at: &dyn Fn(u64) -> Option<[u8; 16]>) -> ChunkIndex {
        ChunkIndex::open(cache, REPOSITORY, place, gc_at).unwrap()
    }

    fn open(cache: &Path) -> ChunkIndex {
        open_at(cache, "a place", &|_| None)
    }

    fn id(number: u32) -> ChunkId {
        ChunkId(digest(&number.to_le_bytes()))
    }

    fn pack(number: u8) -> PackId {
        PackId([number; 16])
    }

    fn facts(number: u8, chunks: std::ops::Range<u32>) -> PackFacts {
        let fact = |n| Fact {
            id: id(n),
            kind: BlobKind::Data,
            offset: n,
            stored_bytes: n + 1,
            raw_bytes: n + 2,
        };
        PackFacts {
            pack: pack(number),
            class: PackClass::Data,
            bytes: PACK_BYTES,
            blobs: chunks.map(fact).collect(),
        }
    }

    fn segment(packs: Vec<PackFacts>) -> IndexSegment {
        IndexSegment {
            packs,
            replaces: Vec::new(),
        }
    }

    fn listed(numbers: &[u8]) -> Vec<(PackId, u64)> {
        numbers
            .iter()
            .map(|&number| (pack(number), PACK_BYTES))
            .collect()
    }

    fn look_up(index: &ChunkIndex, chunks: &[u32]) -> Vec<Option<u8>> {
        let ids: Vec<_> = chunks.iter().map(|&number| id(number)).collect();
        let mut found = vec![None];
        index.lookup(&ids, &mut found).unwrap();
        for (number, location) in chunks.iter().zip(&found) {
            let right = |location: &Location| {
                (location.offset, location.raw_bytes) == (*number, number + 2)
            };
            assert!(location.as_ref().is_none_or(right));
        }
        found
            .into_iter()
            .map(|location| location.map(|location| location.pack.0[0]))
            .collect()
    }

    /// An index with chunks 0 to 9 in pack 1, and the slot directory it lies in.
    fn filled(cache: &Path) -> PathBuf {
        let index = open(cache);
        index
            .apply("index/s/1", &segment(vec![facts(1, 0..10)]))
            .unwrap();
        index.flush().unwrap();
        index.stats().directory
    }

    /// Whether an index opened now still holds what [`filled`] put there.
    fn still_filled(cache: &Path) -> bool {
        let index = open(cache);
        index.set_packs(&listed(&[1]), &BTreeSet::new());
        let found = look_up(&index, &[3]) == [Some(1)];
        let keys = ["index/s/1".to_owned()];
        assert_eq!(
            index.missing_segments(&keys).is_empty(),
            found,
            "a marker vouches for the facts"
        );
        found
    }

    fn files(slot: &Path, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(slot.join("chunks"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries
            .filter(|path| path.to_string_lossy().contains(extension))
            .collect()
    }

    #[test]
    fn what_a_segment_states_is_found_once_its_pack_is_listed() {
        let cache = TempDir::new().unwrap();
        let index = open(cache.path());
        let keys = ["index/s/1".to_owned(), "index/s/2".to_owned()];
        assert_eq!(index.missing_segments(&keys), ["index/s/1", "index/s/2"]);
        index
            .apply(
                "index/s/1",
                &segment(vec![facts(1, 0..10), facts(2, 10..20)]),
            )
            .unwrap();
        assert_eq!(index.missing_segments(&keys), ["index/s/2"]);
        assert_eq!(look_up(&index, &[5]), [None], "not listed yet");
        assert!(
            index
                .set_packs(&listed(&[1, 2]), &BTreeSet::new())
                .is_empty()
        );
        assert_eq!(
            look_up(&index, &[15, 3, 99, 3, 11]),
            [Some(2), Some(1), None, Some(1), Some(2)],
            "in the order asked"
        );
        assert!(look_up(&index, &[]).is_empty());
    }

    #[test]
    fn an_index_outlives_its_process_with_or_without_a_flush() {
        let cache = TempDir::new().unwrap();
        filled(cache.path());
        assert!(still_filled(cache.path()));
        let index = open(cache.path());
        index
            .apply(
                "index/s/2",
                &segment(vec![facts(2, 10..20), facts(1, 20..30)]),
            )
            .unwrap();
        drop(index);
        let index = open(cache.path());
        index.set_packs(&listed(&[1, 2]), &BTreeSet::new());
        assert_eq!(look_up(&index, &[3, 13, 23]), [Some(1), Some(2), Some(1)]);
        assert_eq!(index.stats().packs, 2);
        assert!(index.stats().file_bytes > 0);
    }

    #[test]
    fn a_fact_stated_many_times_is_kept_once() {
        let cache = TempDir::new().unwrap();
        let index = open(cache.path());
        for key in ["index/s/1", "index/s/1", "index/_/2"] {
            index
                .apply(key, &segment(vec![facts(1, 0..10), facts(1, 0..10)]))
                .unwrap();
            index.flush().unwrap();
        }
        assert_eq!(index.db.get(id(3).0).unwrap().unwrap().len(), RECORD_BYTES);
    }

    #[test]
    fn of_two_copies_the_first_usable_one_is_answered() {
        let cache = TempDir::new().unwrap();
        let index = open(cache.path());
        index
            .apply("index/s/1", &segment(vec![facts(1, 0..10)]))
            .unwrap();
        index
            .apply("index/s/2", &segment(vec![facts(2, 0..10)]))
            .unwrap();
        index.set_packs(&listed(&[1, 2]), &BTreeSet::new());
        assert_eq!(look_up(&index, &[3]), [Some(1)]);
        index.quarantine(id(3), pack(1));
        assert_eq!(
            look_up(&index, &[3, 4]),
            [Some(2), Some(1)],
            "one copy of one chunk is quarantined"
        );
        let last_resort = |index: &ChunkIndex, n| {
            let copy = index.last_resort(&id(n)).unwrap();
            copy.map(|copy| copy.pack)
        };
        assert_eq!(last_resort(&index, 3), Some(pack(1)));
        index.mark_damaged(id(3), pack(1));
        assert_eq!(
            last_resort(&index, 3),
            Some(pack(2)),
            "what this process has read counts"
        );
        index.set_packs(&listed(&[1, 2]), &BTreeSet::from([pack(1)]));
        assert_eq!(look_up(&index, &[4]), [Some(2)], "pack 1 is condemned");
        index.mark_gone(pack(2));
        index.set_packs(&listed(&[1, 2]), &BTreeSet::new());
        assert_eq!(
            look_up(&index, &[3, 4]),
            [None, Some(1)],
            "gone whatever is listed"
        );
        assert_eq!(last_resort(&index, 3), None);
    }

    #[test]
    fn packs_that_the_listing_contradicts_are_suspects_unless_the_gc_log_explains_it() {
        let cache = TempDir::new().unwrap();
        let index = open(cache.path());
        index
            .apply(
                "index/s/1",
                &segment((1..=5).map(|n| facts(n, 0..1)).collect()),
            )
            .unwrap();
        let shown = [
            (pack(1), PACK_BYTES),
            (pack(2), PACK_BYTES - 1),
            (pack(4), 1),
            (pack(9), PACK_BYTES),
        ];
        let suspects = index.set_packs(&shown, &BTreeSet::from([pack(4), pack(5)]));
        assert_eq!(suspects, [pack(2), pack(3)], "of another size, and absent");
        assert_eq!(index.pack_bytes(&pack(9)), None, "no segment names it");
    }

    #[test]
    fn a_pack_put_by_this_process_is_usable_once_it_is_vouched_for() {
        let cache = TempDir::new().unwrap();
        let index = open(cache.path());
        index.set_packs(&[], &BTreeSet::new());
        index
            .apply("index/s/1", &segment(vec![facts(1, 0..10)]))
            .unwrap();
        assert_eq!(look_up(&index, &[3]), [None]);
        index.mark_put(&[(pack(1), PACK_BYTES), (pack(7), PACK_BYTES)]);
        assert_eq!(look_up(&index, &[3]), [Some(1)]);
    }

    #[test]
    fn a_pack_of_two_sizes_is_refused() {
        let cache = TempDir::new().unwrap();
        let index = open(cache.path());
        index
            .apply("index/s/1", &segment(vec![facts(1, 0..10)]))
            .unwrap();
        let other = PackFacts {
            bytes: 1,
            ..facts(1, 0..10)
        };
        let refused = index.apply("index/s/2", &segment(vec![other]));
        assert!(matches!(
            refused,
            Err(Error::PackSize {
                known_bytes: PACK_BYTES,
                bytes: 1,
                ..
            })
        ));
        assert_eq!(
            index.missing_segments(&["index/s/2".to_owned()]),
            ["index/s/2"]
        );
    }

    #[test]
    fn all_that_is_known_is_listed_in_order_usable_or_not() {
        let cache = TempDir::new().unwrap();
        let index = open(cache.path());
        for (key, number) in [("index/s/1", 1), ("index/s/2", 2)] {
            let first = u32::from(number) * 10;
            index
                .apply(key, &segment(vec![facts(number, first..first + 15)]))
                .unwrap();
        }
        index.compact().unwrap();
        let listed: Vec<_> = index.chunks().map(Result::unwrap).collect();
        assert!(listed.is_sorted_by_key(|(id, _)| *id) && listed.len() == 25);
        let of = |number| {
            let packs = |locations: Vec<Location>| locations.iter().map(|l| l.pack).collect();
            let one: Vec<_> = packs(index.locations(&id(number)).unwrap());
            let (_, all) = listed.iter().find(|(listed, _)| *listed == id(number))?;
            assert_eq!(packs(all.clone()), one);
            Some(one)
        };
        assert_eq!(of(12), Some(vec![pack(1)]));
        assert_eq!(of(22), Some(vec![pack(1), pack(2)]));
        assert_eq!(of(99), None);
        assert_eq!(index.segments().unwrap(), ["index/s/1", "index/s/2"]);
        drop(index);
        let new = ChunkIndex::create(cache.path(), REPOSITORY, "a place").unwrap();
        assert_eq!((new.chunks().count(), new.stats().packs), (0, 0));
        assert!(new.segments().unwrap().is_empty());
    }

    #[test]
    fn a_second_process_takes_the_next_slot_and_a_freed_one_is_taken_again() {
        let cache = TempDir::new().unwrap();
        let first = open(cache.path());
        let second = open(cache.path());
        assert!(first.stats().directory.ends_with("slot-0"));
        assert!(second.stats().directory.ends_with("slot-1"));
        drop(first);
        assert!(open(cache.path()).stats().directory.ends_with("slot-0"));
    }

    #[test]
    fn another_place_of_the_same_repository_has_its_own_directory() {
        let cache = TempDir::new().unwrap();
        let (here, there) = (
            open_at(cache.path(), "here", &|_| None),
            open_at(cache.path(), "there", &|_| None),
        );
        assert_ne!(
            here.stats().directory.parent(),
            there.stats().directory.parent()
        );
    }

    #[test]
    fn a_deleted_cache_is_an_empty_index() {
        let cache = TempDir::new().unwrap();
        filled(cache.path());
        fs::remove_dir_all(cache.path()).unwrap();
        assert!(!still_filled(cache.path()));
    }

    #[test]
    fn an_index_of_another_repository_or_layout_is_thrown_away() {
        for spoil in [1, 0] {
            let cache = TempDir::new().unwrap();
            filled(cache.path());
            let index = open(cache.path());
            let mut binding = index.db.get(BINDING).unwrap().unwrap();
            binding[spoil] ^= 1;
            index.db.put_opt(BINDING, binding, &unlogged()).unwrap();
            drop(index);
            assert!(!still_filled(cache.path()));
        }
    }

    #[test]
    fn an_index_that_has_seen_another_past_is_thrown_away() {
        let same: &dyn Fn(u64) -> Option<[u8; 16]> = &|n| (n == 7).then_some([7; 16]);
        let other: &dyn Fn(u64) -> Option<[u8; 16]> = &|_| Some([8; 16]);
        let shorter: &dyn Fn(u64) -> Option<[u8; 16]> = &|_| None;
        for (gc_at, packs) in [(same, 1), (other, 0), (shorter, 0)] {
            let cache = TempDir::new().unwrap();
            filled(cache.path());
            open(cache.path()).bind_gc((7, [7; 16])).unwrap();
            assert_eq!(open_at(cache.path(), "a place", gc_at).stats().packs, packs);
        }
    }

    #[test]
    fn an_index_with_damaged_files_is_thrown_away() {
        for (extension, what) in [
            (".sst", "cut"),
            (".sst", "removed"),
            ("MANIFEST", "cut"),
            ("MANIFEST", "removed"),
            ("CURRENT", "removed"),
        ] {
            let cache = TempDir::new().unwrap();
            let slot = filled(cache.path());
            let damaged = files(&slot, extension);
            assert!(!damaged.is_empty());
            for path in damaged {
                match what {
                    "cut" => File::options()
                        .write(true)
                        .open(&path)
                        .unwrap()
                        .set_len(20)
                        .unwrap(),
                    _ => fs::remove_file(&path).unwrap(),
                }
            }
            assert!(!still_filled(cache.path()), "{extension} {what}");
            filled(cache.path());
            assert!(still_filled(cache.path()), "and it works again");
        }
    }

    #[test]
    fn damage_found_by_a_lookup_fails_that_run_and_is_gone_in_the_next() {
        let cache = TempDir::new().unwrap();
        let slot = filled(cache.path());
        let index = open(cache.path());
        index
            .apply("index/s/2", &segment(vec![facts(2, 0..20_000)]))
            .unwrap();
        drop(index);
        let sizes = files(&slot, ".sst")
            .into_iter()
            .map(|path| (fs::metadata(&path).unwrap().len(), path));
        let (_, largest) = sizes.max().unwrap();
        let mut bytes = fs::read(&largest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        File::create(&largest).unwrap().write_all(&bytes).unwrap();
        let index = open(cache.path());
        assert_eq!(index.stats().packs, 2, "opening looks at packs only");
        let ids: Vec<_> = (0..20_000).map(id).collect();
        let failed = index.lookup(&ids, &mut Vec::new());
        assert!(matches!(failed, Err(Error::Database { .. })));
        drop(index);
        assert!(!still_filled(cache.path()));
    }

    #[test]
    fn a_large_index_answers_exactly_what_it_was_told() {
        const CHUNKS: u32 = 200_000;
        let cache = TempDir::new().unwrap();
        let index = open(cache.path());
        for number in 0..4 {
            let from = u32::from(number) * CHUNKS / 4;
            index
                .apply(
                    &format!("index/s/{number}"),
                    &segment(vec![facts(number, from..from + CHUNKS / 4)]),
                )
                .unwrap();
        }
        index.set_packs(&listed(&[0, 1, 2, 3]), &BTreeSet::new());
        let check = |index: &ChunkIndex| {
            let asked: Vec<_> = (0..2 * CHUNKS).rev().step_by(3).collect();
            let told = |&number: &u32| {
                (number < CHUNKS).then(|| u8::try_from(number / (CHUNKS / 4)).unwrap())
            };
            assert_eq!(
                look_up(index, &asked),
                asked.iter().map(told).collect::<Vec<_>>()
            );
        };
        check(&index);
        index.flush().unwrap();
        drop(index);
        let index = open(cache.path());
        index.set_packs(&listed(&[0, 1, 2, 3]), &BTreeSet::new());
        check(&index);
    }
}
