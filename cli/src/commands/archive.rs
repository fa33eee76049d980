//! `archive-push` and `archive-get`: what PostgreSQL calls with `%p` and `%f`.
//!
//! With `archive-async`, a process in the background works ahead: `archive-push` without a segment pushes all that are
//! ready, `archive-get` with the spool's own folder as the destination fetches what follows its segment.
//!
//! Promises: a relative path is PostgreSQL's, taken from the data directory; elsewhere it is refused. What became of the
//! process in the background never decides that a segment is not there.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use pgcairn_engine::actions::{
    self, ArchiveOptions, Got, PrefetchOptions, PushStatus, Pushed, PushedTo, QueueOptions,
};

use super::{
    arguments_for, compress_level, get_spool, push_spool, repositories, stanza, take_lock, threads,
};
use crate::error::Error;
use crate::exit;
use crate::lock;
use crate::log::Log;
use crate::options::Command;
use crate::progress::Progress;
use crate::report;
use crate::settings::Settings;

/// The lock of the process that pushes what is ready.
const QUEUE_LOCK: &str = "archive-push";
/// The lock of the process that fetches ahead.
const AHEAD_LOCK: &str = "archive-get";
/// Pause between two looks for a status: it is a local file.
const STATUS_PAUSE: Duration = Duration::from_millis(10);

/// Whether this is the process that works ahead, and not the one that PostgreSQL waits for.
pub(crate) fn is_background(settings: &Settings) -> bool {
    let ahead = match (settings.command, settings.parameters.as_slice()) {
        (Command::ArchivePush, []) => true,
        (Command::ArchiveGet, [_, path]) => Path::new(path) == get_spool(settings),
        _ => false,
    };
    ahead && settings.flag("archive-async")
}

pub(super) fn push(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let asynchronous = settings.flag("archive-async");
    match settings.parameters.as_slice() {
        [] if is_background(settings) => push_queue(settings, log),
        [path] if asynchronous => push_in_background(settings, log, &resolve(settings, path)?),
        [path] => push_one(settings, log, &resolve(settings, path)?),
        _ => Err(Error::ParameterMissing {
            what: "WAL segment to push",
        }),
    }
}

fn push_one(settings: &Settings, log: &Log, segment: &Path) -> Result<u8, Error> {
    let name = name_of(segment);
    let repositories = repositories::places(settings)?;
    if settings.given("archive-push-queue-max")
        && actions::drop_if_too_many(&repositories, &queue_options(settings), &name)?
    {
        log.warn(&format!(
            "dropped WAL file '{name}' because archive-push-queue-max is exceeded"
        ));
        return Ok(0);
    }
    let pushed = actions::archive_push(&repositories, &options(settings), segment)?;
    for PushedTo { repository, pushed } in pushed {
        if pushed == Pushed::AlreadyThere {
            log.warn(&format!(
                "WAL file '{name}' already exists in the repo{repository} archive with the same checksum\nHINT: this is \
                 valid in some recovery scenarios but may also indicate a problem."
            ));
        }
    }
    log.info(&format!("pushed WAL file '{name}' to the archive"));
    Ok(0)
}

/// Pushes all that is ready: what the process in the background does.
fn push_queue(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let _lock = take_lock(settings, QUEUE_LOCK)?;
    let progress = Progress::new(log);
    let repositories = repositories::places(settings)?;
    let summary = actions::push_queue(&repositories, &queue_options(settings), &progress)?;
    log.info(&format!(
        "pushed {} WAL file(s), dropped {}, failed {}",
        summary.pushed, summary.dropped, summary.failed
    ));
    Ok(0)
}

/// Waits for what the process in the background says of a segment, and starts that process if none runs. If that ends
/// and has nothing to say of it (the spool cannot be written, or another file failed first), the segment is pushed here.
fn push_in_background(settings: &Settings, log: &Log, segment: &Path) -> Result<u8, Error> {
    let name = name_of(segment);
    let spool = push_spool(settings);
    let (begun, timeout) = (Instant::now(), settings.duration("archive-timeout"));
    // A failure of an earlier pass is tried again before it is told.
    actions::forget_failure(&spool, &name);
    let mut started: Option<Child> = None;
    loop {
        // In this order: what a process has said before it ended is seen.
        let ended = started.as_mut().and_then(|child| child.try_wait().ok()?);
        match actions::push_status(&spool, segment) {
            Some(PushStatus::Done(warning)) => {
                log.info(&format!(
                    "pushed WAL file '{name}' to the archive asynchronously"
                ));
                if let Some(warning) = warning {
                    log.warn(&warning);
                }
                return Ok(0);
            }
            Some(PushStatus::Failed { number, why }) => {
                return Err(Error::NotPushed { name, number, why });
            }
            None => {}
        }
        if begun.elapsed() >= timeout {
            let seconds = timeout.as_secs();
            return Err(Error::PushTimeout { name, seconds });
        }
        match ended.map(|status| status.code()) {
            // Another one was quicker.
            Some(Some(code)) if code == i32::from(exit::LOCKED) => started = None,
            Some(Some(0)) => return push_one(settings, log, segment),
            Some(_) => {
                log.warn(&format!(
                    "the process that pushes in the background has failed, its log file says why; '{name}' is pushed here"
                ));
                return push_one(settings, log, segment);
            }
            None => {}
        }
        if started.is_none()
            && !lock::is_held(&settings.path("lock-path"), stanza(settings), QUEUE_LOCK)
        {
            started = Some(start(settings, Command::ArchivePush, &[])?);
        }
        thread::sleep(STATUS_PAUSE);
    }
}

