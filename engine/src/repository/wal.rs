//! The WAL archive: files under their names, as opaque objects.
//!
//! Promises: a file is never replaced; listing needs few requests however long the archive is. Does not know what is in a
//! file, nor whether an absent one is the end of the WAL.

use serde::{Deserialize, Serialize};

use crate::codec::RecordKind;
use crate::repository::layout;
use crate::repository::{Repository, Result, get_record, put_record, storage_failed};
use crate::storage::{Object, Storage};
use crate::wal_name::{Timeline, WalFile};

/// Names asked for at once where one is wanted: history files and others may stand before it.
const FEW: usize = 16;
/// Names asked for at once where many are wanted.
const MANY: usize = 1000;

/// Segments that were given up by the archiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalGap {
    /// The first segment that is missing.
    pub first: String,
    /// The last one.
    pub last: String,
}

/// Puts a file. It fails with `AlreadyExists` if one has this name: what that means is the caller's to find out.
pub fn put(
    storage: &dyn Storage,
    stanza: &str,
    epoch: &str,
    name: &str,
    object: &[u8],
) -> Result<()> {
    storage
        .put(&layout::wal(stanza, epoch, name)?, object)
        .map_err(storage_failed)
}

/// A file, as it was put.
pub fn get(storage: &dyn Storage, stanza: &str, epoch: &str, name: &str) -> Result<Vec<u8>> {
    storage
        .get(&layout::wal(stanza, epoch, name)?)
        .map_err(storage_failed)
}

/// The stored length of a file, `None` if it is not there: one listing request.
pub fn present(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    name: &str,
) -> Result<Option<u64>> {
    let key = layout::wal(stanza, epoch, name)?;
    let listed = repository
        .storage
        .list(key.as_str(), None, 1)
        .map_err(storage_failed)?;
    Ok(listed
        .first()
        .filter(|object| object.key == key)
        .map(|object| object.bytes))
}

