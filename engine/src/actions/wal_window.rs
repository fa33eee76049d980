//! What the WAL archive of an epoch holds on each timeline: from where to where, and what is missing between.

use crate::cluster::timeline_history::Ancestor;
use crate::repository::wal::{Contents, WalGap};
use crate::wal_name::{Lsn, Segment, Timeline};

/// Segments of one timeline, both ends included, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalRange {
    /// The first.
    pub first: String,
    /// The last.
    pub last: String,
    /// How many.
    pub segments: u64,
}

/// One timeline of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineWindow {
    /// The timeline.
    pub timeline: Timeline,
    /// What is there without a hole, in order: within each, every point can be recovered from a backup that lies in it.
    pub ranges: Vec<WalRange>,
    /// What is missing: between them, behind them where the archiver dropped segments, and (where histories were looked
    /// at) before and behind them where timelines part.
    pub missing: Vec<WalRange>,
}

/// The windows of an epoch's timelines, in order.
pub(super) fn windows(contents: &Contents, segment_bytes: u32) -> Vec<TimelineWindow> {
    let mut windows = Windows::new(segment_bytes);
    for name in &contents.segments {
        windows.add(name);
    }
    windows.tell(&contents.gaps, &[])
}

/// The first and the last of consecutive segments, by number.
type Run = (u64, u64);

/// Segments as they are found, in the order of their names: memory grows with the holes, not with the segments.
pub(super) struct Windows {
    segment_bytes: u32,
    timelines: Vec<(Timeline, Vec<Run>)>,
}

impl Windows {
    /// Nothing is there yet.
    pub(super) fn new(segment_bytes: u32) -> Self {
        Windows {
            segment_bytes,
            timelines: Vec::new(),
        }
    }

    /// A segment is there. What is no segment's name is passed over.
    pub(super) fn add(&mut self, name: &str) {
        let Ok(Segment { timeline, number }) = Segment::parse(name, self.segment_bytes) else {
            return;
        };
        match self.timelines.last_mut() {
            Some((last, runs)) if *last == timeline => match runs.last_mut() {
                Some((_, end)) if *end + 1 == number => *end = number,
                _ => runs.push((number, number)),
            },
            _ => self.timelines.push((timeline, vec![(number, number)])),
        }
    }

    /// The timelines of which something is there, in order.
    pub(super) fn timelines(&self) -> impl Iterator<Item = Timeline> {
        self.timelines.iter().map(|(timeline, _)| *timeline)
    }

    /// The end of the run that a segment lies in.
    pub(super) fn end_of_run(&self, segment: Segment) -> Option<u64> {
        let mut runs = self.runs(segment.timeline).iter();
        let run = runs.find(|(begin, end)| (*begin..=*end).contains(&segment.number));
        run.map(|(_, end)| *end)
    }

    /// What is there on each timeline, and what is missing between, where the archiver dropped segments behind it, and
    /// where a timeline with a history goes on from another.
    pub(super) fn tell(
        &self,
        gaps: &[WalGap],
        histories: &[(Timeline, Vec<Ancestor>)],
    ) -> Vec<TimelineWindow> {
        let mut told = Vec::new();
        for (timeline, runs) in &self.timelines {
            let between = runs.windows(2).filter_map(|pair| match pair {
                [(_, before), (after, _)] => Some((before + 1, after - 1)),
                _ => None,
            });
            let mut missing: Vec<Run> = between.collect();
            missing.extend(self.dropped_behind(*timeline, gaps));
            missing.extend(self.missing_at_switches(*timeline, histories));
            missing.sort_unstable();
            missing.dedup();
            let named = |runs: &[Run]| runs.iter().map(|run| self.named(*timeline, *run)).collect();
            told.push(TimelineWindow {
                timeline: *timeline,
                ranges: named(runs),
                missing: named(&missing),
            });
        }
        told
    }

    /// A gap at the end is not yet between two segments.
    fn dropped_behind(&self, timeline: Timeline, gaps: &[WalGap]) -> Vec<Run> {
        let end = self.runs(timeline).last().map_or(0, |(_, end)| *end);
        let parse = |name: &String| Segment::parse(name, self.segment_bytes).ok();
        let parsed = gaps
            .iter()
            .filter_map(|gap| parse(&gap.first).zip(parse(&gap.last)));
        let is_sound = |first: &Segment, last: &Segment| {
            first.timeline == last.timeline && first.number <= last.number
        };
        let parsed = parsed.filter(|(first, last)| is_sound(first, last));
        let behind = parsed.filter(|(first, last)| first.timeline == timeline && last.number > end);
        behind
            .map(|(first, last)| (first.number.max(end + 1), last.number))
            .collect()
    }

    /// What is missing on a timeline where it left its parent, and where others left it. A new timeline begins with its own
    /// copy of the segment in which it left the other one.
    fn missing_at_switches(
        &self,
        timeline: Timeline,
        histories: &[(Timeline, Vec<Ancestor>)],
    ) -> Vec<Run> {
        let number = |lsn: Lsn| lsn.0 / u64::from(self.segment_bytes);
        let mut missing = Vec::new();
        for (child, ancestors) in histories {
            let Some(parent) = ancestors.last() else {
                continue;
            };
            let left_in = number(parent.left_at);
            let parents_end = self.runs(parent.timeline).last().map(|(_, end)| *end);
            let childs_first = self.runs(*child).first().map(|(first, _)| *first);
            let (Some(end), Some(first)) = (parents_end, childs_first) else {
                continue;
            };
            if parent.timeline == timeline && end + 1 < left_in {
                missing.push((end + 1, left_in - 1));
            }
            if *child == timeline && first > left_in {
                missing.push((left_in, first - 1));
            }
        }
        missing
    }

