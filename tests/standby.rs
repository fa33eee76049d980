//! Backups that are copied from a standby: they restore to what the primary held, wait for a standby that is behind, and
//! refuse what is no standby of the primary.

use std::fs;
use std::thread;
use std::time::Duration;

use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::{Finished, wait_until};
use pgcairn_tests::stanza::{Stanza, wait_until_older};

use crate::postgres::{assert_balanced, judge, marks};

/// A stanza with a backup, and its standby as second cluster.
fn with_standby(major: u32, streaming: bool, settings: &str) -> (Stanza, Server) {
    let stanza = Stanza::archiving(major, &["--data-checksums"], settings);
    stanza.backup("full", &[]);
    let standby = stanza.standby(streaming);
    stanza.add_second_cluster(&standby);
    (stanza, standby)
}

fn count(stanza: &Stanza) -> usize {
    stanza.info()["backup"].as_array().unwrap().len()
}

#[track_caller]
fn assert_refused(finished: &Finished, code: i32, says: &str) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    assert!(finished.stderr.contains(says), "{finished:?}");
}

#[test]
fn backups_from_a_standby_under_load_restore_to_what_the_primary_held() {
    let settings = "allow_in_place_tablespaces = on\nmax_wal_size = 64MB\n";
    let (stanza, standby) = with_standby(system_major(), true, settings);
    let source = &stanza.server;
    source.pgbench(&["--initialize", "--quiet", "--scale=3"]);
    source.execute(
        "CREATE TABLE marks (n int PRIMARY KEY); CREATE UNLOGGED TABLE unlogged (n int);
         INSERT INTO unlogged VALUES (1)",
    );
    source.execute("CREATE TABLESPACE inplace LOCATION ''");
    source.execute("CREATE TABLE inplace TABLESPACE inplace AS SELECT 1 AS n");
    source.make_file("data/base/at_the_primary", "");
    source.make_file("data/settings_of_the_primary", "");
    standby.make_file("data/base/at_the_standby", "");
    standby.make_file("data/settings_of_the_standby", "");
    let mut load = source.load(2);
    let mut backups = Vec::new();
    for (number, kind) in (1..).zip(["full", "incr"]) {
        source.execute(&format!("INSERT INTO marks VALUES ({number})"));
        let backup = stanza.backup(kind, &["--backup-standby=y"]);
        assert_eq!((backup.kind.as_str(), backup.bad_pages), (kind, 0));
        assert!(load.is_running(), "pgbench ended during the backup");
        backups.push(backup);
    }
    drop(load);
    source.execute("INSERT INTO marks VALUES (99)");
    let expected = source.hashes();
    stanza.archive_all();
    for (number, backup) in (1..).zip(&backups) {
        let server = Server::empty(stanza.server.major);
        let options = ["--type=immediate", "--target-action=promote"];
        stanza.restore(&server, &backup.label, &options);
        for (file, there) in [
            ("base/at_the_primary", false),
            ("base/at_the_standby", true),
            ("settings_of_the_primary", true),
            ("settings_of_the_standby", false),
        ] {
            assert_eq!(server.data.join(file).exists(), there, "{file}");
        }
        server.start();
        server.wait_for_promotion();
        let written: Vec<String> = (1..=number).map(|n: usize| n.to_string()).collect();
        assert_eq!(
            marks(&server),
            written,
            "{} is not of its moment",
            backup.label
        );
        assert_balanced(&server);
        judge(&server);
    }
    let server = Server::empty(stanza.server.major);
    stanza.restore(&server, &backups[1].label, &[]);
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), expected);
    assert_eq!(server.value("SELECT count(*) FROM unlogged"), "0");
    judge(&server);

    // What is as it was on the standby is not read again; the primary's files are others.
    stanza.backup("incr", &["--backup-standby=y"]);
    wait_until_older(&standby.data.join("base"), Duration::from_secs(3));
    stanza.backup("incr", &["--backup-standby=y"]);
    let unchanged = stanza.backup("incr", &["--backup-standby=y"]);
    assert!(unchanged.read * 10 < unchanged.size, "{unchanged:?}");
    let from_primary = stanza.backup("incr", &[]);
    assert_eq!(from_primary.read, from_primary.size);
}

#[test]
fn a_standby_that_the_archive_alone_feeds_is_backed_up_too() {
    let (stanza, standby) = with_standby(18, false, "");
    let source = &stanza.server;
    source
        .execute("CREATE TABLE a AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n");
    let backup = stanza.backup("full", &["--backup-standby=prefer"]);
    assert_eq!(
        standby.value("SELECT count(*) FROM a"),
        "20000",
        "replay was awaited"
    );
    let expected = source.hashes();
    stanza.archive_all();
    let server = Server::empty(18);
    stanza.restore(&server, &backup.label, &[]);
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), expected);
}

