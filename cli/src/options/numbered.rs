//! The rows of `repo2-…` and `pg2-…` and further on: the repositories and clusters of a stanza beside the first.
//!
//! Promises: each has the options of the first. A further cluster requires none, for one that is not configured is not
//! there, and only commands that speak with several servers know it.

use super::Command::{Backup, Check};
use super::table::ROWS;
use super::{Command, Group, OptionRow};

/// The highest number of a repository. pgBackRest counts to 256; every number makes every command start later.
pub(crate) const LAST_REPOSITORY: u32 = 8;
/// The highest number of a cluster.
pub(crate) const LAST_CLUSTER: u32 = 8;

const SEVERAL_CLUSTERS: &[Command] = &[Backup, Check];

/// The rows of the table, and those of all further numbers.
pub(super) fn all() -> Vec<OptionRow> {
    let mut rows = ROWS.to_vec();
    for row in ROWS {
        match row.group {
            Group::Repository => rows.extend((2..=LAST_REPOSITORY).map(|n| of_number(row, n))),
            Group::Stanza if row.commands.iter().any(|c| SEVERAL_CLUSTERS.contains(c)) => {
                rows.extend((2..=LAST_CLUSTER).map(|n| OptionRow {
                    commands: SEVERAL_CLUSTERS,
                    required: false,
                    ..of_number(row, n)
                }));
            }
            _ => {}
        }
    }
    rows
}

fn of_number(row: &OptionRow, n: u32) -> OptionRow {
    OptionRow {
        name: with_number(row.name, n),
        needs: row
            .needs
            .map(|(option, values)| (with_number(option, n), values)),
        ..*row
    }
}

/// The name with this number in the place of 1. It lives as long as the program: the table is made once.
fn with_number(name: &'static str, n: u32) -> &'static str {
    match super::numbered(name) {
        Some((_, first)) => first.replacen('1', &n.to_string(), 1).leak(),
        None => name,
    }
}
