//! What kind of situation an error of an action is: what a program branches on, and what becomes its number.
//!
//! Promises: one table from errors to kinds, in which a new error has to be placed.

use crate::actions::error::Error;
use crate::actions::several::gravest;
use crate::cluster;
use crate::codec;
use crate::repository;
use crate::storage;

/// What a caller may want to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No repository there.
    NotARepository,
    /// A directory that should be empty is not.
    NotEmpty,
    /// The stanza is not in the repository.
    StanzaMissing,
    /// Another cluster than the stanza's.
    StanzaMismatch,
    /// WAL of another cluster.
    ArchiveMismatch,
    /// Same WAL name, other content.
    WalDuplicate,
    /// WAL is missing that points in time need.
    WalMissing,
    /// WAL did not arrive.
    ArchiveTimeout,
    /// `archive_mode` is off.
    ArchiveDisabled,
    /// `archive_command` is not ours.
    ArchiveCommand,
    /// `archive_mode` is `always`.
    ArchiveMode,
    /// A server runs there.
    ClusterRunning,
    /// The restore target is not empty.
    PathNotEmpty,
    /// The restore target does not exist.
    PathMissing,
    /// No backup fits.
    BackupNotFound,
    /// No backup reaches the recovery target.
    TargetUnreachable,
    /// A tablespace has no place to go.
    TablespaceMap,
    /// A link has no place to go.
    LinkMap,
    /// The server cannot be reached.
    DbConnect,
    /// A query failed.
    DbQuery,
    /// Server and files are different clusters.
    DbMismatch,
    /// A needed file is missing.
    FileMissing,
    /// A file could not be read.
    FileRead,
    /// A file could not be written.
    FileWrite,
    /// Something in the repository is damaged.
    Damaged,
    /// Something is not in the format it should have.
    Format,
    /// Written by a newer program, or for a PostgreSQL that is not supported.
    TooNew,
    /// The storage does not answer.
    StorageUnreachable,
    /// The storage forbids it.
    Denied,
    /// The storage is full.
    Full,
    /// Another process is at it.
    Locked,
    /// This machine's clock is wrong.
    Clock,
    /// A value makes no sense.
    Invalid,
    /// A bug, or a machine that cannot be trusted.
    Internal,
}

