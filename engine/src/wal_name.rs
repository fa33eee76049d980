//! Positions in the write-ahead log and the names of its files.
//!
//! Promises: what is printed is what PostgreSQL prints; parsing refuses anything that PostgreSQL would not write.
//! Knows segment sizes from 1 MiB to 1 GiB. Pure: no file is looked at.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is no LSN, timeline or WAL file name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {1}")]
pub struct BadName(pub String, pub &'static str);

/// A position in the write-ahead log, in bytes; printed as PostgreSQL does (`16/B374D848`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let half = |digits: &str| {
            let hex = !digits.is_empty()
                && digits.len() <= 8
                && digits.bytes().all(|b| b.is_ascii_hexdigit());
            hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| BadName(text.to_owned(), "a WAL position such as 16/B374D848"))
    }
}

/// A timeline of a cluster's history; printed as 8 upper-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0)
    }
}

impl Timeline {
    /// The timeline of the WAL file with this name: its first 8 digits.
    pub fn of_wal_file(name: &str) -> Result<Self, BadName> {
        let digits = name.get(..8).filter(|digits| is_upper_hex(digits, 8));
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let bad = || BadName(name.to_owned(), "the name of a WAL file");
        number.map(Timeline).ok_or_else(bad)
    }
}

/// One WAL segment: its timeline and its number (LSN divided by the segment size).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// The timeline it was written on.
    pub timeline: Timeline,
    /// Its number: the LSN of its first byte divided by the segment size.
    pub number: u64,
}

impl Segment {
    /// The segment that holds the byte at `lsn`.
    pub fn holding(timeline: Timeline, lsn: Lsn, segment_bytes: u32) -> Self {
        Segment {
            timeline,
            number: lsn.0 / u64::from(segment_bytes),
        }
    }

    /// The segment that holds the byte before `lsn`: what `pg_walfile_name` answers at a segment boundary.
    pub fn holding_end(timeline: Timeline, lsn: Lsn, segment_bytes: u32) -> Self {
        Segment {
            timeline,
            number: lsn.0.saturating_sub(1) / u64::from(segment_bytes),
        }
    }

    /// Its file name: 24 hex digits.
    pub fn file_name(self, segment_bytes: u32) -> String {
        let per_log = (1u64 << 32) / u64::from(segment_bytes);
        format!(
            "{}{:08X}{:08X}",
            self.timeline,
            self.number / per_log,
            self.number % per_log
        )
    }

    /// The segment with this file name.
    pub fn parse(name: &str, segment_bytes: u32) -> Result<Self, BadName> {
        let bad = || BadName(name.to_owned(), "the name of a WAL segment");
        let field = |from: usize| u64::from_str_radix(name.get(from..from + 8)?, 16).ok();
        if !is_upper_hex(name, 24) || !is_segment_size(segment_bytes) {
            return Err(bad());
        }
        let per_log = (1u64 << 32) / u64::from(segment_bytes);
        let (timeline, log, low) = field(0)
            .zip(field(8))
            .zip(field(16))
            .map(|((a, b), c)| (a, b, c))
            .ok_or_else(bad)?;
        if low >= per_log {
            return Err(bad());
        }
        let timeline = Timeline(u32::try_from(timeline).map_err(|_| bad())?);
        Ok(Segment {
            timeline,
            number: log * per_log + low,
        })
    }
}

/// What a file that PostgreSQL asks to be archived is, by its name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalFile {
    /// 24 hex digits: a whole segment.
    Segment,
    /// A segment that ends in a promotion (`….partial`).
    Partial,
    /// Where a base backup began and ended (`<24 hex>.<8 hex>.backup`).
    BackupHistory,
    /// Where a timeline branched off (`<8 hex>.history`).
    History,
}

impl WalFile {
    /// What the file with this name is.
    pub fn of(name: &str) -> Result<Self, BadName> {
        if is_upper_hex(name, 24) {
            return Ok(WalFile::Segment);
        }
        match name.rsplit_once('.') {
            Some((stem, "partial")) if is_upper_hex(stem, 24) => Ok(WalFile::Partial),
            Some((stem, "history")) if is_upper_hex(stem, 8) => Ok(WalFile::History),
            Some((stem, "backup")) => match stem.split_once('.') {
                Some((segment, offset)) if is_upper_hex(segment, 24) && is_upper_hex(offset, 8) => {
                    Ok(WalFile::BackupHistory)
                }
                _ => Err(BadName(name.to_owned(), "the name of a WAL file")),
            },
            _ => Err(BadName(name.to_owned(), "the name of a WAL file")),
        }
    }
}

/// Whether PostgreSQL has WAL segments of this size: a power of two from 1 MiB to 1 GiB.
pub fn is_segment_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)
}

fn is_upper_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    #[test]
    fn segment_names_are_postgresqls_for_every_segment_size() {
        for (segment_bytes, lsn, name) in [
            (16 * MIB, "0/3000028", "000000010000000000000003"),
            (16 * MIB, "1/FF000000", "0000000100000001000000FF"),
            (MIB, "1/FFF00000", "000000010000000100000FFF"),
            (1024 * MIB, "2/C0000000", "000000010000000200000003"),
        ] {
            let segment = Segment::holding(Timeline(1), lsn.parse().unwrap(), segment_bytes);
            assert_eq!(segment.file_name(segment_bytes), name);
            assert_eq!(Segment::parse(name, segment_bytes), Ok(segment));
        }
        assert!(
            Segment::parse("000000010000000000000100", 16 * MIB).is_err(),
            "256 segments of 16 MiB make a log"
        );
    }

    #[test]
    fn an_end_position_on_a_boundary_belongs_to_the_segment_before() {
        let end = Segment::holding_end(Timeline(1), Lsn(0x0400_0000), 16 * MIB);
        assert_eq!(end.file_name(16 * MIB), "000000010000000000000003");
    }

    #[test]
    fn file_kinds_are_told_by_name_alone() {
        for (name, kind) in [
            ("000000010000000000000003", Some(WalFile::Segment)),
            ("000000010000000000000003.partial", Some(WalFile::Partial)),
            ("00000002.history", Some(WalFile::History)),
            (
                "000000010000000000000003.00000028.backup",
                Some(WalFile::BackupHistory),
            ),
            ("00000001000000000000000g", None),
            ("../00000001000000000000", None),
            ("RECOVERYXLOG", None),
        ] {
            assert_eq!(WalFile::of(name).ok(), kind, "{name}");
        }
    }

    #[test]
    fn the_timeline_of_a_file_is_in_its_name() {
        let of = |name| Timeline::of_wal_file(name).ok();
        assert_eq!(of("0000000A0000000000000003"), Some(Timeline(10)));
        assert_eq!(of("00000002.history"), Some(Timeline(2)));
        assert_eq!((of("0000002"), of("0000000g")), (None, None));
    }

    #[test]
    fn positions_print_and_parse_as_postgresql_does() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_b374_d848)));
        assert_eq!(Lsn(0x16_0000_0028).to_string(), "16/28");
        assert!(
            "16".parse::<Lsn>().is_err()
                && "/1".parse::<Lsn>().is_err()
                && "1/123456789".parse::<Lsn>().is_err()
        );
    }
}
