//! Sizes, summaries and errors, for people and as JSON; the hints live here.
//!
//! Promises: an error is told with its number, its whole chain of causes, and what could be done about it.

use std::error::Error as _;
use std::io::{self, Write};

use pgcairn_engine::actions::{
    self, BackupSummary, ErrorKind, RestoreSummary, StandbyError, StanzaCreateSummary,
    StanzaDeleteSummary,
};
use serde_json::{Value, json};

use crate::error::Error;
use crate::exit;

/// A size as pgBackRest writes it: rounded to one decimal, which goes if it is zero.
pub(crate) fn bytes(size: u64) -> String {
    let mut unit = 1_u64;
    for name in ["B", "KB", "MB", "GB", "TB"] {
        if size < unit.saturating_mul(1024) || name == "TB" {
            let tenths = (u128::from(size) * 10 + u128::from(unit) / 2) / u128::from(unit);
            let rest = tenths % 10;
            let rest = if rest == 0 {
                String::new()
            } else {
                format!(".{rest}")
            };
            return format!("{}{rest}{name}", tenths / 10);
        }
        unit *= 1024;
    }
    size.to_string()
}

/// Number, text, causes and hints of an error, one a line.
pub(crate) fn failure(error: &Error) -> String {
    let mut lines = vec![format!("[{:03}]: {error}", error.code())];
    let mut cause = error.source();
    while let Some(source) = cause {
        lines.push(format!("caused by: {source}"));
        cause = source.source();
    }
    lines.extend(error.hints().iter().map(|hint| format!("HINT: {hint}")));
    lines.join(
        "
",
    )
}

/// Number, text and causes of an error in one line.
pub(crate) fn failure_line(error: &Error) -> String {
    let mut line = format!("[{:03}] {error}", error.code());
    let mut cause = error.source();
    while let Some(source) = cause {
        line = format!("{line}: {source}");
        cause = source.source();
    }
    line
}

/// An error before there is a log.
pub(crate) fn early_failure(error: &Error) -> String {
    format!("ERROR: {}", failure(error).replace('\n', "\n       "))
}

/// A defect of the program that ended it.
pub(crate) fn defect(what: &str) -> String {
    format!(
        "ERROR: [{:03}]: {what}\n       HINT: this is a defect of pgcairn; please report it.",
        exit::INTERNAL
    )
}

/// Writes a line to standard error; there is nobody to tell that it is gone.
pub(crate) fn to_stderr(text: &str) {
    let _gone = io::stderr()
        .lock()
        .write_all(format!("{text}\n").as_bytes());
}

/// Writes a command's result to standard output.
pub(crate) fn to_stdout(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| Error::Output { source })
}

/// What a person could do about an error of the engine.
pub(crate) fn hints(error: &actions::Error) -> Vec<String> {
    use actions::Error::{BackupUnreadable, NotRestorable, WalDamaged, WalMisplaced};
    let hints: &[&str] = match error {
        NotRestorable { begun, .. } => &[
            if *begun {
                "what is in pg1-path now is incomplete and cannot be started; restore into it again, with --delta."
            } else {
                "nothing in pg1-path was changed."
            },
            "if the cluster still exists, a new full backup stores the damaged data again: then this backup can be \
             restored too.",
            "'info' lists the other backups, --set=<label> restores one; those that need the same data fail as this one \
             did.",
        ],
        BackupUnreadable { .. } => &[
            "'info' lists the other backups, --set=<label> restores one of them.",
            "if there is a copy of the repository, put this record back from there.",
        ],
        WalDamaged { .. } | WalMisplaced { .. } => &[
            "recovery cannot go beyond this segment; backups that need it cannot be made consistent.",
            "pg_wal of the primary or of a standby may still hold it: move the damaged object away and push it again.",
        ],
        actions::Error::Standby(problem) => hints_of_standby(problem),
        other => hints_of_kind(other.kind()),
    };
    hints.iter().map(|hint| (*hint).to_owned()).collect()
}

