//! Timeline history files: from which timelines a timeline descends, and where it left each of them.
//!
//! A line is `<timeline>\t<LSN at which it was left>\t<reason>`, oldest ancestor first; `#` begins a comment. Promises:
//! what PostgreSQL would not read is refused, so that a damaged file is never taken for a short history.

use crate::wal_name::{Lsn, Timeline};

/// A timeline that a history file names, and where the next one left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// The timeline.
    pub timeline: Timeline,
    /// Its WAL belongs to the history up to here.
    pub left_at: Lsn,
}

/// A text that is no history file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the timeline history is not understood: {text:?}")]
pub struct BadHistory {
    /// Its number, from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
}

/// The ancestors of a timeline, oldest first.
pub fn parse(content: &[u8]) -> Result<Vec<Ancestor>, BadHistory> {
    let text = String::from_utf8_lossy(content);
    let mut ancestors: Vec<Ancestor> = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        if text.trim().is_empty() || text.trim_start().starts_with('#') {
            continue;
        }
        let mut words = text.split_whitespace();
        let parsed = words
            .next()
            .and_then(|word| word.parse().ok())
            .zip(words.next().and_then(|word| word.parse().ok()));
        let rising = |timeline| ancestors.last().is_none_or(|last| last.timeline < timeline);
        match parsed {
            Some((timeline, left_at)) if rising(Timeline(timeline)) => ancestors.push(Ancestor {
                timeline: Timeline(timeline),
                left_at,
            }),
            _ => {
                return Err(BadHistory {
                    line,
                    text: text.to_owned(),
                });
            }
        }
    }
    Ok(ancestors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_and_a_damaged_one_refused() {
        let file = b"1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore 2026-11-24\n";
        let ancestor = |timeline, left_at| Ancestor {
            timeline: Timeline(timeline),
            left_at: Lsn(left_at),
        };
        assert_eq!(
            parse(file),
            Ok(vec![ancestor(1, 0x0300_0148), ancestor(2, 0x0500_0000)])
        );
        assert_eq!(parse(b""), Ok(Vec::new()));
        for bad in ["1", "one\t0/1\tx", "1\t3000148\tx", "2\t0/1\tx\n1\t0/2\tx"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