#[test]
fn a_standby_that_is_behind_is_waited_for_as_long_as_archive_timeout_says() {
    let (stanza, standby) = with_standby(system_major(), true, "");
    standby.execute("SELECT pg_wal_replay_pause()");
    let paused = "SELECT pg_get_wal_replay_pause_state()";
    wait_until("replay is paused", || {
        (standby.value(paused) == "paused").then_some(())
    });
    stanza.server.execute("CREATE TABLE a AS SELECT 1 AS n");
    let late = stanza.pgcairn(["--backup-standby=y", "--archive-timeout=1", "backup"]);
    assert_refused(&late, 82, "timeout before standby replay reached");
    assert_eq!(count(&stanza), 1, "nothing was committed");

    thread::scope(|scope| {
        let backup = scope.spawn(|| stanza.backup("full", &["--backup-standby=y"]));
        stanza.wait_for_ping();
        standby.execute("SELECT pg_wal_replay_resume()");
        let backup = backup.join().unwrap();
        let restored = Server::empty(stanza.server.major);
        stanza.restore(
            &restored,
            &backup.label,
            &["--type=immediate", "--target-action=promote"],
        );
        restored.start();
        restored.wait_for_promotion();
        assert_eq!(restored.value("SELECT n FROM a"), "1");
    });
}

#[test]
fn without_a_standby_one_that_is_asked_for_is_an_error_and_a_preferred_one_a_warning() {
    let stanza = Stanza::archiving(system_major(), &[], "");
    let backup = |option: &str| stanza.pgcairn([option, "backup"]);
    assert_refused(
        &backup("--backup-standby=y"),
        56,
        "unable to find standby cluster",
    );
    assert_refused(&backup("--backup-standby=always"), 32, "'prefer'");
    assert_refused(&backup("--pg3-port=5433"), 31, "pg3-path");
    let preferred = backup("--backup-standby=prefer");
    assert_refused(&preferred, 0, "using primary instead");

    let absent = Server::empty(system_major());
    stanza.add_second_cluster(&absent);
    assert_refused(&backup("--backup-standby"), 56, "unable to check pg2");
    assert_refused(&backup("--backup-standby=prefer"), 0, "unable to check pg2");
    assert_eq!(count(&stanza), 2);
    absent.init(&[]);
    absent.start();
    assert_refused(&backup("--no-backup-standby"), 56, "more than one primary");
    absent.stop(Stop::Fast);
    absent.make_file("data/standby.signal", "");
    absent.start();
    assert_refused(&backup("--backup-standby=y"), 58, "system id");
    let alone = [
        format!("--pg1-path={}", absent.data.display()),
        format!("--pg1-socket-path={}", absent.folder().display()),
        "backup".to_owned(),
    ];
    assert_refused(&stanza.pgcairn(alone), 56, "unable to find primary cluster");
    assert_eq!(count(&stanza), 2);
}

#[test]
fn a_standby_whose_history_left_the_primarys_is_refused_though_ids_and_timelines_are_equal() {
    let (stanza, standby) = with_standby(system_major(), false, "");
    // Without the signal it becomes a primary on the same timeline, as a copy of a machine does.
    standby.stop(Stop::Fast);
    let signal = standby.data.join("standby.signal");
    fs::remove_file(&signal).unwrap();
    standby.start();
    assert_eq!(standby.value("SELECT pg_is_in_recovery()"), "f");
    standby.pgbench(&["--initialize", "--quiet", "--scale=3"]);
    standby.stop(Stop::Fast);
    standby.make_file("data/standby.signal", "");
    standby.start();
    let refused = stanza.pgcairn(["--backup-standby=y", "--archive-timeout=1", "backup"]);
    assert_refused(&refused, 58, "not one of this primary");
    assert_eq!(count(&stanza), 1);
}

/// What `check` answers: its exit code, and name and status of each line that is about servers.
fn checked(stanza: &Stanza, options: &[String]) -> (Option<i32>, Vec<String>) {
    let Finished { code, stdout, .. } = stanza.pgcairn(options.iter().chain(&["check".to_owned()]));
    let about = ["data directory", "server", "primary", "WAL switch"];
    let line = |line: &str| {
        let (status, rest) = line.split_once(' ')?;
        let name = rest.trim_start().split(':').next()?;
        let wanted = about.iter().any(|about| name.starts_with(about));
        wanted.then(|| format!("{status} {name}"))
    };
    (code, stdout.lines().filter_map(line).collect())
}

#[test]
fn check_looks_at_all_clusters_and_lets_the_primary_prove_archiving_whatever_its_number() {
    let (stanza, standby) = with_standby(system_major(), true, "");
    let in_order = [
        "ok data directory",
        "ok data directory of pg2",
        "ok server",
        "ok server of pg2",
        "ok WAL switch",
    ];
    assert_eq!(
        checked(&stanza, &[]),
        (Some(0), in_order.map(str::to_owned).to_vec())
    );
    let place = |number: u32, server: &Server| {
        let (data, socket) = (server.data.display(), server.folder().display());
        [
            format!("--pg{number}-path={data}"),
            format!("--pg{number}-socket-path={socket}"),
        ]
    };
    let swapped = [place(1, &standby), place(2, &stanza.server)].concat();
    assert_eq!(
        checked(&stanza, &swapped),
        (Some(0), in_order.map(str::to_owned).to_vec())
    );
    let backup = ["--backup-standby=y".to_owned(), "backup".to_owned()];
    stanza.pgcairn(swapped.iter().chain(&backup)).success();
    standby.execute("SELECT pg_promote()");
    let (code, lines) = checked(&stanza, &[]);
    assert_eq!(code, Some(56));
    assert!(lines.contains(&"wrong primary".to_owned()), "{lines:?}");
}
