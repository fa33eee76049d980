//! Getting WAL segments before they are asked for.
//!
//! The spool's folder `in` holds segments under their names, each with a `.check` beside it: whose it is, and the hash of
//! its bytes. A segment that is being fetched is a `.tmp`.
//!
//! Promises: a segment is handed over only if it is this cluster's, whole, and the one of that name; whatever else is found
//! is as good as nothing, and the repositories are asked. An absent segment leaves no trace here: that something is not
//! there is never told from the spool. At most one queue of segments is kept, the ones that follow the last asked for.
//! Losing the spool, at any moment, costs time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::actions::archive::{ArchiveOptions, check_header};
use crate::actions::archive_get::{self, Opened, Wanted};
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::open::RepositoryPlace;
use crate::actions::pipeline::{map, pause};
use crate::actions::several::refuse_none;
use crate::cluster::control_file::{self, ControlFile};
use crate::codec::{self, RecordKind};
use crate::ids::{RepositoryId, digest};
use crate::monitor::{Monitor, Problem};
use crate::wal_name::{Segment, WalFile};

const CHECK: &str = "check";
const TEMPORARY: &str = "tmp";
/// However small the queue may be, the next segment is fetched while one is replayed, and one more.
const LEAST_QUEUED: u64 = 2;
/// How long a segment that is being fetched is waited for; whoever hangs that long is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks for it: it is a local file.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Segments in memory at the same time, each twice (as it is stored, and as it is), are at most this.
const IN_MEMORY: u64 = 512 << 20;

/// Where segments are kept, and how many.
#[derive(Debug, Clone)]
pub struct PrefetchOptions {
    /// What a get needs to know.
    pub archive: ArchiveOptions,
    /// The stanza's folder in the spool.
    pub spool: PathBuf,
    /// About so many bytes of segments are kept.
    pub queue_max: u64,
}

/// What lies beside a segment.
#[derive(Debug, Serialize, Deserialize)]
struct Check {
    system_id: u64,
    version: u32,
    epoch: String,
    bytes: u64,
    digest: [u8; 32],
}

/// Hands a segment over that lies in the spool, or that a process which `is_fetching` is about to put there; `false` if
/// the repositories must be asked.
pub fn take_prefetched(
    options: &PrefetchOptions,
    name: &str,
    destination: &Path,
    is_fetching: impl Fn() -> bool,
    monitor: &dyn Monitor,
) -> bool {
    let path = options.spool.join(name);
    if WalFile::of(name) != Ok(WalFile::Segment) {
        return false;
    }
    let begun = Instant::now();
    loop {
        // In this order: what arrives between the two looks is seen.
        let coming = beside(&path, TEMPORARY).exists() && is_fetching();
        if path.exists() {
            break;
        }
        if !coming || begun.elapsed() >= PATIENCE {
            return false;
        }
        pause(LOOK_AGAIN);
    }
    let destination = options.archive.pgdata.join(destination);
    let handed_over = hand_over(options, name, &destination);
    if let Err(error) = &handed_over {
        monitor.problem(&Problem {
            object: path.display().to_string(),
            message: format!("{}; the archive is asked", with_causes(error)),
        });
    }
    remove(&path);
    handed_over.is_ok()
}

/// Whether less than half of what should follow a segment lies in the spool.
pub fn is_running_low(options: &PrefetchOptions, after: &str) -> bool {
    let Ok(control) = control_file::read(&options.archive.pgdata) else {
        return false;
    };
    let wanted = following(options, &control, after);
    let there = wanted
        .iter()
        .filter(|name| options.spool.join(name).exists());
    there.count() * 2 < wanted.len()
}

/// Forgets all segments in the spool.
pub fn forget_prefetched(spool: &Path) {
    for (path, _) in listed(spool) {
        // One that stays is checked as any other is.
        drop(fs::remove_file(path));
    }
}

/// Fetches the segments that follow `after` until the queue is full or the archive ends; answers how many. What is in
/// the spool and is not one of them goes.
pub fn prefetch(
    places: &[RepositoryPlace],
    options: &PrefetchOptions,
    after: &str,
    monitor: &dyn Monitor,
) -> Result<u64> {
    refuse_none(places)?;
    let control = control_file::read(&options.archive.pgdata).map_err(Error::Cluster)?;
    fs::create_dir_all(&options.spool)
        .map_err(|source| failed("create", &options.spool, source))?;
    let mut opened = Vec::new();
    for place in places {
        match archive_get::open(place, &options.archive, &control) {
            Ok(place) => opened.push(place),
            // Whoever asks for a segment asks all.
            Err(error) => monitor.problem(&Problem {
                object: format!("repo{}", place.number),
                message: with_causes(&error),
            }),
        }
    }
    let all = opened.len() == places.len();
    let queue = Queue {
        options,
        control: &control,
        opened: &opened,
        monitor,
    };
    let (mut fetched, mut after) = (0, after.to_owned());
    loop {
        let wanted = following(options, &control, &after);
        clean(options, &control, &wanted, |id, epoch| {
            is_current(&opened, all, id, epoch)
        });
        let there = |name: &String| options.spool.join(name).exists();
        let missing: Vec<String> = wanted.iter().filter(|name| !there(name)).cloned().collect();
        let now = queue.fetch(&missing)?;
        fetched += now;
        if now < missing.len() as u64 || missing.is_empty() {
            return Ok(fetched);
        }
        // Some were taken meanwhile: the queue begins with the first that was not.
        let Some(taken) = wanted.iter().take_while(|name| !there(name)).last() else {
            return Ok(fetched);
        };
        after.clone_from(taken);
    }
}

