//! Proof that a cluster which was stopped while it recovered has the WAL that it needs in its own `pg_wal`.
//!
//! Promises: every segment from its last restart point to the position that replay must reach is there, on the timeline
//! that the history of that position has at its place, of the length of a segment, and begins as this cluster's WAL does
//! there. Such a backup is restored with its `pg_wal`; no archive is asked.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::actions::error::{Error, Result};
use crate::cluster::control_file::{ClusterState, ControlFile};
use crate::cluster::timeline_history::{self, Ancestor};
use crate::cluster::wal_header::{self, WalHeader};
use crate::wal_name::{Lsn, Segment, Timeline};

/// Where replay begins, where it must end, and on which timeline that is; of a cluster that recovers nothing, its last
/// checkpoint.
pub(super) fn needed(control: &ControlFile) -> (Lsn, Lsn, Timeline) {
    if control.state != ClusterState::ShutDownInRecovery {
        return (control.checkpoint, control.checkpoint, control.timeline);
    }
    let end = control.checkpoint.max(control.min_recovery);
    let timeline = control.timeline.max(control.min_recovery_timeline);
    (control.redo, end, timeline)
}

/// Checks that the cluster has what it needs.
pub(super) fn prove(pgdata: &Path, control: &ControlFile) -> Result<()> {
    let (start, end, timeline) = needed(control);
    let history = history(pgdata, control.timeline, timeline)?;
    let bytes = control.wal_segment_bytes;
    let number = |lsn: Lsn| Segment::holding(timeline, lsn, bytes).number;
    let last = Segment::holding_end(timeline, end, bytes).number;
    for number_needed in number(start)..=last {
        // Of the segment in which a timeline was left, only the newer timeline has what comes behind.
        let mut begun = Lsn(0);
        let mut newest = timeline;
        for part in &history {
            if (number(begun)..=number(part.left_at)).contains(&number_needed) {
                newest = part.timeline;
            }
            begun = part.left_at;
        }
        let segment = Segment {
            timeline: newest,
            number: number_needed,
        };
        if !is_whole(pgdata, segment, control) {
            return Err(Error::LocalWalMissing {
                name: segment.file_name(bytes),
                pgdata: pgdata.to_owned(),
            });
        }
    }
    Ok(())
}

/// The timelines from the first to the last, and where each was left; the last goes on for ever.
fn history(pgdata: &Path, first: Timeline, last: Timeline) -> Result<Vec<Ancestor>> {
    let mut history = Vec::new();
    if first != last {
        let name = format!("{last}.history");
        let missing = |_: io::Error| Error::LocalWalMissing {
            name: name.clone(),
            pgdata: pgdata.to_owned(),
        };
        let content = std::fs::read(pgdata.join("pg_wal").join(&name)).map_err(missing)?;
        let ancestors = timeline_history::parse(&content).map_err(|source| {
            let name = name.clone();
            Error::HistoryDamaged { name, source }
        })?;
        history.extend(ancestors);
    }
    history.push(Ancestor {
        timeline: last,
        left_at: Lsn(u64::MAX),
    });
    Ok(history)
}

fn is_whole(pgdata: &Path, segment: Segment, control: &ControlFile) -> bool {
    let bytes = control.wal_segment_bytes;
    let path = pgdata.join("pg_wal").join(segment.file_name(bytes));
    let read = || {
        let mut file = File::open(path).ok()?;
        let mut head = [0; wal_header::BYTES];
        file.read_exact(&mut head).ok()?;
        let header = wal_header::parse(&head).ok()?;
        Some((file.metadata().ok()?.len(), header))
    };
    let expected = WalHeader {
        version: control.version,
        system_id: control.system_id,
        page_address: Lsn(segment.number * u64::from(bytes)),
        segment_bytes: bytes,
    };
    read() == Some((u64::from(bytes), expected))
}
