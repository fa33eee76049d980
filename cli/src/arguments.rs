//! The command line as words: which command, which options as they were written, which parameters.
//!
//! Promises: options stand before or after the command, as `--opt=val` or `--opt val`, flags also bare; `--no-opt`
//! negates, `--reset-opt` forgets what environment and file say; an unambiguous beginning of a name will do. Refuses,
//! with pgBackRest's words and numbers: unknown commands and options, an option given twice, secrets.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches};

use crate::error::Error;
use crate::options::{self, Command, OPTIONS, OptionRow};

/// What was written of one option.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Its values, in order.
    pub(crate) values: Vec<String>,
    /// `--no-…` was there.
    pub(crate) negated: bool,
    /// `--reset-…` was there.
    pub(crate) reset: bool,
}

/// The command line, read but not yet judged by value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    pub(crate) command: Command,
    pub(crate) parameters: Vec<String>,
    /// By option name.
    pub(crate) options: BTreeMap<&'static str, Given>,
}

const WORDS: &str = "words";
const HELP: &str = "help";
const VERSION: &str = "version";

/// Reads the words of the command line, the program's own name among them.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<CommandLine, Error> {
    let words: Vec<OsString> = words.into_iter().collect();
    let (mut rows, all) = (rows_for(&words), || OPTIONS.iter().collect());
    let matches = grammar(&rows).try_get_matches_from(&words).or_else(|_| {
        // All are needed to tell which one may have been meant.
        rows = all();
        grammar(&rows).try_get_matches_from(&words)
    });
    let matches = matches.map_err(|error| explain(&error))?;
    let mut words = matches
        .get_many::<String>(WORDS)
        .into_iter()
        .flatten()
        .cloned();
    let first = words.next();
    let parameters: Vec<_> = words.collect();
    let command = match first {
        _ if matches.get_flag(HELP) => {
            return Ok(bare(
                Command::Help,
                first.into_iter().chain(parameters).collect(),
            ));
        }
        _ if matches.get_flag(VERSION) => return Ok(bare(Command::Version, Vec::new())),
        None => return Ok(bare(Command::Help, Vec::new())),
        Some(name) => Command::from_name(&name).ok_or(Error::UnknownCommand { name })?,
    };
    check_parameters(command, &parameters)?;
    Ok(CommandLine {
        command,
        parameters,
        options: given_options(&rows, &matches, command)?,
    })
}

/// The options that some word may be the name of, or the beginning of it. Every WAL segment is a call, and a grammar of
/// all options takes as long as all else that a call does.
fn rows_for(words: &[OsString]) -> Vec<&'static OptionRow> {
    let given = words
        .iter()
        .filter_map(|word| word.to_str()?.strip_prefix("--"));
    let given: Vec<&str> = given.filter_map(|word| word.split('=').next()).collect();
    let may_be_meant = |row: &&OptionRow| {
        given.iter().any(|given| {
            let switched = ["reset-", "no-"].iter().any(|prefix| {
                prefix.starts_with(given)
                    || given
                        .strip_prefix(prefix)
                        .is_some_and(|given| row.name.starts_with(given))
            });
            row.name.starts_with(given) || switched
        })
    };
    OPTIONS.iter().filter(may_be_meant).collect()
}

/// The clap command for these options.
fn grammar(rows: &[&OptionRow]) -> clap::Command {
    let mut command = clap::Command::new("pgcairn")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .arg(Arg::new(WORDS).num_args(0..))
        .arg(Arg::new(HELP).long(HELP).action(ArgAction::SetTrue))
        .arg(Arg::new(VERSION).long(VERSION).action(ArgAction::SetTrue));
    for (at, row) in rows.iter().enumerate() {
        // One name may have a row for each of its shapes.
        if rows.iter().take(at).any(|before| before.name == row.name) {
            continue;
        }
        let arg = Arg::new(row.name).long(row.name).action(ArgAction::Append);
        command = command.arg(match row.kind {
            kind if kind.is_flag() => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("y"),
            _ => arg.num_args(1).allow_hyphen_values(true),
        });
        command = command.arg(switch("reset", row.name));
        if row.negatable {
            command = command.arg(switch("no", row.name));
        }
    }
    command
}

fn switch(prefix: &str, name: &str) -> Arg {
    let long = format!("{prefix}-{name}");
    Arg::new(long.clone()).long(long).action(ArgAction::Count)
}

