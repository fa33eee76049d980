//! The settled options of one command, typed.
//!
//! Promises: every value here has been checked against its row of the table. Refuses, with pgBackRest's words: values
//! of the wrong kind or out of range.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use crate::options::{Command, Effect, Kind, OptionRow};

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File,
    Environment,
    CommandLine,
}

/// A checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Flag(bool),
    Text(String),
    Number(i64),
    Duration(Duration),
    List(Vec<String>),
    Pairs(Vec<(String, String)>),
}

/// A value, where it comes from, and how it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
    pub(crate) texts: Vec<String>,
    pub(crate) secret: bool,
    pub(crate) effect: Effect,
}

/// All that the command was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) command: Command,
    pub(crate) parameters: Vec<String>,
    /// By option name; an option without a value is absent.
    pub(crate) values: BTreeMap<&'static str, Setting>,
}

impl Settings {
    /// Whether a flag is `y`. A flag without value is not.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flag_if_set(name).unwrap_or(false)
    }

    /// A flag that may be unset.
    pub(crate) fn flag_if_set(&self, name: &str) -> Option<bool> {
        match self.value(name)? {
            Value::Flag(value) => Some(*value),
            _ => None,
        }
    }

    /// A text, word or path.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Value::Text(value) => Some(value),
            _ => None,
        }
    }

    /// A path that has a default or is required; empty, which no operation accepts, if the table says otherwise.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.text(name).map(PathBuf::from).unwrap_or_default()
    }

    /// A number that may be unset.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        match self.value(name)? {
            Value::Number(value) => Some(*value),
            _ => None,
        }
    }

    /// A duration; zero if unset.
    pub(crate) fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Some(Value::Duration(value)) => *value,
            _ => Duration::ZERO,
        }
    }

    /// The items of a list.
    pub(crate) fn list(&self, name: &str) -> &[String] {
        match self.value(name) {
            Some(Value::List(values)) => values,
            _ => &[],
        }
    }

    /// The items of a map, in the order given.
    pub(crate) fn pairs(&self, name: &str) -> &[(String, String)] {
        match self.value(name) {
            Some(Value::Pairs(values)) => values,
            _ => &[],
        }
    }

    /// Whether somebody asked for this option: anything but the default.
    pub(crate) fn given(&self, name: &str) -> bool {
        self.values
            .get(name)
            .is_some_and(|setting| setting.origin != Origin::Default)
    }

    /// The given options that are accepted without doing anything.
    pub(crate) fn without_effect(&self) -> impl Iterator<Item = &'static str> {
        let idle = self.values.iter().filter(|(_, setting)| {
            setting.effect == Effect::Nothing && setting.origin != Origin::Default
        });
        idle.map(|(name, _)| *name)
    }

    /// The options whose origin is accepted by `wanted`, as they would be written on the command line; no secrets.
    pub(crate) fn arguments(&self, wanted: impl Fn(&str, &Setting) -> bool) -> Vec<String> {
        let mut arguments = Vec::new();
        for (name, setting) in self
            .values
            .iter()
            .filter(|(name, setting)| wanted(name, setting))
        {
            match &setting.value {
                _ if setting.secret => arguments.push(format!("--{name}=<redacted>")),
                Value::Flag(true) => arguments.push(format!("--{name}")),
                Value::Flag(false) => arguments.push(format!("--no-{name}")),
                _ => arguments.extend(setting.texts.iter().map(|text| format!("--{name}={text}"))),
            }
        }
        arguments
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.values.get(name).map(|setting| &setting.value)
    }
}

impl Value {
    /// Checks what was written of an option.
    pub(crate) fn parse(row: &OptionRow, texts: &[String]) -> Result<Value, Error> {
        let text = texts.first().cloned().unwrap_or_default();
        let name = row.name;
        if text.is_empty() {
            return Err(Error::ValueInvalid { name, value: text });
        }
        match row.kind {
            Kind::Flag => match text.as_str() {
                "y" => Ok(Value::Flag(true)),
                "n" => Ok(Value::Flag(false)),
                _ => Err(Error::FlagValue { name }),
            },
            Kind::FlagOr(word) if ["y", "n", word].contains(&text.as_str()) => {
                Ok(Value::Text(text))
            }
            Kind::FlagOr(word) => Err(Error::FlagOrWord { name, word }),
            Kind::Text => Ok(Value::Text(text)),
            Kind::Number(lowest, highest) => match text.parse() {
                Ok(number) if (lowest..=highest).contains(&number) => Ok(Value::Number(number)),
                Ok(_) => Err(Error::ValueRange {
                    name,
                    value: text,
                    lowest,
                    highest,
                }),
                Err(_) => Err(Error::ValueInvalid { name, value: text }),
            },
            Kind::Duration => match parse_duration(&text) {
                Some(duration) => Ok(Value::Duration(duration)),
                None => Err(Error::ValueInvalid { name, value: text }),
            },
            Kind::Size => match parse_size(&text) {
                Some(size) => Ok(Value::Number(size)),
                None => Err(Error::ValueInvalid { name, value: text }),
            },
            Kind::Choice(allowed) if allowed.contains(&text.as_str()) => Ok(Value::Text(text)),
            Kind::Choice(allowed) => Err(Error::ValueNotAllowed {
                name,
                value: text,
                allowed,
            }),
            Kind::Path => parse_path(name, text),
            Kind::List => Ok(Value::List(texts.to_vec())),
            Kind::Pairs => texts
                .iter()
                .map(|text| parse_pair(name, text))
                .collect::<Result<_, _>>()
                .map(Value::Pairs),
        }
    }
}

fn parse_path(name: &'static str, text: String) -> Result<Value, Error> {
    if !text.starts_with('/') {
        return Err(Error::PathNotAbsolute { name, value: text });
    }
    if text.contains("//") {
        return Err(Error::ValueInvalid { name, value: text });
    }
    match text.trim_end_matches('/') {
        "" => Ok(Value::Text("/".to_owned())),
        trimmed => Ok(Value::Text(trimmed.to_owned())),
    }
}

fn parse_pair(name: &'static str, text: &str) -> Result<(String, String), Error> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(Error::PairInvalid {
            name,
            value: text.to_owned(),
        }),
    }
}

/// Seconds, or a number with ms, s, m, h, d or w; never zero, at most a week.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return None,
    };
    let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    (1..=604_800_000)
        .contains(&ms)
        .then(|| Duration::from_millis(ms))
}

/// Bytes, or a number with a unit; every unit is a power of 1024, as pgBackRest has it.
fn parse_size(text: &str) -> Option<i64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_carry_a_unit() {
        assert_eq!(parse_duration("60"), Some(Duration::from_mins(1)));
        assert_eq!(parse_duration("1m"), Some(Duration::from_mins(1)));
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(parse_duration("1w"), Some(Duration::from_hours(168)));
        for text in ["0", "8d", "1x", "m", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_carry_a_unit() {
        for (text, size) in [
            ("0", 0),
            ("16MB", 16 << 20),
            ("1GiB", 1 << 30),
            ("5k", 5120),
        ] {
            assert_eq!(parse_size(text), Some(size), "{text}");
        }
        for text in ["", "MB", "1XB", "-1", "99999999999TB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn paths_are_absolute_and_lose_their_last_slash() {
        assert_eq!(
            parse_path("pg1-path", "/a/".to_owned()).unwrap(),
            Value::Text("/a".to_owned())
        );
        assert!(parse_path("pg1-path", "a".to_owned()).is_err());
        assert!(parse_path("pg1-path", "/a//b".to_owned()).is_err());
    }
}
