//! What a backup does with each file of the cluster: keep it unread, or read it as jobs.
//!
//! Promises: a file is kept unread only if everything says that it is the file of the snapshot it is compared with (stat
//! record equal, mtime older than that backup's start); anything odd → it is read, as is a file with suspect pages, so
//! that every backup lists its own. Streams: a few hundred entries are
//! known at a time, whatever the size of the cluster.

use std::sync::Arc;

use crate::actions::copy::{BATCH_BYTES, BATCH_FILES, Job, SMALL_FILE, SourceFile, Work};
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::nodes::{NodeReader, TreeCursor};
use crate::actions::pipeline::Outlet;
use crate::actions::stat_record::{Stat, StatReader};
use crate::cluster::data_dir::{Source, SourceKind, Walk};
use crate::ids::ChunkId;
use crate::monitor::{Monitor, Problem};
use crate::repository::tree::{Entry, EntryKind, SUSPECT};

/// Planned entries that may wait for a batch to fill.
const WAITING: usize = 200;
/// A file changed within this time before the backup's start may have changed again within the same clock tick.
const TICK_NS: i64 = 2_000_000_000;

/// One entry of the cluster, in path order, and where its content comes from.
pub(super) enum Planned {
    /// A directory or a link: nothing to read.
    Plain(Source),
    /// A file that is as it was: its content is that of the entry.
    Unread(Source, Box<Entry>),
    /// A file that jobs read.
    Read {
        /// The file.
        file: Arc<SourceFile>,
        /// The first job that reads it.
        sequence: u64,
        /// Jobs that read it, one for each region; or 1 if it is in a batch.
        jobs: u64,
        /// Its place in the batch.
        slot: usize,
    },
}

/// The snapshot that files are compared with.
pub(super) struct Basis<'a> {
    /// Reads its tree.
    pub(super) nodes: &'a NodeReader<'a>,
    /// Its root.
    pub(super) root: ChunkId,
    /// Its stat record, if files may be kept unread.
    pub(super) stat: Option<StatReader>,
    /// When that backup started.
    pub(super) start_ms: i64,
    /// Its label.
    pub(super) label: &'a str,
    /// Is told what of its tree is damaged.
    pub(super) monitor: &'a dyn Monitor,
}

impl Basis<'_> {
    /// What of the tree cannot be read is not known of the snapshot, and costs this backup time alone.
    fn tell(&self, damage: &Error) {
        self.monitor.problem(&Problem {
            object: format!("backup {}", self.label),
            message: format!(
                "cannot be restored, its tree is damaged: {}; the files concerned are read",
                with_causes(damage)
            ),
        });
    }
}

/// Makes the plan and its jobs.
pub(super) struct Planner<'q, 'a> {
    plan: &'q Outlet<Planned>,
    jobs: &'q Outlet<Job>,
    basis: Option<Basis<'a>>,
    cursor: Option<TreeCursor<'a, 'a>>,
    stat: Option<StatReader>,
    unread_before_ns: i64,
    region_bytes: u64,
    sequence: u64,
    batch: Vec<Arc<SourceFile>>,
    batch_bytes: u64,
    waiting: Vec<Planned>,
}

impl<'q, 'a> Planner<'q, 'a> {
    /// A planner that compares with `basis`.
    pub(super) fn new(
        plan: &'q Outlet<Planned>,
        jobs: &'q Outlet<Job>,
        mut basis: Option<Basis<'a>>,
        region_bytes: u32,
    ) -> Result<Self> {
        let cursor = match &basis {
            Some(basis) => match TreeCursor::new(basis.nodes, basis.root) {
                Err(damage) if damage.is_damage() => {
                    basis.tell(&damage);
                    None
                }
                cursor => Some(cursor?),
            },
            None => None,
        };
        let stat = basis.as_mut().and_then(|basis| basis.stat.take());
        let start_ms = basis.as_ref().map_or(0, |basis| basis.start_ms);
        Ok(Planner {
            plan,
            jobs,
            basis,
            cursor,
            stat,
            unread_before_ns: start_ms.saturating_mul(1_000_000).saturating_sub(TICK_NS),
            region_bytes: u64::from(region_bytes),
            sequence: 0,
            batch: Vec::new(),
            batch_bytes: 0,
            waiting: Vec::new(),
        })
    }

    /// Plans the whole walk.
    pub(super) fn run(mut self, walk: Walk<'_>) -> Result<()> {
        for source in walk {
            let source = source.map_err(Error::Cluster)?;
            match source.kind {
                SourceKind::Directory | SourceKind::Link => self.add(Planned::Plain(source))?,
                SourceKind::File => self.file(source)?,
            }
        }
        self.flush()
    }

    fn file(&mut self, source: Source) -> Result<()> {
        let prior = self.prior(&source.path)?;
        let unchanged =
            self.stat.as_mut().and_then(|stat| stat.seek(&source.path)) == Some(Stat::of(&source));
        match prior {
            Some(prior)
                if unchanged
                    && prior.flags & SUSPECT == 0
                    && prior.bytes == source.bytes
                    && source.modified_ns < self.unread_before_ns =>
            {
                self.add(Planned::Unread(source, Box::new(prior)))
            }
            prior => self.read(SourceFile {
                source,
                prior: prior.map(|entry| (entry.bytes, entry.content)),
            }),
        }
    }

    /// The file at `path` in the snapshot. A damaged node hides the files below it, and no others.
    fn prior(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        let (Some(cursor), Some(basis)) = (&mut self.cursor, &self.basis) else {
            return Ok(None);
        };
        loop {
            match cursor.seek(path) {
                Err(damage) if damage.is_damage() => basis.tell(&damage),
                found => return Ok(found?.filter(|entry| entry.kind == EntryKind::File)),
            }
        }
    }

    fn read(&mut self, file: SourceFile) -> Result<()> {
        let bytes = file.source.bytes;
        let file = Arc::new(file);
        if bytes > SMALL_FILE {
            self.flush()?;
            let jobs = bytes.div_ceil(self.region_bytes);
            let sequence = self.sequence;
            // The plan goes first: the consumer must be able to take results while later regions still wait.
            self.plan.send(Planned::Read {
                file: Arc::clone(&file),
                sequence,
                jobs,
                slot: 0,
            })?;
            for region in 0..jobs {
                self.send(Work::Region(Arc::clone(&file), region))?;
            }
            return Ok(());
        }
        if self.batch_bytes + bytes > BATCH_BYTES || self.batch.len() == BATCH_FILES {
            self.flush()?;
        }
        let slot = self.batch.len();
        self.batch.push(Arc::clone(&file));
        self.batch_bytes += bytes;
        self.waiting.push(Planned::Read {
            file,
            sequence: self.sequence,
            jobs: 1,
            slot,
        });
        Ok(())
    }

    /// Adds an entry that needs no job; behind files whose batch is still open it waits for them.
    fn add(&mut self, planned: Planned) -> Result<()> {
        if self.batch.is_empty() {
            return self.plan.send(planned);
        }
        self.waiting.push(planned);
        if self.waiting.len() >= WAITING {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Sends the open batch, then the plan that waited for it.
    fn flush(&mut self) -> Result<()> {
        if !self.batch.is_empty() {
            self.batch_bytes = 0;
            let batch = std::mem::take(&mut self.batch);
            self.send(Work::Batch(batch))?;
        }
        for planned in std::mem::take(&mut self.waiting) {
            self.plan.send(planned)?;
        }
        Ok(())
    }

    fn send(&mut self, work: Work) -> Result<()> {
        let sequence = self.sequence;
        self.sequence += 1;
        self.jobs.send(Job { sequence, work })
    }
}
