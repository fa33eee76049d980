//! Archiving all that PostgreSQL has ready, ahead of its asking, and giving up segments when too many wait.
//!
//! Promises: a segment's status says `ok` only once it is durable in the repository, or dropped because more waited than
//! `archive-push-queue-max` allows. What is dropped is written down as a gap, in the spool first and then in the
//! repository, before anybody is told: recovery never takes it for the end of the WAL. WAL is not copied to the spool;
//! a status that is lost costs a second push, which finds the segment there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::actions::archive::ArchiveOptions;
use crate::actions::archive_push::{Pushed, archive_push};
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::pipeline::map;
use crate::actions::stanza::epoch_of;
use crate::cluster::control_file;
use crate::monitor::Monitor;
use crate::repository;
use crate::repository::wal::{self, WalGap};
use crate::storage::Storage;
use crate::wal_name::{Segment, WalFile};

const READY: &str = ".ready";
const OK: &str = "ok";
const ERROR: &str = "error";
const GAP: &str = "gap";

/// Where statuses lie, and how much WAL may wait.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    /// What a push needs to know.
    pub archive: ArchiveOptions,
    /// The stanza's folder in the spool.
    pub spool: PathBuf,
    /// More bytes of WAL than this are given up; `None`: never.
    pub queue_max: Option<u64>,
}

/// What became of a file that waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushStatus {
    /// It is in the repository, or was dropped; with a warning, if there is one.
    Done(Option<String>),
    /// It could not be pushed.
    Failed(String),
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueSummary {
    /// Files pushed.
    pub pushed: u64,
    /// Files given up.
    pub dropped: u64,
    /// Files that could not be pushed.
    pub failed: u64,
}

/// The status of a file, if there is one.
pub fn push_status(spool: &Path, name: &str) -> Option<PushStatus> {
    let read = |kind| fs::read_to_string(status_path(spool, name, kind)).ok();
    match read(OK) {
        Some(text) => Some(PushStatus::Done(Some(text).filter(|text| !text.is_empty()))),
        None => read(ERROR).map(PushStatus::Failed),
    }
}

/// Takes a failure's status away, so that the file is pushed again.
pub fn forget_failure(spool: &Path, name: &str) {
    // If it stays, the failure is told once more.
    drop(fs::remove_file(status_path(spool, name, ERROR)));
}

/// Forgets what became of all files: after a restore the same names may hold other WAL. Gaps stay known.
pub fn forget_statuses(spool: &Path) {
    remove_stale(spool, &[]);
}

/// Drops one file if more waits than may; for a server that pushes its files one by one. Whether it was dropped.
pub fn drop_if_too_many(
    storage: Option<&Arc<dyn Storage>>,
    options: &QueueOptions,
    name: &str,
) -> Result<bool> {
    make_spool(options)?;
    let waiting = ready(&options.archive.pgdata)?;
    let excess = excess(options, &waiting)?;
    if let Some(bytes) = excess {
        give_up(options, &[name.to_owned()], bytes)?;
    }
    if let Some(storage) = storage {
        record_gaps(storage, options);
    }
    Ok(excess.is_some())
}

/// Pushes all files that are ready, again and again until no new one is. A storage that cannot be opened is the failure of
/// each of them, unless too many wait.
pub fn push_queue(
    storage: Result<Arc<dyn Storage>>,
    options: &QueueOptions,
    monitor: &dyn Monitor,
) -> Result<QueueSummary> {
    make_spool(options)?;
    let storage = match storage {
        Ok(storage) => storage,
        Err(error) => return fail_all(options, error),
    };
    let storage = &storage;
    let mut summary = QueueSummary::default();
    let mut tried: BTreeSet<String> = BTreeSet::new();
    loop {
        record_gaps(storage, options);
        let ready = ready(&options.archive.pgdata)?;
        remove_stale(&options.spool, &ready);
        let mut waiting = without_status(options, &ready);
        if let Some(bytes) = excess(options, &waiting)? {
            give_up(options, &waiting, bytes)?;
            record_gaps(storage, options);
            monitor.note(&format!("dropped {} WAL files", waiting.len()));
            summary.dropped += waiting.len() as u64;
            return Ok(summary);
        }
        waiting.retain(|name| !tried.contains(name));
        if waiting.is_empty() {
            return Ok(summary);
        }
        let failed = push_all(storage, options, &waiting)?;
        summary.failed += failed;
        summary.pushed += waiting.len() as u64 - failed;
        if failed > 0 {
            return Ok(summary);
        }
        tried.extend(waiting);
    }
}

/// Writes down why nothing can be pushed, or gives up what waits, if it is too much.
fn fail_all(options: &QueueOptions, error: Error) -> Result<QueueSummary> {
    let ready = ready(&options.archive.pgdata)?;
    let waiting = without_status(options, &ready);
    if let Some(bytes) = excess(options, &waiting)? {
        give_up(options, &waiting, bytes)?;
        return Ok(QueueSummary {
            dropped: waiting.len() as u64,
            ..QueueSummary::default()
        });
    }
    for name in &waiting {
        write_status(&options.spool, name, ERROR, &with_causes(&error))?;
    }
    Err(error)
}

