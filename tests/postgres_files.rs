//! A stopped cluster, with whatever may lie in its data directory, is restored file by file and byte by byte.
//!
//! Promises: as root, files of other owners are among them.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what goes wrong fails the test that called them"
)]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::{Finished, finish};
use pgcairn_tests::stanza::Stanza;
use pgcairn_tests::tree::{Tree, What, assert_equal, tree};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::geteuid;

const MIB: usize = 1 << 20;
/// Names in the large directory.
const MANY: usize = 100_000;

/// Bytes without pattern: a generator of the kind that Knuth's "MMIX" uses, its upper half.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut noise = Vec::with_capacity(bytes + 4);
    while noise.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&state.to_be_bytes()[..4]);
    }
    noise.truncate(bytes);
    noise
}

fn make(path: &Path, bytes: &[u8], mode: u32) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_permissions(Permissions::from_mode(mode)).unwrap();
}

fn make_directory(path: &Path, mode: u32) {
    fs::create_dir(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Files of all sizes at which something changes, odd names, modes, holes, links, and what is no file.
fn make_odd_files(server: &Server) {
    let odd = server.data.join("odd");
    make_directory(&odd, 0o750);
    for (number, bytes) in (0..).zip([
        0,
        1,
        511,
        512,
        513,
        65_535,
        65_536,
        65_537,
        16 * MIB - 1,
        16 * MIB,
        16 * MIB + 1,
        40 * MIB,
    ]) {
        make(
            &odd.join(format!("bytes-{bytes}")),
            &noise(bytes, number),
            0o600,
        );
    }
    let name = |bytes: &'static [u8]| odd.join(OsStr::from_bytes(bytes));
    for bytes in [
        &b"caf\xe9"[..],
        b"\xff\xfe",
        b"new\nline",
        b" ",
        b"-rf",
        b"a\\b\"c'd",
        b"%p",
        b"...",
    ] {
        make(&name(bytes), bytes, 0o640);
    }
    make_directory(&name(b"empty"), 0o700);
    make_directory(&name(b"dir-\xc3\x28"), 0o770);
    make(&name(b"dir-\xc3\x28/in\xa0side"), b"inside", 0o400);
    // Sorted wrongly by whoever compares whole paths: '-' and '.' are below '/'.
    make_directory(&name(b"a"), 0o755);
    make(&name(b"a/b"), b"1", 0o644);
    make(&name(b"a-b"), b"2", 0o644);
    make(&name(b"a.b"), b"3", 0o755);
    make(&name(b"zeroes"), &vec![0; 3 * MIB], 0o600);
    let sparse = File::create(name(b"sparse")).unwrap();
    sparse.set_len(48 * MIB as u64 + 5).unwrap();
    sparse
        .write_all_at(b"an island", 20 * MIB as u64 + 77)
        .unwrap();
    symlink("/nowhere/at/all", name(b"dangling")).unwrap();
    mknodat(CWD, name(b"fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
}

/// Gives all that root made to the server's account, and then some of it to others.
fn set_owners(server: &Server, paths: &[&Path]) {
    if !geteuid().is_root() {
        return;
    }
    let owner = fs::metadata(&server.data).unwrap();
    for path in paths {
        give(path, owner.uid(), owner.gid());
    }
    // An account that has a name, and numbers that nobody has.
    chown(server.data.join("odd/bytes-1"), Some(1), Some(2)).unwrap();
    chown(server.data.join("odd/empty"), Some(54_321), Some(12_345)).unwrap();
}

fn give(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid, gid);
        }
    }
}

/// Moves something out of the data directory, and leaves a link.
fn link_out(server: &Server, name: &str, to: &str) -> PathBuf {
    let target = server.folder().join(to);
    fs::rename(server.data.join(name), &target).unwrap();
    symlink(&target, server.data.join(name)).unwrap();
    target
}

/// Runs `pgcairn` as the test's own user: root may keep owners.
fn pgcairn(stanza: &Stanza, words: &[&str]) -> Finished {
    let mut command = Command::new(stanza.server.pgcairn_path());
    finish(command.env("LC_ALL", "C").args(stanza.arguments(words)))
}

/// Takes out of a tree what no backup holds.
fn without_the_excluded(mut tree: Tree) -> Tree {
    const EMPTIED: [&str; 7] = [
        "pg_dynshmem/",
        "pg_notify/",
        "pg_replslot/",
        "pg_serial/",
        "pg_snapshots/",
        "pg_stat_tmp/",
        "pg_subtrans/",
    ];
    tree.retain(|name, item| {
        let is_cache = name
            .rsplit('/')
            .next()
            .unwrap()
            .starts_with("pg_internal.init");
        let emptied = EMPTIED.iter().any(|prefix| name.starts_with(prefix));
        !is_cache && !emptied && name != "postmaster.opts" && item.what != What::Other
    });
    untimed(tree)
}

/// Takes out when the control file was written: a restore does that anew, last of all.
fn untimed(mut tree: Tree) -> Tree {
    let control = tree.get_mut("global/pg_control").unwrap();
    if let What::File(_, _, time) = &mut control.what {
        *time = (0, 0);
    }
    tree
}

/// The tree with what links lead to in the place of the links.
fn with_links_followed(mut all: Tree, links: &[(&str, &Path)]) -> Tree {
    for (name, target) in links {
        all.remove(*name).unwrap();
        for (below, item) in tree(target) {
            let path = if below.is_empty() {
                (*name).to_owned()
            } else {
                format!("{name}/{below}")
            };
            all.insert(path, item);
        }
    }
    all
}

#[test]
fn a_stopped_cluster_is_restored_byte_by_byte() {
    let stanza = Stanza::of(Server::empty(system_major()));
    let source = &stanza.server;
    source.init(&["--data-checksums"]);
    source.start();
    source.execute("CREATE TABLE a AS SELECT n, md5(n::text) AS t FROM generate_series(1, 5000) n");
    source.execute("CREATE UNLOGGED TABLE u AS SELECT 1 AS n");
    source.stop(Stop::Fast);
    make_odd_files(source);
    let wal = link_out(source, "pg_wal", "wal.d");
    let hba = link_out(source, "pg_hba.conf", "hba.conf");
    set_owners(
        source,
        &[
            &source.data.join("odd"),
            &source.data.join("pg_wal"),
            &source.data.join("pg_hba.conf"),
        ],
    );
    let as_is = without_the_excluded(tree(&source.data));
    let plain = with_links_followed(as_is.clone(), &[("pg_wal", &wal), ("pg_hba.conf", &hba)]);

    pgcairn(&stanza, &["--no-online", "stanza-create"]).success();
    let backup = pgcairn(&stanza, &["--no-online", "--type=full", "backup"]);
    assert!(
        backup.stderr.contains("fifo") && backup.stderr.contains("dangling"),
        "{backup:?}"
    );
    backup.success();

    let copy = Server::empty(system_major());
    let target = format!("--pg1-path={}", copy.data.display());
    pgcairn(&stanza, &[&target, "restore"]).success();
    assert_equal(&untimed(tree(&copy.data)), &plain);
    assert_sparse(&copy.data.join("odd/sparse"));

    let linked = Server::empty(system_major());
    let (new_wal, new_hba) = (
        linked.folder().join("wal.d"),
        linked.folder().join("hba.conf"),
    );
    let target = format!("--pg1-path={}", linked.data.display());
    let links = [("pg_wal", &new_wal), ("pg_hba.conf", &new_hba)]
        .map(|(name, path)| format!("--link-map={name}={}", path.display()));
    pgcairn(&stanza, &[&target, &links[0], &links[1], "restore"]).success();
    assert_eq!(fs::read_link(linked.data.join("pg_wal")).unwrap(), new_wal);
    assert_eq!(
        fs::read_link(linked.data.join("pg_hba.conf")).unwrap(),
        new_hba
    );
    let followed = with_links_followed(
        untimed(tree(&linked.data)),
        &[("pg_wal", &new_wal), ("pg_hba.conf", &new_hba)],
    );
    assert_equal(&followed, &plain);
    // A clean start from a stopped cluster's backup keeps even unlogged tables.
    linked.start();
    assert_eq!(linked.value("SELECT n FROM u"), "1");
    assert_eq!(linked.value("SELECT count(*) FROM a"), "5000");
    assert_equal(&without_the_excluded(tree(&source.data)), &as_is);
}

/// Holes stay holes.
fn assert_sparse(path: &Path) {
    let metadata = fs::metadata(path).unwrap();
    assert!(
        metadata.blocks() * 512 < MIB as u64,
        "{} blocks",
        metadata.blocks()
    );
}

#[test]
fn a_directory_with_many_entries_is_restored_whole() {
    let stanza = Stanza::of(Server::empty(system_major()));
    let source = &stanza.server;
    source.init(&[]);
    let many = source.data.join("many");
    make_directory(&many, 0o755);
    for number in 0..MANY {
        let mut file = File::create(many.join(format!("{number:x}"))).unwrap();
        if number % 1000 == 0 {
            write!(file, "{number}").unwrap();
        }
    }
    let before = tree(&many);
    pgcairn(&stanza, &["--no-online", "stanza-create"]).success();
    pgcairn(&stanza, &["--no-online", "--type=full", "backup"]).success();
    let copy = Server::empty(system_major());
    let target = format!("--pg1-path={}", copy.data.display());
    pgcairn(&stanza, &[&target, "restore"]).success();
    assert_equal(&tree(&copy.data.join("many")), &before);
}