/// The names of the segments to have, in order: those behind `after` on its timeline.
fn following(options: &PrefetchOptions, control: &ControlFile, after: &str) -> Vec<String> {
    let segment_bytes = control.wal_segment_bytes;
    let Ok(Segment { timeline, number }) = Segment::parse(after, segment_bytes) else {
        return Vec::new();
    };
    let count = (options.queue_max / u64::from(segment_bytes)).max(LEAST_QUEUED);
    let name = |number| Segment { timeline, number }.file_name(segment_bytes);
    (number + 1..=number + count).map(name).collect()
}

/// Whether a segment may have come from where it would come from now; in doubt it may.
fn is_current(opened: &[Opened], all: bool, id: RepositoryId, epoch: &str) -> bool {
    let mut same = opened
        .iter()
        .filter(|one| one.repository.id == id)
        .peekable();
    if same.peek().is_none() {
        return !all;
    }
    same.any(|one| one.epoch == epoch)
}

/// What fetches.
struct Queue<'a> {
    options: &'a PrefetchOptions,
    control: &'a ControlFile,
    opened: &'a [Opened],
    monitor: &'a dyn Monitor,
}

impl Queue<'_> {
    /// Fetches segments, several at a time, up to the first that cannot be had; answers how many.
    fn fetch(&self, names: &[String]) -> Result<u64> {
        let at_once = IN_MEMORY / 2 / u64::from(self.control.wal_segment_bytes);
        let at_once = usize::try_from(at_once).unwrap_or(usize::MAX).max(1);
        let threads = self.options.archive.threads.min(at_once);
        let ended = AtomicBool::new(false);
        let fetched = map(threads, names, |names, keep| {
            for (at, name) in names {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let fetched = self.fetch_one(name);
                if !matches!(fetched, Ok(true)) {
                    ended.store(true, Ordering::Relaxed);
                }
                keep(at, fetched?);
            }
            Ok(())
        })?;
        Ok(fetched.iter().filter(|fetched| **fetched).count() as u64)
    }

    /// Fetches one segment into the spool; `false` if none of the repositories has it now.
    fn fetch_one(&self, name: &str) -> Result<bool> {
        let path = self.options.spool.join(name);
        let temporary = beside(&path, TEMPORARY);
        let bytes = u64::from(self.control.wal_segment_bytes);
        // Room is made first: on a full disk nothing is fetched in vain.
        let file = reserve(&temporary, bytes).map_err(|error| {
            drop(fs::remove_file(&temporary));
            failed("make room for", &temporary, error)
        })?;
        let fetched = self.raw(name).map_or(Ok(false), |(raw, from)| {
            self.spool(name, &raw, from, file).map(|()| true)
        });
        if !matches!(fetched, Ok(true)) {
            drop(fs::remove_file(&temporary));
        }
        fetched
    }

    /// A segment as the first repository has it that has it whole.
    fn raw(&self, name: &str) -> Option<(Vec<u8>, &Opened)> {
        let wanted = Wanted {
            options: &self.options.archive,
            control: self.control,
            name,
            kind: WalFile::Segment,
        };
        for from in self.opened {
            match wanted.fetch(from) {
                Ok(Some(raw)) if raw.len() as u64 == u64::from(self.control.wal_segment_bytes) => {
                    return Some((raw, from));
                }
                // One of another length, with the header not checked: whoever asks for it shall see for himself.
                Ok(_) => {}
                Err(error) => self.monitor.problem(&Problem {
                    object: format!("{name} of repo{}", from.number),
                    message: with_causes(&error),
                }),
            }
        }
        None
    }

    /// Writes a segment and what it is checked by; it has its name only when both are there.
    fn spool(&self, name: &str, raw: &[u8], from: &Opened, mut file: File) -> Result<()> {
        let path = self.options.spool.join(name);
        let check = Check {
            system_id: self.control.system_id,
            version: self.control.version,
            epoch: from.epoch.clone(),
            bytes: raw.len() as u64,
            digest: digest(raw),
        };
        let key = key(self.options, name);
        let sealed = codec::seal(RecordKind::Local, from.repository.id, &key, &check)
            .map_err(Error::Record)?;
        let written = File::create(beside(&path, CHECK))
            .and_then(|mut check| check.write_all(&sealed))
            .and_then(|()| {
                file.write_all(raw)?;
                // What a crash leaves of it is found out by its digest.
                fs::rename(beside(&path, TEMPORARY), &path)
            });
        written.map_err(|source| failed("write", &path, source))
    }
}

