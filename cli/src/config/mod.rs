//! Command line over environment over configuration file over default: the settings of one command.
//!
//! Promises: the only place that reads the environment; sections go `[stanza:command]`, `[stanza]`,
//! `[global:command]`, `[global]`, and the first that has an option decides. Options of other commands are skipped
//! where they are shared by all commands; so are the defaults of repositories that are not configured. Refuses: an option that nobody knows or that cannot be honoured, by name,
//! wherever it stands; nothing is silently dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::arguments::CommandLine;
use crate::error::Error;
use crate::ini::{self, Ini};
use crate::options::{self, Command, Effect, OPTIONS, OptionRow, Place};
use crate::settings::{Origin, Setting, Settings, Value};

const PREFIX: &str = "PGCAIRN_";

/// What was written of options in one place, by option name.
type Written = BTreeMap<&'static str, Vec<String>>;

/// Reads the environment and the configuration file, and settles every option of the command.
pub(crate) fn settle(line: CommandLine) -> Result<Settings, Error> {
    let environment = read_environment(environment_variables()?, line.command)?;
    let file = match line.command {
        Command::Help | Command::Version => Ini::default(),
        _ => read_file(&line, &environment)?,
    };
    merge(line, &environment, &file)
}

/// What is wrong with a name that has the shape of a numbered option, if that is all that is wrong with it.
pub(crate) fn numbered_error(name: &str) -> Option<Error> {
    let (number, first) = options::numbered(name)?;
    let row = options::known(&first)?;
    let name = name.to_owned();
    let limit = if row.group.prefix() == Some("pg") {
        "more than 8 clusters"
    } else {
        "more than 8 repositories"
    };
    match number {
        2..=256 => Some(Error::TooMany { name, limit }),
        _ => Some(Error::OptionKey { name }),
    }
}

fn environment_variables() -> Result<Vec<(String, String)>, Error> {
    let mut found = Vec::new();
    for (variable, value) in std::env::vars_os() {
        let Some(variable) = variable.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        let value = value.into_string().map_err(|_| Error::EnvironmentText {
            variable: variable.to_owned(),
        })?;
        found.push((variable.to_owned(), value));
    }
    Ok(found)
}

/// Options of other commands are skipped: the environment is shared.
fn read_environment(variables: Vec<(String, String)>, command: Command) -> Result<Written, Error> {
    let mut written = Written::new();
    for (variable, value) in variables {
        let name = variable
            .trim_start_matches(PREFIX)
            .to_ascii_lowercase()
            .replace('_', "-");
        if options::known(&name).is_none() {
            return Err(numbered_error(&name).unwrap_or(Error::EnvironmentUnknown { name }));
        }
        let Some(row) = options::find(&name, command) else {
            continue;
        };
        if value.is_empty() {
            return Err(Error::EnvironmentEmpty { variable });
        }
        let values = if row.kind.repeats() {
            value.split(':').map(str::to_owned).collect()
        } else {
            vec![value]
        };
        written.insert(row.name, values);
    }
    Ok(written)
}

fn read_file(line: &CommandLine, environment: &Written) -> Result<Ini, Error> {
    let given = line.options.get("config");
    let from_line = given.and_then(|given| given.values.first());
    let from_environment = environment.get("config").and_then(|values| values.first());
    let asked = match given {
        Some(given) if given.negated => return Ok(Ini::default()),
        Some(given) if given.reset => None,
        _ => from_line.or(from_environment),
    };
    let default = options::known("config")
        .and_then(|row| row.default)
        .unwrap_or_default();
    let path = PathBuf::from(asked.map_or(default, String::as_str));
    match fs::read_to_string(&path) {
        Ok(text) => ini::parse(&text),
        Err(source) if source.kind() == io::ErrorKind::NotFound && asked.is_none() => {
            Ok(Ini::default())
        }
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            Err(Error::ConfigMissing { path })
        }
        Err(source) => Err(Error::ConfigRead { path, source }),
    }
}

/// Settles every option of the command; see the head of this file.
pub(crate) fn merge(
    line: CommandLine,
    environment: &Written,
    file: &Ini,
) -> Result<Settings, Error> {
    let command = line.command;
    let stanza = match line.options.get("stanza") {
        Some(given) if given.reset => None,
        Some(given) => given.values.first(),
        None => environment.get("stanza").and_then(|values| values.first()),
    };
    let file = file_options(file, stanza.map(String::as_str), command)?;
    let mut values = BTreeMap::new();
    for row in OPTIONS.iter().filter(|row| row.commands.contains(&command)) {
        if let Some(setting) = settle_one(row, &line, environment, &file)? {
            values.insert(row.name, setting);
        }
    }
    drop_absent_repositories(&mut values);
    check_needs(command, &mut values)?;
    for row in OPTIONS
        .iter()
        .filter(|row| row.commands.contains(&command) && row.required)
    {
        let needed = row
            .needs
            .is_none_or(|(option, allowed)| holds(&values, option, allowed));
        if needed && !values.contains_key(row.name) {
            return Err(Error::OptionMissing {
                name: row.name.to_owned(),
                command,
            });
        }
    }
    Ok(Settings {
        command,
        parameters: line.parameters,
        values,
    })
}