/// Pushes files at the same time; the first failure keeps others from being begun. Answers how many were not pushed.
fn push_all(storage: &Arc<dyn Storage>, options: &QueueOptions, names: &[String]) -> Result<u64> {
    let failed = AtomicBool::new(false);
    let alone = ArchiveOptions {
        threads: 1,
        ..options.archive.clone()
    };
    let pushed = map(options.archive.threads, names, |names, keep| {
        for (at, name) in names {
            if failed.load(Ordering::Relaxed) {
                keep(at, false);
                continue;
            }
            let path = Path::new("pg_wal").join(name);
            let (kind, text) = match archive_push(storage, &alone, &path) {
                Ok(Pushed::Stored) => (OK, String::new()),
                Ok(Pushed::AlreadyThere) => (
                    OK,
                    format!("{name} is in the archive already, with the same bytes"),
                ),
                Err(error) => (ERROR, with_causes(&error)),
            };
            failed.fetch_or(kind == ERROR, Ordering::Relaxed);
            write_status(&options.spool, name, kind, &text)?;
            keep(at, kind == OK);
        }
        Ok(())
    })?;
    Ok(pushed.iter().filter(|pushed| !**pushed).count() as u64)
}

/// The files that PostgreSQL wants archived, histories first, as it sorts them itself.
fn ready(pgdata: &Path) -> Result<Vec<String>> {
    let folder = pgdata.join("pg_wal/archive_status");
    let read = |source| Error::ReadFile {
        path: folder.clone(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(READY));
        names.extend(
            name.filter(|name| WalFile::of(name).is_ok())
                .map(str::to_owned),
        );
    }
    names.sort_by_key(|name| (WalFile::of(name) != Ok(WalFile::History), name.clone()));
    Ok(names)
}

fn without_status(options: &QueueOptions, ready: &[String]) -> Vec<String> {
    let waits = |name: &&String| push_status(&options.spool, name).is_none();
    ready.iter().filter(waits).cloned().collect()
}

/// How much WAL waits, if that is more than may.
fn excess(options: &QueueOptions, waiting: &[String]) -> Result<Option<u64>> {
    let Some(most) = options.queue_max else {
        return Ok(None);
    };
    let control = control_file::read(&options.archive.pgdata).map_err(Error::Cluster)?;
    let bytes = waiting.len() as u64 * u64::from(control.wal_segment_bytes);
    Ok((bytes > most).then_some(bytes))
}

fn make_spool(options: &QueueOptions) -> Result<()> {
    fs::create_dir_all(&options.spool).map_err(|source| local("create", &options.spool, source))
}

/// Writes files down as given up, first as gaps, then as done.
fn give_up(options: &QueueOptions, names: &[String], waiting_bytes: u64) -> Result<()> {
    let control = control_file::read(&options.archive.pgdata).map_err(Error::Cluster)?;
    let segment_bytes = control.wal_segment_bytes;
    let mut runs: Vec<(Segment, Segment)> = Vec::new();
    for segment in names
        .iter()
        .filter_map(|name| Segment::parse(name, segment_bytes).ok())
    {
        match runs.last_mut() {
            Some((_, last))
                if last.timeline == segment.timeline && last.number + 1 == segment.number =>
            {
                *last = segment;
            }
            _ => runs.push((segment, segment)),
        }
    }
    for (first, last) in runs {
        let name = |segment: Segment| segment.file_name(segment_bytes);
        write_status(&options.spool, &name(first), GAP, &name(last))?;
    }
    let text =
        format!("dropped: {waiting_bytes} bytes of WAL waited, more than archive-push-queue-max");
    for name in names {
        write_status(&options.spool, name, OK, &text)?;
    }
    Ok(())
}

/// Records in the repository what was given up. What cannot be recorded now is recorded by a later pass.
fn record_gaps(storage: &Arc<dyn Storage>, options: &QueueOptions) {
    let Ok(listing) = fs::read_dir(&options.spool) else {
        return;
    };
    let paths = listing.flatten().map(|entry| entry.path());
    let gaps: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|kind| kind == GAP))
        .collect();
    if gaps.is_empty() {
        return;
    }
    let record = || -> Result<()> {
        let archive = &options.archive;
        let repository = repository::open(Arc::clone(storage)).map_err(Error::Repository)?;
        let control = control_file::read(&archive.pgdata).map_err(Error::Cluster)?;
        let epoch = epoch_of(&repository, &archive.stanza, &control, &archive.pgdata)?;
        for path in &gaps {
            let first = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let last = fs::read_to_string(path).map_err(|source| local("read", path, source))?;
            wal::put_gap(
                &repository,
                &archive.stanza,
                &epoch.name(),
                &WalGap { first, last },
            )
            .map_err(Error::Repository)?;
            fs::remove_file(path).map_err(|source| local("remove", path, source))?;
        }
        Ok(())
    };
    // The files stay, and with them the knowledge.
    drop(record());
}

/// Removes the statuses of files that PostgreSQL no longer asks for.
fn remove_stale(spool: &Path, ready: &[String]) {
    for entry in fs::read_dir(spool).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = path.extension().and_then(|kind| kind.to_str());
        let name = path.file_stem().and_then(|name| name.to_str());
        let stale = matches!(kind, Some(OK | ERROR))
            && name.is_some_and(|name| !ready.iter().any(|ready| ready == name));
        if stale {
            // One that stays is removed by a later pass.
            drop(fs::remove_file(path));
        }
    }
}

fn status_path(spool: &Path, name: &str, kind: &str) -> PathBuf {
    spool.join(format!("{name}.{kind}"))
}

/// Writes a status whole and durable.
fn write_status(spool: &Path, name: &str, kind: &str, text: &str) -> Result<()> {
    let path = status_path(spool, name, kind);
    let temporary = status_path(spool, name, "tmp");
    File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        })
        .map_err(|source| local("write", &path, source))
}

fn local(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Local {
        doing,
        path: path.to_owned(),
        source,
    }
}
