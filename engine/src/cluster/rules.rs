//! What of a data directory is in a backup, by name and place.
//!
//! | where | what is left out | why |
//! |---|---|---|
//! | top | `postmaster.pid`, `postmaster.opts` | belong to the running server |
//! | top | `backup_label`, `tablespace_map`, their `.old`, `backup_manifest` | those of this backup come from the server |
//! | top | `recovery.signal`, `standby.signal` | restore decides how recovery goes |
//! | top | `postgresql.auto.conf.tmp`, `current_logfiles.tmp` | half-written |
//! | top | `pgcairn.restore` | the mark of a restore that has not ended |
//! | `global` | `pg_control` | read last, until its checksum is right |
//! | `global`, database directories | `pg_internal.init`, `pg_internal.init.<pid>` | a cache, rebuilt |
//! | database directories | `t<backend>_…` | temporary relations |
//! | everywhere | `pgsql_tmp…` | temporary files |
//! | `pg_dynshmem`, `pg_notify`, `pg_replslot`, `pg_serial`, `pg_snapshots`, `pg_stat_tmp`, `pg_subtrans` | their content | reset at start, or the old host's |
//! | `pg_wal` of a running server | files; the content of `archive_status` and `summaries` | the archive has the WAL |
//! | tablespaces | all but `PG_<major>_<catalog>` | other clusters may share the place |
//!
//! Main, free space and visibility forks of unlogged relations are left out by the walk itself, online only: recovery
//! makes them from the init fork, a clean start would miss them. Source: `basebackup.c` of PostgreSQL 13 to 18.

use crate::cluster::data_dir::WalkOptions;
use crate::cluster::relation;

/// What a directory is, as far as its entries are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The data directory.
    Top,
    /// `global`.
    Global,
    /// `base`, or the version's directory in a tablespace.
    Databases,
    /// The files of one database in one tablespace.
    Database,
    /// `pg_tblspc`.
    Tablespaces,
    /// Where a tablespace's link leads, or a tablespace that is a directory in `pg_tblspc`.
    Tablespace,
    /// `pg_wal` of a running server, or of a stopped one: see [`WalkOptions::online`].
    Wal,
    /// A directory whose content is left out.
    Empty,
    /// Any other directory, or no directory at all.
    Other,
}

impl Place {
    /// Whether files in it may be relations.
    pub fn holds_relations(self) -> bool {
        matches!(self, Place::Global | Place::Database)
    }
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is left out, with all beneath it.
    Skip,
    /// It is taken; if it is a directory, this is what it is.
    Take(Place),
}

const SKIPPED_AT_TOP: [&[u8]; 13] = [
    b"backup_label",
    b"backup_label.old",
    b"backup_manifest",
    b"backup_manifest.tmp",
    b"current_logfiles.tmp",
    b"pgcairn.restore",
    b"postgresql.auto.conf.tmp",
    b"postmaster.opts",
    b"postmaster.pid",
    b"recovery.signal",
    b"standby.signal",
    b"tablespace_map",
    b"tablespace_map.old",
];

const EMPTIED: [&[u8]; 7] = [
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_replslot",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat_tmp",
    b"pg_subtrans",
];

/// What a backup from a standby takes from there: what replay keeps equal, and what makes up nearly all of a cluster.
/// The rest, settings above all, is each server's own, and comes from the primary.
const REPLICATED: [&[u8]; 5] = [
    b"base",
    b"global",
    b"pg_multixact",
    b"pg_tblspc",
    b"pg_xact",
];

/// Whether replay keeps the content of this entry of the data directory equal on a standby.
pub fn is_replicated(name: &[u8]) -> bool {
    REPLICATED.contains(&name)
}

/// What becomes of the entry `name` in a directory that is `place`.
pub fn verdict(place: Place, name: &[u8], options: &WalkOptions) -> Verdict {
    if name.starts_with(b"pgsql_tmp") {
        return Verdict::Skip;
    }
    match place {
        Place::Top => at_top(name),
        Place::Global => skip_if(name == b"pg_control" || is_relation_cache(name)),
        Place::Database => skip_if(is_relation_cache(name) || relation::is_temporary(name)),
        Place::Databases if relation::object_id(name).is_some() => Verdict::Take(Place::Database),
        Place::Tablespaces if relation::object_id(name).is_some() => {
            Verdict::Take(Place::Tablespace)
        }
        Place::Tablespace if name == tablespace_directory(options).as_bytes() => {
            Verdict::Take(Place::Databases)
        }
        Place::Wal if !options.online => Verdict::Take(Place::Other),
        Place::Wal if name == b"archive_status" => Verdict::Take(Place::Empty),
        Place::Wal if name == b"summaries" && options.version >= 17 => Verdict::Take(Place::Empty),
        Place::Tablespace | Place::Wal | Place::Empty => Verdict::Skip,
        Place::Databases | Place::Tablespaces | Place::Other => Verdict::Take(Place::Other),
    }
}

/// The directory of this cluster in each of its tablespaces, for example `PG_15_202209061`.
pub fn tablespace_directory(options: &WalkOptions) -> String {
    format!("PG_{}_{}", options.version, options.catalog_version)
}

fn at_top(name: &[u8]) -> Verdict {
    if SKIPPED_AT_TOP.contains(&name) {
        return Verdict::Skip;
    }
    Verdict::Take(match name {
        b"base" => Place::Databases,
        b"global" => Place::Global,
        b"pg_tblspc" => Place::Tablespaces,
        b"pg_wal" => Place::Wal,
        name if EMPTIED.contains(&name) => Place::Empty,
        _ => Place::Other,
    })
}

fn is_relation_cache(name: &[u8]) -> bool {
    name.strip_prefix(b"pg_internal.init")
        .is_some_and(|rest| matches!(rest, [] | [b'.', ..]))
}

fn skip_if(skip: bool) -> Verdict {
    if skip {
        Verdict::Skip
    } else {
        Verdict::Take(Place::Other)
    }
}
