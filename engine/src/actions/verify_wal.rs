//! Verifying the WAL archive: every file in it is read whole, decoded and held against its name.
//!
//! Promises: a segment counts as there only if it is whole and, by its header, the one of its name and this cluster's; what
//! is missing between segments, and where timelines part, is named. A file is called damaged after a second reading.
//! Memory: one page of the listing, and a few files.

use std::collections::{BTreeMap, BTreeSet};

use crate::actions::archive::{archives_of, check_header};
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::findings::Findings;
use crate::actions::pipeline::map;
use crate::actions::verify_packs::UNSTABLE;
use crate::actions::wal_window::{TimelineWindow, Windows};
use crate::cluster::timeline_history::{self, Ancestor};
use crate::cluster::wal_header;
use crate::ids::Namer;
use crate::monitor::{Counter, Monitor, Tally};
use crate::pack::wal as wal_object;
use crate::repository::stanza::Epoch;
use crate::repository::wal::{self, WalGap};
use crate::repository::{Repository, layout};
use crate::storage::{self, Key, Object};
use crate::wal_name::{Segment, Timeline, WalFile};

/// Files that are fetched at once from a store that is a round trip away, at least.
const LEAST_REMOTE_THREADS: usize = 8;
/// Bytes of files, as stored, that are in memory at once.
const IN_MEMORY: u64 = 256 << 20;
/// Segments that are looked for at once, of those that one backup needs.
const AT_ONCE: u64 = 100;
/// A history file that is longer is no history file: PostgreSQL writes a line for each promotion.
const LONGEST_HISTORY: usize = 1 << 20;

/// What reads an archive.
pub(super) struct ArchiveVerifier<'a> {
    pub(super) repository: &'a Repository,
    pub(super) stanza: &'a str,
    pub(super) epoch: &'a Epoch,
    pub(super) findings: &'a Findings<'a>,
    pub(super) tally: &'a Tally,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) threads: usize,
}

/// What an archive holds.
#[derive(Default)]
pub(super) struct VerifiedArchive {
    /// Files that were read.
    pub(super) files: u64,
    /// Their bytes, as stored.
    pub(super) bytes: u64,
    /// The segments that are whole, by their size, which may have been changed once.
    pub(super) windows: BTreeMap<u32, Windows>,
    /// Recorded gaps.
    pub(super) gaps: Vec<WalGap>,
    /// The ancestors of each timeline that has a history file.
    pub(super) histories: Vec<(Timeline, Vec<Ancestor>)>,
    /// Timelines whose history file is damaged.
    damaged_histories: Vec<Timeline>,
    /// The first segment of each timeline, whole or not.
    begins: BTreeMap<Timeline, String>,
}

/// What one file is.
enum Seen {
    Segment {
        name: String,
        segment_bytes: u32,
    },
    History(Timeline, Vec<Ancestor>),
    Gap(WalGap),
    /// Whole, and of no further use here.
    Whole,
    /// Not of ours.
    Foreign,
    DamagedHistory(Timeline),
    Damaged,
    Absent,
}

