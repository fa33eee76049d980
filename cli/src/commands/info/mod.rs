//! `info`: the backups and the WAL of one stanza or of all, for people and as pgBackRest's JSON.
//!
//! Promises: the JSON has pgBackRest's keys, alone on standard output and without a newline. A stanza that is not there,
//! or a repository that cannot be read, is an answer with a status of its own, not a failure.

mod json;
mod text;

use pgcairn_engine::actions::{self, StanzaInfo};
use pgcairn_engine::repository::snapshot::Manifest;

use super::open_repository;
use crate::error::Error;
use crate::settings::Settings;
use crate::{lock, report};

/// What is known of one stanza.
struct View {
    name: String,
    status: Status,
    /// None if the stanza is missing or could not be read.
    stanza: Option<StanzaInfo>,
    /// A backup of it runs on this host.
    backup_runs: bool,
    /// A restore of it runs on this host.
    restore_runs: bool,
    /// Its backups are shown with all their details.
    details: bool,
}

/// pgBackRest's status of a stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    Ok,
    MissingStanza,
    NoBackups,
    BackupNotFound,
    Other(String),
}

impl Status {
    fn code(&self) -> u8 {
        match self {
            Status::Ok => 0,
            Status::MissingStanza => 1,
            Status::NoBackups => 2,
            Status::BackupNotFound => 6,
            Status::Other(_) => 99,
        }
    }

    fn message(&self) -> &str {
        match self {
            Status::Ok => "ok",
            Status::MissingStanza => "missing stanza path",
            Status::NoBackups => "no valid backups",
            Status::BackupNotFound => "requested backup not found",
            Status::Other(_) => "other",
        }
    }

    /// The message that a repository shows: what is behind "other".
    fn repository_message(&self) -> &str {
        match self {
            Status::Other(message) => message,
            _ => self.message(),
        }
    }
}

pub(super) fn run(settings: &Settings) -> Result<u8, Error> {
    let name = settings.text("stanza");
    let views = match open_repository(settings)
        .and_then(|repository| Ok(actions::info(&repository, name)?))
    {
        Ok(stanzas) => views(settings, stanzas),
        // Which stanzas a repository has that cannot be read, nobody knows; pgBackRest then shows one of this name.
        Err(error @ Error::Engine(_)) => {
            let status = Status::Other(report::failure_line(&error));
            vec![view(settings, name.unwrap_or("[invalid]"), status, None)]
        }
        Err(error) => return Err(error),
    };
    match settings.text("output") {
        Some("json") => report::to_stdout(&json::render(&views).to_string())?,
        _ => report::to_stdout(&text::render(&views))?,
    }
    Ok(0)
}

fn views(settings: &Settings, stanzas: Vec<StanzaInfo>) -> Vec<View> {
    if let (true, Some(name)) = (stanzas.is_empty(), settings.text("stanza")) {
        return vec![view(settings, name, Status::MissingStanza, None)];
    }
    let set = settings.text("set");
    let shown = stanzas.into_iter().map(|mut stanza| {
        let mut status = if !stanza.unreadable.is_empty() {
            Status::Other(unreadable(&stanza))
        } else if stanza.backups.is_empty() {
            Status::NoBackups
        } else {
            Status::Ok
        };
        if let Some(set) = set {
            stanza.backups.retain(|backup| backup.label == set);
            stanza.unreadable.retain(|backup| backup.label == set);
            status = match (stanza.backups.is_empty(), stanza.unreadable.is_empty()) {
                (false, _) => Status::Ok,
                (true, false) => Status::Other(unreadable(&stanza)),
                (true, true) => Status::BackupNotFound,
            };
        }
        let name = stanza.name.clone();
        view(settings, &name, status, Some(stanza))
    });
    shown.collect()
}

/// The backups of which nothing but the label is known, one a line.
fn unreadable(stanza: &StanzaInfo) -> String {
    let lines = stanza.unreadable.iter().map(|backup| {
        format!(
            "backup {} cannot be restored: {}",
            backup.label, backup.reason
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn view(settings: &Settings, name: &str, status: Status, stanza: Option<StanzaInfo>) -> View {
    let locks = settings.path("lock-path");
    View {
        name: name.to_owned(),
        status,
        stanza,
        backup_runs: lock::is_held(&locks, name, "backup"),
        restore_runs: lock::is_held(&locks, name, "restore"),
        details: settings.text("set").is_some(),
    }
}

/// The database id of the epoch that a backup belongs to, from 1.
fn database_id(stanza: &StanzaInfo, backup: &Manifest) -> u32 {
    stanza
        .epochs
        .iter()
        .find(|epoch| epoch.n == backup.epoch)
        .map_or(0, |epoch| epoch.id)
}

#[cfg(test)]
mod tests;
