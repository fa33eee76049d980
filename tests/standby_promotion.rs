//! Servers that change while they are backed up: a backup during which a standby is promoted, or follows another primary,
//! or its primary goes over to another timeline, fails, and is not listed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use pgcairn_engine::actions::{self, BackupSummary, ErrorKind, Standby};
use pgcairn_engine::cluster::server::{self, Connection, PgServer};
use pgcairn_engine::monitor::{Monitor, Problem, Stage, Tally};
use pgcairn_engine::repository::Repository;
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_engine::storage::memory::MemoryStorage;
use pgcairn_tests::damage::chain;
use pgcairn_tests::host::Host;
use pgcairn_tests::postgres::{SUPERUSER, Server, Stop, system_major};
use pgcairn_tests::process::wait_until;
use pgcairn_tests::stanza::Stanza;

type Event<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Something that happens when the copying begins.
struct AtCopy<'a>(Mutex<Option<Event<'a>>>);

impl<'a> AtCopy<'a> {
    fn new(event: impl FnOnce() + Send + 'a) -> Self {
        AtCopy(Mutex::new(Some(Box::new(event))))
    }
}

impl Monitor for AtCopy<'_> {
    fn stage(&self, stage: Stage, _total_bytes: u64, _total_files: u64) {
        if stage == Stage::Copy {
            let event = self.0.lock().unwrap().take();
            event.expect("a backup copies once")();
        }
    }
    fn progress(&self, _tally: &Tally) {}
    fn problem(&self, _problem: &Problem) {}
    fn note(&self, _text: &str) {}
}

fn session(server: &Server) -> PgServer {
    let connection = Connection {
        socket_path: Some(server.folder().to_owned()),
        port: 5432,
        user: Some(SUPERUSER.to_owned()),
        database: "postgres".to_owned(),
    };
    server::connect(&connection).unwrap()
}

/// A repository in memory for the backups of a server.
fn repository_of(server: &Server) -> (Host, Repository) {
    let cache: PathBuf = server.make_folder("cache of the test");
    let host = Host::new(&server.data, &cache);
    let repository = host.stanza_create(Arc::new(MemoryStorage::new()));
    (host, repository)
}

/// Backs the primary up from the standby; something happens meanwhile.
fn backup_during(
    (host, repository): &(Host, Repository),
    (primary, standby): (&Server, &Server),
    event: impl FnOnce() + Send,
) -> actions::Result<BackupSummary> {
    let standby = Standby {
        server: &mut session(standby),
        pgdata: standby.data.clone(),
    };
    actions::backup_from_standby(
        repository,
        &mut session(primary),
        standby,
        &host.backup_options(BackupType::Full),
        &Tally::default(),
        &AtCopy::new(event),
    )
}

/// A primary, and one standby more than is asked for.
fn cluster(standbys: usize) -> (Stanza, Vec<Server>) {
    let stanza = Stanza::archiving(system_major(), &[], "");
    stanza.backup("full", &[]);
    let standbys = (0..standbys).map(|_| stanza.standby(true)).collect();
    (stanza, standbys)
}

#[test]
fn a_standby_that_is_promoted_while_it_is_copied_ends_the_backup() {
    let (stanza, standbys) = cluster(1);
    let (primary, standby) = (&stanza.server, &standbys[0]);
    let place = repository_of(primary);
    let promote = || {
        standby.execute("SELECT pg_promote()");
        standby.execute("CREATE TABLE another_life AS SELECT 1 AS n");
    };
    let error = backup_during(&place, (primary, standby), promote).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DbMismatch, "{}", chain(&error));
    assert!(chain(&error).contains("was a standby"), "{}", chain(&error));
    assert_eq!(place.0.listed(&place.1), [""; 0]);
}

