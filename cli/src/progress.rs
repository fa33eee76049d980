//! What an action does, while it does it: a bar on a terminal, lines in the log otherwise.
//!
//! Promises: a problem is always a warning in the log; the bar never mixes with lines. Progress lines are at most one
//! every few seconds.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pgcairn_engine::monitor::{Counter, Monitor, Problem, Stage, Tally};

use crate::log::{Level, Log};
use crate::report;

/// Pause between two progress lines in the log.
const LINE_PAUSE: Duration = Duration::from_secs(5);
/// Pause between two looks at the counters for the bar: faster than the eye.
const BAR_PAUSE: Duration = Duration::from_millis(100);
const UNBOUNDED: &str = "{spinner} {prefix}  {msg}";
const BOUNDED: &str = "{prefix}  [{bar:24}] {percent:>3}%  {bytes_per_sec}  eta {eta}  {msg}";

/// Shows one action.
pub(crate) struct Progress<'a> {
    log: &'a Log,
    bar: Option<ProgressBar>,
    pause: Duration,
    started: Instant,
    /// When counters are looked at next, in milliseconds since `started`.
    next_ms: AtomicU64,
    stage: Mutex<Running>,
}

/// The stage that runs.
#[derive(Debug, Clone, Copy)]
struct Running {
    stage: Stage,
    started: Instant,
    total_bytes: u64,
    total_files: u64,
}

impl<'a> Progress<'a> {
    /// Shows a bar if standard error is a terminal, and lines in the log if not.
    pub(crate) fn new(log: &'a Log) -> Self {
        let started = Instant::now();
        let bar = (std::io::stderr().is_terminal() && log.shows(Level::Warn))
            .then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        Progress {
            log,
            pause: if bar.is_some() { BAR_PAUSE } else { LINE_PAUSE },
            bar,
            started,
            next_ms: AtomicU64::new(0),
            stage: Mutex::new(Running {
                stage: Stage::Prepare,
                started,
                total_bytes: 0,
                total_files: 0,
            }),
        }
    }

    /// Takes the bar away and tells what was done: in the log, or plainly to a person whose log does not show it.
    pub(crate) fn finish(&self, summary: &[String]) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            if !self.log.shows(Level::Info) {
                for line in summary {
                    bar.suspend(|| report::to_stderr(line));
                }
            }
        }
        for line in summary {
            self.log.info(line);
        }
    }

    fn line(&self, write: impl FnOnce(&Log)) {
        match &self.bar {
            Some(bar) => bar.suspend(|| write(self.log)),
            None => write(self.log),
        }
    }

    fn running(&self) -> Running {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to look again, for one thread only.
    fn due(&self) -> bool {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = self.next_ms.load(Ordering::Relaxed);
        let after = now.saturating_add(u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX));
        now >= next
            && self
                .next_ms
                .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Monitor for Progress<'_> {
    fn stage(&self, stage: Stage, total_bytes: u64, total_files: u64) {
        let running = Running {
            stage,
            started: Instant::now(),
            total_bytes,
            total_files,
        };
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = running;
        if let Some(bar) = &self.bar {
            let template = if total_bytes > 0 { BOUNDED } else { UNBOUNDED };
            bar.reset();
            bar.set_length(total_bytes);
            bar.set_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_prefix(name(stage));
            bar.set_message("");
            bar.enable_steady_tick(BAR_PAUSE);
        }
        self.next_ms.store(0, Ordering::Relaxed);
        self.line(|log| log.info(name(stage)));
    }

    fn progress(&self, tally: &Tally) {
        if !self.due() {
            return;
        }
        let running = self.running();
        let done = done_bytes(running.stage, tally);
        match &self.bar {
            Some(bar) => {
                bar.set_position(done.min(running.total_bytes));
                bar.set_message(counts(&running, tally));
            }
            None if running.started.elapsed() >= LINE_PAUSE => {
                self.log
                    .info(&line(&running, running.started.elapsed(), tally));
            }
            None => {}
        }
    }

    fn problem(&self, problem: &Problem) {
        self.line(|log| log.warn(&problem.to_string()));
    }

    fn note(&self, text: &str) {
        self.line(|log| log.info(text));
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Prepare => "read the repository's state",
        Stage::StartBackup => "start the backup and wait for the checkpoint",
        Stage::Copy => "copy",
        Stage::StopBackup => "stop the backup and wait for its WAL",
        Stage::Clean => "clean and prepare the directories",
        Stage::Restore => "restore",
        Stage::Sync => "make everything durable",
        Stage::VerifyPacks => "read the packs",
        Stage::VerifyTrees => "look for what the backups need",
        Stage::VerifyWal => "read the WAL archive",
    }
}

