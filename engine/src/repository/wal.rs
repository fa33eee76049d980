//! The WAL archive: files under their names, as opaque objects.
//!
//! Promises: a file is never replaced. Does not know what is in a file, nor whether an absent one is the end of the WAL.

use serde::{Deserialize, Serialize};

use crate::codec::RecordKind;
use crate::repository::layout;
use crate::repository::{Repository, Result, get_record, list_all, put_record, storage_failed};
use crate::storage::{Key, Object, Storage};
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

/// Fills `buffer` with a file's bytes, as it was put, from `offset` on.
pub fn get_range(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    name: &str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<()> {
    repository
        .storage
        .get_range(&layout::wal(stanza, epoch, name)?, offset, buffer)
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

/// A segment in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Its name.
    pub name: String,
    /// When it was put, by the store's clock: milliseconds since 1970-01-01 UTC.
    pub modified_ms: i64,
}

/// All that is in the archive of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The names of the segments, in order.
    pub segments: Vec<String>,
    /// The recorded gaps.
    pub gaps: Vec<WalGap>,
}

/// A timeline's segments in order, those after segment `after` only.
pub fn segments(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    timeline: Timeline,
    after: Option<&str>,
) -> Result<Vec<Archived>> {
    segments_after(repository, stanza, epoch, timeline, after, usize::MAX)
}

/// The first segment of a timeline.
pub fn first(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    timeline: Timeline,
) -> Result<Option<String>> {
    let found = segments_after(repository, stanza, epoch, timeline, None, 1)?;
    Ok(found.into_iter().next().map(|segment| segment.name))
}

/// The first segment of a timeline behind segment `after`.
pub fn first_after(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    timeline: Timeline,
    after: &str,
) -> Result<Option<String>> {
    let found = segments_after(repository, stanza, epoch, timeline, Some(after), 1)?;
    Ok(found.into_iter().next().map(|segment| segment.name))
}

/// What is in the archive of an epoch: a request for each thousand segments.
pub fn contents(repository: &Repository, stanza: &str, epoch: &str) -> Result<Contents> {
    let mut contents = Contents::default();
    let prefix = layout::wal_prefix(stanza, epoch)?;
    for object in list_all(repository.storage.as_ref(), &prefix)? {
        if layout::is_wal_gap(&object.key) {
            contents.gaps.push(gap(repository, &object.key)?);
        } else if let Some(segment) = archived(&object) {
            contents.segments.push(segment.name);
        }
    }
    Ok(contents)
}

/// The next of what is in the archive of an epoch, whatever it is, after a key: a thousand at most, none at the end.
pub fn page(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    after: Option<&Key>,
) -> Result<Vec<Object>> {
    let prefix = layout::wal_prefix(stanza, epoch)?;
    let after = after.map(Key::as_str);
    repository
        .storage
        .list(&prefix, after, MANY)
        .map_err(storage_failed)
}

/// The recorded gap under a key.
pub fn gap(repository: &Repository, key: &Key) -> Result<WalGap> {
    get_record(repository, key, RecordKind::WalGap)
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
            let gap = gap(repository, &object.key)?;
            return Ok((gap.first.as_str() <= name).then_some(gap));
        }
        after = page.into_iter().next_back().map(|object| object.key);
    }
    Ok(None)
}

fn segments_after(
    repository: &Repository,
    stanza: &str,
    epoch: &str,
    timeline: Timeline,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<Archived>> {
    let prefix = format!("{}{timeline}", layout::wal_prefix(stanza, epoch)?);
    let after = after
        .map(|name| layout::wal(stanza, epoch, name))
        .transpose()?;
    let mut found: Vec<Archived> = Vec::new();
    let mut page_size = limit.saturating_add(FEW).min(MANY);
    let mut from = after.map(|key| key.as_str().to_owned());
    while found.len() < limit {
        let page = repository
            .storage
            .list(&prefix, from.as_deref(), page_size)
            .map_err(storage_failed)?;
        let wanted = limit - found.len();
        found.extend(page.iter().filter_map(archived).take(wanted));
        if page.len() < page_size {
            break;
        }
        from = page.last().map(|object| object.key.as_str().to_owned());
        page_size = MANY;
    }
    Ok(found)
}

fn archived(object: &Object) -> Option<Archived> {
    let name = layout::parse_wal_file(object.key.as_str())?;
    matches!(WalFile::of(name), Ok(WalFile::Segment)).then(|| Archived {
        name: name.to_owned(),
        modified_ms: object.modified_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::repository;

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
        let listed = |after: Option<&str>| -> Vec<String> {
            let found = segments(&repository, "main", EPOCH, Timeline(1), after).unwrap();
            found.into_iter().map(|segment| segment.name).collect()
        };
        assert_eq!(listed(None), names);
        assert_eq!(listed(Some(&names[1])), names[2..]);
        assert_eq!(listed(Some(&names[3])), [""; 0]);
        let first =
            |after: &str| first_after(&repository, "main", EPOCH, Timeline(1), after).unwrap();
        assert_eq!(first(&names[0]), Some(names[1].clone()));
        assert_eq!(first(&names[3]), None);
        let all = contents(&repository, "main", EPOCH).unwrap();
        assert_eq!(all.segments, [names, vec![name(2, 0, 0)]].concat());
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
        assert_eq!(contents(&repository, "main", EPOCH).unwrap().gaps, [gap]);
        for (n, inside) in [(4, false), (5, true), (7, true), (8, true), (9, false)] {
            let found = gap_covering(&repository, "main", EPOCH, &name(1, 0, n)).unwrap();
            assert_eq!(found.is_some(), inside, "segment {n}");
        }
    }
}
