//! The work on one piece of the cluster: read, check pages, cut, name, look up, compress, verify, pack.
//!
//! Promises: at most the size seen when the file was listed is read; a file that vanished or shrank is told, never
//! padded; each chunk is looked up before it is stored; no allocation for each chunk. A worker owns one region buffer
//! and its compressor, so its memory does not depend on the files.

use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::nodes::NodeReader;
use crate::actions::packer::Packer;
use crate::actions::pages::{self, SuspectPage};
use crate::actions::pipeline::{Inlet, Outlet};
use crate::cluster::data_dir::Source;
use crate::dedup::chunker::{Chunker, Structure};
use crate::dedup::index::ChunkIndex;
use crate::ids::{BlobKind, ChunkId, Extent, Location, Namer, Parts};
use crate::monitor::{Counter, Monitor, Problem, Tally};
use crate::pack::writer::Sealer;
use crate::repository::config::Config;
use crate::repository::tree::{Content, LARGEST_INLINE};

/// Files up to this size are worked on in batches.
pub(super) const SMALL_FILE: u64 = 1 << 20;
/// What a batch may hold.
pub(super) const BATCH_BYTES: u64 = 8 << 20;
/// Files in a batch.
pub(super) const BATCH_FILES: usize = 128;

/// A file to be read, and what the previous snapshot knows of it.
pub(super) struct SourceFile {
    /// As it was listed.
    pub(super) source: Source,
    /// Its size and content in the previous snapshot.
    pub(super) prior: Option<(u64, Content)>,
}

/// A unit of work.
pub(super) struct Job {
    /// Its place among the jobs; results are found by it.
    pub(super) sequence: u64,
    /// What to do.
    pub(super) work: Work,
}

/// What a job reads.
pub(super) enum Work {
    /// One region of one file, counted from 0.
    Region(Arc<SourceFile>, u64),
    /// Several small files, whole.
    Batch(Vec<Arc<SourceFile>>),
}

/// What became of a job: one piece for a region, one for each file of a batch.
pub(super) struct Done {
    /// The job's place.
    pub(super) sequence: u64,
    /// In the job's order.
    pub(super) pieces: Vec<Piece>,
}

/// A region of a file, or a small file, as it was read.
#[derive(Default)]
pub(super) struct Piece {
    /// Bytes read; fewer than planned if the file shrank.
    pub(super) bytes: u64,
    /// The file was not there any more.
    pub(super) vanished: bool,
    /// The bytes themselves, where they are few.
    pub(super) inline: Vec<u8>,
    /// What it was cut into.
    pub(super) extents: Vec<Extent>,
    /// What its chunks take in the repository.
    pub(super) stored_bytes: u64,
    /// Pages whose checksum does not match.
    pub(super) suspects: Vec<SuspectPage>,
}

/// What all workers of a run share.
pub(super) struct Copier<'a> {
    /// The repository's parameters.
    pub(super) config: &'a Config,
    /// Looks chunks up.
    pub(super) index: &'a ChunkIndex,
    /// Stores the new ones.
    pub(super) packer: &'a Packer<'a>,
    /// Reads the previous snapshot's extents.
    pub(super) prior: Option<&'a NodeReader<'a>>,
    /// Cuts.
    pub(super) chunker: &'a Chunker,
    /// The cluster's page size.
    pub(super) page_bytes: u32,
    /// Page checksums are to be verified.
    pub(super) check_pages: bool,
    /// zstd level.
    pub(super) compress_level: i32,
    /// Counts.
    pub(super) tally: &'a Tally,
    /// Is told.
    pub(super) monitor: &'a dyn Monitor,
}

/// A piece of the buffer that belongs to one file.
struct Slice {
    file: Arc<SourceFile>,
    offset: u64,
    from: usize,
    to: usize,
    piece: Piece,
}

impl Slice {
    /// Whether this is a whole file that is kept in its tree entry.
    fn is_inline(&self) -> bool {
        self.offset == 0 && self.to - self.from <= LARGEST_INLINE
    }
}

/// A chunk of the buffer.
struct Chunk {
    slice: usize,
    from: usize,
    to: usize,
}

