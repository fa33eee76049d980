//! Where the local index lies: one directory per repository and place, with numbered slots, one process each.
//!
//! Promises: a slot belongs to one holder for as long as its [`Slot`] lives, in this process or any other of this host;
//! a crash frees it. Waits for nobody but for an instant: a second process takes the next slot. Expects a local file
//! system.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Error, Result};
use crate::ids::{RepositoryId, short_digest};

/// More processes than this do not work on one repository from one host.
const SLOTS: u32 = 64;

/// Number of the layout described above; an index of another number is thrown away.
const LAYOUT: u8 = 1;

/// A lock that was just given up may be held for an instant more: by a child that this process, or the one before it, is
/// starting, until the child runs its own program. So a slot that looks taken is asked for a few times.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(3);

/// Locks a file, if it is free or about to be.
fn lock_soon(file: &File) -> std::result::Result<(), Errno> {
    let mut tries = 1;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// What an index belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) repository: RepositoryId,
    pub(super) place: [u8; 16],
    pub(super) gc_number: u64,
    pub(super) gc_checksum: [u8; 16],
}

/// A slot that is held. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct Slot {
    /// Its directory.
    pub(super) directory: PathBuf,
    /// The lock lasts as long as the file is open.
    _lock: File,
}

impl Slot {
    /// Where the database lies. The lock file is beside it, so that the database can be thrown away under the lock.
    pub(super) fn database(&self) -> PathBuf {
        self.directory.join("chunks")
    }

    /// A file that says that the database is damaged and is to be thrown away when it is opened next.
    pub(super) fn damage_mark(&self) -> PathBuf {
        self.directory.join("damaged")
    }

    /// Throws the database away.
    pub(super) fn clear(&self) -> Result<()> {
        let database = self.database();
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        gone(fs::remove_dir_all(&database)).map_err(|source| Error::Cache {
            path: database,
            source,
        })?;
        let mark = self.damage_mark();
        gone(fs::remove_file(&mark)).map_err(|source| Error::Cache { path: mark, source })
    }
}

/// Where all that is cached of a repository at a place (what its storage calls itself) lies.
pub(crate) fn directory(cache: &Path, repository: RepositoryId, place: &str) -> PathBuf {
    let [a, b, c, d, ..] = short_digest(place.as_bytes());
    cache.join(format!("{repository}-{a:02x}{b:02x}{c:02x}{d:02x}"))
}

/// Takes the first free slot of a repository at a place.
pub(super) fn take(cache: &Path, repository: RepositoryId, place: &str) -> Result<Slot> {
    let slots = directory(cache, repository, place);
    for number in 0..SLOTS {
        let directory = slots.join(format!("slot-{number}"));
        fs::create_dir_all(&directory).map_err(|source| Error::Cache {
            path: directory.clone(),
            source,
        })?;
        let path = directory.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path);
        let lock = lock.map_err(|source| Error::Cache {
            path: path.clone(),
            source,
        })?;
        match lock_soon(&lock) {
            Ok(()) => {
                return Ok(Slot {
                    directory,
                    _lock: lock,
                });
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => {
                return Err(Error::Cache {
                    path,
                    source: errno.into(),
                });
            }
        }
    }
    Err(Error::NoFreeSlot {
        path: slots,
        slots: SLOTS,
    })
}

impl Binding {
    /// The binding of a new index, which has seen no gc record.
    pub(super) fn new(repository: RepositoryId, place: &str) -> Self {
        let place = short_digest(place.as_bytes());
        Binding {
            repository,
            place,
            gc_number: 0,
            gc_checksum: [0; 16],
        }
    }

    /// Layout (1), repository (16), digest of the place (16), gc number (8, little-endian), gc checksum (16).
    pub(super) fn encode(&self) -> Vec<u8> {
        let number = self.gc_number.to_le_bytes();
        [
            &[LAYOUT][..],
            &self.repository.0,
            &self.place,
            &number,
            &self.gc_checksum,
        ]
        .concat()
    }

    pub(super) fn decode(stored: &[u8]) -> Option<Self> {
        let (&LAYOUT, rest) = stored.split_first()? else {
            return None;
        };
        let (repository, rest) = rest.split_first_chunk()?;
        let (place, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let gc_checksum = rest.try_into().ok()?;
        let (repository, gc_number) = (RepositoryId(*repository), u64::from_le_bytes(*number));
        Some(Binding {
            repository,
            place: *place,
            gc_number,
            gc_checksum,
        })
    }
}