fn done_bytes(stage: Stage, tally: &Tally) -> u64 {
    match stage {
        Stage::Restore => tally.get(Counter::WrittenBytes) + tally.get(Counter::KeptBytes),
        Stage::VerifyPacks => tally.get(Counter::FetchedBytes),
        Stage::VerifyWal => tally.get(Counter::WalBytes),
        _ => tally.get(Counter::FileBytes),
    }
}

/// `57%, 1.2GB of 2.1GB, 312.4MB/s, 400 of 964 files, new 3.1MB, known 1.2GB`.
fn line(running: &Running, elapsed: Duration, tally: &Tally) -> String {
    let done = done_bytes(running.stage, tally);
    let share = match running.total_bytes {
        0 => report::bytes(done),
        total => {
            let percent = done.saturating_mul(100) / total;
            format!(
                "{}%, {} of {}",
                percent.min(100),
                report::bytes(done),
                report::bytes(total)
            )
        }
    };
    let ms = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let rate = report::bytes(done.saturating_mul(1000) / ms);
    format!(
        "{}: {share}, {rate}/s, {}",
        name(running.stage),
        counts(running, tally)
    )
}

fn counts(running: &Running, tally: &Tally) -> String {
    let files = match running.total_files {
        0 => format!("{} files", tally.get(Counter::Files)),
        total => format!("{} of {total} files", tally.get(Counter::Files)),
    };
    let size = |counter| report::bytes(tally.get(counter));
    match running.stage {
        Stage::VerifyPacks => format!("{} packs", tally.get(Counter::Packs)),
        Stage::VerifyWal => format!("{} WAL files", tally.get(Counter::WalFiles)),
        Stage::Restore => format!(
            "{files}, fetched {}, written {}, kept {}",
            size(Counter::FetchedBytes),
            size(Counter::WrittenBytes),
            size(Counter::KeptBytes)
        ),
        _ => format!(
            "{files}, new {}, known {}",
            size(Counter::NewBytes),
            size(Counter::KnownBytes)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(stage: Stage) -> Running {
        Running {
            stage,
            started: Instant::now(),
            total_bytes: 4096,
            total_files: 10,
        }
    }

    #[test]
    fn a_line_tells_share_rate_files_and_what_is_new() {
        let tally = Tally::default();
        tally.add(Counter::FileBytes, 2048);
        tally.add(Counter::NewBytes, 512);
        tally.add(Counter::KnownBytes, 1536);
        tally.add(Counter::Files, 4);
        let text = line(&running(Stage::Copy), Duration::from_secs(2), &tally);
        assert_eq!(
            text,
            "copy: 50%, 2KB of 4KB, 1KB/s, 4 of 10 files, new 512B, known 1.5KB"
        );
    }

    #[test]
    fn a_restore_counts_what_is_written_or_kept() {
        let tally = Tally::default();
        tally.add(Counter::WrittenBytes, 1024);
        tally.add(Counter::KeptBytes, 3072);
        tally.add(Counter::FetchedBytes, 100);
        let text = line(&running(Stage::Restore), Duration::from_secs(1), &tally);
        assert_eq!(
            text,
            "restore: 100%, 4KB of 4KB, 4KB/s, 0 of 10 files, fetched 100B, written 1KB, kept 3KB"
        );
    }
}
