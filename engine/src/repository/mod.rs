//! What is stored where: the repository's records under their keys.
//!
//! **Knows**: the keys, the records behind them, which of them may ever be replaced (none) or deleted, the order in which
//! a decision is read back. **Does not know**: what is in a pack, how files are cut, what PostgreSQL is.
//! **Invariants**: every record is put only if its key is free; a record names its repository and its own key, so one
//! that was put in another's place is refused; only `stanza-create` makes a repository, everybody else finds `config`
//! there or fails.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{self, RecordKind};
use crate::ids::{ChunkId, RepositoryId};
use crate::storage::looking::LookingStorage;
use crate::storage::{self, ErrorKind, Key, Object, Storage};

pub mod config;
pub mod forget;
pub mod gc_log;
pub mod label;
pub mod layout;
pub mod packs;
pub mod quarantine;
pub mod run;
pub mod segment;
pub mod snapshot;
pub mod stanza;
pub mod tree;
pub mod wal;

use config::{Capabilities, Config};

/// Keys asked for in one listing request: what S3 answers at most.
const LIST_PAGE: usize = 1000;

/// An opened repository. Shared by threads.
pub struct Repository {
    /// Where its objects are.
    pub storage: Arc<dyn Storage>,
    /// What was fixed when it was created.
    pub config: Config,
    /// Its id, which every record carries.
    pub id: RepositoryId,
}

impl Repository {
    /// Whether, of a read that failed so, it is this object alone that cannot be read: it is gone, cut, forbidden, or lies on
    /// a bad place of the disk. A store that forbids or fails everything does so with the configuration too.
    pub fn is_about_one_object<'e>(&self, error: impl Into<Option<&'e storage::Error>>) -> bool {
        match error.into().map(|error| error.kind) {
            Some(ErrorKind::NotFound | ErrorKind::Truncated) => true,
            None | Some(ErrorKind::Unreachable) => false,
            Some(_) => [layout::config(), layout::config_copy()]
                .iter()
                .any(|key| self.storage.get(key).is_ok()),
        }
    }
}

/// Why the repository did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The storage failed; its error names the key and the place.
    #[error("the repository's storage failed")]
    Storage {
        /// What it said.
        #[source]
        source: storage::Error,
    },
    /// A record was read and is not what belongs there.
    #[error("record {key} cannot be used")]
    Record {
        /// The record's key.
        key: Key,
        /// What is wrong with it.
        #[source]
        source: codec::Error,
    },
    /// Neither `config` nor its copy is there.
    #[error("{place} holds no pgcairn repository")]
    NotARepository {
        /// The storage, as it names itself.
        place: String,
    },
    /// A repository is to be created where other things are stored.
    #[error("{place} holds other objects ({found}), so no repository is created there")]
    NotEmpty {
        /// The storage, as it names itself.
        place: String,
        /// The first key found.
        found: Key,
    },
    /// The storage lacks what every repository needs.
    #[error("{place} cannot hold a repository: {lacks}")]
    UnfitStorage {
        /// The storage, as it names itself.
        place: String,
        /// What the probe saw.
        lacks: &'static str,
    },
    /// `config` was read and names sizes that cannot be worked with.
    #[error("the configuration in {place} is not usable: {reason}")]
    Config {
        /// The storage, as it names itself.
        place: String,
        /// Which value, and why.
        reason: &'static str,
    },
    /// A name that cannot be part of a key.
    #[error("{name:?} is not {expected}")]
    Name {
        /// What was given.
        name: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A register is larger than a register may be.
    #[error(
        "the record of backup {label} has {bytes} bytes, more than the {} allowed",
        snapshot::LARGEST_REGISTER
    )]
    RegisterTooLarge {
        /// The backup.
        label: String,
        /// The size of its record.
        bytes: usize,
    },
    /// A put may or may not take effect later; neither could be learned. What depends on it must stay as it is.
    #[error("whether {key} was written is not known")]
    OutcomeUnknown {
        /// The key that was put.
        key: Key,
        /// What the put said.
        #[source]
        source: storage::Error,
    },
    /// The gc log is broken, or a record would break it.
    #[error("gc record {number}: {reason}")]
    GcLog {
        /// The record's number.
        number: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A tree node was read and is not usable.
    #[error("tree node {node} cannot be used")]
    Tree {
        /// The node's id.
        node: ChunkId,
        /// What is wrong with it.
        #[source]
        source: tree::TreeError,
    },
    /// The operating system gave no random bits.
    #[error("no random bits to be had")]
    Random {
        /// What it said.
        #[source]
        source: getrandom::Error,
    },
}

