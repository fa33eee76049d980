//! Nodes as bytes: leaves, which list entries, and inner nodes, which list nodes.
//!
//! Layout: version (1), feature bits (4, those that the node and all below it need), kind (1), body; the body's tables are
//! in `docs/format.md`. Paths are front-coded, owners are places in a table of names, times are differences.
//!
//! Promises: one encoding per content; a decoder that cannot be made to panic, to read past the end, or to allocate more
//! than the bytes at hand justify.

#![deny(clippy::indexing_slicing)]

use std::cmp::Ordering;

use super::bytes::{Reader, put_signed, put_sized, put_varint};
use super::extents::{put_extents, read_extents};
use super::{
    Child, Content, Entry, EntryKind, LARGEST_INLINE, LARGEST_NODE, LARGEST_PATHS, LONGEST_OWNER,
    LONGEST_PATH, Node, NodeSpan, NodeSums, Owner, TreeError, check_entry, check_path,
    compare_paths, shown,
};

/// The node version that this program writes and reads.
const VERSION: u8 = 1;
/// The feature bits that this program understands.
const KNOWN_FEATURES: u32 = 0;
/// The fewest bytes an entry takes.
const SMALLEST_ENTRY: usize = 11;
/// The fewest bytes a child takes: two path lengths, id, three sums.
const SMALLEST_CHILD: usize = 2 + 32 + 3;
/// The fewest bytes a span takes: length and id.
const SMALLEST_SPAN: usize = 1 + 32;

/// What a node holds. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Leaf = 1,
    Inner = 2,
    Extents = 3,
    PageList = 4,
}

/// The node in these bytes.
pub fn decode_node(bytes: &[u8]) -> Result<Node, TreeError> {
    if bytes.len() > LARGEST_NODE {
        return Err(TreeError::TooLarge);
    }
    let mut reader = Reader::new(bytes);
    let node = match read_header(&mut reader)? {
        NodeKind::Leaf => Node::Leaf(read_leaf(&mut reader)?),
        NodeKind::Inner => Node::Inner(read_inner(&mut reader)?),
        other => return Err(TreeError::WrongKind(other as u8)),
    };
    reader.end()?;
    Ok(node)
}

/// The first bytes of a node. No feature is defined yet, so none is needed by what lies below.
pub(crate) fn node_header(kind: NodeKind) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&KNOWN_FEATURES.to_le_bytes());
    out.push(kind as u8);
    out
}

/// A node's kind.
pub(crate) fn read_header(reader: &mut Reader<'_>) -> Result<NodeKind, TreeError> {
    let version = reader.byte()?;
    let features = reader.u32_le()?;
    if version > VERSION {
        return Err(TreeError::TooNew("node version"));
    }
    if features & !KNOWN_FEATURES != 0 {
        return Err(TreeError::TooNew("node feature bits"));
    }
    match reader.byte()? {
        1 => Ok(NodeKind::Leaf),
        2 => Ok(NodeKind::Inner),
        3 => Ok(NodeKind::Extents),
        4 => Ok(NodeKind::PageList),
        other => Err(TreeError::WrongKind(other)),
    }
}

/// Appends a path: the length that it shares with `previous`, the length of the rest, the rest.
pub(crate) fn put_path(out: &mut Vec<u8>, previous: &[u8], path: &[u8]) {
    let shared = previous
        .iter()
        .zip(path)
        .take_while(|(a, b)| a == b)
        .count();
    put_varint(out, shared as u64);
    put_sized(out, path.get(shared..).unwrap_or_default());
}

/// Appends an entry. `owner` and `group` are what [`Owner`] became in the node's table; see [`owner_code`].
pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry, before: &Before, owner: u64, group: u64) {
    put_path(out, &before.path, &entry.path);
    out.push(entry.kind as u8 | content_code(&entry.content) << 4);
    out.push(entry.flags);
    put_varint(out, u64::from(entry.mode));
    put_varint(out, owner);
    put_varint(out, group);
    put_varint(out, entry.bytes);
    put_signed(out, entry.modified_ns.wrapping_sub(before.modified_ns));
    put_sized(out, &entry.target);
    put_varint(out, entry.stored_bytes);
    match &entry.content {
        Content::Nothing => {}
        Content::Inline(bytes) => put_sized(out, bytes),
        Content::Extents(extents) => put_extents(out, extents),
        Content::Nodes(spans) => {
            put_varint(out, spans.len() as u64);
            for span in spans {
                put_varint(out, span.length);
                out.extend_from_slice(&span.id.0);
            }
        }
    }
}

/// Appends a child.
pub(crate) fn put_child(out: &mut Vec<u8>, child: &Child, previous: &[u8]) {
    put_path(out, previous, &child.first_path);
    out.extend_from_slice(&child.id.0);
    put_varint(out, child.sums.entries);
    put_varint(out, child.sums.file_bytes);
    put_varint(out, child.sums.stored_bytes);
}

/// How a number stands for an owner: twice a number, or twice a place in the node's table of names plus one.
pub(crate) fn owner_code(number: u64, is_place: bool) -> u64 {
    number << 1 | u64::from(is_place)
}

