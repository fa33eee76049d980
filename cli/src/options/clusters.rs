//! The rows of `pg2-…` to `pg8-…`: the clusters of a stanza beside the first.
//!
//! Promises: each has the options of the first, without any that is required: what is not configured is not there. Only
//! commands that speak with several servers take them.

use super::Command::{Backup, Check};
use super::Effect::Unsupported;
use super::Kind::{Number, Path, Text};
use super::begin::pg;
use super::table::ROWS;
use super::{Command, OptionRow};

const SEVERAL: &[Command] = &[Backup, Check];

/// The numbers that a cluster may have, besides 1, are those of the rows below.
pub(crate) const LAST_CLUSTER: u32 = 8;

macro_rules! further_clusters {
    ($($number:literal)*) => {
        [$(
            pg(concat!("pg", $number, "-database"), Text, SEVERAL, "PostgreSQL database").default("postgres"),
            pg(
                concat!("pg", $number, "-host"),
                Text,
                SEVERAL,
                "PostgreSQL host for operating remotely",
            )
            .effect(Unsupported),
            pg(concat!("pg", $number, "-path"), Path, SEVERAL, "PostgreSQL data directory"),
            pg(concat!("pg", $number, "-port"), Number(1, 65535), SEVERAL, "PostgreSQL port").default("5432"),
            pg(concat!("pg", $number, "-socket-path"), Path, SEVERAL, "PostgreSQL unix socket path"),
            pg(concat!("pg", $number, "-user"), Text, SEVERAL, "PostgreSQL database user"),
        )*]
    };
}

const FURTHER: &[OptionRow] = &further_clusters!(2 3 4 5 6 7 8);

/// The rows of the table, and those of the further clusters.
#[expect(clippy::large_stack_arrays, reason = "the compiler alone evaluates it")]
pub(super) const fn all() -> [OptionRow; ROWS.len() + FURTHER.len()] {
    let mut all = [ROWS[0]; ROWS.len() + FURTHER.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < ROWS.len() {
            ROWS[at]
        } else {
            FURTHER[at - ROWS.len()]
        };
        at += 1;
    }
    all
}
