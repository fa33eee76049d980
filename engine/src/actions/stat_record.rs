//! The stat record of one snapshot: by what each file is recognised as unchanged without being read.
//!
//! A local file, written after the commit, used only with the snapshot it names; absent, foreign or damaged → the files
//! are read. Promises: streams both ways in path order; a record that was cut or changed is not used.
//!
//! Layout, little-endian: magic `PGCS` (4), version (4), then for each file path length (4), path, device, inode (8 each),
//! ctime, mtime in ns (8 each), size (8); last a path length of 0xffffffff and BLAKE3-256 of all before it.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::actions::error::{Error, Result};
use crate::cluster::data_dir::Source;
use crate::ids::{Digest, RepositoryId, RunId};
use crate::repository::tree::compare_paths;

const MAGIC: [u8; 8] = *b"PGCS\x01\0\0\0";
const END: u32 = u32::MAX;
const STAT_BYTES: usize = 40;
/// Records of a stanza that are kept beside the newest full's.
const KEPT: usize = 8;

/// What `stat` said of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    device: u64,
    inode: u64,
    changed_ns: i64,
    pub(super) modified_ns: i64,
    bytes: u64,
}

impl Stat {
    /// What it says of a listed file.
    pub(super) fn of(source: &Source) -> Self {
        Stat {
            device: source.device,
            inode: source.inode,
            changed_ns: source.changed_ns,
            modified_ns: source.modified_ns,
            bytes: source.bytes,
        }
    }

    fn encode(&self) -> [u8; STAT_BYTES] {
        let mut bytes = [0; STAT_BYTES];
        let fields = [
            self.device.to_le_bytes(),
            self.inode.to_le_bytes(),
            self.changed_ns.to_le_bytes(),
            self.modified_ns.to_le_bytes(),
            self.bytes.to_le_bytes(),
        ];
        for (slot, field) in bytes.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field);
        }
        bytes
    }

    fn decode(bytes: &[u8; STAT_BYTES]) -> Self {
        let field = |at: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
            field
        };
        Stat {
            device: u64::from_le_bytes(field(0)),
            inode: u64::from_le_bytes(field(1)),
            changed_ns: i64::from_le_bytes(field(2)),
            modified_ns: i64::from_le_bytes(field(3)),
            bytes: u64::from_le_bytes(field(4)),
        }
    }
}

/// Where the record of a snapshot lies.
pub(super) fn path_of(cache: &Path, repository: RepositoryId, stanza: &str, label: &str, run: RunId) -> PathBuf {
    folder(cache, repository, stanza).join(format!("{label}.{run}.stat"))
}

fn folder(cache: &Path, repository: RepositoryId, stanza: &str) -> PathBuf {
    cache.join(repository.to_string()).join("stat").join(stanza)
}

/// Removes the records of a stanza that no backup will ask for: all but the newest few and the newest full's.
pub(super) fn remove_old(cache: &Path, repository: RepositoryId, stanza: &str) {
    let Ok(listing) = fs::read_dir(folder(cache, repository, stanza)) else { return };
    let mut names: Vec<String> =
        listing.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // A label's last timestamp is what orders backups; for all types it is in the label's last 16 characters.
    names.sort_by_key(|name| name.split('.').next().map(|label| label[label.len().saturating_sub(16)..].to_owned()));
    let is_full = |name: &&String| name.split('.').next().is_some_and(|label| label.ends_with('F'));
    let newest_full = names.iter().rev().find(is_full).cloned();
    let superfluous = names.len().saturating_sub(KEPT);
    for name in names.iter().take(superfluous).filter(|name| Some(*name) != newest_full.as_ref()) {
        // A record that stays is a few bytes lost in a cache.
        drop(fs::remove_file(folder(cache, repository, stanza).join(name)));
    }
}

/// Writes a record.
pub(super) struct StatWriter {
    out: BufWriter<File>,
    digest: Digest,
    temporary: PathBuf,
    path: PathBuf,
}

