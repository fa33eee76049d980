//! Restore's file operations, kept beneath one directory.
//!
//! Promises: no path, however it came into a backup, and no link, however it came into the target, leads out of the
//! directory: paths are checked, and resolved by the kernel (`openat2`, `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`), or
//! component by component where it lacks that call. This matters because restore may run as root. The empty path is the
//! directory itself. May be used by several threads at once.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT,
    Uid,
};
use rustix::io::Errno;

use crate::cluster::{Error, Result};

/// How often a resolution that raced with a rename is tried again.
const TRIES: u32 = 32;

/// A directory that was opened, and beneath which all else happens.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    path: PathBuf,
    has_openat2: bool,
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading what is there.
    Read,
    /// Reading and writing what is there.
    Write,
    /// Reading and writing; made with mode 0600 if it is not there.
    Create,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A socket, pipe or device.
    Other,
}

/// What is known of an entry; a link is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owning user.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Length in bytes.
    pub bytes: u64,
    /// Last change of the content: nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
}

impl Root {
    /// Opens a directory; the user named it, so links on the way to it are followed.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|e| Error::file("open", path, e))?;
        let has_openat2 = openat2(directory.as_fd(), b".", flags, Mode::empty()).is_ok();
        Ok(Root {
            directory,
            path: path.to_owned(),
            has_openat2,
        })
    }

    /// The directory, as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path beneath the directory as text for people; opening it would not be safe.
    pub fn location(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() {
            self.path.clone()
        } else {
            self.path.join(OsStr::from_bytes(path))
        }
    }

    /// Makes a directory, with `mode` less the process's umask; one that is there already is left as it is.
    pub fn create_dir(&self, path: &[u8], mode: u32) -> Result<()> {
        let (parent, name) = self.parent("make directory", path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
            Err(Errno::EXIST)
                if self
                    .stat(path)?
                    .is_some_and(|facts| facts.kind == Kind::Directory) =>
            {
                Ok(())
            }
            result => result.map_err(|e| self.error("make directory", path, e)),
        }
    }

    /// Opens a regular file.
    pub fn open_file(&self, path: &[u8], access: Access) -> Result<File> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
            Access::Create => OFlags::RDWR | OFlags::CREATE,
        };
        let mode = if access == Access::Create {
            Mode::RUSR | Mode::WUSR
        } else {
            Mode::empty()
        };
        // NONBLOCK: what is there may be a pipe that nobody writes to.
        let file = self.open_beneath(path, flags | OFlags::NONBLOCK, mode);
        let file = File::from(file.map_err(|e| self.error("open", path, e))?);
        let metadata = file.metadata().map_err(|e| self.error("stat", path, e))?;
        if !metadata.is_file() {
            return Err(self.error("open", path, io::Error::other("not a regular file")));
        }
        Ok(file)
    }

    /// What is at `path`; `None` if nothing is.
    pub fn stat(&self, path: &[u8]) -> Result<Option<Facts>> {
        let (parent, name) = match self.open_parent(path) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(self.error("stat", path, e)),
        };
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(facts(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.error("stat", path, e)),
        }
    }

    /// The names in a directory and what they are, in no order.
    pub fn list(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, Kind)>> {
        let directory = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let directory = directory.map_err(|e| self.error("list", path, e))?;
        list(&directory).map_err(|e| self.error("list", path, e))
    }

    /// What a link points to.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        let (parent, name) = self.parent("read link", path)?;
        let target = rustix::fs::readlinkat(&parent, name, Vec::new());
        target
            .map(std::ffi::CString::into_bytes)
            .map_err(|e| self.error("read link", path, e))
    }

    /// Removes what is at `path`, with all beneath it; no link is followed. What is not there is removed already.
    pub fn remove(&self, path: &[u8]) -> Result<()> {
        if path.is_empty() {
            return Err(self.error("remove", path, Errno::BUSY));
        }
        match self.open_parent(path) {
            Ok((parent, name)) => {
                remove_at(parent.as_fd(), name).map_err(|e| self.error("remove", path, e))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(e) => Err(self.error("remove", path, e)),
        }
    }

    /// Makes a link that points to `target`, which may be anything.
    pub fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()> {
        let (parent, name) = self.parent("make link", path)?;
        rustix::fs::symlinkat(target, &parent, name).map_err(|e| self.error("make link", path, e))
    }

    /// Sets the permission bits of a file or directory.
    pub fn chmod(&self, path: &[u8], mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode);
        let opened = self.open_beneath(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
        let result = match opened {
            Ok(file) => rustix::fs::fchmod(file, mode),
            // Not readable to its owner; root never comes here, so following a link that just appeared does no harm.
            Err(Errno::ACCESS) => self.open_parent(path).and_then(|(parent, name)| {
                rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())
            }),
            Err(e) => Err(e),
        };
        result.map_err(|e| self.error("change mode of", path, e))
    }

    /// Gives a file, directory or link to another owner.
    pub fn chown(&self, path: &[u8], uid: u32, gid: u32) -> Result<()> {
        let (parent, name) = self.parent("change owner of", path)?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(
            &parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| self.error("change owner of", path, e))
    }

    /// Sets the time of last modification: nanoseconds since 1970-01-01 UTC.
    pub fn set_modified(&self, path: &[u8], modified_ns: i64) -> Result<()> {
        let (parent, name) = self.parent("set time of", path)?;
        let last_access = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        };
        let tv_nsec = modified_ns.rem_euclid(1_000_000_000);
        let last_modification = Timespec {
            tv_sec: modified_ns.div_euclid(1_000_000_000),
            tv_nsec,
        };
        let times = Timestamps {
            last_access,
            last_modification,
        };
        rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.error("set time of", path, e))
    }

    /// Renames within the directory; replaces what is at `to`.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let ((old, old_name), (new, new_name)) =
            (self.parent("rename", from)?, self.parent("rename", to)?);
        rustix::fs::renameat(&old, old_name, &new, new_name)
            .map_err(|e| self.error("rename", from, e))
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&self, path: &[u8]) -> Result<()> {
        let directory = self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        directory
            .and_then(rustix::fs::fsync)
            .map_err(|e| self.error("sync", path, e))
    }

    /// Makes everything durable that was written to the file system of the directory.
    pub fn sync_all(&self) -> Result<()> {
        rustix::fs::syncfs(&self.directory)
            .map_err(|e| self.error("sync the file system of", b"", e))
    }

    /// EINVAL of the resolution stands for a path that has no right to be one.
    fn error(&self, doing: &'static str, path: &[u8], source: impl Into<io::Error>) -> Error {
        if is_beneath(path) {
            return Error::file(doing, &self.location(path), source);
        }
        Error::UnsafePath {
            root: self.path.clone(),
            path: String::from_utf8_lossy(path).into_owned(),
        }
    }

    fn parent<'p>(&self, doing: &'static str, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8])> {
        self.open_parent(path)
            .map_err(|e| self.error(doing, path, e))
    }

    /// Opens the directory that holds `path`; answers it and the last component.
    fn open_parent<'p>(&self, path: &'p [u8]) -> rustix::io::Result<(OwnedFd, &'p [u8])> {
        let mut parts = path.rsplitn(2, |c| *c == b'/');
        let name = parts.next().filter(|name| !name.is_empty()).unwrap_or(b".");
        let parent = parts.next().unwrap_or_default();
        if !is_beneath(path) {
            return Err(Errno::INVAL);
        }
        Ok((
            self.open_beneath(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?,
            name,
        ))
    }

    fn open_beneath(&self, path: &[u8], flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        if !is_beneath(path) {
            return Err(Errno::INVAL);
        }
        let path = if path.is_empty() { b"." } else { path };
        if self.has_openat2 {
            return openat2(self.directory.as_fd(), path, flags, mode);
        }
        open_by_components(self.directory.as_fd(), path, flags | OFlags::NOFOLLOW, mode)
    }
}

