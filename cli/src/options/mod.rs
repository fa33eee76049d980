//! The one table of commands and options: what each is called, what it may hold, who accepts it, what it does.
//!
//! Promises: the command line, the environment, the configuration file, `help` and validation are all made from this
//! table, so they cannot differ. Names, defaults and meanings are pgBackRest's wherever it has them. Refuses: nothing
//! by itself; `arguments.rs` and `config.rs` do.

mod begin;
mod numbered;
mod table;

use std::sync::LazyLock;

pub(crate) use numbered::{LAST_CLUSTER, LAST_REPOSITORY};

/// All options.
pub(crate) static OPTIONS: LazyLock<Vec<OptionRow>> = LazyLock::new(numbered::all);

/// A command of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    ArchiveGet,
    ArchivePush,
    Backup,
    Check,
    Help,
    Info,
    Restore,
    StanzaCreate,
    StanzaDelete,
    StanzaUpgrade,
    Start,
    Stop,
    Verify,
    Version,
}

impl Command {
    /// All commands, as `help` lists them.
    pub(crate) const ALL: [Command; 14] = [
        Command::ArchiveGet,
        Command::ArchivePush,
        Command::Backup,
        Command::Check,
        Command::Help,
        Command::Info,
        Command::Restore,
        Command::StanzaCreate,
        Command::StanzaDelete,
        Command::StanzaUpgrade,
        Command::Start,
        Command::Stop,
        Command::Verify,
        Command::Version,
    ];

    /// The word on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Command::ArchiveGet => "archive-get",
            Command::ArchivePush => "archive-push",
            Command::Backup => "backup",
            Command::Check => "check",
            Command::Help => "help",
            Command::Info => "info",
            Command::Restore => "restore",
            Command::StanzaCreate => "stanza-create",
            Command::StanzaDelete => "stanza-delete",
            Command::StanzaUpgrade => "stanza-upgrade",
            Command::Start => "start",
            Command::Stop => "stop",
            Command::Verify => "verify",
            Command::Version => "version",
        }
    }

    /// The command with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Command::ALL
            .into_iter()
            .find(|command| command.name() == name)
    }

    /// What it does, in a few words.
    pub(crate) fn help(self) -> &'static str {
        match self {
            Command::ArchiveGet => "get a WAL segment from the archive",
            Command::ArchivePush => "push a WAL segment to the archive",
            Command::Backup => "backup a database cluster",
            Command::Check => "check the configuration and archiving",
            Command::Help => "get help",
            Command::Info => "retrieve information about backups",
            Command::Restore => "restore a database cluster",
            Command::StanzaCreate => "create the required stanza data",
            Command::StanzaDelete => "delete a stanza and forget its backups",
            Command::StanzaUpgrade => "upgrade a stanza to the cluster that is there now",
            Command::Start => "allow processes to run again",
            Command::Stop => "stop processes from running on this host",
            Command::Verify => "verify contents of the repository",
            Command::Version => "get version",
        }
    }

    /// The names of the words that must follow it; `help` alone takes what it gets.
    pub(crate) fn parameters(self) -> &'static [&'static str] {
        match self {
            Command::ArchiveGet => &["WAL segment to get", "path to copy WAL segment"],
            Command::ArchivePush => &["WAL segment to push"],
            _ => &[],
        }
    }
}

/// What an option holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `y` or `n`; `--name` alone is `y`, `--no-name` is `n`.
    Flag,
    /// A flag that may also be this word.
    FlagOr(&'static str),
    /// Any text.
    Text,
    /// A whole number from … to.
    Number(i64, i64),
    /// A duration in seconds, or with a suffix (ms, s, m, h, d, w); never zero, at most a week.
    Duration,
    /// A size in bytes, or with a suffix (B, KB, MB, GB, TB, each also as KiB …).
    Size,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An absolute path.
    Path,
    /// A text that may be given several times.
    List,
    /// `key=value`, several times.
    Pairs,
}

impl Kind {
    /// Whether its name alone means `y`, and `no-` before it `n`.
    pub(crate) const fn is_flag(self) -> bool {
        matches!(self, Kind::Flag | Kind::FlagOr(_))
    }

    /// Whether it may be given more than once.
    pub(crate) fn repeats(self) -> bool {
        matches!(self, Kind::List | Kind::Pairs)
    }
}

/// Where `help` shows an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Command,
    General,
    Log,
    /// Numbered: `repo1-…`.
    Repository,
    /// Numbered: `pg1-…`.
    Stanza,
}

impl Group {
    /// What stands before the number of a numbered option.
    pub(crate) fn prefix(self) -> Option<&'static str> {
        match self {
            Group::Repository => Some("repo"),
            Group::Stanza => Some("pg"),
            _ => None,
        }
    }
}

