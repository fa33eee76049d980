//! What the commands refuse, by exit code, and that a refusal touches nothing.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what goes wrong fails the test that called them"
)]

use std::fs;
use std::path::PathBuf;

use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::Finished;
use pgcairn_tests::stanza::{STANZA, Stanza};
use pgcairn_tests::tree::{assert_equal, tree};

#[track_caller]
fn assert_code(finished: &Finished, code: i32, says: &str) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    assert!(
        finished.stderr.contains(says),
        "{says:?} is not in {finished:?}"
    );
}

fn archiving() -> Stanza {
    Stanza::archiving(system_major(), &["--data-checksums"], "")
}

#[test]
fn restore_refuses_a_running_a_full_and_a_foreign_directory_and_touches_nothing() {
    let stanza = archiving();
    stanza.server.execute("CREATE TABLE a AS SELECT 1 AS n");
    stanza.backup("full", &[]);
    for options in [&[][..], &["--delta"], &["--force"], &["--delta", "--force"]] {
        let refused = stanza.pgcairn(options.iter().chain(&["restore"]));
        assert_code(&refused, 38, "running");
    }
    assert_eq!(stanza.server.value("SELECT n FROM a"), "1");

    stanza.server.stop(Stop::Fast);
    let before = tree(&stanza.server.data);
    assert_code(&stanza.pgcairn(["restore"]), 40, "not empty");
    assert_equal(&tree(&stanza.server.data), &before);
    stanza.server.start();
    assert_eq!(stanza.server.value("SELECT n FROM a"), "1");

    let foreign = Server::empty(system_major());
    foreign.init(&[]);
    let before = tree(&foreign.data);
    let target = format!("--pg1-path={}", foreign.data.display());
    assert_code(
        &stanza.pgcairn([target.as_str(), "--delta", "restore"]),
        40,
        "system id",
    );
    assert_equal(&tree(&foreign.data), &before);

    let folder = foreign.make_folder("letters");
    foreign.make_file("letters/precious", "not a cluster");
    let before = tree(&folder);
    let target = format!("--pg1-path={}", folder.display());
    for options in [&[][..], &["--delta"], &["--force"]] {
        let words = options.iter().copied().chain([target.as_str(), "restore"]);
        assert_code(&stanza.pgcairn(words), 40, "");
    }
    assert_equal(&tree(&folder), &before);
}

#[test]
fn a_refused_tablespace_leaves_the_cluster_that_is_there_whole() {
    let stanza = archiving();
    let place = stanza.server.make_folder("space");
    stanza.server.execute(&format!(
        "CREATE TABLESPACE linked LOCATION '{}'",
        place.display()
    ));
    stanza
        .server
        .execute("CREATE TABLE a TABLESPACE linked AS SELECT 1 AS n");
    stanza.backup("full", &[]);
    stanza.server.stop(Stop::Fast);
    let other = Server::empty(system_major());
    let elsewhere = format!(
        "--tablespace-map=linked={}",
        other.folder().join("space").display()
    );
    stanza.restore(&other, "latest", &[&elsewhere]);
    let before = tree(&other.data);
    let target = format!("--pg1-path={}", other.data.display());
    for options in [
        &["--delta"][..],
        &["--delta", "--tablespace-map=unknown=/x"],
    ] {
        let words = options.iter().copied().chain([target.as_str(), "restore"]);
        assert_code(&stanza.pgcairn(words), 76, "tablespace");
        assert_equal(&tree(&other.data), &before);
    }
    stanza.server.start();
    assert_eq!(stanza.server.value("SELECT n FROM a"), "1");
}

#[test]
fn backup_refuses_a_server_that_does_not_archive_to_it() {
    let stanza = Stanza::of(Server::empty(system_major()));
    stanza.server.init(&[]);
    stanza.server.start();
    stanza.pgcairn(["stanza-create"]).success();
    assert_code(&stanza.pgcairn(["backup"]), 87, "archive_mode");
    stanza
        .server
        .configure("archive_mode = on\narchive_command = '/bin/true'");
    stanza.server.restart();
    assert_code(&stanza.pgcairn(["backup"]), 68, "archive_command");
    // A command that looks right but archives elsewhere is found out by waiting for the WAL.
    let command = format!("/bin/true {}", stanza.archive_command());
    stanza
        .server
        .configure(&format!("archive_command = '{command}'"));
    stanza.server.restart();
    assert_code(&stanza.pgcairn(["--archive-timeout=2", "backup"]), 82, "");
    stanza.server.stop(Stop::Fast);
    stanza.server.start();
    assert_code(&stanza.pgcairn(["--no-online", "backup"]), 38, "running");
    assert_eq!(stanza.info()["backup"].as_array().unwrap().len(), 0);
}

