//! Archiving one WAL file in one or several repositories.
//!
//! Promises: a push is confirmed only when the file is durable in every repository and the stanza was seen to be this
//! cluster's in each; the same name with the same bytes is success, with other bytes an error, and nothing is ever
//! overwritten. The file is sealed once; repositories are pushed to at the same time, and where one fails the others get
//! it all the same. Where the epoch is remembered, one put and the requests that confirm the memory, at the same time,
//! are all that a repository is asked. The file is read piece by piece: memory grows with what it shrinks to, and not with its
//! own size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::actions::archive::{ArchiveOptions, as_archiving, check_header, key_of};
use crate::actions::copy::is_zero;
use crate::actions::epoch_cache;
use crate::actions::error::{Error, Result};
use crate::actions::open::RepositoryPlace;
use crate::actions::pipeline::{Pool, both, map};
use crate::actions::several::{RepositoryFailure, failed_in, refuse_none};
use crate::actions::stanza::epoch_of;
use crate::cluster::control_file::{self, ControlFile};
use crate::cluster::wal_header;
use crate::ids::Namer;
use crate::pack::wal::{
    self as wal_object, Decoder, LARGEST_FILE, PIECE_BYTES, SealedPiece, WalObject,
};
use crate::pack::writer::Sealer;
use crate::repository::wal;
use crate::storage::{ErrorKind, Storage};
use crate::wal_name::WalFile;

/// What became of a push in one repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was stored.
    Stored,
    /// It was there already, with the same bytes.
    AlreadyThere,
}

/// A repository that has a pushed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushedTo {
    /// The repository's number.
    pub repository: u32,
    /// What became of the push there.
    pub pushed: Pushed,
}

/// A file to be archived.
struct Source<'a> {
    options: &'a ArchiveOptions,
    sealers: &'a Pool<PieceSealer>,
    control: &'a ControlFile,
    file: File,
    path: &'a Path,
    name: &'a str,
    bytes: u64,
    /// The object that holds it, for whichever repository comes first; `None` if it cannot be made.
    sealed: OnceLock<Option<Vec<u8>>>,
    /// Why it cannot be made.
    unsealed: Mutex<Option<Error>>,
}

/// Puts one file of `pg_wal` into the archives of all repositories; `file` is relative to the data directory, as `%p` is.
pub fn archive_push(
    places: &[RepositoryPlace],
    options: &ArchiveOptions,
    file: &Path,
) -> Result<Vec<PushedTo>> {
    push_with(places, options, &sealers(options)?, file)
}

/// What seals the pieces of files, for as many threads as may work.
pub(super) fn sealers(options: &ArchiveOptions) -> Result<Pool<PieceSealer>> {
    Pool::new(options.threads, || {
        PieceSealer::new(options.compress_level).map_err(|source| Error::Pack {
            path: options.stanza.clone(),
            source,
        })
    })
}

/// The same for many files, one after the other or at the same time.
pub(super) fn push_with(
    places: &[RepositoryPlace],
    options: &ArchiveOptions,
    sealers: &Pool<PieceSealer>,
    file: &Path,
) -> Result<Vec<PushedTo>> {
    refuse_none(places)?;
    let path = options.pgdata.join(file);
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let kind = WalFile::of(name).map_err(|_| Error::NotWal(name.to_owned()))?;
    let control = control_file::read(&options.pgdata).map_err(Error::Cluster)?;
    let source = Source::open(options, sealers, &control, &path, name)?;
    if options.header_check && matches!(kind, WalFile::Segment | WalFile::Partial) {
        source.check_header()?;
    }
    let outcomes = map(places.len(), places, |places, keep| {
        for (at, place) in places {
            keep(at, (place.number, source.push(place)));
        }
        Ok(())
    })?;
    if let Some(error) = source.why_unsealed() {
        return Err(error);
    }
    let (mut pushed, mut failures) = (Vec::new(), Vec::new());
    for (number, outcome) in outcomes {
        match outcome {
            Ok(done) => pushed.push(PushedTo {
                repository: number,
                pushed: done,
            }),
            Err(error) => failures.push(RepositoryFailure { number, error }),
        }
    }
    if failures.is_empty() {
        return Ok(pushed);
    }
    let what = || format!("{name} is not in every repository");
    Err(failed_in(what, failures, places.len()))
}

impl<'a> Source<'a> {
    fn open(
        options: &'a ArchiveOptions,
        sealers: &'a Pool<PieceSealer>,
        control: &'a ControlFile,
        path: &'a Path,
        name: &'a str,
    ) -> Result<Self> {
        let opened = File::open(path).and_then(|file| {
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        });
        let (file, bytes) = opened.map_err(|source| Error::ReadFile {
            path: path.to_owned(),
            source,
        })?;
        if bytes > LARGEST_FILE {
            return Err(Error::ForeignWal {
                path: path.to_owned(),
                found: format!("it has {bytes} bytes"),
            });
        }
        Ok(Source {
            options,
            sealers,
            control,
            file,
            path,
            name,
            bytes,
            sealed: OnceLock::new(),
            unsealed: Mutex::default(),
        })
    }

    fn failed(&self) -> impl Fn(io::Error) -> Error {
        let path = self.path.to_owned();
        move |source| Error::ReadFile {
            path: path.clone(),
            source,
        }
    }