/// What the repository answers.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The storage failure behind this error, if one is.
    pub fn storage(&self) -> Option<&storage::Error> {
        match self {
            Error::Storage { source } | Error::OutcomeUnknown { source, .. } => Some(source),
            _ => None,
        }
    }

    /// The kind of storage failure behind this error, if one is.
    pub fn storage_kind(&self) -> Option<ErrorKind> {
        self.storage().map(|source| source.kind)
    }

    /// Whether an object that was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.storage_kind() == Some(ErrorKind::NotFound)
    }

    /// Whether the storage forbids it.
    pub fn is_denied(&self) -> bool {
        self.storage_kind() == Some(ErrorKind::Denied)
    }

    /// Whether a record is there but spoilt, as opposed to one that a newer program wrote.
    pub fn is_damage(&self) -> bool {
        match self {
            Error::Record { source, .. } => !matches!(
                source,
                codec::Error::TooNew { .. } | codec::Error::RequiredField { .. }
            ),
            Error::GcLog { .. } => true,
            _ => false,
        }
    }

    /// Whether an object with this key was there already.
    pub fn is_already_there(&self) -> bool {
        self.storage_kind() == Some(ErrorKind::AlreadyExists)
    }
}

/// A storage error as the repository's.
pub(crate) fn storage_failed(source: storage::Error) -> Error {
    Error::Storage { source }
}

/// Makes a repository in a storage that was seen to be empty and to do this; if another has made one meanwhile, opens that.
pub fn create(
    storage: Arc<dyn Storage>,
    capabilities: Capabilities,
    now_ms: i64,
) -> Result<Repository> {
    let id = RepositoryId::random().map_err(|source| Error::Random { source })?;
    let config = Config::new(now_ms, capabilities);
    let storage = careful(storage, &config);
    complete(Repository {
        storage,
        config,
        id,
    })
}

/// What a repository is written through: where a put may replace an object, what is there is looked at first.
fn careful(storage: Arc<dyn Storage>, config: &Config) -> Arc<dyn Storage> {
    if config.capabilities.put_if_absent {
        storage
    } else {
        Arc::new(LookingStorage::new(storage))
    }
}

/// Opens a repository: reads `config`, or its copy if that is missing or damaged.
pub fn open(storage: Arc<dyn Storage>) -> Result<Repository> {
    let place = storage.describe();
    let (id, config) = match read_config(storage.as_ref(), &layout::config()) {
        Ok(found) => found,
        Err(first) if first.is_not_found() || first.is_damage() => {
            match read_config(storage.as_ref(), &layout::config_copy()) {
                Ok(found) => found,
                Err(second) if second.is_not_found() && first.is_not_found() => {
                    return Err(Error::NotARepository { place });
                }
                Err(second) if second.is_not_found() || second.is_damage() => return Err(first),
                Err(second) => return Err(second),
            }
        }
        Err(error) => return Err(error),
    };
    config
        .check()
        .map_err(|reason| Error::Config { place, reason })?;
    Ok(Repository {
        storage: careful(storage, &config),
        config,
        id,
    })
}

