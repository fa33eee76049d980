//! Snapshots: the decision register of each backup, and the manifest inside.
//!
//! Promises: a register changes once, from absent to `Committed` or `Fenced`, and stays for ever; whoever puts one learns
//! which it is, even if the answer to the put was lost. Refuses registers above 64 KiB: they are never deleted, so what
//! would make one large is a blob in a meta pack.

use serde::{Deserialize, Serialize};

use crate::codec::{self, RecordKind};
use crate::ids::{ChunkId, RunId};
use crate::repository::layout;
use crate::repository::{
    Error, Repository, Result, forget, get_record, list_all, seal_record, storage_failed,
};
use crate::storage::ErrorKind;
use crate::wal_name::{Lsn, Timeline, is_segment_size};

pub use crate::repository::label::{BackupType, Label};

/// The size that no register exceeds, envelope included.
pub const LARGEST_REGISTER: usize = 64 << 10;

/// What was decided about a backup. The numbers are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Register {
    /// It exists: all that it needs is durable.
    Committed(Box<Manifest>),
    /// It will never exist.
    Fenced,
}

/// What is stored about one backup beside its tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its printed name.
    pub label: String,
    /// What was read and trusted.
    pub backup_type: BackupType,
    /// The label of the backup whose stat record and extents were used.
    pub prior: Option<String>,
    /// The run that made it.
    pub run: RunId,
    /// Random bits by which the run recognises its own register.
    pub nonce: [u8; 16],
    /// The version of the program that made it.
    pub tool_version: String,
    /// The host it was made on.
    pub host: String,
    /// The stanza.
    pub stanza: String,
    /// The number of the stanza record that it belongs to.
    pub epoch: u32,
    /// PostgreSQL's system identifier.
    pub system_id: u64,
    /// PostgreSQL's major version.
    pub version: u32,
    /// PostgreSQL's catalog version.
    pub catalog_version: u32,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Pages of a segment file of a relation.
    pub segment_blocks: u32,
    /// Bytes of a WAL segment.
    pub wal_segment_bytes: u32,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// The server's `wal_level`.
    pub wal_level: String,
    /// Whether the server ran.
    pub online: bool,
    /// When it began, by the server's clock (by the host's if offline): milliseconds since 1970-01-01 UTC.
    pub start_ms: i64,
    /// When it ended, by the same clock.
    pub stop_ms: i64,
    /// Where recovery begins.
    pub start_lsn: Lsn,
    /// Where the restored cluster is consistent.
    pub stop_lsn: Lsn,
    /// The timeline it began on.
    pub timeline: Timeline,
    /// The timeline it ended on.
    pub stop_timeline: Timeline,
    /// The first WAL file that it needs.
    pub wal_start: Option<String>,
    /// The last WAL file that it needs.
    pub wal_stop: Option<String>,
    /// The databases.
    pub databases: Vec<Database>,
    /// The tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// The root of its tree.
    pub root: ChunkId,
    /// Its sums.
    pub sums: Sums,
    /// The options that shaped it, in the order of their names.
    pub options: Vec<(String, String)>,
    /// `global/pg_control`, without its zero tail.
    pub pg_control: Vec<u8>,
    /// The permissions of `global/pg_control`.
    pub pg_control_mode: u32,
    /// `backup_label`, byte for byte.
    pub backup_label: Option<Vec<u8>>,
    /// `tablespace_map`, byte for byte.
    pub tablespace_map: Option<Vec<u8>>,
    /// The blob that lists suspect pages with their verdicts.
    pub page_list: Option<ChunkId>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its object id.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// A tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its object id.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// The directory that its link points to.
    pub location: Vec<u8>,
}

/// The sums of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Files.
    pub files: u64,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Bytes read from the cluster.
    pub read_bytes: u64,
    /// Bytes of the chunks that were new, before compression.
    pub new_bytes: u64,
    /// Bytes that this run put into the repository.
    pub stored_bytes: u64,
    /// Bytes, as stored, of all chunks that the tree needs.
    pub tree_stored_bytes: u64,
    /// Pages whose checksum does not match and that no WAL repairs.
    pub bad_pages: u64,
    /// Pages that were being written while they were read.
    pub torn_pages: u64,
}

