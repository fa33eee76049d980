//! The names of things, and where things lie: chunk ids, pack ids, run ids, locations, extents.
//!
//! Promises: an id is made of the content it names (chunks) or of random bits that are never used again (packs, runs,
//! repositories); bytes inside, hex outside. Refuses: hex of the wrong length or with other digits. The only file that
//! knows the hash function (BLAKE3, <https://github.com/BLAKE3-team/BLAKE3-specs>).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Derive-key context of data chunks. Part of the format: changing it changes every id.
const DATA_CONTEXT: &str = "pgcairn 2026-11-24 data chunk id v1";
/// Derive-key context of tree nodes and other metadata blobs.
const NODE_CONTEXT: &str = "pgcairn 2026-11-24 tree node id v1";

/// A text that is not an id: what was expected and what was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected} lower-case hex digits")]
pub struct BadId {
    /// What was given.
    pub text: String,
    /// The number of digits an id of this kind has.
    pub expected: usize,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                parse_hex(text).map($name)
            }
        }
    };
}

hex_id! {
    /// Names a chunk (of a file, or a tree node) by its content: BLAKE3-256 in derive-key mode, one context per
    /// [`BlobKind`]. Equal bytes of one kind have equal ids, in every backup of every repository that is not encrypted.
    ChunkId, 32
}
hex_id! {
    /// Names a pack: 128 random bits, never derived from content, never used twice.
    PackId, 16
}
hex_id! {
    /// Names a run, one process that announced itself in the repository: 128 random bits.
    RunId, 16
}
hex_id! {
    /// Names a repository: 128 random bits, made when it is created.
    RepositoryId, 16
}

impl PackId {
    /// A fresh id.
    pub fn random() -> Result<Self, getrandom::Error> {
        random_bits().map(Self)
    }
}

impl RunId {
    /// A fresh id.
    pub fn random() -> Result<Self, getrandom::Error> {
        random_bits().map(Self)
    }
}

impl RepositoryId {
    /// A fresh id.
    pub fn random() -> Result<Self, getrandom::Error> {
        random_bits().map(Self)
    }
}

/// What a blob in a pack holds. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BlobKind {
    /// Bytes of a file.
    Data,
    /// A node of a snapshot tree, or another metadata blob that a snapshot's register names.
    Node,
    /// A piece of a WAL file.
    Wal,
}

impl BlobKind {
    /// The stored number.
    pub fn code(self) -> u8 {
        match self {
            BlobKind::Data => 1,
            BlobKind::Node => 2,
            BlobKind::Wal => 3,
        }
    }

    /// The kind with this stored number.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(BlobKind::Data),
            2 => Some(BlobKind::Node),
            3 => Some(BlobKind::Wal),
            _ => None,
        }
    }
}

/// The hash state from which ids of one kind are made; cloning it is cheaper than deriving the key anew.
#[derive(Clone)]
pub struct Namer {
    data: blake3::Hasher,
    node: blake3::Hasher,
}

impl Namer {
    /// The namer of a repository without encryption.
    pub fn plain() -> Self {
        Namer {
            data: blake3::Hasher::new_derive_key(DATA_CONTEXT),
            node: blake3::Hasher::new_derive_key(NODE_CONTEXT),
        }
    }

    /// The id of `bytes` as a chunk of `kind`. WAL pieces are named as data.
    pub fn name(&self, kind: BlobKind, bytes: &[u8]) -> ChunkId {
        let mut naming = self.begin(kind);
        naming.update(bytes);
        naming.finish()
    }

    /// Begins to name a chunk of which not all is at hand.
    pub fn begin(&self, kind: BlobKind) -> Naming {
        let state = if kind == BlobKind::Node {
            &self.node
        } else {
            &self.data
        };
        Naming(state.clone())
    }
}

/// The naming of one chunk.
#[derive(Clone)]
pub struct Naming(blake3::Hasher);

impl Naming {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id of all bytes added.
    pub fn finish(&self) -> ChunkId {
        ChunkId(*self.0.finalize().as_bytes())
    }
}

impl fmt::Debug for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Naming")
    }
}

impl fmt::Debug for Namer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Namer")
    }
}

/// A running BLAKE3-256 over stored bytes: the checksum of packs.
#[derive(Clone, Default)]
pub struct Digest(blake3::Hasher);

impl Digest {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes added so far.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest")
    }
}

/// BLAKE3-256 of some bytes.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// BLAKE3-128 of some bytes: the first half of [`digest`], the checksum of envelopes.
pub fn short_digest(bytes: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest(bytes)[..16]);
    half
}

/// Where one copy of a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Location {
    /// The pack that holds it.
    pub pack: PackId,
    /// Where its frame begins, in bytes from the start of the pack.
    pub offset: u32,
    /// Length of the payload behind the frame, as stored.
    pub stored_bytes: u32,
    /// Length of the chunk once decoded.
    pub raw_bytes: u32,
    /// What it holds.
    pub kind: BlobKind,
}

/// A piece of a file, and how its bytes are to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its length in the file, in bytes; never zero.
    pub length: u32,
    /// The id of a data chunk with these bytes, whatever `parts` says.
    pub id: ChunkId,
    /// What it is made of.
    pub parts: Parts,
}

/// What an extent is made of. A third kind, *composed* of a base and page patches, has its number reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// One stored chunk whose id is the extent's content id.
    Whole,
    /// Zero bytes; nothing is stored.
    Zero,
}

fn random_bits() -> Result<[u8; 16], getrandom::Error> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits)?;
    Ok(bits)
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], BadId> {
    let bad = || BadId {
        text: text.chars().take(80).collect(),
        expected: N * 2,
    };
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(bad());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        *byte = value(pair[0])
            .zip(value(pair[1]))
            .map(|(high, low)| high << 4 | low)
            .ok_or_else(bad)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_refuse_other_text() {
        let id = PackId([0xab; 16]);
        assert_eq!(id.to_string().parse::<PackId>(), Ok(id));
        assert!("AB".repeat(16).parse::<PackId>().is_err());
        assert!("ab".repeat(15).parse::<PackId>().is_err());
    }

    /// Golden vectors: these ids are part of the format.
    #[test]
    fn ids_are_those_of_the_format() {
        let specification = include_str!("../docs/format.md");
        let namer = Namer::plain();
        for (kind, name) in [(BlobKind::Data, "data"), (BlobKind::Node, "node")] {
            let line = format!("\n{name}  {}\n", namer.name(kind, b"pgcairn"));
            assert!(specification.contains(&line), "{line}");
        }
        for context in [DATA_CONTEXT, NODE_CONTEXT] {
            assert!(specification.contains(&format!("`{context}`")), "{context}");
        }
        let wal = namer.name(BlobKind::Wal, b"pgcairn");
        assert_eq!(wal, namer.name(BlobKind::Data, b"pgcairn"));
    }
}
