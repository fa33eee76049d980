//! Servers that recover with WAL fetched ahead: across timelines, while the spool is damaged and its processes are
//! killed, and with a spool that cannot be written.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use pgcairn_tests::pgdata::Noise;
use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::{self, Finished, wait_until};
use pgcairn_tests::stanza::{STANZA, Stanza};
use rustix::process::{Pid, getpid};

/// What a segment that came out of the spool is told with.
const FROM_SPOOL: &str = "in the archive asynchronously";
const SEED: u64 = 6;

/// A server with segments of 1 MiB that archives; restored ones fetch ahead. Also where the spool is.
fn archiving() -> (Stanza, PathBuf) {
    let stanza = Stanza::archiving(system_major(), &["--wal-segsize=1"], "");
    let spool = stanza.server.make_folder("spool");
    stanza.configure(&format!(
        "archive-async=y\nspool-path={}\n[{STANZA}:archive-get]\narchive-get-queue-max=16MiB\nlog-level-console=info",
        spool.display()
    ));
    let queue = spool.join("archive").join(STANZA).join("in");
    stanza
        .server
        .execute("CREATE TABLE marks (n int PRIMARY KEY)");
    (stanza, queue)
}

/// Commits marks, each in front of some segments of WAL; answers the positions right behind them.
fn make_marks(
    server: &Server,
    numbers: impl IntoIterator<Item = u32>,
    segments: u32,
) -> Vec<String> {
    let mark = |n| {
        server.execute(&format!("INSERT INTO marks VALUES ({n})"));
        let lsn = server.value("SELECT pg_current_wal_insert_lsn()");
        let filler = "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1 << 20))";
        for _ in 0..segments {
            server.value(filler);
        }
        lsn
    };
    numbers.into_iter().map(mark).collect()
}

fn marks_of(server: &Server) -> Vec<String> {
    let rows = server.rows("postgres", "SELECT n FROM marks ORDER BY n");
    rows.into_iter().flatten().collect()
}

fn texts(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(|n| n.to_string()).collect()
}

#[test]
fn recovery_is_exact_across_timelines_with_what_another_recovery_left_in_the_spool() {
    let (stanza, queue) = archiving();
    let server = &stanza.server;
    let full = stanza.backup("full", &[]);
    let lsns = make_marks(server, 1..=6, 4);
    stanza.archive_all();
    // This one is started last: with its restore, the spool is emptied now and not then.
    let latest = Server::empty(server.major);
    stanza.restore(&latest, &full.label, &[]);
    server.stop(Stop::Fast);
    let back = format!("--target={}", lsns[2]);
    let words = [
        "--delta",
        "--type=lsn",
        &back,
        "--target-action=promote",
        "restore",
    ];
    stanza.pgcairn(words).success();
    server.start();
    server.wait_for_promotion();
    assert_eq!(marks_of(server), texts(1..=3));
    make_marks(server, 104..=106, 4);
    stanza.archive_all();
    // The abandoned end of the first timeline: some of what follows it is in the spool then.
    let abandoned = Server::empty(server.major);
    let target = format!("--target={}", lsns[4]);
    let options = [
        "--type=lsn",
        &target,
        "--target-timeline=1",
        "--target-action=promote",
    ];
    stanza.restore(&abandoned, &full.label, &options);
    abandoned.start();
    abandoned.wait_for_promotion();
    assert_eq!(marks_of(&abandoned), texts(1..=5));
    assert!(abandoned.log().contains(FROM_SPOOL), "{}", abandoned.log());
    latest.start();
    latest.wait_for_promotion();
    assert_eq!(marks_of(&latest), texts((1..=3).chain(104..=106)));
    assert!(latest.log().contains(FROM_SPOOL), "{}", latest.log());
    // Whoever restores begins with an empty spool.
    File::create(queue.join("000000010000000000000001")).unwrap();
    let again = Server::empty(server.major);
    stanza.restore(&again, &full.label, &[]);
    assert_eq!(fs::read_dir(&queue).unwrap().count(), 0);
}

/// The processes that fetch into this spool, which have become children of this one.
fn prefetchers(queue: &Path) -> Vec<Pid> {
    let of_queue = |pid: &Pid| {
        let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        let queue = queue.to_str().unwrap();
        words.is_ok_and(|words| String::from_utf8_lossy(&words).contains(queue))
    };
    let mut pids = process::children(getpid());
    pids.retain(of_queue);
    pids
}

/// Damages a file of the spool in one way or another. What is damaged is a copy that takes its place: the file itself may
/// have been handed over at any moment, and is the server's then.
fn harm(noise: &mut Noise, queue: &Path) {
    let listed = fs::read_dir(queue).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.path()).collect();
    paths.sort();
    let at = usize::try_from(noise.below(paths.len().max(1) as u64)).unwrap();
    let Some(path) = paths.get(at) else {
        return;
    };
    let harmed = queue.with_file_name("harmed");
    if noise.below(3) == 0 || fs::copy(path, &harmed).is_err() {
        // It may be gone already.
        drop(fs::remove_file(path));
        return;
    }
    let file = File::options().write(true).open(&harmed).unwrap();
    if noise.below(2) == 0 {
        file.write_all_at(b"harmed", 5000).unwrap();
    } else {
        file.set_len(60).unwrap();
    }
    process::give(&harmed);
    fs::rename(&harmed, path).unwrap();
}