/// Whether a path is relative and has no component that is empty, `.`, `..` or holds a NUL.
fn is_beneath(path: &[u8]) -> bool {
    let sound = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    path.is_empty() || path.split(|c| *c == b'/').all(sound)
}

// No NOFOLLOW here: with it, a link at the end would be opened (PATH) or be called no directory, instead of refused.
fn openat2(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut tries = 1;
    loop {
        match rustix::fs::openat2(directory, path, flags, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

fn open_by_components(
    start: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut held: Option<OwnedFd> = None;
    let mut parts = path.split(|c| *c == b'/').peekable();
    loop {
        let directory = held.as_ref().map_or(start, AsFd::as_fd);
        let part = parts.next().ok_or(Errno::INVAL)?;
        let is_last = parts.peek().is_none();
        let (flags, mode) = if is_last {
            (flags, mode)
        } else {
            (step, Mode::empty())
        };
        let opened = rustix::fs::openat(directory, part, flags, mode).map_err(|errno| {
            // As openat2 does, tell a link from a file where a directory is wanted.
            let found = rustix::fs::statat(directory, part, AtFlags::SYMLINK_NOFOLLOW);
            let is_link = found.is_ok_and(|found| facts(&found).kind == Kind::Link);
            if is_link { Errno::LOOP } else { errno }
        })?;
        if is_last {
            return Ok(opened);
        }
        held = Some(opened);
    }
}

fn remove_at(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for (entry, _) in list(&directory)? {
        remove_at(directory.as_fd(), &entry)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn list(directory: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, Kind)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not say.
            FileType::Unknown => {
                match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => facts(&stat).kind,
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(e),
                }
            }
            file_type => kind(file_type),
        };
        names.push((name.to_vec(), kind));
    }
    Ok(names)
}

fn kind(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        _ => Kind::Other,
    }
}

