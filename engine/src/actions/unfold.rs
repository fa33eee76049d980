//! Makes a directory tree what a backup's tree says, and jobs for the bytes.
//!
//! One pass over the tree in path order beside one listing for each open directory: what the tree does not name is
//! removed, what is of another kind is replaced, directories, links and files are made with their modes and owners.
//! Promises: nothing outside the places of the restore is touched; memory is one listing for each level.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::actions::error::{Error, Result};
use crate::actions::fill::{Job, Slot, Target};
use crate::actions::nodes::{NodeReader, TreeCursor};
use crate::actions::pipeline::Outlet;
use crate::actions::places::{Places, Resolved};
use crate::cluster::owner::{self, Owners};
use crate::cluster::root::{Access, Kind};
use crate::ids::{ChunkId, Extent};
use crate::monitor::{Monitor, Problem, Tally};
use crate::repository::tree::{Content, Entry, EntryKind, Owner};

/// Bytes of one file that one job restores.
const REGION_BYTES: u64 = 16 << 20;
/// What a job of small files may hold.
const BATCH_FILES: usize = 128;
const BATCH_BYTES: u64 = 8 << 20;

/// An open directory of the tree, and what the disk has in it.
struct Open {
    path: Vec<u8>,
    /// Names on disk, from the last to the next; none are removed from a shared directory.
    names: Vec<Vec<u8>>,
}

/// The pass over one tree.
pub(super) struct Unfolder<'a> {
    pub(super) places: &'a Places,
    pub(super) nodes: &'a NodeReader<'a>,
    pub(super) label: &'a str,
    /// Names directly in the data directory that stay although the tree does not have them.
    pub(super) kept: &'a [&'a [u8]],
    pub(super) tally: &'a Tally,
    pub(super) monitor: &'a dyn Monitor,
    owners: Owners,
    unknown_owner: bool,
    removed: u64,
    batch: Job,
    batch_bytes: u64,
    open: Vec<Open>,
}