#[test]
fn hundreds_of_segments_arrive_while_the_spool_is_damaged_and_its_processes_are_killed() {
    let (stanza, queue) = archiving();
    let server = &stanza.server;
    let full = stanza.backup("full", &[]);
    make_marks(server, 1..=20, 10);
    stanza.archive_all();
    let place = Server::empty(server.major);
    stanza.restore(&place, &full.label, &[]);
    place.start();
    let mut noise = Noise(SEED);
    let mut killed = 0;
    wait_until("recovery has ended", || {
        for _ in 0..8 {
            // They do not live long: each fills the queue and ends.
            let found = prefetchers(&queue);
            if noise.below(2) == 0 && !found.is_empty() {
                killed += 1;
                process::kill(&found);
            }
            harm(&mut noise, &queue);
            // Not to wait for something: the moment is what is tested.
            thread::sleep(Duration::from_millis(noise.below(10)));
        }
        (place.value("SELECT pg_is_in_recovery()") == "f").then_some(())
    });
    assert_eq!(marks_of(&place), texts(1..=20));
    assert!(
        place.log().contains(FROM_SPOOL) && killed > 0,
        "{killed} killed"
    );
}

#[test]
fn a_spool_that_cannot_be_written_costs_time_alone() {
    let (stanza, queue) = archiving();
    let server = &stanza.server;
    let full = stanza.backup("full", &[]);
    make_marks(server, 1..=3, 4);
    stanza.archive_all();
    let place = Server::empty(server.major);
    stanza.restore(&place, &full.label, &[]);
    let sealed = stanza.server.make_folder("sealed");
    fs::set_permissions(&sealed, Permissions::from_mode(0o555)).unwrap();
    stanza.configure(&format!("spool-path={}", sealed.display()));
    place.start();
    place.wait_for_promotion();
    assert_eq!(marks_of(&place), texts(1..=3));
    assert!(!place.log().contains(FROM_SPOOL), "{}", place.log());
    assert!(!queue.exists() || fs::read_dir(&queue).unwrap().count() == 0);
    let log = server
        .folder()
        .join(format!("log.d/{STANZA}-archive-get-async.log"));
    wait_until("the failure is in the log", || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        log.contains("sealed").then_some(())
    });
}

#[track_caller]
fn assert_code(done: &Finished, code: i32, says: &str) {
    let said = format!("{}{}", done.stdout, done.stderr);
    assert_eq!(done.code, Some(code), "{said}");
    assert!(said.contains(says), "{says:?} is not in {said}");
}

#[test]
fn what_is_in_the_spool_is_got_in_an_outage_and_nothing_else_is_taken_for_absent() {
    let (stanza, queue) = archiving();
    let server = &stanza.server;
    stanza.backup("full", &[]);
    let first = server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    make_marks(server, 1..=1, 3);
    stanza.archive_all();
    let last = server.value("SELECT last_archived_wal FROM pg_stat_archiver");
    // An asynchronous push has the whole queue: what is behind the last one is not there.
    let number = |name: &str| u64::from_str_radix(&name[8..], 16).unwrap();
    let name = |number: u64| format!("00000001{number:016X}");
    let (second, absent) = (name(number(&first) + 1), name(number(&last) + 1));
    let target = server.folder().join("fetched");
    let get = |words: &[&str], name: &str| {
        drop(fs::remove_file(&target));
        let path = target.to_str().unwrap();
        stanza.pgcairn(words.iter().copied().chain(["archive-get", name, path]))
    };
    assert_code(&get(&[], &absent), 1, "unable to find");
    assert!(!queue.exists(), "nothing follows what is not there");
    assert_code(&get(&[], &first), 0, "in the repo1 archive");
    wait_until("the next segments are fetched", || {
        queue.join(&last).exists().then_some(())
    });
    let away = server.folder().join("away");
    fs::rename(&stanza.repository, &away).unwrap();
    assert_code(&get(&[], &first), 126, "");
    for absent in [&absent, "00000002.history", "000000020000000000000003"] {
        assert_code(&get(&[], absent), 126, "");
        assert!(!target.exists());
    }
    assert_code(&get(&[], &second), 0, FROM_SPOOL);
    let original = fs::read(server.data.join("pg_wal").join(&second)).unwrap();
    assert!(fs::read(&target).unwrap() == original);
    fs::rename(&away, &stanza.repository).unwrap();
    assert_code(&get(&[], &second), 0, "in the repo1 archive");
    // The spool is another cluster's: it is not even looked at twice.
    let other = Server::empty(server.major);
    other.init(&["--wal-segsize=1"]);
    let pgdata = format!("--pg1-path={}", other.data.display());
    assert!(queue.join(&last).exists());
    assert_code(&get(&[&pgdata], &last), 126, "another cluster");
    assert!(!target.exists());
}
