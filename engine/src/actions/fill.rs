//! Filling restored files with their bytes: what is right already is kept, the rest is fetched, verified and written.
//!
//! Promises: no byte is written that was not checked against its id; local bytes are kept only if they hash to it; a
//! file's time stamp is set when its last piece is done. Memory is one job's fetch for each thread.

use std::fs::{File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::actions::copy::is_zero;
use crate::actions::error::{Error, Result};
use crate::actions::fetch::{Fetcher, Locator, Wanted};
use crate::actions::pipeline::Inlet;
use crate::ids::{BlobKind, Extent, Namer, Parts};
use crate::monitor::{Counter, Monitor, Tally};
use crate::repository::Repository;

/// A file being restored.
pub(super) struct Target {
    /// Open for reading and writing, of its final length.
    pub(super) file: File,
    /// Where it is, for messages.
    pub(super) path: PathBuf,
    /// Bytes it had before: only these can be right already; 0 for a new file.
    pub(super) old_bytes: u64,
    /// The time stamp it gets.
    pub(super) modified_ns: i64,
    /// Pieces that are not done.
    pub(super) pieces: AtomicU64,
}

/// An extent of a file that is to be there.
pub(super) struct Slot {
    pub(super) target: Arc<Target>,
    pub(super) offset: u64,
    pub(super) extent: Extent,
}

/// A unit of work: extents of one region, or of several small files. Each target in it has one piece.
#[derive(Default)]
pub(super) struct Job {
    pub(super) slots: Vec<Slot>,
    /// Small contents that are in the tree itself.
    pub(super) inline: Vec<(Arc<Target>, Vec<u8>)>,
    /// The targets of which this job does a piece.
    pub(super) targets: Vec<Arc<Target>>,
}

/// What all filling threads share.
pub(super) struct Filler<'a> {
    pub(super) repository: &'a Repository,
    pub(super) locator: &'a Locator<'a>,
    pub(super) tally: &'a Tally,
    pub(super) monitor: &'a dyn Monitor,
}

impl Filler<'_> {
    /// What each thread does.
    pub(super) fn work(&self, jobs: &Inlet<Job>) -> Result<()> {
        let mut fetcher = Fetcher::new(self.repository, self.locator, self.tally)?;
        let namer = Namer::plain();
        let mut local = Vec::new();
        while let Some(job) = jobs.next() {
            self.run(job, &mut fetcher, &namer, &mut local)?;
            self.monitor.progress(self.tally);
        }
        Ok(())
    }

    fn run(
        &self,
        job: Job,
        fetcher: &mut Fetcher<'_>,
        namer: &Namer,
        local: &mut Vec<u8>,
    ) -> Result<()> {
        for (target, bytes) in &job.inline {
            self.inline(target, bytes, local)?;
        }
        let mut wanted = Vec::with_capacity(job.slots.len());
        for slot in job.slots {
            if self.is_right(&slot, namer, local)? {
                self.tally
                    .add(Counter::KeptBytes, u64::from(slot.extent.length));
                self.tally
                    .add(Counter::FileBytes, u64::from(slot.extent.length));
            } else if slot.extent.parts == Parts::Zero {
                local.clear();
                local.resize(slot.extent.length as usize, 0);
                self.write(&slot, local)?;
            } else {
                wanted.push(Wanted {
                    id: slot.extent.id,
                    purpose: slot,
                });
            }
        }
        let name = |slot: &Slot| slot.target.path.display().to_string();
        fetcher.fetch(wanted, name, |slot, bytes| self.write(slot, bytes))?;
        for target in job.targets {
            if target.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
                finish(&target)?;
                self.tally.add(Counter::Files, 1);
            }
        }
        Ok(())
    }

    fn inline(&self, target: &Target, bytes: &[u8], local: &mut Vec<u8>) -> Result<()> {
        local.resize(bytes.len(), 0);
        let same = target.old_bytes >= bytes.len() as u64
            && target.file.read_exact_at(local, 0).is_ok()
            && local == bytes;
        let counter = if same {
            Counter::KeptBytes
        } else {
            Counter::WrittenBytes
        };
        if !same {
            target
                .file
                .write_all_at(bytes, 0)
                .map_err(|source| failed(target, source))?;
        }
        self.tally.add(counter, bytes.len() as u64);
        self.tally.add(Counter::FileBytes, bytes.len() as u64);
        Ok(())
    }

    /// Whether the file has the extent's bytes already. Beyond its old length a file reads as zeros, which is what a
    /// zero extent wants.
    fn is_right(&self, slot: &Slot, namer: &Namer, local: &mut Vec<u8>) -> Result<bool> {
        let zero = slot.extent.parts == Parts::Zero;
        if slot.offset >= slot.target.old_bytes {
            return Ok(zero);
        }
        local.resize(slot.extent.length as usize, 0);
        let read = slot.target.file.read_exact_at(local, slot.offset);
        read.map_err(|source| Error::ReadFile {
            path: slot.target.path.clone(),
            source,
        })?;
        self.tally.add(Counter::ReadBytes, local.len() as u64);
        if zero {
            return Ok(is_zero(local));
        }
        Ok(namer.name(BlobKind::Data, local) == slot.extent.id)
    }

    fn write(&self, slot: &Slot, bytes: &[u8]) -> Result<()> {
        slot.target
            .file
            .write_all_at(bytes, slot.offset)
            .map_err(|source| failed(&slot.target, source))?;
        self.tally.add(Counter::WrittenBytes, bytes.len() as u64);
        self.tally.add(Counter::FileBytes, bytes.len() as u64);
        Ok(())
    }
}

fn failed(target: &Target, source: std::io::Error) -> Error {
    Error::WriteFile {
        path: target.path.clone(),
        source,
    }
}

/// Gives a file that is whole its time stamp.
fn finish(target: &Target) -> Result<()> {
    let since = Duration::from_nanos(target.modified_ns.unsigned_abs());
    let modified = if target.modified_ns < 0 {
        SystemTime::UNIX_EPOCH - since
    } else {
        SystemTime::UNIX_EPOCH + since
    };
    target
        .file
        .set_times(FileTimes::new().set_modified(modified))
        .map_err(|source| failed(target, source))
}