/// What is wrong with `config` and its copy, each of which is enough to open the repository.
pub fn config_damage(repository: &Repository) -> Result<Vec<(Key, Error)>> {
    let mut damaged = Vec::new();
    for key in [layout::config(), layout::config_copy()] {
        match read_config(repository.storage.as_ref(), &key) {
            Err(error) if error.is_not_found() || error.is_damage() => damaged.push((key, error)),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(damaged)
}

/// Puts a record under its key, which must be free.
pub fn put_record<T: Serialize>(
    repository: &Repository,
    key: &Key,
    kind: RecordKind,
    record: &T,
) -> Result<()> {
    let bytes = seal_record(repository, key, kind, record)?;
    repository.storage.put(key, &bytes).map_err(storage_failed)
}

/// The record under a key.
pub fn get_record<T: DeserializeOwned>(
    repository: &Repository,
    key: &Key,
    kind: RecordKind,
) -> Result<T> {
    let bytes = repository.storage.get(key).map_err(storage_failed)?;
    open_record(repository, key, kind, &bytes)
}

/// Every object whose key begins with `prefix`, in key order, however many requests that takes.
pub fn list_all(storage: &dyn Storage, prefix: &str) -> Result<Vec<Object>> {
    list_after(storage, prefix, None)
}

/// Like [`list_all`], but only keys that sort after `start_after`.
pub fn list_after(
    storage: &dyn Storage,
    prefix: &str,
    start_after: Option<&str>,
) -> Result<Vec<Object>> {
    let mut all: Vec<Object> = Vec::new();
    loop {
        let from = all.last().map(|object| object.key.as_str()).or(start_after);
        let page = storage
            .list(prefix, from, LIST_PAGE)
            .map_err(storage_failed)?;
        let last = page.len() < LIST_PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

/// A record in its envelope.
pub(crate) fn seal_record<T: Serialize>(
    repository: &Repository,
    key: &Key,
    kind: RecordKind,
    record: &T,
) -> Result<Vec<u8>> {
    codec::seal(kind, repository.id, key.as_str(), record).map_err(|source| Error::Record {
        key: key.clone(),
        source,
    })
}

/// A record out of its envelope.
pub(crate) fn open_record<T: DeserializeOwned>(
    repository: &Repository,
    key: &Key,
    kind: RecordKind,
    bytes: &[u8],
) -> Result<T> {
    codec::open(kind, Some(repository.id), key.as_str(), bytes)
        .map(|(_, record)| record)
        .map_err(|source| Error::Record {
            key: key.clone(),
            source,
        })
}

fn read_config(storage: &dyn Storage, key: &Key) -> Result<(RepositoryId, Config)> {
    let bytes = storage.get(key).map_err(storage_failed)?;
    codec::open(RecordKind::Config, None, key.as_str(), &bytes).map_err(|source| Error::Record {
        key: key.clone(),
        source,
    })
}

/// Puts `config` and its copy where they are missing, as after a creation that was interrupted. Another creator may have
/// won meanwhile: then its repository is the one that is opened.
pub fn complete(repository: Repository) -> Result<Repository> {
    for key in [layout::config(), layout::config_copy()] {
        match put_record(&repository, &key, RecordKind::Config, &repository.config) {
            Err(error) if error.is_already_there() => {
                let (id, config) = match read_config(repository.storage.as_ref(), &key) {
                    Err(error) if error.is_damage() => continue,
                    read => read?,
                };
                if id != repository.id {
                    return write_copy_of(Repository {
                        storage: repository.storage,
                        config,
                        id,
                    });
                }
            }
            put => put?,
        }
    }
    Ok(repository)
}

fn write_copy_of(winner: Repository) -> Result<Repository> {
    match put_record(
        &winner,
        &layout::config_copy(),
        RecordKind::Config,
        &winner.config,
    ) {
        Err(error) if !error.is_already_there() => Err(error),
        _ => open(winner.storage),
    }
}

/// Fails if a storage without a repository holds anything else.
pub fn refuse_foreign_objects(storage: &dyn Storage) -> Result<()> {
    let mut after: Option<Key> = None;
    loop {
        let page = storage
            .list("", after.as_ref().map(Key::as_str), LIST_PAGE)
            .map_err(storage_failed)?;
        // What a probe left behind when its process was killed is ours.
        if let Some(foreign) = page
            .iter()
            .find(|object| !object.key.as_str().starts_with(layout::PROBE_PREFIX))
        {
            return Err(Error::NotEmpty {
                place: storage.describe(),
                found: foreign.key.clone(),
            });
        }
        match page.into_iter().last() {
            Some(last) => after = Some(last.key),
            None => return Ok(()),
        }
    }
}

/// A storage for the unit tests of this folder.
#[cfg(test)]
pub(crate) mod test_storage {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;

    use crate::storage::{Error, ErrorKind, Key, Object, Result, Storage};

    /// Objects in a map; the clock counts puts. Keys in `lost_answers` are stored, but their put says `Unreachable`.
    #[derive(Default)]
    pub(crate) struct MemoryStorage {
        objects: Mutex<BTreeMap<String, (Vec<u8>, i64)>>,
        lost_answers: Mutex<BTreeSet<String>>,
        pub(crate) requests: std::sync::atomic::AtomicU64,
    }

    impl MemoryStorage {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn lose_answer(&self, key: &Key) {
            self.lost_answers
                .lock()
                .unwrap()
                .insert(key.as_str().to_owned());
        }

        fn failed(kind: ErrorKind, what: &'static str, key: &str) -> Error {
            Error {
                kind,
                what,
                key: key.to_owned(),
                place: "memory".to_owned(),
                source: None,
            }
        }
    }

    impl Storage for MemoryStorage {
        fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
            let mut objects = self.objects.lock().unwrap();
            if objects.contains_key(key.as_str()) {
                return Err(Self::failed(ErrorKind::AlreadyExists, "put", key.as_str()));
            }
            let now = 1_000 + i64::try_from(objects.len()).unwrap();
            objects.insert(key.as_str().to_owned(), (body.to_vec(), now));
            if self.lost_answers.lock().unwrap().remove(key.as_str()) {
                return Err(Self::failed(ErrorKind::Unreachable, "put", key.as_str()));
            }
            Ok(())
        }

        fn get(&self, key: &Key) -> Result<Vec<u8>> {
            let objects = self.objects.lock().unwrap();
            let found = objects.get(key.as_str());
            found
                .map(|(body, _)| body.clone())
                .ok_or_else(|| Self::failed(ErrorKind::NotFound, "get", key.as_str()))
        }

        fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()> {
            let body = self.get(key)?;
            let from = usize::try_from(offset).unwrap();
            let range = body.get(from..from + buffer.len());
            buffer
                .copy_from_slice(range.ok_or_else(|| {
                    Self::failed(ErrorKind::Truncated, "get range", key.as_str())
                })?);
            Ok(())
        }

        fn list(
            &self,
            prefix: &str,
            start_after: Option<&str>,
            limit: usize,
        ) -> Result<Vec<Object>> {
            self.requests
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let objects = self.objects.lock().unwrap();
            let listed = objects.iter().filter(|(key, _)| key.starts_with(prefix));
            let listed =
                listed.filter(|(key, _)| start_after.is_none_or(|after| key.as_str() > after));
            let object = |(key, (body, modified_ms)): (&String, &(Vec<u8>, i64))| Object {
                key: Key::new(key.clone()).unwrap(),
                bytes: body.len() as u64,
                modified_ms: *modified_ms,
            };
            Ok(listed.take(limit).map(object).collect())
        }

        fn delete(&self, key: &Key) -> Result<()> {
            self.objects.lock().unwrap().remove(key.as_str());
            Ok(())
        }

        fn describe(&self) -> String {
            "memory".to_owned()
        }
    }
}

#[cfg(test)]
mod tests;
