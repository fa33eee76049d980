//! How long a remote storage is waited for, and how often it is asked again.
//!
//! Promises: nothing is waited for without end; pauses grow, are never the same for two waiters, and stop when the time
//! for the whole request is over.

use std::time::{Duration, Instant};

/// The limits of one request and of all attempts at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// What a connection may take to be made.
    pub connect: Duration,
    /// How long an answer, or the next part of one, may take.
    pub silence: Duration,
    /// The slowest transfer that is not given up.
    pub least_bytes_per_second: u64,
    /// The pause before the second attempt; it doubles from there.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// After this time no further attempt is begun.
    pub give_up: Duration,
    /// The same while the server has never answered: it may not be where it is looked for.
    pub give_up_unknown: Duration,
}

impl Default for Patience {
    /// A store's short outage is sat out, and so are the minutes in which one scales up; a connection that is dead costs
    /// half a minute.
    fn default() -> Self {
        Patience {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            least_bytes_per_second: 128 << 10,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
            give_up: Duration::from_mins(2),
            give_up_unknown: Duration::from_secs(15),
        }
    }
}

impl Patience {
    /// What one attempt may take that moves `bytes`.
    pub(super) fn deadline(&self, bytes: u64) -> Duration {
        let transfer = Duration::from_secs(bytes / self.least_bytes_per_second.max(1));
        self.connect + self.silence + transfer
    }
}

/// The attempts at one request.
pub(super) struct Attempts<'a> {
    patience: &'a Patience,
    begun: Instant,
    failed: u32,
}

impl<'a> Attempts<'a> {
    /// None made yet.
    pub(super) fn new(patience: &'a Patience) -> Self {
        Attempts {
            patience,
            begun: Instant::now(),
            failed: 0,
        }
    }

    /// After a failed attempt: how long to pause before the next, `None` if there is to be none. `known`: the server has
    /// answered before.
    pub(super) fn pause(&mut self, asked: Option<Duration>, known: bool) -> Option<Duration> {
        let give_up = if known {
            self.patience.give_up
        } else {
            self.patience.give_up.min(self.patience.give_up_unknown)
        };
        let doubled = self
            .patience
            .first_pause
            .saturating_mul(1 << self.failed.min(16));
        self.failed += 1;
        let pause = doubled.min(self.patience.longest_pause);
        // Half of it at least, so that many waiters do not come back at once.
        let random = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
        let pause = pause
            .mul_f64(0.5 + random / 2.0)
            .max(asked.unwrap_or_default());
        (self.begun.elapsed() + pause < give_up).then_some(pause)
    }

    /// How often it was tried, in words.
    pub(super) fn told(&self) -> String {
        match self.failed {
            0 | 1 => String::new(),
            failed => format!(
                "; {failed} attempts in {:.0} s",
                self.begun.elapsed().as_secs_f64()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_end() {
        let patience = Patience {
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(4),
            give_up: Duration::from_secs(20),
            ..Patience::default()
        };
        let mut attempts = Attempts::new(&patience);
        for longest in [1, 2, 4, 4, 4] {
            let pause = attempts.pause(None, true).unwrap();
            assert!(pause <= Duration::from_secs(longest), "{pause:?}");
            assert!(pause >= Duration::from_secs(longest) / 2, "{pause:?}");
        }
        assert_eq!(attempts.pause(Some(Duration::from_secs(30)), true), None);
    }

    #[test]
    fn what_is_large_may_take_longer() {
        let patience = Patience::default();
        assert!(patience.deadline(32 << 20) > patience.deadline(0) + Duration::from_mins(2));
    }

    #[test]
    fn a_server_that_never_answered_is_given_up_sooner() {
        let patience = Patience {
            first_pause: Duration::from_secs(20),
            longest_pause: Duration::from_secs(20),
            ..Patience::default()
        };
        let asked = Some(Duration::from_secs(20));
        assert!(Attempts::new(&patience).pause(asked, true).is_some());
        assert_eq!(Attempts::new(&patience).pause(asked, false), None);
    }
}