/// Makes a file with room for so many bytes; it must not be there.
fn reserve(path: &Path, bytes: u64) -> io::Result<File> {
    let file = File::create_new(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        // Some file systems cannot tell; then writing does.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(file),
        Err(error) => Err(error.into()),
    }
}

/// Moves a segment to where it is wanted, or writes it there. It is taken out of the spool first and then checked: what
/// was checked is what is handed over, whatever others do to the spool meanwhile.
fn hand_over(options: &PrefetchOptions, name: &str, destination: &Path) -> Result<()> {
    let path = options.spool.join(name);
    let check = check_of(options, name);
    let temporary = archive_get::temporary(destination);
    let write = |source| Error::WriteFile {
        path: destination.to_owned(),
        source,
    };
    match fs::rename(&path, &temporary) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let raw = checked(options, name, check, &path)?;
            archive_get::write(destination, &raw)
        }
        Err(source) => Err(write(source)),
        Ok(()) => {
            let moved = checked(options, name, check, &temporary)
                .and_then(|_| fs::rename(&temporary, destination).map_err(write));
            if moved.is_err() {
                drop(fs::remove_file(&temporary));
            }
            moved
        }
    }
}

/// The bytes of a segment from the spool, if everything about it is right.
fn checked(
    options: &PrefetchOptions,
    name: &str,
    check: Option<(RepositoryId, Check)>,
    path: &Path,
) -> Result<Vec<u8>> {
    let control = control_file::read(&options.archive.pgdata).map_err(Error::Cluster)?;
    let unfit = |found: &str| Error::Spooled {
        name: name.to_owned(),
        found: found.to_owned(),
    };
    let Some((_, check)) = check else {
        return Err(unfit("what it is checked by is missing or damaged"));
    };
    if check.system_id != control.system_id || check.version != control.version {
        return Err(unfit("it is of another cluster"));
    }
    let read = |source| Error::ReadFile {
        path: path.to_owned(),
        source,
    };
    let bytes = fs::metadata(path).map_err(read)?.len();
    if bytes != check.bytes || bytes != u64::from(control.wal_segment_bytes) {
        return Err(unfit("it has another length than a segment"));
    }
    let raw = fs::read(path).map_err(read)?;
    if digest(&raw) != check.digest {
        return Err(unfit("it is damaged"));
    }
    if options.archive.header_check {
        let cluster = (control.system_id, control.version);
        check_header(&raw, bytes, name, cluster, |found| unfit(&found))?;
    }
    Ok(raw)
}

fn check_of(options: &PrefetchOptions, name: &str) -> Option<(RepositoryId, Check)> {
    let bytes = fs::read(beside(&options.spool.join(name), CHECK)).ok()?;
    codec::open(RecordKind::Local, None, &key(options, name), &bytes).ok()
}

fn key(options: &PrefetchOptions, name: &str) -> String {
    format!("prefetched {}/{name}", options.archive.stanza)
}

/// Removes what is not wanted: other segments, those of another cluster, length or epoch, and what a dead process left.
fn clean(
    options: &PrefetchOptions,
    control: &ControlFile,
    wanted: &[String],
    is_current: impl Fn(RepositoryId, &str) -> bool,
) {
    let wanted: BTreeSet<&String> = wanted.iter().collect();
    let bytes = u64::from(control.wal_segment_bytes);
    let mut kept = BTreeSet::new();
    let entries = listed(&options.spool);
    for (path, name) in entries
        .iter()
        .filter(|(path, _)| path.extension().is_none())
    {
        let fits = wanted.contains(name)
            && fs::metadata(path).is_ok_and(|found| found.len() == bytes)
            && check_of(options, name).is_some_and(|(id, check)| {
                let own = check.system_id == control.system_id && check.version == control.version;
                own && check.bytes == bytes && is_current(id, &check.epoch)
            });
        if fits {
            kept.insert(name);
        }
    }
    for (path, name) in &entries {
        let is_temporary = path.extension().is_some_and(|kind| kind == TEMPORARY);
        if is_temporary || !kept.contains(name) {
            // One that stays is judged again the next time.
            drop(fs::remove_file(path));
        }
    }
}

/// The files of ours in the spool, each with the name of its segment.
fn listed(spool: &Path) -> Vec<(PathBuf, String)> {
    let paths = fs::read_dir(spool).into_iter().flatten().flatten();
    let named = paths.filter_map(|entry| {
        let path = entry.path();
        let name = path.file_stem()?.to_str()?.to_owned();
        let kind = path.extension().map_or(Some(""), |kind| kind.to_str())?;
        let ours = matches!(kind, "" | CHECK | TEMPORARY);
        (ours && WalFile::of(&name) == Ok(WalFile::Segment)).then_some((path, name))
    });
    named.collect()
}

/// Removes a segment and what it is checked by.
fn remove(path: &Path) {
    drop(fs::remove_file(path));
    drop(fs::remove_file(beside(path, CHECK)));
}

fn beside(path: &Path, kind: &str) -> PathBuf {
    path.with_extension(kind)
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Local {
        doing,
        path: path.to_owned(),
        source,
    }
}
