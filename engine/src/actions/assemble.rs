//! Puts a backup's results, which arrive in any order, into the snapshot tree, which is written in path order.
//!
//! Promises: the tree depends on the cluster alone, not on the order in which jobs end; memory is the results that are
//! ahead of the oldest unfinished job, which the plan's queue bounds.

use std::collections::HashMap;

use crate::actions::copy::{Done, Piece, SourceFile};
use crate::actions::error::{Error, Result};
use crate::actions::packer::Packer;
use crate::actions::pages::SuspectPage;
use crate::actions::pipeline::Inlet;
use crate::actions::plan::Planned;
use crate::actions::stat_record::{Stat, StatWriter};
use crate::cluster::data_dir::{Source, SourceKind};
use crate::cluster::owner::Owners;
use crate::dedup::index::ChunkIndex;
use crate::ids::{BlobKind, ChunkId, Extent, Namer};
use crate::monitor::{Counter, Monitor, Problem, Tally};
use crate::pack::writer::Sealer;
use crate::repository::config::Config;
use crate::repository::tree::{
    Content, Entry, EntryKind, FOLLOWED, NodeSpan, NodeSums, Owner, PAGES, SUSPECT, TreeWriter,
    encode_extent_node,
};

/// Suspect pages that are listed by name; beyond it they are only counted.
const LISTED_SUSPECTS: usize = 100_000;

/// An owner by name, or by number where it has none.
fn named(name: Option<&str>, number: u32) -> Owner {
    name.map_or(Owner::Number(number), |name| Owner::Name(name.to_owned()))
}

/// Stores tree nodes.
pub(super) struct NodeStore<'a> {
    pub(super) index: &'a ChunkIndex,
    pub(super) packer: &'a Packer<'a>,
    pub(super) namer: Namer,
    pub(super) sealer: Sealer,
}

impl NodeStore<'_> {
    /// Stores a node unless the repository has it; answers what it takes there.
    pub(super) fn store(&mut self, id: ChunkId, bytes: &[u8]) -> Result<u64> {
        let mut found = Vec::with_capacity(1);
        self.index.lookup(&[id], &mut found).map_err(Error::Index)?;
        if let Some(location) = found.pop().flatten() {
            return Ok(u64::from(location.stored_bytes));
        }
        let offered = self
            .packer
            .offer(&mut self.sealer, &self.namer, BlobKind::Node, id, bytes);
        offered
            .map(|offered| u64::from(offered.stored_bytes))
            .map_err(|error| error.about(b"the snapshot tree"))
    }
}

/// The finished tree.
pub(super) struct Assembled {
    pub(super) root: ChunkId,
    pub(super) sums: NodeSums,
    pub(super) files: u64,
    /// Pages to be judged once the backup's end is known, with their file.
    pub(super) suspects: Vec<(Vec<u8>, SuspectPage)>,
    /// Suspects that were too many to list.
    pub(super) unlisted_suspects: u64,
}

/// The extents of the file at hand, grouped by the fixed spans of extent nodes.
#[derive(Default)]
struct Spans {
    closed: Vec<NodeSpan>,
    open: Vec<Extent>,
    open_bytes: u64,
    at: u64,
    span: u64,
}

impl Spans {
    /// Whether the next extent begins in another span than the open ones.
    fn begins_next(&self, span_bytes: u64) -> bool {
        !self.open.is_empty() && (self.at / span_bytes) != self.span / span_bytes
    }

    fn push(&mut self, extent: Extent) {
        if self.open.is_empty() {
            self.span = self.at;
        }
        self.at += u64::from(extent.length);
        self.open_bytes += u64::from(extent.length);
        self.open.push(extent);
    }
}

