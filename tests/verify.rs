//! `verify` as users run it, on what a live server has stored.
//!
//! Promises: what it says of backups and WAL is what is there; its exit code tells damage from a hole that nobody needs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgcairn_tests::damage::flip;
use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::wait_until;
use pgcairn_tests::stanza::{STANZA, Stanza};
use serde_json::Value;

/// Ends the current WAL segment and waits until it is in the archive; answers its name.
fn archive_one(server: &Server) -> String {
    server.execute("SELECT pg_create_restore_point('verify')");
    let segment = server.value("SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("the segment is archived", || {
        let archived = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
        (server.value(archived) >= segment).then_some(())
    });
    segment
}

/// The file of a WAL segment, or of a history, in the repository.
fn in_archive(stanza: &Stanza, name: &str) -> PathBuf {
    let epoch = stanza
        .repository
        .join("wal")
        .join(STANZA)
        .join(format!("{}-1", stanza.server.major));
    match name.get(..16).filter(|_| name.len() == 24) {
        Some(folder) => epoch.join(folder).join(name),
        None => epoch.join(name),
    }
}

/// What stands in the way of a file that is away.
fn away(path: &Path) -> PathBuf {
    path.with_extension("away")
}

#[test]
fn holes_are_shown_damage_is_an_error_and_a_backup_without_its_wal_is_named() {
    let stanza = Stanza::archiving(system_major(), &[], "");
    let server = &stanza.server;
    let full = stanza.backup("full", &[]);
    let between: Vec<String> = (0..3).map(|_| archive_one(server)).collect();
    let incr = stanza.backup("incr", &[]);
    let last = archive_one(server);
    let said = stanza.pgcairn(["verify"]).success();
    for label in [&full.label, &incr.label] {
        assert!(
            said.contains(&format!("backup: {label}: can be restored")),
            "{said}"
        );
    }
    assert!(
        said.contains("0 problem(s)") && said.contains(&format!("/{last}\n")),
        "{said}"
    );
    let all = Stanza::pgcairn(&stanza, ["--output=json", "verify"]).success();
    let all: Value = serde_json::from_str(&all).expect("it is JSON");
    assert_eq!(all[0]["status"], "ok");
    let timeline = &all[0]["stanza"][0]["archive"][0]["timeline"][0];
    assert_eq!(timeline["range"][0]["max"], last.as_str());
    assert_eq!(timeline["missing"], Value::Array(Vec::new()));

    let hole = in_archive(&stanza, &between[1]);
    fs::rename(&hole, away(&hole)).expect("it can go away");
    let said = stanza.pgcairn(["verify"]).success();
    let warning = format!("warning: 1 missing or damaged, {0}/{0}", between[1]);
    assert!(said.contains(&warning), "{said}");
    fs::rename(away(&hole), &hole).expect("it can come back");

    flip(&hole, 100);
    let found = stanza.pgcairn(["verify"]);
    assert_eq!(found.code, Some(26), "{found:?}");
    assert!(found.stdout.contains(&warning), "{found:?}");
    assert!(found.stderr.contains(&between[1]), "{found:?}");
    assert!(
        found
            .stderr
            .contains("1 problem(s) were found; all 2 backups can be restored"),
        "{found:?}"
    );
    flip(&hole, 100);

    let info = stanza.info();
    let stop = info["backup"][0]["archive"]["stop"]
        .as_str()
        .expect("a segment");
    let last_needed = in_archive(&stanza, stop);
    fs::rename(&last_needed, away(&last_needed)).expect("it can go away");
    let found = stanza.pgcairn(["verify"]);
    assert_eq!(found.code, Some(26), "{found:?}");
    let told = format!(
        "backup: {}: cannot be restored\n        WAL segment {stop}, without which it is not consistent, is missing",
        full.label
    );
    assert!(found.stdout.contains(&told), "{found:?}");
    assert!(
        found
            .stdout
            .contains(&format!("backup: {}: can be restored", incr.label)),
        "{found:?}"
    );
    let of = |label: &str| stanza.pgcairn([&format!("--set={label}"), "verify"]).code;
    assert_eq!((of(&full.label), of(&incr.label)), (Some(26), Some(0)));
    assert_eq!(of("20200101-000000F"), Some(75));
}