fn hints_of_standby(problem: &StandbyError) -> &'static [&'static str] {
    match problem {
        StandbyError::NoPrimary => &["are all available clusters in recovery?"],
        StandbyError::NoStandby => &[
            "a standby is configured as pg2-path, pg2-socket-path and so on, beside its primary.",
            "--backup-standby=prefer backs up the primary if there is no standby, --no-backup-standby in any case.",
        ],
        StandbyError::SeveralPrimaries { .. } => {
            &["one of them was promoted, or is another cluster: take it out of the configuration."]
        }
        StandbyError::Foreign { .. } => {
            &["do both directories belong to one primary and its standby?"]
        }
        StandbyError::Behind { .. } => &[
            "is replay paused on the standby, or its connection to the primary lost?",
            "archive-timeout is how long a standby that does not progress is waited for.",
        ],
        _ => &[],
    }
}

fn hints_of_kind(kind: ErrorKind) -> &'static [&'static str] {
    match kind {
        ErrorKind::NotARepository | ErrorKind::StorageUnreachable => &[
            "is the repository's path right, and its disk mounted or its store reachable?",
            "stanza-create makes the repository when there is none.",
        ],
        ErrorKind::NotEmpty => &["choose an empty directory for a new repository."],
        ErrorKind::StanzaMissing => &["has a stanza-create been performed?"],
        ErrorKind::StanzaMismatch => &[
            "is this the cluster that the stanza was created for?",
            "after pg_upgrade, stanza-upgrade makes it the stanza's; a new cluster had better get a stanza of its own.",
        ],
        ErrorKind::ArchiveMismatch => {
            &["is pg1-path the data directory of the server that archives?"]
        }
        ErrorKind::WalDuplicate => &[
            "this may be valid in some recovery scenarios but may also indicate a problem: two servers archive to the \
             same stanza.",
        ],
        ErrorKind::ArchiveTimeout => &[
            "check the archive_command to ensure that all options are correct (especially --stanza).",
            "check the PostgreSQL server log for errors.",
        ],
        ErrorKind::WalMissing => &[
            "take a backup: points in time before it and behind the hole cannot be reached.",
            "'info' names every hole.",
        ],
        ErrorKind::ArchiveDisabled => {
            &["archive_mode must be on and wal_level at least replica for an online backup."]
        }
        ErrorKind::ArchiveCommand => {
            &["set archive_command = 'pgcairn --stanza=<stanza> archive-push %p'."]
        }
        ErrorKind::ArchiveMode => {
            &["set archive_mode=on, or --no-archive-mode-check if only one server archives."]
        }
        ErrorKind::ClusterRunning => {
            &["stop PostgreSQL first; --no-online backs up a stopped cluster."]
        }
        ErrorKind::PathNotEmpty => {
            &["--delta restores into a data directory that is there, keeping what is right."]
        }
        ErrorKind::PathMissing => {
            &["create the directory, owned by the user that runs the server."]
        }
        ErrorKind::BackupNotFound => &["'info' lists the backups there are."],
        ErrorKind::TargetUnreachable => {
            &["'info' shows the backups, the WAL of each timeline, and what of it is missing."]
        }
        ErrorKind::TablespaceMap => {
            &["--tablespace-map=<oid or name>=<directory> names another place for it."]
        }
        ErrorKind::LinkMap => &["--link-map=<link>=<path> names another place for it."],
        ErrorKind::DbConnect => &[
            "is the server running?",
            "set pg1-port, pg1-socket-path and pg1-user as the server has them.",
        ],
        ErrorKind::DbMismatch => &["is pg1-path the data_directory of the server on pg1-port?"],
        ErrorKind::FileWrite => &["has this user the right to write there, and is there room?"],
        ErrorKind::Full => &["free space, or move the repository."],
        ErrorKind::TooNew => &["use the newest pgcairn that this repository has been used with."],
        ErrorKind::Denied => &["has this user the right to use the repository?"],
        ErrorKind::Clock => &["set the clock of this machine right."],
        ErrorKind::Damaged => {
            &["if there is a copy of the repository, put the damaged object back from there."]
        }
        _ => &[],
    }
}

/// What a backup did, for people.
pub(crate) fn backup_lines(summary: &BackupSummary) -> Vec<String> {
    let manifest = &summary.manifest;
    let sums = &manifest.sums;
    let mut lines = vec![
        format!("new backup label = {}", manifest.label),
        format!(
            "{} backup size = {}, file total = {}",
            manifest.backup_type.name(),
            bytes(sums.file_bytes),
            sums.files
        ),
        format!(
            "read {}, new {}, added {} to the repository in {:.1} s",
            bytes(sums.read_bytes),
            bytes(sums.new_bytes),
            bytes(sums.stored_bytes),
            summary.seconds
        ),
    ];
    if sums.bad_pages > 0 {
        let pages = if sums.bad_pages == 1 {
            "page has"
        } else {
            "pages have"
        };
        lines.push(format!(
            "{} {pages} an invalid checksum: the cluster itself is damaged there, and so is what this backup restores",
            sums.bad_pages
        ));
    }
    lines
}

