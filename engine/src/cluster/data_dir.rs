//! A walk over a data directory and its tablespaces, and what a backup leaves out.
//!
//! Promises: rising component-wise byte order (`/` below every other byte), the data directory first; memory for the
//! names of one directory per depth; what vanishes under the walk is passed over; names are bytes. `global/pg_control`
//! is never yielded (it is copied last, by other means), nor are a `backup_label` or `tablespace_map`. What is left out
//! and why is in `rules`. With a standby, what replay keeps equal is read there, and everything else, and where links
//! lead, is told as it is in the data directory. A directory that cannot be listed is an error: `exclude` is the way round it.
//!
//! Links are followed, so that their content is in the backup, unless that would copy something twice or without end:
//! then the link itself is yielded, and reported as a
//! problem; so is one that leads nowhere, but for a tablespace's, which is an error.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::vec;

use crate::cluster::relation::{self, Fork};
use crate::cluster::rules::{self, Place, Verdict};
use crate::cluster::{Error, Result};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A regular file, or a link to one that is followed.
    File,
    /// A directory, or a link to one that is followed.
    Directory,
    /// A link that is kept as it is.
    Link,
}

/// A file of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile {
    /// The number of its first page, counted through all segments of the relation's fork.
    pub first_block: u32,
}

/// One entry of the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it is in the data directory: `/`-separated bytes, empty for the data directory itself.
    pub path: Vec<u8>,
    /// Where to open it.
    pub location: PathBuf,
    /// What it is.
    pub kind: SourceKind,
    /// Permission bits.
    pub mode: u32,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Length of a file, in bytes; 0 for others.
    pub bytes: u64,
    /// Last change of the content: nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
    /// Last change of content or attributes: nanoseconds since 1970-01-01 UTC.
    pub changed_ns: i64,
    /// The device it is on.
    pub device: u64,
    /// Its number on that device.
    pub inode: u64,
    /// What the link points to, for a link that is followed or kept.
    pub target: Option<Vec<u8>>,
    /// Set for the files of relations, all forks.
    pub relation: Option<RelationFile>,
}

/// What the walk must know of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkOptions {
    /// The major version of PostgreSQL.
    pub version: u32,
    /// `catalog_version_no`, which names the directories in tablespaces.
    pub catalog_version: u32,
    /// Pages in each segment file of a relation.
    pub segment_blocks: u32,
    /// Whether a server is running: the WAL is then archived by other means, and recovery resets unlogged relations.
    pub online: bool,
    /// Paths in the data directory to leave out: `a/b` leaves out that entry and all beneath it, `a/b/` only what is
    /// beneath it.
    pub exclude: Vec<Vec<u8>>,
    /// The data directory of a standby, from which the parts are taken that replay keeps equal (see `rules`). Links are
    /// told as they are in the data directory itself.
    pub standby: Option<PathBuf>,
}

/// Hears of what the walk passes over or keeps as it is: the place, and a clause about it.
pub type Problems<'a> = &'a mut (dyn FnMut(&Path, String) + Send);

/// Begins a walk over `pgdata`.
pub fn walk<'a>(pgdata: &Path, options: &WalkOptions, problems: Problems<'a>) -> Result<Walk<'a>> {
    let canonical = |path: &Path| fs::canonicalize(path).map_err(|e| Error::file("find", path, e));
    let mut followed = vec![canonical(pgdata)?];
    if let Some(standby) = &options.standby {
        followed.push(canonical(standby)?);
    }
    let metadata = fs::metadata(pgdata).map_err(|e| Error::file("stat", pgdata, e))?;
    let top = source(
        Vec::new(),
        pgdata.to_owned(),
        SourceKind::Directory,
        &metadata,
    );
    Ok(Walk {
        options: options.clone(),
        pgdata: pgdata.to_owned(),
        problems,
        followed,
        frames: Vec::new(),
        descend: None,
        top: Some(top),
    })
}

/// A walk over a data directory. After an error it goes on behind the entry concerned.
pub struct Walk<'a> {
    options: WalkOptions,
    pgdata: PathBuf,
    problems: Problems<'a>,
    /// The data directories and all directories that links led to, by their real paths.
    followed: Vec<PathBuf>,
    frames: Vec<Frame>,
    /// The directory that was yielded last, not yet listed.
    descend: Option<Pending>,
    top: Option<Source>,
}

