//! The epoch that this host's WAL goes to, remembered from one push to the next.
//!
//! Promises: only what was found is remembered, never that something is absent; what is remembered counts only once the
//! repository has confirmed it. A file that is missing, damaged, or about another place, stanza or cluster is as good as
//! none; one that cannot be written costs a listing with every segment, nothing else.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::actions::archive::ArchiveOptions;
use crate::actions::error::{Error, Result};
use crate::actions::pipeline::both;
use crate::cluster::control_file::ControlFile;
use crate::codec::{self, RecordKind};
use crate::ids::{RepositoryId, short_digest};
use crate::repository::Repository;
use crate::repository::stanza::{self, Epoch};
use crate::storage::Storage;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// The repository's id.
    pub(super) repository: RepositoryId,
    /// The stanza's epoch.
    pub(super) epoch: Epoch,
}

/// What is remembered of this stanza in this storage, if it is about this cluster.
pub(super) fn read(
    options: &ArchiveOptions,
    storage: &dyn Storage,
    control: &ControlFile,
) -> Option<Remembered> {
    let bytes = fs::read(path(options, storage)).ok()?;
    let key = key(options, storage);
    let (repository, remembered): (_, Remembered) =
        codec::open(RecordKind::Local, None, &key, &bytes).ok()?;
    let epoch = &remembered.epoch;
    let fits = repository == remembered.repository
        && epoch.system_id == control.system_id
        && epoch.version == control.version;
    fits.then_some(remembered)
}

/// Remembers the newest epoch of a stanza, which was just found. Not where a put may replace an object: with a remembered
/// epoch nobody would look, before the put, whether the file is there.
pub(super) fn remember(options: &ArchiveOptions, repository: &Repository, epoch: Epoch) {
    let found = Remembered {
        repository: repository.id,
        epoch,
    };
    let storage = repository.storage.as_ref();
    let known = || {
        let bytes = fs::read(path(options, storage)).ok()?;
        let (_, known): (_, Remembered) =
            codec::open(RecordKind::Local, None, &key(options, storage), &bytes).ok()?;
        Some(known)
    };
    if repository.config.capabilities.put_if_absent && known().as_ref() != Some(&found) {
        write(options, storage, &found);
    }
}

fn write(options: &ArchiveOptions, storage: &dyn Storage, found: &Remembered) {
    let path = path(options, storage);
    let key = key(options, storage);
    let Ok(bytes) = codec::seal(RecordKind::Local, found.repository, &key, found) else {
        return;
    };
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = folder
        .and_then(|()| File::create(&temporary)?.write_all(&bytes))
        .and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // It is a cache: the next push finds the epoch as this one did.
        drop(fs::remove_file(temporary));
    }
}

/// Whether the stanza's newest record is still the one that is remembered.
pub(super) fn is_confirmed(
    storage: &dyn Storage,
    stanza: &str,
    remembered: &Remembered,
) -> Result<bool> {
    let Remembered { repository, epoch } = remembered;
    let (same, newest) = both(
        || stanza::is_epoch(storage, *repository, stanza, epoch),
        || stanza::is_newest(storage, stanza, epoch.n),
    );
    Ok(same.map_err(Error::Repository)? && newest.map_err(Error::Repository)?)
}

fn path(options: &ArchiveOptions, storage: &dyn Storage) -> PathBuf {
    let place = u128::from_be_bytes(short_digest(storage.describe().as_bytes()));
    let name = format!("{}-{place:032x}", options.stanza);
    options.cache.join("epochs").join(name)
}

fn key(options: &ArchiveOptions, storage: &dyn Storage) -> String {
    format!("{} in {}", options.stanza, storage.describe())
}