fn bare(command: Command, parameters: Vec<String>) -> CommandLine {
    CommandLine {
        command,
        parameters,
        options: BTreeMap::new(),
    }
}

fn check_parameters(command: Command, parameters: &[String]) -> Result<(), Error> {
    let wanted = command.parameters();
    if command == Command::Help {
        return Ok(());
    }
    // Without a segment it pushes all that are ready, where that is asked for.
    let may_be_bare = command == Command::ArchivePush && parameters.is_empty();
    if let Some(missing) = wanted.get(parameters.len()).filter(|_| !may_be_bare) {
        return Err(Error::ParameterMissing { what: missing });
    }
    match parameters.len() > wanted.len() {
        true if wanted.is_empty() => Err(Error::NoParameters),
        true => Err(Error::TooManyParameters),
        false => Ok(()),
    }
}

fn given_options(
    rows: &[&'static OptionRow],
    matches: &ArgMatches,
    command: Command,
) -> Result<BTreeMap<&'static str, Given>, Error> {
    let mut options = BTreeMap::new();
    for row in rows {
        let name = row.name;
        let given = Given {
            values: matches
                .get_many::<String>(name)
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            negated: row.negatable && matches.get_count(&format!("no-{name}")) > 0,
            reset: matches.get_count(&format!("reset-{name}")) > 0,
        };
        if given == Given::default() || options.contains_key(name) {
            continue;
        }
        if command != Command::Help {
            check_given(options::find(name, command).unwrap_or(row), command, &given)?;
        }
        options.insert(name, given);
    }
    Ok(options)
}

fn check_given(row: &OptionRow, command: Command, given: &Given) -> Result<(), Error> {
    let name = row.name;
    if row.secret && !given.values.is_empty() {
        return Err(Error::SecretOnCommandLine { name });
    }
    if !row.commands.contains(&command) {
        return Err(Error::OptionOfOtherCommand { name, command });
    }
    let ways = [
        (!given.values.is_empty(), "set"),
        (given.negated, "negated"),
        (given.reset, "reset"),
    ];
    let ways: Vec<_> = ways
        .into_iter()
        .filter_map(|(used, way)| used.then_some(way))
        .collect();
    if let [first, second, ..] = ways.as_slice() {
        return Err(Error::OptionContradicts {
            name,
            first,
            second,
        });
    }
    if given.values.len() > 1 && !row.kind.repeats() {
        return Err(Error::OptionTwice { name });
    }
    Ok(())
}

/// Says what clap found wrong in pgBackRest's words.
fn explain(error: &clap::Error) -> Error {
    let written = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        Some(ContextValue::Strings(texts)) => texts.first().map_or("", String::as_str),
        _ => "",
    };
    // Clap adds the name of the value: "--stanza <stanza>".
    let word = written
        .split([' ', '=', '['])
        .next()
        .unwrap_or(written)
        .to_owned();
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let nearest = match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(option)) => Some(option.clone()),
                _ => None,
            };
            unknown(&word, nearest)
        }
        ErrorKind::InvalidValue
        | ErrorKind::TooFewValues
        | ErrorKind::WrongNumberOfValues
        | ErrorKind::NoEquals => Error::ArgumentMissing { word },
        ErrorKind::TooManyValues => Error::ArgumentForbidden { word },
        kind => Error::CommandLine {
            reason: kind.as_str().unwrap_or("it cannot be read").to_owned(),
        },
    }
}