/// Takes the plan and the results.
pub(super) struct Assembler<'a> {
    nodes: NodeStore<'a>,
    writer: TreeWriter,
    stat: StatWriter,
    owners: Owners,
    extent_node_span: u64,
    region_bytes: u64,
    early: HashMap<u64, Vec<Piece>>,
    files: u64,
    suspects: Vec<(Vec<u8>, SuspectPage)>,
    unlisted_suspects: u64,
    tally: &'a Tally,
    monitor: &'a dyn Monitor,
}

impl<'a> Assembler<'a> {
    /// An assembler whose tree nodes go to `nodes` and whose stat record goes to `stat`.
    pub(super) fn new(
        nodes: NodeStore<'a>,
        stat: StatWriter,
        config: &Config,
        tally: &'a Tally,
        monitor: &'a dyn Monitor,
    ) -> Self {
        let writer = TreeWriter::new(&nodes.namer);
        Assembler {
            nodes,
            writer,
            stat,
            owners: Owners::default(),
            extent_node_span: u64::from(config.extent_node_span),
            region_bytes: u64::from(config.region_bytes),
            early: HashMap::new(),
            files: 0,
            suspects: Vec::new(),
            unlisted_suspects: 0,
            tally,
            monitor,
        }
    }

    /// Builds the whole tree.
    pub(super) fn run(
        mut self,
        plan: &Inlet<Planned>,
        results: &Inlet<Done>,
    ) -> Result<(Assembled, StatWriter)> {
        while let Some(planned) = plan.next() {
            match planned {
                Planned::Plain(source) => {
                    let entry = self.entry(&source, Content::Nothing);
                    self.push(&entry)?;
                }
                Planned::Unread(source, prior) => self.unread(&source, *prior)?,
                Planned::Read {
                    file,
                    sequence,
                    jobs,
                    slot,
                } => self.read(&file, sequence, jobs, slot, results)?,
            }
        }
        let nodes = &mut self.nodes;
        let (root, sums) = self
            .writer
            .finish::<Error>(&mut |id, bytes| nodes.store(id, &bytes).map(drop))?;
        let assembled = Assembled {
            root,
            sums,
            files: self.files,
            suspects: self.suspects,
            unlisted_suspects: self.unlisted_suspects,
        };
        Ok((assembled, self.stat))
    }

    fn push(&mut self, entry: &Entry) -> Result<()> {
        let nodes = &mut self.nodes;
        self.writer
            .push::<Error>(entry, &mut |id, bytes| nodes.store(id, &bytes).map(drop))
    }

    fn entry(&mut self, source: &Source, content: Content) -> Entry {
        let mut flags = 0;
        let followed = source.target.is_some() && source.kind != SourceKind::Link;
        flags |= if followed { FOLLOWED } else { 0 };
        flags |= if source.relation.is_some() { PAGES } else { 0 };
        Entry {
            path: source.path.clone(),
            kind: match source.kind {
                SourceKind::File => EntryKind::File,
                SourceKind::Directory => EntryKind::Directory,
                SourceKind::Link => EntryKind::Link,
            },
            mode: source.mode & 0o7777,
            owner: named(self.owners.user_name(source.uid), source.uid),
            group: named(self.owners.group_name(source.gid), source.gid),
            bytes: if source.kind == SourceKind::File {
                source.bytes
            } else {
                0
            },
            modified_ns: source.modified_ns,
            flags,
            target: source.target.clone().unwrap_or_default(),
            stored_bytes: 0,
            content,
        }
    }

    fn unread(&mut self, source: &Source, prior: Entry) -> Result<()> {
        let mut entry = self.entry(source, prior.content);
        entry.stored_bytes = prior.stored_bytes;
        self.tally.add(Counter::KnownBytes, entry.bytes);
        self.done(source, &entry)
    }

    /// Counts a file, notes its stat and puts it into the tree.
    fn done(&mut self, source: &Source, entry: &Entry) -> Result<()> {
        self.files += 1;
        self.tally.add(Counter::Files, 1);
        self.tally.add(Counter::FileBytes, entry.bytes);
        self.stat.push(&source.path, Stat::of(source))?;
        self.push(entry)
    }

