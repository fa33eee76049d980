//! Several repositories, one in a directory and one in a bucket: the program as users run it, a live server.
//!
//! Promises: WAL is confirmed only when all of them hold it; what one of them lost, another has.

use std::fs;

use pgcairn_tests::fault_proxy::FaultProxy;
use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::wait_until;
use pgcairn_tests::s3_server::{BUCKET, KEY, S3Server, SECRET};
use pgcairn_tests::stanza::Stanza;

/// A server that archives to a directory and to a bucket.
fn archiving(proxy: &FaultProxy) -> Stanza {
    let stanza = Stanza::of(Server::empty(system_major()));
    let second = format!(
        "[global]\nrepo2-type=s3\nrepo2-path=/second\nrepo2-s3-bucket={BUCKET}\nrepo2-s3-endpoint=http://{}\n\
         repo2-s3-region=us-east-1\nrepo2-s3-uri-style=path\nrepo2-s3-key={KEY}\nrepo2-s3-key-secret={SECRET}\n\
         archive-timeout=5s",
        proxy.address
    );
    stanza.configure(&second);
    stanza.begin(&[], "");
    stanza
}

#[test]
fn what_one_repository_lost_another_has() {
    let s3 = S3Server::start();
    let proxy = FaultProxy::start(s3.address);
    let stanza = archiving(&proxy);
    let server = &stanza.server;
    let checked = stanza.pgcairn(["check"]).success();
    for repository in ["repo1: WAL switch", "repo2: WAL switch"] {
        assert!(checked.contains(repository), "{checked}");
    }
    server.pgbench(&["--initialize", "--scale=1"]);
    stanza.pgcairn(["--type=full", "backup"]).success();
    stanza
        .pgcairn(["--repo=2", "--type=full", "backup"])
        .success();
    let unknown = stanza.pgcairn(["--repo=3", "--type=full", "backup"]);
    assert_eq!(unknown.code, Some(32), "{unknown:?}");
    let info = stanza.pgcairn(["--output=json", "info"]).success();
    let info: serde_json::Value = serde_json::from_str(&info).expect("it is JSON");
    let keys: Vec<_> = info[0]["backup"]
        .as_array()
        .expect("backups")
        .iter()
        .map(|backup| backup["database"]["repo-key"].as_u64())
        .collect();
    assert_eq!(keys, [Some(1), Some(2)]);
    server.execute("CREATE TABLE late AS SELECT 42 AS n");
    let tables = server.hashes();
    // The first repository goes away: a segment waits until it is back.
    let away = stanza.repository.with_extension("away");
    fs::rename(&stanza.repository, &away).expect("it can go away");
    let segment = server.value("SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("a segment is refused", || {
        (server.value("SELECT failed_count > 0 FROM pg_stat_archiver") == "t").then_some(())
    });
    let archived = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
    assert!(server.value(archived) < segment);
    fs::rename(&away, &stanza.repository).expect("it can come back");
    wait_until("the segment is in both", || {
        (server.value(archived) >= segment).then_some(())
    });
    server.stop(Stop::Fast);
    fs::rename(&stanza.repository, &away).expect("it can go away");
    fs::remove_file(server.data.join("base/1/PG_VERSION")).expect("it can be damaged");
    let restored = stanza.pgcairn(["--delta", "restore"]);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    assert!(restored.stderr.contains("repo1: "), "{restored:?}");
    assert!(
        restored.stderr.contains("restore with --repo=2"),
        "{restored:?}"
    );
    // The one that is away may hold more WAL: its absence must not look like the end.
    assert_ne!(server.try_start().code, Some(0), "{}", server.log());
    stanza.pgcairn(["--repo=2", "--delta", "restore"]).success();
    server.configure("archive_mode = off\n");
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), tables);
    let info = stanza.pgcairn(["info"]).success();
    assert!(
        info.contains("status: mixed") && info.contains("on repo2"),
        "{info}"
    );
}
