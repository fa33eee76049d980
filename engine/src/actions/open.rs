//! Finding a repository.

use std::path::PathBuf;
use std::sync::Arc;

use crate::actions::error::{Error, Result};
use crate::repository::{self, Repository};
use crate::storage::Storage;
use crate::storage::local::LocalStorage;

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageLocation {
    /// In a directory.
    Directory(PathBuf),
}

/// The storage at a place that exists.
pub fn open_storage(location: &StorageLocation) -> Result<Arc<dyn Storage>> {
    match location {
        StorageLocation::Directory(path) => Ok(Arc::new(LocalStorage::open(path).map_err(Error::Storage)?)),
    }
}

/// The storage at a place that is made if need be; only making a stanza does that.
pub fn create_storage(location: &StorageLocation) -> Result<Arc<dyn Storage>> {
    match location {
        StorageLocation::Directory(path) => Ok(Arc::new(LocalStorage::create(path).map_err(Error::Storage)?)),
    }
}

/// The repository in a storage.
pub fn open_repository(storage: Arc<dyn Storage>) -> Result<Repository> {
    repository::open(storage).map_err(Error::Repository)
}
