//! Exit codes: pgBackRest's numbers, and the two rules of the archive commands.
//!
//! Promises: 0 is done; `archive-get` answers 1 only for "not there"; every other failure of it is [`CANNOT_TELL`],
//! because PostgreSQL takes any code up to 125 for the end of the archive and would promote without the rest of the
//! WAL; only a standby, which retries and which a code above 125 would stop, gets the number itself. All other commands
//! stay at or below 125.

use std::path::Path;

use pgcairn_engine::actions::ErrorKind;

use crate::options::Command;

pub(crate) const NOT_THERE: u8 = 1;
pub(crate) const INTERNAL: u8 = 25;
pub(crate) const DAMAGED: u8 = 26;
pub(crate) const FORMAT: u8 = 29;
pub(crate) const OPTION_INVALID: u8 = 31;
pub(crate) const OPTION_VALUE: u8 = 32;
pub(crate) const OPTION_REQUIRED: u8 = 37;
pub(crate) const CLUSTER_RUNNING: u8 = 38;
pub(crate) const PATH_NOT_EMPTY: u8 = 40;
pub(crate) const FILE_READ: u8 = 42;
pub(crate) const PARAMETER_REQUIRED: u8 = 43;
pub(crate) const ARCHIVE_MISMATCH: u8 = 44;
pub(crate) const WAL_DUPLICATE: u8 = 45;
pub(crate) const TOO_NEW: u8 = 46;
pub(crate) const COMMAND_INVALID: u8 = 48;
pub(crate) const LOCKED: u8 = 50;
pub(crate) const BACKUP_MISMATCH: u8 = 51;
pub(crate) const FILE_MISSING: u8 = 55;
pub(crate) const DB_CONNECT: u8 = 56;
pub(crate) const DB_QUERY: u8 = 57;
pub(crate) const DB_MISMATCH: u8 = 58;
pub(crate) const STOPPED: u8 = 62;
pub(crate) const FILE_WRITE: u8 = 64;
pub(crate) const ARCHIVE_MODE: u8 = 67;
pub(crate) const ARCHIVE_COMMAND: u8 = 68;
pub(crate) const PATH_MISSING: u8 = 73;
pub(crate) const BACKUP_SET: u8 = 75;
pub(crate) const TABLESPACE_MAP: u8 = 76;
pub(crate) const LINK_MAP: u8 = 78;
pub(crate) const ARCHIVE_TIMEOUT: u8 = 82;
pub(crate) const ARCHIVE_DISABLED: u8 = 87;
pub(crate) const PARAMETER_INVALID: u8 = 96;
pub(crate) const REPOSITORY_UNREACHABLE: u8 = 103;
pub(crate) const DENIED: u8 = 105;
pub(crate) const CLOCK: u8 = 106;
/// What `archive-get` exits with when it cannot tell whether the segment is there: fatal to PostgreSQL's recovery.
pub(crate) const CANNOT_TELL: u8 = 126;

/// The numbers that a person may meet, each with the sentence that `help` prints.
pub(crate) const SENTENCES: &[(u8, &str)] = &[
    (0, "done"),
    (
        NOT_THERE,
        "archive-get only: the WAL segment is not in the archive",
    ),
    (INTERNAL, "a defect of the program"),
    (DAMAGED, "what is stored or what was read is damaged"),
    (FORMAT, "a file or a text has an invalid format"),
    (
        OPTION_INVALID,
        "an option is unknown, misplaced, or asks for what is not supported",
    ),
    (OPTION_VALUE, "an option has an invalid value"),
    (OPTION_REQUIRED, "a required option is missing"),
    (CLUSTER_RUNNING, "the cluster is running"),
    (PATH_NOT_EMPTY, "a directory that must be empty is not"),
    (FILE_READ, "a file cannot be read"),
    (PARAMETER_REQUIRED, "a required parameter is missing"),
    (ARCHIVE_MISMATCH, "the WAL does not belong to the stanza"),
    (
        WAL_DUPLICATE,
        "a WAL segment of this name with other content is in the archive",
    ),
    (
        TOO_NEW,
        "the repository needs a newer pgcairn, or the server's version is not supported",
    ),
    (COMMAND_INVALID, "the command is unknown"),
    (LOCKED, "another pgcairn process holds the lock"),
    (BACKUP_MISMATCH, "the cluster does not belong to the stanza"),
    (FILE_MISSING, "a file, a stanza or a repository is missing"),
    (DB_CONNECT, "no connection to the server"),
    (DB_QUERY, "the server refused a query"),
    (DB_MISMATCH, "the server does not run on pg1-path"),
    (STOPPED, "the stanza is stopped on this host"),
    (FILE_WRITE, "a file cannot be written"),
    (
        ARCHIVE_MODE,
        "archive_mode has a value that is not supported",
    ),
    (ARCHIVE_COMMAND, "archive_command does not call pgcairn"),
    (PATH_MISSING, "a directory is missing"),
    (
        BACKUP_SET,
        "there is no such backup, or none from which the recovery target is reached",
    ),
    (
        TABLESPACE_MAP,
        "a tablespace cannot be restored where it should go",
    ),
    (LINK_MAP, "a link cannot be restored where it should go"),
    (
        ARCHIVE_TIMEOUT,
        "a WAL segment did not arrive in the archive in time",
    ),
    (ARCHIVE_DISABLED, "archive_mode is off"),
    (PARAMETER_INVALID, "a parameter is not allowed"),
    (REPOSITORY_UNREACHABLE, "the repository cannot be reached"),
    (DENIED, "the repository denies access"),
    (CLOCK, "the clock is wrong"),
    (
        CANNOT_TELL,
        "archive-get only: it cannot tell whether the WAL segment is in the archive",
    ),
];