fn facts(stat: &rustix::fs::Stat) -> Facts {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Facts {
        kind: kind(FileType::from_raw_mode(stat.st_mode)),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        bytes: u64::try_from(stat.st_size).unwrap_or(0),
        modified_ns: stat
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// A target directory beside a directory that must stay as it is, opened with and without `openat2`.
    fn each_root(test: impl Fn(&Root, &Path)) {
        for has_openat2 in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let outside = dir.path().join("outside");
            for path in [&dir.path().join("target"), &outside, &outside.join("sub")] {
                fs::create_dir(path).unwrap();
            }
            File::create(outside.join("file")).unwrap();
            let mut root = Root::open(&dir.path().join("target")).unwrap();
            root.has_openat2 &= has_openat2;
            test(&root, &outside);
            assert_eq!(
                fs::read_dir(&outside).unwrap().count(),
                2,
                "openat2: {has_openat2}"
            );
        }
    }

    #[test]
    fn files_and_directories_are_made_described_and_removed() {
        each_root(|root, _| {
            root.create_dir(b"base", 0o700).unwrap();
            root.create_dir(b"base", 0o700).unwrap();
            root.create_dir(b"base/1", 0o700).unwrap();
            let file = root.open_file(b"base/1/1255", Access::Create).unwrap();
            file.set_len(8192).unwrap();
            root.chmod(b"base/1/1255", 0o640).unwrap();
            root.set_modified(b"base/1/1255", -1).unwrap();
            let facts = root.stat(b"base/1/1255").unwrap().unwrap();
            assert_eq!(
                (facts.kind, facts.mode, facts.bytes, facts.modified_ns),
                (Kind::File, 0o640, 8192, -1)
            );
            root.chown(b"base/1/1255", facts.uid, facts.gid).unwrap();
            root.rename(b"base/1/1255", b"base/moved").unwrap();
            let mut names = root.list(b"base").unwrap();
            names.sort_by(|(a, _), (b, _)| a.cmp(b));
            assert_eq!(
                names,
                [
                    (b"1".to_vec(), Kind::Directory),
                    (b"moved".to_vec(), Kind::File)
                ]
            );
            root.sync_dir(b"base").unwrap();
            root.sync_all().unwrap();
            root.remove(b"base").unwrap();
            root.remove(b"base").unwrap();
            assert_eq!(root.stat(b"base").unwrap(), None);
            assert_eq!(root.stat(b"base/1").unwrap(), None);
            root.chmod(b"", 0o750).unwrap();
            assert_eq!(root.stat(b"").unwrap().map(|facts| facts.mode), Some(0o750));
            assert!(root.remove(b"").is_err());
        });
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        each_root(|root, _| {
            for path in [
                "..",
                "../outside/x",
                "/etc/x",
                "a//b",
                "a/./b",
                "a/../../outside/x",
                "a/",
                "a\0b",
            ] {
                let path = path.as_bytes();
                let refused = |result: Result<()>| {
                    assert!(
                        matches!(result, Err(Error::UnsafePath { .. })),
                        "{path:?}: {result:?}"
                    );
                };
                refused(root.open_file(path, Access::Create).map(drop));
                refused(root.create_dir(path, 0o700));
                refused(root.symlink(b"x", path));
                refused(root.remove(path));
                refused(root.stat(path).map(drop));
                refused(root.list(path).map(drop));
                refused(root.chmod(path, 0o700));
                refused(root.chown(path, 0, 0));
                refused(root.rename(path, b"x"));
                refused(root.rename(b"x", path));
                refused(root.sync_dir(path));
            }
        });
    }

    #[test]
    fn links_are_never_followed() {
        each_root(|root, outside| {
            let mode = fs::metadata(outside.join("file")).unwrap().mode();
            symlink(outside, root.path().join("link")).unwrap();
            symlink(outside.join("file"), root.path().join("file")).unwrap();
            symlink("../outside", root.path().join("relative")).unwrap();
            for path in ["link/new", "relative/new", "file"] {
                assert!(
                    root.open_file(path.as_bytes(), Access::Create).is_err(),
                    "{path}"
                );
            }
            assert!(root.create_dir(b"link/new", 0o700).is_err());
            assert!(root.create_dir(b"link", 0o700).is_err());
            assert!(root.chmod(b"file", 0o777).is_err());
            assert!(root.chmod(b"link/sub", 0o777).is_err());
            assert!(root.remove(b"link/file").is_err());
            assert!(root.list(b"link").is_err());
            assert_eq!(
                root.stat(b"file").unwrap().map(|facts| facts.kind),
                Some(Kind::Link)
            );
            assert_eq!(root.read_link(b"relative").unwrap(), b"../outside");
            root.set_modified(b"file", 5).unwrap();
            assert_eq!(
                root.stat(b"file").unwrap().map(|facts| facts.modified_ns),
                Some(5)
            );
            for link in ["link", "file", "relative"] {
                root.remove(link.as_bytes()).unwrap();
            }
            let file = fs::metadata(outside.join("file")).unwrap();
            assert_eq!(file.mode(), mode);
            assert_ne!(file.mtime_nsec(), 5);
        });
    }

    #[test]
    fn removing_a_tree_leaves_what_its_links_point_to() {
        each_root(|root, outside| {
            root.create_dir(b"a", 0o700).unwrap();
            root.create_dir(b"a/b", 0o700).unwrap();
            root.symlink(outside.as_os_str().as_bytes(), b"a/b/link")
                .unwrap();
            root.remove(b"a").unwrap();
            assert_eq!(root.list(b"").unwrap(), []);
        });
    }

    #[test]
    fn only_regular_files_are_opened() {
        each_root(|root, _| {
            rustix::fs::mkfifoat(&root.directory, "pipe", Mode::RUSR | Mode::WUSR).unwrap();
            for access in [Access::Read, Access::Write, Access::Create] {
                assert!(root.open_file(b"pipe", access).is_err());
                assert!(root.open_file(b"", access).is_err());
            }
            assert!(root.open_file(b"absent", Access::Write).is_err());
        });
    }
}
