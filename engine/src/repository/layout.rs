//! The names of all objects: the only file that builds keys, and reads them back.
//!
//! Promises: numbers in keys have a fixed width (decimal, 10 digits for 32 bits and 20 for 64), so that key order is
//! number order; what was built here is parsed back to the same parts. Refuses stanza names, labels and WAL file names
//! that would make a key ambiguous or lead out of the repository.

use std::fmt::Display;

use crate::ids::{BlobKind, ChunkId, PackId, RunId};
use crate::repository::run::Role;
use crate::repository::snapshot::Label;
use crate::repository::{Error, Result};
use crate::storage::Key;
use crate::wal_name::WalFile;

/// What a probe of the storage writes lies below this.
pub const PROBE_PREFIX: &str = "probe/";
/// All stanza records lie below this.
pub const STANZAS_PREFIX: &str = "stanzas/";
/// The numbered gc log lies below this.
pub const GC_PREFIX: &str = "gc/";
/// All registers.
pub const SNAPSHOTS_PREFIX: &str = "snapshots/";
/// All announcements lie below this.
pub const RUNS_PREFIX: &str = "runs/";
/// Copies found damaged are named below this.
pub const QUARANTINE_PREFIX: &str = "quarantine/";
/// What the key of a gap record has behind the name of a segment.
const GAP_SUFFIX: &str = ".gap";
/// The scope of index segments that belong to no stanza: those of prune, merge and rebuild.
pub const MAINTENANCE_SCOPE: &str = "_";

/// Which packs: they are kept apart because restores list and fetch the two at different times.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum PackClass {
    /// Chunks of files.
    Data,
    /// Tree nodes and other blobs that registers name.
    Meta,
}

impl PackClass {
    /// Where chunks of a kind are kept.
    pub fn of(kind: BlobKind) -> Self {
        match kind {
            BlobKind::Node => PackClass::Meta,
            BlobKind::Data | BlobKind::Wal => PackClass::Data,
        }
    }

    fn folder(self) -> &'static str {
        match self {
            PackClass::Data => "data/",
            PackClass::Meta => "meta/",
        }
    }
}

/// The repository's own record.
pub fn config() -> Key {
    built("config".to_owned())
}

/// The second copy of the repository's own record.
pub fn config_copy() -> Key {
    built("config.copy".to_owned())
}

/// A record of a stanza: an epoch, or its end.
pub fn stanza(stanza: &str, n: u32) -> Result<Key> {
    Ok(built(format!("{}{n:010}", stanza_prefix(stanza)?)))
}

/// All records of a stanza.
pub fn stanza_prefix(stanza: &str) -> Result<String> {
    check_stanza_name(stanza)?;
    Ok(format!("{STANZAS_PREFIX}{stanza}/"))
}

/// The stanza and number that a stanza record's key names.
pub fn parse_stanza(key: &str) -> Option<(&str, u32)> {
    let (stanza, n) = key.strip_prefix(STANZAS_PREFIX)?.split_once('/')?;
    check_stanza_name(stanza).ok()?;
    Some((stanza, parse_number(n, 10)?.try_into().ok()?))
}

/// A pack.
pub fn pack(class: PackClass, pack: PackId) -> Key {
    let id = pack.to_string();
    let fan = id.get(..2).unwrap_or_default();
    built(format!("{}{fan}/{id}", class.folder()))
}

/// All packs of a class.
pub fn pack_prefix(class: PackClass) -> &'static str {
    class.folder()
}

/// The class and id that a pack's key names.
pub fn parse_pack(key: &str) -> Option<(PackClass, PackId)> {
    let (folder, rest) = key.split_once('/')?;
    let class = match folder {
        "data" => PackClass::Data,
        "meta" => PackClass::Meta,
        _ => return None,
    };
    let (fan, id) = rest.split_once('/')?;
    let id = id.starts_with(fan).then(|| id.parse().ok())??;
    (pack(class, id).as_str() == key).then_some((class, id))
}

/// An index segment; `scope` is a stanza, or [`MAINTENANCE_SCOPE`].
pub fn index_segment(scope: &str, run: RunId, n: u32) -> Result<Key> {
    Ok(built(format!(
        "{}{run}-{n:010}",
        index_prefix(Some(scope))?
    )))
}

/// All index segments of a scope, or of all scopes.
pub fn index_prefix(scope: Option<&str>) -> Result<String> {
    match scope {
        None => Ok("index/".to_owned()),
        Some(MAINTENANCE_SCOPE) => Ok(format!("index/{MAINTENANCE_SCOPE}/")),
        Some(stanza) => check_stanza_name(stanza).map(|()| format!("index/{stanza}/")),
    }
}

/// An object of a run: 0 is its announcement, 1 the gc record that it has read, from 2 on it beats.
pub fn run(role: &Role, run: RunId, k: u32) -> Result<Key> {
    Ok(built(format!("{}{k:010}", run_prefix(role, run)?)))
}