#[test]
fn each_timeline_is_shown_and_a_lost_history_is_found() {
    let stanza = Stanza::archiving(system_major(), &[], "");
    let server = &stanza.server;
    stanza.backup("full", &[]);
    archive_one(server);
    server.stop(Stop::Fast);
    stanza.pgcairn(["--delta", "restore"]).success();
    server.start();
    server.wait_for_promotion();
    let second = archive_one(server);
    assert!(second.starts_with("00000002"), "{second}");
    let said = stanza.pgcairn(["verify"]).success();
    assert!(
        said.contains("wal timeline 1: ") && said.contains("wal timeline 2: "),
        "{said}"
    );
    assert!(!said.contains("warning"), "{said}");
    archive_one(server);
    let begin = in_archive(&stanza, &second);
    fs::rename(&begin, away(&begin)).expect("it can go away");
    let said = stanza.pgcairn(["verify"]).success();
    let warning = format!("warning: 1 missing or damaged, {second}/{second}");
    assert!(said.contains(&warning), "{said}");
    fs::rename(away(&begin), &begin).expect("it can come back");
    fs::remove_file(in_archive(&stanza, "00000002.history")).expect("it was archived");
    let found = stanza.pgcairn(["verify"]);
    assert_eq!(found.code, Some(26), "{found:?}");
    assert!(found.stderr.contains("00000002.history"), "{found:?}");
}

#[test]
fn after_an_upgrade_that_was_taken_back_older_backups_restore_along_both_archives() {
    let stanza = Stanza::archiving(system_major(), &[], "");
    let server = &stanza.server;
    let full = stanza.backup("full", &[]);
    server.execute("CREATE TABLE marks AS SELECT 1 AS n");
    archive_one(server);
    let upgraded = Server::empty(system_major());
    upgraded.init(&[]);
    for cluster in [&upgraded, server] {
        let data = format!("--pg1-path={}", cluster.data.display());
        let upgrade = stanza.pgcairn([data.as_str(), "--no-online", "stanza-upgrade"]);
        assert_eq!(upgrade.code, Some(0), "{upgrade:?}");
    }
    server.execute("INSERT INTO marks VALUES (2)");
    archive_one(server);
    server.execute("INSERT INTO marks VALUES (3)");
    let last = archive_one(server);
    let said = stanza.pgcairn(["verify"]).success();
    let third = format!("wal archive ({}-3)", server.major);
    assert!(said.contains(&third) && said.contains(&last), "{said}");
    let alone = format!("--set={}", full.label);
    assert!(
        stanza
            .pgcairn([&alone, "verify"])
            .success()
            .contains("can be restored")
    );
    let recovers = || {
        let restored = Server::empty(system_major());
        stanza.restore(&restored, &full.label, &[]);
        restored.start();
        restored.wait_for_promotion();
        assert_eq!(restored.value("SELECT sum(n) FROM marks"), "6");
    };
    recovers();
    let spool = server.make_folder("spool");
    let ahead = format!("archive-async=y\nspool-path={}", spool.display());
    stanza.configure(&format!("[{STANZA}:archive-get]\n{ahead}"));
    recovers();
}

#[test]
fn who_may_only_read_can_verify_and_restore() {
    let stanza = Stanza::archiving(system_major(), &[], "");
    let full = stanza.backup("full", &[]);
    stanza.server.stop(Stop::Fast);
    let writable = |mode: u32| {
        let mut folders = vec![stanza.repository.clone()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).expect("it can be listed");
            let below = entries.map(|entry| entry.expect("it can be listed").path());
            folders.extend(below.filter(|path| path.is_dir()));
            fs::set_permissions(&folder, Permissions::from_mode(mode)).expect("it is ours");
        }
    };
    writable(0o555);
    let verified = stanza.pgcairn(["verify"]);
    let target = Server::empty(system_major());
    let at_once = ["--type=immediate", "--target-action=promote"];
    stanza.restore(&target, &full.label, &at_once);
    let refused = stanza.pgcairn(["--no-online", "backup"]);
    writable(0o755);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    assert!(
        verified.stderr.contains("may not be written to"),
        "{verified:?}"
    );
    target.start();
    target.wait_for_promotion();
    assert_ne!(
        refused.code,
        Some(0),
        "a backup wrote where it may not write: {refused:?}"
    );
}
