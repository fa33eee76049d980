//! The commands: from settled options to a call of the engine, and its summary back to the person.

mod archive;
mod backup;
mod check;
mod info;
mod location;
mod repositories;
mod restore;
mod stanza_create;
mod stanza_end;
mod start_stop;
mod verify;

pub(crate) use archive::is_background;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use pgcairn_engine::actions::{self, Candidate};
use pgcairn_engine::cluster::server::{self, Connection, PgServer, Server};
use pgcairn_engine::repository::layout;
use serde_json::Value;

use crate::error::Error;
use crate::exit;
use crate::log::Log;
use crate::options::{self, Command, Group};
use crate::progress::Progress;
use crate::settings::{Origin, Settings};
use crate::{arguments, config, help, lock, report};

/// The command that the words name, as far as that can be told before they are understood.
pub(crate) fn named(words: &[OsString]) -> Option<Command> {
    words
        .iter()
        .skip(1)
        .filter_map(|word| word.to_str())
        .find_map(Command::from_name)
}

/// Reads the options, runs the command, tells how it went, and gives the exit code.
pub(crate) fn start(words: Vec<OsString>, named: Option<Command>) -> u8 {
    let settings = match arguments::parse(words)
        .and_then(config::settle)
        .and_then(check_stanza)
    {
        Ok(settings) => settings,
        Err(error) => {
            report::to_stderr(&report::early_failure(&error));
            return exit::for_failure(named, error.code(), exit::is_standby(None));
        }
    };
    let command = settings.command;
    let log = Log::open(&settings);
    let quiet = matches!(command, Command::Help | Command::Info | Command::Version);
    if !quiet {
        begin(&settings, &log);
    }
    let started = Instant::now();
    let (code, outcome) = match run(&settings, &log) {
        Ok(code) => (
            code,
            format!(
                "completed successfully ({}ms)",
                started.elapsed().as_millis()
            ),
        ),
        Err(error) => {
            log.error(&report::failure(&error));
            let standby = exit::is_standby(settings.text("pg1-path").map(Path::new));
            let code = exit::for_failure(Some(command), error.code(), standby);
            (
                code,
                format!("aborted with exception [{:03}]", error.code()),
            )
        }
    };
    if !quiet {
        log.info(&format!("{} command end: {outcome}", command.name()));
    }
    code
}

/// The stanza's name becomes part of file names: it is judged before any is made.
fn check_stanza(settings: Settings) -> Result<Settings, Error> {
    if let Some(name) = settings.text("stanza") {
        layout::check_stanza_name(name).map_err(|_| Error::ValueInvalid {
            name: "stanza",
            value: name.to_owned(),
        })?;
    }
    Ok(settings)
}

fn begin(settings: &Settings, log: &Log) {
    let mut words = vec![format!(
        "{} command begin {}:",
        settings.command.name(),
        env!("CARGO_PKG_VERSION")
    )];
    if !settings.parameters.is_empty() {
        words.push(format!("[{}]", settings.parameters.join(", ")));
    }
    words.extend(settings.arguments(|_, setting| setting.origin != Origin::Default));
    log.info(&words.join(" "));
    for name in settings.without_effect() {
        log.info(&format!("option '{name}' has no effect in pgcairn"));
    }
}

fn run(settings: &Settings, log: &Log) -> Result<u8, Error> {
    start_stop::refuse_stopped(settings)?;
    match settings.command {
        Command::ArchiveGet => archive::get(settings, log),
        Command::ArchivePush => archive::push(settings, log),
        Command::Backup => backup::run(settings, log),
        Command::Check => check::run(settings),
        Command::Help => report::to_stdout(&help::text(&settings.parameters)?).map(|()| 0),
        Command::Info => info::run(settings),
        Command::Restore => restore::run(settings, log),
        Command::StanzaCreate => stanza_create::create(settings, log),
        Command::StanzaDelete => stanza_end::run(settings, log),
        Command::StanzaUpgrade => stanza_create::upgrade(settings, log),
        Command::Start => start_stop::start(settings, log),
        Command::Stop => start_stop::stop(settings, log),
        Command::Verify => verify::run(settings, log),
        Command::Version => report::to_stdout(&version(settings)).map(|()| 0),
    }
}

