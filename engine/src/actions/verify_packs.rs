//! Verifying packs: each is read whole, and every chunk in it decoded and held against its id.
//!
//! Promises: a copy is called damaged only after a second reading, for which the storage was asked to forget what it had
//! cached; it is then hidden from everybody (`repository/quarantine.rs`), and a pack that cannot be read from this process.
//! What the index segments say of a pack is held against the pack itself. Damage that is known is counted and not told
//! again: it stays until prune sweeps the pack, and only the backups' trees say whether anybody misses what was there.
//! Memory: a few packs, one index segment, and the ids of the packs.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::fetch::location_of;
use crate::actions::findings::Findings;
use crate::actions::known::{Known, Scope, fact, segment_keys};
use crate::actions::pipeline::{Inlet, Outlet, run_jobs};
use crate::actions::session::Session;
use crate::ids::{Namer, PackId};
use crate::monitor::{Counter, Monitor, Tally};
use crate::pack;
use crate::pack::reader::{Opener, framed, parse_footer, read_footer};
use crate::repository::layout::{self, PackClass};
use crate::repository::packs;
use crate::repository::segment::{self, Fact, PackFacts};
use crate::storage::{ErrorKind, Key};

/// Packs that are fetched at once from a store that is a round trip away, at least.
const LEAST_REMOTE_THREADS: usize = 4;
/// Bytes of packs that are in memory at once, if a single one is not larger.
const IN_MEMORY: u64 = 256 << 20;
/// No pack is larger that was ever written: several times what a pack is ended at.
const LARGEST: u64 = 256 << 20;
/// Of a pack that cannot be read at once, so much is read at a time: the disk may be bad in one place.
const WINDOW: usize = 1 << 20;

/// What verifies packs.
pub(super) struct PackVerifier<'a> {
    session: &'a Session<'a>,
    known: &'a Known,
    findings: &'a Findings<'a>,
    tally: &'a Tally,
    monitor: &'a dyn Monitor,
    threads: usize,
    listed: HashMap<(PackClass, PackId), u64>,
    /// Packs that were read, or that nobody uses any more.
    done: BTreeSet<PackId>,
    /// How much was hidden, chunk by chunk or whole packs.
    hidden: AtomicU64,
    /// Damaged copies of which somebody knew before.
    known_damaged: AtomicU64,
}

/// A pack to be read, and what an index segment says of it.
struct Job {
    class: PackClass,
    pack: PackId,
    bytes: u64,
    stated: Option<Vec<Fact>>,
}

/// What is wrong with a pack.
#[derive(Default)]
struct Wrong {
    /// It cannot be had.
    gone: Option<String>,
    /// A part of it cannot be had.
    torn: Option<String>,
    /// It is not as a whole what was put.
    form: Option<pack::Error>,
    /// Its footer cannot be read.
    footer_lost: bool,
    /// An index segment says something else than its footer.
    facts: bool,
    /// It lies among the packs of the other class.
    misplaced: bool,
    /// Chunks that are not what they should be.
    chunks: Vec<BadChunk>,
}

/// A copy of a chunk that is not what it should be.
struct BadChunk {
    fact: Fact,
    why: String,
    /// The pack itself says that it is there.
    in_footer: bool,
}

impl Wrong {
    fn is_nothing(&self) -> bool {
        let of_one = self.gone.is_none() && self.torn.is_none() && self.form.is_none();
        of_one && !self.facts && !self.misplaced && self.chunks.is_empty()
    }
}

