//! Making a stanza, and finding the epoch of a cluster in one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::actions::error::{Error, Result};
use crate::actions::online::check_same;
use crate::actions::probe::{RACES_AT_CREATION, probe};
use crate::cluster::control_file::{self, ControlFile};
use crate::cluster::server::Server;
use crate::monitor::{Monitor, Problem};
use crate::repository::stanza::{self, Epoch};
use crate::repository::{self, Repository, layout};
use crate::storage::Storage;

/// What follows for a store without put-if-absent.
const WITHOUT_PUT_IF_ABSENT: &str = "of racing puts of one key this store lets several succeed: every put looks first whether the \
     object is there, which costs a request, and only one host may write to this repository at a time; two that do can \
     each lose what the other wrote";

/// What a stanza is made for.
#[derive(Debug, Clone)]
pub struct StanzaCreateOptions {
    /// Its name.
    pub stanza: String,
    /// The cluster's data directory.
    pub pgdata: PathBuf,
}

/// What was made, or found to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StanzaCreateSummary {
    /// The epoch's name, as `15-1`.
    pub epoch: String,
    /// The cluster's system identifier.
    pub system_id: u64,
    /// Its major version.
    pub version: u32,
    /// Whether it was made now.
    pub created: bool,
}

/// Makes the repository if there is none, and the stanza if it has none; doing it again changes nothing.
pub fn stanza_create(
    storage: Arc<dyn Storage>,
    options: &StanzaCreateOptions,
    server: Option<&mut dyn Server>,
    monitor: &dyn Monitor,
) -> Result<StanzaCreateSummary> {
    layout::check_stanza_name(&options.stanza).map_err(Error::Repository)?;
    let control = cluster_of(options, server)?;
    let repository = repository_in(storage)?;
    if !repository.config.capabilities.put_if_absent {
        monitor.problem(&Problem {
            object: repository.storage.describe(),
            message: WITHOUT_PUT_IF_ABSENT.to_owned(),
        });
    }
    let epochs = stanza::epochs(&repository, &options.stanza).map_err(Error::Repository)?;
    if let Some(newest) = epochs.last() {
        check_epoch(newest, &options.stanza, &control, &options.pgdata)?;
        monitor.note(&format!(
            "stanza {} exists already and is valid",
            options.stanza
        ));
        return Ok(summary(newest, false));
    }
    let epoch = stanza::add_epoch(
        &repository,
        &options.stanza,
        control.system_id,
        control.version,
    )
    .map_err(Error::Repository)?;
    check_epoch(&epoch, &options.stanza, &control, &options.pgdata)?;
    Ok(summary(&epoch, true))
}

/// Opens the repository that is there, and completes one whose creation was interrupted; else makes one in an empty storage.
fn repository_in(storage: Arc<dyn Storage>) -> Result<Repository> {
    let made = match repository::open(Arc::clone(&storage)) {
        Ok(found) => repository::complete(found),
        Err(repository::Error::NotARepository { .. }) => {
            repository::refuse_foreign_objects(storage.as_ref()).map_err(Error::Repository)?;
            let seen = probe(storage.as_ref(), RACES_AT_CREATION)?;
            repository::create(storage, seen.capabilities, seen.now_ms)
        }
        Err(error) => Err(error),
    };
    made.map_err(Error::Repository)
}

/// Makes the cluster at hand the stanza's newest epoch, after `pg_upgrade` or a new `initdb`; the stanza must exist. What
/// earlier epochs hold stays as it is.
pub fn stanza_upgrade(
    repository: &Repository,
    options: &StanzaCreateOptions,
    server: Option<&mut dyn Server>,
) -> Result<StanzaCreateSummary> {
    let control = cluster_of(options, server)?;
    let before = epochs_of(repository, &options.stanza)?;
    let epoch = stanza::add_epoch(
        repository,
        &options.stanza,
        control.system_id,
        control.version,
    )
    .map_err(Error::Repository)?;
    let created = before.iter().all(|old| old.n != epoch.n);
    Ok(summary(&epoch, created))
}

/// The cluster in the data directory, which must be the server's if there is one.
fn cluster_of(
    options: &StanzaCreateOptions,
    server: Option<&mut dyn Server>,
) -> Result<ControlFile> {
    let control = control_file::read(&options.pgdata).map_err(Error::Cluster)?;
    if let Some(server) = server {
        let identity = server.identity().map_err(Error::Cluster)?;
        check_same(&identity, &options.pgdata, &control)?;
    }
    Ok(control)
}

fn summary(epoch: &Epoch, created: bool) -> StanzaCreateSummary {
    StanzaCreateSummary {
        epoch: epoch.name(),
        system_id: epoch.system_id,
        version: epoch.version,
        created,
    }
}

/// The newest epoch of a stanza, which must be that of the cluster at hand.
pub(super) fn epoch_of(
    repository: &Repository,
    stanza: &str,
    control: &ControlFile,
    pgdata: &Path,
) -> Result<Epoch> {
    let epochs = epochs_of(repository, stanza)?;
    let newest = epochs.into_iter().next_back();
    let newest = newest.ok_or_else(|| missing(repository, stanza))?;
    check_epoch(&newest, stanza, control, pgdata)?;
    Ok(newest)
}

/// All epochs of a stanza that exists.
pub(super) fn epochs_of(repository: &Repository, stanza: &str) -> Result<Vec<Epoch>> {
    layout::check_stanza_name(stanza).map_err(Error::Repository)?;
    let epochs = stanza::epochs(repository, stanza).map_err(Error::Repository)?;
    if epochs.is_empty() {
        Err(missing(repository, stanza))
    } else {
        Ok(epochs)
    }
}

fn missing(repository: &Repository, stanza: &str) -> Error {
    Error::StanzaMissing {
        stanza: stanza.to_owned(),
        place: repository.storage.describe(),
    }
}

fn check_epoch(epoch: &Epoch, stanza: &str, control: &ControlFile, pgdata: &Path) -> Result<()> {
    if epoch.system_id == control.system_id && epoch.version == control.version {
        return Ok(());
    }
    Err(Error::ForeignCluster {
        stanza: stanza.to_owned(),
        expected: epoch.system_id,
        expected_version: epoch.version,
        found: control.system_id,
        found_version: control.version,
        pgdata: pgdata.to_owned(),
        archiving: false,
    })
}
