//! Open packs of a backup, and what happens to them when they are full.
//!
//! Promises: a chunk that two threads find at once is stored once; a pack is durable before any index segment names it,
//! and a segment is durable before the local index has its facts; buffers are recycled, so memory is a few packs. One
//! thread that pushes makes the same packs from the same chunks, byte for byte.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::actions::error::{Error, Result};
use crate::actions::known::fact;
use crate::actions::pipeline::{Inlet, Outlet, QUEUED_PACKS, STORERS, queue};
use crate::actions::session::Session;
use crate::dedup::claims::{Claim, Claims};
use crate::dedup::index::ChunkIndex;
use crate::ids::{BlobKind, ChunkId, Namer, PackId};
use crate::monitor::{Counter, Tally};
use crate::pack::writer::{DATA_PACK_TARGET, META_PACK_TARGET, PackWriter, Sealer};
use crate::repository::layout::PackClass;
use crate::repository::segment::{self, IndexSegment, PackFacts};
use crate::repository::{Repository, packs};

/// A segment is written when so many packs wait for one, or when the oldest has waited so long.
pub(super) const PACKS_PER_SEGMENT: usize = 64;
const SEGMENT_AGE: Duration = Duration::from_mins(1);

/// A full pack on its way to the repository.
pub(super) struct Full {
    class: PackClass,
    writer: PackWriter,
}

/// What becomes of a chunk that was offered.
pub(super) struct Offered {
    /// Bytes it takes in the repository.
    pub(super) stored_bytes: u32,
    /// It was not there before.
    pub(super) new: bool,
}

/// The open packs of one run.
pub(super) struct Packer<'a> {
    repository: &'a Repository,
    index: &'a ChunkIndex,
    session: &'a Session<'a>,
    scope: &'a str,
    tally: &'a Tally,
    claims: Claims,
    data: Mutex<Option<PackWriter>>,
    meta: Mutex<Option<PackWriter>>,
    full: Mutex<Option<Outlet<Full>>>,
    waiting: Inlet<Full>,
    spare: (Outlet<Vec<u8>>, Inlet<Vec<u8>>),
    facts: Mutex<Pending>,
    segments: AtomicU32,
}

#[derive(Default)]
struct Pending {
    packs: Vec<PackFacts>,
    oldest: Option<Instant>,
}

impl<'a> Packer<'a> {
    /// A packer for `session`'s run, whose segments go to `scope`.
    pub(super) fn new(
        session: &'a Session<'a>,
        index: &'a ChunkIndex,
        scope: &'a str,
        tally: &'a Tally,
    ) -> Self {
        let (full, waiting) = queue(QUEUED_PACKS);
        Packer {
            repository: session.repository,
            index,
            session,
            scope,
            tally,
            claims: Claims::new(),
            data: Mutex::new(None),
            meta: Mutex::new(None),
            full: Mutex::new(Some(full)),
            waiting,
            spare: queue(STORERS + QUEUED_PACKS + 2),
            facts: Mutex::default(),
            segments: AtomicU32::new(0),
        }
    }

