//! The threads of every action. The only file that starts threads or makes queues.
//!
//! ```text
//! backup                                  produce ──plan──────────────────────▶ consume (the caller's thread)
//!                                            └──jobs──▶ work × process-max ──results──┘
//!                                                            └──packs──▶ store × 2
//! restore                                 produce ──jobs──▶ work × process-max
//! archive-push                            seal and put, and at the same time confirm (`both`)
//! either of them in the background        files × 2 process-max, which share process-max sealers or decoders (`Pool`)
//! beside any of them                      tick, every few seconds (server keep-alive, beats)
//! ```
//!
//! Promises: every queue is bounded, every thread is scoped and joined, the first error wins and ends the others (a
//! thread that fails drops its ends of the queues, and whoever waits there returns), a panic in a thread is a panic of
//! the caller. Nothing depends on the number of threads but time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::actions::error::{Error, Result};

/// Jobs that may wait for a worker, and results that may wait for the consumer, for each worker.
const QUEUED_PER_WORKER: usize = 4;
/// Entries of the plan that may be ahead of the consumer: what bounds the results kept out of order.
const PLAN_AHEAD: usize = 256;
/// Threads that store packs. Two: one writes while the other waits for the disk or the network.
pub(super) const STORERS: usize = 2;
/// Finished packs that may wait for a storing thread.
pub(super) const QUEUED_PACKS: usize = 1;

/// How often a waiting thread looks whether another has failed.
const LOOK_UP: Duration = Duration::from_millis(50);

/// The sending end of a queue; sending waits while the queue is full.
pub(super) struct Outlet<T> {
    sender: Sender<T>,
    failed: Arc<AtomicBool>,
}

/// The receiving end of a queue.
pub(super) struct Inlet<T> {
    receiver: Receiver<T>,
    failed: Arc<AtomicBool>,
}

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        Outlet {
            sender: self.sender.clone(),
            failed: Arc::clone(&self.failed),
        }
    }
}

impl<T> Clone for Inlet<T> {
    fn clone(&self) -> Self {
        Inlet {
            receiver: self.receiver.clone(),
            failed: Arc::clone(&self.failed),
        }
    }
}

impl<T> Outlet<T> {
    /// Hands a value on, or says that nobody takes it any more (another thread failed).
    pub(super) fn send(&self, value: T) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::Cancelled);
        }
        self.sender.send(value).map_err(|_| Error::Cancelled)
    }

    /// Hands a value on if there is room now, and drops it otherwise.
    pub(super) fn offer(&self, value: T) {
        drop(self.sender.try_send(value));
    }
}

impl<T> Inlet<T> {
    /// The next value; `None` when all senders are gone, or when another thread failed.
    pub(super) fn next(&self) -> Option<T> {
        loop {
            if self.failed.load(Ordering::Acquire) {
                return None;
            }
            match self.receiver.recv_timeout(LOOK_UP) {
                Ok(value) => return Some(value),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// A value, if one is there now.
    pub(super) fn try_next(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}

/// A queue of at most `length` waiting values that no failure elsewhere interrupts.
pub(super) fn queue<T>(length: usize) -> (Outlet<T>, Inlet<T>) {
    queue_of(length, &Arc::default())
}

fn queue_of<T>(length: usize, failed: &Arc<AtomicBool>) -> (Outlet<T>, Inlet<T>) {
    let (sender, receiver) = bounded(length);
    (
        Outlet {
            sender,
            failed: Arc::clone(failed),
        },
        Inlet {
            receiver,
            failed: Arc::clone(failed),
        },
    )
}

/// Keeps the first error of several threads; `Cancelled`, which follows from another's error, gives way to it.
#[derive(Default)]
struct FirstError {
    error: Mutex<Option<Error>>,
    failed: Arc<AtomicBool>,
}

impl FirstError {
    fn note(&self, result: Result<()>) {
        let Err(error) = result else { return };
        let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if first
            .as_ref()
            .is_none_or(|kept| matches!(kept, Error::Cancelled))
        {
            *first = Some(error);
        }
        drop(first);
        self.failed.store(true, Ordering::Release);
    }

    fn into_result(self) -> Result<()> {
        match self
            .error
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Runs a backup's stages to their end: `produce` plans and makes jobs, `threads` of `work` do them, `consume` takes
/// plan and results on the calling thread, and [`STORERS`] of `store` run until `consume` has let go of the packs.
pub(super) fn run_backup<P: Send, J: Send, R: Send, T>(
    threads: usize,
    produce: impl FnOnce(&Outlet<P>, &Outlet<J>) -> Result<()> + Send,
    work: impl Fn(&Inlet<J>, &Outlet<R>) -> Result<()> + Sync,
    store: impl Fn() -> Result<()> + Sync,
    consume: impl FnOnce(&Inlet<P>, &Inlet<R>) -> Result<T>,
) -> Result<T> {
    let threads = threads.max(1);
    let errors = FirstError::default();
    let (plan_out, plan_in) = queue_of(PLAN_AHEAD, &errors.failed);
    let (jobs_out, jobs_in) = queue_of(threads * QUEUED_PER_WORKER, &errors.failed);
    let (results_out, results_in) = queue_of(threads * QUEUED_PER_WORKER, &errors.failed);
    let outcome = std::thread::scope(|scope| {
        let (errors, work, store) = (&errors, &work, &store);
        scope.spawn(move || errors.note(produce(&plan_out, &jobs_out)));
        for _ in 0..threads {
            let (jobs, results) = (jobs_in.clone(), results_out.clone());
            scope.spawn(move || errors.note(work(&jobs, &results)));
        }
        for _ in 0..STORERS {
            scope.spawn(move || errors.note(store()));
        }
        drop((jobs_in, results_out));
        let outcome = consume(&plan_in, &results_in);
        drop((plan_in, results_in));
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                errors.note(Err(error));
                None
            }
        }
    });
    errors.into_result()?;
    outcome.ok_or(Error::Cancelled)
}

/// Lets `threads` of `work` do the jobs that `produce`, on the calling thread, makes.
pub(super) fn run_jobs<J: Send>(
    threads: usize,
    produce: impl FnOnce(&Outlet<J>) -> Result<()>,
    work: impl Fn(&Inlet<J>) -> Result<()> + Sync,
) -> Result<()> {
    let threads = threads.max(1);
    let errors = FirstError::default();
    let (jobs_out, jobs_in) = queue_of(threads * QUEUED_PER_WORKER, &errors.failed);
    std::thread::scope(|scope| {
        let (errors, work) = (&errors, &work);
        for _ in 0..threads {
            let jobs = jobs_in.clone();
            scope.spawn(move || errors.note(work(&jobs)));
        }
        drop(jobs_in);
        errors.note(produce(&jobs_out));
        drop(jobs_out);
    });
    errors.into_result()
}

/// Applies `work` to each input, `threads` at a time; the outputs keep the inputs' order.
pub(super) fn map<I: Sync, O: Send>(
    threads: usize,
    inputs: &[I],
    work: impl Fn(&mut dyn Iterator<Item = (usize, &I)>, &mut dyn FnMut(usize, O)) -> Result<()> + Sync,
) -> Result<Vec<O>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, O)>> = Mutex::new(Vec::with_capacity(inputs.len()));
    let errors = FirstError::default();
    std::thread::scope(|scope| {
        let (next, done, errors, work) = (&next, &done, &errors, &work);
        let run = move || {
            let mut take = std::iter::from_fn(|| {
                let at = next.fetch_add(1, Ordering::Relaxed);
                inputs.get(at).map(|input| (at, input))
            });
            let mut keep = |at, output| {
                done.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((at, output));
            };
            errors.note(work(&mut take, &mut keep));
        };
        for _ in 1..threads.clamp(1, inputs.len().max(1)) {
            scope.spawn(run);
        }
        run();
    });
    errors.into_result()?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, output)| output).collect())
}

