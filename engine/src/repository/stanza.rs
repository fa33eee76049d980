//! Stanzas and their epochs: which cluster, in which version, a name stood for, and when it was given up.
//!
//! Promises: records are only added, numbered without gaps, the newest last; an epoch's name is never used twice, not
//! even after its stanza was deleted and made again, so WAL of two clusters never mixes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::codec::{self, RecordKind};
use crate::ids::RepositoryId;
use crate::repository::layout;
use crate::repository::{
    Error, Repository, Result, get_record, list_all, put_record, storage_failed,
};
use crate::storage::{ErrorKind, Key, Object, Storage};

/// A record of a stanza. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StanzaRecord {
    /// From now on the stanza is this cluster.
    Epoch {
        /// PostgreSQL's system identifier.
        system_id: u64,
        /// PostgreSQL's major version.
        version: u32,
    },
    /// The stanza is given up, with all epochs before.
    Deleted,
}

/// One system id and version of a stanza.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The number of its record, from 1.
    pub n: u32,
    /// PostgreSQL's system identifier.
    pub system_id: u64,
    /// PostgreSQL's major version.
    pub version: u32,
}

impl Epoch {
    /// Its name in keys: version and record number, such as `15-1`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.version, self.n)
    }
}

/// The epochs of a stanza since it was last deleted, oldest first. Empty: there is no such stanza.
pub fn epochs(repository: &Repository, stanza: &str) -> Result<Vec<Epoch>> {
    Ok(read_records(repository, stanza)?.1)
}

/// Those of a stanza's epochs that are one cluster in one version, the newest first: it is several after an upgrade was taken
/// back, and its WAL is in the archives of all of them.
pub fn of_cluster(epochs: &[Epoch], system_id: u64, version: u32) -> Vec<Epoch> {
    let own = |epoch: &&Epoch| epoch.system_id == system_id && epoch.version == version;
    epochs.iter().rev().filter(own).copied().collect()
}

