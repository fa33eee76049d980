//! The test servers themselves: what the other tests build on does what it says.

use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::finish;

#[test]
fn a_server_runs_under_load_and_passes_every_check() {
    let server = Server::running("");
    server.pgbench(&["--initialize", "--scale=1"]);
    server.execute(
        "CREATE TABLE notes AS SELECT n, md5(n::text) AS note FROM generate_series(1, 1000) n",
    );
    let mut load = server.load(2);
    server.pgbench(&["--no-vacuum", "--transactions=50"]);
    assert!(load.is_running());
    drop(load);
    server.amcheck();
    server.stop(Stop::Fast);
    assert!(!server.is_running());
    server.verify_checksums();
}

#[test]
fn hashes_tell_tables_apart_and_survive_a_crash() {
    let server = Server::running("");
    server.execute("CREATE TABLE a AS SELECT 1 AS n; CREATE TABLE b AS SELECT 2 AS n; CREATE UNLOGGED TABLE c (n int)");
    let before = server.hashes();
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        ["postgres.public.a", "postgres.public.b"]
    );
    assert_ne!(
        before.get("postgres.public.a"),
        before.get("postgres.public.b")
    );
    assert!(server.dump().contains("CREATE UNLOGGED TABLE public.c"));
    server.kill();
    assert!(!server.is_running());
    server.start();
    assert_eq!(server.hashes(), before);
    server.execute("INSERT INTO a VALUES (3)");
    assert_ne!(server.hashes(), before);
}

#[test]
fn the_oldest_and_the_newest_version_run_and_restart() {
    for major in [13, 18] {
        let server = Server::empty(major);
        server.init(&[]);
        server.start();
        server.restart();
        assert_eq!(
            server.value("SELECT current_setting('server_version_num')::int / 10000"),
            major.to_string()
        );
        server.stop(Stop::Immediate);
    }
}

#[test]
fn a_server_never_runs_as_root_and_leaves_nothing_behind() {
    let server = Server::running("");
    let folder = server.folder().to_path_buf();
    let id = finish(server.command("id").arg("-u")).success();
    assert_ne!(id.trim(), "0");
    assert_eq!(server.major, system_major());
    drop(server);
    assert!(!folder.exists());
}
