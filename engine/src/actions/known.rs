//! Brings the local chunk index up to date with a repository.
//!
//! Promises: the index knows every fact of every index segment that was asked for, and which packs are listed with the
//! size their segment says; packs that no segment names are found by their footers, so what a crashed run stored is
//! used, and a damaged segment costs time alone. Whatever is wrong with the local index, it is thrown away and built
//! again: it is a cache.

use std::collections::BTreeSet;
use std::path::Path;

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::session::Session;
use crate::dedup::index::ChunkIndex;
use crate::ids::PackId;
use crate::pack::format::FooterEntry;
use crate::pack::reader::{ReadError, read_footer};
use crate::repository::gc_log;
use crate::repository::layout::{self, PackClass};
use crate::repository::segment::{self, Fact, IndexSegment, PackFacts};
use crate::repository::{Repository, list_all, packs};

/// Missing packs that are named one by one.
const NAMED_SUSPECTS: usize = 20;

/// Which index segments are wanted.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    /// All: a backup dedups against everything.
    All,
    /// One stanza's and those of maintenance: enough to restore.
    Stanza(&'a str),
}

/// The index, and what is odd about the repository.
pub(super) struct Known {
    /// Up to date.
    pub(super) index: ChunkIndex,
    /// Packs that a segment names and that are neither condemned nor dead, but absent or of another size.
    pub(super) suspects: Vec<PackId>,
    /// Copies of chunks are quarantined.
    pub(super) quarantined: bool,
    /// Packs whose chunks this run must not use.
    pub(super) unusable: BTreeSet<PackId>,
    /// The packs that are listed, with their sizes, by class.
    pub(super) listed: Vec<(PackClass, PackId, u64)>,
}

/// Opens the index in `cache` and applies what it has not seen.
pub(super) fn bring_up_to_date(
    session: &Session<'_>,
    cache: &Path,
    scope: Scope<'_>,
    problem: &mut dyn FnMut(String, String),
) -> Result<Known> {
    let repository = session.repository;
    let gc_checksum = |number| gc_log::checksum(repository, number).ok().flatten();
    let place = repository.storage.describe();
    let index =
        ChunkIndex::open(cache, repository.id, &place, &gc_checksum).map_err(Error::Index)?;
    let mut keys = segment_keys(repository, scope)?;
    let missing: Vec<String> = index
        .missing_segments(&keys)
        .into_iter()
        .map(str::to_owned)
        .collect();
    for key in missing {
        apply(repository, &index, &key, problem)?;
    }
    let mut listed = Vec::new();
    for class in [PackClass::Data, PackClass::Meta] {
        let of_class = packs::list(repository, class).map_err(Error::Repository)?;
        listed.extend(
            of_class
                .into_iter()
                .map(|pack| (class, pack.pack, pack.bytes)),
        );
    }
    let sizes: Vec<(PackId, u64)> = listed
        .iter()
        .map(|(_, pack, bytes)| (*pack, *bytes))
        .collect();
    let unusable = session.unusable();
    let suspects = index.set_packs(&sizes, &unusable);
    tell_of(&suspects, &listed, problem);
    let quarantine = session.quarantined()?;
    for (chunk, pack) in &quarantine {
        index.quarantine(*chunk, *pack);
    }
    if !session.gc_is_damaged {
        index
            .bind_gc((session.gc.newest, session.gc.checksum))
            .map_err(Error::Index)?;
    }
    keys.clear();
    Ok(Known {
        index,
        suspects,
        quarantined: !quarantine.is_empty(),
        unusable,
        listed,
    })
}

/// Names the packs that are not as an index segment says.
fn tell_of(
    suspects: &[PackId],
    listed: &[(PackClass, PackId, u64)],
    problem: &mut dyn FnMut(String, String),
) {
    for pack in suspects.iter().take(NAMED_SUSPECTS) {
        let found = listed.iter().find(|(_, listed, _)| listed == pack);
        match found {
            Some((class, pack, bytes)) => problem(
                layout::pack(*class, *pack).to_string(),
                format!("has {bytes} bytes, which is not what was stored: it is not used"),
            ),
            None => problem(
                format!("pack {pack}"),
                "is missing from the repository".to_owned(),
            ),
        }
    }
    if let Some(more @ 1..) = suspects.len().checked_sub(NAMED_SUSPECTS) {
        problem(
            "the repository".to_owned(),
            format!("{more} more packs are missing or not of the size they should be"),
        );
    }
}

