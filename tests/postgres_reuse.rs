//! What a backup does not do again: bytes that the repository has are not stored, files that did not change not read.

use std::time::Duration;

use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::stanza::{Stanza, wait_until_older};

/// Nothing but the test changes the cluster.
const QUIET: &str = "autovacuum = off\n";
/// A file changed within this time before a backup's start is read again by the next.
const TICK: Duration = Duration::from_secs(2);
/// What an unchanged cluster may add to the repository, the WAL apart.
const ALMOST_NOTHING: u64 = 500_000;

/// A cluster of some size whose files have not changed for a while.
fn at_rest() -> Stanza {
    let stanza = Stanza::archiving(system_major(), &["--data-checksums"], QUIET);
    stanza
        .server
        .pgbench(&["--initialize", "--quiet", "--scale=2"]);
    stanza.server.execute("CHECKPOINT");
    stanza
}

#[test]
fn a_second_full_reads_everything_and_stores_almost_nothing() {
    let stanza = at_rest();
    let first = stanza.backup("full", &[]);
    let before = stanza.repository_bytes();
    let second = stanza.backup("full", &[]);
    let added = stanza.repository_bytes() - before;
    assert!(
        added <= ALMOST_NOTHING,
        "{added} bytes were added: {second:?}"
    );
    assert!(before > 4 * ALMOST_NOTHING);
    // Both add what they counted, and records besides.
    assert!(second.stored <= added);
    assert_eq!(second.kind, "full");
    assert!(second.read >= second.size, "{second:?} trusted something");
    assert!(first.size > 40_000_000);
}

#[test]
fn what_did_not_change_is_not_read_by_diff_and_incr() {
    let stanza = at_rest();
    wait_until_older(&stanza.server.data, TICK);
    let full = stanza.backup("full", &[]);
    assert!(full.read >= full.size);
    for kind in ["incr", "diff", "incr"] {
        let backup = stanza.backup(kind, &[]);
        assert_eq!(backup.kind, kind);
        assert!(
            backup.read < full.size / 20,
            "{kind} read {} of {}",
            backup.read,
            backup.size
        );
    }
    let checked = stanza.backup("incr", &["--delta"]);
    assert!(checked.read >= checked.size, "--delta reads everything");
    let changed = "UPDATE pgbench_accounts SET abalance = 1 WHERE aid = 77; CHECKPOINT";
    stanza.server.execute(changed);
    let after = stanza.backup("incr", &[]);
    // The whole table, which is most of the cluster, but not the rest.
    assert!(
        after.read > full.size / 3 && after.read < full.size,
        "{after:?}"
    );
    let info = stanza.info();
    let listed = info["backup"].as_array().unwrap();
    assert_eq!(listed.len(), 6);
    assert_eq!(listed[5]["info"]["delta"], after.read);
    assert_eq!(listed[0]["info"]["delta"], full.read);
}

#[test]
fn losing_the_whole_cache_costs_time_alone() {
    let stanza = at_rest();
    let full = stanza.backup("full", &[]);
    stanza
        .server
        .execute("CREATE TABLE small AS SELECT n FROM generate_series(1, 1000) n");
    stanza.forget_cache();
    let before = stanza.repository_bytes();
    let incr = stanza.backup("incr", &[]);
    let added = stanza.repository_bytes() - before;
    assert!(added <= ALMOST_NOTHING, "{added} bytes were stored again");
    assert_eq!(incr.kind, "incr");
    assert!(
        incr.read >= full.size,
        "without stat records everything is read"
    );
    let expected = stanza.server.hashes();
    stanza.archive_all();
    stanza.forget_cache();
    let server = Server::empty(system_major());
    stanza.restore(&server, &incr.label, &[]);
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), expected);
    server.stop(Stop::Fast);
    server.verify_checksums();
}