/// Starts this program in the background.
fn start(settings: &Settings, command: Command, parameters: &[&str]) -> Result<Child, Error> {
    let program = env::current_exe().map_err(|source| Error::OwnPath { source })?;
    // A group of its own: what ends the server's children does not end it.
    process::Command::new(program)
        .args(arguments_for(settings, command))
        .arg(command.name())
        .args(parameters)
        .current_dir(settings.path("pg1-path"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Spawn { source })
}

fn queue_options(settings: &Settings) -> QueueOptions {
    QueueOptions {
        archive: options(settings),
        spool: push_spool(settings),
        queue_max: settings
            .number("archive-push-queue-max")
            .and_then(|bytes| u64::try_from(bytes).ok()),
        number_of: exit::of_engine,
    }
}

fn name_of(segment: &Path) -> String {
    let name = segment.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

pub(super) fn get(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let [name, path] = settings.parameters.as_slice() else {
        return Err(Error::ParameterMissing {
            what: "WAL segment to get",
        });
    };
    let destination = resolve(settings, path)?;
    if !settings.flag("archive-async") {
        return get_one(settings, log, name, &destination);
    }
    if is_background(settings) {
        return get_ahead(settings, log, name);
    }
    let options = prefetch_options(settings);
    let locks = settings.path("lock-path");
    let is_fetching = || lock::is_held(&locks, stanza(settings), AHEAD_LOCK);
    let progress = Progress::new(log);
    let code = if actions::take_prefetched(&options, name, &destination, is_fetching, &progress) {
        log.info(&format!("found {name} in the archive asynchronously"));
        0
    } else {
        get_one(settings, log, name, &destination)?
    };
    if code == 0 && actions::is_running_low(&options, name) && !is_fetching() {
        let spool = options.spool.display().to_string();
        // The segment was got: that the next ones will take longer is no failure.
        if let Err(error) = start(settings, Command::ArchiveGet, &[name, &spool]) {
            log.warn(&report::failure(&error));
        }
    }
    Ok(code)
}

fn get_one(settings: &Settings, log: &Log, name: &str, destination: &Path) -> Result<u8, Error> {
    let repositories = repositories::places(settings)?;
    let (options, progress) = (options(settings), Progress::new(log));
    match actions::archive_get(&repositories, &options, name, destination, &progress)? {
        Got::Fetched { repository } => {
            log.info(&format!("found {name} in the repo{repository} archive"));
            Ok(0)
        }
        Got::NotThere => {
            log.info(&format!("unable to find {name} in the archive"));
            Ok(exit::NOT_THERE)
        }
    }
}

/// Fetches what follows a segment: what the process in the background does.
fn get_ahead(settings: &Settings, log: &Log, name: &str) -> Result<u8, Error> {
    let _lock = take_lock(settings, AHEAD_LOCK)?;
    let (repositories, progress) = (repositories::places(settings)?, Progress::new(log));
    let fetched = actions::prefetch(&repositories, &prefetch_options(settings), name, &progress)?;
    log.info(&format!("fetched {fetched} WAL segment(s) after {name}"));
    Ok(0)
}

fn prefetch_options(settings: &Settings) -> PrefetchOptions {
    let queue_max = settings.number("archive-get-queue-max");
    PrefetchOptions {
        archive: options(settings),
        spool: get_spool(settings),
        queue_max: queue_max
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(0),
    }
}

fn options(settings: &Settings) -> ArchiveOptions {
    ArchiveOptions {
        stanza: stanza(settings).to_owned(),
        pgdata: settings.path("pg1-path"),
        cache: settings.path("cache-path"),
        compress_level: compress_level(settings),
        threads: threads(settings),
        header_check: settings.flag("archive-header-check"),
        timeout: settings.duration("archive-timeout"),
    }
}

fn resolve(settings: &Settings, path: &str) -> Result<PathBuf, Error> {
    if Path::new(path).is_absolute() {
        return Ok(PathBuf::from(path));
    }
    let (current, pgdata) = (
        env::current_dir().map_err(|source| Error::WorkingDirectory { source })?,
        settings.path("pg1-path"),
    );
    if !same_directory(&current, &pgdata) {
        return Err(Error::OtherDirectory { current, pgdata });
    }
    Ok(current.join(path))
}

/// Whether two texts name the same directory; one that does not exist is compared by its text.
fn same_directory(one: &Path, other: &Path) -> bool {
    let resolve = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    resolve(one) == resolve(other)
}
