//! Archiving all that PostgreSQL has ready, ahead of its asking, and giving up segments when too many wait.
//!
//! Promises: a segment's status says `ok` only once it is durable in every repository, or dropped because more waited than
//! `archive-push-queue-max` allows. What is dropped is written down as a gap, in the spool first and then in each
//! repository, before anybody is told: recovery never takes it for the end of the WAL. A status is about one file, not
//! about whatever has its name: a cluster whose storage was set back writes other WAL under the same names. WAL is not
//! copied to the spool; a status that is lost costs a second push, which finds the segment there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::actions::archive::ArchiveOptions;
use crate::actions::archive_push::{PieceSealer, Pushed, PushedTo, push_with, sealers};
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::error_kind::ErrorKind;
use crate::actions::open::RepositoryPlace;
use crate::actions::pipeline::{Pool, map};
use crate::actions::stanza::epoch_of;
use crate::cluster::control_file;
use crate::monitor::{Monitor, Problem};
use crate::repository::wal::{self, WalGap};
use crate::wal_name::{Segment, WalFile};

/// Files pushed at the same time, for each that is sealed: some wait for the store while others keep the cores busy.
const PUSHED_PER_SEALED: usize = 2;
/// Files under way take at most this, each once in pieces and once as an object, if a single one does not take more.
const IN_MEMORY: u64 = 512 << 20;
/// The folders that are made for a spool: `spool-path`, and three below it.
const SPOOL_LEVELS: usize = 4;
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
    /// The number that a failure is told with: it crosses from one process to another.
    pub number_of: fn(ErrorKind) -> u8,
}

/// What became of a file that waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushStatus {
    /// It is in every repository, or was dropped; with a warning, if there is one.
    Done(Option<String>),
    /// It could not be pushed.
    Failed {
        /// The number of the failure.
        number: u8,
        /// What it was.
        why: String,
    },
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

/// The status of a file of `pg_wal`, if there is one.
pub fn push_status(spool: &Path, file: &Path) -> Option<PushStatus> {
    let name = file.file_name()?.to_str()?;
    let identity = identity(file)?;
    let read = |kind| {
        let status = fs::read_to_string(status_path(spool, name, kind)).ok()?;
        let (about, text) = status.split_once('\n')?;
        (about == identity).then(|| text.to_owned())
    };
    if let Some(text) = read(OK) {
        return Some(PushStatus::Done(Some(text).filter(|text| !text.is_empty())));
    }
    let text = read(ERROR)?;
    let (number, why) = text.split_once('\n')?;
    Some(PushStatus::Failed {
        number: number.parse().ok()?,
        why: why.to_owned(),
    })
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
    places: &[RepositoryPlace],
    options: &QueueOptions,
    name: &str,
) -> Result<bool> {
    make_spool(options)?;
    let waiting = ready(&options.archive.pgdata)?;
    let excess = excess(options, &waiting)?;
    if let Some(bytes) = excess {
        give_up(options, &[name.to_owned()], bytes)?;
    }
    record_gaps(places, options);
    Ok(excess.is_some())
}

/// Pushes all files that are ready, again and again until no new one is, or one fails.
pub fn push_queue(
    places: &[RepositoryPlace],
    options: &QueueOptions,
    monitor: &dyn Monitor,
) -> Result<QueueSummary> {
    make_spool(options)?;
    let mut summary = QueueSummary::default();
    let mut tried: BTreeSet<String> = BTreeSet::new();
    let sealers = sealers(&options.archive)?;
    loop {
        record_gaps(places, options);
        let ready = ready(&options.archive.pgdata)?;
        remove_stale(&options.spool, &ready);
        let mut waiting = without_status(options, &ready);
        if let Some(bytes) = excess(options, &waiting)? {
            give_up(options, &waiting, bytes)?;
            record_gaps(places, options);
            monitor.note(&format!("dropped {} WAL files", waiting.len()));
            summary.dropped += waiting.len() as u64;
            return Ok(summary);
        }
        waiting.retain(|name| !tried.contains(name));
        if waiting.is_empty() {
            return Ok(summary);
        }
        let failed = push_all(places, options, &sealers, &waiting, monitor)?;
        summary.failed += failed;
        summary.pushed += waiting.len() as u64 - failed;
        if failed > 0 {
            return Ok(summary);
        }
        tried.extend(waiting);
    }
}