    fn read(
        &mut self,
        file: &SourceFile,
        sequence: u64,
        jobs: u64,
        slot: usize,
        results: &Inlet<Done>,
    ) -> Result<()> {
        let source = &file.source;
        let mut entry = self.entry(source, Content::Nothing);
        entry.bytes = 0;
        let mut spans = Spans::default();
        let mut ended = false;
        let mut suspects = Vec::new();
        for region in 0..jobs {
            let piece = self.piece(sequence + region, slot, results)?;
            if piece.vanished {
                // Dropped while we read: recovery would drop it too. Results of its other regions are taken and left.
                self.skip(sequence + region + 1, jobs - region - 1, slot, results)?;
                return Ok(());
            }
            if ended {
                continue;
            }
            // A file that shrank ends where it is first found short: recovery extends it again.
            ended = piece.bytes
                < self
                    .region_bytes
                    .min(source.bytes - region * self.region_bytes);
            entry.bytes += piece.bytes;
            entry.stored_bytes += piece.stored_bytes;
            suspects.extend(piece.suspects);
            if !piece.inline.is_empty() && entry.bytes <= piece.inline.len() as u64 {
                entry.content = Content::Inline(piece.inline);
            }
            for extent in piece.extents {
                if spans.begins_next(self.extent_node_span) {
                    self.close_span(&mut spans, &mut entry)?;
                }
                spans.push(extent);
            }
        }
        if !spans.closed.is_empty() {
            self.close_span(&mut spans, &mut entry)?;
            entry.content = Content::Nodes(spans.closed);
        } else if !spans.open.is_empty() {
            entry.content = Content::Extents(spans.open);
        }
        if !suspects.is_empty() {
            entry.flags |= SUSPECT;
            self.note(source, &suspects);
        }
        self.done(source, &entry)
    }

    /// Stores the open span's extents as an extent node.
    fn close_span(&mut self, spans: &mut Spans, entry: &mut Entry) -> Result<()> {
        let node = encode_extent_node(&spans.open);
        let id = self.nodes.namer.name(BlobKind::Node, &node);
        entry.stored_bytes += self.nodes.store(id, &node)?;
        spans.closed.push(NodeSpan {
            length: spans.open_bytes,
            id,
        });
        spans.open.clear();
        spans.open_bytes = 0;
        Ok(())
    }

    fn skip(&mut self, sequence: u64, jobs: u64, slot: usize, results: &Inlet<Done>) -> Result<()> {
        (sequence..sequence + jobs)
            .try_for_each(|sequence| self.piece(sequence, slot, results).map(drop))
    }

    /// Keeps suspect pages for the verdict.
    fn note(&mut self, source: &Source, suspects: &[SuspectPage]) {
        let room = LISTED_SUSPECTS.saturating_sub(self.suspects.len());
        self.suspects.extend(
            suspects
                .iter()
                .take(room)
                .map(|page| (source.path.clone(), *page)),
        );
        if suspects.len() > room {
            self.unlisted_suspects += (suspects.len() - room) as u64;
            let object = String::from_utf8_lossy(&source.path).into_owned();
            self.monitor.problem(&Problem {
                object,
                message: "too many damaged pages to list them all".to_owned(),
            });
        }
    }

    /// The piece of job `sequence` at `slot`; takes results until it is there.
    fn piece(&mut self, sequence: u64, slot: usize, results: &Inlet<Done>) -> Result<Piece> {
        while !self.early.contains_key(&sequence) {
            let done = results.next().ok_or(Error::Cancelled)?;
            self.early.insert(done.sequence, done.pieces);
        }
        let pieces = self.early.get_mut(&sequence).ok_or(Error::Cancelled)?;
        let piece = pieces.get_mut(slot).map(std::mem::take).unwrap_or_default();
        if slot + 1 >= pieces.len() {
            self.early.remove(&sequence);
        }
        Ok(piece)
    }
}