/// Why a link is not followed.
enum Kept {
    Because(String),
    Failed(io::Error),
}

impl Kept {
    /// The reason in words. An error remains one if what it hides may exist, or belongs to a tablespace: a backup
    /// without it would not be one.
    fn reason(self, place: Place) -> io::Result<String> {
        match self {
            Kept::Because(text) => Ok(text),
            Kept::Failed(e) => {
                let is_loop = e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
                let is_absent = is_loop || is_absent(&e);
                if is_absent && place != Place::Tablespace {
                    Ok(format!("leads nowhere ({e})"))
                } else {
                    Err(e)
                }
            }
        }
    }
}

struct Pending {
    path: Vec<u8>,
    location: PathBuf,
    place: Place,
}

struct Frame {
    path: Vec<u8>,
    location: PathBuf,
    place: Place,
    names: vec::IntoIter<(OsString, fs::FileType)>,
    /// Relations of this directory that have an init fork: unlogged ones.
    unlogged: HashSet<u32>,
}

impl Iterator for Walk<'_> {
    type Item = Result<Source>;

    fn next(&mut self) -> Option<Result<Source>> {
        if let Some(top) = self.top.take() {
            self.descend = Some(Pending {
                path: Vec::new(),
                location: top.location.clone(),
                place: Place::Top,
            });
            return Some(Ok(top));
        }
        loop {
            if let Some(pending) = self.descend.take() {
                match open_frame(pending, &self.options) {
                    Ok(frame) => self.frames.extend(frame),
                    Err(e) => return Some(Err(e)),
                }
            }
            let frame = self.frames.last_mut()?;
            let Some((name, file_type)) = frame.names.next() else {
                self.frames.pop();
                continue;
            };
            match self.visit(&name, file_type) {
                Ok(None) => {}
                Ok(Some(source)) => return Some(Ok(source)),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

impl Walk<'_> {
    /// Looks at one name in the innermost directory.
    fn visit(&mut self, name: &OsString, file_type: fs::FileType) -> Result<Option<Source>> {
        let Some(frame) = self.frames.last() else {
            return Ok(None);
        };
        let path = join(&frame.path, name.as_bytes());
        let place = match rules::verdict(frame.place, name.as_bytes(), &self.options) {
            Verdict::Skip => return Ok(None),
            Verdict::Take(place) => place,
        };
        let relation = relation::parse(name.as_bytes()).filter(|_| frame.place.holds_relations());
        let reset = |number| self.options.online && frame.unlogged.contains(&number);
        if relation.is_some_and(|file| file.fork != Fork::Init && reset(file.number))
            || self.is_excluded(&path)
        {
            return Ok(None);
        }
        let at_top = frame.place == Place::Top;
        let mut location = frame.location.join(name);
        let mut file_type = file_type;
        let standby = self.standby_of(&path).filter(|_| at_top);
        if let Some(standby) = standby {
            location = standby.join(name);
            let metadata = fs::symlink_metadata(&location);
            let metadata = metadata.map_err(|e| Error::file("stat", &location, e))?;
            file_type = metadata.file_type();
        }
        let relink = at_top || place == Place::Tablespace;
        let found = if file_type.is_symlink() {
            self.follow(path, location, place)?
        } else {
            self.plain(path, location, file_type)?
        };
        let Some(mut found) = found else {
            return Ok(None);
        };
        if relink && self.standby_of(&found.path).is_some() {
            self.relink(&mut found)?;
        }
        match found.kind {
            SourceKind::Directory => {
                let (path, location) = (found.path.clone(), found.location.clone());
                self.descend = Some(Pending {
                    path,
                    location,
                    place,
                });
            }
            SourceKind::File => {
                let first_block =
                    relation.and_then(|file| file.segment.checked_mul(self.options.segment_blocks));
                found.relation = first_block.map(|first_block| RelationFile { first_block });
            }
            SourceKind::Link => {}
        }
        Ok(Some(found))
    }

    /// The standby, if this path is to be read there.
    fn standby_of(&self, path: &[u8]) -> Option<&Path> {
        let top = path.split(|byte| *byte == b'/').next()?;
        let standby = self.options.standby.as_deref();
        standby.filter(|_| rules::is_replicated(top))
    }

    /// Tells a directory of the standby as the link, or the directory, that it is in the data directory itself; one that
    /// is not there any more stays as it is.
    fn relink(&self, found: &mut Source) -> Result<()> {
        let location = self.pgdata.join(OsStr::from_bytes(&found.path));
        match fs::read_link(&location) {
            Ok(target) => found.target = Some(target.into_os_string().into_vec()),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                if found.kind != SourceKind::Link {
                    found.target = None;
                }
            }
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(Error::file("read link", &location, e)),
        }
        Ok(())
    }

    fn plain(
        &mut self,
        path: Vec<u8>,
        location: PathBuf,
        file_type: fs::FileType,
    ) -> Result<Option<Source>> {
        let kind = if file_type.is_dir() {
            SourceKind::Directory
        } else if file_type.is_file() {
            SourceKind::File
        } else {
            (self.problems)(
                &location,
                "is a socket, pipe or device and is left out".to_owned(),
            );
            return Ok(None);
        };
        let metadata = present(fs::symlink_metadata(&location), "stat", &location)?;
        Ok(metadata.map(|metadata| source(path, location, kind, &metadata)))
    }

    /// Follows a link, or keeps it as it is.
    fn follow(&mut self, path: Vec<u8>, location: PathBuf, place: Place) -> Result<Option<Source>> {
        let Some(target) = present(fs::read_link(&location), "read link", &location)? else {
            return Ok(None);
        };
        let (kind, metadata) = match self.resolve(&location, &target, place) {
            Ok(metadata) if metadata.is_dir() => (SourceKind::Directory, metadata),
            Ok(metadata) => (SourceKind::File, metadata),
            Err(kept) => {
                let link = present(fs::symlink_metadata(&location), "stat", &location)?;
                let Some(link) = link else { return Ok(None) };
                let reason = kept
                    .reason(place)
                    .map_err(|e| Error::file("follow", &location, e))?;
                let text = format!(
                    "{reason}; the link to {} is kept, not what it points to",
                    target.display()
                );
                (self.problems)(&location, text);
                (SourceKind::Link, link)
            }
        };
        let mut found = source(path, location, kind, &metadata);
        found.target = Some(target.into_os_string().into_vec());
        Ok(Some(found))
    }

    /// What a link leads to, or why it is not followed.
    fn resolve(
        &mut self,
        location: &Path,
        target: &Path,
        place: Place,
    ) -> std::result::Result<Metadata, Kept> {
        let parent = location.parent().unwrap_or(Path::new("/"));
        let may_be_reached_by_links = matches!(place, Place::Tablespace | Place::Wal);
        let next = fs::symlink_metadata(parent.join(target)).map_err(Kept::Failed)?;
        if next.is_symlink() && !may_be_reached_by_links {
            return Err(Kept::Because("leads to another link".to_owned()));
        }
        let metadata = fs::metadata(location).map_err(Kept::Failed)?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(Kept::Because(
                "leads to a socket, pipe or device".to_owned(),
            ));
        }
        let mut real = fs::canonicalize(location).map_err(Kept::Failed)?;
        if place == Place::Tablespace {
            real.push(rules::tablespace_directory(&self.options));
        }
        let overlaps = |other: &&PathBuf| {
            real.starts_with(other) || (metadata.is_dir() && other.starts_with(&real))
        };
        if let Some(other) = self.followed.iter().find(overlaps) {
            let text = format!(
                "overlaps with {}, which is in the backup already",
                other.display()
            );
            return Err(Kept::Because(text));
        }
        if metadata.is_dir() {
            self.followed.push(real);
        }
        Ok(metadata)
    }

    fn is_excluded(&self, path: &[u8]) -> bool {
        self.options
            .exclude
            .iter()
            .any(|pattern| match pattern.strip_suffix(b"/") {
                Some(_) => path.starts_with(pattern),
                None => path
                    .strip_prefix(pattern.as_slice())
                    .is_some_and(|rest| matches!(rest, [] | [b'/', ..])),
            })
    }
}

