//! Objects as files beneath a directory; a key is a path.
//!
//! **Promises**: an object is written and synced under `.tmp/`, then published by a rename that replaces nothing, and
//! its directories are synced before `put` returns; so a crash leaves whole objects, or a file in `.tmp/` that no
//! listing shows. A root that is gone (an unmounted disk) is [`ErrorKind::Unreachable`]: never "no such object", never
//! an empty listing, and never written to. **Refuses**: keys below `.tmp/`; to be an object and a directory under one
//! name; to make the root, except in [`LocalStorage::create`].

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf, absolute};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, CWD, RenameFlags, fadvise, renameat_with};
use rustix::io::Errno;

use crate::storage::walk::Walk;
use crate::storage::{Error, ErrorKind, Key, Object, Result, Storage};

/// Where objects are written before they are published. On the root's file system, or they could not be renamed.
const TEMPORARY: &str = ".tmp";
/// The owner writes, the group reads: a standby's user may share the repository through a group.
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// A storage in a directory, which may be shared by any number of processes and, on a network file system, hosts.
#[derive(Debug)]
pub struct LocalStorage {
    root: PathBuf,
    /// The root as it was opened. Held, it keeps the file system mounted; compared with what the path leads to now, it
    /// tells an object that is absent from a disk that is.
    opened: Metadata,
    _held: File,
    /// Directories whose own entries, up to the root, this process has synced.
    durable: Mutex<HashSet<PathBuf>>,
}

impl LocalStorage {
    /// Makes the root and what it needs, if they are not there, and opens it.
    pub fn create(root: &Path) -> Result<Self> {
        let make = |root: PathBuf| -> io::Result<()> {
            let temporary = root.join(TEMPORARY);
            let made = make_directories(temporary.ancestors())?;
            made.iter()
                .filter_map(|directory| directory.parent())
                .try_for_each(sync_directory)
        };
        absolute(root)
            .and_then(make)
            .map_err(|source| fail("create", "the root", root, kind_of(&source), source))?;
        Self::open(root)
    }

    /// Opens a root that is there; [`ErrorKind::Unreachable`] if it is not.
    pub fn open(root: &Path) -> Result<Self> {
        let open = || -> io::Result<Self> {
            let root = absolute(root)?;
            let held = File::open(&root)?;
            let opened = held.metadata()?;
            if !opened.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Ok(LocalStorage {
                root,
                opened,
                _held: held,
                durable: Mutex::default(),
            })
        };
        open().map_err(|source| {
            let kind = if is_absence(&source) {
                ErrorKind::Unreachable
            } else {
                kind_of(&source)
            };
            fail("open", "the root", root, kind, source)
        })
    }

    /// The error of a call, told apart from the root's being gone.
    fn fail(&self, what: &'static str, key: &str, source: io::Error) -> Error {
        let kind = kind_of(&source);
        if kind == ErrorKind::NotFound
            && let Err(gone) = self.check_root(what, key)
        {
            return gone;
        }
        fail(what, key, &self.root, kind, source)
    }

    fn check_root(&self, what: &'static str, key: &str) -> Result<()> {
        let gone = |source| fail(what, key, &self.root, ErrorKind::Unreachable, source);
        let now = fs::metadata(&self.root).map_err(gone)?;
        if (now.dev(), now.ino()) == (self.opened.dev(), self.opened.ino()) {
            return Ok(());
        }
        Err(gone(io::Error::other(
            "another directory stands where the root was opened: is its disk mounted?",
        )))
    }

    fn path(&self, what: &'static str, key: &Key) -> Result<PathBuf> {
        if is_temporary(key.as_str()) {
            let source =
                io::Error::other("this directory is kept for files that are not yet published");
            return Err(fail(
                what,
                key.as_str(),
                &self.root,
                ErrorKind::Denied,
                source,
            ));
        }
        Ok(self.root.join(key.as_str()))
    }

    fn open_object(&self, what: &'static str, key: &Key) -> Result<(File, Metadata)> {
        let open = |path: &Path| -> io::Result<(File, Metadata)> {
            let file = File::open(path)?;
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok((file, metadata))
        };
        open(&self.path(what, key)?).map_err(|source| self.fail(what, key.as_str(), source))
    }

