//! A walk over a data directory and its tablespaces, and what a backup leaves out.
//!
//! Promises: rising component-wise byte order (`/` below every other byte), the data directory first; memory for the
//! names of one directory per depth; what vanishes under the walk is passed over; names are bytes. `global/pg_control`
//! is never yielded (it is copied last, by other means), nor are a `backup_label` or `tablespace_map`. What is left out
//! and why is in `rules`. A directory that cannot be listed is an error: `exclude` is the way round it.
//!
//! Links are followed, so that their content is in the backup, unless that would copy something twice or without end:
//! then the link itself is yielded, and reported as a problem.

use std::collections::HashSet;
use std::ffi::OsString;
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
}

/// Hears of what the walk passes over or keeps as it is: the place, and a clause about it.
pub type Problems<'a> = &'a mut (dyn FnMut(&Path, String) + Send);

/// Begins a walk over `pgdata`.
pub fn walk<'a>(pgdata: &Path, options: &WalkOptions, problems: Problems<'a>) -> Result<Walk<'a>> {
    let canonical = fs::canonicalize(pgdata).map_err(|e| Error::file("find", pgdata, e))?;
    let metadata = fs::metadata(pgdata).map_err(|e| Error::file("stat", pgdata, e))?;
    let top = source(
        Vec::new(),
        pgdata.to_owned(),
        SourceKind::Directory,
        &metadata,
    );
    Ok(Walk {
        options: options.clone(),
        problems,
        followed: vec![canonical],
        frames: Vec::new(),
        descend: None,
        top: Some(top),
    })
}

/// A walk over a data directory. After an error it goes on behind the entry concerned.
pub struct Walk<'a> {
    options: WalkOptions,
    problems: Problems<'a>,
    /// The data directory and all directories that links led to, by their real paths.
    followed: Vec<PathBuf>,
    frames: Vec<Frame>,
    /// The directory that was yielded last, not yet listed.
    descend: Option<Pending>,
    top: Option<Source>,
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
        let (path, location) = (
            join(&frame.path, name.as_bytes()),
            frame.location.join(name),
        );
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
        let found = if file_type.is_symlink() {
            self.follow(path, location, place)?
        } else {
            self.plain(path, location, file_type)?
        };
        let Some(mut found) = found else {
            return Ok(None);
        };
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
            Err(reason) => {
                let text = format!(
                    "{reason}; the link to {} is kept, not what it points to",
                    target.display()
                );
                (self.problems)(&location, text);
                let metadata = present(fs::symlink_metadata(&location), "stat", &location)?;
                let Some(metadata) = metadata else {
                    return Ok(None);
                };
                (SourceKind::Link, metadata)
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
    ) -> std::result::Result<Metadata, String> {
        let parent = location.parent().unwrap_or(Path::new("/"));
        let lasting = matches!(place, Place::Tablespace | Place::Wal);
        let next = fs::symlink_metadata(parent.join(target))
            .map_err(|e| format!("cannot be followed ({e})"))?;
        if next.is_symlink() && !lasting {
            return Err("leads to another link".to_owned());
        }
        let metadata = fs::metadata(location).map_err(|e| format!("cannot be followed ({e})"))?;
        let mut real =
            fs::canonicalize(location).map_err(|e| format!("cannot be followed ({e})"))?;
        if place == Place::Tablespace {
            real.push(rules::tablespace_directory(&self.options));
        }
        if !metadata.is_dir() && !metadata.is_file() {
            return Err("leads to a socket, pipe or device".to_owned());
        }
        let overlaps = |other: &&PathBuf| {
            real.starts_with(other) || (metadata.is_dir() && other.starts_with(&real))
        };
        if let Some(other) = self.followed.iter().find(overlaps) {
            return Err(format!(
                "overlaps with {}, which is in the backup already",
                other.display()
            ));
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
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(Error::file(doing, location, e)),
    }
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
