//! Finding a repository, or several.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::actions::error::{Error, Result};
use crate::repository::{self, Repository};
use crate::storage::Storage;
use crate::storage::local::LocalStorage;
use crate::storage::s3::{S3Options, S3Storage};

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageLocation {
    /// In a directory.
    Directory(PathBuf),
    /// In a bucket.
    S3(Box<S3Options>),
}

/// The storage at a place that exists.
pub fn open_storage(location: &StorageLocation) -> Result<Arc<dyn Storage>> {
    match location {
        StorageLocation::Directory(path) => {
            Ok(Arc::new(LocalStorage::open(path).map_err(Error::Storage)?))
        }
        StorageLocation::S3(options) => open_bucket(options),
    }
}

/// The storage at a place that is made if need be; only making a stanza does that.
pub fn create_storage(location: &StorageLocation) -> Result<Arc<dyn Storage>> {
    match location {
        StorageLocation::Directory(path) => Ok(Arc::new(
            LocalStorage::create(path).map_err(Error::Storage)?,
        )),
        // Who may make buckets, and how they are to be made, is not for a backup tool to decide.
        StorageLocation::S3(options) => open_bucket(options),
    }
}

fn open_bucket(options: &S3Options) -> Result<Arc<dyn Storage>> {
    Ok(Arc::new(S3Storage::open(options).map_err(Error::Storage)?))
}

/// The repository in a storage.
pub fn open_repository(storage: Arc<dyn Storage>) -> Result<Repository> {
    repository::open(storage).map_err(Error::Repository)
}

/// One of the repositories that are configured. Its storage is opened when it is first needed; one that could not be
/// opened is tried again the next time.
pub struct RepositoryPlace {
    /// Its number, as in `repo1-path`.
    pub number: u32,
    open: Box<dyn Fn() -> Result<Arc<dyn Storage>> + Send + Sync>,
    opened: OnceLock<Arc<dyn Storage>>,
}

impl RepositoryPlace {
    /// The repository of this number, whose storage `open` opens.
    pub fn new(
        number: u32,
        open: impl Fn() -> Result<Arc<dyn Storage>> + Send + Sync + 'static,
    ) -> Self {
        RepositoryPlace {
            number,
            open: Box::new(open),
            opened: OnceLock::new(),
        }
    }

    /// Its storage.
    pub fn storage(&self) -> Result<Arc<dyn Storage>> {
        if let Some(storage) = self.opened.get() {
            return Ok(Arc::clone(storage));
        }
        let storage = (self.open)()?;
        Ok(Arc::clone(self.opened.get_or_init(|| storage)))
    }

    /// The repository in its storage.
    pub fn repository(&self) -> Result<Repository> {
        open_repository(self.storage()?)
    }
}