/// What takes much memory or a core, and is shared by more threads than there is of it: the others wait for a store.
pub(super) struct Pool<T> {
    items: Vec<Mutex<T>>,
    next: AtomicUsize,
}

impl<T> Pool<T> {
    /// A pool of so many, at least one.
    pub(super) fn new(count: usize, make: impl Fn() -> Result<T>) -> Result<Self> {
        let items = (0..count.max(1)).map(|_| make().map(Mutex::new));
        Ok(Pool {
            items: items.collect::<Result<_>>()?,
            next: AtomicUsize::new(0),
        })
    }

    /// Waits for one and works with it.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let free = self.items.iter().find_map(|item| item.try_lock().ok());
        let mut item = free.unwrap_or_else(|| {
            let at = self.next.fetch_add(1, Ordering::Relaxed) % self.items.len();
            let item = self.items[at].lock();
            item.unwrap_or_else(PoisonError::into_inner)
        });
        work(&mut item)
    }
}

/// Does two things at the same time, the second on the calling thread.
pub(super) fn both<A: Send, B>(
    one: impl FnOnce() -> A + Send,
    other: impl FnOnce() -> B,
) -> (A, B) {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        let one = one
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (one, other)
    })
}

/// Calls `tick` every `interval` on a thread of its own while `body` runs. What `tick` fails with is the error of the
/// whole, unless `body` failed by itself; `tick` is not called again after it failed.
pub(super) fn beside<T>(
    interval: Duration,
    mut tick: impl FnMut() -> Result<()> + Send,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (stop, stopped) = bounded::<()>(0);
    std::thread::scope(|scope| {
        let ticker = scope.spawn(move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                tick()?;
            }
            Ok(())
        });
        let outcome = body();
        drop(stop);
        let outcome_of_ticks = ticker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let value = outcome?;
        outcome_of_ticks.map(|()| value)
    })
}

/// Waits a moment; the only sleep outside the cluster layer.
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_ends_all_and_is_the_one_told() {
        let outcome = run_backup(
            2,
            |plan, jobs| {
                for n in 0..10_000u32 {
                    jobs.send(n)?;
                    plan.send(n)?;
                }
                Ok(())
            },
            |jobs, results| {
                while let Some(n) = jobs.next() {
                    if n == 100 {
                        return Err(Error::Invalid("job 100".to_owned()));
                    }
                    results.send(n)?;
                }
                Ok(())
            },
            || Ok(()),
            |plan, results| {
                let mut sum = 0u64;
                while let Some(n) = plan.next() {
                    let Some(result) = results.next() else {
                        return Err(Error::Cancelled);
                    };
                    sum += u64::from(n + result);
                }
                Ok(sum)
            },
        );
        assert!(matches!(outcome, Err(Error::Invalid(text)) if text == "job 100"));
    }

    #[test]
    fn outputs_keep_the_order_of_inputs() {
        let inputs: Vec<u32> = (0..500).collect();
        let outputs = map(4, &inputs, |inputs, keep| {
            for (at, input) in inputs {
                keep(at, input * 2);
            }
            Ok(())
        });
        assert_eq!(
            outputs.unwrap(),
            inputs.iter().map(|n| n * 2).collect::<Vec<_>>()
        );
    }
}
