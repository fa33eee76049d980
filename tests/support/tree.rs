//! What is on disk below a directory, as something that can be compared.
//!
//! Promises: contents byte for byte, kinds, modes, owners, link targets and the time stamps of files; links are told
//! from what they point to. Refuses: to read fifos and devices; they are listed by kind.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Everything below a directory, by relative path (bytes that are not UTF-8 are escaped); the directory itself is "".
pub type Tree = BTreeMap<String, Item>;

/// One thing on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Permission bits.
    pub mode: u32,
    /// Owning user and group.
    pub owner: (u32, u32),
    /// What it is.
    pub what: What,
}

/// What a thing on disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// A file: its length, a hash of its bytes, and when it was changed last, in seconds and nanoseconds.
    File(u64, u64, (i64, i64)),
    /// A link, and where it leads.
    Link(Vec<u8>),
    /// A fifo, socket or device.
    Other,
}

/// Lists what is below `directory`.
pub fn tree(directory: &Path) -> Tree {
    let mut tree = Tree::new();
    add(&mut tree, directory, &mut Vec::new());
    tree
}

fn add(tree: &mut Tree, path: &Path, name: &mut Vec<u8>) {
    let metadata = fs::symlink_metadata(path).expect("what was listed can be looked at");
    let kind = metadata.file_type();
    let what = if kind.is_dir() {
        What::Directory
    } else if kind.is_symlink() {
        let target = fs::read_link(path).expect("a link can be read");
        What::Link(target.as_os_str().as_bytes().to_vec())
    } else if kind.is_file() {
        let time = (metadata.mtime(), metadata.mtime_nsec());
        What::File(metadata.len(), hash(path), time)
    } else {
        What::Other
    };
    let item = Item {
        // A link's own permissions mean nothing.
        mode: if kind.is_symlink() {
            0
        } else {
            metadata.mode() & 0o7777
        },
        owner: (metadata.uid(), metadata.gid()),
        what,
    };
    tree.insert(name.escape_ascii().to_string(), item);
    if !kind.is_dir() {
        return;
    }
    for entry in fs::read_dir(path).expect("a directory can be listed") {
        let entry = entry.expect("an entry");
        let length = name.len();
        if length > 0 {
            name.push(b'/');
        }
        name.extend_from_slice(entry.file_name().as_bytes());
        add(tree, &entry.path(), name);
        name.truncate(length);
    }
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&fs::read(path).expect("a file can be read"));
    hasher.finish()
}

/// Fails the test, with the first few differences, unless two trees are equal.
#[track_caller]
pub fn assert_equal(left: &Tree, right: &Tree) {
    let names = left
        .keys()
        .chain(right.keys().filter(|name| !left.contains_key(*name)));
    let differing: Vec<String> = names
        .filter(|name| left.get(*name) != right.get(*name))
        .take(10)
        .map(|name| format!("{name}: {:?} / {:?}", left.get(name), right.get(name)))
        .collect();
    assert!(
        differing.is_empty(),
        "these differ:\n{}",
        differing.join("\n")
    );
}
