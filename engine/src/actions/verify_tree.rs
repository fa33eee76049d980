//! Verifying backups: the whole tree of each is walked, and whatever it names must be there.
//!
//! Promises: what is lost is told by the path of the file that needs it, and does not end the walk; nodes that several
//! backups share are walked once; packs of which a backup needs chunks and that were not read yet are named, for them to
//! be read before anything is said. Memory: a node for each level, the packs' ids, and the ids of the nodes that were walked,
//! as far as there is room for them.

use std::collections::{BTreeSet, HashSet};

use crate::actions::error::{Result, with_causes};
use crate::actions::fetch::Locator;
use crate::actions::nodes::NodeReader;
use crate::ids::{ChunkId, Extent, Location, PackId, Parts};
use crate::repository::snapshot::Manifest;
use crate::repository::tree::{Content, Entry, Node, NodeSpan};

/// Nodes that are remembered: 100 MiB of ids. What is forgotten is walked again by the next backup that has it.
const REMEMBERED: usize = 2 << 20;
/// Losses of one backup that are told by name.
const NAMED: usize = 20;
/// No tree that was ever written is so high: levels are cut by the same rule as leaves, which hold dozens of entries.
const HIGHEST: usize = 100;

/// What a backup lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Losses {
    /// The first of them.
    pub(super) named: Vec<String>,
    /// How many more there are.
    pub(super) more: u64,
}

impl Losses {
    /// One more.
    pub(super) fn add(&mut self, loss: String) {
        if self.named.len() < NAMED {
            self.named.push(loss);
        } else {
            self.more += 1;
        }
    }
}

/// Walks the trees of backups.
pub(super) struct TreeVerifier<'a> {
    locator: &'a Locator<'a>,
    has_read: &'a dyn Fn(&PackId) -> bool,
    sound: HashSet<ChunkId>,
    /// Of the backup that is walked: what was told needs no second telling.
    unsound: HashSet<ChunkId>,
    /// Packs that hold what was walked over and that nobody has read.
    pub(super) unread: BTreeSet<PackId>,
}

/// One backup that is walked.
struct Walk<'w, 'a> {
    verifier: &'w mut TreeVerifier<'a>,
    nodes: NodeReader<'a>,
    losses: &'w mut Losses,
}

impl<'a> TreeVerifier<'a> {
    /// A verifier; `has_read` says of which packs every chunk was read that is not hidden.
    pub(super) fn new(locator: &'a Locator<'a>, has_read: &'a dyn Fn(&PackId) -> bool) -> Self {
        TreeVerifier {
            locator,
            has_read,
            sound: HashSet::new(),
            unsound: HashSet::new(),
            unread: BTreeSet::new(),
        }
    }

    /// Walks a backup's tree; what it lacks goes to `losses`.
    pub(super) fn walk(&mut self, manifest: &Manifest, losses: &mut Losses) -> Result<()> {
        self.unsound.clear();
        let locator = self.locator;
        let repository = locator.repository();
        let nodes = NodeReader::new(repository, &locator.known.index, &manifest.label)?;
        let mut walk = Walk {
            nodes: nodes.with_locator(locator),
            verifier: self,
            losses,
        };
        walk.node(manifest.root, b"", 0).map(drop)
    }

    /// Where a usable copy of each of these chunks lies, if there is one.
    pub(super) fn locate(&mut self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        let mut found = Vec::with_capacity(ids.len());
        self.locator.locate(ids, &mut found)?;
        for copy in found.iter().flatten() {
            if !(self.has_read)(&copy.pack) {
                self.unread.insert(copy.pack);
            }
        }
        Ok(found)
    }

    /// What is wrong with the chunk of each of these extents, if anything is.
    fn judge(&mut self, extents: &[Extent]) -> Result<Vec<Option<String>>> {
        let ids: Vec<ChunkId> = extents.iter().map(|extent| extent.id).collect();
        let found = self.locate(&ids)?;
        let wrong = extents.iter().zip(found).map(|(extent, copy)| match copy {
            None => Some(format!("chunk {} is lost", extent.id)),
            Some(copy) if copy.raw_bytes == extent.length => None,
            Some(copy) => Some(format!(
                "chunk {} has {} bytes where {} should stand",
                extent.id, copy.raw_bytes, extent.length
            )),
        });
        Ok(wrong.collect())
    }