    /// Writes and syncs a file that is not yet an object. Nothing of it is left behind by an error.
    fn write_temporary(&self, key: &Key, body: &[u8]) -> Result<PathBuf> {
        let other = |source| fail("put", key.as_str(), &self.root, ErrorKind::Other, source);
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|source| other(io::Error::other(source)))?;
        let path = self
            .root
            .join(TEMPORARY)
            .join(format!("{:032x}", u128::from_le_bytes(random)));
        let mut file = match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)
        {
            Ok(file) => file,
            Err(source) => return Err(self.no_temporary(key, source)),
        };
        match file.write_all(body).and_then(|()| file.sync_all()) {
            Ok(()) => Ok(path),
            Err(source) => {
                fs::remove_file(&path).ok();
                Err(fail(
                    "put",
                    key.as_str(),
                    &self.root,
                    kind_of(&source),
                    source,
                ))
            }
        }
    }

    /// Without `.tmp/` this is not what `create` made, so it is not written to: most often the disk is not mounted.
    fn no_temporary(&self, key: &Key, source: io::Error) -> Error {
        let (kind, source) = match kind_of(&source) {
            ErrorKind::NotFound => {
                let text = format!("{TEMPORARY} is missing: is the disk mounted?");
                (ErrorKind::Unreachable, io::Error::new(source.kind(), text))
            }
            ErrorKind::AlreadyExists => (ErrorKind::Other, source),
            kind => (kind, source),
        };
        fail("put", key.as_str(), &self.root, kind, source)
    }

    /// The directory itself and those above it, without the root.
    fn directories_to<'a>(&self, directory: &'a Path) -> impl Iterator<Item = &'a Path> {
        directory
            .ancestors()
            .take_while(|above| *above != self.root)
    }

    /// Gives a file its key, making the directories on the way. True: an object has the key already.
    fn publish(&self, temporary: &Path, target: &Path, directory: &Path) -> io::Result<bool> {
        let published = match rename_new(temporary, target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directories(self.directories_to(directory))?;
                rename_new(temporary, target)
            }
            published => published,
        };
        match published {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !target.is_dir() => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Syncs the directory that holds an object, and once per process those above it: another process may have made
    /// them just now and not have synced them yet. After the publishing, because one journal commit then serves all.
    fn sync_directories(&self, directory: &Path) -> io::Result<()> {
        sync_directory(directory)?;
        let durable = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if directory == self.root || durable().contains(directory) {
            return Ok(());
        }
        self.directories_to(directory)
            .skip(1)
            .try_for_each(sync_directory)?;
        sync_directory(&self.root)?;
        durable().insert(directory.to_owned());
        Ok(())
    }
}

impl Storage for LocalStorage {
    fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
        let fail = |kind, source| fail("put", key.as_str(), &self.root, kind, source);
        let target = self.path("put", key)?;
        let directory = target.parent().unwrap_or(&self.root);
        self.check_root("put", key.as_str())?;
        let temporary = self.write_temporary(key, body)?;
        let published = self.publish(&temporary, &target, directory);
        if !matches!(published, Ok(false)) {
            fs::remove_file(&temporary).ok();
        }
        let exists = published.map_err(|source| match kind_of(&source) {
            // A directory has this name, or there is none to hold it: neither is about an object.
            ErrorKind::AlreadyExists | ErrorKind::NotFound => fail(ErrorKind::Other, source),
            kind => fail(kind, source),
        })?;
        // Also if it exists: who is told so may rely on it, and its writer may not have synced it yet.
        self.sync_directories(directory)
            .map_err(|source| fail(ErrorKind::Other, source))?;
        if exists {
            Err(fail(ErrorKind::AlreadyExists, Errno::EXIST.into()))
        } else {
            Ok(())
        }
    }

    fn get(&self, key: &Key) -> Result<Vec<u8>> {
        let (mut file, metadata) = self.open_object("get", key)?;
        let mut body = Vec::new();
        usize::try_from(metadata.len())
            .map_err(io::Error::other)
            .and_then(|bytes| Ok(body.try_reserve_exact(bytes)?))
            .and_then(|()| file.read_to_end(&mut body))
            .map_err(|source| self.fail("get", key.as_str(), source))?;
        Ok(body)
    }

    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()> {
        const WHAT: &str = "get a range of";
        let (file, metadata) = self.open_object(WHAT, key)?;
        let short = |source| fail(WHAT, key.as_str(), &self.root, ErrorKind::Truncated, source);
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > metadata.len()) {
            let text = format!(
                "{} bytes from {offset} on were asked for, it has {}",
                buffer.len(),
                metadata.len()
            );
            return Err(short(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
        }
        file.read_exact_at(buffer, offset)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => short(source),
                _ => self.fail(WHAT, key.as_str(), source),
            })
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Vec<Object>> {
        let walk = Walk {
            root: &self.root,
            prefix,
            after: start_after.unwrap_or(""),
        };
        let objects = walk
            .objects(limit)
            .map_err(|source| self.fail("list", prefix, source))?;
        self.check_root("list", prefix)?;
        Ok(objects)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let path = self.path("delete", key)?;
        let fail = |kind, source| fail("delete", key.as_str(), &self.root, kind, source);
        match fs::remove_file(&path) {
            Err(source) if is_absence(&source) => self.check_root("delete", key.as_str())?,
            removed => removed.map_err(|source| fail(kind_of(&source), source))?,
        }
        // Also if it was absent: who deleted it may have been stopped before the sync.
        match sync_directory(path.parent().unwrap_or(&self.root)) {
            Err(source) if !is_absence(&source) => Err(fail(ErrorKind::Other, source)),
            _ => Ok(()),
        }
    }

    fn drop_cached(&self, key: &Key) {
        if let Ok((file, _)) = self.open_object("open", key) {
            fadvise(&file, 0, None, Advice::DontNeed).ok();
        }
    }

    fn describe(&self) -> String {
        describe(&self.root)
    }
}

