//! Compress, seal, bundle: blobs in packs, WAL files in small packs of their own.
//!
//! ```text
//! pack    = header(32) blob* footer trailer(64)
//! blob    = frame(12) payload            payload = a zstd frame, or the raw bytes if those are not larger
//! footer  = entry(48)*                   one per blob, in their order
//! ```
//!
//! **Knows**: blobs, their ids and lengths, and where they lie in a pack. **Does not know**: keys, storage, which pack
//! this is. **Invariants**: a blob was decoded again and hashed before it is put into a pack; the same blobs in the same
//! order make the same bytes, with no name, run or time among them; bytes of a pack are believed only after a checksum
//! or an id has vouched for them, and no length among them before it was held against the bytes at hand.
//!
//! The byte tables and their reasons are in `engine/docs/format.md`.

use std::io;

use crate::ids::ChunkId;

pub mod compress;
pub mod format;
pub mod reader;
#[cfg(test)]
mod tests;
pub mod wal;
pub mod writer;

/// What is wrong with these bytes, or why they could not be made. Offsets count from the start of the pack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something else lies where a header, frame or trailer belongs.
    #[error("no pack {what} at byte {offset}")]
    BadMagic {
        /// The part that belongs there.
        what: &'static str,
        /// Where it belongs.
        offset: u64,
    },
    /// Fewer bytes than the part needs, or another number than it says.
    #[error("{what} at byte {offset} needs {expected} bytes, there are {found}")]
    Length {
        /// The part.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// The bytes it needs.
        expected: u64,
        /// The bytes at hand.
        found: u64,
    },
    /// Written by a newer program.
    #[error("needs a newer pgcairn (pack version {version}, feature bits {features:#x})")]
    TooNew {
        /// The stored version.
        version: u8,
        /// The feature bits that are not known here.
        features: u32,
    },
    /// Bytes that are zero in every pack of this version are not.
    #[error("reserved bytes of the pack {what} at byte {offset} are not zero")]
    Reserved {
        /// The part.
        what: &'static str,
        /// Where it begins.
        offset: u64,
    },
    /// A frame that says something else than the footer or the index does, or that no writer makes.
    #[error("frame at byte {offset}: {field} is {found}, not {expected}")]
    FrameMismatch {
        /// Where the frame begins.
        offset: u64,
        /// The field.
        field: &'static str,
        /// The value that belongs there.
        expected: u64,
        /// The value that stands there.
        found: u64,
    },
    /// A frame with a number that this version has no meaning for.
    #[error("frame at byte {offset}: {field} {found} is not known")]
    Unknown {
        /// Where the frame begins.
        offset: u64,
        /// The field.
        field: &'static str,
        /// The value that stands there.
        found: u16,
    },
    /// A footer entry that no writer makes.
    #[error("footer entry {index}: {why}")]
    BadEntry {
        /// Its number, from 0.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The bytes changed since they were written.
    #[error("checksum of the {what} does not match")]
    Digest {
        /// The part that the checksum covers.
        what: &'static str,
    },
    /// The blob is another chunk than the one that was asked for, or was damaged.
    #[error("blob at byte {offset} holds chunk {found}, not {expected}")]
    IdMismatch {
        /// Where its frame begins.
        offset: u64,
        /// The id that was asked for.
        expected: ChunkId,
        /// The id of what was decoded.
        found: ChunkId,
    },
    /// The payload is no zstd frame of the expected length.
    #[error("blob at byte {offset} cannot be decoded")]
    Decode {
        /// Where its frame begins.
        offset: u64,
        /// What the decoder said.
        source: io::Error,
    },
    /// Larger than anything of its kind may be.
    #[error("{what} of {bytes} bytes is too large (at most {most})")]
    TooLarge {
        /// The thing.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// A pack that is no WAL object.
    #[error("not a WAL object: piece {index} {why}")]
    NotWal {
        /// The number of the blob, from 0.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The compressor failed.
    #[error("zstd cannot {what}")]
    Codec {
        /// What it was asked to do.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// What was to be stored decodes to something else than the chunk: memory or the compressor is at fault.
    #[error("the sealed chunk decodes to {found}, not to {expected}")]
    Verify {
        /// The id of the chunk that was to be stored.
        expected: ChunkId,
        /// The id of what was decoded again.
        found: ChunkId,
    },
}

/// What this layer answers.
pub type Result<T> = std::result::Result<T, Error>;
