//! What several repositories make of one action: when it has failed, and what a person is told.
//!
//! Promises: where only one is configured, its own error is told.

use std::fmt;

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::error_kind::ErrorKind;
use crate::actions::open::RepositoryPlace;

/// How one of several repositories failed.
#[derive(Debug)]
pub struct RepositoryFailure {
    /// The repository's number.
    pub number: u32,
    /// What it was.
    pub error: Error,
}

impl fmt::Display for RepositoryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "repo{}: {}", self.number, with_causes(&self.error))
    }
}

/// All failures in one line.
pub(super) fn each(failures: &[RepositoryFailure]) -> String {
    let told: Vec<String> = failures.iter().map(ToString::to_string).collect();
    told.join("; ")
}

/// The kind of several failures: what a person must look into comes before what may pass by itself.
pub(super) fn gravest(failures: &[RepositoryFailure]) -> ErrorKind {
    let kinds = || failures.iter().map(|failure| failure.error.kind());
    let grave = [ErrorKind::WalDuplicate, ErrorKind::ArchiveMismatch]
        .into_iter()
        .find(|grave| kinds().any(|kind| kind == *grave));
    grave
        .or_else(|| kinds().next())
        .unwrap_or(ErrorKind::Internal)
}

/// Without repositories, "in all of them" and "in none of them" would both be true of everything.
pub(super) fn refuse_none(places: &[RepositoryPlace]) -> Result<()> {
    if places.is_empty() {
        return Err(Error::Invalid("no repository is configured".to_owned()));
    }
    Ok(())
}

/// What is to be told of `failures` among `asked` repositories: of an only one, its own error.
pub(super) fn failed_in(
    what: impl FnOnce() -> String,
    mut failures: Vec<RepositoryFailure>,
    asked: usize,
) -> Error {
    match failures.pop() {
        Some(only) if asked == 1 => only.error,
        last => {
            failures.extend(last);
            let what = what();
            Error::Repositories { what, failures }
        }
    }
}