impl StatWriter {
    /// Begins a record that will lie at `path`.
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        let failed = |source| Error::Local { doing: "write", path: path.clone(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let temporary = path.with_extension("tmp");
        let out = BufWriter::new(File::create(&temporary).map_err(failed)?);
        let mut writer = StatWriter { out, digest: Digest::default(), temporary, path };
        writer.put(&MAGIC)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        let path = &self.temporary;
        self.out.write_all(bytes).map_err(|source| Error::Local { doing: "write", path: path.clone(), source })
    }

    /// Adds a file; paths must rise.
    pub(super) fn push(&mut self, path: &[u8], stat: Stat) -> Result<()> {
        self.put(&u32::try_from(path.len()).unwrap_or(END - 1).to_le_bytes())?;
        self.put(path)?;
        self.put(&stat.encode())
    }

    /// Gives the record its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.put(&END.to_le_bytes())?;
        let digest = self.digest.finish();
        self.put(&digest)?;
        let failed = |source| Error::Local { doing: "write", path: self.path.clone(), source };
        self.out.flush().map_err(failed)?;
        fs::rename(&self.temporary, &self.path).map_err(failed)
    }
}

/// Reads a record in path order.
pub(super) struct StatReader {
    input: BufReader<File>,
    next: Option<(Vec<u8>, Stat)>,
}

impl StatReader {
    /// Opens the record at `path`; `None` if there is none that can be trusted.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let mut file = File::open(path).ok()?;
        let body = file.metadata().ok()?.len().checked_sub(32)?;
        let mut digest = Digest::default();
        let mut input = BufReader::with_capacity(256 << 10, (&mut file).take(body));
        let mut part = vec![0; 256 << 10];
        loop {
            match input.read(&mut part).ok()? {
                0 => break,
                read => digest.update(&part[..read]),
            }
        }
        let mut stored = [0; 32];
        file.seek(SeekFrom::Start(body)).ok()?;
        file.read_exact(&mut stored).ok()?;
        if stored != digest.finish() {
            return None;
        }
        file.seek(SeekFrom::Start(0)).ok()?;
        let mut reader = StatReader { input: BufReader::new(file), next: None };
        let mut magic = [0; 8];
        reader.input.read_exact(&mut magic).ok()?;
        (magic == MAGIC).then_some(())?;
        reader.advance();
        Some(reader)
    }

    fn advance(&mut self) {
        self.next = self.read();
    }

    fn read(&mut self) -> Option<(Vec<u8>, Stat)> {
        let mut length = [0; 4];
        self.input.read_exact(&mut length).ok()?;
        let length = u32::from_le_bytes(length);
        if length > 1 << 16 {
            return None;
        }
        let mut path = vec![0; length as usize];
        self.input.read_exact(&mut path).ok()?;
        let mut stat = [0; STAT_BYTES];
        self.input.read_exact(&mut stat).ok()?;
        Some((path, Stat::decode(&stat)))
    }

    /// The stat of the file at `path`; paths must rise from call to call.
    pub(super) fn seek(&mut self, path: &[u8]) -> Option<Stat> {
        while let Some((next, stat)) = &self.next {
            match compare_paths(next, path) {
                Ordering::Less => self.advance(),
                Ordering::Equal => return Some(*stat),
                Ordering::Greater => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(n: u64) -> Stat {
        Stat { device: n, inode: n + 1, changed_ns: -3, modified_ns: 4, bytes: 5 }
    }

    #[test]
    fn a_record_streams_back_and_a_damaged_one_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.stat");
        let mut writer = StatWriter::create(path.clone()).unwrap();
        for n in 0..1000u64 {
            writer.push(format!("base/{n:04}").as_bytes(), stat(n)).unwrap();
        }
        writer.finish().unwrap();
        let mut reader = StatReader::open(&path).unwrap();
        assert_eq!(reader.seek(b"base/0003"), Some(stat(3)));
        assert_eq!(reader.seek(b"base/0003x"), None);
        assert_eq!(reader.seek(b"base/0999"), Some(stat(999)));
        assert_eq!(reader.seek(b"pg_xact"), None);

        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        let damaged = folder.path().join("damaged");
        File::create(&damaged).unwrap().write_all(&bytes).unwrap();
        assert!(StatReader::open(&damaged).is_none());
        File::create(&damaged).unwrap().write_all(&bytes[..bytes.len() - 40]).unwrap();
        assert!(StatReader::open(&damaged).is_none());
    }
}
