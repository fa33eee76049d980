//! A storage whose user dies after a chosen number of writes: what is left is what the next process finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgcairn_engine::storage::{Error, ErrorKind, Key, Object, Result, Storage};

/// Lets a number of puts and deletes through; then every call of any kind is [`ErrorKind::Unreachable`].
pub struct Crashing {
    inner: Arc<dyn Storage>,
    most: u64,
    writes: AtomicU64,
}

impl Crashing {
    /// Lets `most` writes through to `inner`; `u64::MAX` to count the writes of a whole run.
    pub fn new(inner: Arc<dyn Storage>, most: u64) -> Self {
        Crashing {
            inner,
            most,
            writes: AtomicU64::new(0),
        }
    }

    /// Writes let through so far, those that failed by themselves included.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    fn write(&self, what: &'static str, key: &Key, run: impl FnOnce() -> Result<()>) -> Result<()> {
        let next = |writes: u64| (writes < self.most).then_some(writes + 1);
        match self
            .writes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next)
        {
            Ok(_) => run(),
            Err(_) => Err(self.dead(what, key.as_str())),
        }
    }

    fn read<T>(&self, what: &'static str, key: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.writes() < self.most {
            run()
        } else {
            Err(self.dead(what, key))
        }
    }

    fn dead(&self, what: &'static str, key: &str) -> Error {
        Error {
            kind: ErrorKind::Unreachable,
            what,
            key: key.to_owned(),
            place: self.describe(),
            source: None,
        }
    }
}

impl Storage for Crashing {
    fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
        self.write("put", key, || self.inner.put(key, body))
    }

    fn get(&self, key: &Key) -> Result<Vec<u8>> {
        self.read("get", key.as_str(), || self.inner.get(key))
    }

    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read("get a range of", key.as_str(), || {
            self.inner.get_range(key, offset, buffer)
        })
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Vec<Object>> {
        self.read("list", prefix, || {
            self.inner.list(prefix, start_after, limit)
        })
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.write("delete", key, || self.inner.delete(key))
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }
}

#[cfg(test)]
mod tests {
    use pgcairn_engine::storage::memory::MemoryStorage;

    use super::*;

    #[test]
    fn after_the_last_write_nothing_answers() {
        let inner = MemoryStorage::new();
        let storage = Crashing::new(Arc::new(inner.clone()), 2);
        let key = |text: &str| Key::new(text).unwrap();
        let dead = |answer: Result<()>| answer.unwrap_err().kind == ErrorKind::Unreachable;
        storage.put(&key("a"), b"1").unwrap();
        assert_eq!(storage.get(&key("a")).unwrap(), b"1");
        storage.delete(&key("a")).unwrap();
        assert!(dead(storage.put(&key("b"), b"2")));
        assert!(dead(storage.delete(&key("b"))));
        assert!(dead(storage.get(&key("b")).map(drop)));
        assert!(dead(storage.get_range(&key("b"), 0, &mut [])));
        assert!(dead(storage.list("", None, 1).map(drop)));
        assert_eq!(storage.writes(), 2);
        assert!(inner.list("", None, 1).unwrap().is_empty());
    }
}
