//! Archiving one WAL file.
//!
//! Promises: a push is confirmed only when the file is durable in the repository and the stanza was seen to be this
//! cluster's; the same name with the same bytes is success, with other bytes an error, and nothing is ever overwritten.
//! Where the epoch is remembered, one put and the requests that confirm the memory, at the same time, are all that the
//! repository is asked. The file is read piece by piece: memory does not grow with the size of a segment.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::actions::archive::{ArchiveOptions, as_archiving, check_header, decode, key_of};
use crate::actions::epoch_cache::{self, Remembered};
use crate::actions::error::{Error, Result};
use crate::actions::pipeline::{both, map};
use crate::actions::stanza::epoch_of;
use crate::cluster::control_file::{self, ControlFile};
use crate::cluster::wal_header;
use crate::ids::Namer;
use crate::pack::wal::{self as wal_object, LARGEST_FILE, PIECE_BYTES, SealedPiece};
use crate::pack::writer::Sealer;
use crate::repository::{self, wal};
use crate::storage::{ErrorKind, Storage};
use crate::wal_name::WalFile;

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was stored.
    Stored,
    /// It was there already, with the same bytes.
    AlreadyThere,
}

/// A file to be archived.
struct Source<'a> {
    file: File,
    path: &'a Path,
    name: &'a str,
    bytes: u64,
}

/// Puts one file of `pg_wal` into the archive; `file` is relative to the data directory, as `%p` is.
pub fn archive_push(
    storage: &Arc<dyn Storage>,
    options: &ArchiveOptions,
    file: &Path,
) -> Result<Pushed> {
    let path = options.pgdata.join(file);
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let kind = WalFile::of(name).map_err(|_| Error::NotWal(name.to_owned()))?;
    let control = control_file::read(&options.pgdata).map_err(Error::Cluster)?;
    let source = Source::open(&path, name)?;
    if options.header_check && matches!(kind, WalFile::Segment | WalFile::Partial) {
        source.check_header(&control)?;
    }
    if let Some(remembered) = epoch_cache::read(options, storage.as_ref(), &control) {
        let (confirmed, pushed) = both(
            || epoch_cache::is_confirmed(storage.as_ref(), &options.stanza, &remembered),
            || source.push(storage.as_ref(), options, &remembered.epoch.name()),
        );
        if confirmed? {
            return pushed;
        }
        // The stanza is not what it was: what was put lies where nobody looks, and the epoch is asked for anew.
    }
    let repository = repository::open(Arc::clone(storage)).map_err(Error::Repository)?;
    let epoch =
        epoch_of(&repository, &options.stanza, &control, &options.pgdata).map_err(as_archiving)?;
    let pushed = source.push(storage.as_ref(), options, &epoch.name())?;
    epoch_cache::write(
        options,
        storage.as_ref(),
        &Remembered {
            repository: repository.id,
            epoch,
        },
    );
    Ok(pushed)
}

impl<'a> Source<'a> {
    fn open(path: &'a Path, name: &'a str) -> Result<Self> {
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
            file,
            path,
            name,
            bytes,
        })
    }

    fn failed(&self) -> impl Fn(io::Error) -> Error {
        let path = self.path.to_owned();
        move |source| Error::ReadFile {
            path: path.clone(),
            source,
        }
    }

    /// Seals the file, and puts it unless it is there.
    fn push(&self, storage: &dyn Storage, options: &ArchiveOptions, epoch: &str) -> Result<Pushed> {
        let object = self.encode(options)?;
        match wal::put(storage, &options.stanza, epoch, self.name, &object) {
            Ok(()) => Ok(Pushed::Stored),
            Err(error)
                if error.is_already_there()
                    || error.storage_kind() == Some(ErrorKind::Unreachable) =>
            {
                // Lost answers and repeated pushes look alike: what counts is what is there now.
                let stored =
                    wal::get(storage, &options.stanza, epoch, self.name).map_err(|read| {
                        Error::Repository(if read.is_not_found() { error } else { read })
                    })?;
                let raw = fs::read(self.path).map_err(self.failed())?;
                let key = key_of(&options.stanza, epoch, self.name)?;
                if decode(&stored, key)? == raw {
                    return Ok(Pushed::AlreadyThere);
                }
                Err(Error::WalDuplicate {
                    name: self.name.to_owned(),
                    stanza: options.stanza.clone(),
                })
            }
            Err(error) => Err(Error::Repository(error)),
        }
    }

    fn encode(&self, options: &ArchiveOptions) -> Result<Vec<u8>> {
        let damaged = |source| Error::Pack {
            path: self.name.to_owned(),
            source,
        };
        let pieces: Vec<u64> = (0..self.bytes).step_by(PIECE_BYTES).collect();
        let sealed = map(options.threads, &pieces, |pieces, keep| {
            let mut worker = Worker::new(options.compress_level).map_err(damaged)?;
            for (at, offset) in pieces {
                let length = (self.bytes - offset).min(PIECE_BYTES as u64);
                let length = usize::try_from(length).unwrap_or(PIECE_BYTES);
                worker.piece.resize(length, 0);
                self.file
                    .read_exact_at(&mut worker.piece, *offset)
                    .map_err(self.failed())?;
                keep(at, worker.seal().map_err(damaged)?);
            }
            Ok(())
        })?;
        wal_object::assemble(&sealed).map_err(damaged)
    }

    fn check_header(&self, control: &ControlFile) -> Result<()> {
        let bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let mut head = vec![0; wal_header::BYTES.min(bytes)];
        self.file
            .read_exact_at(&mut head, 0)
            .map_err(self.failed())?;
        check_header(&head, self.bytes, self.name, control, |found| {
            Error::ForeignWal {
                path: self.path.to_owned(),
                found,
            }
        })
    }
}

/// What seals the pieces of one thread.
struct Worker {
    sealer: Sealer,
    namer: Namer,
    piece: Vec<u8>,
    /// The piece of zeros that a segment which was ended early is full of, once there was one.
    zeros: Option<SealedPiece>,
}

impl Worker {
    fn new(level: i32) -> crate::pack::Result<Self> {
        Ok(Worker {
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

/// Whether all bytes are zero. A block is looked at as a whole, which the compiler makes a few wide instructions.
fn is_zero(bytes: &[u8]) -> bool {
    let any = |block: &[u8]| block.iter().fold(0, |any, byte| any | byte);
    bytes.chunks(4096).all(|block| any(block) == 0)
}
