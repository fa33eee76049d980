//! A storage that notes every call: performance as an equality.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pgcairn_engine::storage::{Key, Object, Result, Storage};

/// What was asked of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `put`.
    Put,
    /// `get`.
    Get,
    /// `get_range`.
    GetRange,
    /// `list`.
    List,
    /// `delete`.
    Delete,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub verb: Verb,
    /// The key; of a listing, the prefix.
    pub key: String,
    /// Bytes of bodies that were to go over the wire: all of a put's, of a range's what was asked for, of a get's what
    /// was answered; else 0.
    pub bytes: u64,
}

impl Call {
    /// A call of `verb`.
    pub fn new(verb: Verb, key: &str, bytes: usize) -> Self {
        Call {
            verb,
            key: key.to_owned(),
            bytes: bytes as u64,
        }
    }
}

/// Notes the calls, failed ones too, in the order in which they were answered, and passes them on.
pub struct Recording {
    inner: Arc<dyn Storage>,
    calls: Mutex<Vec<Call>>,
}

impl Recording {
    /// Records what is asked of `inner`.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Recording {
            inner,
            calls: Mutex::default(),
        }
    }

    /// The calls since the last `take`.
    pub fn take(&self) -> Vec<Call> {
        mem::take(&mut self.calls())
    }

    fn calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, verb: Verb, key: &str, bytes: usize) {
        self.calls().push(Call::new(verb, key, bytes));
    }
}

impl Storage for Recording {
    fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
        let answer = self.inner.put(key, body);
        self.note(Verb::Put, key.as_str(), body.len());
        answer
    }

    fn get(&self, key: &Key) -> Result<Vec<u8>> {
        let answer = self.inner.get(key);
        self.note(Verb::Get, key.as_str(), answer.as_ref().map_or(0, Vec::len));
        answer
    }

    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let answer = self.inner.get_range(key, offset, buffer);
        self.note(Verb::GetRange, key.as_str(), buffer.len());
        answer
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Vec<Object>> {
        let answer = self.inner.list(prefix, start_after, limit);
        self.note(Verb::List, prefix, 0);
        answer
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let answer = self.inner.delete(key);
        self.note(Verb::Delete, key.as_str(), 0);
        answer
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
    fn every_call_is_noted_once() {
        let storage = Recording::new(Arc::new(MemoryStorage::new()));
        let key = Key::new("a/b").unwrap();
        storage.put(&key, b"body").unwrap();
        storage.get(&key).unwrap();
        storage.get_range(&key, 1, &mut [0; 2]).unwrap();
        storage.list("a/", None, 10).unwrap();
        storage.delete(&key).unwrap();
        storage.get(&key).unwrap_err();
        let expected = [
            Call::new(Verb::Put, "a/b", 4),
            Call::new(Verb::Get, "a/b", 4),
            Call::new(Verb::GetRange, "a/b", 2),
            Call::new(Verb::List, "a/", 0),
            Call::new(Verb::Delete, "a/b", 0),
            Call::new(Verb::Get, "a/b", 0),
        ];
        assert_eq!(storage.take(), expected);
        assert_eq!(storage.take(), []);
    }
}