/// Pushes files at the same time; the first failure keeps others from being begun. Answers how many were not pushed.
fn push_all(
    places: &[RepositoryPlace],
    options: &QueueOptions,
    sealers: &Pool<PieceSealer>,
    names: &[String],
    monitor: &dyn Monitor,
) -> Result<u64> {
    let failed = AtomicBool::new(false);
    let alone = ArchiveOptions {
        threads: 1,
        ..options.archive.clone()
    };
    let largest = largest(&options.archive.pgdata, names);
    let room = usize::try_from(IN_MEMORY / (2 * largest.max(1))).unwrap_or(usize::MAX);
    let at_once = (options.archive.threads.max(1) * PUSHED_PER_SEALED).min(room.max(1));
    let pushed = map(at_once, names, |names, keep| {
        for (at, name) in names {
            if failed.load(Ordering::Relaxed) {
                keep(at, false);
                continue;
            }
            let path = options.archive.pgdata.join("pg_wal").join(name);
            // Before it is read: what happens to it meanwhile makes it another file.
            let about = identity(&path).unwrap_or_default();
            let (kind, text) = match push_with(places, &alone, sealers, &path) {
                Ok(pushed) => (OK, already_there(name, &pushed)),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    let (number, why) = ((options.number_of)(error.kind()), with_causes(&error));
                    let text = format!("{number}\n{why}");
                    monitor.problem(&Problem {
                        object: name.clone(),
                        message: why,
                    });
                    (ERROR, text)
                }
            };
            write_file(&options.spool, name, kind, &format!("{about}\n{text}"))?;
            keep(at, kind == OK);
        }
        Ok(())
    })?;
    Ok(pushed.iter().filter(|pushed| !**pushed).count() as u64)
}

/// What is to be said of a file that was in an archive before it was pushed; nothing of another.
fn already_there(name: &str, pushed: &[PushedTo]) -> String {
    let before = pushed
        .iter()
        .filter(|to| to.pushed == Pushed::AlreadyThere)
        .map(|to| format!("repo{}", to.repository));
    let before: Vec<String> = before.collect();
    if before.is_empty() {
        return String::new();
    }
    let places = before.join(" and ");
    format!("{name} is in the archive of {places} already, with the same bytes")
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
    let folder = options.archive.pgdata.join("pg_wal");
    let waits = |name: &&String| push_status(&options.spool, &folder.join(name)).is_none();
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
        write_file(&options.spool, &name(first), GAP, &name(last))?;
    }
    // The folders above may be as new as the gaps.
    for folder in options.spool.ancestors().take(SPOOL_LEVELS) {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|source| local("sync", folder, source))?;
    }
    let text =
        format!("dropped: {waiting_bytes} bytes of WAL waited, more than archive-push-queue-max");
    for name in names {
        let path = options.archive.pgdata.join("pg_wal").join(name);
        let about = identity(&path).unwrap_or_default();
        write_file(&options.spool, name, OK, &format!("{about}\n{text}"))?;
    }
    Ok(())
}

/// Records in each repository what was given up. What cannot be recorded everywhere now is recorded by a later pass.
fn record_gaps(places: &[RepositoryPlace], options: &QueueOptions) {
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
    // Each is tried, whatever became of the one before. The files stay if one fails, and with them the knowledge.
    let recorded = places
        .iter()
        .map(|place| record_gaps_in(place, options, &gaps));
    let failed = recorded.filter(Result::is_err).count();
    if failed == 0 {
        for path in &gaps {
            drop(fs::remove_file(path));
        }
    }
}

fn record_gaps_in(place: &RepositoryPlace, options: &QueueOptions, gaps: &[PathBuf]) -> Result<()> {
    let archive = &options.archive;
    let repository = place.repository()?;
    let control = control_file::read(&archive.pgdata).map_err(Error::Cluster)?;
    let epoch = epoch_of(&repository, &archive.stanza, &control, &archive.pgdata)?.name();
    for path in gaps {
        let first = path.file_stem().unwrap_or_default().to_string_lossy();
        let last = fs::read_to_string(path).map_err(|source| local("read", path, source))?;
        let gap = WalGap {
            first: first.into_owned(),
            last,
        };
        wal::put_gap(&repository, &archive.stanza, &epoch, &gap).map_err(Error::Repository)?;
    }
    Ok(())
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

/// What tells a file from all others that ever have its name.
fn identity(path: &Path) -> Option<String> {
    let found = fs::metadata(path).ok()?;
    let (inode, bytes) = (found.ino(), found.len());
    let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
    Some(format!("{inode} {bytes} {seconds}.{nanoseconds:09}"))
}

/// The length of the largest of these files.
fn largest(pgdata: &Path, names: &[String]) -> u64 {
    let bytes = |name| fs::metadata(pgdata.join("pg_wal").join(name)).map_or(0, |file| file.len());
    names.iter().map(bytes).max().unwrap_or(0)
}

/// Writes a file of the spool whole.
fn write_file(spool: &Path, name: &str, kind: &str, text: &str) -> Result<()> {
    let path = status_path(spool, name, kind);
    let temporary = status_path(spool, name, "tmp");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // Of a status a crash may leave nothing; of a gap it must not.
        if kind == GAP {
            file.sync_all()?;
        }
        fs::rename(&temporary, &path)
    });
    written.map_err(|source| {
        drop(fs::remove_file(&temporary));
        local("write", &path, source)
    })
}

fn local(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Local {
        doing,
        path: path.to_owned(),
        source,
    }
}
