//! The chunk index as a thing of its own: opened as it lies, compared with what it is made of, made anew.
//!
//! Promises: nothing here deletes, or changes, an object of the repository; what is published (only if that was asked
//! for) are facts of packs that no readable segment names, read from their footers. Findings are told as problems and
//! counted. Memory: one segment at a time, and the list of packs.

use std::collections::HashMap;
use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::actions::error::{Error, Result};
use crate::actions::findings::Findings;
use crate::actions::known::{Known, Scope, bring_up_to_date, facts_of, segment_keys};
use crate::actions::packer::PACKS_PER_SEGMENT;
use crate::actions::session::{Session, present};
use crate::dedup::index::ChunkIndex;
use crate::ids::{ChunkId, Location, PackId, RunId};
use crate::monitor::Monitor;
use crate::repository::layout::{self, MAINTENANCE_SCOPE, PackClass};
use crate::repository::run::Role;
use crate::repository::segment::{self, IndexSegment, PackFacts};
use crate::repository::{Repository, gc_log, packs};
use crate::storage::Key;

/// What the work on an index needs to know.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Where the index is cached.
    pub cache: PathBuf,
    /// This host's name.
    pub host: String,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexVerified {
    /// Chunks of the local index.
    pub chunks: u64,
    /// Their copies.
    pub copies: u64,
    /// Segments of the repository.
    pub segments: u64,
    /// Packs that are listed.
    pub packs: u64,
    /// Packs that are listed and that no segment names: what a run left that is under way, or that crashed.
    pub unindexed: u64,
    /// Whatever contradicts something else.
    pub problems: u64,
}

/// What was made anew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexRebuilt {
    /// Where the new index lies.
    pub directory: PathBuf,
    /// Packs whose footers were read.
    pub packs: u64,
    /// Segments that were applied.
    pub segments: u64,
    /// Packs that no readable segment names.
    pub unindexed: u64,
    /// Segments that were published for them.
    pub published: u64,
    /// Whatever could not be read or contradicts something else.
    pub problems: u64,
}

/// The local index as it lies, not brought up to date: for looking at it.
pub fn open_index(repository: &Repository, cache: &Path) -> Result<ChunkIndex> {
    let gc_checksum = |number| gc_log::checksum(repository, number).ok().flatten();
    let place = repository.storage.describe();
    ChunkIndex::open(cache, repository.id, &place, &gc_checksum).map_err(Error::Index)
}

/// The keys of all index segments of the repository.
pub fn index_segments(repository: &Repository) -> Result<Vec<String>> {
    segment_keys(repository, Scope::All)
}

/// Brings the local index up to date, and compares it with all segments, and those with the listed packs.
pub fn verify_index(
    repository: &Repository,
    options: &IndexOptions,
    monitor: &dyn Monitor,
) -> Result<IndexVerified> {
    let host = (options.host.as_str(), options.now_ms);
    present(
        repository,
        Role::Verify,
        &options.cache,
        host,
        monitor,
        |session| {
            // What is damaged or missing is found, and told, below.
            let known = bring_up_to_date(session, &options.cache, Scope::All, &mut |_, _| {})?;
            let scratch = Scratch::new(&options.cache, session.run)?;
            let findings = Findings::new(monitor);
            if session.gc_is_damaged {
                findings.add_told();
            }
            let mut verified = IndexVerified {
                packs: known.listed.len() as u64,
                ..IndexVerified::default()
            };
            check_packs(session, &known, &findings, &mut verified);
            let place = repository.storage.describe();
            let stated =
                ChunkIndex::create(&scratch.0, repository.id, &place).map_err(Error::Index)?;
            for key in segment_keys(repository, Scope::All)? {
                verified.segments += 1;
                if let Some(segment) = read(repository, &key, &findings)? {
                    stated.apply(&key, &segment).map_err(Error::Index)?;
                }
            }
            compare(session, &known.index, &stated, &findings, &mut verified)?;
            verified.problems = findings.count();
            Ok(verified)
        },
    )
}

