//! `backup_label`: where recovery of an online backup begins.
//!
//! Promises: reads what the server's own stop function returned; never rewrites it (the label is stored byte-exact).

use crate::cluster::{Error, Result};
use crate::wal_name::{Lsn, Timeline};

const START: &str = "START WAL LOCATION";
const CHECKPOINT: &str = "CHECKPOINT LOCATION";
const TIMELINE: &str = "START TIMELINE";
const START_TIME: &str = "START TIME";

/// What a backup label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartPoint {
    /// Where replay begins.
    pub lsn: Lsn,
    /// The WAL segment that holds that position: 24 hex digits.
    pub segment: String,
    /// Where the start checkpoint's record lies.
    pub checkpoint: Lsn,
    /// The timeline on which the backup began.
    pub timeline: Option<Timeline>,
    /// When it began, in the words and the time zone of the server.
    pub start_time: String,
}

/// Reads a label.
pub fn parse(label: &[u8]) -> Result<StartPoint> {
    let text = String::from_utf8_lossy(label);
    let field = |name: &'static str| {
        let values = text
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        values
            .map(str::trim_end)
            .next()
            .ok_or(Error::BackupLabel { line: name })
    };
    let bad_start = || Error::BackupLabel { line: START };
    let (lsn, file) = field(START)?.split_once(" (file ").ok_or_else(bad_start)?;
    let segment = file.strip_suffix(')').ok_or_else(bad_start)?;
    let is_segment = segment.len() == 24 && segment.bytes().all(|c| c.is_ascii_hexdigit());
    if !is_segment {
        return Err(bad_start());
    }
    let timeline = match field(TIMELINE) {
        Ok(number) => Some(Timeline(
            number
                .parse()
                .map_err(|_| Error::BackupLabel { line: TIMELINE })?,
        )),
        Err(_) => None,
    };
    Ok(StartPoint {
        lsn: lsn.parse().map_err(|_| bad_start())?,
        segment: segment.to_owned(),
        checkpoint: field(CHECKPOINT)?
            .parse()
            .map_err(|_| Error::BackupLabel { line: CHECKPOINT })?,
        timeline,
        start_time: field(START_TIME)?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 1/2000028 (file 000000030000000100000002)
CHECKPOINT LOCATION: 1/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-24 21:52:01 UTC
LABEL: START TIMELINE: 9
START TIMELINE: 3
";

    #[test]
    fn a_label_says_where_recovery_begins() {
        let expected = StartPoint {
            lsn: Lsn(0x1_0200_0028),
            segment: "000000030000000100000002".to_owned(),
            checkpoint: Lsn(0x1_0200_0060),
            timeline: Some(Timeline(3)),
            start_time: "2026-11-24 21:52:01 UTC".to_owned(),
        };
        assert_eq!(parse(LABEL.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn a_label_without_a_start_is_refused_by_the_line_that_is_wrong() {
        for (from, to, line) in [
            ("START WAL LOCATION", "X", START),
            (" (file ", " file ", START),
            ("000000030000000100000002", "3", START),
            ("1/2000060", "2000060", CHECKPOINT),
            ("START TIME:", "X", START_TIME),
            ("START TIMELINE: 3", "START TIMELINE: x", TIMELINE),
        ] {
            let label = LABEL.replace(from, to);
            let result = parse(label.as_bytes());
            assert!(
                matches!(result, Err(Error::BackupLabel { line: found }) if found == line),
                "{from}"
            );
        }
        assert!(parse(b"\xff").is_err());
    }
}
