//! Points in time: every kind of recovery target is hit exactly, on every timeline, or refused before anything is written.
//!
//! Promises: a marker table tells which transactions are there; marks are committed one after the other, beside a load
//! that commits all the time. Targets are chosen by a seeded generator, so a failure can be repeated.

use std::fs;
use std::path::PathBuf;

use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::{Finished, wait_until};
use pgcairn_tests::stanza::{STANZA, Stanza};

const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// A committed row of the marker table, and all the names by which PostgreSQL can be told to stop right behind it.
#[derive(Debug, Clone)]
struct Mark {
    n: usize,
    time: String,
    xid: String,
    lsn: String,
    name: String,
}

/// Inserts the next marks.
fn make_marks(server: &Server, marks: &mut Vec<Mark>, count: usize) {
    let mut session = server.connect("postgres");
    for n in marks.len() + 1..=marks.len() + count {
        let mut one = |sql: &str| -> String { session.query_one(sql, &[]).unwrap().get(0) };
        let xid = one("INSERT INTO marks DEFAULT VALUES RETURNING pg_current_xact_id()::text");
        let lsn = one("SELECT pg_current_wal_insert_lsn()::text");
        let time = one(
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'",
        );
        let name = format!("mark {n}");
        one(&format!("SELECT pg_create_restore_point('{name}')::text"));
        marks.push(Mark {
            n,
            time,
            xid,
            lsn,
            name,
        });
    }
}

fn marks_of(server: &Server) -> Vec<String> {
    let rows = server.rows("postgres", "SELECT n FROM marks ORDER BY n");
    rows.into_iter().flatten().collect()
}

fn numbers(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|n| n.to_string()).collect()
}

fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).unwrap()
}

