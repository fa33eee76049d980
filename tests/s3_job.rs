//! The main job with its repository in a bucket: the program as users run it, a live server, a real S3 server.
//!
//! Promises: the server's tables are compared, and its data directory passes PostgreSQL's own checks. Refuses: a secret
//! on a command line or in a log.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use pgcairn_tests::fault_proxy::{Fault, FaultProxy};
use pgcairn_tests::postgres::{Server, Stop};
use pgcairn_tests::process::{Finished, finish, wait_until};
use pgcairn_tests::s3_server::{BUCKET, KEY, S3Server, SECRET};

/// A server whose WAL and backups go into a bucket.
struct Cluster {
    server: Server,
    proxy: FaultProxy,
    config: PathBuf,
    _s3: S3Server,
}

impl Cluster {
    fn archiving() -> Self {
        let s3 = S3Server::start();
        let proxy = FaultProxy::start(s3.address);
        let server = Server::empty(pgcairn_tests::postgres::system_major());
        let [cache, log, lock] = ["cache", "log.d", "lock"].map(|name| server.make_folder(name));
        let config = server.make_file(
            "pgcairn.conf",
            format!(
                "[global]\nrepo1-type=s3\nrepo1-path=/main/repo\nrepo1-s3-bucket={BUCKET}\n\
                 repo1-s3-endpoint=http://{}\nrepo1-s3-region=us-east-1\nrepo1-s3-uri-style=path\n\
                 repo1-s3-key={KEY}\nrepo1-s3-key-secret={SECRET}\n\
                 cache-path={}\nlog-path={}\nlog-level-file=debug\nlock-path={}\nstart-fast=y\n\n[main]\n{}",
                proxy.address,
                cache.display(),
                log.display(),
                lock.display(),
                server.stanza_options(),
            ),
        );
        server.init(&[]);
        let pgcairn = server.pgcairn_path();
        server.configure(&format!(
            "archive_mode = on\narchive_command = '{} --config={} --stanza=main archive-push \"%p\"'\n",
            pgcairn.display(),
            config.display()
        ));
        server.start();
        let cluster = Cluster {
            server,
            proxy,
            config,
            _s3: s3,
        };
        cluster.run(&["stanza-create"]).success();
        cluster
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.server.command(self.server.pgcairn_path());
        command
            .arg(format!("--config={}", self.config.display()))
            .arg("--stanza=main")
            .args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Finished {
        finish(&mut self.command(words))
    }

    /// Ends a WAL segment and waits until it is in the archive; answers its name.
    fn archive_one(&self) -> String {
        let ended = "SELECT pg_walfile_name(pg_switch_wal()) FROM pg_create_restore_point('x')";
        let segment = self.server.value(ended);
        let archived = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
        wait_until("it is archived", || {
            (self.server.value(archived) >= segment).then_some(())
        });
        segment
    }

    fn all_logs(&self) -> String {
        let logs = fs::read_dir(self.server.folder().join("log.d")).expect("the logs are there");
        let read = |entry: fs::DirEntry| fs::read_to_string(entry.path()).unwrap_or_default();
        logs.flatten().map(read).collect()
    }
}

#[test]
fn the_main_job_runs_on_s3() {
    let cluster = Cluster::archiving();
    let server = &cluster.server;
    server.pgbench(&["--initialize", "--scale=2"]);
    let full = cluster.run(&["--type=full", "backup"]);
    full.success();
    server.pgbench(&["--no-vacuum", "--transactions=200"]);
    cluster.run(&["--type=incr", "backup"]).success();
    cluster.run(&["--type=diff", "backup"]).success();
    // What only the archive knows.
    server.execute("CREATE TABLE late AS SELECT 42 AS n");
    let tables = server.hashes();
    server.value("SELECT pg_walfile_name(pg_switch_wal())");
    // A server that stops archives all that it has finished.
    server.stop(Stop::Fast);
    let damaged = server.data.join("base/1/PG_VERSION");
    fs::remove_file(damaged).expect("the data directory can be damaged");
    cluster.run(&["--delta", "restore"]).success();
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), tables);
    server.amcheck();
    let info = cluster.run(&["--output=json", "info"]).success();
    assert!(
        info.contains("\"full\"") && info.contains("\"incr\""),
        "{info}"
    );
    let verified = cluster.run(&["verify"]).success();
    assert!(
        verified.contains("0 problem(s)") && verified.contains("wal timeline 1: "),
        "{verified}"
    );
    assert!(!cluster.all_logs().contains(SECRET));
}

