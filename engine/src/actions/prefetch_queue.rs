//! Which segment is fetched next, for several threads that fill one spool.
//!
//! Promises: segments are handed out in their order, each once; no more lie in the spool or are on their way than there is
//! room for; after one that could not be had none is handed out; who waits hears of every end.

use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::wal_name::Segment;

/// The segments to be fetched, one after the other, as long as there is room for them in the spool.
pub(super) struct Queue<'a> {
    spool: &'a Path,
    segment_bytes: u32,
    most: usize,
    state: Mutex<QueueState>,
    changed: Condvar,
}

struct QueueState {
    last: Segment,
    /// Segments that were seen to lie in the spool, or were put there.
    spooled: Vec<String>,
    /// How many are being fetched.
    coming: usize,
    fetched: u64,
    /// One could not be had.
    ended: bool,
}

/// A segment that somebody fetches; the others hear of it when he is done.
pub(super) struct Turn<'a> {
    queue: &'a Queue<'a>,
    /// Its name.
    pub(super) name: String,
    /// It is in the spool now.
    pub(super) spooled: bool,
}

impl<'a> Queue<'a> {
    /// Those that follow `last`; no more than `most` shall lie in the spool.
    pub(super) fn after(spool: &'a Path, last: Segment, segment_bytes: u32, most: usize) -> Self {
        let state = QueueState {
            last,
            spooled: Vec::new(),
            coming: 0,
            fetched: 0,
            ended: false,
        };
        Queue {
            spool,
            segment_bytes,
            most,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// How many were put into the spool.
    pub(super) fn fetched(&self) -> u64 {
        self.lock().fetched
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next segment; `None` when the queue is full and nothing is on its way, or when it has ended. Segments are taken
    /// meanwhile, so who finds it full looks again when another segment is there.
    pub(super) fn next(&self) -> Option<Turn<'_>> {
        let mut state = self.lock();
        while !state.ended {
            let there = |name: &String| self.spool.join(name).exists();
            state.spooled.retain(there);
            if state.spooled.len() + state.coming < self.most {
                state.last.number += 1;
                let name = state.last.file_name(self.segment_bytes);
                if there(&name) {
                    state.spooled.push(name);
                    continue;
                }
                state.coming += 1;
                return Some(Turn {
                    queue: self,
                    name,
                    spooled: false,
                });
            }
            if state.coming == 0 {
                return None;
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.coming -= 1;
        if self.spooled {
            state.spooled.push(std::mem::take(&mut self.name));
            state.fetched += 1;
        } else {
            state.ended = true;
        }
        drop(state);
        self.queue.changed.notify_all();
    }
}
