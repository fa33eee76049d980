//! What pushing WAL files and getting them have in common.
//!
//! Promises: a segment passes for the one that its name says, and for this cluster's, only by its header.

use std::path::PathBuf;
use std::time::Duration;

use crate::actions::error::{Error, Result};
use crate::cluster::wal_header::{self, WalHeader};
use crate::ids::Namer;
use crate::pack::wal as wal_object;
use crate::repository::{Repository, layout, wal};
use crate::wal_name::{Segment, Timeline};

/// What pushing and getting need to know.
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// The stanza.
    pub stanza: String,
    /// The cluster's data directory.
    pub pgdata: PathBuf,
    /// Where the stanza's epoch is remembered from one push to the next.
    pub cache: PathBuf,
    /// zstd level.
    pub compress_level: i32,
    /// Working threads.
    pub threads: usize,
    /// Check that a segment's header is of this cluster.
    pub header_check: bool,
    /// How long a get looks again for a segment that is absent although later ones are there.
    pub timeout: Duration,
}

/// A cluster that is not the stanza's is another kind of error here than for a backup.
pub(super) fn as_archiving(mut error: Error) -> Error {
    if let Error::ForeignCluster { archiving, .. } = &mut error {
        *archiving = true;
    }
    error
}

/// The file that an object of the archive holds.
pub(super) fn decode(object: &[u8], key: String) -> Result<Vec<u8>> {
    let namer = Namer::plain();
    wal_object::decode(&namer, object).map_err(|source| Error::WalDamaged { key, source })
}

/// The key of a file in the archive, as errors name it.
pub(super) fn key_of(stanza: &str, epoch: &str, name: &str) -> Result<String> {
    layout::wal(stanza, epoch, name)
        .map(|key| key.to_string())
        .map_err(Error::Repository)
}

/// Of the archives of a cluster's epochs (the newest first) those in which a file may be. Where a timeline goes on in a newer
/// epoch, what an older one has from there on was left behind when an upgrade was taken back: it is another history under
/// the same names.
pub(super) fn archives_of<'e>(
    repository: &Repository,
    stanza: &str,
    epochs: &'e [String],
    name: &str,
) -> Result<&'e [String]> {
    let (Some(segment), Ok(timeline)) = (name.get(..24), Timeline::of_wal_file(name)) else {
        // A history file has no segment in its name, and is the same wherever it is.
        return Ok(epochs);
    };
    let [newer @ .., _oldest] = epochs else {
        return Ok(epochs);
    };
    for (at, epoch) in newer.iter().enumerate() {
        let begin = wal::first(repository, stanza, epoch, timeline).map_err(Error::Repository)?;
        if begin.is_some_and(|begin| begin.as_str() <= segment) {
            return Ok(epochs.get(..=at).unwrap_or_default());
        }
    }
    Ok(epochs)
}

/// Checks by its header that a segment of `bytes` is what its name says, and of the cluster with this system identifier
/// and version; answers the header.
pub(super) fn check_header(
    head: &[u8],
    bytes: u64,
    name: &str,
    (system_id, version): (u64, u32),
    foreign: impl Fn(String) -> Error,
) -> Result<WalHeader> {
    let header = wal_header::parse(head).map_err(|error| foreign(error.to_string()))?;
    if header.system_id != system_id {
        return Err(foreign(format!(
            "system id {}, the cluster has {system_id}",
            header.system_id
        )));
    }
    if header.version != version {
        return Err(foreign(format!(
            "PostgreSQL {}, the cluster is {version}",
            header.version
        )));
    }
    let segment_bytes = header.segment_bytes;
    if bytes != u64::from(segment_bytes) {
        return Err(foreign(format!(
            "{bytes} bytes long, a segment has {segment_bytes}"
        )));
    }
    let segment = name.split('.').next().unwrap_or_default();
    let named =
        Segment::parse(segment, segment_bytes).map_err(|error| foreign(error.to_string()))?;
    if named.number * u64::from(segment_bytes) != header.page_address.0 {
        return Err(foreign(format!("it begins at {}", header.page_address)));
    }
    Ok(header)
}
