//! Getting chunks out of the repository: found, read in few requests, verified.
//!
//! Promises: what is handed out has been checked against its id; chunks that lie side by side (on a remote storage also
//! those a little apart) are read together; a copy that is damaged is passed over for another one, and noted in the
//! repository once a second reading has confirmed it, so that the next backup stores the chunk again; a chunk is called
//! lost only when the whole repository was asked (all index segments, and the footers of packs that no segment names).

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::known::{Known, Scope, bring_up_to_date, unindexed, widen};
use crate::actions::session::Session;
use crate::ids::{ChunkId, Location, Namer, PackId};
use crate::monitor::{Counter, Tally};
use crate::pack::format::FRAME_BYTES;
use crate::pack::reader::{Opener, ReadError, read_blob};
use crate::repository::layout::{self, PackClass};
use crate::repository::segment::Fact;
use crate::repository::{Repository, packs};

/// Stored bytes that are read at once.
const LARGEST_READ: u64 = 4 << 20;

/// Bytes that nobody wants but that are read along, rather than asking a remote storage twice: about what a connection
/// carries while a request would travel.
const LARGEST_GAP: u64 = 256 << 10;

/// Where the chunks of a repository are.
pub(super) struct Locator<'a> {
    session: &'a Session<'a>,
    pub(super) known: Known,
    /// What lies in packs that no segment names, by chunk.
    widened: Mutex<Option<Vec<(ChunkId, Location)>>>,
}

impl<'a> Locator<'a> {
    /// A locator that knows the segments of `scope`, and asks for the rest only if it must.
    pub(super) fn new(
        session: &'a Session<'a>,
        cache: &Path,
        scope: Scope<'_>,
        problem: &mut dyn FnMut(String, String),
    ) -> Result<Self> {
        let known = bring_up_to_date(session, cache, scope, problem)?;
        Ok(Locator {
            session,
            known,
            widened: Mutex::new(None),
        })
    }

    /// The repository.
    pub(super) fn repository(&self) -> &'a Repository {
        self.session.repository
    }

    /// A usable location of each chunk, in the order of `ids`; `None` only if no copy is known anywhere. Quarantined copies
    /// are the last resort: who quarantined them may have had bad memory.
    pub(super) fn locate(&self, ids: &[ChunkId], found: &mut Vec<Option<Location>>) -> Result<()> {
        self.known.index.lookup(ids, found).map_err(Error::Index)?;
        if found.iter().all(Option::is_some) {
            return Ok(());
        }
        let mut widened = self.widened.lock().unwrap_or_else(PoisonError::into_inner);
        if widened.is_none() {
            widen(self.session, &self.known)?;
            let rest = unindexed(self.session.repository, &self.known, &mut |_, _| {})?;
            let located = rest.packs.iter().flat_map(|pack| {
                pack.blobs
                    .iter()
                    .map(|fact| (fact.id, location_of(pack.pack, fact)))
            });
            let mut located: Vec<_> = located.collect();
            located.sort_unstable_by_key(|(id, copy)| (*id, copy.pack));
            *widened = Some(located);
        }
        self.known.index.lookup(ids, found).map_err(Error::Index)?;
        for (id, location) in ids
            .iter()
            .zip(found.iter_mut())
            .filter(|(_, location)| location.is_none())
        {
            let index = &self.known.index;
            let rest = widened.as_deref().unwrap_or_default();
            let from = rest.partition_point(|(other, _)| other < id);
            let mut copies = rest.iter().skip(from).take_while(|(other, _)| other == id);
            *location = match copies.find(|(_, copy)| !index.is_lost(id, copy.pack)) {
                Some((_, copy)) => Some(*copy),
                None => index.last_resort(id).map_err(Error::Index)?,
            };
        }
        Ok(())
    }

    /// Another copy of a chunk than the one in `pack`, which is damaged or gone and is not used again.
    pub(super) fn another(
        &self,
        id: ChunkId,
        pack: PackId,
        damage: &Error,
    ) -> Result<Option<Location>> {
        self.known.index.mark_damaged(id, pack);
        if matches!(damage, Error::CopyDamaged { .. }) {
            self.session.quarantine(id, pack, &with_causes(damage));
        }
        let mut found = Vec::with_capacity(1);
        self.locate(&[id], &mut found)?;
        Ok(found.pop().flatten())
    }
}