/// Makes the local index anew from the repository alone: every pack's footer is read and held against the segment that
/// names the pack. Packs that no readable segment names enter the index only if their facts may be published.
pub fn rebuild_index(
    repository: &Repository,
    options: &IndexOptions,
    publish: bool,
    monitor: &dyn Monitor,
) -> Result<IndexRebuilt> {
    let host = (options.host.as_str(), options.now_ms);
    present(
        repository,
        Role::Rebuild,
        &options.cache,
        host,
        monitor,
        |session| {
            let place = repository.storage.describe();
            let index =
                ChunkIndex::create(&options.cache, repository.id, &place).map_err(Error::Index)?;
            let findings = Findings::new(monitor);
            let mut footers = Footers::list(session, &findings)?;
            let mut rebuilt = IndexRebuilt {
                directory: index.stats().directory,
                ..IndexRebuilt::default()
            };
            for key in segment_keys(repository, Scope::All)? {
                let Some(segment) = read(repository, &key, &findings)? else {
                    continue;
                };
                let checked = footers.check(&key, segment)?;
                index.apply(&key, &checked).map_err(Error::Index)?;
                rebuilt.segments += 1;
            }
            let rest = footers.rest()?;
            rebuilt.unindexed = rest.len() as u64;
            if publish {
                rebuilt.published = put_all(session, &index, rest)?;
            }
            rebuilt.packs = footers.read;
            rebuilt.problems = findings.count();
            index
                .bind_gc((session.gc.newest, session.gc.checksum))
                .and_then(|()| index.flush())
                .map_err(Error::Index)?;
            Ok(rebuilt)
        },
    )
}

/// A segment; `None` if it is damaged, which is told, or gone since it was listed.
fn read(
    repository: &Repository,
    key: &str,
    findings: &Findings<'_>,
) -> Result<Option<IndexSegment>> {
    let Some(parsed) = Key::new(key) else {
        return Ok(None);
    };
    match segment::get(repository, &parsed) {
        Ok(segment) => Ok(Some(segment)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) if error.is_damage() => {
            let why = error.source().map(ToString::to_string).unwrap_or_default();
            findings.tell(key.to_owned(), format!("is damaged: {why}"));
            Ok(None)
        }
        Err(error) => Err(Error::Repository(error)),
    }
}

/// Publishes the facts of packs and enters them; answers how many segments that took.
fn put_all(session: &Session<'_>, index: &ChunkIndex, facts: Vec<PackFacts>) -> Result<u64> {
    let mut n = 0;
    let mut facts = facts.into_iter();
    loop {
        let packs: Vec<PackFacts> = facts.by_ref().take(PACKS_PER_SEGMENT).collect();
        if packs.is_empty() {
            return Ok(u64::from(n));
        }
        let replaces = Vec::new();
        let segment = IndexSegment { packs, replaces };
        let (repository, run) = (session.repository, session.run);
        let key = segment::put(repository, MAINTENANCE_SCOPE, run, n, &segment)
            .map_err(Error::Repository)?;
        index.apply(key.as_str(), &segment).map_err(Error::Index)?;
        n += 1;
    }
}

/// Every pack that a segment names must be listed with its size, unless it is dead.
fn check_packs(
    session: &Session<'_>,
    known: &Known,
    findings: &Findings<'_>,
    verified: &mut IndexVerified,
) {
    let listed: HashMap<PackId, u64> = known
        .listed
        .iter()
        .map(|(_, pack, bytes)| (*pack, *bytes))
        .collect();
    for pack in &known.suspects {
        let expected = known.index.pack_bytes(pack).unwrap_or(0);
        let found = match listed.get(pack) {
            Some(bytes) => format!("has {bytes} bytes"),
            None => "is not listed".to_owned(),
        };
        findings.tell(
            format!("pack {pack}"),
            format!("{found}, an index segment says {expected}"),
        );
    }
    let unnamed = listed
        .keys()
        .filter(|pack| known.index.pack_bytes(pack).is_none() && !session.gc.dead.contains(pack));
    verified.unindexed = unnamed.count() as u64;
}

/// Walks two indexes side by side. What only the local one has must lie in a dead pack: its segment was merged since.
fn compare(
    session: &Session<'_>,
    local: &ChunkIndex,
    stated: &ChunkIndex,
    findings: &Findings<'_>,
    verified: &mut IndexVerified,
) -> Result<()> {
    let mut ours = local.chunks().peekable();
    let mut theirs = stated.chunks().peekable();
    loop {
        let id = match (ours.peek(), theirs.peek()) {
            (None, None) => return Ok(()),
            (Some(Ok((id, _))), None) | (None, Some(Ok((id, _)))) => *id,
            (Some(Ok((a, _))), Some(Ok((b, _)))) => *a.min(b),
            (Some(Err(_)), _) | (_, Some(Err(_))) => ChunkId([0; 32]),
        };
        let has = take(&mut ours, id)?;
        let should = take(&mut theirs, id)?;
        verified.chunks += u64::from(!has.is_empty());
        verified.copies += has.len() as u64;
        for location in &should {
            if !has.contains(location) {
                findings.tell(
                    about(id, location),
                    "is in a segment, not in the index".into(),
                );
            }
        }
        for location in &has {
            if !should.contains(location) && !session.gc.dead.contains(&location.pack) {
                findings.tell(about(id, location), "is in the index, in no segment".into());
            }
        }
    }
}

