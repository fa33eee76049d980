//! Log lines for the console and the log file, in pgBackRest's form.
//!
//! Promises: warnings and errors go to standard error; what is less goes to standard output, unless the command's
//! result is printed there. A log file that cannot be written never stops a command. Secrets are not passed to it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::options::Command;
use crate::settings::Settings;
use crate::{clock, commands};

/// How much a line matters; a threshold lets through what is at or before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Off,
    Error,
    Warn,
    Info,
    Detail,
    Debug,
    Trace,
}

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Log {
    console: Level,
    timestamps: bool,
    /// Standard output carries the command's result: lines go to standard error.
    result_on_stdout: bool,
    file: Option<(Level, Mutex<File>)>,
}

impl Level {
    fn from_name(name: Option<&str>) -> Level {
        match name {
            Some("off") => Level::Off,
            Some("error") => Level::Error,
            Some("info") => Level::Info,
            Some("detail") => Level::Detail,
            Some("debug") => Level::Debug,
            Some("trace") => Level::Trace,
            _ => Level::Warn,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Off => "OFF",
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Detail => "DETAIL",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        }
    }
}

impl Log {
    /// Opens the log that the settings ask for.
    pub(crate) fn open(settings: &Settings) -> Log {
        let json = settings.text("output") == Some("json");
        let mut log = Log {
            console: Level::from_name(settings.text("log-level-console")),
            timestamps: settings.flag("log-timestamp"),
            result_on_stdout: json || matches!(settings.command, Command::Info | Command::Check),
            file: None,
        };
        let level = Level::from_name(settings.text("log-level-file"));
        let named = file_name(settings).filter(|_| level > Level::Off);
        if let Some(name) = named {
            let path = settings.path("log-path").join(name);
            match start_file(&path) {
                Ok(file) => log.file = Some((level, Mutex::new(file))),
                // The default directory need not be there.
                Err(_) if !settings.given("log-path") => {}
                Err(error) => log.warn(&format!(
                    "unable to open log file '{}': {error}\nNOTE: process will continue without log file.",
                    path.display()
                )),
            }
        }
        log
    }

    /// Whether the console shows lines of this level.
    pub(crate) fn shows(&self, level: Level) -> bool {
        level <= self.console
    }

    pub(crate) fn error(&self, text: &str) {
        self.write(Level::Error, text);
    }

    pub(crate) fn warn(&self, text: &str) {
        self.write(Level::Warn, text);
    }

    pub(crate) fn info(&self, text: &str) {
        self.write(Level::Info, text);
    }

    fn write(&self, level: Level, text: &str) {
        // To know the local time, hundreds of files are looked at: not for a line that goes nowhere.
        let kept = self.file.as_ref().is_some_and(|(most, _)| level <= *most);
        if !self.shows(level) && !kept {
            return;
        }
        let line = format_line(&clock::log_time(clock::now_ms()), level, text);
        if self.shows(level) {
            let shown = if self.timestamps {
                line.clone()
            } else {
                format_line("", level, text)
            };
            // Nobody can be told that the console is gone.
            let _gone = if level <= Level::Warn || self.result_on_stdout {
                io::stderr().lock().write_all(shown.as_bytes())
            } else {
                io::stdout().lock().write_all(shown.as_bytes())
            };
        }
        if let Some((threshold, file)) = &self.file
            && level <= *threshold
        {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let _full = file.write_all(line.as_bytes());
        }
    }
}

/// The log file of a command that has one. PostgreSQL's own log holds what the archive commands say, but those in the
/// background have no other place to say it.
fn file_name(settings: &Settings) -> Option<String> {
    let background = match settings.command {
        Command::Backup
        | Command::Restore
        | Command::StanzaCreate
        | Command::StanzaDelete
        | Command::StanzaUpgrade
        | Command::Verify => "",
        Command::ArchiveGet | Command::ArchivePush if commands::is_background(settings) => "-async",
        _ => return None,
    };
    let (stanza, command) = (settings.text("stanza")?, settings.command.name());
    Some(format!("{stanza}-{command}{background}.log"))
}

fn start_file(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)?;
    let gap = if file.metadata()?.len() > 0 { "\n" } else { "" };
    file.write_all(
        format!("{gap}-------------------PROCESS START-------------------\n").as_bytes(),
    )?;
    Ok(file)
}

/// The lines of a text, the first behind its head and the others as far to the right.
fn format_line(time: &str, level: Level, text: &str) -> String {
    let gap = if time.is_empty() { "" } else { " " };
    let head = format!("{time}{gap}P00 {:>6}: ", level.name());
    let indent = format!("\n{}", " ".repeat(head.len()));
    format!("{head}{}\n", text.replace('\n', &indent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_form_of_pgbackrest() {
        let time = "2026-11-24 21:28:09.174";
        assert_eq!(
            format_line(time, Level::Info, "a"),
            "2026-11-24 21:28:09.174 P00   INFO: a\n"
        );
        assert_eq!(
            format_line(time, Level::Error, "[031]: a\nHINT: b"),
            "2026-11-24 21:28:09.174 P00  ERROR: [031]: a\n                                    HINT: b\n"
        );
        assert_eq!(format_line("", Level::Warn, "a"), "P00   WARN: a\n");
    }

    #[test]
    fn thresholds_let_through_what_matters_at_least_as_much() {
        assert!(Level::Error < Level::Warn && Level::Warn < Level::Info);
        assert_eq!(Level::from_name(Some("off")), Level::Off);
        assert_eq!(Level::from_name(None), Level::Warn);
    }
}
