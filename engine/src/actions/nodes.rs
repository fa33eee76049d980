//! Reading a snapshot's tree: nodes by id, entries in path order.
//!
//! Promises: every node is checked against its id, and a damaged copy is passed over for another one; memory is one node
//! for each level and a few read-ahead windows, whatever the size of the tree; a cursor can skip to a path without reading
//! the nodes before it.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Mutex;

use crate::actions::error::{Error, Result};
use crate::actions::fetch::Locator;
use crate::dedup::index::ChunkIndex;
use crate::ids::{BlobKind, ChunkId, Extent, Location, Namer, PackId};
use crate::pack::format::FRAME_BYTES;
use crate::pack::reader::Opener;
use crate::repository::layout::{self, PackClass};
use crate::repository::tree::{
    Child, Content, Entry, Node, TreeError, compare_paths, decode_extent_node, decode_node,
};
use crate::repository::{Repository, packs};

/// Nodes lie side by side in the order in which a walk needs them: what is read at once.
const WINDOW_BYTES: u64 = 256 << 10;
/// Windows that are kept.
const WINDOWS: usize = 32;

/// Reads tree nodes, with a little read-ahead.
pub(super) struct NodeReader<'a> {
    repository: &'a Repository,
    index: &'a ChunkIndex,
    locator: Option<&'a Locator<'a>>,
    label: String,
    state: Mutex<State>,
}

struct State {
    windows: VecDeque<Window>,
    opener: Opener,
    node: Vec<u8>,
    namer: Namer,
}

struct Window {
    pack: PackId,
    offset: u64,
    bytes: Vec<u8>,
}

impl<'a> NodeReader<'a> {
    /// A reader of the nodes of backup `label`.
    pub(super) fn new(
        repository: &'a Repository,
        index: &'a ChunkIndex,
        label: &str,
    ) -> Result<Self> {
        let opener = Opener::new().map_err(|source| Error::PackDamaged {
            key: label.to_owned(),
            source,
        })?;
        let state = State {
            windows: VecDeque::new(),
            opener,
            node: Vec::new(),
            namer: Namer::plain(),
        };
        Ok(NodeReader {
            repository,
            index,
            locator: None,
            label: label.to_owned(),
            state: Mutex::new(state),
        })
    }

    /// Lets the reader ask the whole repository for a node that the index does not know.
    pub(super) fn with_locator(self, locator: &'a Locator<'a>) -> Self {
        NodeReader {
            locator: Some(locator),
            ..self
        }
    }

    /// A node of the tree.
    pub(super) fn node(&self, id: ChunkId) -> Result<Node> {
        self.with(id, decode_node)
    }

    /// The extents of an extent node.
    pub(super) fn extent_node(&self, id: ChunkId) -> Result<Vec<Extent>> {
        self.with(id, decode_extent_node)
    }

