//! Getting one WAL file out of the archive.
//!
//! Promises: a get answers "not there" only if that is the end of the WAL as far as anybody can tell: the repository and
//! the stanza were read, the file is absent, no gap record covers it, and no later segment of its timeline exists; every
//! other answer is an error, "cannot tell". What it hands over is the segment of that name, and of this cluster.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::actions::error::{Error, Result};
use crate::actions::pipeline::pause;
use crate::actions::stanza::{epoch_of, epochs_of};
use crate::cluster::control_file::{self, ControlFile};
use crate::cluster::wal_header;
use crate::ids::Namer;
use crate::pack::wal as wal_object;
use crate::repository::stanza::Epoch;
use crate::repository::{Repository, layout, wal};
use crate::wal_name::{Segment, Timeline, WalFile};

/// How often a segment that may still arrive is looked for.
const POLL: Duration = Duration::from_millis(200);

/// What pushing and getting need to know.
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// The stanza.
    pub stanza: String,
    /// The cluster's data directory.
    pub pgdata: PathBuf,
    /// Where the stanza's epoch is remembered from one push to the next.
    pub cache: PathBuf,
    /// zstd level.
    pub compress_level: i32,
    /// Working threads.
    pub threads: usize,
    /// Check that a segment's header is of this cluster.
    pub header_check: bool,
    /// How long a get looks again for a segment that is absent although later ones are there.
    pub timeout: Duration,
}

/// What became of a get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// The file is at its destination.
    Fetched,
    /// The archive ends before it.
    NotThere,
}

/// A cluster that is not the stanza's is another kind of error here than for a backup.
pub(super) fn as_archiving(mut error: Error) -> Error {
    if let Error::ForeignCluster { archiving, .. } = &mut error {
        *archiving = true;
    }
    error
}

/// The file that an object of the archive holds.
pub(super) fn decode(object: &[u8], key: String) -> Result<Vec<u8>> {
    let namer = Namer::plain();
    wal_object::decode(&namer, object).map_err(|source| Error::WalDamaged { key, source })
}

/// The key of a file in the archive, as errors name it.
pub(super) fn key_of(stanza: &str, epoch: &str, name: &str) -> Result<String> {
    layout::wal(stanza, epoch, name)
        .map(|key| key.to_string())
        .map_err(Error::Repository)
}

/// Checks by its header that a segment of `bytes` is what its name says, and of this cluster.
pub(super) fn check_header(
    head: &[u8],
    bytes: u64,
    name: &str,
    control: &ControlFile,
    foreign: impl Fn(String) -> Error,
) -> Result<()> {
    let header = wal_header::parse(head).map_err(|error| foreign(error.to_string()))?;
    if header.system_id != control.system_id {
        return Err(foreign(format!(
            "system id {}, the cluster has {}",
            header.system_id, control.system_id
        )));
    }
    if header.version != control.version {
        return Err(foreign(format!(
            "PostgreSQL {}, the cluster is {}",
            header.version, control.version
        )));
    }
    let segment_bytes = header.segment_bytes;
    if bytes != u64::from(segment_bytes) {
        return Err(foreign(format!(
            "{bytes} bytes long, a segment has {segment_bytes}"
        )));
    }
    let segment = name.split('.').next().unwrap_or_default();
    let named =
        Segment::parse(segment, segment_bytes).map_err(|error| foreign(error.to_string()))?;
    if named.number * u64::from(segment_bytes) != header.page_address.0 {
        return Err(foreign(format!("it begins at {}", header.page_address)));
    }
    Ok(())
}

/// Fetches one WAL file to `destination`, which is relative to the data directory, as `%p` is.
pub fn archive_get(
    repository: &Repository,
    options: &ArchiveOptions,
    name: &str,
    destination: &Path,
) -> Result<Got> {
    let kind = WalFile::of(name).map_err(|_| Error::NotWal(name.to_owned()))?;
    let control = control_file::read(&options.pgdata).map_err(Error::Cluster)?;
    let epochs: Vec<Epoch> = epochs_of(repository, &options.stanza)?
        .into_iter()
        .filter(|epoch| epoch.system_id == control.system_id && epoch.version == control.version)
        .collect();
    let Some(epoch) = epochs.last() else {
        return epoch_of(repository, &options.stanza, &control, &options.pgdata)
            .map(|_| Got::NotThere)
            .map_err(as_archiving);
    };
    let begun = Instant::now();
    loop {
        match wal::get(
            repository.storage.as_ref(),
            &options.stanza,
            &epoch.name(),
            name,
        ) {
            Ok(object) => {
                let key = key_of(&options.stanza, &epoch.name(), name)?;
                let raw = decode(&object, key.clone())?;
                // PostgreSQL would take another segment's content for the end of the WAL.
                if options.header_check && matches!(kind, WalFile::Segment | WalFile::Partial) {
                    check_header(&raw, raw.len() as u64, name, &control, |found| {
                        Error::WalMisplaced {
                            key: key.clone(),
                            found,
                        }
                    })?;
                }
                write(&options.pgdata.join(destination), &raw)?;
                return Ok(Got::Fetched);
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(Error::Repository(error)),
        }
        let Some(evidence) = evidence_of_more(repository, options, epoch, name)? else {
            return Ok(Got::NotThere);
        };
        if begun.elapsed() >= options.timeout {
            return Err(Error::WalHole {
                name: name.to_owned(),
                evidence,
            });
        }
        // Segments may arrive out of order.
        pause(POLL);
    }
}

/// What says that the WAL does not end before this absent file, if anything does.
fn evidence_of_more(
    repository: &Repository,
    options: &ArchiveOptions,
    epoch: &Epoch,
    name: &str,
) -> Result<Option<String>> {
    if WalFile::of(name) != Ok(WalFile::Segment) {
        return Ok(None);
    }
    let (stanza, epoch) = (&options.stanza, epoch.name());
    if let Some(gap) =
        wal::gap_covering(repository, stanza, &epoch, name).map_err(Error::Repository)?
    {
        return Ok(Some(format!(
            "segments {} to {} were dropped by archive-push",
            gap.first, gap.last
        )));
    }
    let timeline = name
        .get(..8)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let Some(timeline) = timeline.map(Timeline) else {
        return Ok(None);
    };
    let later =
        wal::first_after(repository, stanza, &epoch, timeline, name).map_err(Error::Repository)?;
    Ok(later.map(|later| format!("{later} is there")))
}

/// Writes a fetched file whole: PostgreSQL must never see a part of a segment.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".pgcairn.tmp");
    let temporary = PathBuf::from(temporary);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|source| {
        drop(fs::remove_file(&temporary));
        Error::WriteFile {
            path: path.to_owned(),
            source,
        }
    })
}
