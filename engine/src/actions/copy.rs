//! The work on one piece of the cluster: read, check pages, cut, name, look up, compress, verify, pack.
//!
//! Promises: at most the size seen when the file was listed is read; a file that vanished or shrank is told, never
//! padded; each chunk is looked up before it is stored; no allocation for each chunk. A worker owns one buffer of a few
//! chunks and its compressor, so its memory does not depend on the files.

use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::nodes::NodeReader;
use crate::actions::packer::Packer;
use crate::actions::pages::{self, SuspectPage};
use crate::actions::pipeline::{Inlet, Outlet};
use crate::cluster::data_dir::Source;
use crate::dedup::chunker::{Chunker, Structure, Window};
use crate::dedup::index::ChunkIndex;
use crate::ids::{BlobKind, ChunkId, Extent, Location, Namer, Parts};
use crate::monitor::{Counter, Monitor, Problem, Tally};
use crate::pack::writer::Sealer;
use crate::repository::config::Config;
use crate::repository::tree::{Content, LARGEST_INLINE};

/// Files up to this size are worked on in batches.
pub(super) const SMALL_FILE: u64 = 1 << 20;
/// What a batch may hold.
pub(super) const BATCH_BYTES: u64 = 2 << 20;
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

/// What a worker's buffer is for: a few of the longest chunks, so that what was read is cut, hashed and compressed while
/// it is in the processor's cache.
const LONGEST_CHUNKS: usize = 4;

/// A chunk in the buffer, and the piece it belongs to.
struct Chunk {
    piece: usize,
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
        let longest = self.config.relation.max.max(self.config.plain.max) as usize;
        let mut worker = Worker {
            shared: self,
            namer: Namer::plain(),
            sealer,
            buffer: vec![
                0;
                (longest * LONGEST_CHUNKS).max(usize::try_from(BATCH_BYTES).unwrap_or(0))
            ],
            ends: Vec::new(),
            chunks: Vec::new(),
            ids: Vec::new(),
            found: Vec::new(),
        };
        while let Some(job) = jobs.next() {
            let pieces = match job.work {
                Work::Region(file, region) => vec![worker.region(&file, region)?],
                Work::Batch(files) => worker.batch(&files)?,
            };
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
    /// Works on several small files, each whole.
    fn batch(&mut self, files: &[Arc<SourceFile>]) -> Result<Vec<Piece>> {
        let mut pieces = Vec::with_capacity(files.len());
        let mut at = 0;
        self.chunks.clear();
        for file in files {
            let mut piece = Piece::default();
            let Some(open) = open(file)? else {
                piece.vanished = true;
                pieces.push(piece);
                continue;
            };
            let to = at + usize::try_from(file.source.bytes).unwrap_or(0);
            let to = at + self.read(&open, file, 0, at..to.min(self.buffer.len()))?;
            piece.bytes = (to - at) as u64;
            if to - at <= LARGEST_INLINE {
                piece.inline = self.buffer[at..to].to_vec();
            } else {
                self.check(file, 0, at..to, &mut piece);
                let prior = self.prior_lengths(file, 0)?;
                self.cut(
                    file,
                    &mut prior.as_slice(),
                    at..to,
                    Window::WHOLE,
                    pieces.len(),
                )?;
            }
            pieces.push(piece);
            at = to;
        }
        self.place(&mut pieces, |piece| &files[piece].source.path)?;
        Ok(pieces)
    }

    /// Works on one region of a file, a window at a time.
    fn region(&mut self, file: &Arc<SourceFile>, region: u64) -> Result<Piece> {
        let mut piece = Piece::default();
        let Some(open) = open(file)? else {
            piece.vanished = true;
            return Ok(piece);
        };
        let region_bytes = u64::from(self.shared.config.region_bytes);
        let begin = region * region_bytes;
        let end = file.source.bytes.min(begin + region_bytes);
        let prior = self.prior_lengths(file, begin)?;
        let mut prior = prior.as_slice();
        // The buffer holds the file's bytes from `offset` on; `held` of them are there.
        let (mut offset, mut held) = (begin, 0);
        let mut pieces = [piece];
        loop {
            let wanted = usize::try_from(end - offset)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            let read = self.read(&open, file, offset + held as u64, held..wanted)?;
            self.check(
                file,
                offset + held as u64,
                held..held + read,
                &mut pieces[0],
            );
            pieces[0].bytes += read as u64;
            held += read;
            let window = Window {
                first: offset == begin,
                last: held < wanted || offset + held as u64 == end,
            };
            if window == Window::WHOLE && begin == 0 && held <= LARGEST_INLINE {
                pieces[0].inline = self.buffer[..held].to_vec();
                break;
            }
            self.chunks.clear();
            self.cut(file, &mut prior, 0..held, window, 0)?;
            let used = self.chunks.last().map_or(0, |chunk| chunk.to);
            self.place(&mut pieces, |_| &file.source.path)?;
            if window.last {
                break;
            }
            self.buffer.copy_within(used..held, 0);
            held -= used;
            offset += used as u64;
        }
        let [piece] = pieces;
        Ok(piece)
    }

    /// Fills `range` of the buffer with the file's bytes from `offset` on; answers how many there were.
    fn read(
        &mut self,
        open: &File,
        file: &SourceFile,
        offset: u64,
        range: Range<usize>,
    ) -> Result<usize> {
        let target = &mut self.buffer[range];
        let mut filled = 0;
        while filled < target.len() {
            match open.read_at(&mut target[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::ReadFile {
                        path: file.source.location.clone(),
                        source,
                    });
                }
            }
        }
        self.shared.tally.add(Counter::ReadBytes, filled as u64);
        Ok(filled)
    }

