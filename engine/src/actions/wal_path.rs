//! The way that recovery takes through the archive: from a backup, over the timelines of a history, to its end.
//!
//! Promises: what counts as there is what PostgreSQL would find: the segment in which a timeline was left is taken from
//! the newer timeline, or, where that has nothing yet, from the older one. A hole is told from the end of the WAL by the
//! same rule as `archive-get` has: something later is there, or a gap record says that something was dropped.

use std::collections::BTreeMap;

use crate::actions::archive::{archives_of, decode, key_of};
use crate::actions::error::{Error, Result};
use crate::cluster::timeline_history::{self, Ancestor};
use crate::repository::Repository;
use crate::repository::snapshot::Manifest;
use crate::repository::wal::{self, Archived};
use crate::wal_name::{Lsn, Segment, Timeline};

/// Along which timeline a server recovers, as `recovery_target_timeline` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimelineGoal {
    /// The newest that has a history file, counted up from the backup's.
    Latest,
    /// The backup's own, on which it ended.
    Current,
    /// This one.
    This(Timeline),
}

/// The archives of a cluster's epochs of a stanza.
pub(super) struct Archives<'a> {
    pub(super) repository: &'a Repository,
    pub(super) stanza: &'a str,
    /// The names of the epochs, the newest first.
    pub(super) epochs: Vec<String>,
}

/// What there is of the WAL on a way, from a backup's start on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Coverage {
    /// All WAL before this position is there.
    pub(super) until: Lsn,
    /// When the last segment before it was archived.
    pub(super) until_ms: Option<i64>,
    /// The first segment that is missing although more follows, and what says that more follows.
    pub(super) hole: Option<(String, String)>,
}

/// A part of the way on one timeline: segments by number, both ends included; without an end, as far as it goes.
struct Stretch {
    timeline: Timeline,
    first: u64,
    last: Option<u64>,
}

