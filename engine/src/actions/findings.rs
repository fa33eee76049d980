//! What an inspection of the repository finds: told as problems, the first of them by name, and counted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::monitor::{Monitor, Problem};

/// Findings that are told by name: a lost segment makes one for each of its chunks.
const TOLD: u64 = 100;

/// The findings of one inspection. Shared by threads.
pub(super) struct Findings<'a> {
    monitor: &'a dyn Monitor,
    count: AtomicU64,
}

impl<'a> Findings<'a> {
    /// Nothing found yet; `monitor` is told.
    pub(super) fn new(monitor: &'a dyn Monitor) -> Self {
        Findings {
            monitor,
            count: AtomicU64::new(0),
        }
    }

    /// Something wrong with `object`.
    pub(super) fn tell(&self, object: String, message: String) {
        if self.count.fetch_add(1, Ordering::Relaxed) < TOLD {
            self.monitor.problem(&Problem { object, message });
        }
    }

    /// One more, that somebody else told.
    pub(super) fn add_told(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
