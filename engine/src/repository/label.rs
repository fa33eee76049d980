//! The printed names of backups, in pgBackRest's form.
//!
//! Promises: `YYYYMMDD-HHMMSSF` for a full, `<full>_YYYYMMDD-HHMMSSD` or `…I` for the others, nothing else. A label holds no
//! `.` and no `/`, so that it can be part of a key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::repository::Error;

/// Length of `YYYYMMDD-HHMMSS` and the letter behind it.
const STAMP_BYTES: usize = 16;

/// What a backup read and trusted. Every type restores by itself. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BackupType {
    /// Every byte was read.
    Full,
    /// Files unchanged since the last full were not read.
    Diff,
    /// Files unchanged since the last backup were not read.
    Incr,
}

impl BackupType {
    /// The letter at the end of its labels.
    pub fn letter(self) -> char {
        match self {
            BackupType::Full => 'F',
            BackupType::Diff => 'D',
            BackupType::Incr => 'I',
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            BackupType::Full => "full",
            BackupType::Diff => "diff",
            BackupType::Incr => "incr",
        }
    }
}

/// The printed name of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Label(pub String);

impl Label {
    /// The type that its last letter names.
    pub fn backup_type(&self) -> BackupType {
        match self.0.bytes().last() {
            Some(b'D') => BackupType::Diff,
            Some(b'I') => BackupType::Incr,
            _ => BackupType::Full,
        }
    }

    /// The label of the full that its prefix names, which may be gone; its own, if it is one.
    pub fn full(&self) -> &str {
        self.0.split('_').next().unwrap_or_default()
    }

    /// When it was begun, as `YYYYMMDD-HHMMSS`: labels of one stanza are ordered by this.
    pub fn stamp(&self) -> &str {
        let last = self.0.rsplit('_').next().unwrap_or_default();
        last.get(..STAMP_BYTES - 1).unwrap_or(last)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let sound = match text.split_once('_') {
            None => is_stamp(text, b"F"),
            Some((full, own)) => is_stamp(full, b"F") && is_stamp(own, b"DI"),
        };
        if sound {
            return Ok(Label(text.to_owned()));
        }
        let expected =
            "a backup label, such as 20261124-010203F or 20261124-010203F_20261124-020304I";
        Err(Error::Name {
            name: text.chars().take(80).collect(),
            expected,
        })
    }
}

fn is_stamp(text: &str, letters: &[u8]) -> bool {
    let digit_or_dash = |(at, b): (usize, u8)| {
        if at == 8 {
            b == b'-'
        } else {
            b.is_ascii_digit()
        }
    };
    text.len() == STAMP_BYTES
        && text
            .bytes()
            .take(STAMP_BYTES - 1)
            .enumerate()
            .all(digit_or_dash)
        && text
            .bytes()
            .last()
            .is_some_and(|letter| letters.contains(&letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_pgbackrest_and_no_others() {
        let label: Label = "20261124-010203F_20261125-040506D".parse().unwrap();
        assert_eq!(label.backup_type(), BackupType::Diff);
        assert_eq!(
            (label.full(), label.stamp()),
            ("20261124-010203F", "20261125-040506")
        );
        let full: Label = "20261124-010203F".parse().unwrap();
        assert_eq!(
            (full.backup_type(), full.full(), full.stamp()),
            (BackupType::Full, full.0.as_str(), "20261124-010203")
        );
        for bad in [
            "",
            "latest",
            "20261124-010203",
            "20261124-010203I",
            "20261124-010203F_",
            "20261124 010203F",
        ] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
        let chained = "20261124-010203F_20261125-040506D_20261125-040507I";
        assert!(chained.parse::<Label>().is_err());
    }

    #[test]
    fn the_letter_is_the_types() {
        for (backup_type, letter, name) in [
            (BackupType::Full, 'F', "full"),
            (BackupType::Diff, 'D', "diff"),
            (BackupType::Incr, 'I', "incr"),
        ] {
            assert_eq!((backup_type.letter(), backup_type.name()), (letter, name));
        }
    }
}