#[test]
fn the_main_job_survives_a_bad_network() {
    let cluster = Cluster::archiving();
    let server = &cluster.server;
    server.pgbench(&["--initialize", "--scale=1"]);
    let storm = || {
        for method in ["PUT", "GET"] {
            for fault in [
                Fault::Refused(503, "Retry-After: 0\r\n"),
                Fault::AnswerLost,
                Fault::Broken,
                Fault::AnswerReplaced(500),
            ] {
                cluster.proxy.order(method, fault);
            }
        }
        cluster.proxy.order("GET", Fault::Cut(100));
    };
    cluster.proxy.delay(Duration::from_millis(5));
    storm();
    cluster.run(&["--type=full", "backup"]).success();
    storm();
    cluster.run(&["--type=incr", "backup"]).success();
    let tables = server.hashes();
    server.stop(Stop::Fast);
    fs::remove_file(server.data.join("base/1/PG_VERSION")).expect("it can be damaged");
    storm();
    cluster.run(&["--delta", "restore"]).success();
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), tables);
}

#[test]
fn a_store_that_is_down_fails_the_command_and_lists_nothing() {
    let cluster = Cluster::archiving();
    cluster.run(&["--type=full", "backup"]).success();
    for _ in 0..3 {
        cluster.proxy.order("PUT", Fault::Refused(403, ""));
    }
    let failed = cluster.run(&["--type=full", "backup"]);
    assert_ne!(failed.code, Some(0));
    assert!(
        failed.stdout.contains("what they may do") || failed.stderr.contains("what they may do"),
        "{failed:?}"
    );
    let info = cluster.run(&["--output=json", "info"]).success();
    assert_eq!(info.matches("\"full\"").count(), 1, "{info}");
}

#[test]
fn an_object_that_is_not_seen_for_a_moment_costs_a_command_at_most() {
    let cluster = Cluster::archiving();
    let server = &cluster.server;
    server.pgbench(&["--initialize", "--scale=1"]);
    cluster.run(&["--type=full", "backup"]).success();
    for passing in [0, 1, 2, 3, 5, 8, 13, 21] {
        cluster.proxy.order_after(passing, "GET", Fault::Absent);
        let run = cluster.run(&["--type=incr", "backup"]);
        cluster.proxy.forget();
        let listed = cluster.run(&["--output=json", "info"]).success();
        assert!(
            run.code == Some(0) || run.stderr.contains("ERROR"),
            "{passing}: {run:?}"
        );
        assert!(listed.contains("\"full\""), "{passing}: {listed}");
    }
    cluster.run(&["--type=incr", "backup"]).success();
    let tables = server.hashes();
    server.stop(Stop::Fast);
    fs::remove_file(server.data.join("base/1/PG_VERSION")).expect("it can be damaged");
    cluster.run(&["--delta", "restore"]).success();
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), tables);
}

#[test]
fn a_command_that_waits_for_the_store_ends_when_it_is_told_to() {
    let cluster = Cluster::archiving();
    for signal in [Signal::TERM, Signal::INT] {
        let gate = cluster.proxy.order_held("PUT");
        let mut backup = cluster
            .command(&["--type=full", "backup"])
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        gate.wait_until_reached();
        let pid = Pid::from_child(&backup);
        kill_process(pid, signal).expect("it runs");
        let ended = wait_until("it has ended", || backup.try_wait().expect("it is ours"));
        assert_eq!(ended.signal(), Some(signal.as_raw()));
        gate.open();
    }
    cluster.run(&["--type=full", "backup"]).success();
}