    /// Verifies the checksums of pages that were just read; one that was being written is read again.
    fn check(&mut self, file: &SourceFile, offset: u64, range: Range<usize>, piece: &mut Piece) {
        let Some(relation) = file.source.relation.filter(|_| self.shared.check_pages) else {
            return;
        };
        let page_bytes = self.shared.page_bytes;
        let first_block =
            relation.first_block + u32::try_from(offset / u64::from(page_bytes)).unwrap_or(0);
        let bytes = &mut self.buffer[range];
        self.shared
            .tally
            .add(Counter::Pages, bytes.len() as u64 / u64::from(page_bytes));
        piece.suspects.extend(pages::check(
            bytes,
            page_bytes,
            first_block,
            &file.source.location,
            offset,
        ));
    }

    /// Cuts `range` of the buffer into chunks of piece `piece`.
    fn cut(
        &mut self,
        file: &SourceFile,
        prior: &mut &[u32],
        range: Range<usize>,
        window: Window,
        piece: usize,
    ) -> Result<()> {
        let structure = match file.source.relation {
            Some(_) => Structure::Pages {
                page_bytes: self.shared.page_bytes,
            },
            None => Structure::Plain,
        };
        let begin = range.start;
        let bytes = &self.buffer[range];
        self.shared
            .chunker
            .cut_window(structure, prior, bytes, window, &mut self.ends)
            .map_err(Error::Index)?;
        let mut from = begin;
        for end in &self.ends {
            let to = begin + *end as usize;
            self.chunks.push(Chunk { piece, from, to });
            from = to;
        }
        Ok(())
    }

    /// The lengths of the previous snapshot's extents in the region of a relation file that begins at `offset`, but for
    /// the file's last one: cut points, so that no boundary moves under pages that change in place.
    fn prior_lengths(&self, file: &SourceFile, offset: u64) -> Result<Vec<u32>> {
        let (Some((bytes, content)), Some(nodes), Some(_)) =
            (&file.prior, self.shared.prior, file.source.relation)
        else {
            return Ok(Vec::new());
        };
        let end = offset + u64::from(self.shared.config.region_bytes);
        let (begin, mut extents) = match nodes.extents(content, offset, end) {
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
        if begin != offset {
            return Ok(Vec::new());
        }
        if end >= *bytes {
            extents.pop();
        }
        Ok(extents.iter().map(|extent| extent.length).collect())
    }

    /// Names the chunks, looks them up, and gives each its place: zero, known, or new and now stored.
    fn place<'p>(
        &mut self,
        pieces: &mut [Piece],
        path: impl Fn(usize) -> &'p Vec<u8>,
    ) -> Result<()> {
        let tally = self.shared.tally;
        let (namer, buffer) = (&self.namer, &self.buffer);
        self.ids.clear();
        self.ids.extend(
            self.chunks
                .iter()
                .map(|chunk| namer.name(BlobKind::Data, &buffer[chunk.from..chunk.to])),
        );
        self.shared
            .index
            .lookup(&self.ids, &mut self.found)
            .map_err(Error::Index)?;
        for ((chunk, id), found) in self.chunks.iter().zip(&self.ids).zip(&self.found) {
            let piece = &mut pieces[chunk.piece];
            let bytes = &self.buffer[chunk.from..chunk.to];
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let mut parts = Parts::Whole;
            tally.add(Counter::Chunks, 1);
            let known = if is_zero(bytes) {
                parts = Parts::Zero;
                true
            } else if let Some(location) = found.filter(|location| location.raw_bytes == length) {
                piece.stored_bytes += u64::from(location.stored_bytes);
                true
            } else {
                let offered = self.shared.packer.offer(
                    &mut self.sealer,
                    &self.namer,
                    BlobKind::Data,
                    *id,
                    bytes,
                );
                let offered = offered.map_err(|error| error.about(path(chunk.piece)))?;
                piece.stored_bytes += u64::from(offered.stored_bytes);
                !offered.new
            };
            if known {
                tally.add(Counter::KnownBytes, u64::from(length));
            } else {
                tally.add(Counter::NewChunks, 1);
                tally.add(Counter::NewBytes, u64::from(length));
            }
            piece.extents.push(Extent {
                length,
                id: *id,
                parts,
            });
        }
        Ok(())
    }
}

/// Opens a file; `None` if it vanished.
fn open(file: &SourceFile) -> Result<Option<File>> {
    match File::open(&file.source.location) {
        Ok(open) => Ok(Some(open)),
        Err(error) if error.kind() == IoKind::NotFound => Ok(None),
        Err(source) => Err(Error::ReadFile {
            path: file.source.location.clone(),
            source,
        }),
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
