//! Getting WAL segments before they are asked for.
//!
//! The spool's folder `in` holds segments under their names, each with a `.check` beside it: whose it is, and the ids of
//! its pieces, which the archive knows it by. A segment that is being fetched is a `.tmp`.
//!
//! Promises: a segment is handed over only if it is this cluster's, whole, and the one of that name; whatever else is found
//! is as good as nothing, and the repositories are asked. An absent segment leaves no trace here: that something is not
//! there is never told from the spool. At most one queue of segments is kept, of those that followed the last asked for when
//! fetching began (`prefetch_queue.rs`). Losing the spool, at any moment, costs time. Memory does not grow with the size of
//! a segment, but with that of the objects that are fetched at the same time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::actions::archive::{ArchiveOptions, archives_of, check_header};
use crate::actions::archive_get::{self, Opened, Wanted};
use crate::actions::download::Download;
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::open::RepositoryPlace;
use crate::actions::pipeline::{Pool, map, pause};
use crate::actions::prefetch_queue::Queue;
use crate::actions::several::refuse_none;
use crate::cluster::control_file::{self, ControlFile};
use crate::codec::{self, RecordKind};
use crate::ids::{BlobKind, ChunkId, Namer, RepositoryId};
use crate::monitor::{Monitor, Problem};
use crate::pack::wal::{Decoder, PIECE_BYTES};
use crate::wal_name::{Segment, WalFile};

const CHECK: &str = "check";
const TEMPORARY: &str = "tmp";
/// However small the queue may be, the next segment is fetched while one is replayed, and one more.
const LEAST_QUEUED: u64 = 2;
/// How long a segment that is being fetched is waited for; whoever hangs that long is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks for it: it is a local file.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Segments fetched at the same time, for each that is decoded: some wait for the store while others keep the cores busy.
const FETCHED_PER_DECODED: usize = 2;
/// What is fetched at the same time is at most this; no object is much larger than its segment.
const IN_MEMORY: u64 = 256 << 20;
/// A segment that is handed over is read in blocks of this size, which a core's cache holds.
const BLOCK_BYTES: usize = 256 << 10;

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
    /// The ids of its pieces, as the repository's object says.
    pieces: Vec<ChunkId>,
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
    let wanted = following(options, &control, after);
    clean(options, &control, &wanted, |id, epoch| {
        is_current(&opened, all, id, epoch)
    });
    let threads = options.archive.threads.max(1);
    let decoders = Pool::new(threads, || {
        // Whoever takes a segment out of the spool checks each piece; what the repository damaged, its checksum tells.
        Decoder::not_checking().map_err(|source| Error::Pack {
            path: after.to_owned(),
            source,
        })
    })?;
    let prefetcher = Prefetcher {
        options,
        control: &control,
        opened: &opened,
        decoders: &decoders,
        monitor,
    };
    prefetcher.fetch(after, wanted.len())
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
    same.any(|one| one.epochs.iter().any(|own| own == epoch))
}

/// What fetches.
struct Prefetcher<'a> {
    options: &'a PrefetchOptions,
    control: &'a ControlFile,
    opened: &'a [Opened],
    decoders: &'a Pool<Decoder>,
    monitor: &'a dyn Monitor,
}

