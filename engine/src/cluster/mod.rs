//! PostgreSQL: the data directory, the control file, the server, pages, recovery settings.
//!
//! **Knows**: what PostgreSQL 13 to 18 keep where, and what a physical copy takes, skips and rewrites. **Does not
//! know**: repositories, chunks, threads. **Invariants**: reading never changes the cluster; writing happens beneath an
//! opened [`root::Root`] only; every error names the path, or the purpose of the query.

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

pub mod backup_label;
pub mod control_file;
pub mod data_dir;
pub mod owner;
pub mod page;
pub mod recovery;
pub mod relation;
pub mod root;
pub mod rules;
pub mod running;
pub mod server;
pub mod timeline_history;
pub mod wal_header;

/// The major versions of PostgreSQL that are supported.
pub const SUPPORTED: RangeInclusive<u32> = 13..=18;

/// What the cluster layer answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something about a cluster could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory of the cluster could not be used.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done: `open`, `list`, …
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The control file never passed its own checksum, or says something impossible.
    #[error("{} is damaged: {what}", path.display())]
    ControlFile {
        /// The control file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A cluster of a version that is not supported.
    #[error(
        "{} is of an unsupported version of PostgreSQL (control version {control_version}, catalog version {catalog_version})",
        path.display()
    )]
    UnsupportedCluster {
        /// The control file.
        path: PathBuf,
        /// `pg_control_version`.
        control_version: u32,
        /// `catalog_version_no`.
        catalog_version: u32,
    },
    /// A server of a version that is not supported.
    #[error("the server is of an unsupported version of PostgreSQL ({version_num})")]
    UnsupportedServer {
        /// `server_version_num`, for example 150004.
        version_num: u32,
    },
    /// A server runs on this data directory, or it cannot be ruled out.
    #[error("a server may be running on {} ({})", pgdata.display(), describe_pid(*pid))]
    Running {
        /// The data directory.
        pgdata: PathBuf,
        /// The process that `postmaster.pid` names, where it names one.
        pid: Option<u32>,
    },
    /// No connection to the server.
    #[error("connect to PostgreSQL at {place}")]
    Connect {
        /// Where it was looked for.
        place: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused a query, or the connection broke.
    #[error("{purpose}")]
    Query {
        /// What the query was for.
        purpose: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server became a primary or a standby while it was used.
    #[error("the server was {} and is {} now", role(*was_standby), role(!*was_standby))]
    RoleChanged {
        /// What it was when the connection was made.
        was_standby: bool,
    },
    /// A `backup_label` that says nothing usable.
    #[error("the backup label has no valid line {line:?}")]
    BackupLabel {
        /// The line that is missing or malformed.
        line: &'static str,
    },
    /// A path that may lead out of the directory it belongs in.
    #[error("{path:?} is not a path beneath {}", root.display())]
    UnsafePath {
        /// The directory.
        root: PathBuf,
        /// The path, as far as it is text.
        path: String,
    },
    /// A recovery setting that cannot be written into a configuration file.
    #[error(
        "the recovery setting {name:?} has a name or value that PostgreSQL could not read back"
    )]
    Setting {
        /// Its name.
        name: String,
    },
}

impl Error {
    /// The failure of `doing` something with a file.
    pub(crate) fn file(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Error::File {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

fn describe_pid(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "postmaster.pid is not readable as one".to_owned(),
        |pid| format!("process {pid}"),
    )
}

fn role(standby: bool) -> &'static str {
    if standby { "a standby" } else { "a primary" }
}
