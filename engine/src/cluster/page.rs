//! Pages of relations: their checksum.
//!
//! Promises: the verdict is the server's own (`src/include/storage/checksum_impl.h`: 32 parallel FNV-1a sums over the
//! page with `pd_checksum` taken as zero, folded, mixed with the block number). No page is copied. Does not judge
//! anything else in a page.

#![deny(clippy::indexing_slicing)]

use crate::wal_name::Lsn;

/// Sums that are computed side by side.
const LANES: usize = 32;
const ROW_BYTES: usize = LANES * 4;
const FNV_PRIME: u32 = 16_777_619;

/// Where each sum begins: `checksumBaseOffsets`.
const BASES: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What a page is, going by its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The checksum matches.
    Good,
    /// All bytes are zero: allocated and never written.
    New,
    /// Neither.
    Bad {
        /// What the page says of the last WAL record that changed it.
        lsn: Lsn,
    },
}

/// Judges a page that was read from `block` of its relation (counted through all segments). A piece that is not a
/// whole page is `Bad`.
pub fn check(page: &[u8], block: u32) -> Verdict {
    let Some(header) = page.first_chunk::<16>() else {
        return Verdict::Bad { lsn: Lsn(0) };
    };
    let [x0, x1, x2, x3, r0, r1, r2, r3, c0, c1, _, _, _, _, u0, u1] = *header;
    let lsn = Lsn(u64::from(u32::from_le_bytes([x0, x1, x2, x3])) << 32
        | u64::from(u32::from_le_bytes([r0, r1, r2, r3])));
    let upper = u16::from_le_bytes([u0, u1]);
    if upper == 0 {
        return if page.iter().all(|byte| *byte == 0) {
            Verdict::New
        } else {
            Verdict::Bad { lsn }
        };
    }
    if page.len().is_multiple_of(ROW_BYTES) && checksum(page, block) == u16::from_le_bytes([c0, c1])
    {
        Verdict::Good
    } else {
        Verdict::Bad { lsn }
    }
}

/// The checksum that a page should carry; never zero. A rest of less than 128 bytes is left out.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    let mut sums = BASES;
    if let Some((first, others)) = rows.split_first() {
        let mut words = words(first);
        // The third word holds pd_checksum (low half) and pd_flags.
        let [_, _, third, ..] = &mut words;
        *third &= 0xFFFF_0000;
        mix(&mut sums, &words);
        for row in others {
            mix(&mut sums, &self::words(row));
        }
    }
    mix(&mut sums, &[0; LANES]);
    mix(&mut sums, &[0; LANES]);
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    u16::try_from(folded % 65_535 + 1).unwrap_or(u16::MAX)
}

#[inline]
fn words(row: &[u8; ROW_BYTES]) -> [u32; LANES] {
    let (quads, _) = row.as_chunks::<4>();
    let mut words = [0; LANES];
    for (word, quad) in words.iter_mut().zip(quads) {
        *word = u32::from_le_bytes(*quad);
    }
    words
}

#[inline]
fn mix(sums: &mut [u32; LANES], words: &[u32; LANES]) {
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ *word;
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Pages that PostgreSQL 15 and 18 wrote.
    const HEAP: (&[u8; 8192], u32) = (include_bytes!("testdata/page.heap.block100"), 100);
    const VISIBILITY: (&[u8; 8192], u32) = (include_bytes!("testdata/page.visibility.block0"), 0);
    const INDEX: (&[u8; 8192], u32) = (include_bytes!("testdata/page.index.block1"), 1);

    #[test]
    fn pages_of_a_server_are_good_in_their_place_only() {
        for (page, block) in [HEAP, VISIBILITY, INDEX] {
            assert_eq!(check(page, block), Verdict::Good);
            assert!(matches!(check(page, block + 1), Verdict::Bad { .. }));
        }
    }

    #[test]
    fn every_flipped_byte_makes_a_page_bad() {
        let (page, block) = HEAP;
        for at in 0..page.len() {
            let mut damaged = *page;
            damaged[at] ^= 0x01;
            assert!(
                matches!(check(&damaged, block), Verdict::Bad { .. }),
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_page_is_new_only_if_all_of_it_is_zero() {
        let mut page = [0; 8192];
        assert_eq!(check(&page, 7), Verdict::New);
        page[8191] = 1;
        assert_eq!(check(&page, 7), Verdict::Bad { lsn: Lsn(0) });
    }

    #[test]
    fn a_bad_page_tells_its_lsn() {
        let mut page = *INDEX.0;
        page[..8].copy_from_slice(&[0x02, 0, 0, 0, 0x28, 0, 0, 0x0A]);
        assert_eq!(
            check(&page, INDEX.1),
            Verdict::Bad {
                lsn: Lsn(0x2_0A00_0028)
            }
        );
    }

    #[test]
    fn pieces_of_pages_are_bad() {
        let (page, block) = HEAP;
        for length in [0, 15, 16, 128, 1000, 4096, 8191] {
            assert!(
                matches!(check(&page[..length], block), Verdict::Bad { .. }),
                "{length} bytes"
            );
        }
    }
}
