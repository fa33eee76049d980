//! Writing a tree: entries in, nodes out, children before parents.
//!
//! A node ends behind an entry whose *path* hashes to [`END_BITS`] low zero bits (inner levels: the first path below a
//! child), so an unchanged run of files ends at the same places in every snapshot and its nodes are shared, whatever
//! changed beside it. Bounds on the encoded size ([`SMALLEST`], [`LARGEST`]) keep nodes worth a blob.
//!
//! Promises: the same entries make the same nodes; memory holds one open node per level, however many siblings a
//! directory has. Refuses entries out of path order.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::ids::{BlobKind, ChunkId, Namer, digest};

use super::bytes::{put_sized, put_varint};
use super::node::{Before, NodeKind, node_header, owner_code, put_child, put_entry};
use super::{
    Child, Entry, LARGEST_NODE, LARGEST_PATHS, NodeSums, Owner, TreeError, check_entry,
    compare_paths, shown,
};

/// A node ends where this many low bits of a path's hash are zero: one path in 512, which with entries of 80 bytes makes
/// nodes of 48 KiB on average.
const END_BITS: u32 = 9;
/// No node is ended by a hash that has fewer encoded bytes.
const SMALLEST: usize = 8 << 10;
/// No node of more than one entry has more encoded bytes.
const LARGEST: usize = 256 << 10;
/// What surrounds a leaf's entries and names: header and two counts.
const FRAME: usize = 6 + 2 * 10;
/// An inner node that is ended has this many children at least, so every level is shorter than the one below.
const FEWEST_CHILDREN: usize = 2;

/// Where finished nodes go: each has its id and its bytes, and comes before the nodes that name it.
pub type Sink<'a, E> = &'a mut dyn FnMut(ChunkId, Vec<u8>) -> Result<(), E>;

/// Builds the tree of one snapshot.
#[derive(Debug)]
pub struct TreeWriter {
    namer: Namer,
    last_path: Option<Vec<u8>>,
    leaf: Open,
    owners: Owners,
    /// Inner levels, the lowest first; each has been given a child.
    inner: Vec<Open>,
}

/// A node that is being filled.
#[derive(Debug, Default)]
struct Open {
    body: Vec<u8>,
    count: usize,
    path_bytes: usize,
    first_path: Vec<u8>,
    before: Before,
    sums: NodeSums,
    /// The only child so far of this whole level: if it stays so, it is the root.
    only: Option<Child>,
}

/// The names of owners in the open leaf.
#[derive(Debug, Default)]
struct Owners {
    places: HashMap<String, u64>,
    table: Vec<u8>,
}

impl TreeWriter {
    /// An empty tree, whose nodes `namer` names.
    pub fn new(namer: &Namer) -> Self {
        TreeWriter {
            namer: namer.clone(),
            last_path: None,
            leaf: Open::default(),
            owners: Owners::default(),
            inner: Vec::new(),
        }
    }

    /// Adds an entry; its path must come after that of the one before. Nodes that are complete go into `sink`.
    pub fn push<E: From<TreeError>>(&mut self, entry: &Entry, sink: Sink<'_, E>) -> Result<(), E> {
        check_entry(entry)?;
        if self
            .last_path
            .as_ref()
            .is_some_and(|last| compare_paths(last, &entry.path) != Ordering::Less)
        {
            return Err(E::from(TreeError::Order {
                path: shown(&entry.path),
            }));
        }
        if !self.append(entry) {
            self.end_leaf(sink)?;
            self.append(entry);
        }
        if self.leaf_bytes() > LARGEST_NODE - FRAME {
            return Err(E::from(TreeError::TooLarge));
        }
        let ends = self.leaf_bytes() >= SMALLEST && ends_node(&entry.path);
        self.last_path = Some(entry.path.clone());
        if ends {
            self.end_leaf(sink)?;
        }
        Ok(())
    }

    /// Ends the tree: the id of its root, and its sums.
    pub fn finish<E: From<TreeError>>(
        mut self,
        sink: Sink<'_, E>,
    ) -> Result<(ChunkId, NodeSums), E> {
        if self.inner.is_empty() {
            let sums = self.leaf.sums;
            return self.write_leaf(sink).map(|child| (child.id, sums));
        }
        if self.leaf.count > 0 {
            self.end_leaf(sink)?;
        }
        let mut level = 0;
        loop {
            let is_top = level + 1 == self.inner.len();
            let Some(open) = self.inner.get_mut(level) else {
                return Err(E::from(TreeError::Inconsistent("a tree without a root")));
            };
            if let (true, Some(only)) = (is_top, open.only.take()) {
                return Ok((only.id, only.sums));
            }
            if is_top {
                let root = write_inner(&self.namer, open, sink)?;
                return Ok((root.id, root.sums));
            }
            if open.count > 0 {
                let child = write_inner(&self.namer, open, sink)?;
                self.push_child(level + 1, child, sink)?;
            }
            level += 1;
        }
    }