impl Prefetcher<'_> {
    /// Fetches segments, several at a time, until `most` lie in the spool or one cannot be had; answers how many.
    fn fetch(&self, after: &str, most: usize) -> Result<u64> {
        let segment_bytes = self.control.wal_segment_bytes;
        let Ok(after) = Segment::parse(after, segment_bytes) else {
            return Ok(0);
        };
        let queue = Queue::after(&self.options.spool, after, segment_bytes, most);
        let at_once = usize::try_from(IN_MEMORY / u64::from(segment_bytes)).unwrap_or(usize::MAX);
        let threads = self.options.archive.threads.max(1) * FETCHED_PER_DECODED;
        let threads = threads.min(at_once.max(1));
        map(threads, &vec![(); threads], |turns, keep| {
            for (at, ()) in turns {
                while let Some(mut turn) = queue.next() {
                    turn.spooled = self.fetch_one(&turn.name)?;
                }
                keep(at, ());
            }
            Ok(())
        })?;
        Ok(queue.fetched())
    }

    /// Fetches one segment into the spool; `false` if none of the repositories has it now.
    fn fetch_one(&self, name: &str) -> Result<bool> {
        let path = self.options.spool.join(name);
        let temporary = beside(&path, TEMPORARY);
        let bytes = u64::from(self.control.wal_segment_bytes);
        // Room is made first: on a full disk nothing is fetched in vain.
        let file = reserve(&temporary, bytes).map_err(|error| {
            // One that is there already is somebody else's.
            if error.kind() != ErrorKind::AlreadyExists {
                drop(fs::remove_file(&temporary));
            }
            failed("make room for", &temporary, error)
        })?;
        let fetched = self.fetch_into(name, &file);
        if !matches!(fetched, Ok(true)) {
            drop(fs::remove_file(&temporary));
            drop(fs::remove_file(beside(&path, CHECK)));
        }
        fetched
    }

    /// Fetches a segment from the first repository that has it whole.
    fn fetch_into(&self, name: &str, file: &File) -> Result<bool> {
        let wanted = Wanted {
            options: &self.options.archive,
            control: self.control,
            name,
            kind: WalFile::Segment,
        };
        for from in self.opened {
            for epoch in archives_of(
                &from.repository,
                &self.options.archive.stanza,
                &from.epochs,
                name,
            )? {
                match self.download(&wanted, (from, epoch), file) {
                    Ok(Some(pieces)) => {
                        return self.name(name, (from, epoch), pieces).map(|()| true);
                    }
                    Ok(None) => {}
                    // The spool's fault: no other repository would help.
                    Err(error @ Error::Local { .. }) => return Err(error),
                    Err(error) => {
                        self.monitor.problem(&Problem {
                            object: format!("{name} of repo{}", from.number),
                            message: with_causes(&error),
                        });
                        // What an older epoch has under this name may be something else.
                        break;
                    }
                }
            }
        }
        Ok(false)
    }

    /// Writes a segment as one archive has it; answers the ids of its pieces.
    fn download(
        &self,
        wanted: &Wanted<'_>,
        (from, epoch): (&Opened, &str),
        file: &File,
    ) -> Result<Option<Vec<ChunkId>>> {
        let storage = from.repository.storage.as_ref();
        let Some(stored) = wanted.fetch(storage, epoch)? else {
            return Ok(None);
        };
        let object = stored.open()?;
        // With the header not checked. Whoever asks for it shall see for himself.
        if object.file_bytes != u64::from(self.control.wal_segment_bytes) {
            let found = format!("it has {} bytes, which no segment has", object.file_bytes);
            return Err(stored.misplaced(found));
        }
        let mut pieces = Vec::with_capacity(object.pieces());
        self.decoders.with(|decoder| {
            wanted.decode(&stored, &object, decoder, |piece| {
                pieces.push(piece.id);
                file.write_all_at(piece.bytes, piece.offset)
                    .map_err(|source| {
                        failed("write", &self.options.spool.join(wanted.name), source)
                    })
            })
        })?;
        Ok(Some(pieces))
    }

    /// Gives a segment its name, once there is what it is checked by.
    fn name(&self, name: &str, (from, epoch): (&Opened, &str), pieces: Vec<ChunkId>) -> Result<()> {
        let path = self.options.spool.join(name);
        let check = Check {
            system_id: self.control.system_id,
            version: self.control.version,
            epoch: epoch.to_owned(),
            bytes: u64::from(self.control.wal_segment_bytes),
            pieces,
        };
        let key = key(self.options, name);
        let sealed = codec::seal(RecordKind::Local, from.repository.id, &key, &check)
            .map_err(Error::Record)?;
        // What a crash leaves of it is found out by its pieces' ids.
        File::create(beside(&path, CHECK))
            .and_then(|mut check| check.write_all(&sealed))
            .and_then(|()| fs::rename(beside(&path, TEMPORARY), &path))
            .map_err(|source| failed("write", &path, source))
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

/// Moves a segment to where it is wanted, or copies it there. It is taken out of the spool first and then checked: what
/// was checked is what is handed over, whatever others do to the spool meanwhile.
fn hand_over(options: &PrefetchOptions, name: &str, destination: &Path) -> Result<()> {
    let path = options.spool.join(name);
    let check = check_of(options, name);
    let download = Download::to(destination);
    if let Some(taken) = download.take(&path)? {
        checked(options, name, check, (taken, &path), |_| Ok(()))?;
    } else {
        let spooled = File::open(&path).map_err(|source| unreadable(&path, source))?;
        let mut file = download.begin()?;
        checked(options, name, check, (&spooled, &path), |block| {
            file.write_all(block)
                .map_err(|source| download.failed(source))
        })?;
    }
    download.publish()
}

/// Reads a segment from the spool once, hands its blocks to `take`, and says whether everything about it was right.
fn checked(
    options: &PrefetchOptions,
    name: &str,
    check: Option<(RepositoryId, Check)>,
    (file, path): (&File, &Path),
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
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
    let read = |source| unreadable(path, source);
    let bytes = file.metadata().map_err(read)?.len();
    if bytes != check.bytes || bytes != u64::from(control.wal_segment_bytes) {
        return Err(unfit("it has another length than a segment"));
    }
    let mut head_is_right = !options.archive.header_check;
    let pieces = ids_of_pieces(file, bytes, read, |block| {
        if !head_is_right {
            let cluster = (control.system_id, control.version);
            check_header(block, bytes, name, cluster, |found| unfit(&found))?;
            head_is_right = true;
        }
        take(block)
    })?;
    if pieces != check.pieces {
        return Err(unfit("it is damaged"));
    }
    Ok(())
}

/// Reads a segment of so many bytes, hands its blocks to `take`, and names its pieces.
fn ids_of_pieces(
    mut file: &File,
    bytes: u64,
    failed: impl Fn(io::Error) -> Error,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Vec<ChunkId>> {
    let (namer, mut buffer, mut ids) = (Namer::plain(), vec![0; BLOCK_BYTES], Vec::new());
    let mut left = bytes;
    while left > 0 {
        let mut naming = namer.begin(BlobKind::Wal);
        let mut left_of_piece = left.min(PIECE_BYTES as u64);
        left -= left_of_piece;
        while left_of_piece > 0 {
            let length = left_of_piece.min(BLOCK_BYTES as u64);
            left_of_piece -= length;
            let length = usize::try_from(length).unwrap_or(BLOCK_BYTES);
            let block = buffer.get_mut(..length).unwrap_or_default();
            file.read_exact(block).map_err(&failed)?;
            naming.update(block);
            take(block)?;
        }
        ids.push(naming.finish());
    }
    Ok(ids)
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

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::ReadFile {
        path: path.to_owned(),
        source,
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Local {
        doing,
        path: path.to_owned(),
        source,
    }
}
