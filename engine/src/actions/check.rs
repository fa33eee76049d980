//! Is everything in order for backups and archiving? One answer to each question, and all of them are asked.
//!
//! Promises: a question that fails does not keep the others from being asked, unless they build on it; then they are
//! skipped, and say so. Writes nothing but what a probe writes and removes, a restore point, and the WAL segment that is
//! ended and must arrive. Of several clusters, all are looked at, and the primary is the one that must archive; on a
//! standby, nothing is asked that only a primary can answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::statvfs;

use crate::actions::error::{Error, Result};
use crate::actions::info::wal_of;
use crate::actions::label::backups;
use crate::actions::online::{check_archiving, check_same};
use crate::actions::open::RepositoryPlace;
use crate::actions::probe::{RACES_AT_CHECK, probe};
use crate::actions::roles::Candidate;
use crate::actions::standby::StandbyError;
use crate::actions::stanza::epoch_of;
use crate::actions::wal_needed::Archive;
use crate::cluster::control_file::{self, ControlFile};
use crate::cluster::server::{Identity, Server};
use crate::repository::snapshot;
use crate::repository::stanza::Epoch;
use crate::repository::{self, Repository};
use crate::storage::Storage;

/// Clocks that are further apart than this make times in listings misleading.
const CLOCKS_APART_MS: u64 = 60_000;

/// Statuses are small, but a full disk loses them, and with them archiving.
const LEAST_SPOOL_BYTES: u64 = 16 << 20;

/// What a check needs to know.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// The stanza.
    pub stanza: String,
    /// The folder of the spool, where archiving uses one.
    pub spool: Option<PathBuf>,
    /// End a WAL segment, and wait for it in the repository.
    pub archive_check: bool,
    /// Refuse `archive_mode=always`, and commands that are not ours.
    pub archive_mode_check: bool,
    /// How long the segment is waited for.
    pub archive_timeout: Duration,
    /// Working threads.
    pub threads: usize,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
}

/// A question and its answer.
#[derive(Debug)]
pub struct CheckItem {
    /// What was asked about.
    pub name: String,
    /// The answer.
    pub verdict: Verdict,
}

/// The answer to a question.
#[derive(Debug)]
pub enum Verdict {
    /// In order; with what was found.
    Fine(String),
    /// Not in order.
    Wrong(Error),
    /// Not asked, and why.
    Skipped(&'static str),
}

/// Asks all questions, in the order in which they build on one another: of the clusters, of each repository, of the
/// servers, and of what leads from the primary to the repositories.
pub fn check(
    places: &[RepositoryPlace],
    clusters: Vec<Candidate>,
    options: &CheckOptions,
) -> Vec<CheckItem> {
    let mut check = Check {
        options,
        several: places.len() > 1,
        items: Vec::new(),
    };
    let controls: Vec<_> = clusters
        .iter()
        .map(|cluster| check.data_directory(cluster))
        .collect();
    let of_first = clusters.first().zip(controls.first());
    let first = of_first.and_then(|(cluster, control)| Some((&*cluster.pgdata, control.as_ref()?)));
    check.spool();
    let found: Vec<_> = places
        .iter()
        .map(|place| (place.number, check.place(place, first)))
        .collect();
    let control = first.map(|(_, control)| control);
    let expected = control.map(|control| control.system_id);
    let servers = clusters.into_iter().zip(controls.iter());
    let connected: Vec<_> = servers
        .filter_map(|(cluster, control)| check.server(cluster, control.as_ref(), expected))
        .collect();
    let archives: Vec<_> = found
        .iter()
        .map(|(number, found)| {
            let archive = found
                .as_ref()
                .zip(control)
                .map(|((repository, epoch), control)| Archive {
                    repository,
                    stanza: &options.stanza,
                    epoch,
                    segment_bytes: control.wal_segment_bytes,
                    threads: options.threads,
                    timeout: options.archive_timeout,
                });
            (*number, archive)
        })
        .collect();
    check.archiving(connected, &archives);
    check.items
}

/// A session, and what the server said it is.
type Connected = (Box<dyn Server>, Identity);

/// The name of a question about one of the clusters; that of the first has no number.
fn of_cluster(what: &str, number: u32) -> String {
    match number {
        1 => what.to_owned(),
        number => format!("{what} of pg{number}"),
    }
}

struct Check<'a> {
    options: &'a CheckOptions,
    /// There are several repositories.
    several: bool,
    items: Vec<CheckItem>,
}

