//! The header of a WAL segment: whose it is and where it belongs.
//!
//! Layout (PostgreSQL's `XLogLongPageHeaderData`, little-endian): magic (2), info (2), timeline (4), page address (8),
//! remaining length (4), padding (4), system id (8), segment size (4), block size (4).

#![deny(clippy::indexing_slicing)]

use crate::wal_name::{Lsn, is_segment_size};

/// The page magic of each major version.
const MAGICS: [(u16, u32); 6] = [
    (0xD106, 13),
    (0xD10D, 14),
    (0xD110, 15),
    (0xD113, 16),
    (0xD116, 17),
    (0xD118, 18),
];
/// Set in `info` where the header is the long one, as on the first page of every segment.
const LONG_HEADER: u16 = 0x0002;

/// Bytes of a header.
pub const BYTES: usize = 40;

/// What the header of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// The major version that wrote it.
    pub version: u32,
    /// The cluster's system identifier.
    pub system_id: u64,
    /// The LSN of the segment's first byte.
    pub page_address: Lsn,
    /// The size of a segment, in bytes.
    pub segment_bytes: u32,
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Shorter than a header.
    #[error("it is shorter than a WAL header")]
    Short,
    /// No known version writes this.
    #[error("its magic {0:#06x} is of no supported version of PostgreSQL")]
    Magic(u16),
    /// Not the first page of a segment, or nonsense.
    #[error("it does not begin with the first page of a segment")]
    NotFirst,
}

/// Reads the header at the start of a segment.
pub fn parse(segment: &[u8]) -> Result<WalHeader, BadHeader> {
    let u16_at = |at: usize| {
        segment
            .get(at..at + 2)
            .and_then(|b| b.try_into().ok())
            .map(u16::from_le_bytes)
    };
    let u32_at = |at: usize| {
        segment
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
    };
    let u64_at = |at: usize| {
        segment
            .get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map(u64::from_le_bytes)
    };
    let magic = u16_at(0).ok_or(BadHeader::Short)?;
    let version = MAGICS
        .iter()
        .find(|(known, _)| *known == magic)
        .ok_or(BadHeader::Magic(magic))?
        .1;
    let info = u16_at(2).ok_or(BadHeader::Short)?;
    let segment_bytes = u32_at(32).ok_or(BadHeader::Short)?;
    if info & LONG_HEADER == 0 || !is_segment_size(segment_bytes) {
        return Err(BadHeader::NotFirst);
    }
    Ok(WalHeader {
        version,
        system_id: u64_at(24).ok_or(BadHeader::Short)?,
        page_address: Lsn(u64_at(8).ok_or(BadHeader::Short)?),
        segment_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_and_anything_else_refused() {
        let mut segment = vec![0u8; 40];
        segment.splice(0..4, [0x10, 0xD1, 0x02, 0x00]);
        segment.splice(8..16, 0x0300_0000u64.to_le_bytes());
        segment.splice(24..32, 77u64.to_le_bytes());
        segment.splice(32..36, (16u32 << 20).to_le_bytes());
        let header = WalHeader {
            version: 15,
            system_id: 77,
            page_address: Lsn(0x0300_0000),
            segment_bytes: 16 << 20,
        };
        assert_eq!(parse(&segment), Ok(header));
        for length in 0..36 {
            assert!(parse(segment.get(..length).unwrap()).is_err());
        }
        segment.splice(0..2, [0, 0]);
        assert_eq!(parse(&segment), Err(BadHeader::Magic(0)));
    }
}
