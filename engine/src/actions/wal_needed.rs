//! Proof that the WAL which a backup needs is in the repository.
//!
//! Promises: before a backup is committed, every segment from its start to its stop is present, has the length of a
//! segment, and begins as this cluster's WAL at its place does; waiting ends after the archive timeout with the first
//! segment that is missing. Of a segment, a footer and a first block are read; its pieces are verified by whoever
//! decodes them.

use std::time::{Duration, Instant};

use crate::actions::archive::key_of;
use crate::actions::error::{Error, Result};
use crate::actions::pipeline::{map, pause};
use crate::cluster::server::Server;
use crate::cluster::wal_header::{self, WalHeader};
use crate::pack::reader::ReadError;
use crate::pack::wal as wal_object;
use crate::repository::stanza::Epoch;
use crate::repository::{Repository, wal};
use crate::wal_name::{Lsn, Segment};

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
    pub(super) epoch: &'a Epoch,
    pub(super) segment_bytes: u32,
    pub(super) threads: usize,
    pub(super) timeout: Duration,
}

impl Archive<'_> {
    fn present(&self, name: &str) -> Result<Option<u64>> {
        wal::present(self.repository, self.stanza, &self.epoch.name(), name)
            .map_err(Error::Repository)
    }

    /// Checks that a segment that is there is the one that its name says.
    fn prove(&self, segment: Segment) -> Result<()> {
        let name = segment.file_name(self.segment_bytes);
        let key = key_of(self.stanza, &self.epoch.name(), &name)?;
        let unfit = |found: String| Error::WalMisplaced {
            key: key.clone(),
            found,
        };
        let stored = self.present(&name)?;
        let stored = stored.ok_or_else(|| self.timed_out(segment))?;
        let mut fetch = |offset: u64, buffer: &mut [u8]| {
            let epoch = self.epoch.name();
            wal::get_range(self.repository, self.stanza, &epoch, &name, offset, buffer)
        };
        let seen =
            wal_object::glance(&mut fetch, stored, wal_header::BYTES).map_err(
                |error| match error {
                    ReadError::Fetch(error) => Error::Repository(error),
                    ReadError::Pack(source) => Error::WalDamaged {
                        key: key.clone(),
                        source,
                    },
                },
            )?;
        if seen.bytes != u64::from(self.segment_bytes) {
            let (found, expected) = (seen.bytes, self.segment_bytes);
            return Err(unfit(format!(
                "it has {found} bytes, a segment has {expected}"
            )));
        }
        let header = wal_header::parse(&seen.head).map_err(|error| unfit(error.to_string()))?;
        let expected = WalHeader {
            version: self.epoch.version,
            system_id: self.epoch.system_id,
            page_address: Lsn(segment.number * u64::from(self.segment_bytes)),
            segment_bytes: self.segment_bytes,
        };
        if header != expected {
            return Err(unfit(format!(
                "its header is of PostgreSQL {}, system id {}, position {}",
                header.version, header.system_id, header.page_address
            )));
        }
        Ok(())
    }

    /// Waits until one of `segments` is there.
    fn wait_for_any(&self, segments: &[Segment], timeout: Duration) -> Result<bool> {
        let begun = Instant::now();
        let mut polls = 0;
        loop {
            for segment in segments {
                if self
                    .present(&segment.file_name(self.segment_bytes))?
                    .is_some()
                {
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

    /// Waits for all segments from `first` to `last`, and checks each of them.
    pub(super) fn wait_for(&self, first: Segment, last: Segment) -> Result<()> {
        let of_number = |number| Segment {
            timeline: first.timeline,
            number,
        };
        let segments: Vec<Segment> = (first.number..=last.number).map(of_number).collect();
        for segment in &segments {
            let segment = *segment;
            if !self.wait_for_any(&[segment], self.timeout)? {
                return Err(self.timed_out(segment));
            }
        }
        let proven = map(self.threads, &segments, |segments, keep| {
            for (at, segment) in segments {
                keep(at, self.prove(*segment)?);
            }
            Ok(())
        });
        proven.map(drop)
    }

    /// Shows, before anything is copied, that the server's archiving reaches this repository: the segment before the
    /// backup's first one arrives (starting a backup switched it out), or, where that was archived elsewhere or long
    /// ago, the one that a switch made now completes.
    pub(super) fn prove_archiving(&self, server: &mut dyn Server, start: Segment) -> Result<()> {
        let Some(before) = start.number.checked_sub(1) else {
            return Ok(());
        };
        let before = Segment {
            timeline: start.timeline,
            number: before,
        };
        let grace = self.timeout.min(Duration::from_millis(1500));
        if self.wait_for_any(&[before], grace)? {
            return Ok(());
        }
        let segment = self.switch(server)?;
        if self.wait_for_any(&[before, segment], self.timeout)? {
            return Ok(());
        }
        Err(self.timed_out(segment))
    }

    /// Ends the current segment, waits until it has arrived, and checks it; answers its name.
    pub(super) fn prove_switch(&self, server: &mut dyn Server) -> Result<String> {
        let segment = self.switch(server)?;
        if !self.wait_for_any(&[segment], self.timeout)? {
            return Err(self.timed_out(segment));
        }
        self.prove(segment)?;
        Ok(segment.file_name(self.segment_bytes))
    }

    /// Ends the current segment, in which there is something.
    fn switch(&self, server: &mut dyn Server) -> Result<Segment> {
        server
            .restore_point("pgcairn archive check")
            .map_err(Error::Cluster)?;
        let switched = server.switch_wal().map_err(Error::Cluster)?;
        // Not the control file's, which right after a promotion is still the one before.
        let timeline = server.timeline().map_err(Error::Cluster)?;
        Ok(Segment::holding_end(timeline, switched, self.segment_bytes))
    }

    fn timed_out(&self, segment: Segment) -> Error {
        Error::ArchiveTimeout {
            segment: segment.file_name(self.segment_bytes),
            seconds: self.timeout.as_secs(),
        }
    }
}