/// All objects of a run.
pub fn run_prefix(role: &Role, run: RunId) -> Result<String> {
    match role {
        Role::Backup { stanza, label } => {
            check_label(label)?;
            Ok(format!("{}{label}.{run}/", backup_runs_prefix(stanza)?))
        }
        other => Ok(format!("{RUNS_PREFIX}{}/{run}/", other.name())),
    }
}

/// All backups of a stanza that have announced themselves.
pub fn backup_runs_prefix(stanza: &str) -> Result<String> {
    check_stanza_name(stanza)?;
    Ok(format!("{RUNS_PREFIX}backup/{stanza}/"))
}

/// The role, run and number that a run's key names.
pub fn parse_run(key: &str) -> Option<(Role, RunId, u32)> {
    let (rest, k) = key.strip_prefix(RUNS_PREFIX)?.rsplit_once('/')?;
    let k = parse_number(k, 10)?.try_into().ok()?;
    let (folder, rest) = rest.split_once('/')?;
    if folder == "backup" {
        let (stanza, label, run) = parse_labelled(rest)?;
        return Some((Role::Backup { stanza, label }, run, k));
    }
    Some((Role::without_stanza(folder)?, rest.parse().ok()?, k))
}

/// The decision register of a backup.
pub fn snapshot(stanza: &str, label: &str, run: RunId) -> Result<Key> {
    labelled(SNAPSHOTS_PREFIX, stanza, label, run)
}

/// All registers of a stanza.
pub fn snapshot_prefix(stanza: &str) -> Result<String> {
    check_stanza_name(stanza)?;
    Ok(format!("{SNAPSHOTS_PREFIX}{stanza}/"))
}

/// The stanza, label and run that a register's key names.
pub fn parse_snapshot(key: &str) -> Option<(String, String, RunId)> {
    parse_labelled(key.strip_prefix(SNAPSHOTS_PREFIX)?)
}

/// The tombstone of a backup.
pub fn forget(stanza: &str, label: &str, run: RunId) -> Result<Key> {
    labelled("forget/", stanza, label, run)
}

/// All tombstones of a stanza.
pub fn forget_prefix(stanza: &str) -> Result<String> {
    check_stanza_name(stanza)?;
    Ok(format!("forget/{stanza}/"))
}

/// The stanza, label and run that a tombstone's key names.
pub fn parse_forget(key: &str) -> Option<(String, String, RunId)> {
    parse_labelled(key.strip_prefix("forget/")?)
}

/// A record of the gc log.
pub fn gc(n: u64) -> Key {
    built(format!("{GC_PREFIX}{n:020}"))
}

/// The number that a gc record's key names.
pub fn parse_gc(key: &str) -> Option<u64> {
    parse_number(key.strip_prefix(GC_PREFIX)?, 20)
}

/// The note that a copy of a chunk is damaged.
pub fn quarantine(pack: PackId, chunk: ChunkId) -> Key {
    built(format!("{QUARANTINE_PREFIX}{pack}/{chunk}"))
}

/// The pack and chunk that a quarantine entry's key names.
pub fn parse_quarantine(key: &str) -> Option<(PackId, ChunkId)> {
    let (pack, chunk) = key.strip_prefix(QUARANTINE_PREFIX)?.split_once('/')?;
    Some((pack.parse().ok()?, chunk.parse().ok()?))
}

/// A file of the WAL archive: below a folder of 16 hex digits, a `.history` directly below the epoch.
pub fn wal(stanza: &str, epoch: &str, name: &str) -> Result<Key> {
    let bad = || Error::Name {
        name: name.to_owned(),
        expected: "the name of a WAL file",
    };
    let prefix = wal_prefix(stanza, epoch)?;
    match WalFile::of(name).map_err(|_| bad())? {
        WalFile::History => Ok(built(format!("{prefix}{name}"))),
        WalFile::Segment | WalFile::Partial | WalFile::BackupHistory => Ok(built(format!(
            "{prefix}{}/{name}",
            name.get(..16).ok_or_else(bad)?
        ))),
    }
}

/// The record of a gap in the WAL archive that ends with segment `last`.
pub fn wal_gap(stanza: &str, epoch: &str, last: &str) -> Result<Key> {
    Ok(built(format!("{}{GAP_SUFFIX}", wal(stanza, epoch, last)?)))
}

/// Whether a key is that of a gap record.
pub fn is_wal_gap(key: &Key) -> bool {
    key.as_str().strip_suffix(GAP_SUFFIX).is_some()
}

/// All WAL files of an epoch.
pub fn wal_prefix(stanza: &str, epoch: &str) -> Result<String> {
    check_stanza_name(stanza)?;
    let numeric = |part: &str| {
        !part.is_empty() && part.len() <= 10 && part.bytes().all(|b| b.is_ascii_digit())
    };
    match epoch.split_once('-') {
        Some((version, n)) if numeric(version) && numeric(n) => {
            Ok(format!("wal/{stanza}/{epoch}/"))
        }
        _ => Err(Error::Name {
            name: epoch.to_owned(),
            expected: "the name of an epoch, such as 15-1",
        }),
    }
}