    fn remember(&mut self, node: ChunkId, sound: bool) {
        let nodes = if sound {
            &mut self.sound
        } else {
            &mut self.unsound
        };
        if nodes.len() >= REMEMBERED {
            nodes.clear();
        }
        nodes.insert(node);
    }
}

impl<'a> Walk<'_, 'a> {
    /// Walks what is below a node; whether nothing of it is lost.
    fn node(&mut self, id: ChunkId, first_path: &[u8], height: usize) -> Result<bool> {
        if self.verifier.sound.contains(&id) {
            return Ok(true);
        }
        if self.verifier.unsound.contains(&id) {
            return Ok(false);
        }
        let lost = |error: String| format!("all files from {} on: {error}", shown(first_path));
        if height > HIGHEST {
            self.losses.add(lost("the tree does not end".to_owned()));
            return Ok(false);
        }
        let sound = match self.read(id, NodeReader::node)? {
            Ok(Node::Inner(children)) => {
                let mut sound = true;
                for child in children {
                    sound &= self.node(child.id, &child.first_path, height + 1)?;
                }
                sound
            }
            Ok(Node::Leaf(entries)) => self.leaf(&entries)?,
            Err(damage) => {
                self.losses.add(lost(damage));
                false
            }
        };
        self.verifier.remember(id, sound);
        Ok(sound)
    }

    /// Reads a node, whose pack is to be read too: what comes from a cache proves nothing. The inner error is what is lost.
    fn read<T>(
        &mut self,
        id: ChunkId,
        read: impl FnOnce(&NodeReader<'a>, ChunkId) -> Result<T>,
    ) -> Result<std::result::Result<T, String>> {
        self.verifier.locate(&[id])?;
        match read(&self.nodes, id) {
            Ok(node) => Ok(Ok(node)),
            Err(error) if error.is_damage() => Ok(Err(with_causes(&error))),
            Err(error) => Err(error),
        }
    }

    fn leaf(&mut self, entries: &[Entry]) -> Result<bool> {
        let mut sound = true;
        // The extents of all files that have few are looked up at once.
        let (mut extents, mut paths) = (Vec::new(), Vec::new());
        for entry in entries {
            match &entry.content {
                Content::Nothing | Content::Inline(_) => {}
                Content::Extents(own) => {
                    extents.extend(stored(own));
                    paths.resize(extents.len(), &entry.path);
                }
                Content::Nodes(spans) => sound &= self.spans(&entry.path, spans)?,
            }
        }
        let mut told: Option<&Vec<u8>> = None;
        for (path, wrong) in paths.into_iter().zip(self.verifier.judge(&extents)?) {
            let Some(wrong) = wrong else {
                continue;
            };
            sound = false;
            // A file is told once.
            if told.replace(path) != Some(path) {
                self.losses.add(format!("{}: {wrong}", shown(path)));
            }
        }
        Ok(sound)
    }

    /// Walks the extent nodes of a file.
    fn spans(&mut self, path: &[u8], spans: &[NodeSpan]) -> Result<bool> {
        let mut first_loss = None;
        for span in spans {
            if self.verifier.sound.contains(&span.id) {
                continue;
            }
            let loss = match self.read(span.id, NodeReader::extent_node)? {
                Ok(extents) => self.span(span, &extents)?,
                Err(loss) => Some(loss),
            };
            self.verifier.remember(span.id, loss.is_none());
            first_loss = first_loss.or(loss);
        }
        let sound = first_loss.is_none();
        if let Some(loss) = first_loss {
            self.losses.add(format!("{}: {loss}", shown(path)));
        }
        Ok(sound)
    }

    fn span(&mut self, span: &NodeSpan, extents: &[Extent]) -> Result<Option<String>> {
        let length: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        if length != span.length {
            let stated = span.length;
            return Ok(Some(format!(
                "extents of {length} bytes stand where {stated} should"
            )));
        }
        let stored: Vec<Extent> = stored(extents).collect();
        Ok(self.verifier.judge(&stored)?.into_iter().flatten().next())
    }
}

/// Those of these extents that need a chunk.
fn stored(extents: &[Extent]) -> impl Iterator<Item = Extent> {
    let stored = extents.iter().copied();
    stored.filter(|extent| extent.parts == Parts::Whole)
}

fn shown(path: &[u8]) -> String {
    match path {
        b"" => "the first".to_owned(),
        path => String::from_utf8_lossy(path).into_owned(),
    }
}
