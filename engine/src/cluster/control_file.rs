//! `global/pg_control`: what a cluster is, and where it stands.
//!
//! Promises: what is returned passed PostgreSQL's own checksum; the fields are those that `pg_controldata` prints.
//! Refuses: control files of versions whose layout is not known here, and values that no server writes. Layout:
//! `src/include/catalog/pg_control.h` of each major version, on little-endian machines with 8-byte alignment.

#![deny(clippy::indexing_slicing)]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use crate::cluster::{Error, Result};
use crate::wal_name::{Lsn, Timeline};

/// Length of the file, in bytes; all but its head is zero.
pub const FILE_BYTES: usize = 8192;
/// Path of the file in the data directory.
pub const PATH: &str = "global/pg_control";

/// How often a file that does not pass its checksum is read again: the server rewrites it in place.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);
/// No checkpoint lies here: the first segment of a cluster begins with a page header, and is never number 0.
const IMPOSSIBLE_LSN: u64 = 0xDEAD;

const SYSTEM_ID: usize = 0;
const CONTROL_VERSION: usize = 8;
const CATALOG_VERSION: usize = 12;
const STATE: usize = 16;
const CHECKPOINT: usize = 32;
const REDO: usize = 40;
const TIMELINE: usize = 48;
const WAL_LEVEL: usize = 172;
const PAGE_BYTES: usize = 216;
const SEGMENT_BLOCKS: usize = 220;
const WAL_SEGMENT_BYTES: usize = 228;
const CHECKSUM_VERSION: usize = 252;

/// Where the CRC-32C of all that is before it lies, by `pg_control_version`; the other fields did not move.
const CRC_OFFSETS: [(u32, usize); 3] = [(1300, 288), (1700, 288), (1800, 292)];

/// The final catalog version of each major version. Beta versions have others and are refused.
const CATALOG_VERSIONS: [(u32, u32); 6] = [
    (202_007_201, 13),
    (202_107_181, 14),
    (202_209_061, 15),
    (202_307_071, 16),
    (202_406_281, 17),
    (202_506_291, 18),
];

/// What the control file says of the server's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// `starting up`
    StartingUp,
    /// `shut down`
    ShutDown,
    /// `shut down in recovery`
    ShutDownInRecovery,
    /// `shutting down`
    ShuttingDown,
    /// `in crash recovery`
    InCrashRecovery,
    /// `in archive recovery`
    InArchiveRecovery,
    /// `in production`
    InProduction,
}

impl ClusterState {
    /// Whether the server was shut down cleanly.
    pub fn is_clean(self) -> bool {
        matches!(
            self,
            ClusterState::ShutDown | ClusterState::ShutDownInRecovery
        )
    }

    fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => ClusterState::StartingUp,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::InCrashRecovery,
            5 => ClusterState::InArchiveRecovery,
            6 => ClusterState::InProduction,
            _ => return None,
        })
    }
}

/// A control file that passed its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's own number, given by `initdb`.
    pub system_id: u64,
    /// `pg_control_version`: the layout of the file.
    pub control_version: u32,
    /// `catalog_version_no`: names the directories in tablespaces.
    pub catalog_version: u32,
    /// The major version of PostgreSQL, for example 15.
    pub version: u32,
    /// The server's state.
    pub state: ClusterState,
    /// Where the latest checkpoint record lies.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: Timeline,
    /// `minimal`, `replica` or `logical`.
    pub wal_level: &'static str,
    /// Size of a page, in bytes.
    pub page_bytes: u32,
    /// Pages in each segment file of a relation.
    pub segment_blocks: u32,
    /// Size of a WAL segment, in bytes.
    pub wal_segment_bytes: u32,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// The file, without the zeros at its end.
    pub bytes: Vec<u8>,
}

