//! `verify`: whether what is stored can be restored, in each repository, for people and as JSON.
//!
//! Promises: the report is complete before anything is called an error; the exit code is 0 only if every backup can be
//! restored and no damage was found that was not known. A hole in the WAL that no backup needs is shown and is no error.

use std::fmt::{self, Write};

use pgcairn_engine::actions::{
    self, ErrorKind, VerifiedBackup, VerifiedStanza, VerifyOptions, VerifySummary, WalRange,
};
use pgcairn_engine::monitor::Tally;
use serde_json::{Value, json};

use super::{host, repositories, threads};
use crate::clock;
use crate::error::Error;
use crate::log::Log;
use crate::progress::Progress;
use crate::report::{self, bytes};
use crate::settings::Settings;

pub(super) fn run(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let options = VerifyOptions {
        stanza: settings.text("stanza").map(str::to_owned),
        set: settings.text("set").map(str::to_owned),
        cache: settings.path("cache-path"),
        threads: threads(settings),
        host: host(),
        now_ms: clock::now_ms(),
    };
    if options.set.is_some() && options.stanza.is_none() {
        let (name, needed) = ("set".to_owned(), "stanza".to_owned());
        return Err(Error::OptionWithout { name, needed });
    }
    let mut answers = Vec::new();
    for place in repositories::places(settings)? {
        let (tally, progress) = (Tally::default(), Progress::new(log));
        let verified = place
            .repository()
            .and_then(|repository| actions::verify(&repository, &options, &tally, &progress));
        progress.finish(&[]);
        answers.push((place.number, verified.map_err(Error::Engine)));
    }
    if settings.text("output") == Some("json") {
        let all: Value = answers.iter().map(answer_json).collect();
        report::to_stdout(&all.to_string())?;
    } else {
        let all: String = answers.iter().map(answer_text).collect();
        report::to_stdout(&all)?;
    }
    // A backup that was asked for is in one of them.
    let is_found = answers.iter().any(|(_, answer)| answer.is_ok());
    for (number, answer) in answers {
        match answer {
            Err(Error::Engine(error)) if is_found && error.kind() == ErrorKind::BackupNotFound => {}
            answer => judge(number, &answer?)?,
        }
    }
    Ok(0)
}

/// What came out for the repository of this number.
type Answer = (u32, Result<VerifySummary, Error>);

/// What is wrong with a repository, in one sentence.
fn judge(number: u32, verified: &VerifySummary) -> Result<(), Error> {
    let (lost, of) = verified.unrestorable();
    let problems = verified.problems;
    let told = match (lost, problems) {
        (0, 0) => return Ok(()),
        (0, _) => format!(
            "repo{number}: {problems} problem(s) were found; all {of} backups can be restored"
        ),
        _ => format!(
            "repo{number}: {lost} of {of} backups cannot be restored, {problems} problem(s) were found"
        ),
    };
    Err(Error::Verified { told })
}

fn answer_text((number, answer): &Answer) -> String {
    let mut text = String::new();
    // Writing into a String does not fail.
    let _infallible = match answer {
        Ok(verified) => repository_text(&mut text, *number, verified),
        Err(error) => writeln!(
            text,
            "repo{number}: not verified: {}",
            report::failure_line(error)
        ),
    };
    text
}

fn repository_text(text: &mut String, number: u32, verified: &VerifySummary) -> fmt::Result {
    writeln!(
        text,
        "repo{number}: {} in {} chunks of {} packs read, {} problem(s)",
        bytes(verified.pack_bytes),
        verified.chunks,
        verified.packs,
        verified.problems
    )?;
    if verified.known_damaged > 0 {
        writeln!(
            text,
            "    {} copies of chunks are known to be damaged; nothing uses them",
            verified.known_damaged
        )?;
    }
    verified
        .stanzas
        .iter()
        .try_for_each(|stanza| stanza_text(text, stanza))
}

fn stanza_text(text: &mut String, stanza: &VerifiedStanza) -> fmt::Result {
    writeln!(text, "stanza: {}", stanza.name)?;
    let lost = stanza
        .backups
        .iter()
        .filter(|backup| !backup.is_restorable())
        .count();
    match lost {
        0 => writeln!(text, "    status: ok")?,
        _ => writeln!(
            text,
            "    status: error ({lost} of {} backups cannot be restored)",
            stanza.backups.len()
        )?,
    }
    for epoch in &stanza.epochs {
        writeln!(
            text,
            "    wal archive ({}): {} files read, {}",
            epoch.name,
            epoch.files,
            bytes(epoch.bytes)
        )?;
        for window in &epoch.timelines {
            let ranges: Vec<String> = window.ranges.iter().map(range_text).collect();
            writeln!(
                text,
                "        wal timeline {}: {}",
                window.timeline.0,
                ranges.join(", ")
            )?;
            for hole in &window.missing {
                writeln!(
                    text,
                    "            warning: {} missing or damaged, {}",
                    hole.segments,
                    range_text(hole)
                )?;
            }
        }
    }
    for backup in &stanza.backups {
        backup_text(text, backup)?;
    }
    Ok(())
}

fn range_text(range: &WalRange) -> String {
    format!("{}/{}", range.first, range.last)
}

fn backup_text(text: &mut String, backup: &VerifiedBackup) -> fmt::Result {
    if backup.is_restorable() {
        return writeln!(text, "    backup: {}: can be restored", backup.label);
    }
    writeln!(text, "    backup: {}: cannot be restored", backup.label)?;
    for loss in &backup.losses {
        writeln!(text, "        {loss}")?;
    }
    match backup.more_losses {
        0 => Ok(()),
        more => writeln!(text, "        and {more} more"),
    }
}

fn answer_json((number, answer): &Answer) -> Value {
    match answer {
        Ok(verified) => json!({
            "repo": number,
            "status": if judge(*number, verified).is_ok() { "ok" } else { "error" },
            "problems": verified.problems,
            "known-damaged": verified.known_damaged,
            "packs": verified.packs,
            "pack-bytes": verified.pack_bytes,
            "chunks": verified.chunks,
            "stanza": verified.stanzas.iter().map(stanza_json).collect::<Value>(),
        }),
        Err(error) => json!({
            "repo": number,
            "status": "unknown",
            "message": report::failure_line(error),
        }),
    }
}

fn stanza_json(stanza: &VerifiedStanza) -> Value {
    let range = |range: &WalRange| json!({"min": range.first, "max": range.last, "segments": range.segments});
    let archives = stanza.epochs.iter().map(|epoch| {
        let timelines = epoch.timelines.iter().map(|window| {
            json!({
                "timeline": window.timeline.0,
                "range": window.ranges.iter().map(range).collect::<Value>(),
                "missing": window.missing.iter().map(range).collect::<Value>(),
            })
        });
        json!({
            "id": epoch.name,
            "version": epoch.version.to_string(),
            "files": epoch.files,
            "bytes": epoch.bytes,
            "timeline": timelines.collect::<Value>(),
        })
    });
    let backups = stanza.backups.iter().map(|backup| {
        json!({
            "label": backup.label,
            "restorable": backup.is_restorable(),
            "loss": backup.losses,
            "more-losses": backup.more_losses,
        })
    });
    json!({
        "name": stanza.name,
        "archive": archives.collect::<Value>(),
        "backup": backups.collect::<Value>(),
    })
}
