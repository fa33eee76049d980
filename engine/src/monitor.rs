//! How an action tells what it does: counters, totals, stages, problems.
//!
//! Promises: an action's summary is read from the same [`Tally`] that its monitor sees, so that a progress line and the
//! final figures cannot differ. Refuses: to print; a monitor in `cli/` does that.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted while an action runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Files of the cluster that are done.
    Files,
    /// Bytes of the cluster's files that are accounted for, read or not.
    FileBytes,
    /// Bytes read from the cluster.
    ReadBytes,
    /// Bytes whose chunks the repository already had.
    KnownBytes,
    /// Bytes whose chunks are new, before compression.
    NewBytes,
    /// Bytes put into the repository.
    StoredBytes,
    /// Bytes fetched from the repository.
    FetchedBytes,
    /// Bytes written to the cluster's files.
    WrittenBytes,
    /// Bytes of the target found to be right already.
    KeptBytes,
    /// Chunks looked up, or read to verify them.
    Chunks,
    /// Chunks that were new.
    NewChunks,
    /// Packs put into the repository, or read to verify them.
    Packs,
    /// Pages whose checksum was verified.
    Pages,
    /// Pages whose checksum does not match and that no WAL will repair.
    BadPages,
    /// Pages that were being written while they were read; recovery repairs them.
    TornPages,
    /// Files of the WAL archive that were read.
    WalFiles,
    /// Their bytes, as stored.
    WalBytes,
}

const COUNTERS: usize = Counter::WalBytes as usize + 1;

/// A part of an action, in the words that a person sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the repository's state, bringing the chunk index up to date.
    Prepare,
    /// Waiting for the server's start checkpoint.
    StartBackup,
    /// Reading, cutting, storing.
    Copy,
    /// Ending backup mode and waiting for the WAL it needs.
    StopBackup,
    /// Removing what does not belong, making directories and links.
    Clean,
    /// Fetching, verifying, writing.
    Restore,
    /// Making everything durable.
    Sync,
    /// Reading packs.
    VerifyPacks,
    /// Walking the trees of backups.
    VerifyTrees,
    /// Reading the WAL archive.
    VerifyWal,
}

/// Something that went wrong without ending the action.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The file, key or setting concerned.
    pub object: String,
    /// What is wrong with it, and what follows.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// Sees an action run. All methods may be called from any thread and must return soon.
pub trait Monitor: Send + Sync {
    /// A part of the action begins; `total_bytes` and `total_files` are what it expects to account for, 0 if unknown.
    fn stage(&self, stage: Stage, total_bytes: u64, total_files: u64);
    /// A counter grew. Called often; the figures themselves are in the [`Tally`].
    fn progress(&self, tally: &Tally);
    /// Something went wrong without ending the action.
    fn problem(&self, problem: &Problem);
    /// Something worth a line in the log.
    fn note(&self, text: &str);
}

/// Sees nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMonitor;

impl Monitor for NoMonitor {
    fn stage(&self, _stage: Stage, _total_bytes: u64, _total_files: u64) {}
    fn progress(&self, _tally: &Tally) {}
    fn problem(&self, _problem: &Problem) {}
    fn note(&self, _text: &str) {}
}

/// The counters of one action.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; COUNTERS]);

impl Tally {
    /// Adds to a counter.
    pub fn add(&self, counter: Counter, amount: u64) {
        self.0[counter as usize].fetch_add(amount, Ordering::Relaxed);
    }

    /// What a counter says now.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }
}
