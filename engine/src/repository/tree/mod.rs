//! Trees: the entries of a snapshot, and the nodes that hold them.
//!
//! Files stand in component-wise byte order. How a node is laid out is in `node.rs`, `extents.rs` and `docs/format.md`;
//! where one ends is decided in `writer.rs`.
//!
//! Promises: decoding never panics, allocates at most a small multiple of [`LARGEST_NODE`], and yields only entries whose
//! paths are relative, sound and rising and whose content has the length they state. Refuses what a newer program wrote
//! by name. A tree is untrusted input: restore may run as root.

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;

use crate::ids::{ChunkId, Extent};
mod bytes;
mod extents;
mod node;
mod page_list;
mod writer;

pub use extents::{decode_extent_node, encode_extent_node};
pub use node::decode_node;
pub use page_list::{ListedPage, decode_page_list, encode_page_list};
pub use writer::{Sink, TreeWriter};

/// No node is larger.
pub const LARGEST_NODE: usize = 1 << 20;
/// No path and no link target is longer: four times Linux's `PATH_MAX`.
pub const LONGEST_PATH: usize = 4096 * 4;
/// No file is stored within its entry that is larger.
pub const LARGEST_INLINE: usize = 512;
/// No name of a user or group is longer: Linux's `LOGIN_NAME_MAX`.
pub const LONGEST_OWNER: usize = 256;
/// The paths of a node, written out, take no more bytes together: front coding must not become a way to fill memory.
pub const LARGEST_PATHS: usize = 4 << 20;

/// The file's content is a sequence of pages.
pub const PAGES: u8 = 1;
/// The file has pages whose checksum did not match while it was read.
pub const SUSPECT: u8 = 2;
/// A link stands here that was followed: the entry is what it points to, and keeps the target.
pub const FOLLOWED: u8 = 4;

/// What is wrong with a node, or with an entry that is to be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// It ends too early, or a count or length is larger than what follows.
    #[error("it is cut short")]
    Cut,
    /// It goes on behind its end.
    #[error("{0} bytes are left over")]
    LeftOver(usize),
    /// A number is out of range or not in its shortest form.
    #[error("a number in it is malformed")]
    Varint,
    /// A bound of the format is exceeded.
    #[error("it exceeds a bound of the format")]
    TooLarge,
    /// Written by a newer program.
    #[error("needs a newer pgcairn ({0})")]
    TooNew(&'static str),
    /// Not the kind of node that belongs there.
    #[error("node kind {0} does not belong there")]
    WrongKind(u8),
    /// A reference into a table that has no such place.
    #[error("a reference in it leads nowhere")]
    Reference,
    /// A path that is absolute, or has an empty, `.` or `..` component or a NUL.
    #[error("{path:?} is not a path within a data directory")]
    Path {
        /// The path, as far as it is text.
        path: String,
    },
    /// A path that does not come after the one before it.
    #[error("path {path:?} is out of order")]
    Order {
        /// The path, as far as it is text.
        path: String,
    },
    /// Parts of an entry contradict each other.
    #[error("an entry contradicts itself ({0})")]
    Inconsistent(&'static str),
}

/// What an entry is. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Link = 2,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// By name.
    Name(String),
    /// By number, where there is no name.
    Number(u32),
}

/// A file, directory or link of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the data directory; empty for the data directory itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Its user.
    pub owner: Owner,
    /// Its group.
    pub group: Owner,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was last modified: nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
    /// [`PAGES`], [`SUSPECT`], [`FOLLOWED`].
    pub flags: u8,
    /// Where a link points to.
    pub target: Vec<u8>,
    /// Bytes, as stored, of the chunks that its content needs.
    pub stored_bytes: u64,
    /// Its bytes.
    pub content: Content,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// It has none.
    Nothing,
    /// Here; [`LARGEST_INLINE`] at most.
    Inline(Vec<u8>),
    /// In these extents, one after the other.
    Extents(Vec<Extent>),
    /// In the extents of these nodes, one after the other.
    Nodes(Vec<NodeSpan>),
}

