//! What is in a repository: stanzas, their epochs, their WAL, their backups.

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::label::{backups, running};
use crate::actions::wal_window::{self, TimelineWindow};
use crate::repository::snapshot::{self, Manifest};
use crate::repository::{Repository, stanza, wal};

/// One stanza.
#[derive(Debug, Clone)]
pub struct StanzaInfo {
    /// Its name.
    pub name: String,
    /// Its epochs, oldest first.
    pub epochs: Vec<EpochInfo>,
    /// Its committed backups that are not forgotten, oldest first.
    pub backups: Vec<Manifest>,
    /// Backups whose record cannot be read, oldest first.
    pub unreadable: Vec<UnreadableBackup>,
    /// Backups that were announced and are not decided: running, or crashed.
    pub undecided: u32,
}

/// A backup whose record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableBackup {
    /// Its label.
    pub label: String,
    /// What is wrong with the record, and its key.
    pub reason: String,
}

/// One epoch: a system identifier and a version that the stanza had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochInfo {
    /// The number of its record.
    pub n: u32,
    /// Its name, as `15-1`.
    pub name: String,
    /// Its place among the stanza's epochs, from 1.
    pub id: u32,
    /// The system identifier.
    pub system_id: u64,
    /// The major version.
    pub version: u32,
    /// The first segment in the archive.
    pub wal_min: Option<String>,
    /// The last segment in the archive.
    pub wal_max: Option<String>,
    /// What is there on each timeline, and what is missing; empty while no backup tells the size of a segment.
    pub timelines: Vec<TimelineWindow>,
}

/// Tells of one stanza, or of all; a stanza that does not exist is not in the answer.
pub fn info(repository: &Repository, stanza: Option<&str>) -> Result<Vec<StanzaInfo>> {
    let names = match stanza {
        Some(name) => vec![name.to_owned()],
        None => stanza::list_stanzas(repository).map_err(Error::Repository)?,
    };
    let mut infos = Vec::new();
    for name in names {
        let epochs = stanza::epochs(repository, &name).map_err(Error::Repository)?;
        if !epochs.is_empty() {
            infos.push(of_stanza(repository, name, &epochs)?);
        }
    }
    Ok(infos)
}

/// The segments of an epoch by name, and what is there and missing on each of its timelines.
pub(super) fn wal_of(
    repository: &Repository,
    stanza: &str,
    epoch: &stanza::Epoch,
    segment_bytes: Option<u32>,
) -> Result<(Vec<String>, Vec<TimelineWindow>)> {
    let contents = wal::contents(repository, stanza, &epoch.name()).map_err(Error::Repository)?;
    let timelines = segment_bytes.map_or_else(Vec::new, |segment_bytes| {
        wal_window::windows(&contents, segment_bytes)
    });
    Ok((contents.segments, timelines))
}

fn of_stanza(
    repository: &Repository,
    name: String,
    epochs: &[stanza::Epoch],
) -> Result<StanzaInfo> {
    let decided = snapshot::list(repository, &name).map_err(Error::Repository)?;
    let found = backups(repository, &decided)?;
    let unreadable = found
        .unreadable
        .into_iter()
        .map(|unreadable| UnreadableBackup {
            reason: with_causes(&unreadable.error),
            label: unreadable.label,
        });
    let committed = found.committed.into_iter().map(|backup| backup.manifest);
    let committed: Vec<Manifest> = committed.collect();
    let mut listed = Vec::new();
    for (id, epoch) in (1..).zip(epochs) {
        let epoch_name = epoch.name();
        let segment_bytes = committed
            .iter()
            .rev()
            .find(|backup| backup.epoch == epoch.n)
            .map(|backup| backup.wal_segment_bytes);
        let (segments, timelines) = wal_of(repository, &name, epoch, segment_bytes)?;
        listed.push(EpochInfo {
            n: epoch.n,
            name: epoch_name,
            id,
            system_id: epoch.system_id,
            version: epoch.version,
            wal_min: segments.first().cloned(),
            wal_max: segments.last().cloned(),
            timelines,
        });
    }
    let running = running(repository, &name)?;
    let undecided = running
        .iter()
        .filter(|run| decided.iter().all(|snapshot| snapshot.run != run.run))
        .count();
    Ok(StanzaInfo {
        name,
        epochs: listed,
        backups: committed,
        unreadable: unreadable.collect(),
        undecided: u32::try_from(undecided).unwrap_or(u32::MAX),
    })
}