#[test]
fn a_foreign_cluster_is_refused_by_stanza_backup_and_archive() {
    let stanza = archiving();
    let foreign = Server::empty(system_major());
    foreign.init(&[]);
    foreign.configure("archive_mode = on\narchive_command = 'pgcairn'");
    foreign.start();
    let options = [
        format!("--pg1-path={}", foreign.data.display()),
        format!("--pg1-socket-path={}", foreign.folder().display()),
    ];
    let run = |word: &str| stanza.pgcairn(options.iter().map(String::as_str).chain([word]));
    let before = tree(&stanza.repository);
    assert_code(&run("backup"), 51, "system");
    assert_code(&run("stanza-create"), 51, "system");
    let segment = foreign.value("SELECT pg_walfile_name(pg_switch_wal())");
    let path = foreign.data.join("pg_wal").join(&segment);
    let path = path.to_str().unwrap();
    // By the foreign server's own archive command, and as a file that strayed into the right server's folder.
    let push = |words: &[&str]| stanza.pgcairn(words.iter().copied().chain(["archive-push", path]));
    assert_code(&push(&[options[0].as_str()]), 44, "system");
    assert_code(&push(&[]), 44, "system id");
    assert_equal(&tree(&stanza.repository), &before);
}

/// Copies an archived segment of the stanza's server out of its `pg_wal`.
fn copy_of_segment(stanza: &Stanza) -> (String, PathBuf) {
    let segment = stanza
        .server
        .value("SELECT pg_walfile_name(pg_current_wal_lsn())");
    stanza
        .server
        .execute("CREATE TABLE IF NOT EXISTS filler AS SELECT 1 AS n");
    stanza.archive_all();
    let bytes = fs::read(stanza.server.data.join("pg_wal").join(&segment)).unwrap();
    stanza.server.make_folder("copies");
    let path = stanza.server.make_file(&format!("copies/{segment}"), bytes);
    (segment, path)
}

#[test]
fn a_segment_pushed_twice_is_welcome_with_the_same_bytes_and_refused_with_others() {
    let stanza = archiving();
    let (segment, path) = copy_of_segment(&stanza);
    let push = || stanza.pgcairn(["archive-push", path.to_str().unwrap()]);
    let again = push();
    assert_code(&again, 0, "already exists");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    stanza
        .server
        .make_file(&format!("copies/{segment}"), &bytes);
    assert_code(&push(), 45, &segment);
    let fetched = stanza.server.folder().join("fetched");
    stanza
        .pgcairn(["archive-get", &segment, fetched.to_str().unwrap()])
        .success();
    bytes[last] ^= 1;
    assert!(
        fs::read(&fetched).unwrap() == bytes,
        "the archive has what was pushed first"
    );
}

#[test]
fn archive_get_tells_the_end_of_the_wal_from_what_it_cannot_know() {
    let stanza = archiving();
    let (segment, path) = copy_of_segment(&stanza);
    let target = stanza.server.folder().join("fetched");
    let target = target.to_str().unwrap();
    let get = |words: &[&str], name: &str| {
        stanza.pgcairn(words.iter().copied().chain(["archive-get", name, target]))
    };
    assert_code(&get(&[], &segment), 0, "");
    assert!(fs::read(target).unwrap() == fs::read(&path).unwrap());
    fs::remove_file(target).unwrap();
    for absent in [
        "0000000100000000000000F0",
        "00000002.history",
        "000000020000000000000001",
    ] {
        assert_code(&get(&[], absent), 1, "");
    }
    let cannot_tell: [(&[&str], &str); 4] = [
        (&["--repo1-path=/nonexistent"], &segment),
        (&["--pg1-path=/nonexistent"], &segment),
        (&["--no-such-option"], &segment),
        (&[], "not-a-wal-file"),
    ];
    for (words, name) in cannot_tell {
        assert_code(&get(words, name), 126, "");
    }
    // A hole: later segments are there.
    let folder = stanza
        .repository
        .join(format!("wal/{STANZA}/{}-1", stanza.server.major));
    fs::remove_file(folder.join(&segment[..16]).join(&segment)).unwrap();
    stanza.server.execute("INSERT INTO filler VALUES (2)");
    stanza.archive_all();
    assert_code(&get(&["--archive-timeout=1"], &segment), 126, &segment);
    assert!(!PathBuf::from(target).exists());
}