    /// Puts the file into one repository, under the stanza's epoch there.
    fn push(&self, place: &RepositoryPlace) -> Result<Pushed> {
        let storage = place.storage()?;
        let options = self.options;
        if let Some(remembered) = epoch_cache::read(options, storage.as_ref(), self.control) {
            let (confirmed, pushed) = both(
                || epoch_cache::is_confirmed(storage.as_ref(), &options.stanza, &remembered),
                || self.put(storage.as_ref(), &remembered.epoch.name()),
            );
            if confirmed? {
                return pushed;
            }
            // The stanza is not what it was: what was put lies where nobody looks, and the epoch is asked for anew.
        }
        let repository = place.repository()?;
        let epoch = epoch_of(&repository, &options.stanza, self.control, &options.pgdata)
            .map_err(as_archiving)?;
        let pushed = self.put(repository.storage.as_ref(), &epoch.name())?;
        epoch_cache::remember(options, &repository, epoch);
        Ok(pushed)
    }

    /// Puts the file unless it is there.
    fn put(&self, storage: &dyn Storage, epoch: &str) -> Result<Pushed> {
        let stanza = &self.options.stanza;
        match wal::put(storage, stanza, epoch, self.name, self.object()?) {
            Ok(()) => Ok(Pushed::Stored),
            Err(error)
                if error.is_already_there()
                    || error.storage_kind() == Some(ErrorKind::Unreachable) =>
            {
                // Lost answers and repeated pushes look alike: what counts is what is there now.
                let stored = wal::get(storage, stanza, epoch, self.name).map_err(|read| {
                    Error::Repository(if read.is_not_found() { error } else { read })
                })?;
                if self.is_in(&stored, epoch)? {
                    return Ok(Pushed::AlreadyThere);
                }
                Err(Error::WalDuplicate {
                    name: self.name.to_owned(),
                    stanza: stanza.clone(),
                })
            }
            Err(error) => Err(Error::Repository(error)),
        }
    }

    /// Whether an object holds the same bytes as the file.
    fn is_in(&self, stored: &[u8], epoch: &str) -> Result<bool> {
        let key = key_of(&self.options.stanza, epoch, self.name)?;
        let damaged = |source| Error::WalDamaged {
            key: key.clone(),
            source,
        };
        let object = WalObject::open(stored).map_err(damaged)?;
        let mut same = object.file_bytes == self.bytes;
        let mut decoder = Decoder::checking(&Namer::plain()).map_err(damaged)?;
        let mut own = Vec::new();
        for index in 0..object.pieces() {
            // To the end also if it is another one: that it is damaged says more.
            let piece = decoder.piece(&object, index).map_err(damaged)?;
            if same {
                own.resize(piece.bytes.len(), 0);
                let read = self.file.read_exact_at(&mut own, piece.offset);
                read.map_err(self.failed())?;
                same = own == piece.bytes;
            }
        }
        Ok(same)
    }

    /// The object that holds the file: whoever asks first makes it, the others wait for it.
    fn object(&self) -> Result<&[u8]> {
        let sealed = self.sealed.get_or_init(|| match self.encode() {
            Ok(object) => Some(object),
            Err(error) => {
                *self.unsealed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        });
        sealed.as_deref().ok_or(Error::Cancelled)
    }

    fn why_unsealed(&self) -> Option<Error> {
        let mut why = self.unsealed.lock().unwrap_or_else(PoisonError::into_inner);
        why.take()
    }

    fn encode(&self) -> Result<Vec<u8>> {
        let options = self.options;
        let damaged = |source| Error::Pack {
            path: self.name.to_owned(),
            source,
        };
        let pieces: Vec<u64> = (0..self.bytes).step_by(PIECE_BYTES).collect();
        let sealed = map(options.threads, &pieces, |pieces, keep| {
            self.sealers.with(|sealer| {
                for (at, offset) in pieces {
                    let length = (self.bytes - offset).min(PIECE_BYTES as u64);
                    let length = usize::try_from(length).unwrap_or(PIECE_BYTES);
                    sealer.piece.resize(length, 0);
                    self.file
                        .read_exact_at(&mut sealer.piece, *offset)
                        .map_err(self.failed())?;
                    keep(at, sealer.seal().map_err(damaged)?);
                }
                Ok(())
            })
        })?;
        wal_object::assemble(&sealed).map_err(damaged)
    }

    fn check_header(&self) -> Result<()> {
        let bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let mut head = vec![0; wal_header::BYTES.min(bytes)];
        self.file
            .read_exact_at(&mut head, 0)
            .map_err(self.failed())?;
        let cluster = (self.control.system_id, self.control.version);
        let foreign = |found| Error::ForeignWal {
            path: self.path.to_owned(),
            found,
        };
        check_header(&head, self.bytes, self.name, cluster, foreign).map(drop)
    }
}

/// What seals pieces, one after the other.
pub(super) struct PieceSealer {
    sealer: Sealer,
    namer: Namer,
    piece: Vec<u8>,
    /// The piece of zeros that a segment which was ended early is full of, once there was one.
    zeros: Option<SealedPiece>,
}

impl PieceSealer {
    fn new(level: i32) -> crate::pack::Result<Self> {
        Ok(PieceSealer {
            sealer: Sealer::new(level)?,
            namer: Namer::plain(),
            piece: Vec::new(),
            zeros: None,
        })
    }

    fn seal(&mut self) -> crate::pack::Result<SealedPiece> {
        let empty = self.piece.len() == PIECE_BYTES && is_zero(&self.piece);
        if let (true, Some(zeros)) = (empty, &self.zeros) {
            return Ok(zeros.clone());
        }
        let sealed = wal_object::seal_piece(&mut self.sealer, &self.namer, &self.piece)?;
        if empty {
            self.zeros = Some(sealed.clone());
        }
        Ok(sealed)
    }
}
