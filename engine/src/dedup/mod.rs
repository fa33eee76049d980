//! Cut into chunks, and: have we seen this one?
//!
//! **Knows**: where a region is cut, which chunks this run is storing, where stored chunks lie (a local RocksDB cache).
//! **Does not know**: how chunks are compressed or bundled, what a backup is, when a pack may be deleted.
//! **Invariants**: the same bytes under the same configuration are cut at the same places, on every machine; a fact
//! enters the index only from a durable index segment; a location is given out only if its pack is listed with the
//! right size and neither condemned, dead nor quarantined; losing the index costs time, never data.

use std::path::PathBuf;

use crate::ids::PackId;

pub mod chunker;
pub mod claims;
pub mod index;
pub mod pack_table;
pub(crate) mod slot;

/// Why chunks could not be cut or looked up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The repository's configuration holds chunk sizes that the cutting algorithm cannot work with.
    #[error(
        "the chunk sizes of {structure} in the repository's configuration cannot be used: {reason}"
    )]
    ChunkSizes {
        /// Of which data: `relation files` or `other files`.
        structure: &'static str,
        /// The rule that they break.
        reason: String,
    },
    /// A page size by which regions and chunks cannot be divided.
    #[error("pages of {page_bytes} bytes do not divide regions and chunks evenly")]
    PageSize {
        /// The page size, in bytes.
        page_bytes: u32,
    },
    /// More data than one region was to be cut at once.
    #[error("{bytes} bytes are more than the {region_bytes} bytes of a region")]
    RegionTooLong {
        /// Length of the data, in bytes.
        bytes: usize,
        /// Length of a region in this repository, in bytes.
        region_bytes: u32,
    },
    /// A directory or file of the local cache cannot be made, locked or removed.
    #[error("cannot use {} for the local chunk index", path.display())]
    Cache {
        /// The directory or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// So many processes hold a slot of this repository that something else must be wrong.
    #[error("all {slots} slots of the local chunk index in {} are in use", path.display())]
    NoFreeSlot {
        /// The directory of the slots.
        path: PathBuf,
        /// How many there may be.
        slots: u32,
    },
    /// The database of the local chunk index fails. It is only a cache: removing its directory cures damage.
    #[error("the local chunk index in {} fails", path.display())]
    Database {
        /// Its slot directory.
        path: PathBuf,
        /// What the database says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An index segment gives a pack another size than the segments before it; one of them is wrong.
    #[error(
        "index segment {segment} gives pack {pack} {bytes} bytes, an earlier one {known_bytes}"
    )]
    PackSize {
        /// Key of the index segment.
        segment: String,
        /// The pack.
        pack: PackId,
        /// Its size in this segment, in bytes.
        bytes: u64,
        /// Its size as known, in bytes.
        known_bytes: u64,
    },
}

/// What this layer answers.
pub type Result<T> = std::result::Result<T, Error>;