/// The names of a timeline's segments in order, those after segment `after` only, `limit` at most.
pub fn names_from(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    timeline: Timeline,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<String>> {
    let prefix = format!("{}{timeline}", layout::wal_prefix(stanza, epoch)?);
    let after = after
        .map(|name| layout::wal(stanza, epoch, name))
        .transpose()?;
    segments_after(
        repository,
        &prefix,
        after.as_ref().map(crate::storage::Key::as_str),
        limit,
    )
}

/// The first and the last segment of an epoch, over all timelines, by name.
pub fn bounds(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
) -> Result<(Option<String>, Option<String>)> {
    let prefix = layout::wal_prefix(stanza, epoch)?;
    let Some(first) = segments_after(repository, &prefix, None, 1)?.pop() else {
        return Ok((None, None));
    };
    // Storages list forwards only, so the last one is searched: first its timeline, then its log, both of 8 digits.
    let at_timeline = |timeline: u32| {
        let from = format!("{prefix}{timeline:08X}");
        Ok(segments_after(repository, &prefix, Some(&from), 1)?.pop())
    };
    let newest = last_of(first.clone(), 0, at_timeline)?;
    let folder = format!("{prefix}{}", newest.get(..8).unwrap_or_default());
    let at_log = |log: u32| {
        Ok(segments_after(repository, &folder, Some(&format!("{folder}{log:08X}")), 1)?.pop())
    };
    let newest = last_of(newest, 8, at_log)?;
    let folder = format!("{prefix}{}/", newest.get(..16).unwrap_or_default());
    let last = segments_after(repository, &folder, None, usize::MAX)?.pop();
    Ok((Some(first), Some(last.unwrap_or(newest))))
}

/// Records that segments are missing for good.
pub fn put_gap(repository: &Repository, stanza: &str, epoch: &str, gap: &WalGap) -> Result<()> {
    let key = layout::wal_gap(stanza, epoch, &gap.last)?;
    match put_record(repository, &key, RecordKind::WalGap, gap) {
        Err(error) if !error.is_already_there() => Err(error),
        _ => Ok(()),
    }
}

/// The recorded gap that a segment lies in. A gap is stored under its last segment, so it is found by listing forwards.
pub fn gap_covering(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    name: &str,
) -> Result<Option<WalGap>> {
    let prefix = format!(
        "{}{}",
        layout::wal_prefix(stanza, epoch)?,
        name.get(..8).unwrap_or_default()
    );
    let mut after = Some(layout::wal(stanza, epoch, name)?);
    while let Some(from) = after {
        let page = repository
            .storage
            .list(&prefix, Some(from.as_str()), MANY)
            .map_err(storage_failed)?;
        if let Some(object) = page.iter().find(|object| layout::is_wal_gap(&object.key)) {
            let gap: WalGap = get_record(repository, &object.key, RecordKind::WalGap)?;
            return Ok((gap.first.as_str() <= name).then_some(gap));
        }
        after = page.into_iter().next_back().map(|object| object.key);
    }
    Ok(None)
}

/// The names of segments under `prefix` whose keys come after `after`, in order, `limit` at most.
fn segments_after(
    repository: &Repository,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut page_size = limit.saturating_add(FEW).min(MANY);
    let mut from = after.map(str::to_owned);
    while names.len() < limit {
        let page = repository
            .storage
            .list(prefix, from.as_deref(), page_size)
            .map_err(storage_failed)?;
        let wanted = limit - names.len();
        names.extend(page.iter().filter_map(segment_name).take(wanted));
        if page.len() < page_size {
            break;
        }
        from = page.last().map(|object| object.key.as_str().to_owned());
        page_size = MANY;
    }
    Ok(names)
}

fn segment_name(object: &Object) -> Option<String> {
    let name = layout::parse_wal_file(object.key.as_str())?;
    matches!(WalFile::of(name), Ok(WalFile::Segment)).then(|| name.to_owned())
}

/// The name with the highest number in its 8 hex digits from `digit` on: gallops from `known`, then halves. `from(n)`
/// is the first name whose number is `n` or more.
fn last_of(
    known: String,
    digit: usize,
    from: impl Fn(u32) -> Result<Option<String>>,
) -> Result<String> {
    let number = |name: &str| {
        name.get(digit..digit + 8)
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
    };
    let mut best = known;
    let mut step = 1u32;
    // No name has this number or a higher one.
    let mut beyond: Option<u32> = None;
    while let Some(low) = number(&best) {
        let ask = match beyond {
            Some(high) if high - low <= 1 => break,
            Some(high) => low + (high - low) / 2,
            None if low == u32::MAX => break,
            None => low.saturating_add(step),
        };
        match from(ask)? {
            Some(found) if number(&found) > Some(low) => best = found,
            _ => beyond = Some(ask),
        }
        step = step.saturating_mul(2);
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::test_storage::MemoryStorage;
    use crate::repository::tests::{repository, repository_in};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    const EPOCH: &str = "15-1";

    fn name(timeline: u32, log: u32, segment: u32) -> String {
        format!("{timeline:08X}{log:08X}{segment:08X}")
    }

    fn fill(repository: &Repository, names: &[String]) {
        for name in names {
            put(repository.storage.as_ref(), "main", EPOCH, name, b"wal").unwrap();
        }
    }

    #[test]
    fn a_file_is_put_once_and_found_by_its_name_alone() {
        let repository = repository();
        let segment = name(1, 0, 3);
        assert_eq!(present(&repository, "main", EPOCH, &segment).unwrap(), None);
        fill(&repository, &[format!("{segment}.partial")]);
        assert_eq!(
            present(&repository, "main", EPOCH, &segment).unwrap(),
            None,
            "a partial is another file"
        );
        fill(&repository, std::slice::from_ref(&segment));
        assert_eq!(
            present(&repository, "main", EPOCH, &segment).unwrap(),
            Some(3)
        );
        assert_eq!(
            get(repository.storage.as_ref(), "main", EPOCH, &segment).unwrap(),
            b"wal"
        );
        assert!(
            put(
                repository.storage.as_ref(),
                "main",
                EPOCH,
                &segment,
                b"other"
            )
            .unwrap_err()
            .is_already_there()
        );
        assert!(
            get(repository.storage.as_ref(), "main", EPOCH, &name(1, 0, 4))
                .unwrap_err()
                .is_not_found()
        );
    }

    #[test]
    fn segments_of_a_timeline_are_listed_in_order_and_nothing_else_is() {
        let repository = repository();
        let names: Vec<String> = [(0, 254), (0, 255), (1, 0), (1, 1)]
            .map(|(log, n)| name(1, log, n))
            .into();
        fill(&repository, &names);
        let others = [
            name(2, 0, 0),
            "00000002.history".into(),
            format!("{}.00000028.backup", names[1]),
        ];
        fill(&repository, &others);
        let listed = |after: Option<&str>, limit| {
            names_from(&repository, "main", EPOCH, Timeline(1), after, limit).unwrap()
        };
        assert_eq!(listed(None, 10), names);
        assert_eq!(listed(Some(&names[1]), 10), names[2..]);
        assert_eq!(listed(Some(&names[0]), 2), names[1..3]);
        assert_eq!(listed(Some(&names[3]), 2), [""; 0]);
    }

    #[test]
    fn bounds_are_found_with_few_requests() {
        let storage = Arc::new(MemoryStorage::new());
        let repository = repository_in(&storage);
        assert_eq!(bounds(&repository, "main", EPOCH).unwrap(), (None, None));
        let names: Vec<String> = (0..3000).map(|n| name(1, 7 + n / 4, n % 4)).collect();
        fill(&repository, &names);
        let before = storage.requests.load(Ordering::Relaxed);
        let found = bounds(&repository, "main", EPOCH).unwrap();
        assert_eq!(found, (names.first().cloned(), names.last().cloned()));
        let requests = storage.requests.load(Ordering::Relaxed) - before;
        assert!(requests <= 30, "{requests} requests");
        fill(&repository, &[name(3, 2, 9), "00000005.history".into()]);
        assert_eq!(
            bounds(&repository, "main", EPOCH).unwrap().1,
            Some(name(3, 2, 9)),
            "names order timelines first"
        );
    }

    #[test]
    fn a_gap_is_found_from_any_segment_in_it_and_from_no_other() {
        let repository = repository();
        let gap = WalGap {
            first: name(1, 0, 5),
            last: name(1, 0, 8),
        };
        put_gap(&repository, "main", EPOCH, &gap).unwrap();
        fill(&repository, &[name(1, 0, 9)]);
        for (n, inside) in [(4, false), (5, true), (7, true), (8, true), (9, false)] {
            let found = gap_covering(&repository, "main", EPOCH, &name(1, 0, n)).unwrap();
            assert_eq!(found.is_some(), inside, "segment {n}");
        }
    }
}
