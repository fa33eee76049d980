//! One writer per stanza and host, and none where the stanza is stopped: files under `lock-path`.
//!
//! Promises: a lock ends with its process, however that ends. It keeps people from starting the same job twice; the
//! repository's safety never depends on it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// A lock, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the lock of a stanza's `job` (`backup` or `restore`) or fails at once.
pub(crate) fn acquire(directory: &Path, stanza: &str, job: &str) -> Result<Lock, Error> {
    let path = lock_file(directory, stanza, job);
    let failed = |source| Error::LockFile {
        path: path.clone(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o770)
        .create(directory)
        .map_err(failed)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o640)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Keeps processes of a stanza, or of all, from being started; whether that was so already.
pub(crate) fn stop(directory: &Path, stanza: Option<&str>) -> Result<bool, Error> {
    let path = stop_file(directory, stanza);
    if path.exists() {
        return Ok(true);
    }
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o770)
        .create(directory)
        .and_then(|()| File::create(&path));
    match made {
        Ok(_) => Ok(false),
        Err(source) => Err(Error::LockFile { path, source }),
    }
}

/// Lets processes be started again; whether they could not before.
pub(crate) fn start(directory: &Path, stanza: Option<&str>) -> Result<bool, Error> {
    let path = stop_file(directory, stanza);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::LockFile { path, source }),
    }
}

/// What is stopped that a process of this stanza belongs to: the stanza, or all stanzas.
pub(crate) fn stopped(directory: &Path, stanza: &str) -> Option<String> {
    if stop_file(directory, Some(stanza)).exists() {
        return Some(format!("stanza '{stanza}'"));
    }
    stop_file(directory, None)
        .exists()
        .then(|| "all stanzas".to_owned())
}

fn stop_file(directory: &Path, stanza: Option<&str>) -> PathBuf {
    directory.join(format!("{}.stop", stanza.unwrap_or("all")))
}

/// Whether a process of this host holds the lock; `false` if that cannot be found out.
pub(crate) fn is_held(directory: &Path, stanza: &str, job: &str) -> bool {
    let file = File::open(lock_file(directory, stanza, job));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn lock_file(directory: &Path, stanza: &str, job: &str) -> PathBuf {
    directory.join(format!("{stanza}-{job}.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_the_same_job_of_the_same_stanza_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("locks");
        let held = acquire(&path, "demo", "backup").unwrap();
        assert!(matches!(
            acquire(&path, "demo", "backup"),
            Err(Error::Locked { .. })
        ));
        assert!(is_held(&path, "demo", "backup"));
        assert!(acquire(&path, "demo", "restore").is_ok());
        assert!(acquire(&path, "other", "backup").is_ok());
        drop(held);
        assert!(!is_held(&path, "demo", "backup"));
        assert!(acquire(&path, "demo", "backup").is_ok());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        File::create(&file).unwrap();
        let error = acquire(&file, "demo", "backup").unwrap_err();
        assert!(
            matches!(&error, Error::LockFile { path, .. } if path.starts_with(&file)),
            "{error}"
        );
    }
}
