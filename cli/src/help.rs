//! `help [command [option]]`, made from the option table.

use crate::error::Error;
use crate::exit;
use crate::options::{self, Command, Effect, Group, Kind, OPTIONS, OptionRow};

const WIDTH: usize = 80;

/// The text for the words after `help`.
pub(crate) fn text(words: &[String]) -> Result<String, Error> {
    match words {
        [] => Ok(general()),
        [name] => Ok(of_command(command(name)?)),
        [name, option] => of_option(command(name)?, option.trim_start_matches("--")),
        _ => Err(Error::HelpTooLong),
    }
}

fn command(name: &str) -> Result<Command, Error> {
    Command::from_name(name).ok_or_else(|| Error::UnknownCommand {
        name: name.to_owned(),
    })
}

fn general() -> String {
    let mut text = format!(
        "{} - General help\n\nUsage:\n    pgcairn [options] [command]\n\nCommands:\n",
        crate::TITLE
    );
    for command in Command::ALL {
        text.push_str(&columns(4, command.name(), 13, command.help()));
    }
    text.push_str("\nExit codes:\n");
    for (number, sentence) in exit::SENTENCES {
        text.push_str(&columns(4, &number.to_string(), 3, sentence));
    }
    text.push_str("\nUse 'pgcairn help [command]' for more information.\n");
    text
}

fn of_command(command: Command) -> String {
    let mut text = format!("{} - '{}' command help\n\n", crate::TITLE, command.name());
    text.push_str(&sentence(command.help()));
    if !command.parameters().is_empty() {
        text.extend([
            "
Parameters: [",
            &command.parameters().join("] ["),
            "]
",
        ]);
    }
    let rows = || {
        let first = |name| options::numbered(name).is_none_or(|(number, _)| number == 1);
        OPTIONS.iter().filter(move |row| {
            row.commands.contains(&command) && row.effect == Effect::Used && first(row.name)
        })
    };
    let width = rows().map(|row| row.name.len() + 2).max().unwrap_or(0);
    for (group, title) in [
        (Group::Command, "Command"),
        (Group::General, "General"),
        (Group::Log, "Log"),
        (Group::Repository, "Repository"),
        (Group::Stanza, "Stanza"),
    ] {
        let mut rows: Vec<_> = rows().filter(|row| row.group == group).collect();
        rows.sort_by_key(|row| row.name);
        if rows.is_empty() {
            continue;
        }
        text.extend(["\n", title, " Options:\n\n"]);
        if group == Group::Stanza && options::find("pg2-path", command).is_some() {
            text.push_str(
                "  Further clusters of the stanza have the same options, from pg2- to pg8-.\n",
            );
        }
        for row in rows {
            let default = row
                .default
                .map_or(String::new(), |value| format!(" [default={value}]"));
            text.push_str(&columns(
                2,
                &format!("--{}", row.name),
                width,
                &format!("{}{default}", row.help),
            ));
        }
    }
    if width > 0 {
        text.extend([
            "\nUse 'pgcairn help ",
            command.name(),
            " [option]' for more information.\n",
        ]);
    }
    text
}

fn of_option(command: Command, name: &str) -> Result<String, Error> {
    let row = options::find(name, command).ok_or_else(|| Error::HelpUnknownOption {
        name: name.to_owned(),
        command,
    })?;
    let mut text = format!(
        "{} - '{}' command - '{name}' option help\n\n",
        crate::TITLE,
        command.name()
    );
    text.push_str(&sentence(row.help));
    text.push('\n');
    text.push_str(&details(row));
    Ok(text)
}

fn details(row: &OptionRow) -> String {
    let mut lines = Vec::new();
    match row.kind {
        Kind::Choice(allowed) => lines.push(format!("allowed: {}", allowed.join(", "))),
        Kind::Number(lowest, highest) => lines.push(format!("allowed: {lowest} to {highest}")),
        Kind::Flag => lines.push("allowed: y, n".to_owned()),
        Kind::FlagOr(word) => lines.push(format!("allowed: y, n, {word}")),
        Kind::Duration => {
            lines.push("allowed: seconds, or a number with ms, s, m, h, d, w".to_owned());
        }
        Kind::Size => lines.push("allowed: bytes, or a number with KB, MB, GB, TB".to_owned()),
        Kind::Path => lines.push("allowed: an absolute path".to_owned()),
        Kind::Text => {}
        Kind::List => lines.push("may be given several times".to_owned()),
        Kind::Pairs => lines.push("key=value; may be given several times".to_owned()),
    }
    if let Some((needed, values)) = row.needs {
        lines.push(format!("only with {needed}: {}", values.join(", ")));
    }
    if row.secret {
        lines.push("secret: only in the configuration file or the environment".to_owned());
    }
    match row.effect {
        Effect::Used => {}
        Effect::Nothing => lines.push("accepted for pgBackRest's sake; has no effect".to_owned()),
        Effect::Unsupported => lines.push("not supported yet".to_owned()),
    }
    if let Some(default) = row.default {
        lines.push(format!("default: {default}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn sentence(fragment: &str) -> String {
    let mut letters = fragment.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_uppercase().to_string())
        .unwrap_or_default();
    format!("{first}{}.\n", letters.as_str())
}

/// A name and, beside it, its wrapped explanation.
fn columns(indent: usize, name: &str, width: usize, text: &str) -> String {
    let margin = indent + width + 2;
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last().map_or(0, String::len);
        if last > 0 && margin + last + 1 + word.len() > WIDTH {
            lines.push(word.to_owned());
        } else if let Some(line) = lines.last_mut() {
            if last > 0 {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    format!(
        "{:indent$}{name:<width$}  {}\n",
        "",
        lines.join(&format!("\n{:margin$}", ""))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(words: &str) -> String {
        text(
            &words
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
        .unwrap()
    }

    #[test]
    fn every_command_and_option_has_help_within_the_width() {
        assert!(help("").lines().all(|line| line.len() <= WIDTH));
        for command in Command::ALL {
            assert!(
                help(command.name()).lines().all(|line| line.len() <= WIDTH),
                "{}",
                help(command.name())
            );
            for row in OPTIONS.iter().filter(|row| row.commands.contains(&command)) {
                assert!(
                    help(&format!("{} {}", command.name(), row.name))
                        .lines()
                        .count()
                        >= 3
                );
            }
        }
    }

    #[test]
    fn an_option_is_explained_with_what_it_allows() {
        assert_eq!(
            help("backup type"),
            format!(
                "{} - 'backup' command - 'type' option help\n\nBackup type.\n\nallowed: full, diff, incr\ndefault: incr\n",
                crate::TITLE
            )
        );
    }

    #[test]
    fn unknown_words_are_refused() {
        let refused = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            let error = text(&words).unwrap_err();
            format!("[{:03}]: {error}", error.code())
        };
        assert_eq!(refused(&["foo"]), "[048]: invalid command 'foo'");
        assert_eq!(
            refused(&["backup", "foo"]),
            "[031]: option 'foo' is not valid for command 'backup'"
        );
        assert_eq!(
            refused(&["backup", "type", "foo"]),
            "[096]: only one option allowed for option help"
        );
    }
}
