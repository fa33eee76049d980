//! What a backup stores for each file, read from the repository without the engine's actions.
//!
//! Promises: every node and extent of a backup, with the bytes that it takes in its pack; so that a test knows what a
//! delta restore has to fetch.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use pgcairn_engine::ids::{BlobKind, ChunkId, Extent, Location, Namer, Parts};
use pgcairn_engine::pack::format::FRAME_BYTES;
use pgcairn_engine::pack::reader::{Opener, read_blob};
use pgcairn_engine::repository::layout::PackClass;
use pgcairn_engine::repository::snapshot::Manifest;
use pgcairn_engine::repository::tree::{
    Content, Entry, EntryKind, Node, decode_extent_node, decode_node,
};
use pgcairn_engine::repository::{Repository, packs, segment};

/// The files of a backup with their extents; files whose content is in the tree have none.
pub struct StoredTree {
    files: Vec<(Entry, Vec<Extent>)>,
    stored: BTreeMap<ChunkId, Location>,
}

impl StoredTree {
    /// Reads the tree of a backup.
    pub fn read(repository: &Repository, manifest: &Manifest) -> Self {
        let mut stored = BTreeMap::new();
        for key in segment::list(repository, None).expect("segments can be listed") {
            let segment = segment::get(repository, &key).expect("segments can be read");
            for pack in segment.packs {
                for fact in pack.blobs {
                    let location = Location {
                        pack: pack.pack,
                        offset: fact.offset,
                        stored_bytes: fact.stored_bytes,
                        raw_bytes: fact.raw_bytes,
                        kind: fact.kind,
                    };
                    stored.insert(fact.id, location);
                }
            }
        }
        let mut tree = StoredTree {
            files: Vec::new(),
            stored,
        };
        tree.walk(repository, manifest.root);
        tree
    }

    fn walk(&mut self, repository: &Repository, id: ChunkId) {
        match decode_node(&self.node(repository, id)).expect("a whole node") {
            Node::Inner(children) => {
                for child in children {
                    self.walk(repository, child.id);
                }
            }
            Node::Leaf(entries) => {
                for entry in entries
                    .into_iter()
                    .filter(|entry| entry.kind == EntryKind::File)
                {
                    let extents = match &entry.content {
                        Content::Nothing | Content::Inline(_) => Vec::new(),
                        Content::Extents(extents) => extents.clone(),
                        Content::Nodes(spans) => spans
                            .iter()
                            .flat_map(|span| {
                                let node = self.node(repository, span.id);
                                decode_extent_node(&node).expect("a whole extent node")
                            })
                            .collect(),
                    };
                    self.files.push((entry, extents));
                }
            }
        }
    }

    fn node(&self, repository: &Repository, id: ChunkId) -> Vec<u8> {
        let location = self.stored[&id];
        let mut fetch = |offset, buffer: &mut [u8]| {
            packs::get_range(repository, PackClass::Meta, location.pack, offset, buffer)
        };
        let mut opener = Opener::new().expect("an opener can be made");
        let mut node = Vec::new();
        read_blob(
            &mut fetch,
            &Namer::plain(),
            &mut opener,
            &id,
            &location,
            &mut node,
        )
        .expect("a whole node");
        node
    }

    /// The bytes that must be fetched to make `target` equal to the backup, frames included; and how many extents differ.
    pub fn missing_bytes(&self, target: &Path) -> (u64, u64) {
        let namer = Namer::plain();
        let (mut bytes, mut differ) = (0, 0);
        for (entry, extents) in &self.files {
            let path = target.join(std::str::from_utf8(&entry.path).expect("names are UTF-8 here"));
            let local = local_bytes(&path);
            let length = local.len();
            let mut padded = local;
            padded.resize(usize::try_from(entry.bytes).expect("a small file"), 0);
            let mut offset = 0;
            for extent in extents {
                let end = offset + extent.length as usize;
                let right = offset < length
                    && namer.name(BlobKind::Data, &padded[offset..end]) == extent.id;
                if !right && extent.parts != Parts::Zero {
                    bytes += FRAME_BYTES as u64 + u64::from(self.stored[&extent.id].stored_bytes);
                    differ += 1;
                }
                offset = end;
            }
        }
        (bytes, differ)
    }
}

/// What can be kept of a file: nothing of a link or a directory, nor of a file that has other names.
fn local_bytes(path: &Path) -> Vec<u8> {
    let real = path.canonicalize().is_ok_and(|real| real == path);
    match fs::symlink_metadata(path) {
        Ok(found) if real && found.is_file() && found.nlink() == 1 => {
            fs::read(path).expect("a file of the test can be read")
        }
        _ => Vec::new(),
    }
}