/// The file name at the end of a WAL object's key.
pub fn parse_wal_file(key: &str) -> Option<&str> {
    key.strip_prefix("wal/")?
        .rsplit_once('/')
        .map(|(_, name)| name)
}

/// What a probe writes.
pub fn probe(run: RunId, n: u32) -> Key {
    built(format!("{}{n:010}", probe_prefix(run)))
}

/// Where a probe writes.
pub fn probe_prefix(run: RunId) -> String {
    format!("{PROBE_PREFIX}{run}/")
}

/// Refuses stanza names other than 1 to 64 of `[A-Za-z0-9._-]`, the first a letter or digit.
pub fn check_stanza_name(name: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= 64 && name.bytes().all(fits) {
        return Ok(());
    }
    let expected =
        "a stanza name (1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit)";
    Err(Error::Name {
        name: name.chars().take(80).collect(),
        expected,
    })
}

fn check_label(label: &str) -> Result<()> {
    label.parse::<Label>().map(drop)
}

fn labelled(folder: &str, stanza: &str, label: &str, run: RunId) -> Result<Key> {
    check_stanza_name(stanza)?;
    check_label(label)?;
    Ok(built(format!("{folder}{stanza}/{label}.{run}")))
}

fn parse_labelled(rest: &str) -> Option<(String, String, RunId)> {
    let (stanza, rest) = rest.split_once('/')?;
    let (label, run) = rest.split_once('.')?;
    check_stanza_name(stanza)
        .and_then(|()| check_label(label))
        .ok()?;
    Some((stanza.to_owned(), label.to_owned(), run.parse().ok()?))
}

fn parse_number(text: &str, digits: usize) -> Option<u64> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn built(text: impl Display) -> Key {
    Key::new(text.to_string())
        .expect("every part of a key was checked or is a constant, a number or an id")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId([0xab; 16]);
    const FULL: &str = "20261124-010203F";

    #[test]
    fn every_key_is_parsed_back_to_its_parts() {
        let pack_id = PackId([7; 16]);
        for class in [PackClass::Data, PackClass::Meta] {
            assert_eq!(
                parse_pack(pack(class, pack_id).as_str()),
                Some((class, pack_id))
            );
        }
        let incr = "20261124-010203F_20261124-020304I";
        let parts = Some(("a.b".to_owned(), incr.to_owned(), RUN));
        assert_eq!(
            parse_snapshot(snapshot("a.b", incr, RUN).unwrap().as_str()),
            parts
        );
        assert_eq!(
            parse_forget(forget("a.b", incr, RUN).unwrap().as_str()),
            parts
        );
        assert_eq!(
            parse_stanza(stanza("main", 3).unwrap().as_str()),
            Some(("main", 3))
        );
        assert_eq!(parse_gc(gc(u64::MAX).as_str()), Some(u64::MAX));
        let chunk = ChunkId([9; 32]);
        assert_eq!(
            parse_quarantine(quarantine(pack_id, chunk).as_str()),
            Some((pack_id, chunk))
        );
        let backup = Role::Backup {
            stanza: "main".to_owned(),
            label: FULL.to_owned(),
        };
        for role in [
            backup,
            Role::Restore,
            Role::Archive,
            Role::Verify,
            Role::Prune,
            Role::Rebuild,
            Role::Exclusive,
        ] {
            assert_eq!(
                parse_run(run(&role, RUN, 12).unwrap().as_str()),
                Some((role, RUN, 12))
            );
        }
    }

    #[test]
    fn number_order_is_key_order() {
        assert!(gc(9) < gc(10));
        assert!(stanza("s", 99).unwrap() < stanza("s", 100).unwrap());
        assert!(run(&Role::Prune, RUN, 2).unwrap() < run(&Role::Prune, RUN, 10).unwrap());
    }

    #[test]
    fn wal_files_lie_where_the_format_says() {
        let key = |name| wal("main", "15-1", name).map(|key| key.to_string()).ok();
        let segment = "0000000100000002000000A3";
        assert_eq!(
            key(segment).as_deref(),
            Some("wal/main/15-1/0000000100000002/0000000100000002000000A3")
        );
        assert_eq!(
            key("00000002.history").as_deref(),
            Some("wal/main/15-1/00000002.history")
        );
        assert_eq!(key("../../config"), None);
        assert!(wal("main", "15", segment).is_err() && wal("main", "../x", segment).is_err());
        let gap = wal_gap("main", "15-1", segment).unwrap();
        assert_eq!(
            parse_wal_file(gap.as_str()),
            Some("0000000100000002000000A3.gap")
        );
    }

    #[test]
    fn names_that_would_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "_", "-x", "a/b", "ä", &"x".repeat(65)] {
            assert!(check_stanza_name(name).is_err(), "{name:?}");
        }
        for name in ["main", "0", "a.b_c-D", &"x".repeat(64)] {
            assert!(check_stanza_name(name).is_ok(), "{name:?}");
        }
        assert!(snapshot("main", "latest", RUN).is_err());
        assert_eq!(parse_pack("data/00/07070707070707070707070707070707"), None);
        assert_eq!(parse_gc("gc/7"), None);
    }
}