/// Whether a key lies below the directory of unpublished files.
pub(super) fn is_temporary(key: &str) -> bool {
    key.split('/').next() == Some(TEMPORARY)
}

/// Renames a file unless its new name is taken.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // What NFS and some others answer, and kernels before 3.15.
        Err(Errno::INVAL | Errno::NOSYS) => link_new(from, to),
        renamed => Ok(renamed?),
    }
}

/// The same where a rename cannot be told not to replace. A second link shows that the first answer was lost on the
/// way, as open(2) advises for NFS.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if fs::metadata(from).map_or(true, |metadata| metadata.nlink() < 2) => {
            Err(error)
        }
        _ => {
            // Were it left behind, it would only be a second name below `.tmp/`.
            fs::remove_file(from).ok();
            Ok(())
        }
    }
}

/// Makes the directories that are missing from a chain that leads upwards, and returns them, the deepest first.
fn make_directories<'a>(upwards: impl Iterator<Item = &'a Path>) -> io::Result<Vec<&'a Path>> {
    let missing: Vec<&Path> = upwards
        .take_while(|directory| !directory.is_dir())
        .collect();
    for directory in missing.iter().rev() {
        match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    Ok(missing)
}

/// Makes what was done in a directory durable. A file system that cannot sync one says EINVAL; it has nothing better
/// to offer, and PostgreSQL passes over it too.
fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// Whether nothing has a name; a directory is no object.
pub(super) fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory)
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        _ if is_absence(error) => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        // What network and user-space file systems answer when the other side is gone.
        io::ErrorKind::StaleNetworkFileHandle
        | io::ErrorKind::TimedOut
        | io::ErrorKind::NotConnected
        | io::ErrorKind::HostUnreachable => ErrorKind::Unreachable,
        _ => ErrorKind::Other,
    }
}

fn describe(root: &Path) -> String {
    format!("directory {}", root.display())
}

