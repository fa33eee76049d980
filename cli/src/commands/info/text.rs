//! pgBackRest's text layout of `info`.

use std::fmt::{self, Write};

use pgcairn_engine::actions::EpochInfo;
use pgcairn_engine::repository::snapshot::Manifest;

use super::{Status, View};
use crate::clock::zoned_time;
use crate::report::bytes;

pub(super) fn render(views: &[View]) -> String {
    if views.is_empty() {
        return "No stanzas exist in the repository.\n".to_owned();
    }
    let mut text = String::new();
    for (n, view) in views.iter().enumerate() {
        if n > 0 {
            text.push('\n');
        }
        // Writing into a String does not fail.
        let _infallible = stanza(&mut text, view);
    }
    text
}

fn stanza(text: &mut String, view: &View) -> fmt::Result {
    let runs = match (view.backup_runs, view.restore_runs) {
        (true, true) => " (backup/expire running, restore running)",
        (true, false) => " (backup/expire running)",
        (false, true) => " (restore running)",
        (false, false) => "",
    };
    writeln!(text, "stanza: {}", view.name)?;
    match &view.status {
        Status::Ok => writeln!(text, "    status: ok{runs}")?,
        Status::Mixed => writeln!(text, "    status: mixed{runs}")?,
        status => writeln!(text, "    status: error ({}){runs}", status.message())?,
    }
    let alone = view.repositories.len() == 1;
    for copy in &view.repositories {
        if view.status == Status::Mixed {
            let told = match &copy.status {
                Status::Ok => "ok".to_owned(),
                status => format!("error ({})", status.message()),
            };
            writeln!(text, "        repo{}: {told}", copy.number)?;
        }
        if let Status::Other(message) = &copy.status {
            let message = message.replace('\n', "\n            ");
            writeln!(text, "            {message}")?;
        }
        let undecided = copy.stanza.as_ref().map_or(0, |stanza| stanza.undecided);
        if undecided > 0 && !view.backup_runs {
            writeln!(
                text,
                "    backups without an outcome (running on another host, or crashed): {undecided}"
            )?;
        }
    }
    if view.repositories.iter().any(|copy| copy.stanza.is_some()) {
        writeln!(text, "    cipher: none")?;
    }
    let copies = view.repositories.iter();
    for (copy, info) in copies.filter_map(|copy| Some((copy, copy.stanza.as_ref()?))) {
        let place = if alone {
            String::new()
        } else {
            format!(" on repo{}", copy.number)
        };
        for (n, epoch) in info.epochs.iter().rev().enumerate() {
            let backups: Vec<_> = info
                .backups
                .iter()
                .filter(|backup| backup.epoch == epoch.n)
                .collect();
            if n > 0 && backups.is_empty() && epoch.wal_min.is_none() {
                continue;
            }
            let age = if n == 0 { "current" } else { "prior" };
            writeln!(text, "\n    db ({age}){place}")?;
            epoch_text(text, epoch)?;
            backups
                .into_iter()
                .try_for_each(|manifest| backup(text, manifest, copy.number, view.details))?;
        }
    }
    Ok(())
}

fn epoch_text(text: &mut String, epoch: &EpochInfo) -> fmt::Result {
    let range = match (&epoch.wal_min, &epoch.wal_max) {
        (Some(min), Some(max)) => format!("{min}/{max}"),
        _ => "none present".to_owned(),
    };
    writeln!(
        text,
        "        wal archive min/max ({}): {range}",
        epoch.version
    )?;
    // One timeline without a hole is what the line above says.
    let plain = matches!(epoch.timelines.as_slice(), [only] if only.ranges.len() < 2 && only.missing.is_empty());
    if plain {
        return Ok(());
    }
    for window in &epoch.timelines {
        let ranges = window
            .ranges
            .iter()
            .map(|range| format!("{}/{}", range.first, range.last));
        let ranges = ranges.collect::<Vec<_>>().join(", ");
        writeln!(text, "        wal timeline {}: {ranges}", window.timeline.0)?;
        for hole in &window.missing {
            writeln!(
                text,
                "            error: {} missing, {}/{}",
                hole.segments, hole.first, hole.last
            )?;
        }
    }
    Ok(())
}

fn backup(text: &mut String, manifest: &Manifest, number: u32, details: bool) -> fmt::Result {
    let sums = &manifest.sums;
    writeln!(
        text,
        "\n        {} backup: {}",
        manifest.backup_type.name(),
        manifest.label
    )?;
    let (start, stop) = (zoned_time(manifest.start_ms), zoned_time(manifest.stop_ms));
    writeln!(text, "            timestamp start/stop: {start} / {stop}")?;
    match (&manifest.wal_start, &manifest.wal_stop) {
        (Some(start), Some(stop)) => {
            writeln!(text, "            wal start/stop: {start} / {stop}")?;
        }
        _ => writeln!(text, "            wal start/stop: n/a")?,
    }
    if details && manifest.online {
        writeln!(
            text,
            "            lsn start/stop: {} / {}",
            manifest.start_lsn, manifest.stop_lsn
        )?;
    }
    let (size, read) = (bytes(sums.file_bytes), bytes(sums.read_bytes));
    writeln!(
        text,
        "            database size: {size}, database backup size: {read}"
    )?;
    let (set, new) = (bytes(sums.tree_stored_bytes), bytes(sums.stored_bytes));
    writeln!(
        text,
        "            repo{number}: backup set size: {set}, backup size: {new}"
    )?;
    if details {
        lists(text, manifest)?;
    }
    if sums.bad_pages > 0 {
        let pages = if sums.bad_pages == 1 { "page" } else { "pages" };
        writeln!(
            text,
            "            error(s) detected during backup: {} {pages} with a bad checksum",
            sums.bad_pages
        )?;
    }
    Ok(())
}

fn lists(text: &mut String, manifest: &Manifest) -> fmt::Result {
    let databases = manifest
        .databases
        .iter()
        .map(|database| format!("{} ({})", database.name, database.oid));
    let databases = databases.collect::<Vec<_>>();
    let databases = if databases.is_empty() {
        "none".to_owned()
    } else {
        databases.join(", ")
    };
    writeln!(text, "            database list: {databases}")?;
    if !manifest.tablespaces.is_empty() {
        writeln!(text, "            tablespaces:")?;
    }
    for tablespace in &manifest.tablespaces {
        let location = String::from_utf8_lossy(&tablespace.location);
        writeln!(
            text,
            "                {} ({}) => {location}",
            tablespace.name, tablespace.oid
        )?;
    }
    Ok(())
}