impl ArchiveVerifier<'_> {
    /// Reads every file of the epoch's archive.
    pub(super) fn verify(&self) -> Result<VerifiedArchive> {
        let mut archive = VerifiedArchive::default();
        let epoch = self.epoch.name();
        let mut after: Option<Key> = None;
        loop {
            let page = wal::page(self.repository, self.stanza, &epoch, after.as_ref())
                .map_err(Error::Repository)?;
            let Some(last) = page.last() else {
                break;
            };
            after = Some(last.key.clone());
            for (object, seen) in page.iter().zip(self.read_all(&page)?) {
                if !matches!(seen, Seen::Gap(_) | Seen::Foreign | Seen::Absent) {
                    archive.files += 1;
                    archive.bytes += object.bytes;
                }
                archive.note_begin(&object.key);
                archive.take(seen);
            }
        }
        self.tell_missing_histories(&archive);
        Ok(archive)
    }

    /// Of the segments from `first` to the one of number `last`, the first that is not there and whole, in whichever of
    /// the cluster's `epochs`. No others are read.
    pub(super) fn first_missing(
        &self,
        epochs: &[String],
        (first, last): (Segment, u64),
        segment_bytes: u32,
    ) -> Result<Option<String>> {
        let name = |number| Segment { number, ..first }.file_name(segment_bytes);
        let mut number = first.number;
        while number <= last {
            let names: Vec<String> = (number..=last.min(number + AT_ONCE)).map(name).collect();
            number += names.len() as u64;
            let mut page = Vec::new();
            for name in &names {
                match self.object(epochs, name)? {
                    Some(object) => page.push(object),
                    None => return Ok(Some(name.clone())),
                }
            }
            let seen = self.read_all(&page)?;
            let is_whole = |seen: &Seen| matches!(seen, Seen::Segment { .. });
            if let Some(at) = seen.iter().position(|seen| !is_whole(seen)) {
                return Ok(names.into_iter().nth(at));
            }
        }
        Ok(None)
    }

    /// A segment as it is listed, in the newest of these archives that has it.
    fn object(&self, epochs: &[String], name: &str) -> Result<Option<Object>> {
        for epoch in archives_of(self.repository, self.stanza, epochs, name)? {
            let key = layout::wal(self.stanza, epoch, name).map_err(Error::Repository)?;
            let found = wal::present(self.repository, self.stanza, epoch, name)
                .map_err(Error::Repository)?;
            if let Some(bytes) = found {
                let modified_ms = 0;
                return Ok(Some(Object {
                    key,
                    bytes,
                    modified_ms,
                }));
            }
        }
        Ok(None)
    }

    fn least_threads(&self) -> usize {
        let remote = self.repository.storage.is_remote();
        if remote { LEAST_REMOTE_THREADS } else { 1 }
    }

    fn read_all(&self, page: &[Object]) -> Result<Vec<Seen>> {
        let largest = page.iter().map(|object| object.bytes).max().unwrap_or(0);
        let room = usize::try_from(IN_MEMORY / largest.max(1)).unwrap_or(usize::MAX);
        let threads = self.threads.max(self.least_threads()).min(room).max(1);
        map(threads, page, |objects, keep| {
            for (at, object) in objects {
                keep(at, self.read(object)?);
                self.tally.add(Counter::WalFiles, 1);
                self.tally.add(Counter::WalBytes, object.bytes);
                self.monitor.progress(self.tally);
            }
            Ok(())
        })
    }

    /// Reads a file, and once more if it is damaged.
    fn read(&self, object: &Object) -> Result<Seen> {
        let key = &object.key;
        let first = match self.look(object)? {
            Ok(seen) => return Ok(seen),
            Err(damage) => damage,
        };
        let (message, seen) = match self.look(object)? {
            Err(damage) => (damage, damaged(key)),
            Ok(seen) => (format!("{first}; {UNSTABLE}"), seen),
        };
        self.findings.tell(key.to_string(), message);
        Ok(seen)
    }

    /// Looks at a file; the inner error is what is wrong with it.
    fn look(&self, object: &Object) -> Result<std::result::Result<Seen, String>> {
        let key = &object.key;
        if layout::is_wal_gap(key) {
            return match wal::gap(self.repository, key) {
                Ok(gap) => Ok(Ok(Seen::Gap(gap))),
                Err(error) if error.is_not_found() => Ok(Ok(Seen::Absent)),
                Err(error)
                    if error.is_damage()
                        || self.repository.is_about_one_object(error.storage()) =>
                {
                    Ok(Err(with_causes(&error)))
                }
                Err(error) => Err(Error::Repository(error)),
            };
        }
        let named = layout::parse_wal_file(key.as_str());
        let Some((name, kind)) = named.and_then(|name| Some((name, WalFile::of(name).ok()?)))
        else {
            return Ok(Ok(Seen::Foreign));
        };
        if object.bytes > wal_object::LARGEST_OBJECT {
            let bytes = object.bytes;
            return Ok(Err(format!("has {bytes} bytes, more than any WAL file")));
        }
        self.repository.storage.drop_cached(key);
        match self.repository.storage.get(key) {
            Ok(object) => Ok(self.judge(name, kind, &object)),
            // It was removed since it was listed.
            Err(error) if error.kind == storage::ErrorKind::NotFound => Ok(Ok(Seen::Absent)),
            Err(error) if self.repository.is_about_one_object(&error) => {
                Ok(Err(with_causes(&error)))
            }
            Err(error) => Err(Error::Storage(error)),
        }
    }

    fn judge(&self, name: &str, kind: WalFile, object: &[u8]) -> std::result::Result<Seen, String> {
        let mut begin = Vec::new();
        let most = match kind {
            WalFile::History => LONGEST_HISTORY,
            _ => wal_header::BYTES,
        };
        let decoded = wal_object::for_each_piece(&Namer::plain(), object, |_, piece| {
            let room = most - begin.len();
            begin.extend_from_slice(&piece[..room.min(piece.len())]);
            Ok::<(), crate::pack::Error>(())
        });
        let bytes = decoded.map_err(|damage| damage.to_string())?;
        match kind {
            WalFile::Segment | WalFile::Partial => {
                let cluster = (self.epoch.system_id, self.epoch.version);
                let header = check_header(&begin, bytes, name, cluster, Error::Invalid)
                    .map_err(|error| error.to_string())?;
                Ok(match kind {
                    WalFile::Segment => Seen::Segment {
                        name: name.to_owned(),
                        segment_bytes: header.segment_bytes,
                    },
                    _ => Seen::Whole,
                })
            }
            WalFile::History => {
                let timeline = Timeline::of_wal_file(name).map_err(|error| error.to_string())?;
                let ancestors =
                    timeline_history::parse(&begin).map_err(|error| error.to_string())?;
                Ok(Seen::History(timeline, ancestors))
            }
            WalFile::BackupHistory => Ok(Seen::Whole),
        }
    }

    /// Without its history no recovery reaches a timeline from an older one.
    fn tell_missing_histories(&self, archive: &VerifiedArchive) {
        let timelines = archive.windows.values().flat_map(Windows::timelines);
        let timelines: BTreeSet<Timeline> = timelines.collect();
        for timeline in timelines.into_iter().skip(1) {
            let is_known = archive.histories.iter().any(|(of, _)| *of == timeline);
            if !is_known && !archive.damaged_histories.contains(&timeline) {
                self.findings.tell(
                    format!("{timeline}.history"),
                    format!(
                        "is not in the archive of {} {}: recovery cannot go on from an older timeline to {}",
                        self.stanza,
                        self.epoch.name(),
                        timeline.0
                    ),
                );
            }
        }
    }
}

