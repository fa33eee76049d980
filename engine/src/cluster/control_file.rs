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
const NEXT_XID: usize = 64;
const CHECKPOINT_END: usize = 128;
const MIN_RECOVERY: usize = 136;
const MIN_RECOVERY_TIMELINE: usize = 144;
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
    /// How far replay must come before what is on disk is consistent; zero unless the cluster is a standby or recovers.
    pub min_recovery: Lsn,
    /// The timeline of that position.
    pub min_recovery_timeline: Timeline,
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

impl ControlFile {
    /// Whether both files tell of the same checkpoint, as a primary's and its standby's do. The next transaction is not
    /// compared: replay moves it on.
    pub fn has_same_checkpoint(&self, other: &ControlFile) -> bool {
        let (own, others) = (padded(&self.bytes), padded(&other.bytes));
        let parts = [CHECKPOINT..NEXT_XID, NEXT_XID + 8..CHECKPOINT_END];
        parts
            .into_iter()
            .all(|part| own.get(part.clone()) == others.get(part))
    }
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
    if bytes.iter().all(|byte| *byte == 0) {
        return Err(damaged("it is empty"));
    }
    let whole = padded(bytes);
    let number = |offset| u32_at(&whole, offset).ok_or_else(|| damaged("it is too short"));
    let position = |offset| u64_at(&whole, offset).ok_or_else(|| damaged("it is too short"));

