//! A file lock for each announced run of this host, by which the next run learns that its owner has died.
//!
//! Promises: a lock is held from before the announcement is put until it was withdrawn, or until the process ends,
//! however it ends; a run whose lock is free is ended at once, a backup by fencing its register first, so that a late
//! write of it cannot commit. Runs of other hosts have no file here: only their lease ends them. Expects a local file
//! system.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::actions::error::{Error, Result};
use crate::dedup::slot;
use crate::ids::RunId;
use crate::repository::run::{self, Role};
use crate::repository::snapshot::{self, Register};
use crate::repository::{self, Repository, layout, list_all};

/// The lock of a run of this process. Dropping it frees the lock, but leaves the file.
pub(super) struct RunLock {
    path: PathBuf,
    _file: File,
}

impl RunLock {
    /// Takes the lock of a run that is about to be announced.
    pub(super) fn take(
        repository: &Repository,
        cache: &Path,
        role: &Role,
        run: RunId,
    ) -> Result<Self> {
        let key = layout::run(role, run, 0).map_err(Error::Repository)?;
        let folder = folder(repository, cache);
        let path = folder.join(run.to_string());
        let locked = || -> io::Result<File> {
            fs::create_dir_all(&folder)?;
            let mut file = File::create_new(&path)?;
            // Whoever looks for the dead may have it for a moment; an empty file tells nothing and is left alone.
            file.lock()?;
            file.write_all(key.as_str().as_bytes())?;
            Ok(file)
        };
        match locked() {
            Ok(file) => Ok(RunLock { path, _file: file }),
            Err(source) => Err(Error::WriteFile { path, source }),
        }
    }

    /// Removes the file of a run that is not announced any more.
    pub(super) fn remove(&self) {
        // One that stays names a run that is not listed, which costs the next run a request.
        fs::remove_file(&self.path).ok();
    }
}

/// Ends the runs of this host whose process has died. One that cannot be ended now is left to the next run.
pub(super) fn end_the_dead(repository: &Repository, cache: &Path) {
    for entry in fs::read_dir(folder(repository, cache))
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(mut file) = File::open(entry.path()) else {
            continue;
        };
        let mut key = String::new();
        if file.try_lock().is_err() || file.read_to_string(&mut key).is_err() {
            continue;
        }
        let Some((role, run, _)) = layout::parse_run(&key) else {
            continue;
        };
        if end(repository, &role, run).is_err() {
            // Whatever ails the repository, each of the others would have to wait for it too.
            return;
        }
        fs::remove_file(entry.path()).ok();
    }
}

fn end(repository: &Repository, role: &Role, run: RunId) -> repository::Result<()> {
    let announced = list_all(repository.storage.as_ref(), &layout::run_prefix(role, run)?)?;
    if announced.is_empty() {
        return Ok(());
    }
    if let Role::Backup { stanza, label } = role {
        // Committed is decided as well as fenced is.
        snapshot::decide(repository, stanza, label, run, &Register::Fenced)?;
    }
    run::withdraw(repository, role, run)
}

/// Beside the slots of the chunk index: a copy of a repository at another place has runs of its own.
fn folder(repository: &Repository, cache: &Path) -> PathBuf {
    let place = repository.storage.describe();
    slot::directory(cache, repository.id, &place).join("runs")
}
