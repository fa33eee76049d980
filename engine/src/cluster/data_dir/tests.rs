//! Walks over data directories that are made of names alone.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const VERSION_DIRECTORY: &str = "PG_15_202209061";

fn options() -> WalkOptions {
    WalkOptions {
        version: 15,
        catalog_version: 202_209_061,
        segment_blocks: 131_072,
        online: true,
        exclude: Vec::new(),
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
    let left_out = [
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
    let kept = [
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
    tree(dir.path(), &left_out);
    tree(dir.path(), &kept);
    let files = |all: Vec<Source>| {
        let files: Vec<Source> = all
            .into_iter()
            .filter(|source| source.kind == SourceKind::File)
            .collect();
        paths(&files)
    };
    let (sources, _) = walked(dir.path(), &options());
    let directories = paths(&sources);
    let expected: Vec<&str> = kept
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
fn pipes_and_sockets_are_left_out_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &["PG_VERSION"]);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
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
    let name = std::ffi::OsStr::from_bytes(b"log\xff\n");
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