impl<'a> Unfolder<'a> {
    /// A pass over the tree of backup `label`.
    pub(super) fn new(
        places: &'a Places,
        nodes: &'a NodeReader<'a>,
        label: &'a str,
        kept: &'a [&'a [u8]],
        tally: &'a Tally,
        monitor: &'a dyn Monitor,
    ) -> Self {
        Unfolder {
            places,
            nodes,
            label,
            kept,
            tally,
            monitor,
            owners: Owners::default(),
            unknown_owner: false,
            removed: 0,
            batch: Job::default(),
            batch_bytes: 0,
            open: Vec::new(),
        }
    }

    /// Unfolds the tree below `root`; answers how much was removed.
    pub(super) fn run(mut self, root: ChunkId, jobs: &Outlet<Job>) -> Result<u64> {
        let mut cursor = TreeCursor::new(self.nodes, root)?;
        while let Some(entry) = cursor.next()? {
            self.check(&entry)?;
            self.close_until(parent_of(&entry.path))?;
            match entry.kind {
                EntryKind::Directory => self.directory(&entry)?,
                EntryKind::Link => self.link(&entry, &entry.path, &entry.target)?,
                EntryKind::File => self.file(entry, jobs)?,
            }
        }
        self.close_until(None)?;
        self.flush(jobs)?;
        Ok(self.removed)
    }

    /// A snapshot is untrusted input: its paths must be what our own walk would have made.
    fn check(&self, entry: &Entry) -> Result<()> {
        let sound =
            |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
        if entry.path.is_empty() || entry.path.split(|byte| *byte == b'/').all(sound) {
            return Ok(());
        }
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        Err(Error::BadPath {
            label: self.label.to_owned(),
            path,
        })
    }

    /// Closes open directories until `parent` is the innermost; what is left in the closed ones is not in the backup.
    fn close_until(&mut self, parent: Option<&[u8]>) -> Result<()> {
        while let Some(open) = self
            .open
            .pop_if(|open| Some(open.path.as_slice()) != parent)
        {
            for name in open.names.into_iter().rev() {
                self.remove_stray(&open.path, &name)?;
            }
        }
        Ok(())
    }

    /// Removes what the listing has before `path`, and passes `path` itself.
    fn passed(&mut self, path: &[u8]) -> Result<()> {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let mut strays = Vec::new();
        let Some(open) = self.open.last_mut() else {
            return Ok(());
        };
        while let Some(next) = open.names.pop_if(|next| next.as_slice() <= name) {
            if next != name {
                strays.push(next);
            }
        }
        let folder = open.path.clone();
        strays
            .into_iter()
            .try_for_each(|stray| self.remove_stray(&folder, &stray))
    }

    fn remove_stray(&mut self, folder: &[u8], name: &[u8]) -> Result<()> {
        if folder.is_empty() && self.kept.contains(&name) {
            return Ok(());
        }
        let mut path = folder.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let at = self.places.resolve(&path);
        self.removed += 1;
        at.root.remove(&at.relative).map_err(Error::Cluster)
    }

    /// Removes what stands at a place if it is not of this kind; answers whether something of this kind stands there.
    fn make_room(&self, path: &[u8], kind: Kind, behind_link: bool) -> Result<bool> {
        let at = if behind_link {
            self.places.resolve(path)
        } else {
            self.places.resolve_link(path)
        };
        match at.root.stat(&at.relative).map_err(Error::Cluster)? {
            None => Ok(false),
            Some(found) if found.kind == kind => {
                // Its owner may have taken the right to write it from himself.
                if kind == Kind::File && found.mode & 0o600 != 0o600 {
                    at.root.chmod(&at.relative, 0o600).map_err(Error::Cluster)?;
                }
                Ok(true)
            }
            Some(_) => at
                .root
                .remove(&at.relative)
                .map(|()| false)
                .map_err(Error::Cluster),
        }
    }

    fn directory(&mut self, entry: &Entry) -> Result<()> {
        self.passed(&entry.path)?;
        if let Some(target) = self.places.link_target(&entry.path) {
            use std::os::unix::ffi::OsStrExt;
            self.link(entry, &entry.path, target.as_os_str().as_bytes())?;
        }
        let at = self.places.resolve(&entry.path);
        if !at.relative.is_empty() && !self.make_room(&entry.path, Kind::Directory, true)? {
            at.root
                .create_dir(&at.relative, 0o700)
                .map_err(Error::Cluster)?;
        }
        self.attributes(entry)?;
        let mut names = Vec::new();
        if !at.shared_top {
            let listed = at.root.list(&at.relative).map_err(Error::Cluster)?;
            names.extend(listed.into_iter().map(|(name, _)| name));
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.open.push(Open {
            path: entry.path.clone(),
            names,
        });
        Ok(())
    }

    /// Makes the symbolic link at `path`.
    fn link(&mut self, entry: &Entry, path: &[u8], target: &[u8]) -> Result<()> {
        if entry.kind == EntryKind::Link {
            self.passed(path)?;
        }
        let at = self.places.resolve_link(path);
        if self.make_room(path, Kind::Link, false)? {
            at.root.remove(&at.relative).map_err(Error::Cluster)?;
        }
        at.root
            .symlink(target, &at.relative)
            .map_err(Error::Cluster)?;
        self.ownership(entry, &at)
    }

    /// Sets mode and, when run by root, owner of what stands at the entry's place.
    fn attributes(&mut self, entry: &Entry) -> Result<()> {
        let at = self.places.resolve(&entry.path);
        self.ownership(entry, &at)?;
        at.root
            .chmod(&at.relative, entry.mode)
            .map_err(Error::Cluster)
    }

    /// When run by root, gives what stands at a place, links themselves included, to the entry's owner.
    fn ownership(&mut self, entry: &Entry, at: &Resolved<'_>) -> Result<()> {
        if !owner::is_root() {
            return Ok(());
        }
        let user = match &entry.owner {
            Owner::Name(name) => self.owners.user_number(name),
            Owner::Number(number) => Some(*number),
        };
        let group = match &entry.group {
            Owner::Name(name) => self.owners.group_number(name),
            Owner::Number(number) => Some(*number),
        };
        if let (Some(user), Some(group)) = (user, group) {
            return at
                .root
                .chown(&at.relative, user, group)
                .map_err(Error::Cluster);
        }
        if !std::mem::replace(&mut self.unknown_owner, true) {
            let message =
                "its owner or group does not exist on this host; such files belong to root now";
            self.monitor.problem(&Problem {
                object: at.absolute.display().to_string(),
                message: message.to_owned(),
            });
        }
        Ok(())
    }

    fn file(&mut self, entry: Entry, jobs: &Outlet<Job>) -> Result<()> {
        self.passed(&entry.path)?;
        if let Some(target) = self.places.link_target(&entry.path) {
            use std::os::unix::ffi::OsStrExt;
            self.link(&entry, &entry.path, target.as_os_str().as_bytes())?;
        }
        self.make_room(&entry.path, Kind::File, true)?;
        let at = self.places.resolve(&entry.path);
        let failed = |source| Error::WriteFile {
            path: at.absolute.clone(),
            source,
        };
        let open = || at.root.open_file(&at.relative, Access::Create);
        let mut file: File = open().map_err(Error::Cluster)?;
        // Under its other names it may belong to another cluster (`pg_upgrade --link`, `cp -l`): that one stays as it is.
        if file.metadata().map_err(failed)?.nlink() > 1 {
            at.root.remove(&at.relative).map_err(Error::Cluster)?;
            file = open().map_err(Error::Cluster)?;
        }
        let length = file.metadata().map_err(failed)?.len();
        if length != entry.bytes {
            file.set_len(entry.bytes).map_err(failed)?;
        }
        self.attributes(&entry)?;
        let target = Arc::new(Target {
            file,
            path: at.absolute.clone(),
            old_bytes: length.min(entry.bytes),
            modified_ns: entry.modified_ns,
            pieces: AtomicU64::new(0),
        });
        match entry.content {
            Content::Nodes(_) => self.large(&target, &entry, jobs),
            Content::Nothing => self.small(target, Vec::new(), Some(Vec::new()), 0, jobs),
            Content::Inline(bytes) => {
                self.small(target, Vec::new(), Some(bytes), entry.bytes, jobs)
            }
            Content::Extents(extents) => self.small(target, extents, None, entry.bytes, jobs),
        }
    }

    fn small(
        &mut self,
        target: Arc<Target>,
        extents: Vec<Extent>,
        inline: Option<Vec<u8>>,
        bytes: u64,
        jobs: &Outlet<Job>,
    ) -> Result<()> {
        target.pieces.store(1, Ordering::Release);
        self.batch.slots.extend(slots(&target, 0, extents));
        if let Some(inline) = inline {
            self.batch.inline.push((Arc::clone(&target), inline));
        }
        self.batch.targets.push(target);
        self.batch_bytes += bytes;
        if self.batch.targets.len() >= BATCH_FILES || self.batch_bytes >= BATCH_BYTES {
            self.flush(jobs)
        } else {
            Ok(())
        }
    }

    fn large(&mut self, target: &Arc<Target>, entry: &Entry, jobs: &Outlet<Job>) -> Result<()> {
        let regions = entry.bytes.div_ceil(REGION_BYTES);
        target.pieces.store(regions, Ordering::Release);
        for region in 0..regions {
            let (from, to) = (region * REGION_BYTES, (region + 1) * REGION_BYTES);
            let (begin, extents) = self.nodes.extents(&entry.content, from, to)?;
            let slots = slots(target, begin, extents).collect();
            jobs.send(Job {
                slots,
                inline: Vec::new(),
                targets: vec![Arc::clone(target)],
            })?;
        }
        Ok(())
    }

    fn flush(&mut self, jobs: &Outlet<Job>) -> Result<()> {
        self.batch_bytes = 0;
        if self.batch.targets.is_empty() {
            return Ok(());
        }
        self.monitor.progress(self.tally);
        jobs.send(std::mem::take(&mut self.batch))
    }
}

/// The slots of extents that lie one behind the other from `begin` on.
fn slots(target: &Arc<Target>, begin: u64, extents: Vec<Extent>) -> impl Iterator<Item = Slot> {
    extents.into_iter().scan(begin, move |offset, extent| {
        let slot = Slot {
            target: Arc::clone(target),
            offset: *offset,
            extent,
        };
        *offset += u64::from(extent.length);
        Some(slot)
    })
}

fn parent_of(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end)
}
