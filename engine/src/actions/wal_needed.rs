//! Proof that the WAL which a backup needs is in the repository.
//!
//! Promises: every segment from the backup's start to its stop, on its timeline, is present and is WAL of the right
//! length before the backup is committed; waiting ends after the archive timeout with the first segment that is missing.

use std::time::{Duration, Instant};

use crate::actions::error::{Error, Result};
use crate::actions::pipeline::pause;
use crate::cluster::server::Server;
use crate::repository::{Repository, wal};
use crate::wal_name::{Segment, Timeline};

/// How often the repository is asked for a segment that has not arrived: an incremental of an idle cluster takes a few
/// tenths of a second in all.
const POLL: Duration = Duration::from_millis(10);
/// After so many quick polls, ask less often: on an object store each is a request.
const QUICK_POLLS: u32 = 100;
const SLOW_POLL: Duration = Duration::from_millis(250);

/// Where WAL is expected.
pub(super) struct Archive<'a> {
    pub(super) repository: &'a Repository,
    pub(super) stanza: &'a str,
    pub(super) epoch: String,
    pub(super) segment_bytes: u32,
    pub(super) timeout: Duration,
}

impl Archive<'_> {
    fn has(&self, segment: Segment) -> Result<bool> {
        let name = segment.file_name(self.segment_bytes);
        let present = wal::present(self.repository, self.stanza, &self.epoch, &name).map_err(Error::Repository)?;
        Ok(present.is_some())
    }

    /// Waits until one of `segments` is there.
    fn wait_for_any(&self, segments: &[Segment], timeout: Duration) -> Result<bool> {
        let begun = Instant::now();
        let mut polls = 0;
        loop {
            for segment in segments {
                if self.has(*segment)? {
                    return Ok(true);
                }
            }
            if begun.elapsed() >= timeout {
                return Ok(false);
            }
            pause(if polls < QUICK_POLLS { POLL } else { SLOW_POLL });
            polls += 1;
        }
    }

    /// Waits for all segments from `first` to `last`; answers their number.
    pub(super) fn wait_for(&self, first: Segment, last: Segment) -> Result<u64> {
        for number in first.number..=last.number {
            let segment = Segment { timeline: first.timeline, number };
            if !self.wait_for_any(&[segment], self.timeout)? {
                let seconds = self.timeout.as_secs();
                return Err(Error::ArchiveTimeout { segment: segment.file_name(self.segment_bytes), seconds });
            }
        }
        Ok(last.number + 1 - first.number)
    }

    /// Shows, before anything is copied, that the server's archiving reaches this repository: the segment before the
    /// backup's first one arrives (starting a backup switched it out), or, where that was archived elsewhere or long
    /// ago, the one that a switch made now completes.
    pub(super) fn prove_archiving(&self, server: &mut dyn Server, start: Segment) -> Result<()> {
        let Some(before) = start.number.checked_sub(1) else { return Ok(()) };
        let before = Segment { timeline: start.timeline, number: before };
        let grace = self.timeout.min(Duration::from_millis(1500));
        if self.wait_for_any(&[before], grace)? {
            return Ok(());
        }
        server.restore_point("pgcairn archive check").map_err(Error::Cluster)?;
        let switched = server.switch_wal().map_err(Error::Cluster)?;
        let segment = Segment::holding_end(Timeline(start.timeline.0), switched, self.segment_bytes);
        if self.wait_for_any(&[before, segment], self.timeout)? {
            return Ok(());
        }
        let seconds = self.timeout.as_secs();
        Err(Error::ArchiveTimeout { segment: segment.file_name(self.segment_bytes), seconds })
    }
}
