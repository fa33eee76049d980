//! Benchmarks, and the data that they work on.
//!
//! `compare.py` measures whole commands beside other tools; its first lines say how. The engine's parts are measured by
//!
//! ```text
//! source tests/setup.sh && setup && cargo bench -p pgcairn-benches [-- NAME]
//! ```
//!
//! `setup` names RocksDB's compiled library in the environment; without it Cargo compiles RocksDB again for the bench
//! profile, which takes twenty minutes on two cores. Apart from that the bench profile is the release profile.
//!
//! Promises: the same data on every machine and at every run. It is like a cluster's only as far as compressors and
//! hashes can tell: compare two states of the engine by it, not the engine with the world.

use pgcairn_engine::cluster::page;

/// Length of a page, in bytes.
pub const PAGE_BYTES: usize = 8192;
/// Rows of one heap page, and what a row takes on it: those of pgbench's largest table.
const ROWS: usize = 61;
const ROW_BYTES: usize = 128;
const HEADER_BYTES: usize = 24;

/// A stream of numbers that look random (splitmix64).
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from(mixed >> 33).unwrap_or(0) % bound
    }
}

/// Heap pages of a table like pgbench's accounts, with right checksums.
pub fn heap_pages(pages: usize) -> Vec<u8> {
    let mut numbers = Numbers(1);
    let mut bytes = vec![0; pages * PAGE_BYTES];
    for (block, page) in bytes.chunks_exact_mut(PAGE_BYTES).enumerate() {
        fill_page(page, block, &mut numbers);
        let sum = page::checksum(page, u32::try_from(block).unwrap_or(0));
        put(page, 8, &sum.to_le_bytes());
    }
    bytes
}

fn fill_page(page: &mut [u8], block: usize, numbers: &mut Numbers) {
    let low = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    put(page, 4, &low(0x0100_0000 + block * 0x2100));
    let (lower, upper) = (HEADER_BYTES + 4 * ROWS, PAGE_BYTES - ROWS * ROW_BYTES);
    put(page, 12, &low(lower | upper << 16));
    put(page, 16, &low(PAGE_BYTES | (PAGE_BYTES | 4) << 16));
    for row in 0..ROWS {
        let at = PAGE_BYTES - (row + 1) * ROW_BYTES;
        put(page, HEADER_BYTES + 4 * row, &low(at | 1 << 15 | 121 << 17));
        put(page, at, &low(700 + numbers.below(3)));
        put(page, at + 12, &low((row + 1) << 16 | block));
        put(page, at + 18, &[4, 0, 2, 9, 24, 0]);
        let account = block * ROWS + row + 1;
        put(page, at + 24, &low(account));
        put(page, at + 28, &low(account / 100_000 + 1));
        put(page, at + 32, &low(numbers.below(10_000)));
        page.iter_mut()
            .skip(at + 36)
            .take(85)
            .for_each(|byte| *byte = b' ');
    }
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in page.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Text that compresses about as English does: words of the format's document, common ones more often.
pub fn text(bytes: usize) -> Vec<u8> {
    let words: Vec<&str> = include_str!("../engine/docs/format.md")
        .split_whitespace()
        .collect();
    let mut numbers = Numbers(2);
    let mut text = Vec::with_capacity(bytes + 80);
    while text.len() < bytes {
        // The product of two makes small places likelier.
        let bound = 1 + numbers.below(words.len());
        let word = words.get(numbers.below(bound)).copied().unwrap_or_default();
        text.extend_from_slice(word.as_bytes());
        text.push(if numbers.below(12) == 0 { b'\n' } else { b' ' });
    }
    text.truncate(bytes);
    text
}