    fn runs(&self, timeline: Timeline) -> &[Run] {
        let found = self
            .timelines
            .iter()
            .find(|(listed, _)| *listed == timeline);
        found.map_or(&[], |(_, runs)| runs)
    }

    fn named(&self, timeline: Timeline, (first, last): Run) -> WalRange {
        let name = |number| Segment { timeline, number }.file_name(self.segment_bytes);
        WalRange {
            first: name(first),
            last: name(last),
            segments: last + 1 - first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u32 = 16 << 20;

    fn name(timeline: u32, number: u64) -> String {
        Segment {
            timeline: Timeline(timeline),
            number,
        }
        .file_name(SEGMENT)
    }

    /// What is missing, timeline by timeline, of the segments with these numbers.
    fn missing(segments: &[(u32, u64)], histories: &[(Timeline, Vec<Ancestor>)]) -> Vec<String> {
        let mut windows = Windows::new(SEGMENT);
        for (timeline, number) in segments {
            windows.add(&name(*timeline, *number));
        }
        let told = windows.tell(&[], histories);
        let missing = told.iter().flat_map(|window| &window.missing);
        missing
            .map(|range| format!("{}+{}", range.first, range.segments))
            .collect()
    }

    #[test]
    fn holes_where_timelines_part_are_named_on_the_timeline_that_lacks_them() {
        let left_at = |timeline, lsn| Ancestor {
            timeline: Timeline(timeline),
            left_at: Lsn(lsn),
        };
        // Timeline 2 left timeline 1 in the middle of segment 7, timeline 3 left that at the very end of segment 8.
        let in_seven = 7 * u64::from(SEGMENT) + 100;
        let after_eight = 9 * u64::from(SEGMENT);
        let histories = [
            (Timeline(2), vec![left_at(1, in_seven)]),
            (
                Timeline(3),
                vec![left_at(1, in_seven), left_at(2, after_eight)],
            ),
        ];
        let whole = [
            &[(1, 6), (2, 7), (2, 8), (3, 9)][..],
            &[(1, 6), (1, 7), (1, 8), (2, 7), (2, 8), (2, 9), (3, 9)],
        ];
        for segments in whole {
            assert_eq!(missing(segments, &histories), [""; 0], "{segments:?}");
        }
        let without = |hole: (u32, u64)| {
            let all = [(1, 5), (1, 6), (2, 7), (2, 8), (3, 9), (3, 10)];
            let rest: Vec<_> = all.into_iter().filter(|segment| *segment != hole).collect();
            missing(&rest, &histories)
        };
        for hole in [(1, 6), (2, 7), (2, 8), (3, 9)] {
            assert_eq!(
                without(hole),
                [format!("{}+1", name(hole.0, hole.1))],
                "{hole:?}"
            );
        }
        assert_eq!(without((1, 5)), [""; 0], "older WAL may have been removed");
        // The old timeline's copy of the segment does not have what the new one wrote into it.
        let of_the_old = [(1, 6), (1, 7), (2, 8), (3, 9)];
        assert_eq!(
            missing(&of_the_old, &histories),
            [format!("{}+1", name(2, 7))]
        );
    }

    #[test]
    fn a_gap_that_ends_before_it_begins_is_none() {
        let mut windows = Windows::new(SEGMENT);
        windows.add(&name(1, 4));
        let gap = |first, last| WalGap { first, last };
        let senseless = [
            gap(name(1, 9), name(1, 7)),
            gap(name(1, 7), name(2, 9)),
            gap("x".to_owned(), name(1, 9)),
        ];
        assert_eq!(windows.tell(&senseless, &[])[0].missing, []);
    }

    #[test]
    fn holes_are_named_on_each_timeline_and_a_dropped_end_too() {
        let numbers = [254, 255, 256, 259, 260];
        let mut segments: Vec<String> = numbers.iter().map(|n| name(1, *n)).collect();
        segments.push(name(2, 260));
        let gap = WalGap {
            first: name(2, 261),
            last: name(2, 263),
        };
        let contents = Contents {
            segments,
            gaps: vec![gap],
        };
        let range = |timeline, first, last| WalRange {
            first: name(timeline, first),
            last: name(timeline, last),
            segments: last + 1 - first,
        };
        assert_eq!(
            windows(&contents, SEGMENT),
            [
                TimelineWindow {
                    timeline: Timeline(1),
                    ranges: vec![range(1, 254, 256), range(1, 259, 260)],
                    missing: vec![range(1, 257, 258)],
                },
                TimelineWindow {
                    timeline: Timeline(2),
                    ranges: vec![range(2, 260, 260)],
                    missing: vec![range(2, 261, 263)],
                },
            ]
        );
    }
}