/// Where an option may stand besides the command line and the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere else.
    CommandLine,
    /// In any section of the configuration file.
    AnySection,
    /// In a stanza's sections only.
    StanzaSection,
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It does what it says.
    Used,
    /// It shapes only what pgBackRest stores or how it runs; accepted, and reported as having no effect.
    Nothing,
    /// It asks for what this version cannot do; refused by name.
    Unsupported,
}

/// One row of the table. An option that differs between commands has a row for each of its shapes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OptionRow {
    /// Its name, with its number if it is numbered.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) commands: &'static [Command],
    /// One sentence fragment for `help`.
    pub(crate) help: &'static str,
    pub(crate) group: Group,
    pub(crate) place: Place,
    pub(crate) effect: Effect,
    /// As it would be written on the command line.
    pub(crate) default: Option<&'static str>,
    /// The command fails without it.
    pub(crate) required: bool,
    /// Never accepted on the command line, never shown.
    pub(crate) secret: bool,
    /// `--no-name` is accepted and means "none"; flags always can be negated.
    pub(crate) negatable: bool,
    /// It means something only if that option holds one of these.
    pub(crate) needs: Option<(&'static str, &'static [&'static str])>,
}

impl OptionRow {
    const fn new(
        name: &'static str,
        kind: Kind,
        commands: &'static [Command],
        help: &'static str,
    ) -> Self {
        OptionRow {
            name,
            kind,
            commands,
            help,
            group: Group::General,
            place: Place::AnySection,
            effect: Effect::Used,
            default: None,
            required: false,
            secret: false,
            negatable: kind.is_flag(),
            needs: None,
        }
    }

    const fn group(self, group: Group) -> Self {
        OptionRow { group, ..self }
    }

    const fn place(self, place: Place) -> Self {
        OptionRow { place, ..self }
    }

    const fn effect(self, effect: Effect) -> Self {
        OptionRow { effect, ..self }
    }

    const fn default(self, value: &'static str) -> Self {
        OptionRow {
            default: Some(value),
            ..self
        }
    }

    const fn required(self) -> Self {
        OptionRow {
            required: true,
            ..self
        }
    }

    const fn secret(self) -> Self {
        OptionRow {
            secret: true,
            ..self
        }
    }

    const fn negatable(self) -> Self {
        OptionRow {
            negatable: true,
            ..self
        }
    }

    const fn needs(self, option: &'static str, values: &'static [&'static str]) -> Self {
        OptionRow {
            needs: Some((option, values)),
            ..self
        }
    }
}

/// The row of an option as a command sees it.
pub(crate) fn find(name: &str, command: Command) -> Option<&'static OptionRow> {
    OPTIONS
        .iter()
        .find(|row| row.name == name && row.commands.contains(&command))
}

/// Whether any command has an option of this name.
pub(crate) fn known(name: &str) -> Option<&'static OptionRow> {
    OPTIONS.iter().find(|row| row.name == name)
}

/// What a name such as `repo2-path` asks for, if its shape is that of a numbered option: the number and the option's
/// name with the number 1.
pub(crate) fn numbered(name: &str) -> Option<(u32, String)> {
    ["repo", "pg"].into_iter().find_map(|prefix| {
        let (digits, rest) = name.strip_prefix(prefix)?.split_once('-')?;
        let number = digits.parse().ok()?;
        Some((number, format!("{prefix}1-{rest}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_has_two_rows_for_one_name() {
        for command in Command::ALL {
            let mut names: Vec<_> = OPTIONS
                .iter()
                .filter(|row| row.commands.contains(&command))
                .map(|row| row.name)
                .collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "{}", command.name());
        }
    }

    #[test]
    fn rows_of_one_name_agree_in_what_the_command_line_must_know() {
        for row in OPTIONS.iter() {
            for other in OPTIONS.iter().filter(|other| other.name == row.name) {
                assert_eq!(row.kind.is_flag(), other.kind.is_flag(), "{}", row.name);
                assert_eq!(
                    (row.secret, row.negatable, row.place),
                    (other.secret, other.negatable, other.place)
                );
            }
        }
    }

    #[test]
    fn a_numbered_option_carries_its_number_in_its_name() {
        for row in OPTIONS.iter() {
            assert_eq!(
                numbered(row.name).is_some(),
                row.group.prefix().is_some(),
                "{}",
                row.name
            );
        }
        assert_eq!(numbered("repo2-path"), Some((2, "repo1-path".to_owned())));
        assert_eq!(numbered("report-path"), None);
    }

    #[test]
    fn what_an_option_needs_is_an_option_of_the_same_commands() {
        for row in OPTIONS.iter() {
            if let Some((needed, _)) = row.needs {
                assert!(
                    row.commands
                        .iter()
                        .all(|command| find(needed, *command).is_some()),
                    "{}",
                    row.name
                );
            }
        }
    }
}
