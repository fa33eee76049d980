//! Objects in this process's memory: for tests and examples.
//!
//! Promises all that [`Storage`] promises but durability: the objects live as long as the last clone of the handle.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::storage::{Error, ErrorKind, Key, Object, Result, Storage, unix_ms};

/// A storage in memory. A clone is another handle on the same objects.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    objects: Arc<Mutex<BTreeMap<Key, Stored>>>,
}

#[derive(Debug)]
struct Stored {
    body: Arc<[u8]>,
    modified_ms: i64,
}

impl MemoryStorage {
    /// A storage without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// A poisoned lock is taken all the same: no change of the map is left half done by a panic.
    fn objects(&self) -> MutexGuard<'_, BTreeMap<Key, Stored>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shares the body, so that the lock is not held while it is copied.
    fn body(&self, what: &'static str, key: &Key) -> Result<Arc<[u8]>> {
        let objects = self.objects();
        let stored = objects
            .get(key)
            .ok_or_else(|| self.fail(what, key, ErrorKind::NotFound))?;
        Ok(Arc::clone(&stored.body))
    }

    fn fail(&self, what: &'static str, key: &Key, kind: ErrorKind) -> Error {
        Error {
            kind,
            what,
            key: key.to_string(),
            place: self.describe(),
            source: None,
        }
    }
}

impl Storage for MemoryStorage {
    fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
        let stored = Stored {
            body: Arc::from(body),
            modified_ms: unix_ms(SystemTime::now()),
        };
        match self.objects().entry(key.clone()) {
            Entry::Occupied(_) => Err(self.fail("put", key, ErrorKind::AlreadyExists)),
            Entry::Vacant(place) => {
                place.insert(stored);
                Ok(())
            }
        }
    }

    fn get(&self, key: &Key) -> Result<Vec<u8>> {
        Ok(self.body("get", key)?.to_vec())
    }

    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let body = self.body("get a range of", key)?;
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buffer.len())?));
        let bytes = range.and_then(|range| body.get(range));
        buffer.copy_from_slice(
            bytes.ok_or_else(|| self.fail("get a range of", key, ErrorKind::Truncated))?,
        );
        Ok(())
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Vec<Object>> {
        let from = match start_after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let object = |(key, stored): (&Key, &Stored)| Object {
            key: key.clone(),
            bytes: stored.body.len() as u64,
            modified_ms: stored.modified_ms,
        };
        let objects = self.objects();
        let matching = objects.range::<str, _>((from, Bound::Unbounded));
        Ok(matching
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .take(limit)
            .map(object)
            .collect())
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.objects().remove(key);
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_a_handle_on_the_same_objects() {
        let one = MemoryStorage::new();
        let key = Key::new("a/b").unwrap();
        one.clone().put(&key, b"body").unwrap();
        assert_eq!(one.get(&key).unwrap(), b"body");
    }
}