    /// Decodes the node `id` with `decode`.
    fn with<T>(
        &self,
        id: ChunkId,
        decode: impl FnOnce(&[u8]) -> std::result::Result<T, TreeError>,
    ) -> Result<T> {
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let state = &mut *state;
        let mut location = self.locate(id)?;
        let mut damage = None;
        while let Some(copy) = location.filter(|copy| copy.kind == BlobKind::Node) {
            let mut read = self.read(state, id, &copy);
            if read.is_err() {
                // Read once more: what was wrong may have been the way and not the place.
                state.windows.retain(|window| window.pack != copy.pack);
                read = self.read(state, id, &copy);
            }
            match read {
                Ok(()) => {
                    return decode(&state.node).map_err(|source| Error::TreeDamaged {
                        node: id,
                        label: self.label.clone(),
                        source,
                    });
                }
                Err(error) if error.is_damage() || self.is_gone(&error) => {
                    location = self.another(id, copy.pack, &error)?;
                    damage = Some(Box::new(error));
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::ChunkLost {
            chunk: id,
            needed_by: format!("the tree of backup {}", self.label),
            source: damage,
        })
    }

    fn locate(&self, id: ChunkId) -> Result<Option<Location>> {
        let mut found = Vec::with_capacity(1);
        match self.locator {
            Some(locator) => locator.locate(&[id], &mut found)?,
            None => self.index.lookup(&[id], &mut found).map_err(Error::Index)?,
        }
        Ok(found.pop().flatten())
    }

    /// Another copy than the one in `pack`. From here on the index does not answer with that one, so that a backup that
    /// makes the same node stores it again.
    fn another(&self, id: ChunkId, pack: PackId, damage: &Error) -> Result<Option<Location>> {
        if let Some(locator) = self.locator {
            return locator.another(id, pack, damage);
        }
        self.index.mark_damaged(id, pack);
        self.locate(id)
    }

    /// Whether it is this pack that cannot be read.
    fn is_gone(&self, error: &Error) -> bool {
        matches!(error, Error::Repository(error) if self.repository.is_about_one_object(error.storage()))
    }

    /// Reads one copy of a node into the state.
    fn read(&self, state: &mut State, id: ChunkId, location: &Location) -> Result<()> {
        let length = FRAME_BYTES as u64 + u64::from(location.stored_bytes);
        let at = self.window(&mut state.windows, location, length)?;
        let window = &state.windows[at];
        let from =
            usize::try_from(u64::from(location.offset) - window.offset).unwrap_or(usize::MAX);
        let frame = window
            .bytes
            .get(from..)
            .and_then(|rest| rest.get(..usize::try_from(length).ok()?));
        state
            .opener
            .open(
                &state.namer,
                &id,
                location,
                frame.unwrap_or_default(),
                &mut state.node,
            )
            .map_err(|source| Error::CopyDamaged {
                key: layout::pack(PackClass::Meta, location.pack).to_string(),
                offset: location.offset,
                source,
            })
    }

    /// The place in `windows` of one that holds `length` bytes from the location on; reads it if need be.
    fn window(
        &self,
        windows: &mut VecDeque<Window>,
        location: &Location,
        length: u64,
    ) -> Result<usize> {
        let offset = u64::from(location.offset);
        let holds = |window: &Window| {
            window.pack == location.pack
                && window.offset <= offset
                && offset + length <= window.offset + window.bytes.len() as u64
        };
        if let Some(at) = windows.iter().position(holds) {
            return Ok(at);
        }
        let end = self
            .index
            .pack_bytes(&location.pack)
            .unwrap_or(0)
            .min(offset + WINDOW_BYTES)
            .max(offset + length);
        let mut bytes = vec![0; usize::try_from(end - offset).unwrap_or(0)];
        packs::get_range(
            self.repository,
            PackClass::Meta,
            location.pack,
            offset,
            &mut bytes,
        )
        .map_err(Error::Repository)?;
        if windows.len() == WINDOWS {
            windows.pop_front();
        }
        windows.push_back(Window {
            pack: location.pack,
            offset,
            bytes,
        });
        Ok(windows.len() - 1)
    }

    /// The extents of `content` that begin in `from..to` of the file, with the offset at which the first of them begins.
    pub(super) fn extents(
        &self,
        content: &Content,
        from: u64,
        to: u64,
    ) -> Result<(u64, Vec<Extent>)> {
        let mut picked = Picked {
            from,
            to,
            at: 0,
            begin: None,
            extents: Vec::new(),
        };
        match content {
            Content::Nothing | Content::Inline(_) => {}
            Content::Extents(extents) => picked.take(extents),
            Content::Nodes(spans) => {
                for span in spans {
                    if picked.at + span.length <= from || picked.at >= to {
                        picked.at += span.length;
                        continue;
                    }
                    picked.take(&self.extent_node(span.id)?);
                }
            }
        }
        Ok((picked.begin.unwrap_or(picked.at), picked.extents))
    }
}

struct Picked {
    from: u64,
    to: u64,
    at: u64,
    begin: Option<u64>,
    extents: Vec<Extent>,
}

impl Picked {
    fn take(&mut self, extents: &[Extent]) {
        for extent in extents {
            if (self.from..self.to).contains(&self.at) {
                self.begin.get_or_insert(self.at);
                self.extents.push(*extent);
            }
            self.at += u64::from(extent.length);
        }
    }
}

/// Walks the entries of a tree in path order.
pub(super) struct TreeCursor<'r, 'a> {
    nodes: &'r NodeReader<'a>,
    /// Inner nodes on the way down: their children from the last to the next.
    levels: Vec<Vec<Child>>,
    /// Entries of the open leaf, from the last to the next.
    leaf: Vec<Entry>,
}

impl<'r, 'a> TreeCursor<'r, 'a> {
    /// A cursor before the first entry below `root`.
    pub(super) fn new(nodes: &'r NodeReader<'a>, root: ChunkId) -> Result<Self> {
        let mut cursor = TreeCursor {
            nodes,
            levels: Vec::new(),
            leaf: Vec::new(),
        };
        cursor.descend(root)?;
        Ok(cursor)
    }

    fn descend(&mut self, id: ChunkId) -> Result<()> {
        match self.nodes.node(id)? {
            Node::Leaf(mut entries) => {
                entries.reverse();
                self.leaf = entries;
            }
            Node::Inner(mut children) => {
                children.reverse();
                self.levels.push(children);
            }
        }
        Ok(())
    }

    /// The next entry.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        self.fill(None)?;
        Ok(self.leaf.pop())
    }

    /// The entry at `path`, if there is one; entries before it are passed over, so paths must rise from call to call.
    pub(super) fn seek(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        loop {
            self.fill(Some(path))?;
            let Some(next) = self.leaf.last() else {
                return Ok(None);
            };
            match compare_paths(&next.path, path) {
                Ordering::Less => drop(self.leaf.pop()),
                Ordering::Equal => return Ok(self.leaf.pop()),
                Ordering::Greater => return Ok(None),
            }
        }
    }

    /// Opens leaves until one has an entry left; with a path, skips subtrees that end before it.
    fn fill(&mut self, path: Option<&[u8]>) -> Result<()> {
        while self.leaf.is_empty() {
            let Some(children) = self.levels.last_mut() else {
                return Ok(());
            };
            let Some(child) = children.pop() else {
                self.levels.pop();
                continue;
            };
            let ends_before =
                |next: &Child, path| compare_paths(&next.first_path, path) != Ordering::Greater;
            if let (Some(path), Some(next)) = (path, children.last())
                && ends_before(next, path)
            {
                continue;
            }
            self.descend(child.id)?;
        }
        Ok(())
    }
}
