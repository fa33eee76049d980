//! What can go wrong between a person and the engine, and the number each of it has.
//!
//! Promises: texts and numbers are pgBackRest's where it has the situation. A text never holds the value of a secret.

use std::io;
use std::path::PathBuf;

use crate::options::Command;
use crate::{exit, report};

/// A refusal or failure of the command line program, or one of the engine passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("invalid command '{name}'")]
    UnknownCommand { name: String },
    #[error("command does not allow parameters")]
    NoParameters,
    #[error("extra parameters found")]
    TooManyParameters,
    #[error("{what} required")]
    ParameterMissing { what: &'static str },
    #[error("only one option allowed for option help")]
    HelpTooLong,
    #[error("option '{name}' is not valid for command '{}'", command.name())]
    HelpUnknownOption { name: String, command: Command },
    #[error("command line: {reason}")]
    CommandLine { reason: String },
    #[error("invalid option '--{name}'")]
    UnknownOption {
        name: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    #[error("option '{word}' must begin with --")]
    OptionDashes { word: String },
    #[error("option '{word}' requires an argument")]
    ArgumentMissing { word: String },
    #[error("option '{word}' does not allow an argument")]
    ArgumentForbidden { word: String },
    #[error("option '{name}' cannot be negated")]
    NotNegatable { name: String },
    #[error("option '{name}' cannot be set multiple times")]
    OptionTwice { name: &'static str },
    #[error("option '{name}' cannot be {first} and {second}")]
    OptionContradicts {
        name: &'static str,
        first: &'static str,
        second: &'static str,
    },
    #[error("option '{name}' not valid for command '{}'", command.name())]
    OptionOfOtherCommand {
        name: &'static str,
        command: Command,
    },
    #[error("option '{name}' is not allowed on the command-line")]
    SecretOnCommandLine { name: &'static str },
    #[error("option '{name}' is not supported yet")]
    OptionUnsupported { name: String },
    #[error("option '{name}': {limit} are not supported yet")]
    TooMany { name: String, limit: &'static str },
    #[error("option '{name}' key must be between 1 and 256")]
    OptionKey { name: String },
    #[error("the value of '{name}' is no key of 32 bytes in base64")]
    CustomerKey { name: String },
    #[error("key '{number}' is not valid for 'repo' option: no repo{number}-… option is set")]
    RepositoryUnknown { number: i64 },
    #[error("{} command requires option: {name}", command.name())]
    OptionMissing { name: String, command: Command },
    #[error("{told}")]
    Verified {
        /// What was found wrong, in one sentence.
        told: String,
    },
    #[error("option '{name}' not valid without option '{needed}'")]
    OptionWithout { name: String, needed: String },
    #[error(
        "option '{name}' not valid without option '{needed}' in ({})",
        quoted(values)
    )]
    OptionNeeds {
        name: &'static str,
        needed: &'static str,
        values: &'static [&'static str],
    },
    #[error("option '{name}' not valid without option 'no-{needed}'")]
    OptionNeedsNot {
        name: &'static str,
        needed: &'static str,
    },
    #[error("key/value '{value}' not valid for '{name}' option")]
    PairInvalid { name: &'static str, value: String },
    #[error("boolean option '--{name}' argument must be 'y' or 'n'")]
    FlagValue { name: &'static str },
    #[error("option '--{name}' argument must be 'y', 'n' or '{word}'")]
    FlagOrWord {
        name: &'static str,
        word: &'static str,
    },
    #[error("'{value}' is not valid for '{name}' option")]
    ValueInvalid { name: &'static str, value: String },
    #[error("'{value}' is not allowed for '{name}' option")]
    ValueNotAllowed {
        name: &'static str,
        value: String,
        allowed: &'static [&'static str],
    },
    #[error("'{value}' is out of range for '{name}' option")]
    ValueRange {
        name: &'static str,
        value: String,
        lowest: i64,
        highest: i64,
    },
    #[error("'{value}' must begin with / for '{name}' option")]
    PathNotAbsolute { name: &'static str, value: String },
    #[error("environment variable '{variable}' must have a value")]
    EnvironmentEmpty { variable: String },
    #[error("environment contains invalid option '{name}'")]
    EnvironmentUnknown { name: String },
    #[error("environment variable '{variable}' is not valid UTF-8")]
    EnvironmentText { variable: String },
    #[error("unable to open missing file '{}' for read", path.display())]
    ConfigMissing { path: PathBuf },
    #[error("unable to read configuration file '{}'", path.display())]
    ConfigRead { path: PathBuf, source: io::Error },
    #[error("configuration file: {what} at line {line}: {text}")]
    ConfigLine {
        what: &'static str,
        line: usize,
        text: String,
    },
    #[error("configuration file contains invalid option '{name}'")]
    ConfigUnknown { name: String },
    #[error("configuration file contains {rule} option '{name}' in section '{section}'")]
    ConfigPlace {
        name: &'static str,
        rule: &'static str,
        section: String,
    },
    #[error("unable to acquire lock on file '{}'", path.display())]
    Locked { path: PathBuf },
    #[error("unable to create lock file '{}'", path.display())]
    LockFile { path: PathBuf, source: io::Error },
    #[error("stop file exists for {what}")]
    Stopped { what: String },
    #[error("stop file does not exist for stanza '{stanza}'")]
    NotStopped { stanza: String },
    #[error("WAL file '{name}' was not pushed: {why}")]
    NotPushed {
        name: String,
        number: u8,
        why: String,
    },
    #[error(
        "unable to push WAL file '{name}' to the archive asynchronously after {seconds} second(s)"
    )]
    PushTimeout { name: String, seconds: u64 },
    #[error("unable to start a process")]
    Spawn { source: io::Error },
    #[error("unable to write to standard output")]
    Output { source: io::Error },
    #[error("unable to find the path of this program")]
    OwnPath { source: io::Error },
    #[error("unable to get current working directory")]
    WorkingDirectory { source: io::Error },
    #[error(
        "PostgreSQL working directory '{}' is not the same as option pg1-path '{}'",
        current.display(),
        pgdata.display()
    )]
    OtherDirectory { current: PathBuf, pgdata: PathBuf },
    #[error("automatic backup set selection cannot be performed with provided time '{text}'")]
    TargetTime { text: String },
    #[error("automatic backup set selection cannot be performed with provided lsn '{text}'")]
    TargetLsn { text: String },
    #[error(transparent)]
    Engine(#[from] pgcairn_engine::actions::Error),
}

impl Error {
    /// The number that is printed, and with which the program exits.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Error::UnknownCommand { .. } => exit::COMMAND_INVALID,
            Error::NoParameters | Error::TooManyParameters | Error::HelpTooLong => {
                exit::PARAMETER_INVALID
            }
            Error::ParameterMissing { .. } => exit::PARAMETER_REQUIRED,
            Error::OptionMissing { .. } => exit::OPTION_REQUIRED,
            Error::FlagValue { .. }
            | Error::FlagOrWord { .. }
            | Error::ValueInvalid { .. }
            | Error::ValueNotAllowed { .. }
            | Error::RepositoryUnknown { .. }
            | Error::CustomerKey { .. }
            | Error::ValueRange { .. }
            | Error::PathNotAbsolute { .. }
            | Error::EnvironmentText { .. }
            | Error::EnvironmentEmpty { .. }
            | Error::OtherDirectory { .. } => exit::OPTION_VALUE,
            Error::ConfigMissing { .. } | Error::NotStopped { .. } => exit::FILE_MISSING,
            Error::ConfigRead { .. } => exit::FILE_READ,
            Error::ConfigLine { .. } | Error::TargetTime { .. } | Error::TargetLsn { .. } => {
                exit::FORMAT
            }
            Error::NotPushed { number, .. } => *number,
            Error::Locked { .. } => exit::LOCKED,
            Error::PushTimeout { .. } => exit::ARCHIVE_TIMEOUT,
            Error::Stopped { .. } => exit::STOPPED,
            Error::LockFile { .. } | Error::Output { .. } | Error::Spawn { .. } => exit::FILE_WRITE,
            Error::OwnPath { .. } | Error::WorkingDirectory { .. } => exit::PATH_MISSING,
            Error::Verified { .. } => exit::DAMAGED,
            Error::Engine(error) => exit::of_engine(error.kind()),
            _ => exit::OPTION_INVALID,
        }
    }

    /// What the person could do about it.
    pub(crate) fn hints(&self) -> Vec<String> {
        match self {
            Error::SecretOnCommandLine { .. } => vec![
                "this option could expose secrets in the process list.".to_owned(),
                "specify the option in a configuration file or an environment variable instead.".to_owned(),
            ],
            Error::OptionUnsupported { name } if name.ends_with("-storage-verify-tls") => {
                let trusted = name.replace("verify-tls", "ca-file");
                vec![format!("name the certificate of a server that has its own with {trusted}.")]
            }
            Error::UnknownOption { nearest: Some(nearest), .. } => vec![format!("did you mean '{nearest}'?")],
            Error::ValueNotAllowed { allowed, .. } => vec![format!("allowed values are {}", quoted(allowed))],
            Error::ValueRange { lowest, highest, .. } => {
                vec![format!("allowed range is {lowest} to {highest} inclusive")]
            }
            Error::OptionMissing { name, .. } if name == "pg1-path" => vec!["does this stanza exist?".to_owned()],
            Error::Locked { .. } => vec!["is another pgcairn process running?".to_owned()],
            Error::Stopped { .. } => vec!["'start' allows processes to run again.".to_owned()],
            Error::NotStopped { .. } => {
                vec!["has the stop command been run on this server for this stanza?".to_owned()]
            }
            Error::OtherDirectory { .. } => {
                vec!["is the PostgreSQL data_directory configured the same as the pg1-path option?".to_owned()]
            }
            Error::Verified { .. } => vec![
                "if there is a copy of the repository, put the damaged objects back from there.".to_owned(),
                "while the cluster lives, a new full backup stores again what it still has, which heals older backups too."
                    .to_owned(),
            ],
            Error::Engine(error) => report::hints(error),
            Error::LockFile { .. } => vec!["set lock-path to a directory that this user can write.".to_owned()],
            Error::TargetTime { .. } => vec![
                "time format must be YYYY-MM-DD HH:MM:SS with optional msec and optional timezone (+/- HH or HHMM or \
                 HH:MM) - if timezone is omitted, local time is assumed (for UTC use +00)"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

fn quoted(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("'{word}'"))
        .collect::<Vec<_>>()
        .join(", ")
}