#[test]
fn a_standby_that_goes_over_to_another_primary_while_it_is_copied_ends_the_backup() {
    let (stanza, standbys) = cluster(2);
    let (primary, standby, other) = (&stanza.server, &standbys[0], &standbys[1]);
    let place = repository_of(primary);
    let follow_other = || {
        other.execute("SELECT pg_promote()");
        other.execute("CREATE TABLE another_life AS SELECT 1 AS n; CHECKPOINT");
        let folder = other.folder().display();
        let conninfo = format!("host={folder} port=5432 user={SUPERUSER}");
        standby.execute(&format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'"));
        // It streams: what the archive has of the old timeline, and may still get, is not waited for.
        standby.execute("ALTER SYSTEM SET restore_command = ''");
        standby.execute("SELECT pg_reload_conf()");
        let there = "SELECT count(*) FROM pg_class WHERE relname = 'another_life'";
        wait_until("the standby follows", || {
            (standby.value(there) == "1").then_some(())
        });
        standby.execute("CHECKPOINT");
        assert_eq!(standby.value("SELECT pg_is_in_recovery()"), "t");
    };
    let error = backup_during(&place, (primary, standby), follow_other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DbMismatch, "{}", chain(&error));
    assert!(chain(&error).contains("timeline 2"), "{}", chain(&error));
    assert_eq!(place.0.listed(&place.1), [""; 0]);
    // And from its new primary it is backed up.
    let place = repository_of(other);
    let summary = backup_during(&place, (other, standby), || ()).unwrap();
    assert_eq!(place.0.listed(&place.1), [summary.manifest.label]);
}

#[test]
fn a_primary_that_goes_over_to_another_timeline_ends_its_backup() {
    let server = Server::running("");
    let (host, repository) = repository_of(&server);
    let mut own = session(&server);
    let change = || {
        server.stop(Stop::Fast);
        server.make_file("data/standby.signal", "");
        server.start();
        server.execute("SELECT pg_promote()");
        assert_eq!(
            server.value("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"),
            "00000002"
        );
    };
    let options = host.backup_options(BackupType::Full);
    let monitor = AtCopy::new(change);
    let outcome = actions::backup(
        &repository,
        Some(&mut own),
        &options,
        &Tally::default(),
        &monitor,
    );
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DbQuery, "{}", chain(&error));
    assert_eq!(host.listed(&repository), [""; 0]);
    // The one that it is now is backed up, as what it is.
    let mut own = session(&server);
    let monitor = AtCopy::new(|| ());
    let options = host.backup_options(BackupType::Incr);
    let summary = actions::backup(
        &repository,
        Some(&mut own),
        &options,
        &Tally::default(),
        &monitor,
    )
    .unwrap();
    assert_eq!(summary.manifest.timeline.0, 2);
}

#[test]
fn a_standby_that_is_promoted_while_it_is_waited_for_ends_the_command() {
    let (stanza, standbys) = cluster(1);
    let standby = &standbys[0];
    stanza.add_second_cluster(standby);
    // It gets no WAL any more, so that it cannot catch up before it is promoted.
    standby.execute("ALTER SYSTEM SET primary_conninfo = ''");
    standby.execute("ALTER SYSTEM SET restore_command = ''");
    standby.execute("SELECT pg_reload_conf()");
    let receiving = "SELECT count(*) FROM pg_stat_wal_receiver";
    wait_until("nothing is received", || {
        (standby.value(receiving) == "0").then_some(())
    });
    let finished = thread::scope(|scope| {
        let backup = scope.spawn(|| stanza.pgcairn(["--backup-standby=y", "backup"]));
        stanza.wait_for_ping();
        standby.execute("SELECT pg_promote()");
        backup.join().unwrap()
    });
    assert_eq!(finished.code, Some(58), "{finished:?}");
    assert!(finished.stderr.contains("was a standby"), "{finished:?}");
    assert_eq!(stanza.info()["backup"].as_array().unwrap().len(), 1);
    let again = stanza.pgcairn(["--backup-standby=y", "backup"]);
    assert_eq!(again.code, Some(56), "two primaries: {again:?}");
}
