//! A storage that does not keep put-if-absent, as some stores do not: it replaces, or it looks first and then is slow.

use std::thread;
use std::time::Duration;

use pgcairn_engine::storage::memory::MemoryStorage;
use pgcairn_engine::storage::{Error, ErrorKind, Key, Object, Result, Storage};

/// In which way it is careless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// Every put succeeds, and the last one stays.
    None,
    /// A put looks whether the object is there, and replaces what came while it read the body.
    BeforeTheBody,
}

/// A storage in memory without put-if-absent.
#[derive(Debug)]
pub struct Careless {
    care: Care,
    inner: MemoryStorage,
}

impl Careless {
    /// An empty one.
    pub fn new(care: Care) -> Self {
        let inner = MemoryStorage::new();
        Careless { care, inner }
    }
}

impl Storage for Careless {
    fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
        if self.care == Care::BeforeTheBody {
            if self.inner.get(key).is_ok() {
                return self.inner.put(key, body);
            }
            // The body comes over the network.
            thread::sleep(Duration::from_millis(5));
        }
        loop {
            self.inner.delete(key)?;
            match self.inner.put(key, body) {
                Err(Error {
                    kind: ErrorKind::AlreadyExists,
                    ..
                }) => {}
                put => return put,
            }
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

    fn describe(&self) -> String {
        "a careless storage".to_owned()
    }
}