/// An extent node and the length of the file that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSpan {
    /// The sum of the lengths of the node's extents, in bytes.
    pub length: u64,
    /// The node.
    pub id: ChunkId,
}

/// A decoded node of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Entries in path order.
    Leaf(Vec<Entry>),
    /// Nodes below, in path order.
    Inner(Vec<Child>),
}

/// A node as its parent knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// The first path below it.
    pub first_path: Vec<u8>,
    /// The node.
    pub id: ChunkId,
    /// The sums of all entries below it.
    pub sums: NodeSums,
}

/// The sums of the entries below a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeSums {
    /// Entries.
    pub entries: u64,
    /// Bytes of their content.
    pub file_bytes: u64,
    /// Bytes, as stored, of the chunks that their content needs.
    pub stored_bytes: u64,
}

impl NodeSums {
    /// The sums of one entry.
    pub fn of(entry: &Entry) -> Self {
        let file_bytes = if entry.kind == EntryKind::File {
            entry.bytes
        } else {
            0
        };
        NodeSums {
            entries: 1,
            file_bytes,
            stored_bytes: entry.stored_bytes,
        }
    }

    /// Adds others.
    pub fn add(&mut self, other: NodeSums) {
        self.entries = self.entries.saturating_add(other.entries);
        self.file_bytes = self.file_bytes.saturating_add(other.file_bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(other.stored_bytes);
    }
}

/// The order of paths in a tree: component by component, that is, `/` below every other byte. It is the order in which a
/// walk meets them that sorts each directory by name.
pub fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: &u8| {
        if *byte == b'/' {
            0
        } else {
            u16::from(*byte) + 1
        }
    };
    match a.iter().zip(b).find(|(left, right)| left != right) {
        Some((left, right)) => rank(left).cmp(&rank(right)),
        None => a.len().cmp(&b.len()),
    }
}

/// Refuses a path that is absolute, too long, or has an empty, `.` or `..` component or a NUL.
pub fn check_path(path: &[u8]) -> Result<(), TreeError> {
    let sound =
        |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    if path.len() <= LONGEST_PATH
        && (path.is_empty() || path.split(|byte| *byte == b'/').all(sound))
    {
        return Ok(());
    }
    Err(TreeError::Path { path: shown(path) })
}

/// Refuses an entry that could not be stored, or that says two things.
pub fn check_entry(entry: &Entry) -> Result<(), TreeError> {
    check_path(&entry.path)?;
    for owner in [&entry.owner, &entry.group] {
        if matches!(owner, Owner::Name(name) if name.len() > LONGEST_OWNER) {
            return Err(TreeError::TooLarge);
        }
    }
    if entry.target.len() > LONGEST_PATH {
        return Err(TreeError::TooLarge);
    }
    if entry.target.contains(&0) {
        return Err(TreeError::Inconsistent("a link target with a NUL"));
    }
    if entry.flags & !(PAGES | SUSPECT | FOLLOWED) != 0 {
        return Err(TreeError::TooNew("unknown flags of an entry"));
    }
    let covered = match &entry.content {
        Content::Nothing => (entry.kind != EntryKind::File)
            .then_some(entry.bytes)
            .or(Some(0)),
        _ if entry.kind != EntryKind::File => {
            return Err(TreeError::Inconsistent("content that is no file's"));
        }
        Content::Inline(bytes) if bytes.len() > LARGEST_INLINE => return Err(TreeError::TooLarge),
        Content::Inline(bytes) => Some(bytes.len() as u64),
        Content::Extents(extents) => sum(extents.iter().map(|extent| u64::from(extent.length))),
        Content::Nodes(spans) => sum(spans.iter().map(|span| span.length)),
    };
    if covered == Some(entry.bytes) {
        Ok(())
    } else {
        Err(TreeError::Inconsistent("length and content"))
    }
}

fn sum(mut lengths: impl Iterator<Item = u64>) -> Option<u64> {
    lengths.try_fold(0u64, u64::checked_add)
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests;
