//! Page checksums while a cluster is read: good, torn by a concurrent write, or bad.
//!
//! Promises: a page that fails is read again after a pause; if its bytes changed it was being written, and recovery will
//! replay it; if they did not, its LSN decides once the backup's end is known: between start and end, it was written
//! during the backup (torn, accepted); before the start, or beyond what the server had written at the end, it is bad.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::actions::pipeline::pause;
use crate::cluster::page::{self, Verdict};
use crate::wal_name::Lsn;

/// How long a page that fails is left alone before it is read again.
const RE_READ_PAUSE: Duration = Duration::from_millis(10);
/// Pages of one piece that are read again one by one; beyond it the file is damaged, not busy.
const RE_READS: usize = 256;

/// A page whose checksum did not match, twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SuspectPage {
    /// Its block number in the relation.
    pub(super) block: u32,
    /// The LSN in its header.
    pub(super) lsn: Lsn,
    /// Its bytes were changing when it was read again.
    pub(super) changing: bool,
}

/// What was decided of a suspect page; kept in the backup's page list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageVerdict {
    /// The file, relative to the data directory.
    pub path: Vec<u8>,
    /// The block number in the relation.
    pub block: u32,
    /// Written while it was read; recovery repairs it.
    pub torn: bool,
}

/// Whether a page is repaired by the WAL that the backup needs.
pub(super) fn is_torn(page: SuspectPage, start: Lsn, end: Lsn) -> bool {
    page.changing || (start..=end).contains(&page.lsn)
}

/// Checks the pages in `bytes`, which were read from `file` at `offset`; pages that were being written and are whole
/// when read again are replaced in `bytes`.
pub(super) fn check(
    bytes: &mut [u8],
    page_bytes: u32,
    first_block: u32,
    file: &Path,
    offset: u64,
) -> Vec<SuspectPage> {
    let size = page_bytes as usize;
    let mut suspects = Vec::new();
    let mut open = None;
    let blocks = first_block..;
    for (at, (block, page)) in blocks.zip(bytes.chunks_exact_mut(size)).enumerate() {
        let Verdict::Bad { mut lsn } = page::check(page, block) else { continue };
        let mut changing = false;
        if suspects.len() < RE_READS {
            let again = open.get_or_insert_with(|| File::open(file).ok());
            if let Some(again) = again.as_ref().and_then(|file| read_again(file, offset + (at * size) as u64, size)) {
                changing = again != *page;
                if changing {
                    page.copy_from_slice(&again);
                }
                match page::check(page, block) {
                    Verdict::Bad { lsn: now } => lsn = now,
                    Verdict::Good | Verdict::New => continue,
                }
            }
        }
        suspects.push(SuspectPage { block, lsn, changing });
    }
    suspects
}

fn read_again(file: &File, offset: u64, size: usize) -> Option<Vec<u8>> {
    pause(RE_READ_PAUSE);
    let mut page = vec![0; size];
    file.read_exact_at(&mut page, offset).ok()?;
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_torn_only_if_written_during_the_backup() {
        let page = |lsn, changing| SuspectPage { block: 0, lsn: Lsn(lsn), changing };
        let (start, end) = (Lsn(100), Lsn(200));
        assert!(is_torn(page(150, false), start, end));
        assert!(is_torn(page(50, true), start, end));
        assert!(!is_torn(page(50, false), start, end), "older than the backup: nothing will repair it");
        assert!(!is_torn(page(999, false), start, end), "beyond what was written: the header itself is bad");
    }
}