/// Makes `(system_id, version)` the newest epoch of a stanza, which need not exist; it stays as it is if it is that.
pub fn add_epoch(
    repository: &Repository,
    stanza: &str,
    system_id: u64,
    version: u32,
) -> Result<Epoch> {
    loop {
        let (newest, epochs) = read_records(repository, stanza)?;
        if let Some(same) = epochs
            .last()
            .filter(|epoch| (epoch.system_id, epoch.version) == (system_id, version))
        {
            return Ok(*same);
        }
        let n = next_number(stanza, newest)?;
        let record = StanzaRecord::Epoch { system_id, version };
        match put_record(
            repository,
            &layout::stanza(stanza, n)?,
            RecordKind::Stanza,
            &record,
        ) {
            Ok(()) => {
                return Ok(Epoch {
                    n,
                    system_id,
                    version,
                });
            }
            // Another host was faster, or our own put was: what it wrote decides.
            Err(error) if error.is_already_there() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Gives a stanza up, with all its epochs; one that does not exist is given up already.
pub fn delete(repository: &Repository, stanza: &str) -> Result<()> {
    loop {
        let (newest, epochs) = read_records(repository, stanza)?;
        if epochs.is_empty() {
            return Ok(());
        }
        let key = layout::stanza(stanza, next_number(stanza, newest)?)?;
        match put_record(repository, &key, RecordKind::Stanza, &StanzaRecord::Deleted) {
            // Another host was faster, or our own put was: what it wrote decides.
            Err(error) if error.is_already_there() => {}
            put => return put,
        }
    }
}

/// Whether the record of an epoch is in the repository with this id, and says what is expected. One that is absent or
/// says something else is none; one that cannot be read is an error.
pub fn is_epoch(
    storage: &dyn Storage,
    repository: RepositoryId,
    stanza: &str,
    expected: &Epoch,
) -> Result<bool> {
    let key = layout::stanza(stanza, expected.n)?;
    let bytes = match storage.get(&key) {
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(false),
        read => read.map_err(storage_failed)?,
    };
    let found: std::result::Result<(_, StanzaRecord), codec::Error> =
        codec::open(RecordKind::Stanza, Some(repository), key.as_str(), &bytes);
    let record = StanzaRecord::Epoch {
        system_id: expected.system_id,
        version: expected.version,
    };
    Ok(found.is_ok_and(|(_, found)| found == record))
}

/// Whether no record of the stanza follows number `n`.
pub fn is_newest(storage: &dyn Storage, stanza: &str, n: u32) -> Result<bool> {
    let Some(next) = n.checked_add(1) else {
        return Ok(true);
    };
    match storage.get(&layout::stanza(stanza, next)?) {
        Ok(_) => Ok(false),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(storage_failed(error)),
    }
}

/// The names of all stanzas that exist, in order.
pub fn list_stanzas(repository: &Repository) -> Result<Vec<String>> {
    let mut newest: Vec<(String, Key)> = Vec::new();
    for object in list_all(repository.storage.as_ref(), layout::STANZAS_PREFIX)? {
        let Some((stanza, _)) = layout::parse_stanza(object.key.as_str()) else {
            continue;
        };
        match newest.last_mut() {
            Some((last, key)) if last == stanza => *key = object.key,
            _ => newest.push((stanza.to_owned(), object.key)),
        }
    }
    let mut names = Vec::new();
    for (stanza, key) in newest {
        if get_record::<StanzaRecord>(repository, &key, RecordKind::Stanza)?
            != StanzaRecord::Deleted
        {
            names.push(stanza);
        }
    }
    Ok(names)
}

/// Every name under which there is a record or a backup's register: of stanzas that exist, that were deleted, and of those
/// whose records are damaged or lost.
pub fn names(repository: &Repository) -> Result<BTreeSet<String>> {
    let storage = repository.storage.as_ref();
    let records = list_all(storage, layout::STANZAS_PREFIX)?;
    let registers = list_all(storage, layout::SNAPSHOTS_PREFIX)?;
    let of_record = |key: &str| Some(layout::parse_stanza(key)?.0.to_owned());
    let of_register = |key: &str| Some(layout::parse_snapshot(key)?.0);
    let keys = |objects: Vec<Object>| objects.into_iter().map(|object| object.key);
    let records = keys(records).filter_map(|key| of_record(key.as_str()));
    let registers = keys(registers).filter_map(|key| of_register(key.as_str()));
    Ok(records.chain(registers).collect())
}

/// The number of the newest record (0 if there is none), and the live epochs.
fn read_records(repository: &Repository, stanza: &str) -> Result<(u32, Vec<Epoch>)> {
    let mut newest = 0;
    let mut epochs = Vec::new();
    for object in list_all(repository.storage.as_ref(), &layout::stanza_prefix(stanza)?)? {
        let Some((_, n)) = layout::parse_stanza(object.key.as_str()) else {
            continue;
        };
        newest = n;
        match get_record(repository, &object.key, RecordKind::Stanza)? {
            StanzaRecord::Epoch { system_id, version } => epochs.push(Epoch {
                n,
                system_id,
                version,
            }),
            StanzaRecord::Deleted => epochs.clear(),
        }
    }
    Ok((newest, epochs))
}

fn next_number(stanza: &str, newest: u32) -> Result<u32> {
    newest.checked_add(1).ok_or_else(|| Error::Name {
        name: stanza.to_owned(),
        expected: "a stanza with free numbers",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::repository;

    #[test]
    fn an_epoch_is_added_once_and_a_new_cluster_gets_a_new_one() {
        let repository = repository();
        assert_eq!(epochs(&repository, "main").unwrap(), []);
        let first = add_epoch(&repository, "main", 42, 15).unwrap();
        assert_eq!(add_epoch(&repository, "main", 42, 15).unwrap(), first);
        let second = add_epoch(&repository, "main", 42, 16).unwrap();
        assert_eq!(
            (first.name().as_str(), second.name().as_str()),
            ("15-1", "16-2")
        );
        assert_eq!(epochs(&repository, "main").unwrap(), [first, second]);
        assert_eq!(list_stanzas(&repository).unwrap(), ["main"]);
    }

    #[test]
    fn a_deleted_stanza_does_not_exist_and_its_epochs_names_stay_taken() {
        let repository = repository();
        add_epoch(&repository, "main", 42, 15).unwrap();
        add_epoch(&repository, "other", 43, 15).unwrap();
        delete(&repository, "main").unwrap();
        delete(&repository, "main").unwrap();
        assert_eq!(epochs(&repository, "main").unwrap(), []);
        assert_eq!(list_stanzas(&repository).unwrap(), ["other"]);
        assert_eq!(
            add_epoch(&repository, "main", 42, 15).unwrap().name(),
            "15-3"
        );
    }
}