/// An option that nobody knows; `nearest` is what may have been meant.
fn unknown(word: &str, nearest: Option<String>) -> Error {
    let Some(name) = word.strip_prefix("--") else {
        return Error::OptionDashes {
            word: word.to_owned(),
        };
    };
    let plain = name
        .strip_prefix("no-")
        .or_else(|| name.strip_prefix("reset-"))
        .unwrap_or(name);
    if name.starts_with("no-") && options::known(plain).is_some() {
        return Error::NotNegatable {
            name: name.to_owned(),
        };
    }
    match crate::config::numbered_error(plain) {
        Some(error) => error,
        None => Error::UnknownOption {
            name: name.to_owned(),
            nearest,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<CommandLine, Error> {
        parse(
            std::iter::once("pgcairn")
                .chain(line.split_whitespace())
                .map(OsString::from),
        )
    }

    fn refused(line: &str) -> String {
        let error = read(line).unwrap_err();
        format!("[{:03}]: {error}", error.code())
    }

    #[test]
    fn a_word_is_held_against_every_option_that_it_may_begin() {
        let longs = |row: &OptionRow| ["", "no-", "reset-"].map(|way| format!("{way}{}", row.name));
        for long in OPTIONS.iter().flat_map(longs) {
            for length in 0..=long.len() {
                let word = &long[..length];
                let begins = |row: &OptionRow| longs(row).iter().any(|long| long.starts_with(word));
                let kept = rows_for(&[format!("--{word}=value").into()]);
                let wanted = OPTIONS.iter().filter(|row| begins(row)).count();
                assert_eq!(kept.len(), wanted, "{word}");
            }
        }
    }

    #[test]
    fn options_stand_before_or_after_the_command_and_in_both_forms() {
        let before = read("--stanza=demo --type full --delta backup").unwrap();
        assert_eq!(
            before,
            read("backup --type=full --delta=y --stanza demo").unwrap()
        );
        assert_eq!(before.command, Command::Backup);
        assert_eq!(before.options["type"].values, ["full"]);
        assert_eq!(before.options["delta"].values, ["y"]);
    }

    #[test]
    fn a_bare_flag_does_not_swallow_the_next_word() {
        let line = read("--delta restore --stanza=demo").unwrap();
        assert_eq!(line.command, Command::Restore);
        assert!(line.parameters.is_empty());
    }

    #[test]
    fn values_may_begin_with_a_dash() {
        assert_eq!(
            read("backup --compress-level -3").unwrap().options["compress-level"].values,
            ["-3"]
        );
    }

    #[test]
    fn negation_reset_and_lists_are_kept_apart() {
        let line = read("backup --no-online --reset-delta --exclude=a --exclude=b").unwrap();
        assert!(line.options["online"].negated);
        assert!(line.options["delta"].reset);
        assert_eq!(line.options["exclude"].values, ["a", "b"]);
    }

    #[test]
    fn an_unambiguous_beginning_of_a_name_will_do() {
        assert_eq!(
            read("info --stan=demo").unwrap().options["stanza"].values,
            ["demo"]
        );
    }

    #[test]
    fn the_parameters_of_the_archive_commands_are_counted() {
        assert_eq!(read("archive-get a b").unwrap().parameters, ["a", "b"]);
        assert_eq!(refused("archive-get"), "[043]: WAL segment to get required");
        assert_eq!(
            refused("archive-get a"),
            "[043]: path to copy WAL segment required"
        );
        assert_eq!(refused("archive-push a b"), "[096]: extra parameters found");
        assert_eq!(
            refused("backup demo"),
            "[096]: command does not allow parameters"
        );
    }

    #[test]
    fn no_command_and_the_help_flag_are_help() {
        assert_eq!(read("").unwrap().command, Command::Help);
        assert_eq!(
            read("backup --help").unwrap(),
            bare(Command::Help, vec!["backup".to_owned()])
        );
        assert_eq!(read("--version").unwrap().command, Command::Version);
    }

    #[test]
    fn refusals_have_the_words_and_numbers_of_pgbackrest() {
        assert_eq!(refused("foo"), "[048]: invalid command 'foo'");
        assert_eq!(refused("backup --bogus"), "[031]: invalid option '--bogus'");
        let misspelt = read("backup --tpye=full").unwrap_err();
        assert_eq!(misspelt.hints(), ["did you mean '--type'?"]);
        assert_eq!(
            refused("backup -x"),
            "[031]: option '-x' must begin with --"
        );
        assert_eq!(
            refused("backup --stanza"),
            "[031]: option '--stanza' requires an argument"
        );
        assert_eq!(
            refused("backup --stanza=a --stanza=b"),
            "[031]: option 'stanza' cannot be set multiple times"
        );
        assert_eq!(
            refused("backup --no-stanza"),
            "[031]: option 'no-stanza' cannot be negated"
        );
        assert_eq!(
            refused("backup --online --no-online"),
            "[031]: option 'online' cannot be set and negated"
        );
        assert_eq!(
            refused("info --delta"),
            "[031]: option 'delta' not valid for command 'info'"
        );
        assert_eq!(
            refused("backup --repo1-s3-key=a"),
            "[031]: option 'repo1-s3-key' is not allowed on the command-line"
        );
        assert_eq!(
            refused("backup --repo9-path=/a"),
            "[031]: option 'repo9-path': more than 8 repositories are not supported yet"
        );
        assert_eq!(
            refused("backup --pg300-path=/a"),
            "[031]: option 'pg300-path' key must be between 1 and 256"
        );
    }
}