/// `pgcairn 0.1.0` and a newline, or one number without.
fn version(settings: &Settings) -> String {
    if settings.text("output") != Some("num") {
        return format!("{}\n", crate::TITLE);
    }
    let parts = env!("CARGO_PKG_VERSION")
        .split('.')
        .map(|part| part.parse().unwrap_or(0_u64));
    parts
        .fold(0, |number, part| number * 1000 + part)
        .to_string()
}

/// Tells a summary in the form that was asked for.
fn tell(
    settings: &Settings,
    progress: &Progress<'_>,
    lines: &[String],
    json: &Value,
) -> Result<u8, Error> {
    progress.finish(lines);
    if settings.text("output") == Some("json") {
        report::to_stdout(&json.to_string())?;
    }
    Ok(0)
}

/// The stanza; every command that asks for it requires the option.
fn stanza(settings: &Settings) -> &str {
    settings.text("stanza").unwrap_or_default()
}

fn take_lock(settings: &Settings, job: &str) -> Result<lock::Lock, Error> {
    lock::acquire(&settings.path("lock-path"), stanza(settings), job)
}

/// The server of the cluster, unless the cluster is said to be stopped.
fn connect(settings: &Settings) -> Result<Option<PgServer>, Error> {
    if !settings.flag("online") {
        return Ok(None);
    }
    Ok(Some(reach(settings, 1)?))
}

/// The server of the cluster with this number.
fn reach(settings: &Settings, number: u32) -> Result<PgServer, actions::Error> {
    let text = |option: &str| settings.text(&format!("pg{number}-{option}"));
    let connection = Connection {
        socket_path: text("socket-path").map(Into::into),
        port: settings
            .number(&format!("pg{number}-port"))
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(5432),
        user: text("user").map(str::to_owned),
        database: text("database").unwrap_or("postgres").to_owned(),
    };
    server::connect(&connection).map_err(actions::Error::Cluster)
}

/// All configured clusters, and the sessions with their servers.
fn clusters(settings: &Settings) -> Result<Vec<Candidate>, Error> {
    let mut clusters = Vec::new();
    for number in 1..=options::LAST_CLUSTER {
        let (prefix, path) = (format!("pg{number}-"), format!("pg{number}-path"));
        if settings.text(&path).is_some() {
            let server = reach(settings, number).map(|server| Box::new(server) as Box<dyn Server>);
            clusters.push(Candidate {
                number,
                pgdata: settings.path(&path),
                server,
            });
            continue;
        }
        let mut given = settings.values.keys().filter(|name| settings.given(name));
        if let Some(name) = given.find(|name| name.starts_with(&prefix)) {
            return Err(Error::OptionWithout {
                name: (*name).to_owned(),
                needed: path,
            });
        }
    }
    Ok(clusters)
}

/// The threads to use: what was asked for, or one per core.
fn threads(settings: &Settings) -> usize {
    let asked = settings
        .number("process-max")
        .and_then(|number| usize::try_from(number).ok());
    asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
}

fn compress_level(settings: &Settings) -> i32 {
    settings
        .number("compress-level")
        .and_then(|level| i32::try_from(level).ok())
        .unwrap_or(3)
}

/// The options that another command of the same stanza needs and that the configuration file does not hold.
fn arguments_for(settings: &Settings, command: Command) -> Vec<String> {
    settings.arguments(|name, setting| {
        let row = options::find(name, command).filter(|row| row.group != Group::Log);
        row.is_some_and(|row| !row.secret)
            && matches!(setting.origin, Origin::CommandLine | Origin::Environment)
    })
}

/// Where it is written down what became of pushed WAL.
fn push_spool(settings: &Settings) -> PathBuf {
    let spool = settings.path("spool-path");
    spool.join("archive").join(stanza(settings)).join("out")
}

/// Where WAL lies that was fetched before it was asked for.
fn get_spool(settings: &Settings) -> PathBuf {
    let spool = settings.path("spool-path");
    spool.join("archive").join(stanza(settings)).join("in")
}

/// The name of this machine.
fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_named_by_the_first_word_that_is_one() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            named(&words("pgcairn --bogus archive-get a b")),
            Some(Command::ArchiveGet)
        );
        assert_eq!(named(&words("archive-get")), None);
    }
}
