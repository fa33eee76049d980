//! `check`, `start`, `stop`, and the ways in which a stanza changes.

use std::fs;

use pgcairn_engine::storage::Storage;
use pgcairn_engine::storage::local::LocalStorage;
use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::Finished;
use pgcairn_tests::stanza::{STANZA, Stanza};
use serde_json::Value;

fn archiving() -> Stanza {
    Stanza::archiving(system_major(), &[], "")
}

/// What `check` answers: its exit code, and name, status and message of each line.
fn check(stanza: &Stanza, options: &[&str]) -> (Option<i32>, Vec<[String; 3]>) {
    let words = options.iter().copied().chain(["--output=json", "check"]);
    let Finished { code, stdout, .. } = stanza.pgcairn(words);
    let items: Vec<Value> = serde_json::from_str(&stdout).expect("check answers JSON");
    let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    let line = |item: &Value| ["name", "status", "message"].map(|name| text(item, name));
    (code, items.iter().map(line).collect())
}

fn named<'a>(lines: &'a [[String; 3]], name: &str) -> &'a [String; 3] {
    lines.iter().find(|line| line[0] == name).unwrap()
}

#[test]
fn check_says_that_all_is_in_order_and_a_segment_arrives() {
    let stanza = archiving();
    let (code, lines) = check(&stanza, &[]);
    assert!(
        lines
            .iter()
            .all(|[name, status, _]| status == "ok" || name == "spool"),
        "{lines:?}"
    );
    assert_eq!(code, Some(0));
    let names: Vec<&str> = lines.iter().map(|line| line[0].as_str()).collect();
    assert_eq!(
        names,
        [
            "data directory",
            "spool",
            "storage",
            "permissions",
            "clock",
            "repository",
            "stanza",
            "archived WAL",
            "server",
            "archive settings",
            "WAL switch"
        ]
    );
    assert!(
        named(&lines, "WAL switch")[2].ends_with("arrived"),
        "{lines:?}"
    );
    let text = stanza.pgcairn(["check"]).success();
    assert!(
        text.contains("ok      permissions: put, get, list and delete work"),
        "{text}"
    );
    let storage = LocalStorage::open(&stanza.repository).unwrap();
    assert_eq!(storage.list("probe/", None, 1).unwrap(), []);
}

#[test]
fn check_names_everything_that_is_wrong_and_what_to_do() {
    let stanza = archiving();
    let (code, lines) = check(&stanza, &["--repo1-path=/nonexistent"]);
    assert_eq!(code, Some(103));
    assert_eq!(named(&lines, "storage")[1], "wrong");
    assert_eq!(named(&lines, "permissions")[1], "skipped");
    assert_eq!(
        named(&lines, "server")[1],
        "ok",
        "the server is asked all the same"
    );
    let (code, lines) = check(&stanza, &["--pg1-port=1"]);
    assert_eq!(
        (code, named(&lines, "server")[1].as_str()),
        (Some(56), "wrong")
    );
    // Archiving fails: the segment does not arrive.
    let server = &stanza.server;
    server.execute("ALTER SYSTEM SET archive_command = 'false # pgcairn'");
    server.execute("SELECT pg_reload_conf()");
    let (code, lines) = check(&stanza, &["--archive-timeout=1"]);
    assert_eq!(
        (code, named(&lines, "WAL switch")[1].as_str()),
        (Some(82), "wrong")
    );
    server.execute("ALTER SYSTEM SET archive_command = 'cp %p /dev/null'");
    server.execute("SELECT pg_reload_conf()");
    let Finished { code, stdout, .. } = stanza.pgcairn(["check"]);
    assert_eq!(code, Some(68));
    assert!(
        stdout.contains("what to do: set archive_command"),
        "{stdout}"
    );
}