/// One worker's own things.
struct Worker<'a> {
    shared: &'a Copier<'a>,
    namer: Namer,
    sealer: Sealer,
    buffer: Vec<u8>,
    ends: Vec<u32>,
    chunks: Vec<Chunk>,
    ids: Vec<ChunkId>,
    found: Vec<Option<Location>>,
}

impl Copier<'_> {
    /// What each worker thread does.
    pub(super) fn work(&self, jobs: &Inlet<Job>, results: &Outlet<Done>) -> Result<()> {
        let sealer = Sealer::new(self.compress_level).map_err(|source| Error::Pack {
            path: "the compressor".to_owned(),
            source,
        })?;
        let mut worker = Worker {
            shared: self,
            namer: Namer::plain(),
            sealer,
            buffer: vec![0; self.config.region_bytes as usize],
            ends: Vec::new(),
            chunks: Vec::new(),
            ids: Vec::new(),
            found: Vec::new(),
        };
        while let Some(job) = jobs.next() {
            let pieces = worker.run(job.work)?;
            self.monitor.progress(self.tally);
            results.send(Done {
                sequence: job.sequence,
                pieces,
            })?;
        }
        Ok(())
    }
}

impl Worker<'_> {
    fn run(&mut self, work: Work) -> Result<Vec<Piece>> {
        let region_bytes = u64::from(self.shared.config.region_bytes);
        let mut slices = Vec::new();
        match work {
            Work::Region(file, region) => self.read(file, region * region_bytes, 0, &mut slices)?,
            Work::Batch(files) => {
                for file in files {
                    let at = slices.last().map_or(0, |slice: &Slice| slice.to);
                    self.read(file, 0, at, &mut slices)?;
                }
            }
        }
        self.chunks.clear();
        for at in 0..slices.len() {
            self.check(&mut slices[at]);
            self.cut(at, &slices[at])?;
        }
        self.ids.clear();
        for chunk in &self.chunks {
            self.ids.push(
                self.namer
                    .name(BlobKind::Data, &self.buffer[chunk.from..chunk.to]),
            );
        }
        self.shared
            .index
            .lookup(&self.ids, &mut self.found)
            .map_err(Error::Index)?;
        self.place(&mut slices)?;
        Ok(slices.into_iter().map(|slice| slice.piece).collect())
    }

    /// Reads up to a region of `file` from `offset` on into the buffer at `at`.
    fn read(
        &mut self,
        file: Arc<SourceFile>,
        offset: u64,
        at: usize,
        slices: &mut Vec<Slice>,
    ) -> Result<()> {
        let wanted = file
            .source
            .bytes
            .saturating_sub(offset)
            .min((self.buffer.len() - at) as u64);
        let target = &mut self.buffer[at..at + usize::try_from(wanted).unwrap_or(0)];
        let failed = |source| Error::ReadFile {
            path: file.source.location.clone(),
            source,
        };
        let mut piece = Piece::default();
        let mut filled = 0;
        match File::open(&file.source.location) {
            Ok(open) => {
                while filled < target.len() {
                    match open.read_at(&mut target[filled..], offset + filled as u64) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == IoKind::Interrupted => {}
                        Err(error) => return Err(failed(error)),
                    }
                }
            }
            Err(error) if error.kind() == IoKind::NotFound => piece.vanished = true,
            Err(error) => return Err(failed(error)),
        }
        piece.bytes = filled as u64;
        self.shared.tally.add(Counter::ReadBytes, piece.bytes);
        slices.push(Slice {
            file,
            offset,
            from: at,
            to: at + filled,
            piece,
        });
        Ok(())
    }

    /// Verifies the page checksums of one slice; a page that was being written is read again.
    fn check(&mut self, slice: &mut Slice) {
        let Some(relation) = slice
            .file
            .source
            .relation
            .filter(|_| self.shared.check_pages)
        else {
            return;
        };
        let page_bytes = self.shared.page_bytes;
        let first_block =
            relation.first_block + u32::try_from(slice.offset / u64::from(page_bytes)).unwrap_or(0);
        let bytes = &mut self.buffer[slice.from..slice.to];
        self.shared
            .tally
            .add(Counter::Pages, bytes.len() as u64 / u64::from(page_bytes));
        slice.piece.suspects = pages::check(
            bytes,
            page_bytes,
            first_block,
            &slice.file.source.location,
            slice.offset,
        );
    }

    fn cut(&mut self, at: usize, slice: &Slice) -> Result<()> {
        let bytes = &self.buffer[slice.from..slice.to];
        if slice.is_inline() {
            return Ok(());
        }
        let structure = match slice.file.source.relation {
            Some(_) => Structure::Pages {
                page_bytes: self.shared.page_bytes,
            },
            None => Structure::Plain,
        };
        let prior = self.prior_lengths(slice)?;
        let cut = self
            .shared
            .chunker
            .cut_along(structure, &prior, bytes, &mut self.ends);
        cut.map_err(Error::Index)?;
        let mut from = slice.from;
        for end in &self.ends {
            let to = slice.from + *end as usize;
            self.chunks.push(Chunk {
                slice: at,
                from,
                to,
            });
            from = to;
        }
        Ok(())
    }

    /// The lengths of the previous snapshot's extents in this slice of a relation file, but for the file's last one:
    /// cut points, so that no boundary moves under pages that change in place.
    fn prior_lengths(&self, slice: &Slice) -> Result<Vec<u32>> {
        let file = &slice.file;
        let (Some((bytes, content)), Some(nodes), Some(_)) =
            (&file.prior, self.shared.prior, file.source.relation)
        else {
            return Ok(Vec::new());
        };
        let end = slice.offset + u64::from(self.shared.config.region_bytes);
        let (begin, mut extents) = match nodes.extents(content, slice.offset, end) {
            Err(damage) if damage.is_damage() => {
                self.shared.monitor.problem(&Problem {
                    object: String::from_utf8_lossy(&file.source.path).into_owned(),
                    message: format!(
                        "cannot be restored from the previous backup: {}; it is cut anew",
                        with_causes(&damage)
                    ),
                });
                return Ok(Vec::new());
            }
            found => found?,
        };
        if begin != slice.offset {
            return Ok(Vec::new());
        }
        if end >= *bytes {
            extents.pop();
        }
        Ok(extents.iter().map(|extent| extent.length).collect())
    }

    /// Gives each chunk its place: zero, known, or new and now stored.
    fn place(&mut self, slices: &mut [Slice]) -> Result<()> {
        let tally = self.shared.tally;
        for slice in slices.iter_mut().filter(|slice| slice.is_inline()) {
            slice.piece.inline = self.buffer[slice.from..slice.to].to_vec();
        }
        for ((chunk, id), found) in self.chunks.iter().zip(&self.ids).zip(&self.found) {
            let slice = &mut slices[chunk.slice];
            let bytes = &self.buffer[chunk.from..chunk.to];
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let mut parts = Parts::Whole;
            tally.add(Counter::Chunks, 1);
            let known = if is_zero(bytes) {
                parts = Parts::Zero;
                true
            } else if let Some(location) = found.filter(|location| location.raw_bytes == length) {
                slice.piece.stored_bytes += u64::from(location.stored_bytes);
                true
            } else {
                let offered = self.shared.packer.offer(
                    &mut self.sealer,
                    &self.namer,
                    BlobKind::Data,
                    *id,
                    bytes,
                );
                let offered = offered.map_err(|error| error.about(&slice.file.source.path))?;
                slice.piece.stored_bytes += u64::from(offered.stored_bytes);
                !offered.new
            };
            if known {
                tally.add(Counter::KnownBytes, u64::from(length));
            } else {
                tally.add(Counter::NewChunks, 1);
                tally.add(Counter::NewBytes, u64::from(length));
            }
            slice.piece.extents.push(Extent {
                length,
                id: *id,
                parts,
            });
        }
        Ok(())
    }
}

/// Whether all bytes are zero; most data says no at its first bytes.
fn is_zero(bytes: &[u8]) -> bool {
    let (head, rest) = bytes.split_at(bytes.len().min(64));
    head.iter().all(|byte| *byte == 0)
        && rest
            .chunks(4096)
            .all(|part| part.iter().fold(0, |or, byte| or | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn a_single_set_bit_anywhere_is_not_zero() {
        let mut bytes = vec![0; 10_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in [0, 63, 64, 4159, 9_999] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }
}