#[test]
fn each_command_survives_each_kind_of_trouble_alone() {
    let cluster = Cluster::archiving();
    let server = &cluster.server;
    server.pgbench(&["--initialize", "--scale=1"]);
    cluster.run(&["--type=full", "backup"]).success();
    let pause = Duration::from_millis(1);
    for fault in [
        Fault::Refused(500, ""),
        Fault::Refused(503, "Retry-After: 1\r\n"),
        Fault::Refused(503, ""),
        Fault::Refused(429, ""),
        Fault::Refused(409, ""),
        Fault::Broken,
        Fault::AnswerLost,
        Fault::AnswerReplaced(500),
        Fault::Cut(40),
        Fault::Trickle(pause),
    ] {
        // The first request of each kind, and one in the middle.
        let trouble = || {
            for method in ["PUT", "GET"] {
                cluster.proxy.order(method, fault.clone());
                cluster.proxy.order_after(2, method, fault.clone());
            }
        };
        server.execute("UPDATE pgbench_branches SET bbalance = bbalance + 1; CHECKPOINT");
        trouble();
        let segment = cluster.archive_one();
        cluster.proxy.forget();
        let run = |words: &[&str]| {
            trouble();
            let finished = cluster.run(words);
            cluster.proxy.forget();
            assert_eq!(finished.code, Some(0), "{fault:?}: {words:?}: {finished:?}");
        };
        let fetched = server.folder().join("fetched");
        run(&["archive-get", &segment, &fetched.to_string_lossy()]);
        run(&["--type=incr", "backup"]);
        let target = server.make_folder("target");
        let place = format!("--pg1-path={}", target.display());
        run(&["--type=immediate", &place, "restore"]);
        assert!(target.join("global/pg_control").exists());
        fs::remove_dir_all(target).expect("it can be removed");
    }
}

#[test]
fn archiving_asks_for_what_it_needs_and_lists_nothing() {
    let cluster = Cluster::archiving();
    let server = &cluster.server;
    cluster.archive_one();
    cluster.proxy.take_passed();
    let segment = cluster.archive_one();
    let requests = cluster.proxy.take_passed().requests;
    // The segment, and what confirms its epoch.
    assert_eq!(requests["PUT"], 1);
    assert_eq!(requests["GET"], 2);
    assert!(!cluster.proxy.last_head("GET").contains("list-type"));
    let get = || {
        let path = server.folder().join("fetched");
        let path = path.to_string_lossy().into_owned();
        cluster.run(&["archive-get", &segment, &path]).success();
        cluster.proxy.take_passed().requests
    };
    get();
    let requests = get();
    assert_eq!(requests.get("PUT"), None);
    assert_eq!(requests["GET"], 3);
    assert!(!cluster.proxy.last_head("GET").contains("list-type"));
}

#[test]
fn a_store_that_answers_503_during_recovery_ends_it_without_promoting() {
    let cluster = Cluster::archiving();
    let server = &cluster.server;
    cluster.run(&["--type=full", "backup"]).success();
    server.execute("CREATE TABLE late AS SELECT 42 AS n");
    let tables = server.hashes();
    server.value("SELECT pg_walfile_name(pg_switch_wal())");
    server.stop(Stop::Fast);
    fs::remove_file(server.data.join("base/1/PG_VERSION")).expect("it can be damaged");
    cluster
        .run(&["--io-timeout=2s", "--delta", "restore"])
        .success();
    for _ in 0..10_000 {
        cluster.proxy.order("GET", Fault::Refused(503, ""));
    }
    assert_ne!(server.try_start().code, Some(0), "{}", server.log());
    assert!(
        !server.log().contains("selected new timeline"),
        "{}",
        server.log()
    );
    cluster.proxy.forget();
    server.start();
    server.wait_for_promotion();
    assert_eq!(server.hashes(), tables);
}