#[test]
fn check_finds_wal_that_is_missing_behind_the_newest_backup() {
    let stanza = archiving();
    stanza.backup("full", &[]);
    stanza.archive_all();
    let current = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())";
    let lost = stanza.server.value(current);
    stanza.archive_all();
    stanza.archive_all();
    let epoch = format!("wal/{STANZA}/{}-1", stanza.server.major);
    let path = stanza.repository.join(epoch).join(&lost[..16]).join(&lost);
    fs::remove_file(path).unwrap();
    let (code, lines) = check(&stanza, &["--no-archive-check"]);
    assert_eq!(code, Some(55));
    assert!(
        named(&lines, "archived WAL")[2].contains(&lost),
        "{lines:?}"
    );
    assert_eq!(named(&lines, "WAL switch")[1], "skipped");
    stanza.backup("incr", &[]);
    assert_eq!(
        check(&stanza, &[]).0,
        Some(0),
        "a new backup does not need it"
    );
}

#[test]
fn a_stopped_stanza_refuses_to_begin_until_it_is_started() {
    let stanza = archiving();
    stanza.pgcairn(["stop"]).success();
    for command in ["backup", "check", "stanza-create"] {
        let Finished { code, stderr, .. } = stanza.pgcairn([command]);
        assert_eq!(code, Some(62), "{command}");
        assert!(stderr.contains("stop file exists"), "{stderr}");
    }
    assert_eq!(
        stanza
            .pgcairn(["archive-push", "/000000010000000000000001"])
            .code,
        Some(62)
    );
    let get = ["archive-get", "000000010000000000000001", "/nowhere"];
    assert_eq!(
        stanza.pgcairn(get).code,
        Some(126),
        "never the end of the WAL"
    );
    stanza.pgcairn(["info"]).success();
    stanza.pgcairn(["start"]).success();
    stanza.backup("full", &[]);
}

#[test]
fn an_upgraded_stanza_keeps_its_backups_and_takes_the_new_cluster() {
    let stanza = archiving();
    let old = stanza.backup("full", &[]);
    stanza.server.stop(Stop::Fast);
    let new = Server::empty(system_major());
    new.init(&[]);
    let pgdata = format!("--pg1-path={}", new.data.display());
    let offline = |word: &str| stanza.pgcairn([&pgdata, "--no-online", word]);
    assert_eq!(offline("stanza-create").code, Some(51));
    offline("stanza-upgrade").success();
    offline("stanza-upgrade").success();
    let info = stanza.info();
    assert_eq!(info["db"].as_array().unwrap().len(), 2);
    assert_eq!(info["backup"][0]["label"], old.label.as_str());
    let full = stanza
        .pgcairn([&pgdata, "--no-online", "--output=json", "backup"])
        .success();
    let full: Value = serde_json::from_str(&full).unwrap();
    assert_eq!(
        full["type"], "full",
        "another cluster's backup is nothing to build on"
    );
    // The old cluster's WAL is not the stanza's any more.
    let files = fs::read_dir(stanza.server.data.join("pg_wal")).unwrap();
    let segment = files
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_file() && path.extension().is_none())
        .unwrap();
    let pushed = stanza.pgcairn(["archive-push", segment.to_str().unwrap()]);
    assert_eq!(pushed.code, Some(44));
}

#[test]
fn a_deleted_stanza_is_gone_with_its_backups_and_its_name_is_free() {
    let stanza = archiving();
    stanza.backup("full", &[]);
    assert_eq!(
        stanza.pgcairn(["stanza-delete"]).code,
        Some(55),
        "stop comes first"
    );
    stanza.pgcairn(["stop"]).success();
    assert_eq!(
        stanza.pgcairn(["stanza-delete"]).code,
        Some(38),
        "a server runs"
    );
    stanza.server.stop(Stop::Fast);
    stanza.pgcairn(["stanza-delete"]).success();
    assert_eq!(stanza.info()["status"]["code"], 1);
    stanza.pgcairn(["start"]).success();
    stanza.pgcairn(["--no-online", "stanza-create"]).success();
    let info = stanza.info();
    assert_eq!(info["backup"].as_array().unwrap().len(), 0);
    assert_eq!(
        info["archive"][0]["id"],
        format!("{}-3", stanza.server.major)
    );
}