impl Archives<'_> {
    /// The timeline that a goal means for a backup.
    pub(super) fn timeline(&self, goal: TimelineGoal, backup: &Manifest) -> Result<Timeline> {
        let mut newest = match goal {
            TimelineGoal::This(timeline) => return Ok(timeline),
            TimelineGoal::Current => return Ok(backup.stop_timeline),
            TimelineGoal::Latest => backup.stop_timeline,
        };
        // PostgreSQL counts up in the same way, and stops at the first number that has no file.
        while let Some(next) = newest.0.checked_add(1).map(Timeline) {
            if self.history_file(next)?.is_none() {
                break;
            }
            newest = next;
        }
        Ok(newest)
    }

    /// The ancestors of a timeline; `None` if it has no history file, as the first one has none.
    pub(super) fn history(&self, timeline: Timeline) -> Result<Option<Vec<Ancestor>>> {
        let Some(content) = self.history_file(timeline)? else {
            return Ok((timeline == Timeline(1)).then(Vec::new));
        };
        timeline_history::parse(&content)
            .map(Some)
            .map_err(|source| Error::HistoryDamaged {
                name: format!("{timeline}.history"),
                source,
            })
    }

    fn history_file(&self, timeline: Timeline) -> Result<Option<Vec<u8>>> {
        let (storage, name) = (
            self.repository.storage.as_ref(),
            format!("{timeline}.history"),
        );
        for epoch in &self.epochs {
            match wal::get(storage, self.stanza, epoch, &name) {
                Ok(object) => {
                    return decode(&object, key_of(self.stanza, epoch, &name)?).map(Some);
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(Error::Repository(error)),
            }
        }
        Ok(None)
    }

    /// How far the WAL reaches from a backup's start along `timeline`, whose ancestors are given.
    pub(super) fn coverage(
        &self,
        backup: &Manifest,
        timeline: Timeline,
        ancestors: &[Ancestor],
    ) -> Result<Coverage> {
        let segment_bytes = backup.wal_segment_bytes;
        let number = |lsn: Lsn| lsn.0 / u64::from(segment_bytes);
        let mut next = number(backup.start_lsn);
        let mut until_ms = None;
        // The segment in which the timeline before was left, as that timeline has it.
        let mut shared: Option<Archived> = None;
        let mut stretches = stretches(backup, timeline, ancestors, number).into_iter();
        while let Some(stretch) = stretches.next() {
            let listed = self.listed(&stretch, segment_bytes)?;
            let mut found = listed.into_iter().peekable();
            let elsewhere = shared.take().filter(|_| found.peek().is_none());
            if let Some(archived) = elsewhere {
                until_ms = Some(archived.modified_ms);
                next += 1;
            }
            while let Some((at, archived)) = found.peek() {
                if stretch.last.is_some_and(|last| *at > last) {
                    break;
                }
                if *at == next {
                    until_ms = Some(archived.modified_ms);
                    found.next();
                } else {
                    let evidence = format!("{} is there", archived.name);
                    return Ok(Self::ends_at(
                        next,
                        until_ms,
                        &stretch,
                        segment_bytes,
                        Some(evidence),
                    ));
                }
                next += 1;
            }
            if stretch.last.is_none_or(|last| next <= last) {
                return self.ended(next, until_ms, &stretch, segment_bytes, stretches);
            }
            shared = found
                .next()
                .and_then(|(at, archived)| (at == next).then_some(archived));
        }
        Ok(Coverage {
            until: Lsn(next * u64::from(segment_bytes)),
            until_ms,
            hole: None,
        })
    }

    /// The WAL ends within a stretch: whether it is a hole, later timelines and gap records say.
    fn ended(
        &self,
        next: u64,
        until_ms: Option<i64>,
        stretch: &Stretch,
        segment_bytes: u32,
        later: impl Iterator<Item = Stretch>,
    ) -> Result<Coverage> {
        let mut evidence = None;
        for stretch in later {
            let first = self.listed(&stretch, segment_bytes)?.into_iter().next();
            evidence = evidence.or(first.map(|(_, found)| format!("{} is there", found.name)));
        }
        let name = file_name(stretch.timeline, next, segment_bytes);
        let mut gap = None;
        for epoch in archives_of(self.repository, self.stanza, &self.epochs, &name)? {
            gap = wal::gap_covering(self.repository, self.stanza, epoch, &name)
                .map_err(Error::Repository)?;
            if gap.is_some() {
                break;
            }
        }
        let dropped = gap.map(|gap| {
            format!(
                "segments {} to {} were dropped by archive-push",
                gap.first, gap.last
            )
        });
        let evidence = dropped.or(evidence);
        Ok(Self::ends_at(
            next,
            until_ms,
            stretch,
            segment_bytes,
            evidence,
        ))
    }

    fn ends_at(
        next: u64,
        until_ms: Option<i64>,
        stretch: &Stretch,
        segment_bytes: u32,
        evidence: Option<String>,
    ) -> Coverage {
        let missing = file_name(stretch.timeline, next, segment_bytes);
        Coverage {
            until: Lsn(next * u64::from(segment_bytes)),
            until_ms,
            hole: evidence.map(|evidence| (missing, evidence)),
        }
    }

    /// The archived segments of a stretch and of what follows it on its timeline, in order.
    fn listed(&self, stretch: &Stretch, segment_bytes: u32) -> Result<Vec<(u64, Archived)>> {
        let before = stretch.first.checked_sub(1);
        let after = before.map(|number| file_name(stretch.timeline, number, segment_bytes));
        let (stanza, timeline) = (self.stanza, stretch.timeline);
        let numbered = |archived: Archived| {
            let number = Segment::parse(&archived.name, segment_bytes).ok()?.number;
            Some((number, archived))
        };
        let mut found = BTreeMap::new();
        for (at, epoch) in self.epochs.iter().enumerate().rev() {
            // What an older epoch has from where this one begins is another history.
            if at + 1 < self.epochs.len()
                && let Some(begin) = wal::first(self.repository, stanza, epoch, timeline)
                    .map_err(Error::Repository)?
            {
                found.retain(|_, archived: &mut Archived| archived.name < begin);
            }
            let after = after.as_deref();
            let listed = wal::segments(self.repository, stanza, epoch, timeline, after)
                .map_err(Error::Repository)?;
            found.extend(listed.into_iter().filter_map(numbered));
        }
        Ok(found.into_iter().collect())
    }
}

fn file_name(timeline: Timeline, number: u64, segment_bytes: u32) -> String {
    Segment { timeline, number }.file_name(segment_bytes)
}

fn stretches(
    backup: &Manifest,
    timeline: Timeline,
    ancestors: &[Ancestor],
    number: impl Fn(Lsn) -> u64,
) -> Vec<Stretch> {
    let mut first = number(backup.start_lsn);
    let mut stretches = Vec::new();
    for ancestor in ancestors
        .iter()
        .skip_while(|ancestor| ancestor.timeline != backup.timeline)
    {
        let left_in = number(ancestor.left_at);
        if let Some(last) = left_in.checked_sub(1).filter(|last| *last >= first) {
            stretches.push(Stretch {
                timeline: ancestor.timeline,
                first,
                last: Some(last),
            });
        }
        first = first.max(left_in);
    }
    stretches.push(Stretch {
        timeline,
        first,
        last: None,
    });
    stretches
}