/// The options of the sections that concern this command, the first section that has one deciding.
fn file_options(file: &Ini, stanza: Option<&str>, command: Command) -> Result<Written, Error> {
    let mut sections = Vec::new();
    if let Some(stanza) = stanza {
        sections.push((format!("{stanza}:{}", command.name()), true, true));
        sections.push((stanza.to_owned(), true, false));
    }
    sections.push((format!("global:{}", command.name()), false, true));
    sections.push(("global".to_owned(), false, false));
    let mut written = Written::new();
    for (section, of_stanza, of_command) in sections {
        for (key, values) in file.section(&section).into_iter().flatten() {
            let Some(row) = options::known(key) else {
                return Err(
                    numbered_error(key).unwrap_or(Error::ConfigUnknown { name: key.clone() })
                );
            };
            let name = row.name;
            let misplaced = |rule| Error::ConfigPlace {
                name,
                rule,
                section: section.clone(),
            };
            match (row.place, options::find(key, command)) {
                (Place::CommandLine, _) => return Err(misplaced("command-line only")),
                (Place::StanzaSection, _) if !of_stanza => return Err(misplaced("stanza-only")),
                (_, None) if of_command => return Err(misplaced("another command's")),
                (_, None) => {}
                (_, Some(row)) if values.len() > 1 && !row.kind.repeats() => {
                    return Err(Error::OptionTwice { name });
                }
                (_, Some(_)) => {
                    written.entry(name).or_insert_with(|| values.clone());
                }
            }
        }
    }
    Ok(written)
}

fn settle_one(
    row: &OptionRow,
    line: &CommandLine,
    environment: &Written,
    file: &Written,
) -> Result<Option<Setting>, Error> {
    let name = row.name;
    let default = || {
        row.default
            .map(|text| (Origin::Default, vec![text.to_owned()]))
    };
    let lower = || {
        let from_environment = environment
            .get(name)
            .map(|values| (Origin::Environment, values.clone()));
        from_environment
            .or_else(|| file.get(name).map(|values| (Origin::File, values.clone())))
            .or_else(default)
    };
    let found = match line.options.get(name) {
        Some(given) if given.reset => default(),
        Some(given) if given.negated && row.kind.is_flag() => {
            Some((Origin::CommandLine, vec!["n".to_owned()]))
        }
        Some(given) if given.negated => None,
        Some(given) => Some((Origin::CommandLine, given.values.clone())),
        None => lower(),
    };
    let Some((origin, texts)) = found else {
        return Ok(None);
    };
    if row.effect == Effect::Unsupported && texts.first().map(String::as_str) != row.default {
        return Err(Error::OptionUnsupported {
            name: name.to_owned(),
        });
    }
    let value = Value::parse(row, &texts)?;
    Ok(Some(Setting {
        value,
        origin,
        texts,
        secret: row.secret,
        effect: row.effect,
    }))
}

/// Drops the defaults of repositories that are not configured: those of which nothing is said. If nothing is said of any,
/// the first is meant.
fn drop_absent_repositories(values: &mut BTreeMap<&'static str, Setting>) {
    let number = |name: &str| {
        let (number, _) = options::numbered(name).filter(|_| name.starts_with("repo"))?;
        Some(number)
    };
    let given = |(name, setting): (&&'static str, &Setting)| {
        (setting.origin != Origin::Default)
            .then(|| number(name))
            .flatten()
    };
    let mut present: BTreeSet<u32> = values.iter().filter_map(given).collect();
    if present.is_empty() {
        present.insert(1);
    }
    values.retain(|name, _| number(name).is_none_or(|number| present.contains(&number)));
}

/// Drops what means nothing beside the other options, and refuses it if the command line asked for it.
fn check_needs(
    command: Command,
    values: &mut BTreeMap<&'static str, Setting>,
) -> Result<(), Error> {
    for row in OPTIONS.iter().filter(|row| row.commands.contains(&command)) {
        let Some((needed, allowed)) = row.needs else {
            continue;
        };
        if holds(values, needed, allowed) {
            continue;
        }
        let asked = values
            .remove(row.name)
            .is_some_and(|setting| setting.origin == Origin::CommandLine);
        if asked && allowed == ["n"] {
            return Err(Error::OptionNeedsNot {
                name: row.name,
                needed,
            });
        }
        if asked {
            return Err(Error::OptionNeeds {
                name: row.name,
                needed,
                values: allowed,
            });
        }
    }
    Ok(())
}

fn holds(values: &BTreeMap<&'static str, Setting>, option: &str, allowed: &[&str]) -> bool {
    let text = values.get(option).and_then(|setting| setting.texts.first());
    text.is_some_and(|text| allowed.contains(&text.as_str()))
}

#[cfg(test)]
mod tests;