    /// Stores a chunk that the index does not know, unless another thread of this run has done so or is at it.
    pub(super) fn offer(
        &self,
        sealer: &mut Sealer,
        namer: &Namer,
        kind: BlobKind,
        id: ChunkId,
        raw: &[u8],
    ) -> std::result::Result<Offered, OfferError> {
        let claim = self.claims.claim(&id);
        if let Claim::Taken { stored_bytes } = claim
            && stored_bytes > 0
        {
            return Ok(Offered {
                stored_bytes,
                new: false,
            });
        }
        let packed = sealer
            .seal(namer, kind, id, raw)
            .map_err(OfferError::Pack)?;
        let stored_bytes = u32::try_from(packed.payload.len()).unwrap_or(u32::MAX);
        if claim != Claim::New {
            // Another thread is compressing the same chunk just now. Its length goes into the tree, which must not depend
            // on who came first.
            return Ok(Offered {
                stored_bytes,
                new: false,
            });
        }
        self.claims.fulfil(&id, stored_bytes);
        let class = PackClass::of(kind);
        let (open, target) = match class {
            PackClass::Meta => (&self.meta, META_PACK_TARGET),
            PackClass::Data => (&self.data, DATA_PACK_TARGET),
        };
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) =
            open.take_if(|writer| writer.body_bytes() + packed.payload.len() > target)
        {
            self.hand_over(Full { class, writer })
                .map_err(OfferError::Run)?;
        }
        let writer = open.get_or_insert_with(|| match self.spare.1.try_next() {
            Some(buffer) => PackWriter::with_buffer(buffer),
            None => PackWriter::new(target),
        });
        writer.push(&packed).map_err(OfferError::Pack)?;
        drop(open);
        Ok(Offered {
            stored_bytes,
            new: true,
        })
    }

    /// Sends a pack to the storing threads; waits while they are busy, which is what bounds the memory.
    fn hand_over(&self, full: Full) -> Result<()> {
        let outlet = self
            .full
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        outlet.ok_or(Error::Cancelled)?.send(full)
    }

    /// Hands over the last packs and lets the storing threads end. After that nothing can be offered.
    pub(super) fn close(&self) -> Result<()> {
        for (class, open) in [(PackClass::Data, &self.data), (PackClass::Meta, &self.meta)] {
            if let Some(writer) = open.lock().unwrap_or_else(PoisonError::into_inner).take() {
                self.hand_over(Full { class, writer })?;
            }
        }
        self.abandon();
        Ok(())
    }

    /// Lets the storing threads end without the open packs.
    pub(super) fn abandon(&self) {
        drop(
            self.full
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// What each storing thread does: puts packs until there are no more.
    pub(super) fn store(&self) -> Result<()> {
        while let Some(full) = self.waiting.next() {
            let stored = self.put(full);
            if stored.is_err() {
                // Whoever waits to hand over a pack must not wait for ever.
                self.abandon();
                while self.waiting.next().is_some() {}
                return stored;
            }
        }
        Ok(())
    }

    fn put(&self, full: Full) -> Result<()> {
        let class = full.class;
        let pack = PackId::random().map_err(Error::Random)?;
        let finished = full.writer.finish();
        packs::put(self.repository, class, pack, &finished.bytes).map_err(Error::Repository)?;
        let bytes = finished.bytes.len() as u64;
        self.tally.add(Counter::Packs, 1);
        self.tally.add(Counter::StoredBytes, bytes);
        let blobs = finished.entries.into_iter().map(fact).collect();
        let mut buffer = finished.bytes;
        buffer.clear();
        self.spare.0.offer(buffer);
        let due = {
            let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
            facts.packs.push(PackFacts {
                pack,
                class,
                bytes,
                blobs,
            });
            let oldest = *facts.oldest.get_or_insert_with(Instant::now);
            let due = facts.packs.len() >= PACKS_PER_SEGMENT || oldest.elapsed() >= SEGMENT_AGE;
            if due {
                std::mem::take(&mut *facts).packs
            } else {
                Vec::new()
            }
        };
        self.publish(due)
    }

    /// Publishes what no segment names yet. After it, whatever was offered is known to everybody.
    pub(super) fn publish_rest(&self) -> Result<()> {
        let rest =
            std::mem::take(&mut *self.facts.lock().unwrap_or_else(PoisonError::into_inner)).packs;
        self.publish(rest)
    }

    /// Writes one index segment, then tells the local index, then forgets the claims it replaces.
    pub(super) fn publish(&self, packs: Vec<PackFacts>) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        let n = self.segments.fetch_add(1, Ordering::Relaxed);
        let segment = IndexSegment {
            packs,
            replaces: Vec::new(),
        };
        let key = segment::put(self.repository, self.scope, self.session.run, n, &segment)
            .map_err(Error::Repository)?;
        self.index
            .apply(key.as_str(), &segment)
            .map_err(Error::Index)?;
        let put: Vec<(PackId, u64)> = segment
            .packs
            .iter()
            .map(|pack| (pack.pack, pack.bytes))
            .collect();
        self.index.mark_put(&put);
        for pack in &segment.packs {
            self.claims.release(pack.blobs.iter().map(|fact| &fact.id));
        }
        Ok(())
    }
}

/// Why a chunk could not be offered.
pub(super) enum OfferError {
    /// The chunk does not survive packing.
    Pack(crate::pack::Error),
    /// The run has failed elsewhere.
    Run(Error),
}

impl OfferError {
    /// As an error of the action, about `path`.
    pub(super) fn about(self, path: &[u8]) -> Error {
        match self {
            OfferError::Pack(source) => Error::Pack {
                path: String::from_utf8_lossy(path).into_owned(),
                source,
            },
            OfferError::Run(error) => error,
        }
    }
}