impl<'a> PackVerifier<'a> {
    /// A verifier that has read nothing yet.
    pub(super) fn new(
        (session, known): (&'a Session<'a>, &'a Known),
        findings: &'a Findings<'a>,
        (tally, monitor): (&'a Tally, &'a dyn Monitor),
        threads: usize,
    ) -> Self {
        let listed = known.listed.iter();
        // What is not as it should be at first sight was told by whoever brought the index up to date.
        let done = known.suspects.iter().chain(&known.unusable);
        PackVerifier {
            session,
            known,
            findings,
            tally,
            monitor,
            threads,
            listed: listed
                .map(|(class, pack, bytes)| ((*class, *pack), *bytes))
                .collect(),
            done: done.copied().collect(),
            hidden: AtomicU64::new(0),
            known_damaged: AtomicU64::new(0),
        }
    }

    /// Whether a pack was read.
    pub(super) fn has_read(&self, pack: &PackId) -> bool {
        self.done.contains(pack)
    }

    /// How many copies and packs were hidden so far, because they cannot be read.
    pub(super) fn hidden(&self) -> u64 {
        self.hidden.load(Ordering::Relaxed)
    }

    /// How many copies were found damaged of which that was known.
    pub(super) fn known_damaged(&self) -> u64 {
        self.known_damaged.load(Ordering::Relaxed)
    }

    /// The bytes of the packs that are wanted and were not read yet, and of the largest of them.
    pub(super) fn unread_bytes(&self, wanted: Option<&BTreeSet<PackId>>) -> (u64, u64) {
        let wanted = |pack: &PackId| wanted.is_none_or(|wanted| wanted.contains(pack));
        let unread = self.listed.iter().filter_map(|((_, pack), bytes)| {
            (wanted(pack) && !self.done.contains(pack)).then_some(*bytes)
        });
        unread.fold((0, 0), |(sum, largest), bytes| {
            (sum + bytes, largest.max(bytes))
        })
    }

    /// Reads the packs that are wanted (all, if none are named) and were not read yet.
    pub(super) fn verify(&mut self, wanted: Option<&BTreeSet<PackId>>) -> Result<()> {
        let (_, largest) = self.unread_bytes(wanted);
        let room = usize::try_from(IN_MEMORY / largest.clamp(1, LARGEST)).unwrap_or(usize::MAX);
        let remote = self.session.repository.storage.is_remote();
        let least = if remote { LEAST_REMOTE_THREADS } else { 1 };
        let threads = self.threads.max(least).min(room);
        let mut done = std::mem::take(&mut self.done);
        let outcome = run_jobs(
            threads,
            |jobs| self.produce(wanted, &mut done, jobs),
            |jobs| self.work(jobs),
        );
        self.done = done;
        outcome
    }

    fn produce(
        &self,
        wanted: Option<&BTreeSet<PackId>>,
        done: &mut BTreeSet<PackId>,
        jobs: &Outlet<Job>,
    ) -> Result<()> {
        let is_wanted = |pack: &PackId| wanted.is_none_or(|wanted| wanted.contains(pack));
        let mut missing = wanted.map(BTreeSet::len);
        for key in segment_keys(self.session.repository, Scope::All)? {
            if missing == Some(0) {
                break;
            }
            for stated in self.segment(&key)? {
                let PackFacts { pack, class, .. } = stated;
                let listed = self.listed.get(&(class, pack));
                let listed = listed.filter(|_| is_wanted(&pack));
                if let Some(bytes) = listed.filter(|_| done.insert(pack)) {
                    missing = missing.map(|missing| missing.saturating_sub(1));
                    jobs.send(Job {
                        class,
                        pack,
                        bytes: *bytes,
                        stated: Some(stated.blobs),
                    })?;
                }
            }
        }
        // What no segment names: a run is at it, or crashed before it could say so, or the segment is lost.
        for (class, pack, bytes) in &self.known.listed {
            if is_wanted(pack) && done.insert(*pack) {
                jobs.send(Job {
                    class: *class,
                    pack: *pack,
                    bytes: *bytes,
                    stated: None,
                })?;
            }
        }
        Ok(())
    }

    /// What an index segment says; nothing if it is damaged, which is told, or gone since it was listed.
    fn segment(&self, key: &str) -> Result<Vec<PackFacts>> {
        let Some(parsed) = Key::new(key) else {
            return Ok(Vec::new());
        };
        let repository = self.session.repository;
        match segment::get(repository, &parsed) {
            Ok(segment) => Ok(segment.packs),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) if error.is_damage() || repository.is_about_one_object(error.storage()) => {
                let message = format!(
                    "{}; nothing is lost by it: the packs say the same",
                    with_causes(&error)
                );
                self.findings.tell(key.to_owned(), message);
                Ok(Vec::new())
            }
            Err(error) => Err(Error::Repository(error)),
        }
    }