/// Applies the segments that were left out so far.
pub(super) fn widen(session: &Session<'_>, known: &Known) -> Result<()> {
    let keys = segment_keys(session.repository, Scope::All)?;
    for key in known.index.missing_segments(&keys) {
        // What another stanza's damaged segment names is found by the packs' footers, as here.
        apply(session.repository, &known.index, key, &mut |_, _| {})?;
    }
    let sizes: Vec<(PackId, u64)> = known
        .listed
        .iter()
        .map(|(_, pack, bytes)| (*pack, *bytes))
        .collect();
    known.index.set_packs(&sizes, &known.unusable);
    Ok(())
}

/// The keys of the segments of a scope, in key order.
pub(super) fn segment_keys(repository: &Repository, scope: Scope<'_>) -> Result<Vec<String>> {
    let prefixes = match scope {
        Scope::All => vec![layout::index_prefix(None).map_err(Error::Repository)?],
        Scope::Stanza(stanza) => {
            let of = |scope| layout::index_prefix(Some(scope)).map_err(Error::Repository);
            vec![of(stanza)?, of(layout::MAINTENANCE_SCOPE)?]
        }
    };
    let mut keys = Vec::new();
    for prefix in prefixes {
        let objects = list_all(repository.storage.as_ref(), &prefix).map_err(Error::Repository)?;
        keys.extend(objects.into_iter().map(|object| object.key.to_string()));
    }
    Ok(keys)
}

/// Applies one segment. One that is gone was merged into another, which the next listing shows. One that is damaged is
/// passed over: then no segment names its packs, and their footers say the same.
fn apply(
    repository: &Repository,
    index: &ChunkIndex,
    key: &str,
    problem: &mut dyn FnMut(String, String),
) -> Result<()> {
    let Some(key) = crate::storage::Key::new(key) else {
        return Ok(());
    };
    match segment::get(repository, &key) {
        Ok(segment) => index.apply(key.as_str(), &segment).map_err(Error::Index),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) if error.is_damage() => {
            let message = format!(
                "{}; the footers of the packs are read instead",
                with_causes(&error)
            );
            problem(key.to_string(), message);
            Ok(())
        }
        Err(error) => Err(Error::Repository(error)),
    }
}

/// What a pack's footer says; the inner error is what is wrong with it.
pub(super) fn facts_of(
    repository: &Repository,
    class: PackClass,
    pack: PackId,
    bytes: u64,
) -> Result<std::result::Result<PackFacts, String>> {
    let key = layout::pack(class, pack);
    let mut fetch = |offset, buffer: &mut [u8]| repository.storage.get_range(&key, offset, buffer);
    match read_footer(&mut fetch, bytes) {
        Ok(entries) => Ok(Ok(PackFacts {
            pack,
            class,
            bytes,
            blobs: entries.into_iter().map(fact).collect(),
        })),
        Err(ReadError::Pack(damage)) => Ok(Err(damage.to_string())),
        Err(ReadError::Fetch(error)) if repository.is_about_one_object(&error) => {
            Ok(Err(with_causes(&error)))
        }
        Err(ReadError::Fetch(error)) => Err(Error::Storage(error)),
    }
}

/// What a footer's entry says, as a segment says it.
pub(super) fn fact(entry: FooterEntry) -> Fact {
    Fact {
        id: entry.id,
        kind: entry.kind,
        offset: entry.offset,
        stored_bytes: entry.stored_bytes,
        raw_bytes: entry.raw_bytes,
    }
}

/// The facts of the packs that are listed but that no segment names, read from their footers: what a run stored that
/// ended before its next segment. Packs that must not be used are left out. A pack whose footer cannot be read is passed
/// over (nothing refers to it) and named.
pub(super) fn unindexed(
    repository: &Repository,
    known: &Known,
    problem: &mut dyn FnMut(String, String),
) -> Result<IndexSegment> {
    let mut found = Vec::new();
    for (class, pack, bytes) in &known.listed {
        let indexed = known.index.pack_bytes(pack).is_some();
        if indexed || known.unusable.contains(pack) {
            continue;
        }
        match facts_of(repository, *class, *pack, *bytes)? {
            Ok(facts) => found.push(facts),
            Err(damage) => problem(
                layout::pack(*class, *pack).to_string(),
                format!("is in no index segment and unreadable: {damage}"),
            ),
        }
    }
    Ok(IndexSegment {
        packs: found,
        replaces: Vec::new(),
    })
}
