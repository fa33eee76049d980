//! What can go wrong with an action, in the terms of the person who asked for it.
//!
//! One variant for each situation in which a person (or the program that called us) would do something different. Display
//! is one clause without the cause; the cause is in `source()`. What to do about it is said by `cli/`, from the kind
//! (`error_kind.rs`).

use std::path::PathBuf;

use crate::actions::several::{RepositoryFailure, each};
use crate::actions::standby::StandbyError;
use crate::cluster;
use crate::codec;
use crate::dedup;
use crate::ids::ChunkId;
use crate::pack;
use crate::repository;
use crate::storage;

/// What an action answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an action ended without doing what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The repository layer could not read or write an object.
    #[error("repository cannot be used")]
    Repository(#[source] repository::Error),
    /// The storage could not be opened or listed.
    #[error("storage cannot be used")]
    Storage(#[source] storage::Error),
    /// The chunk index, a local cache, failed.
    #[error("chunk index cannot be used")]
    Index(#[source] dedup::Error),
    /// The data directory or the server could not be read, or refused.
    #[error("cluster cannot be used")]
    Cluster(#[source] cluster::Error),
    /// A chunk could not be packed: what was compressed does not decode to what went in (bad memory, bad codec).
    #[error("{path}: a chunk does not survive compression")]
    Pack {
        /// The file it belongs to.
        path: String,
        /// What is wrong with it.
        source: pack::Error,
    },
    /// A backup cannot be restored, because something that it needs is damaged.
    #[error("backup {label} cannot be restored")]
    NotRestorable {
        /// The backup.
        label: String,
        /// The target was changed already; until a restore of it succeeds, nothing in it can be started.
        begun: bool,
        /// What is damaged.
        source: Box<Error>,
    },
    /// The record of a backup cannot be read: whether there is such a backup, and what it needs, is not known.
    #[error("the record of backup {label} cannot be read")]
    BackupUnreadable {
        /// The backup.
        label: String,
        /// What is wrong with the record.
        source: Box<repository::Error>,
    },
    /// A chunk that a backup needs cannot be had from any copy.
    #[error("chunk {chunk} of {needed_by} is damaged or missing")]
    ChunkLost {
        /// The chunk.
        chunk: ChunkId,
        /// The file or tree that needs it.
        needed_by: String,
        /// What the last copy looked like; none where no copy is known.
        source: Option<Box<Error>>,
    },
    /// A copy of a chunk is not what its place in the repository says.
    #[error("{key} at offset {offset} is damaged")]
    CopyDamaged {
        /// The pack.
        key: String,
        /// Where in it the chunk's frame begins.
        offset: u32,
        /// What is wrong with it.
        source: pack::Error,
    },
    /// A pack's footer is not readable.
    #[error("{key} is damaged")]
    PackDamaged {
        /// The pack.
        key: String,
        /// What is wrong with it.
        source: pack::Error,
    },
    /// A tree node's bytes are no tree node.
    #[error("tree node {node} of backup {label} is damaged")]
    TreeDamaged {
        /// The node.
        node: ChunkId,
        /// The backup.
        label: String,
        /// What is wrong with it.
        source: repository::tree::TreeError,
    },
    /// An entry of the cluster that a tree cannot hold.
    #[error("a file cannot be described in the backup")]
    Entry(#[from] repository::tree::TreeError),
    /// A path in a tree that must not be there.
    #[error("backup {label} holds the path {path:?}, which restore refuses")]
    BadPath {
        /// The backup.
        label: String,
        /// The path.
        path: String,
    },
    /// A local file of ours could not be used.
    #[error("{doing} {path}")]
    Local {
        /// `write`, `read`, …
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file of the cluster could not be read.
    #[error("read {path}")]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file could not be written while restoring.
    #[error("write {path}")]
    WriteFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// No such stanza in the repository.
    #[error("stanza {stanza} does not exist in {place}")]
    StanzaMissing {
        /// The stanza.
        stanza: String,
        /// The repository.
        place: String,
    },
    /// The cluster at hand is not the one the stanza was made for.
    #[error(
        "stanza {stanza} is for PostgreSQL {expected_version} with system id {expected}, the cluster in {pgdata} is PostgreSQL {found_version} with system id {found}"
    )]
    ForeignCluster {
        /// The stanza.
        stanza: String,
        /// The system id of the stanza's newest epoch.
        expected: u64,
        /// Its major version.
        expected_version: u32,
        /// The system id found.
        found: u64,
        /// The major version found.
        found_version: u32,
        /// Where.
        pgdata: PathBuf,
        /// Whether it was about its WAL, not about a backup.
        archiving: bool,
    },
    /// A WAL file whose header is not of this cluster.
    #[error("{path} is not WAL of this cluster: {found}")]
    ForeignWal {
        /// The file.
        path: PathBuf,
        /// What its header says.
        found: String,
    },
    /// A WAL file of this name with other content is in the archive already.
    #[error("{name} is in the archive of stanza {stanza} already, with other content")]
    WalDuplicate {
        /// The file's name.
        name: String,
        /// The stanza.
        stanza: String,
    },
    /// A WAL object's content is damaged.
    #[error("{key} is damaged")]
    WalDamaged {
        /// Its key.
        key: String,
        /// What is wrong with it.
        source: pack::Error,
    },
    /// A WAL object is whole, and is not the file that it is named after.
    #[error("{key} holds another file: {found}")]
    WalMisplaced {
        /// Its key.
        key: String,
        /// What its header says.
        found: String,
    },
    /// A segment in the spool is not what it should be.
    #[error("{name} in the spool cannot be used: {found}")]
    Spooled {
        /// The segment.
        name: String,
        /// What is wrong with it.
        found: String,
    },
    /// Whether more WAL exists cannot be told.
    #[error("{name} is not in the archive, but this is not the end of the WAL: {evidence}")]
    WalHole {
        /// The file's name.
        name: String,
        /// What says so.
        evidence: String,
    },
    /// Of several repositories, some failed, and without them the answer is not known or the work not done.
    #[error("{what}: {}", each(failures))]
    Repositories {
        /// What follows from it.
        what: String,
        /// Those that failed.
        failures: Vec<RepositoryFailure>,
    },
    /// A cluster that was stopped while it recovered lacks WAL of its own.
    #[error(
        "{pgdata} was stopped while it recovered, and {name}, which it needs, is not whole in its pg_wal"
    )]
    LocalWalMissing {
        /// The WAL file.
        name: String,
        /// The data directory.
        pgdata: PathBuf,
    },
    /// A name that PostgreSQL never archives.
    #[error("{0:?} is not the name of a WAL file")]
    NotWal(String),
    /// A WAL segment did not reach the archive in time.
    #[error("WAL segment {segment} did not reach the archive within {seconds} s")]
    ArchiveTimeout {
        /// The segment.
        segment: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The server does not archive.
    #[error("archive_mode must be on, it is {0:?}")]
    ArchiveDisabled(String),
    /// The server archives on standbys too.
    #[error("archive_mode=always is not supported")]
    ArchiveAlways,
    /// The server archives with another command.
    #[error("archive_command must call pgcairn archive-push, it is {0:?}")]
    ArchiveCommand(String),
    /// `wal_level` is too low for an online backup.
    #[error("wal_level must be replica or logical, it is {0:?}")]
    WalLevel(String),
    /// A server runs in the directory.
    #[error("PostgreSQL is running in {0}")]
    ClusterRunning(PathBuf),
    /// The server at hand does not run in the configured directory.
    #[error("the server runs in {server}, pg1-path is {configured}")]
    DifferentDirectory {
        /// What the server says.
        server: PathBuf,
        /// What was configured.
        configured: PathBuf,
    },
    /// The server and the files at hand are not the same cluster.
    #[error(
        "{what} differs between the server and the files in {pgdata}: is this the same cluster?"
    )]
    DifferentCluster {
        /// What differs.
        what: &'static str,
        /// The data directory.
        pgdata: PathBuf,
    },
    /// The target holds files, and neither `--delta` nor `--force` was given.
    #[error("{0} is not empty")]
    TargetNotEmpty(PathBuf),
    /// The target does not look like a data directory, so nothing in it is removed.
    #[error("{0} is not empty and is no PostgreSQL data directory")]
    TargetNotACluster(PathBuf),
    /// The target's marker names another backup's restore, or another repository.
    #[error("{path} holds {found}, which is another cluster than the backup's ({expected})")]
    TargetForeign {
        /// The target.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What is to be restored.
        expected: String,
    },
    /// A path that restore needs does not exist or is no directory.
    #[error("{0} does not exist or is not a directory")]
    TargetMissing(PathBuf),
    /// No backup fits.
    #[error("no backup to restore: {0}")]
    BackupNotFound(String),
    /// No way leads from any backup to the recovery target.
    #[error("{target} cannot be reached: {why}")]
    TargetUnreachable {
        /// The target.
        target: String,
        /// What is in the way, and what can be reached.
        why: String,
    },
    /// WAL behind the newest backup is missing.
    #[error("WAL from {first} to {last} is missing behind backup {backup}")]
    WalMissing {
        /// The first segment that is missing.
        first: String,
        /// The last one.
        last: String,
        /// The backup.
        backup: String,
    },
    /// The clocks of this machine and of the store differ.
    #[error("the store's clock is {seconds} s away from this machine's")]
    ClocksApart {
        /// By how much.
        seconds: u64,
    },
    /// There is hardly any room left for the spool.
    #[error("{path} has {free_bytes} bytes left")]
    SpoolFull {
        /// The spool's folder.
        path: PathBuf,
        /// What is free.
        free_bytes: u64,
    },
    /// A timeline history file in the archive is damaged.
    #[error("{name} in the archive is damaged")]
    HistoryDamaged {
        /// The file's name.
        name: String,
        /// What is wrong with it.
        source: cluster::timeline_history::BadHistory,
    },
    /// A tablespace cannot go where it was, and was not mapped.
    #[error("tablespace {tablespace} cannot be restored to {path}: {why}")]
    TablespacePath {
        /// Its oid and name.
        tablespace: String,
        /// The recorded or mapped path.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A mapping names a tablespace that the backup does not have.
    #[error("--tablespace-map names {0}, which the backup does not have")]
    UnknownTablespace(String),
    /// A link cannot be restored where it pointed to.
    #[error("link {link} cannot be restored to {path}: {why}")]
    LinkPath {
        /// The link, relative to the data directory.
        link: String,
        /// Where it points to.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A mapping names a link that the backup does not have.
    #[error("--link-map names {0}, which is no link in the backup")]
    UnknownLink(String),
    /// The label of a backup lies in the future.
    #[error("the newest backup, {newest}, is more than an hour ahead of this machine's clock")]
    ClockBehind {
        /// The newest label.
        newest: String,
    },
    /// What the backup references was removed while it ran.
    #[error("pack {pack}, which this backup needs, was removed while it ran")]
    PackVanished {
        /// The pack.
        pack: String,
    },
    /// Another process decided this run's register.
    #[error("backup {label} was fenced: another process took it for dead")]
    Fenced {
        /// Its label.
        label: String,
    },
    /// The register is larger than a register may be, or cannot be encoded.
    #[error("record cannot be encoded")]
    Record(#[source] codec::Error),
    /// The server was promoted, or changed its timeline, during the backup.
    #[error("the server changed during the backup: {0}")]
    ServerChanged(String),
    /// A backup cannot be copied from a standby.
    #[error(transparent)]
    Standby(#[from] StandbyError),
    /// An option's value makes no sense here.
    #[error("{0}")]
    Invalid(String),
    /// Another thread of this action failed first.
    #[error("cancelled")]
    Cancelled,
    /// The system refused random bits.
    #[error("no random bits")]
    Random(#[source] getrandom::Error),
}

impl Error {
    /// Whether data of a backup is missing or damaged, as opposed to a storage that does not answer.
    pub(super) fn is_damage(&self) -> bool {
        matches!(
            self,
            Error::ChunkLost { .. }
                | Error::CopyDamaged { .. }
                | Error::PackDamaged { .. }
                | Error::TreeDamaged { .. }
        )
    }
}

/// An error and its causes, in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        line = format!("{line}: {source}");
        cause = source.source();
    }
    line
}