/// Reads the control file of a data directory, again and again while a server is just rewriting it.
pub fn read(pgdata: &Path) -> Result<ControlFile> {
    let path = pgdata.join(PATH);
    let mut tries = 1;
    loop {
        let mut bytes = Vec::with_capacity(FILE_BYTES);
        let file = File::open(&path).map_err(|e| Error::file("open", &path, e))?;
        let limit = u64::try_from(FILE_BYTES).unwrap_or(u64::MAX);
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::file("read", &path, e))?;
        match parse(&bytes, &path) {
            Err(Error::ControlFile { .. }) if tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// Reads the bytes of a control file; `path` is for errors only. Missing zeros at the end do no harm.
pub fn parse(bytes: &[u8], path: &Path) -> Result<ControlFile> {
    let damaged = |what| Error::ControlFile {
        path: path.to_owned(),
        what,
    };
    let number = |offset| u32_at(bytes, offset).ok_or_else(|| damaged("it is too short"));
    let position = |offset| u64_at(bytes, offset).ok_or_else(|| damaged("it is too short"));

    let (control_version, catalog_version) = (number(CONTROL_VERSION)?, number(CATALOG_VERSION)?);
    let unsupported = || Error::UnsupportedCluster {
        path: path.to_owned(),
        control_version,
        catalog_version,
    };
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(damaged("it is empty"));
    }
    let crc_offset = crc_offset(control_version).ok_or_else(unsupported)?;
    let head = bytes
        .get(..crc_offset)
        .ok_or_else(|| damaged("it is too short"))?;
    // A stored file may have lost zeros that belong to the CRC itself.
    let padded = padded(bytes);
    if u32_at(&padded, crc_offset) != Some(crc32c::crc32c(head)) {
        return Err(damaged("its checksum does not match"));
    }
    let version = CATALOG_VERSIONS
        .iter()
        .find(|(catalog, _)| *catalog == catalog_version);
    let version = version.ok_or_else(unsupported)?.1;

    let control = ControlFile {
        system_id: position(SYSTEM_ID)?,
        control_version,
        catalog_version,
        version,
        state: ClusterState::from_code(number(STATE)?)
            .ok_or_else(|| damaged("its state is unknown"))?,
        checkpoint: Lsn(position(CHECKPOINT)?),
        redo: Lsn(position(REDO)?),
        timeline: Timeline(number(TIMELINE)?),
        wal_level: wal_level(number(WAL_LEVEL)?)
            .ok_or_else(|| damaged("its wal_level is unknown"))?,
        page_bytes: number(PAGE_BYTES)?,
        segment_blocks: number(SEGMENT_BLOCKS)?,
        wal_segment_bytes: number(WAL_SEGMENT_BYTES)?,
        checksums: number(CHECKSUM_VERSION)? != 0,
        bytes: without_zero_tail(bytes).to_vec(),
    };
    check_sizes(&control).map_err(damaged)?;
    Ok(control)
}

/// The whole control file with a checkpoint position that cannot be: a server that finds it starts only with a
/// `backup_label`, which says where to begin instead.
pub fn poisoned(control: &ControlFile) -> Vec<u8> {
    let mut bytes = padded(&control.bytes);
    put(&mut bytes, CHECKPOINT, &IMPOSSIBLE_LSN.to_le_bytes());
    if let Some(offset) = crc_offset(control.control_version) {
        let crc = bytes.get(..offset).map_or(0, crc32c::crc32c);
        put(&mut bytes, offset, &crc.to_le_bytes());
    }
    bytes
}

/// The whole control file, from its bytes without the zeros at its end.
pub fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut whole = bytes.to_vec();
    whole.resize(FILE_BYTES.max(bytes.len()), 0);
    whole
}

fn check_sizes(control: &ControlFile) -> std::result::Result<(), &'static str> {
    let power_between =
        |value: u32, low: u32, high: u32| value.is_power_of_two() && value >= low && value <= high;
    if !power_between(control.page_bytes, 1 << 10, 32 << 10) {
        return Err("its page size is impossible");
    }
    if !power_between(control.wal_segment_bytes, 1 << 20, 1 << 30) {
        return Err("its WAL segment size is impossible");
    }
    if control.segment_blocks == 0 {
        return Err("its relation segment size is impossible");
    }
    Ok(())
}

fn wal_level(code: u32) -> Option<&'static str> {
    ["minimal", "replica", "logical"]
        .get(usize::try_from(code).ok()?)
        .copied()
}

fn crc_offset(control_version: u32) -> Option<usize> {
    CRC_OFFSETS
        .iter()
        .find(|(version, _)| *version == control_version)
        .map(|(_, offset)| *offset)
}

fn without_zero_tail(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    bytes.get(..end).unwrap_or(bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|field| u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|field| u64::from_le_bytes(*field))
}

fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(offset..offset + field.len()) {
        place.copy_from_slice(field);
    }
}
