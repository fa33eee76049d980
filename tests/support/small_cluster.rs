//! A small stopped cluster: a real data directory of `initdb`, with relation files of valid pages like those of pgbench.
//!
//! Promises: page checksums are on and right; the same seed makes the same pages; nothing runs in it. Databases that no
//! test looks into are emptied, so that a copy costs little.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::{env, fs};

use pgcairn_engine::cluster::page;
use tempfile::TempDir;

use crate::postgres::{Server, system_major};
use crate::process::{finish, give};

/// The size of a page.
pub const PAGE: usize = 8192;
/// A relation of 384 pages.
pub const SMALL: &str = "base/5/90001";
/// A relation of 768 pages: more than one extent node describes.
pub const LARGE: &str = "base/5/90002";

/// `initdb` takes its time: tests that run side by side share what it made.
static TEMPLATE: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// A stopped cluster in a folder of its own.
#[derive(Debug)]
pub struct SmallCluster {
    /// The data directory.
    pub data: PathBuf,
    folder: TempDir,
    _template: Arc<Server>,
}

impl Default for SmallCluster {
    fn default() -> Self {
        Self::new()
    }
}

impl SmallCluster {
    /// A cluster with the relations [`SMALL`] and [`LARGE`].
    pub fn new() -> Self {
        let template = template();
        let folder = tempfile::Builder::new()
            .prefix("pgc-")
            .tempdir_in(quick_folder())
            .expect("a temporary folder can be made");
        let data = folder.path().join("data");
        copy(&template.data, &data);
        let cluster = SmallCluster {
            data,
            folder,
            _template: template,
        };
        cluster.write_relation(SMALL, 384, 1);
        cluster.write_relation(LARGE, 768, 2);
        cluster
    }

    /// The folder that the data directory lies in; for what a test needs beside it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a relation file of valid pages.
    pub fn write_relation(&self, path: &str, blocks: u32, seed: u64) {
        let pages: Vec<u8> = (0..blocks)
            .flat_map(|block| valid_page(block, seed))
            .collect();
        let path = self.data.join(path);
        File::create(&path)
            .and_then(|mut file| file.write_all(&pages))
            .expect("the data directory can be written to");
        give(&path);
    }
}

fn template() -> Arc<Server> {
    let mut made = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(template) = made.upgrade() {
        return template;
    }
    let server = Server::empty(system_major());
    server.init(&["--data-checksums", "--wal-segsize=1"]);
    // Of `pg_subtrans` no backup takes the content; without it, a restored cluster is equal to this one.
    for emptied in ["base/1", "base/4", "base/5", "pg_subtrans"] {
        let folder = server.data.join(emptied);
        for file in fs::read_dir(&folder).expect("initdb makes these folders") {
            let file = file.expect("a folder of ours can be listed");
            if file.file_name() != "PG_VERSION" {
                fs::remove_file(file.path()).expect("a file of ours can be removed");
            }
        }
    }
    let template = Arc::new(server);
    *made = Arc::downgrade(&template);
    template
}

/// Where these clusters are made: in memory where there is plenty, because every restore makes its whole file system
/// durable, whoever else writes to it.
fn quick_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let room = rustix::fs::statvfs(&memory).map_or(0, |found| found.f_bavail * found.f_frsize);
    if room > 4 << 30 {
        memory
    } else {
        env::temp_dir()
    }
}

/// Copies a folder with everything that `cp` can keep.
pub fn copy(from: &Path, to: &Path) {
    finish(Command::new("cp").arg("--archive").arg(from).arg(to)).success();
}

/// A page with a header as the server writes it, content that compresses by half, and a checksum that is right.
pub fn valid_page(block: u32, seed: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let mut state = (seed << 32 | u64::from(block)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for word in page[256..].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word[..4].copy_from_slice(&state.to_le_bytes()[..4]);
    }
    // pd_lsn; pd_lower, pd_upper, pd_special, page size and layout version.
    page[4..8].copy_from_slice(&0x0100_0000_u32.to_le_bytes());
    for (at, field) in [(12, 256_u16), (14, 256), (16, 8192), (18, 8192 | 4)] {
        page[at..at + 2].copy_from_slice(&field.to_le_bytes());
    }
    seal(&mut page, block);
    page
}

/// Gives a page the checksum that it should have at a block.
pub fn seal(page: &mut [u8], block: u32) {
    let checksum = page::checksum(page, block);
    page[8..10].copy_from_slice(&checksum.to_le_bytes());
}

/// What stands at a path: kind and mode, owner, and for a file its time and content, for a link its target.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stand {
    mode: u32,
    owner: (u32, u32),
    modified: Option<(i64, i64)>,
    content: Vec<u8>,
}

fn stands(root: &Path) -> BTreeMap<PathBuf, Stand> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(path) = open.pop() {
        let metadata = fs::symlink_metadata(&path).expect("what is listed is there");
        let (mut modified, mut content) = (None, Vec::new());
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder of the test can be listed");
            open.extend(entries.map(|entry| entry.expect("a listing goes on").path()));
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).expect("a link can be read");
            content = target.as_os_str().as_bytes().to_vec();
        } else {
            // pg_control is written anew at the end of every restore.
            let kept = !path.ends_with("global/pg_control");
            modified = kept.then(|| (metadata.mtime(), metadata.mtime_nsec()));
            content = fs::read(&path).expect("a file of the test can be read");
        }
        let stand = Stand {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            modified,
            content,
        };
        let name = path.strip_prefix(root).expect("it lies below the root");
        found.insert(name.to_path_buf(), stand);
    }
    found
}

/// Where two folders differ, in words; empty if they are equal file by file: bytes, modes, owners, times, links.
pub fn differences(one: &Path, other: &Path) -> Vec<String> {
    let (one, other) = (stands(one), stands(other));
    let mut told = Vec::new();
    for path in one
        .keys()
        .chain(other.keys().filter(|path| !one.contains_key(*path)))
    {
        let what = match (one.get(path), other.get(path)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) if a.content != b.content => {
                format!(
                    "content ({} and {} bytes)",
                    a.content.len(),
                    b.content.len()
                )
            }
            (Some(a), Some(b)) => format!(
                "{:o} {:?} {:?} and {:o} {:?} {:?}",
                a.mode, a.owner, a.modified, b.mode, b.owner, b.modified
            ),
            (Some(_), None) => "only in the first".to_owned(),
            _ => "only in the second".to_owned(),
        };
        told.push(format!("{}: {what}", path.display()));
    }
    told
}