/// A register that is listed; what it says is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The stanza.
    pub stanza: String,
    /// The backup's label.
    pub label: String,
    /// The run that made it.
    pub run: RunId,
    /// Whether a tombstone stands on it.
    pub forgotten: bool,
}

/// What became of a register that was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It says what was put, by this put or an earlier one of the same run.
    Decided,
    /// It was decided before, and says this.
    AlreadyDecided(Register),
}

/// The label and run of every register of a stanza, in key order.
pub fn labels(repository: &Repository, stanza: &str) -> Result<Vec<(String, RunId)>> {
    let objects = list_all(
        repository.storage.as_ref(),
        &layout::snapshot_prefix(stanza)?,
    )?;
    let parsed = objects
        .iter()
        .filter_map(|object| layout::parse_snapshot(object.key.as_str()));
    Ok(parsed.map(|(_, label, run)| (label, run)).collect())
}

/// All registers of a stanza, oldest first by the last time stamp of their labels.
pub fn list(repository: &Repository, stanza: &str) -> Result<Vec<Snapshot>> {
    let labels = labels(repository, stanza)?;
    // After the registers: a tombstone stands on a register that is older than it.
    let forgotten = forget::list(repository, stanza)?;
    let snapshot = |key: (String, RunId)| Snapshot {
        stanza: stanza.to_owned(),
        forgotten: forgotten.contains(&key),
        label: key.0,
        run: key.1,
    };
    let mut snapshots: Vec<Snapshot> = labels.into_iter().map(snapshot).collect();
    snapshots.sort_by(|a, b| {
        last_stamp(&a.label)
            .cmp(last_stamp(&b.label))
            .then_with(|| a.run.cmp(&b.run))
    });
    Ok(snapshots)
}

/// What a listed register says.
pub fn read(repository: &Repository, snapshot: &Snapshot) -> Result<Register> {
    let key = layout::snapshot(&snapshot.stanza, &snapshot.label, snapshot.run)?;
    let register = get_record(repository, &key, RecordKind::Register)?;
    match &register {
        // Positions are divided by it.
        Register::Committed(manifest) if !is_segment_size(manifest.wal_segment_bytes) => {
            let bytes = manifest.wal_segment_bytes;
            let source = codec::Error::Body(format!("no WAL segment has {bytes} bytes"));
            Err(Error::Record { key, source })
        }
        _ => Ok(register),
    }
}

/// Puts a register, and reads it back unless the put was confirmed. After [`Error::OutcomeUnknown`] the put may still
/// take effect, so the run's announcement must stay.
pub fn decide(
    repository: &Repository,
    stanza: &str,
    label: &str,
    run: RunId,
    register: &Register,
) -> Result<Decision> {
    let key = layout::snapshot(stanza, label, run)?;
    let bytes = seal_record(repository, &key, RecordKind::Register, register)?;
    if bytes.len() > LARGEST_REGISTER {
        return Err(Error::RegisterTooLarge {
            label: label.to_owned(),
            bytes: bytes.len(),
        });
    }
    let source = match repository.storage.put(&key, &bytes) {
        Ok(()) => return Ok(Decision::Decided),
        // Nothing was tried, so nothing can come of it later.
        Err(error) if error.kind == ErrorKind::Denied => return Err(storage_failed(error)),
        Err(error) => error,
    };
    match get_record(repository, &key, RecordKind::Register) {
        Ok(found) if is_own(&found, register) => Ok(Decision::Decided),
        Ok(found) => Ok(Decision::AlreadyDecided(found)),
        Err(error @ Error::Record { .. }) => Err(error),
        Err(_) => Err(Error::OutcomeUnknown { key, source }),
    }
}

fn is_own(found: &Register, put: &Register) -> bool {
    match (found, put) {
        (Register::Committed(found), Register::Committed(put)) => found.nonce == put.nonce,
        (Register::Fenced, Register::Fenced) => true,
        _ => false,
    }
}

fn last_stamp(label: &str) -> &str {
    label.rsplit_once('_').map_or(label, |(_, last)| last)
}
