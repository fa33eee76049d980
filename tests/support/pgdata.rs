//! Data directories of stopped clusters, for tests of the engine that need no server while they run.
//!
//! Promises: what `initdb` makes, less two of its three databases, the content of `pg_wal` and what no backup takes, so
//! that a restored copy is equal to its source file by file; made once for each test process and copied from memory.
//! Refuses: to be started (there is no WAL in it).

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::postgres::{Server, system_major};

/// Bytes of a page.
pub const PAGE: usize = 8192;
/// Folders whose content no backup takes, and `pg_wal`.
const EMPTIED: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// What stands at a path: its mode, and its bytes if it is a file.
type Found = (u32, Option<Vec<u8>>);

/// A data directory in a folder of its own, which goes when this is dropped.
#[derive(Debug)]
pub struct Pgdata {
    /// The data directory.
    pub path: PathBuf,
    folder: TempDir,
}

impl Pgdata {
    /// A small cluster: about 300 files, 7 MB.
    pub fn small() -> Self {
        let folder = temporary_folder();
        let path = folder.path().join("data");
        for (name, (mode, bytes)) in template() {
            let path = path.join(name);
            match bytes {
                Some(bytes) => File::create(&path)
                    .and_then(|mut file| file.write_all(bytes))
                    .expect("the cluster can be copied"),
                None => fs::create_dir(&path).expect("the cluster can be copied"),
            }
            fs::set_permissions(&path, Permissions::from_mode(*mode)).expect("it has a mode");
        }
        Pgdata { path, folder }
    }

    /// The folder in which the data directory lies; a place for what the test restores and caches.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a relation file of `pages` pages that do not compress; what is in them depends on `seed` alone.
    pub fn relation(&self, name: &str, pages: usize, seed: u64) {
        let mut noise = Noise(seed);
        let mut bytes = vec![0; pages * PAGE];
        noise.fill(&mut bytes);
        let path = self.path.join(name);
        let mut file = File::create(&path).expect("a relation can be made");
        file.write_all(&bytes).expect("it can be written");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it has a mode");
    }

    /// Changes one page of a relation file in place.
    pub fn change_page(&self, name: &str, page: usize, seed: u64) {
        let mut bytes = vec![0; PAGE];
        Noise(seed).fill(&mut bytes);
        let file = File::options()
            .write(true)
            .open(self.path.join(name))
            .expect("the relation is there");
        file.write_all_at(&bytes, (page * PAGE) as u64)
            .expect("it can be written");
    }
}

/// Numbers that look random and are the same in every run (splitmix64).
#[derive(Debug, Clone)]
pub struct Noise(
    /// The seed, and then the state.
    pub u64,
);

impl Noise {
    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_number() % bound.max(1)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next_number().to_le_bytes());
        }
    }
}

/// A temporary folder; in memory if `CAIRN_TEST_MEMORY` names a folder there: restores and caches sync whole file
/// systems, and that is what a test with a hundred of them would spend its time on.
fn temporary_folder() -> TempDir {
    let memory = env::var_os("CAIRN_TEST_MEMORY").filter(|memory| !memory.is_empty());
    memory
        .map_or_else(tempfile::tempdir, tempfile::tempdir_in)
        .expect("a temporary folder can be made")
}

/// The cluster that the copies are made from, in path order.
fn template() -> &'static BTreeMap<PathBuf, Found> {
    static TEMPLATE: OnceLock<BTreeMap<PathBuf, Found>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let server = Server::empty(system_major());
        server.init(&[]);
        let mut found = tree(&server.data);
        let database = Path::new("base/1");
        let left_out = |path: &Path| {
            let emptied = |name| path.starts_with(name) && path != Path::new(name);
            let other_database = path.starts_with("base")
                && path != Path::new("base")
                && !path.starts_with(database);
            other_database || EMPTIED.into_iter().any(emptied)
        };
        found.retain(|path, _| !left_out(path));
        found
    })
}

/// All that lies in a directory, itself included as the empty path. Neither links nor devices are expected.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let place = root.join(&folder);
        let mode = |path: &Path| {
            let metadata = fs::symlink_metadata(path).expect("what is listed is there");
            assert!(!metadata.is_symlink(), "{} is a link", path.display());
            metadata.permissions().mode() & 0o7777
        };
        for entry in fs::read_dir(&place).expect("a directory can be listed") {
            let entry = entry.expect("a directory can be listed");
            let name = folder.join(entry.file_name());
            if entry.file_type().expect("it has a type").is_dir() {
                folders.push(name);
            } else {
                let bytes = fs::read(entry.path()).expect("a file can be read");
                found.insert(name, (mode(&entry.path()), Some(bytes)));
            }
        }
        found.insert(folder, (mode(&place), None));
    }
    found
}

/// Fails the test unless two trees are equal, and names what differs.
#[track_caller]
pub fn assert_equal(expected: &BTreeMap<PathBuf, Found>, found: &BTreeMap<PathBuf, Found>) {
    let paths = expected.keys().chain(found.keys());
    let mut differ: Vec<_> = paths
        .filter(|path| expected.get(*path) != found.get(*path))
        .collect();
    differ.dedup();
    assert!(
        differ.is_empty(),
        "{} paths differ: {:?}",
        differ.len(),
        &differ[..differ.len().min(10)]
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_are_equal_until_a_page_is_changed() {
        let (one, two) = (Pgdata::small(), Pgdata::small());
        for pgdata in [&one, &two] {
            pgdata.relation("base/1/90001", 4, 7);
        }
        let before = tree(&one.path);
        assert_equal(&before, &tree(&two.path));
        assert!(before.contains_key(Path::new("global/pg_control")));
        one.change_page("base/1/90001", 2, 8);
        let after = tree(&one.path);
        assert_ne!(before, after);
        assert_eq!(before.len(), after.len());
    }
}