    /// Appends an entry to the open leaf, unless that has others and would grow too large.
    fn append(&mut self, entry: &Entry) -> bool {
        let (body, table, names) = (
            self.leaf.body.len(),
            self.owners.table.len(),
            self.owners.places.len(),
        );
        let owner = self.owners.code(&entry.owner);
        let group = self.owners.code(&entry.group);
        put_entry(&mut self.leaf.body, entry, &self.leaf.before, owner, group);
        let path_bytes = self.leaf.path_bytes + entry.path.len();
        if self.leaf.count > 0 && (self.leaf_bytes() > LARGEST || path_bytes > LARGEST_PATHS) {
            self.leaf.body.truncate(body);
            self.owners.table.truncate(table);
            self.owners.places.retain(|_, place| *place < names as u64);
            return false;
        }
        self.leaf.added(&entry.path, NodeSums::of(entry));
        self.leaf.before.modified_ns = entry.modified_ns;
        true
    }

    fn leaf_bytes(&self) -> usize {
        self.leaf.body.len() + self.owners.table.len()
    }

    fn end_leaf<E: From<TreeError>>(&mut self, sink: Sink<'_, E>) -> Result<(), E> {
        let child = self.write_leaf(sink)?;
        self.push_child(0, child, sink)
    }

    fn write_leaf<E>(&mut self, sink: Sink<'_, E>) -> Result<Child, E> {
        let leaf = std::mem::take(&mut self.leaf);
        let owners = std::mem::take(&mut self.owners);
        let mut bytes = node_header(NodeKind::Leaf);
        put_varint(&mut bytes, owners.places.len() as u64);
        bytes.extend_from_slice(&owners.table);
        put_varint(&mut bytes, leaf.count as u64);
        bytes.extend_from_slice(&leaf.body);
        give(&self.namer, bytes, leaf.first_path, leaf.sums, sink)
    }

    /// Gives a child to an inner level, and the node that it completes, if any, to the level above.
    fn push_child<E: From<TreeError>>(
        &mut self,
        level: usize,
        child: Child,
        sink: Sink<'_, E>,
    ) -> Result<(), E> {
        let mut rising = Some(child);
        for level in level.. {
            let Some(child) = rising.take() else { break };
            let is_first = level == self.inner.len();
            if is_first {
                self.inner.push(Open::default());
            }
            let Some(open) = self.inner.get_mut(level) else {
                return Err(E::from(TreeError::Inconsistent(
                    "a level without one below",
                )));
            };
            if !open.append_child(&child) {
                rising = Some(write_inner(&self.namer, open, sink)?);
                open.append_child(&child);
            }
            // Never after the above: a node with one child is not ended.
            let long_enough = open.count >= FEWEST_CHILDREN && open.body.len() >= SMALLEST;
            if long_enough && ends_node(&child.first_path) {
                rising = Some(write_inner(&self.namer, open, sink)?);
            }
            open.only = is_first.then_some(child);
        }
        Ok(())
    }
}

impl Open {
    fn added(&mut self, path: &[u8], sums: NodeSums) {
        if self.count == 0 {
            self.first_path = path.to_vec();
        }
        self.count += 1;
        self.path_bytes += path.len();
        self.before.path = path.to_vec();
        self.sums.add(sums);
    }

    /// Appends a child, unless there are enough others and the node would grow too large.
    fn append_child(&mut self, child: &Child) -> bool {
        let body = self.body.len();
        put_child(&mut self.body, child, &self.before.path);
        if self.count >= FEWEST_CHILDREN && self.body.len() > LARGEST {
            self.body.truncate(body);
            return false;
        }
        self.added(&child.first_path, child.sums);
        true
    }
}

impl Owners {
    fn code(&mut self, owner: &Owner) -> u64 {
        match owner {
            Owner::Number(number) => owner_code(u64::from(*number), false),
            Owner::Name(name) => {
                let next = self.places.len() as u64;
                let place = *self.places.entry(name.clone()).or_insert_with(|| {
                    put_sized(&mut self.table, name.as_bytes());
                    next
                });
                owner_code(place, true)
            }
        }
    }
}

fn write_inner<E>(namer: &Namer, open: &mut Open, sink: Sink<'_, E>) -> Result<Child, E> {
    let inner = std::mem::take(open);
    let mut bytes = node_header(NodeKind::Inner);
    put_varint(&mut bytes, inner.count as u64);
    bytes.extend_from_slice(&inner.body);
    give(namer, bytes, inner.first_path, inner.sums, sink)
}

fn give<E>(
    namer: &Namer,
    bytes: Vec<u8>,
    first_path: Vec<u8>,
    sums: NodeSums,
    sink: Sink<'_, E>,
) -> Result<Child, E> {
    let id = namer.name(BlobKind::Node, &bytes);
    sink(id, bytes)?;
    Ok(Child {
        first_path,
        id,
        sums,
    })
}

fn ends_node(path: &[u8]) -> bool {
    let [a, b, c, d, ..] = digest(path);
    u32::from_le_bytes([a, b, c, d]).trailing_zeros() >= END_BITS
}