/// Of a timeline's segments from `first` to the one of number `last`, the first that is not there and whole in the archives
/// of a cluster's epochs, the newest first. What an older one has from where a newer one begins is another history.
pub(super) fn first_missing(
    archives: &[&VerifiedArchive],
    (first, last): (Segment, u64),
    segment_bytes: u32,
) -> Option<Segment> {
    let mut at = first;
    while at.number <= last {
        let mut limit = u64::MAX;
        let end = archives.iter().find_map(|archive| {
            if at.number >= limit {
                return None;
            }
            let windows = archive.windows.get(&segment_bytes);
            let end = windows.and_then(|windows| windows.end_of_run(at));
            let found = end.map(|end| end.min(limit - 1));
            limit = limit.min(archive.begin(at.timeline, segment_bytes));
            found
        });
        let Some(end) = end else {
            return Some(at);
        };
        at.number = end + 1;
    }
    None
}

impl VerifiedArchive {
    fn note_begin(&mut self, key: &Key) {
        let name = layout::parse_wal_file(key.as_str()).unwrap_or_default();
        if let (Ok(WalFile::Segment), Ok(timeline)) =
            (WalFile::of(name), Timeline::of_wal_file(name))
        {
            self.begins
                .entry(timeline)
                .or_insert_with(|| name.to_owned());
        }
    }

