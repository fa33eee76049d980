//! `info`: the backups and the WAL of one stanza or of all, in one repository or several, for people and as pgBackRest's JSON.
//!
//! Promises: the JSON has pgBackRest's keys, alone on standard output and without a newline. A stanza that is not there,
//! or a repository that cannot be read, is an answer with a status of its own, not a failure.

mod json;
mod text;

use std::collections::BTreeSet;

use pgcairn_engine::actions::{self, RepositoryPlace, StanzaInfo};
use pgcairn_engine::repository::snapshot::Manifest;

use super::repositories;
use crate::error::Error;
use crate::settings::Settings;
use crate::{lock, report};

/// What is known of one stanza.
struct View {
    name: String,
    /// What all repositories say, or that they differ.
    status: Status,
    /// What each of them says; never none.
    repositories: Vec<InRepository>,
    /// A backup of it runs on this host.
    backup_runs: bool,
    /// A restore of it runs on this host.
    restore_runs: bool,
    /// Its backups are shown with all their details.
    details: bool,
}

/// A stanza in one repository.
struct InRepository {
    /// The repository's number.
    number: u32,
    status: Status,
    /// None if the stanza is missing or could not be read.
    stanza: Option<StanzaInfo>,
}

/// pgBackRest's status of a stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    Ok,
    MissingStanza,
    NoBackups,
    BackupNotFound,
    Mixed,
    Other(String),
}

impl Status {
    fn code(&self) -> u8 {
        match self {
            Status::Ok => 0,
            Status::MissingStanza => 1,
            Status::NoBackups => 2,
            Status::Mixed => 4,
            Status::BackupNotFound => 6,
            Status::Other(_) => 99,
        }
    }

    fn message(&self) -> &str {
        match self {
            Status::Ok => "ok",
            Status::MissingStanza => "missing stanza path",
            Status::NoBackups => "no valid backups",
            Status::Mixed => "different across repos",
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

/// What one repository answers: its stanzas, or why it cannot be read.
type Answer = (u32, Result<Vec<StanzaInfo>, Status>);

pub(super) fn run(settings: &Settings) -> Result<u8, Error> {
    let name = settings.text("stanza");
    let ask = |place: RepositoryPlace| -> Answer {
        let read = place
            .repository()
            .and_then(|repository| actions::info(&repository, name));
        let unreadable = |error| Status::Other(report::failure_line(&Error::Engine(error)));
        (place.number, read.map_err(unreadable))
    };
    let places = repositories::places(settings)?;
    let views = views(settings, places.into_iter().map(ask).collect());
    match settings.text("output") {
        Some("json") => report::to_stdout(&json::render(&views).to_string())?,
        _ => report::to_stdout(&text::render(&views))?,
    }
    Ok(0)
}

fn views(settings: &Settings, mut answers: Vec<Answer>) -> Vec<View> {
    let mut names: BTreeSet<String> = settings
        .text("stanza")
        .map(str::to_owned)
        .into_iter()
        .collect();
    let read = answers
        .iter()
        .filter_map(|(_, answer)| answer.as_ref().ok());
    names.extend(read.flatten().map(|stanza| stanza.name.clone()));
    if names.is_empty() && answers.iter().any(|(_, answer)| answer.is_err()) {
        // Which stanzas a repository has that cannot be read, nobody knows; pgBackRest then shows one of this name.
        names.insert("[invalid]".to_owned());
    }
    let of_name = |name: String| {
        let copies = answers.iter_mut().map(|(number, answer)| {
            let found = answer.as_mut().map(|stanzas| {
                let at = stanzas.iter().position(|stanza| stanza.name == name)?;
                Some(stanzas.swap_remove(at))
            });
            match found {
                Ok(stanza) => copy(*number, settings.text("set"), stanza),
                Err(status) => InRepository {
                    number: *number,
                    status: status.clone(),
                    stanza: None,
                },
            }
        });
        let copies: Vec<InRepository> = copies.collect();
        view(settings, name, copies)
    };
    names.into_iter().map(of_name).collect()
}

/// What a repository says of a stanza, of which only the backup `set` may be asked for.
fn copy(number: u32, set: Option<&str>, stanza: Option<StanzaInfo>) -> InRepository {
    let Some(mut stanza) = stanza else {
        return InRepository {
            number,
            status: Status::MissingStanza,
            stanza: None,
        };
    };
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
    InRepository {
        number,
        status,
        stanza: Some(stanza),
    }
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

fn view(settings: &Settings, name: String, repositories: Vec<InRepository>) -> View {
    let locks = settings.path("lock-path");
    let mut statuses = repositories.iter().map(|copy| &copy.status);
    let first = statuses.next().cloned().unwrap_or(Status::MissingStanza);
    let status = if statuses.all(|status| status.code() == first.code()) {
        first
    } else {
        Status::Mixed
    };
    View {
        backup_runs: lock::is_held(&locks, &name, "backup"),
        restore_runs: lock::is_held(&locks, &name, "restore"),
        details: settings.text("set").is_some(),
        name,
        status,
        repositories,
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
