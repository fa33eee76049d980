//! Durable records: a versioned envelope around a bincode body.
//!
//! Layout, little-endian: magic `PGCE` (4), kind (1), version (1), required-feature bits (4), body length (8), checksum
//! (16: BLAKE3-128 over the 18 bytes before it and the body), body. The body begins with the repository id and the
//! record's own key, so an object that was put in another's place is named as such, and ends with `extra`, a list of
//! (tag, bytes) for later fields: a reader skips even tags that it does not know and refuses odd ones by name.
//!
//! Promises: decoding never panics, never allocates more than the input's length allows, and tells "newer than this
//! program" from "damaged". The only file that knows bincode (pinned: 2.0.1, standard configuration, no trailing bytes).

#![deny(clippy::indexing_slicing)]

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ids::{Digest, RepositoryId};

/// First bytes of every envelope.
pub const MAGIC: [u8; 4] = *b"PGCE";
/// Bytes before the body.
pub const HEADER_BYTES: usize = 34;
/// The envelope version that this program writes and reads.
pub const VERSION: u8 = 1;
/// The feature bits that this program understands.
pub const KNOWN_FEATURES: u32 = 0;
/// No record is larger than this; what would be is a blob in a meta pack.
pub const LARGEST_BODY: usize = 256 << 20;

/// What a record is. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// `config` and `config.copy`.
    Config = 1,
    /// `stanzas/…`
    Stanza = 2,
    /// `index/…`
    IndexSegment = 3,
    /// `runs/…`
    Run = 4,
    /// `snapshots/…`: the decision register of a backup.
    Register = 5,
    /// `forget/…`
    Tombstone = 6,
    /// `notes/…`
    Note = 7,
    /// `gc/…`
    GcRecord = 8,
    /// `quarantine/…`
    Quarantine = 9,
    /// `wal/…/<name>.gap`
    WalGap = 10,
    /// `keys/…`
    KeySlot = 11,
    /// Local files beside the index: stat records, cached epochs.
    Local = 12,
}

/// What is wrong with these bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not an envelope, or cut short.
    #[error("not a pgcairn record ({0})")]
    NotARecord(&'static str),
    /// Another kind of record.
    #[error("a record of kind {found} where kind {expected} belongs")]
    WrongKind {
        /// The stored number.
        found: u8,
        /// The number that belongs here.
        expected: u8,
    },
    /// Written by a newer program.
    #[error("needs a newer pgcairn (record version {version}, feature bits {features:#x})")]
    TooNew {
        /// The stored version.
        version: u8,
        /// The feature bits that are not known here.
        features: u32,
    },
    /// A field that must be understood and is not.
    #[error("needs a newer pgcairn (required field {tag})")]
    RequiredField {
        /// Its tag.
        tag: u16,
    },
    /// Header or body changed since it was written.
    #[error("checksum does not match")]
    Checksum,
    /// The record of another key or repository.
    #[error("this is the record of {found}, not of {expected}")]
    Misplaced {
        /// Whose record it says it is.
        found: String,
        /// Whose record belongs here.
        expected: String,
    },
    /// The body is no record of this kind.
    #[error("body cannot be decoded: {0}")]
    Body(String),
    /// The record is larger than any record may be.
    #[error("record of {0} bytes is too large")]
    TooLarge(usize),
}

#[derive(Serialize)]
struct BodyOut<'a, T> {
    repository: RepositoryId,
    key: &'a str,
    record: &'a T,
    extra: &'a [(u16, Vec<u8>)],
}

#[derive(Deserialize)]
struct BodyIn<T> {
    repository: RepositoryId,
    key: String,
    record: T,
    extra: Vec<(u16, Vec<u8>)>,
}

fn configuration() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<LARGEST_BODY>,
> {
    bincode::config::standard().with_limit::<LARGEST_BODY>()
}

