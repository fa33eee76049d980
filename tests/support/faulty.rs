//! A storage in which one chosen call fails: an outage, a full disk, an answer that was lost on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pgcairn_engine::storage::{Error, ErrorKind, Key, Object, Result, Storage};

use crate::recording::{Call, Verb};

/// When a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before it had an effect.
    Before,
    /// After it took effect; the caller sees the error alone (a lost answer).
    After,
}

/// Fails one call, and passes on all others.
pub struct Faulty {
    inner: Arc<dyn Storage>,
    matches: Box<dyn Fn(&Call) -> bool + Send + Sync>,
    nth: usize,
    kind: ErrorKind,
    moment: Moment,
    matched: AtomicUsize,
}

impl Faulty {
    /// Fails the `nth` call, counted from 1, of those that `matches` picks. It sees calls before they are made, so the
    /// bytes of a get are 0.
    pub fn new(
        inner: Arc<dyn Storage>,
        matches: impl Fn(&Call) -> bool + Send + Sync + 'static,
        nth: usize,
        kind: ErrorKind,
        moment: Moment,
    ) -> Self {
        Faulty {
            inner,
            matches: Box::new(matches),
            nth,
            kind,
            moment,
            matched: AtomicUsize::new(0),
        }
    }

    /// How many calls matched so far. A test that sees fewer than its `nth` has tested nothing.
    pub fn matched(&self) -> usize {
        self.matched.load(Ordering::SeqCst)
    }

    fn call<T>(
        &self,
        call: &Call,
        what: &'static str,
        run: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let struck =
            (self.matches)(call) && self.matched.fetch_add(1, Ordering::SeqCst) + 1 == self.nth;
        if !struck {
            return run();
        }
        if self.moment == Moment::After {
            drop(run());
        }
        Err(Error {
            kind: self.kind,
            what,
            key: call.key.clone(),
            place: self.describe(),
            source: None,
        })
    }
}

impl Storage for Faulty {
    fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
        self.call(
            &Call::new(Verb::Put, key.as_str(), body.len()),
            "put",
            || self.inner.put(key, body),
        )
    }

    fn get(&self, key: &Key) -> Result<Vec<u8>> {
        self.call(&Call::new(Verb::Get, key.as_str(), 0), "get", || {
            self.inner.get(key)
        })
    }

    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let call = Call::new(Verb::GetRange, key.as_str(), buffer.len());
        self.call(&call, "get a range of", || {
            self.inner.get_range(key, offset, buffer)
        })
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Vec<Object>> {
        self.call(&Call::new(Verb::List, prefix, 0), "list", || {
            self.inner.list(prefix, start_after, limit)
        })
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.call(&Call::new(Verb::Delete, key.as_str(), 0), "delete", || {
            self.inner.delete(key)
        })
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

    fn second_put_fails(moment: Moment) -> Faulty {
        let is_put = |call: &Call| call.verb == Verb::Put && call.key.starts_with("a/");
        Faulty::new(
            Arc::new(MemoryStorage::new()),
            is_put,
            2,
            ErrorKind::Unreachable,
            moment,
        )
    }

    #[test]
    fn only_the_chosen_call_fails() {
        let storage = second_put_fails(Moment::Before);
        let put = |text: &str| {
            storage
                .put(&Key::new(text).unwrap(), b"body")
                .map_err(|error| error.kind)
        };
        let answers = ["a/1", "b/1", "a/2", "a/3"].map(put);
        assert_eq!(
            answers,
            [Ok(()), Ok(()), Err(ErrorKind::Unreachable), Ok(())]
        );
        assert_eq!(storage.matched(), 3);
        assert_eq!(
            storage.get(&Key::new("a/2").unwrap()).unwrap_err().kind,
            ErrorKind::NotFound
        );
    }

    #[test]
    fn a_lost_answer_hides_a_put_that_took_effect() {
        let storage = second_put_fails(Moment::After);
        let key = Key::new("a/2").unwrap();
        storage.put(&Key::new("a/1").unwrap(), b"one").unwrap();
        assert_eq!(
            storage.put(&key, b"two").unwrap_err().kind,
            ErrorKind::Unreachable
        );
        assert_eq!(storage.get(&key).unwrap(), b"two");
    }
}