/// What a backup did, for programs.
pub(crate) fn backup_json(summary: &BackupSummary) -> Value {
    let manifest = &summary.manifest;
    let sums = &manifest.sums;
    json!({
        "stanza": manifest.stanza,
        "label": manifest.label,
        "type": manifest.backup_type.name(),
        "prior": manifest.prior,
        "files": sums.files,
        "size": sums.file_bytes,
        "read": sums.read_bytes,
        "new": sums.new_bytes,
        "stored": sums.stored_bytes,
        "bad-pages": sums.bad_pages,
        "torn-pages": sums.torn_pages,
        "seconds": summary.seconds,
    })
}

/// What a restore did, for people.
pub(crate) fn restore_lines(summary: &RestoreSummary) -> Vec<String> {
    vec![
        format!("restored backup set {}", summary.label),
        format!(
            "restore size = {}, file total = {}",
            bytes(summary.bytes),
            summary.files
        ),
        format!(
            "fetched {}, written {}, kept {}, removed {} files in {:.1} s, {:.1} s of them to make it durable",
            bytes(summary.fetched_bytes),
            bytes(summary.written_bytes),
            bytes(summary.kept_bytes),
            summary.removed,
            summary.seconds,
            summary.sync_seconds
        ),
    ]
}

/// What a restore did, for programs.
pub(crate) fn restore_json(summary: &RestoreSummary) -> Value {
    json!({
        "label": summary.label,
        "files": summary.files,
        "size": summary.bytes,
        "fetched": summary.fetched_bytes,
        "written": summary.written_bytes,
        "kept": summary.kept_bytes,
        "removed": summary.removed,
        "seconds": summary.seconds,
        "sync-seconds": summary.sync_seconds,
    })
}

/// What stanza-create did, for people.
pub(crate) fn stanza_create_line(
    stanza: &str,
    number: u32,
    summary: &StanzaCreateSummary,
) -> String {
    if summary.created {
        format!(
            "stanza '{stanza}' created on repo{number} for PostgreSQL {}, system id {}",
            summary.version, summary.system_id
        )
    } else {
        format!("stanza '{stanza}' already exists on repo{number} and is valid")
    }
}

/// What stanza-create did, for programs.
pub(crate) fn stanza_create_json(
    stanza: &str,
    number: u32,
    summary: &StanzaCreateSummary,
) -> Value {
    json!({
        "repo": number,
        "stanza": stanza,
        "created": summary.created,
        "archive-id": summary.epoch,
        "system-id": summary.system_id,
        "version": summary.version.to_string(),
    })
}

/// What stanza-delete did, for programs.
pub(crate) fn stanza_delete_json(stanza: &str, summary: StanzaDeleteSummary) -> Value {
    json!({"stanza": stanza, "deleted": true, "backups": summary.backups})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_pgbackrest_writes_them() {
        let written: Vec<_> = [0, 1023, 1024, 1536, 209_261, 23_213_842, 3_118_875, 5 << 30]
            .map(bytes)
            .to_vec();
        assert_eq!(
            written,
            [
                "0B", "1023B", "1KB", "1.5KB", "204.4KB", "22.1MB", "3MB", "5GB"
            ]
        );
        assert_eq!(bytes(u64::MAX), "16777216TB");
    }

    #[test]
    fn an_early_failure_has_number_hint_and_no_time() {
        let error = Error::ValueNotAllowed {
            name: "type",
            value: "foo".to_owned(),
            allowed: &["full", "incr"],
        };
        assert_eq!(
            early_failure(&error),
            "ERROR: [032]: 'foo' is not allowed for 'type' option\n       HINT: allowed values are 'full', 'incr'"
        );
    }

    #[test]
    fn causes_are_told_in_order() {
        let source = io::Error::other("disk on fire");
        let error = Error::LockFile {
            path: "/l".into(),
            source,
        };
        assert_eq!(
            failure(&error),
            "[064]: unable to create lock file '/l'\ncaused by: disk on fire\nHINT: set lock-path to a directory that \
             this user can write."
        );
    }
}