/// Lists a directory; `None` if it has vanished or its content is not wanted.
fn open_frame(pending: Pending, options: &WalkOptions) -> Result<Option<Frame>> {
    let Pending {
        path,
        location,
        place,
    } = pending;
    if place == Place::Empty {
        return Ok(None);
    }
    let Some(entries) = present(fs::read_dir(&location), "list", &location)? else {
        // Only what vanishes while it is walked may be missing.
        return if path.is_empty() {
            Err(Error::file("list", &location, io::ErrorKind::NotFound))
        } else {
            Ok(None)
        };
    };
    let mut names = Vec::new();
    let mut unlogged = HashSet::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::file("list", &location, e))?;
        let Some(file_type) = present(entry.file_type(), "stat", &location)? else {
            continue;
        };
        let name = entry.file_name();
        if options.online && place == Place::Database {
            let relation =
                relation::parse(name.as_bytes()).filter(|relation| relation.fork == Fork::Init);
            unlogged.extend(relation.map(|relation| relation.number));
        }
        names.push((name, file_type));
    }
    names.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
    Ok(Some(Frame {
        path,
        location,
        place,
        names: names.into_iter(),
        unlogged,
    }))
}

/// `None` for what is not there, or is no directory any more.
fn present<T>(result: io::Result<T>, doing: &'static str, location: &Path) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(Error::file(doing, location, e)),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return name.to_vec();
    }
    [parent, b"/", name].concat()
}

