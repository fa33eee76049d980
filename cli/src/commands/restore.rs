//! `restore`: one backup into a data directory, and how the server shall recover from there.
//!
//! Promises: the server's `restore_command` calls this program with the options it was given. A target that PostgreSQL
//! would not understand is refused before anything is opened.

use pgcairn_engine::actions::{self, Goal, RepositoryFailure, RestoreOptions, TimelineGoal};
use pgcairn_engine::cluster::recovery::{Recovery, RecoveryType};
use pgcairn_engine::monitor::Tally;
use pgcairn_engine::repository::Repository;
use pgcairn_engine::wal_name::Timeline;

use super::{
    arguments_for, get_spool, host, push_spool, repositories, stanza, take_lock, tell, threads,
};
use crate::clock;
use crate::error::Error;
use crate::log::Log;
use crate::options::Command;
use crate::progress::Progress;
use crate::report;
use crate::settings::Settings;

pub(super) fn run(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let _lock = take_lock(settings, "restore")?;
    let options = options(settings)?;
    let repository = choose(settings, &options, log)?;
    let (tally, progress) = (Tally::default(), Progress::new(log));
    actions::forget_statuses(&push_spool(settings));
    actions::forget_prefetched(&get_spool(settings));
    let summary = actions::restore(&repository, &options, &tally, &progress)?;
    tell(
        settings,
        &progress,
        &report::restore_lines(&summary),
        &report::restore_json(&summary),
    )
}

/// The first repository that has a backup which reaches the target.
fn choose(settings: &Settings, options: &RestoreOptions, log: &Log) -> Result<Repository, Error> {
    let numbers = repositories::numbers(settings)?;
    if let [only] = numbers.as_slice() {
        return repositories::open(settings, *only);
    }
    let mut failures = Vec::new();
    for place in repositories::places(settings)? {
        let able = place.repository().and_then(|repository| {
            actions::can_restore(&repository, options)?;
            Ok(repository)
        });
        match able {
            Ok(repository) => {
                let number = place.number;
                log.info(&format!("restore from repo{number}"));
                if !failures.is_empty() {
                    log.warn(&format!(
                        "the server's recovery does not end while a repository cannot be read, for that may hold more \
                         WAL\nHINT: if it stays away, restore with --repo={number}"
                    ));
                }
                return Ok(repository);
            }
            Err(error) => {
                let number = place.number;
                let failure = RepositoryFailure { number, error };
                log.warn(&failure.to_string());
                failures.push(failure);
            }
        }
    }
    let what = "no repository has a backup that can be restored so".to_owned();
    Err(actions::Error::Repositories { what, failures }.into())
}

fn options(settings: &Settings) -> Result<RestoreOptions, Error> {
    let now_ms = clock::now_ms();
    let program = std::env::current_exe().map_err(|source| Error::OwnPath { source })?;
    let path_pairs = |name| {
        settings
            .pairs(name)
            .iter()
            .map(|(key, path)| (key.clone(), path.into()))
            .collect()
    };
    Ok(RestoreOptions {
        stanza: stanza(settings).to_owned(),
        pgdata: settings.path("pg1-path"),
        cache: settings.path("cache-path"),
        threads: threads(settings),
        delta: settings.flag("delta"),
        force: settings.flag("force"),
        set: settings
            .text("set")
            .filter(|set| *set != "latest")
            .map(str::to_owned),
        tablespace_map: path_pairs("tablespace-map"),
        tablespace_map_all: settings.text("tablespace-map-all").map(Into::into),
        link_map: path_pairs("link-map"),
        link_all: settings.flag("link-all"),
        recovery: recovery(
            settings,
            &restore_command(settings, &program.to_string_lossy()),
        ),
        goal: goal(settings)?,
        timeline: timeline(settings)?,
        recovery_given: settings.given("type"),
        host: host(),
        now_ms,
        stamp: clock::stamp(now_ms),
        time: clock::zoned_time,
    })
}

/// Where recovery is to end, as the engine must know it to choose a backup.
fn goal(settings: &Settings) -> Result<Goal, Error> {
    let target = settings.text("target").unwrap_or_default();
    let own = settings.pairs("recovery-option");
    let mut names = own.iter().map(|(name, _)| name.replace('-', "_"));
    if names.any(|name| name.starts_with("recovery_target")) {
        return Ok(Goal::Open);
    }
    match settings.text("type") {
        Some("time") => {
            clock::parse_target(target)
                .map(Goal::Time)
                .ok_or_else(|| Error::TargetTime {
                    text: target.to_owned(),
                })
        }
        Some("lsn") => target.parse().map(Goal::Lsn).map_err(|_| Error::TargetLsn {
            text: target.to_owned(),
        }),
        Some("xid") => Ok(Goal::Named(format!("transaction {target}"))),
        Some("name") => Ok(Goal::Named(format!("restore point {target}"))),
        Some("immediate") => Ok(Goal::Consistency),
        Some("standby" | "preserve" | "none") => Ok(Goal::Open),
        _ => Ok(Goal::End),
    }
}