impl Check<'_> {
    fn ask<T>(&mut self, name: &str, question: impl FnOnce() -> Result<(String, T)>) -> Option<T> {
        let (verdict, found) = match question() {
            Ok((text, found)) => (Verdict::Fine(text), Some(found)),
            Err(error) => (Verdict::Wrong(error), None),
        };
        let name = name.to_owned();
        self.items.push(CheckItem { name, verdict });
        found
    }

    fn skip(&mut self, name: &str, why: &'static str) {
        let (name, verdict) = (name.to_owned(), Verdict::Skipped(why));
        self.items.push(CheckItem { name, verdict });
    }

    fn data_directory(&mut self, cluster: &Candidate) -> Option<ControlFile> {
        self.ask(&of_cluster("data directory", cluster.number), || {
            let control = control_file::read(&cluster.pgdata).map_err(Error::Cluster)?;
            let (version, id) = (control.version, control.system_id);
            Ok((format!("PostgreSQL {version}, system id {id}"), control))
        })
    }

    fn spool(&mut self) {
        let Some(spool) = &self.options.spool else {
            return self.skip("spool", "archive-async is off");
        };
        self.ask("spool", || {
            let failed = |source| Error::Local {
                doing: "use the spool",
                path: spool.clone(),
                source,
            };
            fs::create_dir_all(spool).map_err(failed)?;
            let space = statvfs(spool).map_err(|error| failed(error.into()))?;
            let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
            if free_bytes < LEAST_SPOOL_BYTES {
                return Err(Error::SpoolFull {
                    path: spool.clone(),
                    free_bytes,
                });
            }
            let free = free_bytes >> 20;
            Ok((format!("{free} MB are free in {}", spool.display()), ()))
        });
    }

    /// The name of a question about one of the repositories; that of an only one has no number.
    fn of_repository(&self, what: &str, number: u32) -> String {
        if self.several {
            format!("repo{number}: {what}")
        } else {
            what.to_owned()
        }
    }

    /// All about one repository; answers it and the stanza's epoch in it, if both are as they should be.
    fn place(
        &mut self,
        place: &RepositoryPlace,
        cluster: Option<(&Path, &ControlFile)>,
    ) -> Option<(Repository, Epoch)> {
        let number = place.number;
        let storage = self.ask(&self.of_repository("storage", number), || {
            place.storage().map(|found| (found.describe(), found))
        });
        self.permissions(number, storage.as_deref());
        let repository = self.repository(number, storage);
        let epoch = self.epoch(number, repository.as_ref(), cluster);
        self.wal(number, repository.as_ref(), epoch.as_ref());
        repository.zip(epoch)
    }

    fn permissions(&mut self, number: u32, storage: Option<&dyn Storage>) {
        let name = self.of_repository("permissions", number);
        let Some(storage) = storage else {
            return self.skip(&name, "the storage cannot be opened");
        };
        let seen = self.ask(&name, || {
            let seen = probe(storage, RACES_AT_CHECK)?;
            let text = if seen.capabilities.put_if_absent {
                "put, get, list and delete work; of racing puts one wins"
            } else {
                "put, get, list and delete work; of racing puts several win: only one host may write here"
            };
            Ok((text.to_owned(), seen))
        });
        let Some(seen) = seen else { return };
        let apart = seen.now_ms.abs_diff(self.options.now_ms);
        self.ask(&self.of_repository("clock", number), || {
            if apart > CLOCKS_APART_MS {
                return Err(Error::ClocksApart {
                    seconds: apart / 1000,
                });
            }
            Ok((format!("{apart} ms from the store's"), ()))
        });
    }

    fn repository(&mut self, number: u32, storage: Option<Arc<dyn Storage>>) -> Option<Repository> {
        let name = self.of_repository("repository", number);
        let Some(storage) = storage else {
            self.skip(&name, "the storage cannot be opened");
            return None;
        };
        self.ask(&name, || {
            let repository = repository::open(storage).map_err(Error::Repository)?;
            Ok((repository.id.to_string(), repository))
        })
    }

    fn epoch(
        &mut self,
        number: u32,
        repository: Option<&Repository>,
        cluster: Option<(&Path, &ControlFile)>,
    ) -> Option<Epoch> {
        let name = self.of_repository("stanza", number);
        let Some((repository, (pgdata, control))) = repository.zip(cluster) else {
            self.skip(&name, "repository or data directory cannot be read");
            return None;
        };
        let stanza = &self.options.stanza;
        self.ask(&name, || {
            let epoch = epoch_of(repository, stanza, control, pgdata)?;
            Ok((
                format!("{stanza} is this cluster, archive {}", epoch.name()),
                epoch,
            ))
        })
    }

    /// Whether the WAL that recovery from the newest backup needs is there.
    fn wal(&mut self, number: u32, repository: Option<&Repository>, epoch: Option<&Epoch>) {
        let name = self.of_repository("archived WAL", number);
        let Some((repository, epoch)) = repository.zip(epoch) else {
            return self.skip(&name, "there is no stanza of this cluster");
        };
        let stanza = &self.options.stanza;
        self.ask(&name, || {
            let listed = snapshot::list(repository, stanza).map_err(Error::Repository)?;
            let found = backups(repository, &listed)?.committed;
            let ours = found.iter().rev().map(|backup| &backup.manifest);
            let newest = ours.into_iter().find(|backup| backup.epoch == epoch.n);
            let Some(newest) = newest else {
                return Ok(("no backup needs any yet".to_owned(), ()));
            };
            let (_, timelines) = wal_of(repository, stanza, epoch, Some(newest.wal_segment_bytes))?;
            let since = newest.wal_start.as_deref().unwrap_or_default();
            let holes = timelines.iter().flat_map(|timeline| &timeline.missing);
            // Names order segments of a timeline; what a later timeline lacks is behind the backup, too.
            if let Some(hole) = holes.into_iter().find(|hole| hole.last.as_str() > since) {
                return Err(Error::WalMissing {
                    first: hole.first.clone(),
                    last: hole.last.clone(),
                    backup: newest.label.clone(),
                });
            }
            Ok((format!("complete since backup {}", newest.label), ()))
        });
    }

    /// Whether the cluster's server is reached, runs on its files, and is of the first cluster's system id.
    fn server(
        &mut self,
        cluster: Candidate,
        control: Option<&ControlFile>,
        system_id: Option<u64>,
    ) -> Option<Connected> {
        self.ask(&of_cluster("server", cluster.number), || {
            let mut server = cluster.server?;
            let identity = server.identity().map_err(Error::Cluster)?;
            if let Some(control) = control {
                check_same(&identity, &cluster.pgdata, control)?;
                if let Some(expected) = system_id.filter(|id| *id != control.system_id) {
                    return Err(Error::Standby(StandbyError::Foreign {
                        pgdata: cluster.pgdata,
                        what: "system id",
                        found: control.system_id.to_string(),
                        expected: expected.to_string(),
                    }));
                }
            }
            let role = if identity.in_recovery {
                "standby"
            } else {
                "primary"
            };
            let text = format!("{role} in {}", identity.data_directory);
            Ok((text, (server, identity)))
        })
    }

    /// Whether the primary archives; of standbys alone, whether the first one is set up to.
    fn archiving(&mut self, mut servers: Vec<Connected>, archives: &[(u32, Option<Archive<'_>>)]) {
        let is_primary = |(_, identity): &Connected| !identity.in_recovery;
        if let [(_, one), (_, other), ..] = servers
            .iter()
            .filter(|server| is_primary(server))
            .collect::<Vec<_>>()[..]
        {
            let (one, other) = (&one.data_directory, &other.data_directory);
            let (one, other) = (PathBuf::from(one), PathBuf::from(other));
            self.ask::<()>("primary", || {
                Err(StandbyError::SeveralPrimaries { one, other }.into())
            });
        }
        let asked = servers.iter().position(is_primary).unwrap_or(0);
        let Some((server, identity)) = servers.get_mut(asked) else {
            self.skip("archive settings", "there is no connection to the server");
            for (number, _) in archives {
                let name = self.of_repository("WAL switch", *number);
                self.skip(&name, "there is no connection to the server");
            }
            return;
        };
        let sound = self.settings(identity);
        for (number, archive) in archives {
            self.switch(*number, server.as_mut(), identity, archive.as_ref(), sound);
        }
    }

    /// Whether a segment that is ended now arrives in a repository.
    fn switch(
        &mut self,
        number: u32,
        server: &mut dyn Server,
        identity: &Identity,
        archive: Option<&Archive<'_>>,
        sound: bool,
    ) {
        let name = self.of_repository("WAL switch", number);
        let Some(archive) = archive else {
            return self.skip(&name, "there is no stanza of this cluster");
        };
        if identity.in_recovery {
            return self.skip(&name, "a standby cannot end a segment");
        }
        if !self.options.archive_check || !sound {
            return self.skip(&name, "archiving is not asked for, or not set up");
        }
        self.ask(&name, || {
            let segment = archive.prove_switch(server)?;
            Ok((format!("{segment} arrived"), ()))
        });
    }

    fn settings(&mut self, identity: &Identity) -> bool {
        let mode_check = self.options.archive_mode_check;
        let sound = self.ask("archive settings", || {
            if identity.wal_level == "minimal" {
                return Err(Error::WalLevel(identity.wal_level.clone()));
            }
            check_archiving(identity, mode_check)?;
            let (mode, command) = (&identity.archive_mode, &identity.archive_command);
            Ok((
                format!("archive_mode={mode}, archive_command={command:?}"),
                (),
            ))
        });
        sound.is_some()
    }
}