/// Puts a record into its envelope.
pub fn seal<T: Serialize>(
    kind: RecordKind,
    repository: RepositoryId,
    key: &str,
    record: &T,
) -> Result<Vec<u8>, Error> {
    let body = bincode::serde::encode_to_vec(
        BodyOut {
            repository,
            key,
            record,
            extra: &[],
        },
        configuration(),
    )
    .map_err(|error| Error::Body(error.to_string()))?;
    if body.len() > LARGEST_BODY {
        return Err(Error::TooLarge(body.len()));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(kind as u8);
    bytes.push(VERSION);
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let checksum = checksum(&bytes, &body);
    bytes.extend_from_slice(&checksum);
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Takes a record out of its envelope, refusing one of another kind, key or repository. `repository` is `None` only for
/// `config`, from which the id is learned; the id found is returned beside the record.
pub fn open<T: DeserializeOwned>(
    kind: RecordKind,
    repository: Option<RepositoryId>,
    key: &str,
    bytes: &[u8],
) -> Result<(RepositoryId, T), Error> {
    let body = checked_body(kind, bytes)?;
    let (found, used): (BodyIn<T>, usize) =
        bincode::serde::decode_from_slice(body, configuration())
            .map_err(|error| Error::Body(error.to_string()))?;
    if used != body.len() {
        return Err(Error::Body(format!(
            "{} bytes are left over",
            body.len() - used
        )));
    }
    if found.key != key || repository.is_some_and(|id| id != found.repository) {
        let expected = repository.unwrap_or(found.repository);
        return Err(Error::Misplaced {
            found: format!("{} in repository {}", found.key, found.repository),
            expected: format!("{key} in repository {expected}"),
        });
    }
    if let Some((tag, _)) = found.extra.iter().find(|(tag, _)| tag % 2 == 1) {
        return Err(Error::RequiredField { tag: *tag });
    }
    Ok((found.repository, found.record))
}

/// The checksum in the header of an envelope: what a successor names it by.
pub fn envelope_checksum(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.get(18..HEADER_BYTES)?.try_into().ok()
}

fn checked_body(kind: RecordKind, bytes: &[u8]) -> Result<&[u8], Error> {
    let header = bytes
        .get(..HEADER_BYTES)
        .ok_or(Error::NotARecord("shorter than a header"))?;
    let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
    if !header.starts_with(&MAGIC) {
        return Err(Error::NotARecord("no magic"));
    }
    let signed = header.get(..18).unwrap_or_default();
    let stored = header.get(18..).unwrap_or_default();
    if checksum(signed, body) != stored {
        return Err(Error::Checksum);
    }
    let length = header
        .get(10..18)
        .and_then(|field| field.try_into().ok())
        .map(u64::from_le_bytes);
    if length != Some(body.len() as u64) {
        return Err(Error::NotARecord(
            "body length differs from the bytes at hand",
        ));
    }
    let version = header.get(5).copied().unwrap_or_default();
    let features = header
        .get(6..10)
        .and_then(|field| field.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    if version > VERSION || features & !KNOWN_FEATURES != 0 {
        return Err(Error::TooNew {
            version,
            features: features & !KNOWN_FEATURES,
        });
    }
    let found = header.get(4).copied().unwrap_or_default();
    if found != kind as u8 {
        return Err(Error::WrongKind {
            found,
            expected: kind as u8,
        });
    }
    Ok(body)
}

fn checksum(header: &[u8], body: &[u8]) -> [u8; 16] {
    let mut state = Digest::default();
    state.update(header);
    state.update(body);
    let mut half = [0; 16];
    half.copy_from_slice(state.finish().get(..16).unwrap_or(&[0; 16]));
    half
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    reason = "tests cut and change bytes that they made themselves"
)]
mod tests {
    use super::*;

    const HOME: RepositoryId = RepositoryId([7; 16]);

    #[test]
    fn a_record_comes_back_as_it_was_and_only_from_its_own_place() {
        let bytes = seal(RecordKind::Note, HOME, "notes/a", &(1u8, "text")).unwrap();
        let (id, record): (_, (u8, String)) =
            open(RecordKind::Note, Some(HOME), "notes/a", &bytes).unwrap();
        assert_eq!((id, record), (HOME, (1, "text".to_owned())));
        let misplaced = open::<(u8, String)>(RecordKind::Note, Some(HOME), "notes/b", &bytes);
        assert!(
            matches!(misplaced, Err(Error::Misplaced { .. })),
            "{misplaced:?}"
        );
        let foreign = open::<(u8, String)>(
            RecordKind::Note,
            Some(RepositoryId([8; 16])),
            "notes/a",
            &bytes,
        );
        assert!(
            matches!(foreign, Err(Error::Misplaced { .. })),
            "{foreign:?}"
        );
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = seal(RecordKind::Note, HOME, "notes/a", &vec![1u32, 2, 3]).unwrap();
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(
                open::<Vec<u32>>(RecordKind::Note, Some(HOME), "notes/a", &damaged).is_err(),
                "bit {at}"
            );
        }
        for length in 0..bytes.len() {
            assert!(
                open::<Vec<u32>>(RecordKind::Note, Some(HOME), "notes/a", &bytes[..length])
                    .is_err()
            );
        }
    }

    #[test]
    fn a_newer_version_is_named_as_such() {
        let mut bytes = seal(RecordKind::Note, HOME, "notes/a", &1u8).unwrap();
        bytes[5] = 2;
        let (header, body) = bytes.split_at(HEADER_BYTES);
        let sum = checksum(&header[..18], body);
        bytes[18..HEADER_BYTES].copy_from_slice(&sum);
        let refused = open::<u8>(RecordKind::Note, Some(HOME), "notes/a", &bytes);
        assert!(
            matches!(refused, Err(Error::TooNew { version: 2, .. })),
            "{refused:?}"
        );
    }
}