/// A chunk that is wanted, and for what.
pub(super) struct Wanted<T> {
    pub(super) id: ChunkId,
    pub(super) purpose: T,
}

/// One thread's fetching.
pub(super) struct Fetcher<'a> {
    repository: &'a Repository,
    locator: &'a Locator<'a>,
    tally: &'a Tally,
    namer: Namer,
    opener: Opener,
    stored: Vec<u8>,
    raw: Vec<u8>,
}

impl<'a> Fetcher<'a> {
    /// A fetcher for one thread.
    pub(super) fn new(
        repository: &'a Repository,
        locator: &'a Locator<'a>,
        tally: &'a Tally,
    ) -> Result<Self> {
        let opener = Opener::new().map_err(|source| Error::PackDamaged {
            key: "the decompressor".to_owned(),
            source,
        })?;
        Ok(Fetcher {
            repository,
            locator,
            tally,
            namer: Namer::plain(),
            opener,
            stored: Vec::new(),
            raw: Vec::new(),
        })
    }

    /// Fetches all that is wanted, in pack order, and hands each chunk's bytes to `take` with its purpose. `name` says
    /// what a chunk is needed by, for errors.
    pub(super) fn fetch<T>(
        &mut self,
        mut wanted: Vec<Wanted<T>>,
        name: impl Fn(&T) -> String,
        mut take: impl FnMut(&T, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let gap = if self.repository.storage.is_remote() {
            LARGEST_GAP
        } else {
            0
        };
        while !wanted.is_empty() {
            let mut located = self.located(wanted, &name)?;
            located.sort_by_key(|(location, _)| (location.pack, location.offset));
            wanted = Vec::new();
            let mut rest = located.into_iter().peekable();
            while let Some(first) = rest.next() {
                let mut group = vec![first];
                while let Some(next) = rest.next_if(|next| continues(&group, &next.0, gap)) {
                    group.push(next);
                }
                self.group(group, &name, &mut take, &mut wanted)?;
            }
        }
        Ok(())
    }

    fn located<T>(
        &self,
        wanted: Vec<Wanted<T>>,
        name: impl Fn(&T) -> String,
    ) -> Result<Vec<(Location, Wanted<T>)>> {
        let ids: Vec<ChunkId> = wanted.iter().map(|wanted| wanted.id).collect();
        let mut found = Vec::with_capacity(ids.len());
        self.locator.locate(&ids, &mut found)?;
        let pairs = found.into_iter().zip(wanted);
        let located = pairs.map(|(location, wanted)| match location {
            Some(location) => Ok((location, wanted)),
            None => Err(Error::ChunkLost {
                chunk: wanted.id,
                needed_by: name(&wanted.purpose),
                source: None,
            }),
        });
        located.collect()
    }

    /// Reads one run of a pack. A copy that turns out damaged is not used again, and its chunk goes back to `again`.
    fn group<T>(
        &mut self,
        group: Vec<(Location, Wanted<T>)>,
        name: impl Fn(&T) -> String,
        take: &mut impl FnMut(&T, &[u8]) -> Result<()>,
        again: &mut Vec<Wanted<T>>,
    ) -> Result<()> {
        let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else {
            return Ok(());
        };
        let (pack, start) = (first.pack, u64::from(first.offset));
        let class = PackClass::of(first.kind);
        self.stored
            .resize(usize::try_from(end_of(last) - start).unwrap_or(0), 0);
        let read = packs::get_range(self.repository, class, pack, start, &mut self.stored);
        if let Err(error) = read {
            return self.unreadable(group, error, name, take, again);
        }
        self.tally
            .add(Counter::FetchedBytes, self.stored.len() as u64);
        let mut previous: Option<ChunkId> = None;
        for (location, wanted) in group {
            if previous != Some(wanted.id) {
                let from =
                    usize::try_from(u64::from(location.offset) - start).unwrap_or(usize::MAX);
                let length = FRAME_BYTES + location.stored_bytes as usize;
                let frame = self
                    .stored
                    .get(from..from.saturating_add(length))
                    .unwrap_or_default();
                let opened =
                    self.opener
                        .open(&self.namer, &wanted.id, &location, frame, &mut self.raw);
                // Read once more, alone: what was wrong may have been the way and not the place.
                if opened.is_err()
                    && let Some(damage) = self.read_alone(&wanted.id, &location)?
                {
                    self.pass_over(wanted, pack, damage, &name, again)?;
                    continue;
                }
            }
            previous = Some(wanted.id);
            take(&wanted.purpose, &self.raw)?;
        }
        Ok(())
    }

    /// Reads one copy of a chunk alone; answers what is wrong with it.
    fn read_alone(&mut self, id: &ChunkId, location: &Location) -> Result<Option<Error>> {
        let (repository, class) = (self.repository, PackClass::of(location.kind));
        let mut fetch = |offset, buffer: &mut [u8]| {
            packs::get_range(repository, class, location.pack, offset, buffer)
        };
        let read = read_blob(
            &mut fetch,
            &self.namer,
            &mut self.opener,
            id,
            location,
            &mut self.raw,
        );
        match read {
            Ok(()) => Ok(None),
            Err(ReadError::Fetch(error)) if repository.is_about_one_object(error.storage()) => {
                Ok(Some(Error::Repository(error)))
            }
            Err(ReadError::Fetch(error)) => Err(Error::Repository(error)),
            Err(ReadError::Pack(source)) => Ok(Some(Error::CopyDamaged {
                key: layout::pack(class, location.pack).to_string(),
                offset: location.offset,
                source,
            })),
        }
    }

    /// Of a run that cannot be read as one, each chunk is read alone: the disk may be bad in one place. A store that cannot
    /// be asked ends the action.
    fn unreadable<T>(
        &mut self,
        group: Vec<(Location, Wanted<T>)>,
        error: crate::repository::Error,
        name: impl Fn(&T) -> String,
        take: &mut impl FnMut(&T, &[u8]) -> Result<()>,
        again: &mut Vec<Wanted<T>>,
    ) -> Result<()> {
        if !self.repository.is_about_one_object(error.storage()) {
            return Err(Error::Repository(error));
        }
        for (location, wanted) in group {
            match self.read_alone(&wanted.id, &location)? {
                None => take(&wanted.purpose, &self.raw)?,
                Some(damage) => self.pass_over(wanted, location.pack, damage, &name, again)?,
            }
        }
        Ok(())
    }

    /// Takes note of a damaged copy; if there is another, the chunk is wanted again.
    fn pass_over<T>(
        &self,
        wanted: Wanted<T>,
        pack: PackId,
        damage: Error,
        name: impl Fn(&T) -> String,
        again: &mut Vec<Wanted<T>>,
    ) -> Result<()> {
        if self.locator.another(wanted.id, pack, &damage)?.is_some() {
            again.push(wanted);
            return Ok(());
        }
        Err(Error::ChunkLost {
            chunk: wanted.id,
            needed_by: name(&wanted.purpose),
            source: Some(Box::new(damage)),
        })
    }
}

/// Where a fact says that a chunk lies.
pub(super) fn location_of(pack: PackId, fact: &Fact) -> Location {
    Location {
        pack,
        offset: fact.offset,
        stored_bytes: fact.stored_bytes,
        raw_bytes: fact.raw_bytes,
        kind: fact.kind,
    }
}

fn end_of(location: &Location) -> u64 {
    u64::from(location.offset) + FRAME_BYTES as u64 + u64::from(location.stored_bytes)
}

/// Whether `next` lies behind the group (or is its last chunk once more), no more than `gap` away, and still fits into
/// one read.
fn continues<T>(group: &[(Location, Wanted<T>)], next: &Location, gap: u64) -> bool {
    let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else {
        return false;
    };
    let from = u64::from(next.offset);
    let beside = next.offset == last.offset || (end_of(last)..=end_of(last) + gap).contains(&from);
    next.pack == last.pack && beside && end_of(next) - u64::from(first.offset) <= LARGEST_READ
}