fn source(path: Vec<u8>, location: PathBuf, kind: SourceKind, metadata: &Metadata) -> Source {
    let nanoseconds =
        |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    Source {
        path,
        location,
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        bytes: if kind == SourceKind::File {
            metadata.len()
        } else {
            0
        },
        modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        device: metadata.dev(),
        inode: metadata.ino(),
        target: None,
        relation: None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const LEFT_OUT: &[&str] = &[
        "backup_label",
        "backup_label.old",
        "backup_manifest",
        "backup_manifest.tmp",
        "current_logfiles.tmp",
        "pgcairn.restore",
        "postgresql.auto.conf.tmp",
        "postmaster.opts",
        "postmaster.pid",
        "recovery.signal",
        "standby.signal",
        "tablespace_map",
        "tablespace_map.old",
        "pgsql_tmp1.0",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "base/5/pg_internal.init",
        "base/5/pg_internal.init.123",
        "base/5/t3_16384",
        "base/5/t3_16384_fsm.1",
        "global/pg_control",
        "global/pg_internal.init",
        "pg_wal/000000010000000000000001",
        "pg_wal/archive_status/000000010000000000000001.ready",
        "pg_wal/other/",
        "pg_dynshmem/1",
        "pg_notify/0000",
        "pg_replslot/slot/state",
        "pg_serial/1",
        "pg_snapshots/1",
        "pg_stat_tmp/db_0.stat",
        "pg_subtrans/0000",
    ];
    const KEPT: &[&str] = &[
        "PG_VERSION",
        "backup_label_notes",
        "base/1/1255",
        "base/5/16384_init_x",
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map",
        "global/1260",
        "global/pg_filenode.map",
        "log/pg_control",
        "pg_commit_ts/",
        "pg_logical/snapshots/1",
        "pg_multixact/members/0000",
        "pg_stat/pgstat.stat",
        "pg_twophase/00000001",
        "pg_xact/0000",
    ];

    const VERSION_DIRECTORY: &str = "PG_15_202209061";

    fn options() -> WalkOptions {
        WalkOptions {
            version: 15,
            catalog_version: 202_209_061,
            segment_blocks: 131_072,
            online: true,
            exclude: Vec::new(),
            standby: None,
        }
    }

    /// A directory with these files, and directories where a path ends in `/`.
    fn tree(root: &Path, paths: &[&str]) {
        for path in paths {
            let location = root.join(path);
            if path.ends_with('/') {
                fs::create_dir_all(&location).unwrap();
            } else {
                fs::create_dir_all(location.parent().unwrap()).unwrap();
                fs::File::create(&location).unwrap();
            }
        }
    }

    /// Everything that a walk yields, and the problems that it reports.
    fn walked(pgdata: &Path, options: &WalkOptions) -> (Vec<Source>, Vec<String>) {
        let mut problems = Vec::new();
        let mut report =
            |path: &Path, text: String| problems.push(format!("{}: {text}", path.display()));
        let sources: Result<Vec<Source>> = walk(pgdata, options, &mut report).unwrap().collect();
        (sources.unwrap(), problems)
    }

    /// What is in the backup, apart from the data directory itself, and that there were no problems.
    fn taken(pgdata: &Path, options: &WalkOptions) -> Vec<String> {
        let (sources, problems) = walked(pgdata, options);
        assert_eq!(problems, [""; 0]);
        assert_eq!(sources[0].path, b"");
        paths(&sources[1..])
    }

    fn paths(sources: &[Source]) -> Vec<String> {
        sources
            .iter()
            .map(|source| String::from_utf8_lossy(&source.path).into_owned())
            .collect()
    }

    #[test]
    fn entries_come_in_component_wise_order() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &["a/b/c", "a-b", "a/b.c", "a.b/x", "ab", "B", "a/\u{e4}"],
        );
        let expected = [
            "B", "a", "a/b", "a/b/c", "a/b.c", "a/\u{e4}", "a-b", "a.b", "a.b/x", "ab",
        ];
        assert_eq!(taken(dir.path(), &options()), expected);
    }

    #[test]
    fn what_does_not_belong_in_a_backup_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), LEFT_OUT);
        tree(dir.path(), KEPT);
        let files = |all: Vec<Source>| {
            let files: Vec<Source> = all
                .into_iter()
                .filter(|source| source.kind == SourceKind::File)
                .collect();
            paths(&files)
        };
        let (sources, _) = walked(dir.path(), &options());
        let directories = paths(&sources);
        let expected: Vec<&str> = KEPT
            .iter()
            .copied()
            .filter(|path| !path.ends_with('/'))
            .collect();
        assert_eq!(files(sources), expected);
        for emptied in [
            "pg_dynshmem",
            "pg_notify",
            "pg_replslot",
            "pg_stat_tmp",
            "pg_wal",
            "pg_wal/archive_status",
        ] {
            assert!(directories.iter().any(|path| path == emptied), "{emptied}");
        }
        assert!(
            !directories
                .iter()
                .any(|path| path.contains("pgsql_tmp") || path == "pg_wal/other")
        );
    }

    #[test]
    fn what_replay_keeps_equal_is_read_at_the_standby_and_links_are_told_as_the_primary_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let (primary, standby) = (dir.path().join("p"), dir.path().join("s"));
        let spaces = [dir.path().join("p_space"), dir.path().join("s_space")];
        let own = [
            "postgresql.conf",
            "pg_twophase/1",
            "base/5/100",
            "global/1",
            "pg_xact/0000",
            "pg_multixact/x",
        ];
        tree(&primary, &own);
        tree(
            &standby,
            &["base/5/100", "base/5/200", "global/1", "standby.conf"],
        );
        tree(
            &standby,
            &["pg_xact/0000", "pg_multixact/x", "pg_twophase/2"],
        );
        for (data, space) in [&primary, &standby].into_iter().zip(&spaces) {
            tree(space, &[&format!("{VERSION_DIRECTORY}/5/300")]);
            tree(data, &["pg_tblspc/7/"]);
            fs::remove_dir(data.join("pg_tblspc/7")).unwrap();
            symlink(space, data.join("pg_tblspc/7")).unwrap();
        }
        let options = WalkOptions {
            standby: Some(standby.clone()),
            ..options()
        };
        let (sources, problems) = walked(&primary, &options);
        assert_eq!(problems, [""; 0]);
        let files: Vec<&Source> = sources
            .iter()
            .filter(|source| source.kind == SourceKind::File)
            .collect();
        let from = |data: &Path| -> Vec<String> {
            let files = files.iter().filter(|file| file.location.starts_with(data));
            files
                .map(|file| String::from_utf8_lossy(&file.path).into_owned())
                .collect()
        };
        assert_eq!(from(&primary), ["pg_twophase/1", "postgresql.conf"]);
        let expected = [
            "base/5/100",
            "base/5/200",
            "global/1",
            "pg_multixact/x",
            &format!("pg_tblspc/7/{VERSION_DIRECTORY}/5/300"),
            "pg_xact/0000",
        ];
        assert_eq!(from(&standby), expected);
        let link = sources.iter().find(|source| source.path == b"pg_tblspc/7");
        let target = link.unwrap().target.as_deref().unwrap();
        assert_eq!(target, spaces[0].as_os_str().as_bytes());
        fs::remove_dir_all(standby.join("pg_xact")).unwrap();
        let mut report = |_: &Path, _| ();
        let failed = walk(&primary, &options, &mut report)
            .unwrap()
            .find_map(Result::err);
        assert!(failed.is_some(), "a standby without pg_xact is none");
    }

    #[test]
    fn summaries_are_emptied_where_the_server_makes_them() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &["pg_wal/summaries/1.summary", "pg_wal/archive_status/1.done"],
        );
        let newer = WalkOptions {
            version: 17,
            ..options()
        };
        assert_eq!(
            taken(dir.path(), &newer),
            ["pg_wal", "pg_wal/archive_status", "pg_wal/summaries"]
        );
        assert_eq!(
            taken(dir.path(), &options()),
            ["pg_wal", "pg_wal/archive_status"]
        );
    }

    #[test]
    fn a_stopped_cluster_is_taken_with_its_wal_and_its_unlogged_relations() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            "base/5/16384",
            "base/5/16384_init",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.ready",
        ];
        tree(dir.path(), &files);
        let all = taken(
            dir.path(),
            &WalkOptions {
                online: false,
                ..options()
            },
        );
        for file in files {
            assert!(all.iter().any(|path| path == file), "{file}");
        }
    }

    #[test]
    fn unlogged_relations_are_reduced_to_their_init_fork() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &[
                "base/5/16384",
                "base/5/16384.1",
                "base/5/16384_fsm",
                "base/5/16384_init",
                "base/5/16384_vm",
                "base/5/163840",
                "base/6/16384",
            ],
        );
        let expected = [
            "base",
            "base/5",
            "base/5/163840",
            "base/5/16384_init",
            "base/6",
            "base/6/16384",
        ];
        assert_eq!(taken(dir.path(), &options()), expected);
    }

    #[test]
    fn relation_files_know_their_first_block() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        tree(
            outside.path(),
            &[&format!("{VERSION_DIRECTORY}/5/16390_fsm.1")],
        );
        tree(
            dir.path(),
            &[
                "16384",
                "base/5/16384",
                "base/5/16384.2",
                "base/5/16384.99999",
                "base/5/PG_VERSION",
                "base/5/sub/16384",
                "base/x/16384",
                "global/1260",
                "global/pg_filenode.map",
                "pg_tblspc/",
                "pg_xact/1111",
            ],
        );
        symlink(outside.path(), dir.path().join("pg_tblspc/16400")).unwrap();
        let (sources, _) = walked(dir.path(), &options());
        let relations: Vec<(String, u32)> = sources
            .iter()
            .filter_map(|source| {
                let path = String::from_utf8_lossy(&source.path).into_owned();
                source.relation.map(|relation| (path, relation.first_block))
            })
            .collect();
        let expected = [
            ("base/5/16384".to_owned(), 0),
            ("base/5/16384.2".to_owned(), 262_144),
            ("global/1260".to_owned(), 0),
            (
                format!("pg_tblspc/16400/{VERSION_DIRECTORY}/5/16390_fsm.1"),
                131_072,
            ),
        ];
        assert_eq!(relations, expected);
    }

    #[test]
    fn tablespaces_are_followed_to_their_own_directory_only() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let (place, way) = (outside.path().join("place"), outside.path().join("way"));
        tree(
            &place,
            &[
                &format!("{VERSION_DIRECTORY}/5/16390"),
                &format!("{VERSION_DIRECTORY}/pgsql_tmp/pgsql_tmp1.0"),
                "PG_14_202107181/5/16390",
                "stray",
            ],
        );
        // A location that is itself reached through a link is common, and followed.
        symlink(&place, &way).unwrap();
        tree(
            dir.path(),
            &[
                "pg_tblspc/",
                &format!("pg_tblspc/16401/{VERSION_DIRECTORY}/5/16391"),
            ],
        );
        symlink(&way, dir.path().join("pg_tblspc/16400")).unwrap();
        let expected = [
            "pg_tblspc".to_owned(),
            "pg_tblspc/16400".to_owned(),
            format!("pg_tblspc/16400/{VERSION_DIRECTORY}"),
            format!("pg_tblspc/16400/{VERSION_DIRECTORY}/5"),
            format!("pg_tblspc/16400/{VERSION_DIRECTORY}/5/16390"),
            "pg_tblspc/16401".to_owned(),
            format!("pg_tblspc/16401/{VERSION_DIRECTORY}"),
            format!("pg_tblspc/16401/{VERSION_DIRECTORY}/5"),
            format!("pg_tblspc/16401/{VERSION_DIRECTORY}/5/16391"),
        ];
        assert_eq!(taken(dir.path(), &options()), expected);
        let (sources, _) = walked(dir.path(), &options());
        let link = sources
            .iter()
            .find(|source| source.path == b"pg_tblspc/16400")
            .unwrap();
        assert_eq!(link.kind, SourceKind::Directory);
        assert_eq!(link.target.as_deref(), Some(way.as_os_str().as_bytes()));
        assert_eq!(
            sources
                .iter()
                .filter(|source| source.target.is_some())
                .count(),
            1
        );
    }

    #[test]
    fn links_are_followed_with_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        tree(
            outside.path(),
            &[
                "conf/pg_hba.conf",
                "conf/d/a.conf",
                "wal/000000010000000000000001",
            ],
        );
        tree(outside.path(), &["wal/archive_status/"]);
        symlink(outside.path().join("conf"), dir.path().join("conf")).unwrap();
        symlink(
            outside.path().join("conf/pg_hba.conf"),
            dir.path().join("a_hba.conf"),
        )
        .unwrap();
        symlink(outside.path().join("wal"), dir.path().join("pg_wal")).unwrap();
        let (sources, problems) = walked(dir.path(), &options());
        assert_eq!(problems, [""; 0]);
        let expected = [
            "",
            "a_hba.conf",
            "conf",
            "conf/d",
            "conf/d/a.conf",
            "conf/pg_hba.conf",
            "pg_wal",
            "pg_wal/archive_status",
        ];
        assert_eq!(paths(&sources), expected);
        let found: Vec<(SourceKind, bool)> = sources
            .iter()
            .map(|source| (source.kind, source.target.is_some()))
            .collect();
        assert_eq!(found[1], (SourceKind::File, true));
        assert_eq!(found[2], (SourceKind::Directory, true));
        assert_eq!(found[3], (SourceKind::Directory, false));
        assert_eq!(found[6], (SourceKind::Directory, true));
    }

    #[test]
    fn links_that_cannot_be_followed_are_kept_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        tree(outside.path(), &["d/file", "e/x"]);
        tree(dir.path(), &["log/a", "pg_tblspc/", "inside_space/"]);
        let links: [(&str, PathBuf); 8] = [
            ("dangling", outside.path().join("absent")),
            ("to_a_link", outside.path().join("link")),
            ("into_pgdata", PathBuf::from("log")),
            ("above_pgdata", PathBuf::from("/")),
            ("loop", PathBuf::from("loop")),
            ("t_again", outside.path().join("s")),
            ("device", PathBuf::from("/dev/null")),
            ("pg_tblspc/16400", dir.path().join("inside_space")),
        ];
        symlink(outside.path().join("d"), outside.path().join("link")).unwrap();
        tree(outside.path(), &["s/file"]);
        // Followed first; then it must not be followed again, nor round and round from within.
        symlink(outside.path().join("s"), dir.path().join("s")).unwrap();
        symlink(outside.path().join("s"), outside.path().join("s/round")).unwrap();
        for (name, target) in &links {
            symlink(target, dir.path().join(name)).unwrap();
        }
        let (sources, problems) = walked(dir.path(), &options());
        let kept: Vec<&Source> = sources
            .iter()
            .filter(|source| source.kind == SourceKind::Link)
            .collect();
        let mut expected: Vec<&str> = links
            .iter()
            .map(|(name, _)| *name)
            .chain(["s/round"])
            .collect();
        expected.sort_unstable();
        assert_eq!(
            kept.iter()
                .map(|source| String::from_utf8_lossy(&source.path))
                .collect::<Vec<_>>(),
            expected
        );
        assert_eq!(problems.len(), kept.len(), "{problems:?}");
        assert!(
            kept.iter()
                .all(|source| source.target.is_some() && source.bytes == 0)
        );
        assert!(paths(&sources).iter().any(|path| path == "s/file"));
        assert!(problems[0].contains("overlaps with"), "{}", problems[0]);
    }

    #[test]
    fn a_tablespace_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), &["pg_tblspc/"]);
        symlink(
            dir.path().join("absent"),
            dir.path().join("pg_tblspc/16400"),
        )
        .unwrap();
        let mut report = |_: &Path, text: String| panic!("{text}");
        let options = options();
        let failed = walk(dir.path(), &options, &mut report)
            .unwrap()
            .find_map(Result::err)
            .unwrap();
        let expected = format!("follow {}/pg_tblspc/16400", dir.path().display());
        assert_eq!(failed.to_string(), expected);
    }

    #[test]
    fn pipes_and_sockets_are_left_out_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), &["PG_VERSION"]);
        let _socket =
            std::os::unix::net::UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
        let (sources, problems) = walked(dir.path(), &options());
        assert_eq!(paths(&sources), ["", "PG_VERSION"]);
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn excluded_paths_are_left_out_with_what_is_beneath_them() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &[
                "log/a", "log/b/c", "logs", "junk/a", "junk/b/c", "x/y", "x/yy",
            ],
        );
        let exclude = vec![b"log".to_vec(), b"junk/".to_vec(), b"x/y".to_vec()];
        assert_eq!(
            taken(
                dir.path(),
                &WalkOptions {
                    exclude,
                    ..options()
                }
            ),
            ["junk", "logs", "x", "x/yy"]
        );
    }

    #[test]
    fn names_are_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let name = OsStr::from_bytes(b"log\xff\n");
        fs::File::create(dir.path().join(name)).unwrap();
        let (sources, _) = walked(dir.path(), &options());
        assert_eq!(sources[1].path, b"log\xff\n");
        assert_eq!(sources[1].location, dir.path().join(name));
    }

    #[test]
    fn what_vanishes_under_the_walk_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), &["a/x", "b", "c/x", "d"]);
        let mut report = |_: &Path, text: String| panic!("{text}");
        let options = options();
        let mut walk = walk(dir.path(), &options, &mut report).unwrap();
        let mut next = || {
            walk.next()
                .map(|source| String::from_utf8(source.unwrap().path).unwrap())
        };
        assert_eq!(next().as_deref(), Some(""));
        assert_eq!(next().as_deref(), Some("a"));
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        fs::remove_file(dir.path().join("b")).unwrap();
        assert_eq!(next().as_deref(), Some("c"));
        assert_eq!(next().as_deref(), Some("c/x"));
        assert_eq!(next().as_deref(), Some("d"));
        assert_eq!(next(), None);
    }

    #[test]
    fn modes_sizes_and_times_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("PG_VERSION");
        let file = fs::File::create(&path).unwrap();
        file.set_len(3).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o640))
            .unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
        file.set_modified(time).unwrap();
        let (sources, _) = walked(dir.path(), &options());
        let found = &sources[1];
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(
            (found.mode, found.bytes, found.modified_ns),
            (0o640, 3, 1_700_000_000_123_456_789)
        );
        assert_eq!(
            (found.device, found.inode),
            (metadata.dev(), metadata.ino())
        );
        assert!(found.changed_ns > found.modified_ns);
        assert_eq!(sources[0].bytes, 0);
    }

    #[test]
    fn a_data_directory_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = |_: &Path, _| ();
        let absent = dir.path().join("absent");
        let result = walk(&absent, &options(), &mut report).map(|_| ());
        assert_eq!(
            result.unwrap_err().to_string(),
            format!("find {}", absent.display())
        );
    }
}