fn fail(what: &'static str, key: &str, root: &Path, kind: ErrorKind, source: io::Error) -> Error {
    Error {
        kind,
        what,
        key: key.to_owned(),
        place: describe(root),
        source: Some(Box::new(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn temporary_files(root: &Path) -> usize {
        fs::read_dir(root.join(TEMPORARY)).unwrap().count()
    }

    #[test]
    fn only_create_makes_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("deep/root");
        assert_eq!(
            LocalStorage::open(&root).unwrap_err().kind,
            ErrorKind::Unreachable
        );
        assert!(!root.exists());
        LocalStorage::create(&root).unwrap();
        LocalStorage::create(&root).unwrap();
        LocalStorage::open(&root).unwrap();
    }

    #[test]
    fn files_and_directories_are_closed_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        LocalStorage::create(&root)
            .unwrap()
            .put(&key("a/b"), b"body")
            .unwrap();
        for (path, most) in [("", 0o750), (".tmp", 0o750), ("a", 0o750), ("a/b", 0o640)] {
            let mode = fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode & !most, 0, "{path} has mode {mode:o}");
            assert_eq!(mode & 0o600, 0o600, "{path} has mode {mode:o}");
        }
    }

    #[test]
    fn nothing_is_left_in_the_temporary_directory() {
        let directory = tempfile::tempdir().unwrap();
        let storage = LocalStorage::create(directory.path()).unwrap();
        storage.put(&key("a/b"), b"body").unwrap();
        assert_eq!(
            storage.put(&key("a/b"), b"other").unwrap_err().kind,
            ErrorKind::AlreadyExists
        );
        assert_eq!(
            storage.put(&key("a"), b"other").unwrap_err().kind,
            ErrorKind::Other
        );
        assert_eq!(
            storage.put(&key("a/b/c"), b"other").unwrap_err().kind,
            ErrorKind::Other
        );
        assert_eq!(temporary_files(directory.path()), 0);
    }

    #[test]
    fn a_link_publishes_without_replacing() {
        let directory = tempfile::tempdir().unwrap();
        let storage = LocalStorage::create(directory.path()).unwrap();
        let target = directory.path().join("object");
        let first = storage.write_temporary(&key("object"), b"first").unwrap();
        link_new(&first, &target).unwrap();
        let second = storage.write_temporary(&key("object"), b"second").unwrap();
        assert_eq!(
            link_new(&second, &target).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&target).unwrap(), b"first");
        assert!(!first.exists() && second.exists());
    }

    #[test]
    fn a_link_whose_answer_was_lost_counts_as_made() {
        let directory = tempfile::tempdir().unwrap();
        let storage = LocalStorage::create(directory.path()).unwrap();
        let target = directory.path().join("object");
        let temporary = storage.write_temporary(&key("object"), b"body").unwrap();
        fs::hard_link(&temporary, &target).unwrap();
        link_new(&temporary, &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"body");
        assert_eq!(temporary_files(directory.path()), 0);
    }

    #[test]
    fn a_directory_is_no_object() {
        let directory = tempfile::tempdir().unwrap();
        let storage = LocalStorage::create(directory.path()).unwrap();
        storage.put(&key("a/b"), b"body").unwrap();
        assert_eq!(
            storage.get(&key("a")).unwrap_err().kind,
            ErrorKind::NotFound
        );
        assert_eq!(
            storage.get(&key("a/b/c")).unwrap_err().kind,
            ErrorKind::NotFound
        );
        storage.delete(&key("a")).unwrap();
        storage.delete(&key("a/b/c")).unwrap();
        assert_eq!(storage.get(&key("a/b")).unwrap(), b"body");
    }

    #[test]
    fn keys_below_the_temporary_directory_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let storage = LocalStorage::create(directory.path()).unwrap();
        assert_eq!(
            storage.put(&key(".tmp/a"), b"body").unwrap_err().kind,
            ErrorKind::Denied
        );
        assert_eq!(
            storage.get(&key(".tmp/a")).unwrap_err().kind,
            ErrorKind::Denied
        );
        assert!(storage.list(".tmp/", None, 10).unwrap().is_empty());
    }

    #[test]
    fn a_directory_that_create_did_not_make_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let storage = LocalStorage::open(directory.path()).unwrap();
        assert_eq!(
            storage.put(&key("a/b"), b"body").unwrap_err().kind,
            ErrorKind::Unreachable
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_and_a_forbidden_one_are_told_apart() {
        let kind = |errno: Errno| kind_of(&errno.into());
        assert_eq!(
            [kind(Errno::NOSPC), kind(Errno::DQUOT)],
            [ErrorKind::Full; 2]
        );
        assert_eq!(
            [kind(Errno::ACCESS), kind(Errno::PERM), kind(Errno::ROFS)],
            [ErrorKind::Denied; 3]
        );
        assert_eq!(
            [
                kind(Errno::STALE),
                kind(Errno::TIMEDOUT),
                kind(Errno::NOTCONN)
            ],
            [ErrorKind::Unreachable; 3]
        );
        assert_eq!(kind(Errno::IO), ErrorKind::Other);
    }
}
