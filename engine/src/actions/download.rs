//! A fetched WAL file on its way to its destination.
//!
//! Promises: the file reaches its destination whole, PostgreSQL never sees a part of it; several processes that fetch to one
//! destination at the same time (a restarted server does not wait for what the one before has started) each have a file of
//! their own until then, and touch no other; what a killed process left is used again, so that nothing piles up. PostgreSQL
//! makes a file durable itself when it keeps it (`KeepFileRestoredFromArchive`), and asks anew after a crash.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::actions::error::{Error, Result};

/// Processes that may fetch to one destination at the same time.
const NAMES: u32 = 16;

/// A file that is being fetched.
pub(super) struct Download {
    destination: PathBuf,
    held: OnceLock<Held>,
}

/// A file beside the destination that nobody else writes to as long as it is open: it is locked.
struct Held {
    path: PathBuf,
    file: File,
}

impl Download {
    /// Nothing is begun yet.
    pub(super) fn to(destination: &Path) -> Self {
        Download {
            destination: destination.to_owned(),
            held: OnceLock::new(),
        }
    }

    /// An empty file, whatever was begun before.
    pub(super) fn begin(&self) -> Result<&File> {
        if let Some(held) = self.held.get() {
            held.file.set_len(0).map_err(|source| self.failed(source))?;
            return Ok(&held.file);
        }
        let held = hold(&self.destination).map_err(|source| self.failed(source))?;
        Ok(&self.held.get_or_init(|| held).file)
    }

    /// Takes a file away from `path`; where it is on another file system, answers nothing, and it stays.
    pub(super) fn take(&self, path: &Path) -> Result<Option<&File>> {
        let taken = hold(&self.destination).and_then(|mut held| {
            let file = File::open(path)?;
            // Before it has a name that others look for.
            let moved = if lock(&file)? {
                fs::rename(path, &held.path)
            } else {
                Err(ErrorKind::ResourceBusy.into())
            };
            match moved {
                Ok(()) => held.file = file,
                Err(error) => {
                    fs::remove_file(&held.path).ok();
                    let elsewhere = error.kind() == ErrorKind::CrossesDevices;
                    return if elsewhere { Ok(None) } else { Err(error) };
                }
            }
            Ok(Some(held))
        });
        let taken = taken.map_err(|source| self.failed(source))?;
        Ok(taken.map(|held| &self.held.get_or_init(|| held).file))
    }

    /// Gives the file its name.
    pub(super) fn publish(mut self) -> Result<()> {
        let Some(held) = self.held.take() else {
            return Err(self.failed(ErrorKind::NotFound.into()));
        };
        fs::rename(&held.path, &self.destination).map_err(|source| {
            fs::remove_file(&held.path).ok();
            self.failed(source)
        })
    }

    pub(super) fn failed(&self, source: io::Error) -> Error {
        Error::WriteFile {
            path: self.destination.clone(),
            source,
        }
    }
}

impl Drop for Download {
    /// What did not reach its destination goes.
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            fs::remove_file(&held.path).ok();
        }
    }
}

/// Finds a name beside the destination that nobody alive uses.
fn hold(destination: &Path) -> io::Result<Held> {
    for n in 0..NAMES {
        let mut name = destination.as_os_str().to_owned();
        name.push(format!(".pgcairn.{n}.tmp"));
        let path = PathBuf::from(name);
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        if !lock(&file)? {
            continue;
        }
        // Its owner may have published or removed it before the lock was free.
        let (own, named) = (file.metadata()?, fs::metadata(&path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (own.dev(), own.ino())) {
            file.set_len(0)?;
            return Ok(Held { path, file });
        }
    }
    let text = format!("{NAMES} other processes are fetching to the same place");
    Err(io::Error::new(ErrorKind::ResourceBusy, text))
}

/// Locks a file, unless somebody else has. Where the file system has no locks, everybody has.
fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Unsupported => Err(error),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use tempfile::TempDir;

    use super::*;

    fn files(folder: &TempDir) -> Vec<String> {
        let listed = fs::read_dir(folder.path()).unwrap();
        let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn make(path: &Path, content: &[u8]) {
        File::create(path)
            .and_then(|file| file.write_all_at(content, 0))
            .unwrap();
    }

    #[test]
    fn two_that_fetch_to_one_place_do_not_meet() {
        let folder = TempDir::new().unwrap();
        let place = folder.path().join("RECOVERYXLOG");
        let (one, other) = (Download::to(&place), Download::to(&place));
        one.begin().unwrap().write_all_at(b"first", 0).unwrap();
        other.begin().unwrap().write_all_at(b"other", 0).unwrap();
        one.publish().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"first");
        other.publish().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"other");
        assert_eq!(files(&folder), ["RECOVERYXLOG"]);
    }

    #[test]
    fn one_that_gives_up_takes_nothing_away_from_another() {
        let folder = TempDir::new().unwrap();
        let place = folder.path().join("RECOVERYXLOG");
        let spooled = folder.path().join("spooled");
        make(&spooled, b"spooled");
        let given_up = Download::to(&place);
        given_up.begin().unwrap().write_all_at(b"gone", 0).unwrap();
        let taken = Download::to(&place);
        assert!(taken.take(&spooled).unwrap().is_some());
        drop(given_up);
        drop(Download::to(&place));
        taken.publish().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"spooled");
        assert_eq!(files(&folder), ["RECOVERYXLOG"]);
    }

    #[test]
    fn what_a_killed_process_left_is_used_again() {
        let folder = TempDir::new().unwrap();
        let place = folder.path().join("RECOVERYXLOG");
        make(
            &folder.path().join("RECOVERYXLOG.pgcairn.0.tmp"),
            b"half of it",
        );
        let download = Download::to(&place);
        download.begin().unwrap().write_all_at(b"all", 0).unwrap();
        download.publish().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"all");
        assert_eq!(files(&folder), ["RECOVERYXLOG"]);
    }
}
