//! The configuration file as text: sections of `key=value` lines, in pgBackRest's dialect.
//!
//! Promises: `#` begins a comment only at the start of a line, so a value may hold it; a repeated key makes a list.
//! Refuses: lines that are neither, naming the line. Which keys and values are right is not its business.

use std::collections::BTreeMap;

use crate::error::Error;

/// The values of each key of each section, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ini(BTreeMap<String, BTreeMap<String, Vec<String>>>);

impl Ini {
    /// The keys of a section and their values; none if it is absent.
    pub(crate) fn section(&self, name: &str) -> Option<&BTreeMap<String, Vec<String>>> {
        self.0.get(name)
    }
}

/// Reads the text of a configuration file.
pub(crate) fn parse(text: &str) -> Result<Ini, Error> {
    let mut ini = Ini::default();
    let mut section = None;
    for (n, raw) in text.lines().enumerate() {
        let line = raw.trim();
        let wrong = |what| Error::ConfigLine {
            what,
            line: n + 1,
            text: line.to_owned(),
        };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest
                .strip_suffix(']')
                .ok_or_else(|| wrong("ini section should end with ]"))?;
            section = Some(ini.0.entry(name.to_owned()).or_default());
            continue;
        }
        // The text of a line without '=' may be a secret that lost its key: the number must do.
        let (key, value) = line.split_once('=').ok_or_else(|| Error::ConfigLine {
            what: "missing '=' in key/value",
            line: n + 1,
            text: "(not shown)".to_owned(),
        })?;
        let (key, value) = (key.trim(), value.trim());
        let keys = section
            .as_mut()
            .ok_or_else(|| wrong_key("key/value found outside of section", n, key))?;
        if key.is_empty() {
            return Err(wrong_key("key is zero-length", n, key));
        }
        keys.entry(key.to_owned())
            .or_default()
            .push(value.to_owned());
    }
    Ok(ini)
}

fn wrong_key(what: &'static str, n: usize, key: &str) -> Error {
    Error::ConfigLine {
        what,
        line: n + 1,
        text: key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_fill_whole_lines_and_repeated_keys_make_lists() {
        let ini = parse(
            "# a\n[global]\n #b\nrepo1-path = /a # b=c\nexclude=x\n[s]\n[global]\nexclude=y\n",
        )
        .unwrap();
        let global = ini.section("global").unwrap();
        assert_eq!(global["repo1-path"], ["/a # b=c"]);
        assert_eq!(global["exclude"], ["x", "y"]);
        assert_eq!(ini.section("s").map(BTreeMap::len), Some(0));
        assert_eq!(ini.section("t"), None);
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_a_value_is_never_shown() {
        let text = |ini: &str| parse(ini).unwrap_err().to_string();
        assert_eq!(
            text("[a"),
            "configuration file: ini section should end with ] at line 1: [a"
        );
        assert_eq!(
            text("[a]\nb"),
            "configuration file: missing '=' in key/value at line 2: (not shown)"
        );
        assert_eq!(
            text("\nb=secret"),
            "configuration file: key/value found outside of section at line 2: b"
        );
        assert_eq!(
            text("[a]\n=secret"),
            "configuration file: key is zero-length at line 2: "
        );
    }
}