    let (control_version, catalog_version) = (number(CONTROL_VERSION)?, number(CATALOG_VERSION)?);
    let unsupported = || Error::UnsupportedCluster {
        path: path.to_owned(),
        control_version,
        catalog_version,
    };
    let crc_offset = crc_offset(control_version).ok_or_else(unsupported)?;
    let crc = whole.get(..crc_offset).map(crc32c::crc32c);
    if crc != u32_at(&whole, crc_offset) {
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
        min_recovery: Lsn(position(MIN_RECOVERY)?),
        min_recovery_timeline: Timeline(number(MIN_RECOVERY_TIMELINE)?),
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

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    /// What `pg_control_system()`, `pg_control_checkpoint()` and `pg_control_init()` of each server said.
    struct Expected {
        bytes: &'static [u8],
        control_version: u32,
        catalog_version: u32,
        version: u32,
        system_id: u64,
        checkpoint: &'static str,
        redo: &'static str,
        wal_segment_mib: u32,
    }

    macro_rules! expected {
        ($version:literal, $control:literal, $catalog:literal, $id:literal, $checkpoint:literal, $redo:literal, $mib:literal) => {
            Expected {
                bytes: include_bytes!(concat!("testdata/pg_control.", $version)),
                control_version: $control,
                catalog_version: $catalog,
                version: $version,
                system_id: $id,
                checkpoint: $checkpoint,
                redo: $redo,
                wal_segment_mib: $mib,
            }
        };
    }

    const EXPECTED: [Expected; 6] = [
        expected!(
            13,
            1300,
            202_007_201,
            7_711_859_011_352_231_490,
            "0/1A22638",
            "0/1A22600",
            16
        ),
        expected!(
            14,
            1300,
            202_107_181,
            7_711_859_014_063_967_824,
            "0/C5FDF0",
            "0/C5FDB8",
            1
        ),
        expected!(
            15,
            1300,
            202_209_061,
            7_711_859_017_080_581_726,
            "0/196EA08",
            "0/196E9D0",
            16
        ),
        expected!(
            16,
            1300,
            202_307_071,
            7_711_859_019_648_204_396,
            "0/193B2D8",
            "0/193B2A0",
            16
        ),
        expected!(
            17,
            1700,
            202_406_281,
            7_711_859_022_011_453_050,
            "0/4936820",
            "0/49367C8",
            64
        ),
        expected!(
            18,
            1800,
            202_506_291,
            7_711_859_024_548_204_168,
            "0/1965828",
            "0/19657D0",
            16
        ),
    ];

    fn parsed(bytes: &[u8]) -> Result<ControlFile> {
        parse(bytes, Path::new("pg_control"))
    }

    #[test]
    fn every_supported_version_is_read_as_its_server_reads_it() {
        for expected in &EXPECTED {
            for bytes in [expected.bytes.to_vec(), padded(expected.bytes)] {
                let control = parsed(&bytes).unwrap();
                let wanted = ControlFile {
                    system_id: expected.system_id,
                    control_version: expected.control_version,
                    catalog_version: expected.catalog_version,
                    version: expected.version,
                    state: ClusterState::InProduction,
                    checkpoint: expected.checkpoint.parse().unwrap(),
                    redo: expected.redo.parse().unwrap(),
                    timeline: Timeline(1),
                    min_recovery: Lsn(0),
                    min_recovery_timeline: Timeline(0),
                    wal_level: "replica",
                    page_bytes: 8192,
                    segment_blocks: 131_072,
                    wal_segment_bytes: expected.wal_segment_mib << 20,
                    checksums: true,
                    bytes: expected.bytes.to_vec(),
                };
                assert_eq!(control, wanted);
            }
        }
        let versions: Vec<u32> = EXPECTED.iter().map(|expected| expected.version).collect();
        assert_eq!(versions, crate::cluster::SUPPORTED.collect::<Vec<u32>>());
    }

    #[test]
    fn a_checkpoint_is_the_same_whatever_replay_did_since() {
        let bytes = EXPECTED[2].bytes;
        let primary = parsed(bytes).unwrap();
        let with = |offset: usize, value: u64| {
            let mut changed = padded(bytes);
            put(&mut changed, offset, &value.to_le_bytes());
            let crc = crc32c::crc32c(&changed[..288]);
            put(&mut changed, 288, &crc.to_le_bytes());
            parsed(&changed).unwrap()
        };
        let moved_on = with(NEXT_XID, 99_999);
        assert!(primary.has_same_checkpoint(&moved_on));
        let recovering = with(MIN_RECOVERY, 0x0300_0000);
        assert!(primary.has_same_checkpoint(&recovering));
        assert_eq!(recovering.min_recovery, Lsn(0x0300_0000));
        let another = with(NEXT_XID + 40, 1_700_000_000);
        assert!(!primary.has_same_checkpoint(&another), "of another time");
    }

    #[test]
    fn a_poisoned_control_file_is_valid_but_for_its_checkpoint() {
        for expected in &EXPECTED {
            let control = parsed(expected.bytes).unwrap();
            let bytes = poisoned(&control);
            assert_eq!(bytes.len(), FILE_BYTES);
            let wanted = ControlFile {
                checkpoint: Lsn(IMPOSSIBLE_LSN),
                bytes: without_zero_tail(&bytes).to_vec(),
                ..control
            };
            assert_eq!(parsed(&bytes).unwrap(), wanted);
        }
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        for expected in &EXPECTED {
            for at in 0..expected.bytes.len() {
                let mut changed = expected.bytes.to_vec();
                changed[at] ^= 0x10;
                assert!(
                    parsed(&changed).is_err(),
                    "byte {at} of version {}",
                    expected.version
                );
                assert!(
                    parsed(&expected.bytes[..at]).is_err(),
                    "{at} bytes of version {}",
                    expected.version
                );
            }
        }
        assert!(matches!(
            parsed(&[0; FILE_BYTES]),
            Err(Error::ControlFile {
                what: "it is empty",
                ..
            })
        ));
    }

    #[test]
    fn unknown_versions_are_refused_by_number() {
        let mut newer = EXPECTED[5].bytes.to_vec();
        put(&mut newer, CONTROL_VERSION, &1900_u32.to_le_bytes());
        assert!(matches!(
            parsed(&newer),
            Err(Error::UnsupportedCluster {
                control_version: 1900,
                ..
            })
        ));

        let mut beta = padded(EXPECTED[5].bytes);
        put(&mut beta, CATALOG_VERSION, &202_505_071_u32.to_le_bytes());
        let crc = crc32c::crc32c(&beta[..292]);
        put(&mut beta, 292, &crc.to_le_bytes());
        assert!(matches!(
            parsed(&beta),
            Err(Error::UnsupportedCluster {
                catalog_version: 202_505_071,
                ..
            })
        ));
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = read(dir.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("open {}/global/pg_control", dir.path().display())
        );
    }
}
