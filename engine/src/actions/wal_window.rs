//! What the WAL archive of an epoch holds on each timeline: from where to where, and what is missing between.

use crate::repository::wal::Contents;
use crate::wal_name::{Segment, Timeline};

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
    /// What is missing between and, where the archiver dropped segments, behind them.
    pub missing: Vec<WalRange>,
}

/// The windows of an epoch's timelines, in order.
pub(super) fn windows(contents: &Contents, segment_bytes: u32) -> Vec<TimelineWindow> {
    let mut windows: Vec<(Timeline, Vec<(u64, u64)>)> = Vec::new();
    let parse = |name: &String| Segment::parse(name, segment_bytes).ok();
    for Segment { timeline, number } in contents.segments.iter().filter_map(parse) {
        match windows.last_mut() {
            Some((last, ranges)) if *last == timeline => match ranges.last_mut() {
                Some((_, end)) if *end + 1 == number => *end = number,
                _ => ranges.push((number, number)),
            },
            _ => windows.push((timeline, vec![(number, number)])),
        }
    }
    let gaps: Vec<(Segment, Segment)> = contents
        .gaps
        .iter()
        .filter_map(|gap| parse(&gap.first).zip(parse(&gap.last)))
        .collect();
    let window = |(timeline, ranges): (Timeline, Vec<(u64, u64)>)| {
        let mut missing: Vec<(u64, u64)> = ranges
            .windows(2)
            .filter_map(|pair| match pair {
                [(_, before), (after, _)] => Some((before + 1, after - 1)),
                _ => None,
            })
            .collect();
        let end = ranges.last().map_or(0, |(_, end)| *end);
        // A gap at the end is not yet between two segments.
        let at_end = gaps
            .iter()
            .filter(|(first, last)| first.timeline == timeline && last.number > end);
        missing.extend(at_end.map(|(first, last)| (first.number.max(end + 1), last.number)));
        let named = |ranges: Vec<(u64, u64)>| {
            let named = ranges
                .into_iter()
                .map(|range| named(timeline, range, segment_bytes));
            named.collect()
        };
        TimelineWindow {
            timeline,
            ranges: named(ranges),
            missing: named(missing),
        }
    };
    windows.into_iter().map(window).collect()
}

fn named(timeline: Timeline, (first, last): (u64, u64), segment_bytes: u32) -> WalRange {
    let name = |number| Segment { timeline, number }.file_name(segment_bytes);
    WalRange {
        first: name(first),
        last: name(last),
        segments: last + 1 - first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::wal::WalGap;

    const SEGMENT: u32 = 16 << 20;

    fn name(timeline: u32, number: u64) -> String {
        Segment {
            timeline: Timeline(timeline),
            number,
        }
        .file_name(SEGMENT)
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
