//! How the rows of the option table begin: which commands take an option, and what kind of option it is.

use super::Command::{
    ArchiveGet, ArchivePush, Backup, Check, Info, Restore, StanzaCreate, StanzaDelete,
    StanzaUpgrade, Start, Stop, Verify, Version,
};
use super::Effect::Nothing;
use super::Kind::Text;
use super::Place::StanzaSection;
use super::{Command, Group, Kind, OptionRow};

/// All that use a repository.
pub(super) const ALL: &[Command] = &[
    ArchiveGet,
    ArchivePush,
    Backup,
    Check,
    Info,
    Restore,
    StanzaCreate,
    StanzaDelete,
    StanzaUpgrade,
    Verify,
];
/// All that do something.
pub(super) const ACTING: &[Command] = &[
    ArchiveGet,
    ArchivePush,
    Backup,
    Check,
    Info,
    Restore,
    StanzaCreate,
    StanzaDelete,
    StanzaUpgrade,
    Start,
    Stop,
    Verify,
];
/// All that read the configuration file.
pub(super) const CONFIGURED: &[Command] = &[
    ArchiveGet,
    ArchivePush,
    Backup,
    Check,
    Info,
    Restore,
    StanzaCreate,
    StanzaDelete,
    StanzaUpgrade,
    Start,
    Stop,
    Verify,
    Version,
];
pub(super) const WITH_CLUSTER: &[Command] = &[
    ArchiveGet,
    ArchivePush,
    Backup,
    Check,
    Restore,
    StanzaCreate,
    StanzaDelete,
    StanzaUpgrade,
];
pub(super) const WITH_SERVER: &[Command] = &[Backup, Check, StanzaCreate, StanzaUpgrade];
pub(super) const ARCHIVE: &[Command] = &[ArchiveGet, ArchivePush];
pub(super) const LEVELS: &[&str] = &["off", "error", "warn", "info", "detail", "debug", "trace"];
pub(super) const TARGETED: &[&str] = &["lsn", "name", "time", "xid"];
/// The recovery types that write settings.
pub(super) const RECOVERING: &[&str] = &[
    "default",
    "immediate",
    "lsn",
    "name",
    "standby",
    "time",
    "xid",
];
pub(super) const ENDED: &[&str] = &["immediate", "lsn", "name", "time", "xid"];

/// An option of single commands.
pub(super) const fn own(
    name: &'static str,
    kind: Kind,
    commands: &'static [Command],
    help: &'static str,
) -> OptionRow {
    OptionRow::new(name, kind, commands, help).group(Group::Command)
}

/// A `repo1-…` option.
pub(super) const fn repo(name: &'static str, kind: Kind, help: &'static str) -> OptionRow {
    OptionRow::new(name, kind, ALL, help).group(Group::Repository)
}

/// A `repo1-…` option that means something only on S3.
pub(super) const fn s3(name: &'static str, kind: Kind, help: &'static str) -> OptionRow {
    repo(name, kind, help).needs("repo1-type", &["s3"])
}

/// A part of the key that stands in the options.
pub(super) const fn shared_key(name: &'static str, help: &'static str) -> OptionRow {
    repo(name, Text, help)
        .needs("repo1-s3-key-type", &["shared"])
        .secret()
}

/// A `repo1-…` option that shapes only pgBackRest's own repository.
pub(super) const fn shape(name: &'static str) -> OptionRow {
    repo(name, Text, "shapes pgBackRest's repository; no effect here").effect(Nothing)
}

/// A `pg1-…` option.
pub(super) const fn pg(
    name: &'static str,
    kind: Kind,
    commands: &'static [Command],
    help: &'static str,
) -> OptionRow {
    OptionRow::new(name, kind, commands, help)
        .group(Group::Stanza)
        .place(StanzaSection)
}