/// The timeline to follow: `latest`, `current`, or a number as PostgreSQL reads it.
fn timeline(settings: &Settings) -> Result<TimelineGoal, Error> {
    let text = settings.text("target-timeline").unwrap_or("latest");
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match (text, number) {
        ("latest", _) => Ok(TimelineGoal::Latest),
        ("current", _) => Ok(TimelineGoal::Current),
        (_, Ok(number)) if number > 0 => Ok(TimelineGoal::This(Timeline(number))),
        _ => Err(Error::ValueInvalid {
            name: "target-timeline",
            value: text.to_owned(),
        }),
    }
}

/// What the server is told about its recovery. Settings given with `recovery-option` are the last word.
fn recovery(settings: &Settings, restore_command: &str) -> Recovery {
    let kind = match settings.text("type") {
        Some("immediate") => RecoveryType::Immediate,
        Some("none") => RecoveryType::None,
        Some("preserve") => RecoveryType::Preserve,
        Some("standby") => RecoveryType::Standby,
        _ => RecoveryType::Default,
    };
    let mut chosen: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| chosen.push((name.to_owned(), value.to_owned()));
    if let (Some(target), Some(by)) = (settings.text("target"), settings.text("type")) {
        set(&format!("recovery_target_{by}"), target);
    }
    if settings.flag("target-exclusive") {
        set("recovery_target_inclusive", "false");
    }
    if let Some(action) = settings
        .text("target-action")
        .filter(|action| *action != "pause")
    {
        set("recovery_target_action", action);
    }
    if let Some(timeline) = settings.text("target-timeline") {
        set("recovery_target_timeline", timeline);
    }
    if settings.text("archive-mode") == Some("off") {
        set("archive_mode", "off");
    }
    let mut restore_command = restore_command.to_owned();
    for (name, value) in settings.pairs("recovery-option") {
        let name = name.replace('-', "_");
        if name == "restore_command" {
            restore_command.clone_from(value);
            continue;
        }
        chosen.retain(|(other, _)| *other != name);
        chosen.push((name, value.clone()));
    }
    Recovery {
        kind,
        restore_command,
        settings: chosen,
    }
}

/// This program with the options that `archive-get` needs and that the configuration file does not hold.
fn restore_command(settings: &Settings, program: &str) -> String {
    let given = arguments_for(settings, Command::ArchiveGet);
    let words = std::iter::once(program.to_owned())
        .chain(given)
        .map(|word| quoted(&word));
    format!(
        "{} archive-get %f \"%p\"",
        words.collect::<Vec<_>>().join(" ")
    )
}

/// A word for the shell, behind PostgreSQL's own replacement of `%`.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.,:@+%".contains(c);
    let word = word.replace('%', "%%");
    if word.chars().all(plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::{arguments, config, ini};

    fn settle(line: &str) -> Settings {
        let words = std::iter::once("pgcairn")
            .chain(line.split_whitespace())
            .map(OsString::from);
        let line = arguments::parse(words).unwrap();
        let file = ini::parse("[demo]\npg1-path=/pg\n").unwrap();
        config::merge(line, &std::collections::BTreeMap::new(), &file).unwrap()
    }

    #[test]
    fn the_server_fetches_wal_with_the_options_that_restore_was_given() {
        let settings = settle(
            "restore --stanza=demo --config=/a/b --delta --log-level-console=info --repo1-path=/r%1/it's",
        );
        assert_eq!(
            restore_command(&settings, "/usr/bin/pgcairn"),
            "/usr/bin/pgcairn --config=/a/b '--repo1-path=/r%%1/it'\\''s' --stanza=demo archive-get %f \"%p\""
        );
    }

    #[test]
    fn a_target_becomes_the_settings_of_the_server() {
        let line = "restore --stanza=demo --type=xid --target=7 --target-exclusive --target-action=promote \
                    --target-timeline=2 --archive-mode=off --recovery-option=primary-conninfo=host=a";
        let recovery = recovery(&settle(line), "get");
        let settings: Vec<_> = recovery
            .settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            settings,
            [
                "recovery_target_xid=7",
                "recovery_target_inclusive=false",
                "recovery_target_action=promote",
                "recovery_target_timeline=2",
                "archive_mode=off",
                "primary_conninfo=host=a",
            ]
        );
        assert_eq!(recovery.restore_command, "get");
    }

    #[test]
    fn a_recovery_option_is_the_last_word() {
        let line = "restore --stanza=demo --target-timeline=2 --recovery-option=recovery_target_timeline=3 \
                    --recovery-option=restore_command=cp";
        let recovery = recovery(&settle(line), "get");
        assert_eq!(
            recovery.settings,
            [("recovery_target_timeline".to_owned(), "3".to_owned())]
        );
        assert_eq!(recovery.restore_command, "cp");
    }
}
