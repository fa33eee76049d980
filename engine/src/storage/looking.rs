//! A storage that looks whether an object is there before it puts it: for stores without put-if-absent.
//!
//! Promises: an object that was there when a put began is not replaced. What it cannot promise: of two hosts that put one
//! key at the same moment, both are told that they succeeded. Who uses it says so.

use std::sync::Arc;

use crate::storage::{Error, ErrorKind, Key, Object, Result, Storage};

/// A storage that looks first. Shared by threads.
pub struct LookingStorage {
    inner: Arc<dyn Storage>,
}

impl LookingStorage {
    /// Looks before each put into `inner`.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        LookingStorage { inner }
    }
}

impl Storage for LookingStorage {
    fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
        match self.inner.get_range(key, 0, &mut [0]) {
            Err(error) if error.kind == ErrorKind::NotFound => self.inner.put(key, body),
            // An empty object is there, too.
            Ok(()) => Err(self.exists(key)),
            Err(error) if error.kind == ErrorKind::Truncated => Err(self.exists(key)),
            Err(error) => Err(error),
        }
    }

    fn get(&self, key: &Key) -> Result<Vec<u8>> {
        self.inner.get(key)
    }

    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.get_range(key, offset, buffer)
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Vec<Object>> {
        self.inner.list(prefix, start_after, limit)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }

    fn delete_all(&self, keys: &[Key]) -> Result<()> {
        self.inner.delete_all(keys)
    }

    fn drop_cached(&self, key: &Key) {
        self.inner.drop_cached(key);
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }
}

impl LookingStorage {
    fn exists(&self, key: &Key) -> Error {
        Error {
            kind: ErrorKind::AlreadyExists,
            what: "put",
            key: key.to_string(),
            place: self.describe(),
            source: None,
        }
    }
}