type ListedChunk = crate::dedup::Result<(ChunkId, Vec<Location>)>;

/// The locations of `id` if it is the next chunk; an error if that is what comes next.
fn take<I: Iterator<Item = ListedChunk>>(
    chunks: &mut std::iter::Peekable<I>,
    id: ChunkId,
) -> Result<Vec<Location>> {
    match chunks.next_if(|next| next.as_ref().map_or(true, |(next, _)| *next == id)) {
        None => Ok(Vec::new()),
        Some(Ok((_, locations))) => Ok(locations),
        Some(Err(error)) => Err(Error::Index(error)),
    }
}

fn about(id: ChunkId, location: &Location) -> String {
    format!(
        "chunk {id} in pack {} at {}",
        location.pack, location.offset
    )
}

/// The footers of all packs that are listed and not dead.
struct Footers<'a> {
    repository: &'a Repository,
    findings: &'a Findings<'a>,
    /// By pack: where it is kept, its length, whether its footer was read.
    listed: HashMap<PackId, (PackClass, u64, bool)>,
    read: u64,
}

impl<'a> Footers<'a> {
    fn list(session: &Session<'a>, findings: &'a Findings<'a>) -> Result<Self> {
        let mut listed = HashMap::new();
        for class in [PackClass::Data, PackClass::Meta] {
            let of_class = packs::list(session.repository, class).map_err(Error::Repository)?;
            let alive = of_class
                .into_iter()
                .filter(|pack| !session.gc.dead.contains(&pack.pack));
            listed.extend(alive.map(|pack| (pack.pack, (class, pack.bytes, false))));
        }
        Ok(Footers {
            repository: session.repository,
            findings,
            listed,
            read: 0,
        })
    }

    /// A pack's footer, if it was not read before.
    fn facts(&mut self, pack: PackId) -> Result<Option<PackFacts>> {
        let Some((class, bytes, read)) = self.listed.get_mut(&pack) else {
            return Ok(None);
        };
        if std::mem::replace(read, true) {
            return Ok(None);
        }
        self.read += 1;
        match facts_of(self.repository, *class, pack, *bytes)? {
            Ok(facts) => Ok(Some(facts)),
            Err(damage) => {
                let key = layout::pack(*class, pack).to_string();
                self.findings.tell(key, format!("is damaged: {damage}"));
                Ok(None)
            }
        }
    }

    /// A segment's facts as the footers have them; where a pack cannot be read, as the segment has them.
    fn check(&mut self, key: &str, mut segment: IndexSegment) -> Result<IndexSegment> {
        for stated in &mut segment.packs {
            if let Some(facts) = self.facts(stated.pack)?
                && facts != *stated
            {
                self.findings.tell(
                    key.to_owned(),
                    format!("does not say of pack {} what its footer says", stated.pack),
                );
                *stated = facts;
            }
        }
        Ok(segment)
    }

    /// The facts of the packs that were not asked for until now.
    fn rest(&mut self) -> Result<Vec<PackFacts>> {
        let mut unread: Vec<PackId> = self
            .listed
            .iter()
            .filter_map(|(pack, (_, _, read))| (!read).then_some(*pack))
            .collect();
        unread.sort_unstable();
        let mut facts = Vec::new();
        for pack in unread {
            facts.extend(self.facts(pack)?);
        }
        Ok(facts)
    }
}

/// A directory of our own, gone when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(cache: &Path, run: RunId) -> Result<Self> {
        let path = cache.join(format!("verify-{run}"));
        match fs::create_dir_all(&path) {
            Ok(()) => Ok(Scratch(path)),
            Err(source) => Err(Error::Local {
                doing: "make",
                path,
                source,
            }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is a few bytes lost in a cache.
        drop(fs::remove_dir_all(&self.0));
    }
}
