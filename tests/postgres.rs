//! Live servers: backups taken while everything changes restore to what the server held.
//!
//! Promises: pgbench and a churn of DDL run during every backup; every backup is restored to a directory of its own,
//! recovers, and is judged by PostgreSQL's own programs.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what goes wrong fails the test that called them"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use pgcairn_engine::cluster::server::{self, Connection, Server as _};
use pgcairn_tests::churn::Churn;
use pgcairn_tests::postgres::{SUPERUSER, Server, Stop, system_major};
use pgcairn_tests::stanza::{Backup, Stanza};

/// In-place tablespaces must be allowed where they are replayed, too.
const SETTINGS: &str = "allow_in_place_tablespaces = on\nmax_wal_size = 128MB\n";

/// Restores a backup with its tablespaces beside it, starts it, and waits for the end of its recovery.
fn restored(stanza: &Stanza, backup: &Backup, options: &[&str]) -> (Server, PathBuf) {
    let server = Server::empty(stanza.server.major);
    let space = server.folder().join("space");
    let map = format!("--tablespace-map=linked={}", space.display());
    let options: Vec<&str> = [map.as_str()].iter().chain(options).copied().collect();
    stanza.restore(&server, &backup.label, &options);
    server.start();
    server.wait_for_promotion();
    (server, space)
}

/// PostgreSQL's own programs find nothing wrong.
pub(crate) fn judge(server: &Server) {
    server.amcheck();
    server.stop(Stop::Fast);
    server.verify_checksums();
}

pub(crate) fn marks(server: &Server) -> Vec<String> {
    let rows = server.rows("postgres", "SELECT n FROM marks ORDER BY n");
    rows.into_iter().flatten().collect()
}

/// Each transaction of pgbench adds the same amount to an account, a teller, a branch and the history.
pub(crate) fn assert_balanced(server: &Server) {
    let sums = "SELECT sum(abalance) FROM pgbench_accounts UNION SELECT sum(tbalance) FROM pgbench_tellers \
                UNION SELECT sum(bbalance) FROM pgbench_branches UNION SELECT coalesce(sum(delta), 0) FROM pgbench_history";
    assert_eq!(
        server.rows("postgres", sums).len(),
        1,
        "a transaction is there in part"
    );
}

/// Where the links in `pg_tblspc` lead.
fn tablespace_links(server: &Server) -> Vec<PathBuf> {
    let entries = fs::read_dir(server.data.join("pg_tblspc")).unwrap();
    entries
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect()
}

#[test]
fn backups_under_load_and_ddl_restore_to_a_consistent_cluster() {
    let stanza = Stanza::archiving(system_major(), &["--data-checksums"], SETTINGS);
    let source = &stanza.server;
    source.pgbench(&["--initialize", "--quiet", "--scale=3"]);
    source.execute("CREATE TABLE marks (n int PRIMARY KEY)");
    Churn::prepare(source);
    let mut load = source.load(2);
    let churn = Churn::start(source);
    let mut backups = Vec::new();
    for (number, kind) in (1..).zip(["full", "diff", "incr", "incr"]) {
        source.execute(&format!("INSERT INTO marks VALUES ({number})"));
        let before = churn.statements();
        let backup = stanza.backup(kind, &[]);
        assert_eq!((backup.kind.as_str(), backup.bad_pages), (kind, 0));
        assert!(load.is_running(), "pgbench ended during the backup");
        assert!(
            churn.statements() > before,
            "nothing changed during the backup"
        );
        backups.push(backup);
    }
    churn.stop();
    drop(load);
    source.execute("INSERT INTO marks VALUES (99)");
    let expected = source.hashes();
    stanza.archive_all();

    for (number, backup) in (1..).zip(&backups) {
        let options = ["--type=immediate", "--target-action=promote"];
        let (server, space) = restored(&stanza, backup, &options);
        let written: Vec<String> = (1..=number).map(|n: usize| n.to_string()).collect();
        assert_eq!(
            marks(&server),
            written,
            "{} is not of its moment",
            backup.label
        );
        assert_eq!(tablespace_links(&server), [space]);
        assert_balanced(&server);
        let held = server.hashes();
        for table in ["stays_linked", "stays_inplace"] {
            let name = format!("postgres.public.{table}");
            assert_eq!(held.get(&name), expected.get(&name), "{name}");
            assert!(held.contains_key(&name));
        }
        judge(&server);
    }
    let last = backups.last().unwrap();
    let (server, _) = restored(&stanza, last, &[]);
    assert_eq!(server.hashes(), expected);
    assert_eq!(server.value("SELECT count(*) FROM unlogged"), "0");
    server.execute("INSERT INTO unlogged VALUES (1)");
    judge(&server);
    assert_untouched(source, &expected);
}

/// A restore beside the source, its tablespaces included, has not touched it.
fn assert_untouched(source: &Server, expected: &BTreeMap<String, String>) {
    source.restart();
    assert_eq!(&source.hashes(), expected);
    assert_eq!(tablespace_links(source), [source.folder().join("space")]);
}

#[test]
fn a_backup_and_its_wal_bring_every_supported_version_back() {
    for major in [13, 18] {
        round_trip(major);
    }
}

/// Full, more WAL, incremental, more WAL; then to the end of the WAL.
fn round_trip(major: u32) {
    let stanza = Stanza::archiving(major, &["--data-checksums"], "");
    let source = &stanza.server;
    source.execute("CREATE TABLE a AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n; CREATE INDEX ON a (t)");
    stanza.backup("full", &[]);
    source.execute("UPDATE a SET t = 'changed' WHERE n % 100 = 0");
    source.execute("CREATE DATABASE other");
    let incr = stanza.backup("incr", &[]);
    assert_eq!(incr.kind, "incr");
    source.execute(
        "CREATE TABLE b AS SELECT n FROM generate_series(1, 1000) n; DELETE FROM a WHERE n % 7 = 0",
    );
    let expected = source.hashes();
    stanza.archive_all();
    let server = Server::empty(major);
    stanza.restore(&server, &incr.label, &[]);
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), expected, "PostgreSQL {major}");
}

#[test]
fn a_tablespace_that_is_being_dropped_does_not_end_a_backup() {
    for major in [13, system_major(), 18] {
        let server = Server::empty(major);
        server.init(&[]);
        server.start();
        for name in ["stays", "goes"] {
            let place = server.make_folder(name);
            server.execute(&format!(
                "CREATE TABLESPACE {name} LOCATION '{}'",
                place.display()
            ));
        }
        // The directory goes first, the row in the catalogue when the transaction ends.
        let oid = server.value("SELECT oid FROM pg_tablespace WHERE spcname = 'goes'");
        fs::remove_file(server.data.join("pg_tblspc").join(oid)).unwrap();
        let connection = Connection {
            socket_path: Some(server.folder().to_owned()),
            port: 5432,
            user: Some(SUPERUSER.to_owned()),
            database: "postgres".to_owned(),
        };
        let listed = server::connect(&connection).unwrap().tablespaces().unwrap();
        let names: Vec<_> = listed.iter().map(|(_, name, _)| name.as_str()).collect();
        assert_eq!(names, ["stays"], "PostgreSQL {major}");
    }
}