/// A cluster with an empty marker table.
fn marked(major: u32) -> Stanza {
    let stanza = Stanza::archiving(major, &[], "");
    // Numbers are not cached ahead in the WAL: a promoted server goes on where the marks end.
    stanza
        .server
        .execute("CREATE TABLE marks (n int PRIMARY KEY DEFAULT 0, at timestamptz DEFAULT clock_timestamp());
                  CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS
                  'BEGIN NEW.n := (SELECT coalesce(max(n), 0) + 1 FROM marks); RETURN NEW; END';
                  CREATE TRIGGER number BEFORE INSERT ON marks FOR EACH ROW EXECUTE FUNCTION number()");
    stanza
}

/// Restores to a new place, recovers, and answers the marks that are there.
fn recovered(stanza: &Stanza, options: &[&str]) -> Vec<String> {
    let server = Server::empty(stanza.server.major);
    let options: Vec<&str> = options
        .iter()
        .copied()
        .chain(["--target-action=promote"])
        .collect();
    stanza.restore(&server, "latest", &options);
    server.start();
    server.wait_for_promotion();
    marks_of(&server)
}

fn assert_exact(stanza: &Stanza, mark: &Mark, state: &mut u64, also: &[&str]) {
    let Mark {
        n,
        time,
        xid,
        lsn,
        name,
    } = mark;
    let (kind, target, exclusive) = match next(state) % 5 {
        0 => ("time", time, false),
        1 => ("xid", xid, false),
        2 => ("xid", xid, true),
        3 => ("lsn", lsn, false),
        _ => ("name", name, false),
    };
    let (kind_option, target_option) = (format!("--type={kind}"), format!("--target={target}"));
    let mut options = vec![kind_option.as_str(), target_option.as_str()];
    options.extend(exclusive.then_some("--target-exclusive"));
    options.extend(also);
    let last = n - usize::from(exclusive);
    assert_eq!(
        recovered(stanza, &options),
        numbers(1..=last),
        "{options:?}"
    );
}

#[test]
fn random_targets_on_two_timelines_bring_exactly_the_right_transactions() {
    let stanza = marked(system_major());
    let server = &stanza.server;
    server.pgbench(&["--initialize", "--quiet", "--scale=1"]);
    let mut load = server.load(1);
    let mut state = SEED;
    let mut marks = Vec::new();
    make_marks(server, &mut marks, 3);
    let full = stanza.backup("full", &[]);
    make_marks(server, &mut marks, 12);
    assert!(load.is_running());
    drop(load);
    stanza.archive_all();
    for _ in 0..3 {
        let mark = &marks[3 + next(&mut state) % 11];
        assert_exact(&stanza, mark, &mut state, &[]);
    }
    // The cluster itself goes back, is promoted, and goes on along a second timeline.
    server.stop(Stop::Fast);
    let left = &marks[5 + next(&mut state) % 4].clone();
    let name = format!("--target={}", left.name);
    let words = [
        "--delta",
        "--type=name",
        &name,
        "--target-action=promote",
        "restore",
    ];
    stanza.pgcairn(words).success();
    server.start();
    server.wait_for_promotion();
    assert_eq!(marks_of(server), numbers(1..=left.n));
    let first_timeline = marks.clone();
    marks.truncate(left.n);
    let load = server.load(1);
    make_marks(server, &mut marks, 3);
    let later = stanza.backup("incr", &[]);
    make_marks(server, &mut marks, 4);
    drop(load);
    stanza.archive_all();
    assert_eq!(
        server.value("SELECT timeline_id FROM pg_control_checkpoint()"),
        "2"
    );
    // Across the switch from the first backup, behind it from the second, and to what the first timeline alone has.
    let from_full = format!("--set={}", full.label);
    let across = &marks[left.n + next(&mut state) % 6];
    let behind = &marks[left.n + 3 + next(&mut state) % 3];
    assert_exact_from(&stanza, &from_full, across, &mut state);
    assert_exact(&stanza, behind, &mut state, &[]);
    let abandoned = first_timeline.last().unwrap();
    let xid = format!("--target={}", abandoned.xid);
    let words = [
        "--type=xid",
        &xid,
        "--target-timeline=1",
        "--target-exclusive",
    ];
    assert_eq!(recovered(&stanza, &words), numbers(1..abandoned.n));
    assert_eq!(recovered_to_the_end(&stanza), numbers(1..=marks.len()));
    assert_ne!(later.label, full.label);
}

fn assert_exact_from(stanza: &Stanza, set: &str, mark: &Mark, state: &mut u64) {
    let server = Server::empty(stanza.server.major);
    let (kind, target) = if next(state).is_multiple_of(2) {
        ("--type=lsn", &mark.lsn)
    } else {
        ("--type=time", &mark.time)
    };
    let target = format!("--target={target}");
    let set = set.trim_start_matches("--set=");
    stanza.restore(&server, set, &[kind, &target, "--target-action=promote"]);
    server.start();
    server.wait_for_promotion();
    assert_eq!(marks_of(&server), numbers(1..=mark.n), "{kind} {target}");
}

fn recovered_to_the_end(stanza: &Stanza) -> Vec<String> {
    let server = Server::empty(stanza.server.major);
    stanza.restore(&server, "latest", &[]);
    server.start();
    server.wait_for_promotion();
    marks_of(&server)
}

#[test]
fn every_version_backs_up_archives_and_recovers_to_a_point() {
    for major in [13, 14, 16, 17, 18] {
        let stanza = marked(major);
        let mut marks = Vec::new();
        make_marks(&stanza.server, &mut marks, 1);
        stanza.backup("full", &[]);
        make_marks(&stanza.server, &mut marks, 1);
        stanza.backup("incr", &[]);
        make_marks(&stanza.server, &mut marks, 3);
        stanza.archive_all();
        let target = format!("--target={}", marks[3].lsn);
        assert_eq!(
            recovered(&stanza, &["--type=lsn", &target]),
            numbers(1..=4),
            "PostgreSQL {major}"
        );
        assert_eq!(
            recovered_to_the_end(&stanza),
            numbers(1..=5),
            "PostgreSQL {major}"
        );
    }
}

/// A restore that must fail with this number, naming these things, and write nothing.
#[track_caller]
fn assert_refused(stanza: &Stanza, options: &[&str], code: i32, says: &[&str]) {
    let target = stanza.server.folder().join("refused");
    let pgdata = format!("--pg1-path={}", target.display());
    let words: Vec<&str> = options
        .iter()
        .copied()
        .chain([pgdata.as_str(), "restore"])
        .collect();
    fs::create_dir_all(&target).unwrap();
    stanza.server.give(&target);
    let Finished {
        code: found,
        stderr,
        ..
    } = stanza.pgcairn(words);
    assert_eq!(found, Some(code), "{options:?}: {stderr}");
    for text in says {
        assert!(
            stderr.contains(text),
            "{options:?}: {text:?} is not in {stderr}"
        );
    }
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{options:?}");
}

/// Where the archive keeps a segment.
fn segment_path(stanza: &Stanza, segment: &str) -> PathBuf {
    let epoch = format!("wal/{STANZA}/{}-1", stanza.server.major);
    stanza
        .repository
        .join(epoch)
        .join(&segment[..16])
        .join(segment)
}

#[test]
fn a_target_that_no_backup_reaches_is_refused_before_anything_is_written() {
    let stanza = marked(system_major());
    let server = &stanza.server;
    let mut marks = Vec::new();
    make_marks(server, &mut marks, 1);
    let backup = stanza.backup("full", &[]);
    make_marks(server, &mut marks, 1);
    stanza.archive_all();
    let early = format!("--target={}", marks[0].time);
    assert_refused(
        &stanza,
        &["--type=time", &early],
        75,
        &["no backup ended before it", "reachable: from"],
    );
    let early = format!("--target={}", marks[0].lsn);
    assert_refused(
        &stanza,
        &["--type=lsn", &early],
        75,
        &["no backup ended before it"],
    );
    let set = format!("--set={}", backup.label);
    assert_refused(
        &stanza,
        &["--type=lsn", &early, &set],
        75,
        &["after it", "reachable: from"],
    );
    let beyond = ["--type=lsn", "--target=F/0"];
    assert_refused(
        &stanza,
        &beyond,
        75,
        &["the archived WAL ends at", "reachable: from"],
    );
    let beyond = ["--type=time", "--target=2999-01-01 00:00:00+00"];
    assert_refused(
        &stanza,
        &beyond,
        75,
        &["the archived WAL ends at", "to about"],
    );
    assert_refused(
        &stanza,
        &["--target-timeline=7"],
        75,
        &["no 00000007.history"],
    );
    assert_refused(
        &stanza,
        &["--target-timeline=newest"],
        32,
        &["target-timeline"],
    );
    assert_refused(
        &stanza,
        &["--type=time", "--target=yesterday"],
        29,
        &["time format"],
    );
}

#[test]
fn a_hole_in_the_wal_is_named_and_ends_no_recovery_silently() {
    let stanza = marked(system_major());
    let server = &stanza.server;
    let mut marks = Vec::new();
    make_marks(server, &mut marks, 1);
    stanza.backup("full", &[]);
    make_marks(server, &mut marks, 1);
    stanza.archive_all();
    let lost = server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    make_marks(server, &mut marks, 1);
    stanza.archive_all();
    make_marks(server, &mut marks, 1);
    stanza.archive_all();
    fs::remove_file(segment_path(&stanza, &lost)).unwrap();
    assert_refused(
        &stanza,
        &[],
        75,
        &[&lost, "is missing from the archive", "--type=immediate"],
    );
    let behind = format!("--target={}", marks[3].lsn);
    assert_refused(&stanza, &["--type=lsn", &behind], 75, &[&lost]);
    let info = stanza.pgcairn(["info"]).success();
    assert!(
        info.contains(&format!("error: 1 missing, {lost}/{lost}")),
        "{info}"
    );
    let missing = &stanza.info()["archive"][0]["timeline"][0]["missing"][0];
    assert_eq!(missing["start"], lost.as_str());
    let before = format!("--target={}", marks[1].lsn);
    assert_eq!(recovered(&stanza, &["--type=lsn", &before]), numbers(1..=2));
    assert_eq!(recovered(&stanza, &["--type=immediate"]), numbers(1..=1));
    // A transaction behind the hole: where it is, nobody knew; recovery stops, and does not promote.
    let place = Server::empty(server.major);
    let xid = format!("--target={}", marks[3].xid);
    let options = ["--type=xid", &xid, "--target-action=promote"];
    stanza.restore(&place, "latest", &options);
    // It may have been consistent, and so have started, before it came to the hole.
    drop(place.try_start());
    wait_until("recovery has stopped", || {
        (!place.is_running()).then_some(())
    });
    let log = place.log();
    assert!(log.contains(&lost), "{log}");
    assert!(!log.contains("selected new timeline"), "{log}");
}

#[test]
fn the_newest_timeline_is_not_followed_where_it_left_the_newest_backup_behind() {
    let stanza = marked(system_major());
    let server = &stanza.server;
    let mut marks = Vec::new();
    make_marks(server, &mut marks, 1);
    let first = stanza.backup("full", &[]);
    make_marks(server, &mut marks, 2);
    stanza.archive_all();
    stanza.backup("incr", &[]);
    make_marks(server, &mut marks, 1);
    stanza.archive_all();
    // A clone is promoted by accident before the second backup, and its history file reaches the archive.
    let clone = Server::empty(server.major);
    let target = format!("--target={}", marks[1].lsn);
    stanza.restore(
        &clone,
        &first.label,
        &["--type=lsn", &target, "--target-action=promote"],
    );
    clone.start();
    clone.wait_for_promotion();
    let history = clone.data.join("pg_wal/00000002.history");
    let copy = server.data.join("pg_wal/00000002.history");
    fs::copy(history, &copy).unwrap();
    server.give(&copy);
    stanza
        .pgcairn(["archive-push", copy.to_str().unwrap()])
        .success();
    assert_refused(
        &stanza,
        &[],
        75,
        &[
            "timeline 2 branched off at",
            "--target-timeline=current",
            "--set",
        ],
    );
    let own = [
        "--type=name",
        "--target=mark 4",
        "--target-timeline=current",
    ];
    assert_eq!(recovered(&stanza, &own), numbers(1..=4));
    let branch = ["--type=name", "--target=mark 2", "--target-timeline=2"];
    assert_eq!(recovered(&stanza, &branch), numbers(1..=2));
}

#[test]
fn a_store_that_is_away_during_recovery_promotes_nothing_and_a_standby_lives_through_it() {
    let stanza = marked(system_major());
    let server = &stanza.server;
    let mut marks = Vec::new();
    make_marks(server, &mut marks, 1);
    stanza.backup("full", &[]);
    make_marks(server, &mut marks, 1);
    stanza.archive_all();
    let (alone, standby) = (Server::empty(server.major), Server::empty(server.major));
    stanza.restore(&alone, "latest", &[]);
    stanza.restore(&standby, "latest", &["--type=standby"]);
    standby.start();
    wait_until("the standby has both marks", || {
        (marks_of(&standby).len() == 2).then_some(())
    });
    let away = server.folder().join("away");
    fs::rename(&stanza.repository, &away).unwrap();
    assert_ne!(alone.try_start().code, Some(0));
    assert!(!alone.is_running());
    assert!(
        alone.log().contains("could not restore file"),
        "{}",
        alone.log()
    );
    make_marks(server, &mut marks, 1);
    server.execute("SELECT pg_switch_wal()");
    let failures = "SELECT failed_count > 0 FROM pg_stat_archiver";
    wait_until("archiving has failed", || {
        (server.value(failures) == "t").then_some(())
    });
    let asked = standby.log().len();
    wait_until("the standby has asked in vain", || {
        (standby.log().len() > asked).then_some(())
    });
    fs::rename(&away, &stanza.repository).unwrap();
    stanza.archive_all();
    wait_until("the standby has caught up", || {
        (marks_of(&standby).len() == 3).then_some(())
    });
    assert_eq!(standby.value("SELECT pg_is_in_recovery()"), "t");
    alone.start();
    alone.wait_for_promotion();
    assert_eq!(marks_of(&alone), numbers(1..=3));
}