/// The number of an error of the engine.
pub(crate) fn of_engine(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::NotARepository | ErrorKind::StanzaMissing | ErrorKind::FileMissing => {
            FILE_MISSING
        }
        ErrorKind::NotEmpty | ErrorKind::PathNotEmpty => PATH_NOT_EMPTY,
        ErrorKind::StanzaMismatch => BACKUP_MISMATCH,
        ErrorKind::ArchiveMismatch => ARCHIVE_MISMATCH,
        ErrorKind::WalDuplicate => WAL_DUPLICATE,
        ErrorKind::ArchiveTimeout => ARCHIVE_TIMEOUT,
        ErrorKind::WalMissing => FILE_MISSING,
        ErrorKind::ArchiveDisabled => ARCHIVE_DISABLED,
        ErrorKind::ArchiveCommand => ARCHIVE_COMMAND,
        ErrorKind::ArchiveMode => ARCHIVE_MODE,
        ErrorKind::ClusterRunning => CLUSTER_RUNNING,
        ErrorKind::PathMissing => PATH_MISSING,
        ErrorKind::BackupNotFound | ErrorKind::TargetUnreachable => BACKUP_SET,
        ErrorKind::TablespaceMap => TABLESPACE_MAP,
        ErrorKind::LinkMap => LINK_MAP,
        ErrorKind::DbConnect => DB_CONNECT,
        ErrorKind::DbQuery => DB_QUERY,
        ErrorKind::DbMismatch => DB_MISMATCH,
        ErrorKind::FileRead => FILE_READ,
        ErrorKind::FileWrite | ErrorKind::Full => FILE_WRITE,
        ErrorKind::Damaged => DAMAGED,
        ErrorKind::Format => FORMAT,
        ErrorKind::TooNew => TOO_NEW,
        ErrorKind::StorageUnreachable => REPOSITORY_UNREACHABLE,
        ErrorKind::Denied => DENIED,
        ErrorKind::Locked => LOCKED,
        ErrorKind::Clock => CLOCK,
        ErrorKind::Invalid => OPTION_VALUE,
        // The kinds may grow; a new one is told as what it is not known to be.
        _ => INTERNAL,
    }
}

/// The code with which a command exits that failed with `number`.
pub(crate) fn for_failure(command: Option<Command>, number: u8, standby: bool) -> u8 {
    match command {
        Some(Command::ArchiveGet) if standby && number != NOT_THERE => number,
        Some(Command::ArchiveGet) => CANNOT_TELL,
        _ => number.min(125),
    }
}

/// Whether the data directory is a standby's. PostgreSQL runs `restore_command` in the data directory, so the current
/// directory answers when the options cannot.
pub(crate) fn is_standby(pgdata: Option<&Path>) -> bool {
    match pgdata {
        Some(pgdata) => pgdata.join("standby.signal").exists(),
        None => Path::new("standby.signal").exists() && Path::new("PG_VERSION").exists(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_get_turns_every_failure_into_a_fatal_one_except_on_a_standby() {
        for (number, _) in SENTENCES {
            assert_eq!(
                for_failure(Some(Command::ArchiveGet), *number, false),
                CANNOT_TELL
            );
        }
        assert_eq!(
            for_failure(Some(Command::ArchiveGet), REPOSITORY_UNREACHABLE, true),
            REPOSITORY_UNREACHABLE
        );
        assert_eq!(
            for_failure(Some(Command::ArchiveGet), NOT_THERE, true),
            CANNOT_TELL
        );
    }

    #[test]
    fn other_commands_never_exceed_125() {
        assert_eq!(
            for_failure(Some(Command::ArchivePush), CANNOT_TELL, false),
            125
        );
        assert_eq!(for_failure(Some(Command::Backup), LOCKED, false), LOCKED);
        assert_eq!(for_failure(None, OPTION_INVALID, false), OPTION_INVALID);
    }

    #[test]
    fn every_number_of_an_engine_error_has_a_sentence() {
        for kind in [
            ErrorKind::WalDuplicate,
            ErrorKind::Internal,
            ErrorKind::Damaged,
            ErrorKind::Full,
        ] {
            assert!(
                SENTENCES
                    .iter()
                    .any(|(number, _)| *number == of_engine(kind))
            );
        }
        assert_eq!(of_engine(ErrorKind::StanzaMismatch), 51);
        assert_eq!(of_engine(ErrorKind::ArchiveMismatch), 44);
    }

    #[test]
    fn numbers_are_listed_once_and_in_order() {
        assert!(SENTENCES.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