    fn work(&self, jobs: &Inlet<Job>) -> Result<()> {
        let mut reader = Reader {
            opener: Opener::new().map_err(|source| Error::PackDamaged {
                key: "the decompressor".to_owned(),
                source,
            })?,
            namer: Namer::plain(),
            pack: Vec::new(),
            chunk: Vec::new(),
        };
        while let Some(job) = jobs.next() {
            let (seen, mut chunks) = self.read(&mut reader, &job)?;
            if !seen.is_nothing() {
                let (confirmed, found) = self.read(&mut reader, &job)?;
                chunks = found;
                self.tell(&job, &seen, confirmed, chunks);
            }
            self.tally.add(Counter::FetchedBytes, job.bytes);
            self.tally.add(Counter::Packs, 1);
            self.tally.add(Counter::Chunks, chunks);
            self.monitor.progress(self.tally);
        }
        Ok(())
    }

    /// Reads a pack from its medium; answers what is wrong with it, and how many chunks it should hold.
    fn read(&self, reader: &mut Reader, job: &Job) -> Result<(Wrong, u64)> {
        let mut wrong = Wrong::default();
        self.load(reader, job, &mut wrong)?;
        if wrong.gone.is_some() {
            return Ok((wrong, 0));
        }
        let footer = match parse_footer(&reader.pack) {
            Ok(entries) => Some(entries),
            Err(damage) => {
                wrong.form = Some(damage);
                // What a footer says that is itself whole is what others go by.
                footer_of(&reader.pack)
            }
        };
        wrong.footer_lost = footer.is_none();
        let footer: Option<Vec<Fact>> =
            footer.map(|entries| entries.into_iter().map(fact).collect());
        wrong.facts = matches!((&footer, &job.stated), (Some(own), Some(stated)) if own != stated);
        let Some(facts) = job.stated.as_ref().or(footer.as_ref()) else {
            wrong.gone = wrong.form.take().map(|damage| damage.to_string());
            return Ok((wrong, 0));
        };
        wrong.misplaced = facts
            .iter()
            .any(|fact| PackClass::of(fact.kind) != job.class);
        for fact in facts {
            if let Err(damage) = reader.open(job.pack, fact) {
                wrong.chunks.push(BadChunk {
                    fact: *fact,
                    why: damage.to_string(),
                    in_footer: footer.as_ref().is_none_or(|own| own.contains(fact)),
                });
            }
        }
        Ok((wrong, facts.len() as u64))
    }

    /// Fetches a pack; what of it cannot be had is zeros.
    fn load(&self, reader: &mut Reader, job: &Job, wrong: &mut Wrong) -> Result<()> {
        let (repository, pack) = (self.session.repository, &mut reader.pack);
        if job.bytes > LARGEST {
            let bytes = job.bytes;
            wrong.gone = Some(format!("has {bytes} bytes, more than any pack"));
            return Ok(());
        }
        repository
            .storage
            .drop_cached(&layout::pack(job.class, job.pack));
        pack.resize(usize::try_from(job.bytes).unwrap_or(0), 0);
        let error = match packs::get_range(repository, job.class, job.pack, 0, pack) {
            Ok(()) => return Ok(()),
            Err(error) if !repository.is_about_one_object(error.storage()) => {
                return Err(Error::Repository(error));
            }
            Err(error) => error,
        };
        if error.storage_kind() != Some(ErrorKind::Other) {
            wrong.gone = Some(with_causes(&error));
            return Ok(());
        }
        wrong.torn = Some(with_causes(&error));
        for (at, window) in (0..).step_by(WINDOW).zip(pack.chunks_mut(WINDOW)) {
            match packs::get_range(repository, job.class, job.pack, at, window) {
                Ok(()) => {}
                Err(error) if repository.is_about_one_object(error.storage()) => window.fill(0),
                Err(error) => return Err(Error::Repository(error)),
            }
        }
        Ok(())
    }