impl Error {
    /// What kind of situation this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Repository(source) => repository_kind(source),
            Error::Storage(source) => storage_kind(source),
            Error::Cluster(source) => cluster_kind(source),
            Error::Index(_)
            | Error::Pack { .. }
            | Error::Cancelled
            | Error::Random(_)
            | Error::Fenced { .. } => ErrorKind::Internal,
            Error::TreeDamaged {
                source: repository::tree::TreeError::TooNew(_),
                ..
            } => ErrorKind::TooNew,
            Error::ChunkLost { .. }
            | Error::CopyDamaged { .. }
            | Error::PackDamaged { .. }
            | Error::TreeDamaged { .. }
            | Error::WalDamaged { .. }
            | Error::HistoryDamaged { .. }
            | Error::WalMisplaced { .. }
            | Error::Spooled { .. }
            | Error::PackVanished { .. } => ErrorKind::Damaged,
            Error::NotRestorable { source, .. } => source.kind(),
            Error::BackupUnreadable { source, .. } => repository_kind(source),
            Error::BadPath { .. } | Error::Entry(_) | Error::Record(_) | Error::NotWal(_) => {
                ErrorKind::Format
            }
            Error::Local { .. } | Error::WriteFile { .. } => ErrorKind::FileWrite,
            Error::ReadFile { .. } => ErrorKind::FileRead,
            Error::StanzaMissing { .. } => ErrorKind::StanzaMissing,
            Error::ForeignCluster {
                archiving: true, ..
            }
            | Error::ForeignWal { .. } => ErrorKind::ArchiveMismatch,
            Error::ForeignCluster { .. } => ErrorKind::StanzaMismatch,
            Error::WalDuplicate { .. } => ErrorKind::WalDuplicate,
            Error::WalHole { .. } | Error::LocalWalMissing { .. } => ErrorKind::FileMissing,
            Error::Repositories { failures, .. } => gravest(failures),
            Error::ArchiveTimeout { .. } => ErrorKind::ArchiveTimeout,
            Error::ArchiveDisabled(_) | Error::WalLevel(_) => ErrorKind::ArchiveDisabled,
            Error::ArchiveAlways => ErrorKind::ArchiveMode,
            Error::ArchiveCommand(_) => ErrorKind::ArchiveCommand,
            Error::ClusterRunning(_) => ErrorKind::ClusterRunning,
            Error::DifferentDirectory { .. }
            | Error::DifferentCluster { .. }
            | Error::ServerChanged(_) => ErrorKind::DbMismatch,
            Error::TargetNotEmpty(_)
            | Error::TargetNotACluster(_)
            | Error::TargetForeign { .. } => ErrorKind::PathNotEmpty,
            Error::TargetMissing(_) => ErrorKind::PathMissing,
            Error::BackupNotFound(_) => ErrorKind::BackupNotFound,
            Error::TargetUnreachable { .. } => ErrorKind::TargetUnreachable,
            Error::TablespacePath { .. } | Error::UnknownTablespace(_) => ErrorKind::TablespaceMap,
            Error::LinkPath { .. } | Error::UnknownLink(_) => ErrorKind::LinkMap,
            Error::ClockBehind { .. } | Error::ClocksApart { .. } => ErrorKind::Clock,
            Error::WalMissing { .. } => ErrorKind::WalMissing,
            Error::SpoolFull { .. } => ErrorKind::Full,
            Error::Standby(problem) => problem.kind(),
            Error::Invalid(_) => ErrorKind::Invalid,
        }
    }
}

fn repository_kind(error: &repository::Error) -> ErrorKind {
    match error {
        repository::Error::NotARepository { .. } => ErrorKind::NotARepository,
        repository::Error::NotEmpty { .. } => ErrorKind::NotEmpty,
        repository::Error::Storage { source }
        | repository::Error::OutcomeUnknown { source, .. } => storage_kind(source),
        repository::Error::Record {
            source: codec::Error::TooNew { .. } | codec::Error::RequiredField { .. },
            ..
        } => ErrorKind::TooNew,
        repository::Error::Record { .. }
        | repository::Error::Tree { .. }
        | repository::Error::GcLog { .. } => ErrorKind::Damaged,
        repository::Error::Name { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Format,
    }
}

fn storage_kind(error: &storage::Error) -> ErrorKind {
    match error.kind {
        storage::ErrorKind::NotFound => ErrorKind::FileMissing,
        storage::ErrorKind::Truncated => ErrorKind::Damaged,
        storage::ErrorKind::Denied => ErrorKind::Denied,
        storage::ErrorKind::Full => ErrorKind::Full,
        storage::ErrorKind::Unreachable => ErrorKind::StorageUnreachable,
        _ => ErrorKind::FileWrite,
    }
}

fn cluster_kind(error: &cluster::Error) -> ErrorKind {
    match error {
        cluster::Error::Running { .. } => ErrorKind::ClusterRunning,
        cluster::Error::Connect { .. } => ErrorKind::DbConnect,
        cluster::Error::Query { .. } => ErrorKind::DbQuery,
        cluster::Error::RoleChanged { .. } => ErrorKind::DbMismatch,
        cluster::Error::ControlFile { .. } | cluster::Error::BackupLabel { .. } => {
            ErrorKind::Format
        }
        cluster::Error::UnsupportedCluster { .. } | cluster::Error::UnsupportedServer { .. } => {
            ErrorKind::TooNew
        }
        cluster::Error::UnsafePath { .. } | cluster::Error::Setting { .. } => ErrorKind::Invalid,
        _ => ErrorKind::FileRead,
    }
}