    /// The number of the first segment of a timeline; of none that there is, if it has none.
    fn begin(&self, timeline: Timeline, segment_bytes: u32) -> u64 {
        let name = self.begins.get(&timeline);
        let parsed = name.and_then(|name| Segment::parse(name, segment_bytes).ok());
        parsed.map_or(u64::MAX, |segment| segment.number)
    }

    fn take(&mut self, seen: Seen) {
        match seen {
            Seen::Segment {
                name,
                segment_bytes,
            } => self
                .windows
                .entry(segment_bytes)
                .or_insert_with(|| Windows::new(segment_bytes))
                .add(&name),
            Seen::History(timeline, ancestors) => self.histories.push((timeline, ancestors)),
            Seen::Gap(gap) => self.gaps.push(gap),
            Seen::DamagedHistory(timeline) => self.damaged_histories.push(timeline),
            Seen::Whole | Seen::Foreign | Seen::Damaged | Seen::Absent => {}
        }
    }

    /// What is there and what is missing on each timeline.
    pub(super) fn timelines(&self) -> Vec<TimelineWindow> {
        let tell = |windows: &Windows| windows.tell(&self.gaps, &self.histories);
        self.windows.values().flat_map(tell).collect()
    }
}

fn damaged(key: &Key) -> Seen {
    let name = layout::parse_wal_file(key.as_str()).unwrap_or_default();
    match (WalFile::of(name), Timeline::of_wal_file(name)) {
        (Ok(WalFile::History), Ok(timeline)) => Seen::DamagedHistory(timeline),
        _ => Seen::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u32 = 16 << 20;

    fn segment(number: u64) -> Segment {
        let timeline = Timeline(1);
        Segment { timeline, number }
    }

    /// An archive with these segments, all of them whole but the first `damaged`.
    fn archive(numbers: &[u64], damaged: usize) -> VerifiedArchive {
        let mut archive = VerifiedArchive::default();
        for (at, number) in numbers.iter().enumerate() {
            let name = segment(*number).file_name(SEGMENT);
            archive.note_begin(&layout::wal("main", "15-1", &name).unwrap());
            let segment_bytes = SEGMENT;
            archive.take(if at < damaged {
                Seen::Damaged
            } else {
                Seen::Segment {
                    name,
                    segment_bytes,
                }
            });
        }
        archive
    }

    #[test]
    fn the_first_segment_that_is_missing_is_found_over_several_archives() {
        let older = archive(&[3, 4, 5, 6, 7, 8], 0);
        let newer = archive(&[6, 7, 9], 0);
        let missing = |archives: &[&VerifiedArchive], first, last| {
            let found = first_missing(archives, (segment(first), last), SEGMENT);
            found.map(|segment| segment.number)
        };
        assert_eq!(missing(&[&older], 3, 8), None);
        assert_eq!(missing(&[&older], 2, 4), Some(2));
        assert_eq!(missing(&[&older], 7, 9), Some(9));
        assert_eq!(missing(&[&newer, &older], 3, 7), None);
        assert_eq!(
            missing(&[&newer, &older], 3, 9),
            Some(8),
            "8 was left behind"
        );
        assert_eq!(missing(&[&newer], 3, 9), Some(3));
        // A damaged one is not replaced by one of the same name.
        assert_eq!(missing(&[&archive(&[6, 7, 9], 1), &older], 5, 7), Some(6));
        assert_eq!(missing(&[&archive(&[], 0), &older], 3, 8), None);
    }
}