    /// Tells what two readings found, and hides what both found damaged.
    fn tell(&self, job: &Job, seen: &Wrong, confirmed: Wrong, of: u64) {
        let key = layout::pack(job.class, job.pack).to_string();
        if let Some(gone) = confirmed.gone {
            self.hide_pack(job.pack);
            return self.findings.tell(key, gone);
        }
        if confirmed.misplaced {
            // Whoever wants a chunk of it looks in the other place.
            self.hide_pack(job.pack);
            let message = "holds chunks of the other kind: it belongs elsewhere";
            return self.findings.tell(key, message.to_owned());
        }
        let mut damaged = confirmed.chunks;
        let was_seen = |chunk: &BadChunk| seen.chunks.iter().any(|other| other.fact == chunk.fact);
        damaged.retain(was_seen);
        // What only a newer program can read is not damaged.
        let newer = matches!(confirmed.form, Some(pack::Error::TooNew { .. }));
        let known = self.hide(job.pack, &damaged, newer);
        self.known_damaged.fetch_add(known, Ordering::Relaxed);
        if known > 0 && known == damaged.len() as u64 && !confirmed.footer_lost {
            return;
        }
        let message = match (damaged.first(), confirmed.torn, confirmed.form) {
            (_, _, Some(newer @ pack::Error::TooNew { .. })) => newer.to_string(),
            (Some(first), torn, _) => {
                let why = torn.unwrap_or_else(|| first.why.clone());
                let (count, offset) = (damaged.len(), first.fact.offset);
                format!("{count} of {of} chunks in it are damaged: at {offset}, {why}")
            }
            (None, Some(why), _) => format!("{why}; the chunks in it can be read"),
            (None, None, Some(why)) => format!("{why}; the chunks in it can be read"),
            (None, None, None) if confirmed.facts => {
                "an index segment does not say of it what its footer says; what it says can be read"
                    .to_owned()
            }
            (None, None, None) => UNSTABLE.to_owned(),
        };
        self.findings.tell(key, message);
    }

    /// Hides copies; answers of how many it was known that they are damaged.
    fn hide(&self, pack: PackId, damaged: &[BadChunk], newer: bool) -> u64 {
        let mut known = 0;
        for chunk in damaged {
            let id = chunk.fact.id;
            self.known.index.mark_damaged(id, pack);
            if self.known.index.is_quarantined(&id, pack) {
                known += 1;
            } else if chunk.in_footer && !newer {
                // Where only an index segment is wrong, the copy may be sound.
                self.session.quarantine(id, pack, &chunk.why);
            }
        }
        self.hidden
            .fetch_add(damaged.len() as u64, Ordering::Relaxed);
        known
    }

    fn hide_pack(&self, pack: PackId) {
        self.known.index.mark_gone(pack);
        self.hidden.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is said of an object that is damaged once and then is not.
pub(super) const UNSTABLE: &str = "was damaged when it was read and is not when it is read again: do not trust the way to \
                                   it, nor the memory of this machine";

/// The footer of a pack at hand whose rest is damaged.
fn footer_of(bytes: &[u8]) -> Option<Vec<pack::format::FooterEntry>> {
    let mut fetch = |offset: u64, buffer: &mut [u8]| -> std::result::Result<(), Infallible> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let wanted = from
            .checked_add(buffer.len())
            .and_then(|to| bytes.get(from..to));
        if let Some(wanted) = wanted {
            buffer.copy_from_slice(wanted);
        }
        Ok(())
    };
    read_footer(&mut fetch, bytes.len() as u64).ok()
}

/// What one thread reads with.
struct Reader {
    opener: Opener,
    namer: Namer,
    pack: Vec<u8>,
    chunk: Vec<u8>,
}

impl Reader {
    /// Decodes a chunk of the pack at hand and holds it against its id.
    fn open(&mut self, pack: PackId, fact: &Fact) -> pack::Result<()> {
        let location = location_of(pack, fact);
        let bytes = framed(&self.pack, &location)?;
        self.opener
            .open(&self.namer, &fact.id, &location, bytes, &mut self.chunk)
    }
}