/// What an entry's encoding refers back to.
#[derive(Debug, Default)]
pub(crate) struct Before {
    pub(crate) path: Vec<u8>,
    pub(crate) modified_ns: i64,
}

/// Paths read so far: each must come after the one before.
#[derive(Default)]
struct Paths {
    previous: Option<Vec<u8>>,
    total: usize,
}

impl Paths {
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<Vec<u8>, TreeError> {
        let shared = usize::try_from(reader.varint()?).map_err(|_| TreeError::Reference)?;
        let rest = reader.sized(LONGEST_PATH)?;
        let previous = self.previous.as_deref().unwrap_or_default();
        let mut path = previous.get(..shared).ok_or(TreeError::Reference)?.to_vec();
        path.extend_from_slice(rest);
        check_path(&path)?;
        if self
            .previous
            .as_ref()
            .is_some_and(|previous| compare_paths(previous, &path) != Ordering::Less)
        {
            return Err(TreeError::Order { path: shown(&path) });
        }
        self.total += path.len();
        if self.total > LARGEST_PATHS {
            return Err(TreeError::TooLarge);
        }
        self.previous = Some(path.clone());
        Ok(path)
    }
}

fn read_leaf(reader: &mut Reader<'_>) -> Result<Vec<Entry>, TreeError> {
    let names = reader.count(1)?;
    let mut owners = Vec::with_capacity(names.min(64));
    for _ in 0..names {
        let name = std::str::from_utf8(reader.sized(LONGEST_OWNER)?);
        owners
            .push(name.map_err(|_| TreeError::Inconsistent("an owner's name that is not UTF-8"))?);
    }
    let count = reader.count(SMALLEST_ENTRY)?;
    let mut entries = Vec::with_capacity(count);
    let mut paths = Paths::default();
    let mut modified_ns = 0i64;
    for _ in 0..count {
        let path = paths.read(reader)?;
        let entry = read_entry(reader, path, modified_ns, &owners)?;
        check_entry(&entry)?;
        modified_ns = entry.modified_ns;
        entries.push(entry);
    }
    Ok(entries)
}

fn read_entry(
    reader: &mut Reader<'_>,
    path: Vec<u8>,
    before_ns: i64,
    owners: &[&str],
) -> Result<Entry, TreeError> {
    let kinds = reader.byte()?;
    let kind = match kinds & 0xf {
        0 => EntryKind::File,
        1 => EntryKind::Directory,
        2 => EntryKind::Link,
        _ => return Err(TreeError::TooNew("an unknown kind of entry")),
    };
    let flags = reader.byte()?;
    let mode = reader.varint_u32()?;
    let owner = read_owner(reader, owners)?;
    let group = read_owner(reader, owners)?;
    let bytes = reader.varint()?;
    let modified_ns = before_ns.wrapping_add(reader.signed()?);
    let target = reader.sized(LONGEST_PATH)?.to_vec();
    let stored_bytes = reader.varint()?;
    let content = match kinds >> 4 {
        0 => Content::Nothing,
        1 => Content::Inline(reader.sized(LARGEST_INLINE)?.to_vec()),
        2 => Content::Extents(read_extents(reader)?),
        3 => Content::Nodes(read_spans(reader)?),
        _ => return Err(TreeError::TooNew("an unknown kind of content")),
    };
    Ok(Entry {
        path,
        kind,
        mode,
        owner,
        group,
        bytes,
        modified_ns,
        flags,
        target,
        stored_bytes,
        content,
    })
}

fn read_owner(reader: &mut Reader<'_>, owners: &[&str]) -> Result<Owner, TreeError> {
    let code = reader.varint()?;
    let number = code >> 1;
    if code & 1 == 0 {
        return u32::try_from(number)
            .map(Owner::Number)
            .map_err(|_| TreeError::Varint);
    }
    let name = usize::try_from(number)
        .ok()
        .and_then(|place| owners.get(place))
        .ok_or(TreeError::Reference)?;
    Ok(Owner::Name((*name).to_owned()))
}

fn read_spans(reader: &mut Reader<'_>) -> Result<Vec<NodeSpan>, TreeError> {
    let count = reader.count(SMALLEST_SPAN)?;
    let mut spans = Vec::with_capacity(count);
    for _ in 0..count {
        spans.push(NodeSpan {
            length: reader.varint()?,
            id: reader.id()?,
        });
    }
    Ok(spans)
}

fn read_inner(reader: &mut Reader<'_>) -> Result<Vec<Child>, TreeError> {
    let count = reader.count(SMALLEST_CHILD)?;
    let mut children = Vec::with_capacity(count);
    let mut paths = Paths::default();
    for _ in 0..count {
        let first_path = paths.read(reader)?;
        let id = reader.id()?;
        let (entries, file_bytes, stored_bytes) =
            (reader.varint()?, reader.varint()?, reader.varint()?);
        children.push(Child {
            first_path,
            id,
            sums: NodeSums {
                entries,
                file_bytes,
                stored_bytes,
            },
        });
    }
    Ok(children)
}

fn content_code(content: &Content) -> u8 {
    match content {
        Content::Nothing => 0,
        Content::Inline(_) => 1,
        Content::Extents(_) => 2,
        Content::Nodes(_) => 3,
    }
}
