//! Archiving when it goes wrong: killed at any moment, pushed twice at once, by two servers, without a spool.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use pgcairn_engine::actions::{self, ErrorKind, Got, Pushed};
use pgcairn_tests::damage::{Site, segment_name};
use pgcairn_tests::pgdata::Noise;
use pgcairn_tests::places::only;
use pgcairn_tests::postgres::{Server, Stop, system_major};
use pgcairn_tests::process::{self, wait_until};
use pgcairn_tests::stanza::{STANZA, Stanza};
use rustix::process::getpid;

const SEED: u64 = 9;

/// Writes so much WAL that some segments end, and a row; answers the name of the last of them.
fn write_wal(server: &Server, n: u32) -> String {
    server.execute(&format!("INSERT INTO marks VALUES ({n})"));
    server.value("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1 << 21))");
    server.value("SELECT pg_walfile_name(pg_switch_wal())")
}

fn wait_until_archived(server: &Server, segment: &str) {
    let sql = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
    wait_until("the segment is archived", || {
        (server.value(sql).as_str() >= segment).then_some(())
    });
}

/// The command, killed at a moment that changes from call to call; now and then it is let be.
fn killed_at_random(stanza: &Stanza) -> PathBuf {
    let server = &stanza.server;
    let counter = server.folder().join("calls");
    let command = stanza.archive_command().replace("\"%p\"", "\"$1\"");
    let script = format!(
        "#!/bin/sh\nread n 2>/dev/null <{counter} || n=0\necho $((n + 1)) >{counter}\n\
         [ $((n % 4)) = 3 ] && exec {command}\n\
         timeout --signal=KILL $(printf '0.%03d' $((1 + n * 5 % 24))) {command} || exit 1\n",
        counter = counter.display()
    );
    let path = server.make_file("killed", script);
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// Kills the processes that push in the background, which have become children of this one.
fn kill_background(stanza: &Stanza) -> usize {
    let mut pids = process::children(getpid());
    let config = stanza.config.display().to_string();
    pids.retain(|pid| {
        let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        let words = String::from_utf8(words.unwrap_or_default()).unwrap_or_default();
        // Without a segment behind it.
        words.contains(&config) && words.ends_with("archive-push\0")
    });
    process::kill(&pids);
    pids.len()
}

#[test]
fn archiving_that_is_killed_at_any_moment_loses_nothing() {
    for asynchronous in [false, true] {
        let stanza = Stanza::archiving(system_major(), &["--wal-segsize=1"], "");
        let server = &stanza.server;
        let spool = server.make_folder("spool");
        let flag = if asynchronous { "y" } else { "n" };
        stanza.configure(&format!(
            "archive-async={flag}\nspool-path={}",
            spool.display()
        ));
        server.execute("CREATE TABLE marks (n int PRIMARY KEY)");
        stanza.backup("full", &[]);
        let killed = killed_at_random(&stanza).display().to_string();
        server.configure(&format!("archive_command = '{killed} \"%p\"'"));
        server.execute("SELECT pg_reload_conf()");
        let (mut noise, mut kills, mut n) = (Noise(SEED), 0, 0);
        let failed = || server.value("SELECT failed_count > 0 FROM pg_stat_archiver") == "t";
        // Until the moments have met a command that was at work, and a process in the background.
        while n < 20 || !failed() || (asynchronous && kills == 0) {
            n += 1;
            assert!(n <= 300, "nothing was killed");
            write_wal(server, n);
            // Not to wait for something: the moment is what is tested.
            thread::sleep(Duration::from_millis(noise.below(150)));
            if asynchronous {
                kills += kill_background(&stanza);
            }
        }
        server.configure(&format!("archive_command = '{}'", stanza.archive_command()));
        server.execute("SELECT pg_reload_conf()");
        wait_until_archived(server, &write_wal(server, n + 1));
        let timeline = &stanza.info()["archive"][0]["timeline"][0];
        assert_eq!(
            timeline["missing"].as_array().unwrap().len(),
            0,
            "{timeline}"
        );
        let place = Server::empty(server.major);
        stanza.restore(&place, "latest", &[]);
        place.start();
        place.wait_for_promotion();
        let marks = (n + 1).to_string();
        assert_eq!(place.value("SELECT count(*) FROM marks"), marks);
    }
}

#[test]
fn of_many_pushes_of_one_segment_at_once_one_stores_it_and_others_find_it_or_are_refused() {
    let site = Site::new();
    let options = site.archive_options();
    let mine = site.segment(1, 1);
    // The same segment with other bytes, under a path of its own.
    let folder = site.beside("other");
    fs::create_dir(&folder).unwrap();
    let theirs = folder.join(segment_name(1));
    fs::copy(&mine, &theirs).unwrap();
    pgcairn_tests::damage::flip(&theirs, 999_999);
    for paths in [[&mine, &mine], [&mine, &theirs]] {
        let before = site.keys("wal/");
        for key in before {
            fs::remove_file(site.object(&key)).unwrap();
        }
        let push = |path: &Path| {
            let places = only(site.storage().unwrap());
            actions::archive_push(&places, &options, path).map(|to| to[0].pushed)
        };
        let push = &push;
        let outcomes: Vec<(&PathBuf, actions::Result<Pushed>)> = thread::scope(|scope| {
            let eight = paths.iter().cycle().take(8);
            let threads: Vec<_> = eight
                .map(|path| (*path, scope.spawn(move || push(path))))
                .collect();
            let ended = threads.into_iter();
            ended
                .map(|(path, thread)| (path, thread.join().unwrap()))
                .collect()
        });
        let stored = |(_, outcome): &&(_, _)| matches!(outcome, Ok(Pushed::Stored));
        let winners: Vec<&PathBuf> = outcomes.iter().filter(stored).map(|won| won.0).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        for (path, outcome) in &outcomes {
            let right = match outcome {
                Ok(_) => *path == winners[0],
                Err(error) => error.kind() == ErrorKind::WalDuplicate && *path != winners[0],
            };
            assert!(right, "{outcomes:?}");
        }
        let got = site.beside("got");
        let fetched = site.archive_get(&segment_name(1), &got).unwrap();
        assert_eq!(fetched, Got::Fetched { repository: 1 });
        assert!(fs::read(&got).unwrap() == fs::read(winners[0]).unwrap());
    }
}

#[test]
fn without_a_spool_an_asynchronous_push_pushes_by_itself() {
    let stanza = Stanza::archiving(system_major(), &["--wal-segsize=1"], "");
    let server = &stanza.server;
    let sealed = server.make_folder("sealed");
    fs::set_permissions(&sealed, Permissions::from_mode(0o555)).unwrap();
    stanza.configure(&format!("archive-async=y\nspool-path={}", sealed.display()));
    server.execute("CREATE TABLE marks (n int PRIMARY KEY)");
    wait_until_archived(server, &write_wal(server, 1));
    let log = server
        .folder()
        .join(format!("log.d/{STANZA}-archive-push-async.log"));
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("sealed"), "{log}");
    let away = server.folder().join("away");
    fs::rename(&stanza.repository, &away).unwrap();
    let path = server.data.join("pg_wal").join(write_wal(server, 2));
    let refused = stanza.pgcairn(["archive-push", path.to_str().unwrap()]);
    assert_eq!(refused.code, Some(103), "{}", refused.stderr);
    fs::rename(&away, &stanza.repository).unwrap();
}

/// All archived WAL objects with their bytes.
fn archive(stanza: &Stanza) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![stanza.repository.join("wal").join(STANZA)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Waits until a server's archiver has failed, and has said this.
fn wait_until_refused(server: &Server, says: &str) {
    wait_until("archiving is refused", || {
        server.log().contains(says).then_some(())
    });
}

/// That all objects are as they were; there may be more.
fn assert_kept(before: &BTreeMap<PathBuf, Vec<u8>>, stanza: &Stanza) {
    let now = archive(stanza);
    for (path, bytes) in before {
        assert!(now.get(path) == Some(bytes), "{}", path.display());
    }
}

#[test]
fn a_second_server_is_refused_and_overwrites_nothing() {
    let stanza = Stanza::archiving(system_major(), &["--wal-segsize=1"], "");
    let server = &stanza.server;
    server.execute("CREATE TABLE marks (n int PRIMARY KEY)");
    stanza.backup("full", &[]);
    // A copy of the storage: the same system id, and soon the same segments with other bytes.
    server.stop(Stop::Fast);
    let clone = Server::empty(server.major);
    copy(&server.data, &clone.data);
    server.start();
    wait_until_archived(server, &write_wal(server, 1));
    let before = archive(&stanza);
    let command = |server: &Server| {
        let pgdata = format!("--pg1-path={} archive-push", server.data.display());
        let command = stanza.archive_command().replace("archive-push", &pgdata);
        format!("archive_command = '{command}'\narchive_mode = on")
    };
    clone.configure(&command(&clone));
    clone.start();
    write_wal(&clone, 7);
    wait_until_refused(&clone, "[045]");
    let other = Server::empty(server.major);
    other.init(&["--wal-segsize=1"]);
    other.configure(&command(&other));
    other.start();
    other.execute("CREATE TABLE marks (n int PRIMARY KEY)");
    write_wal(&other, 7);
    wait_until_refused(&other, "[044]");
    assert_kept(&before, &stanza);
    // The first goes on, and its recovery has its rows.
    wait_until_archived(server, &write_wal(server, 2));
    assert_eq!(recovered(&stanza), "1 2");
    assert_kept(&before, &stanza);
}

/// The rows of a server that recovered to the end of the archive.
fn recovered(stanza: &Stanza) -> String {
    let place = Server::empty(stanza.server.major);
    stanza.restore(&place, "latest", &[]);
    place.start();
    place.wait_for_promotion();
    place.value("SELECT string_agg(n::text, ' ' ORDER BY n) FROM marks")
}

/// The spool says of a segment that it was pushed. Then the storage goes back, and the segment is written anew, with other
/// bytes: to believe the spool would be to lose them without a word.
#[test]
fn a_server_whose_storage_went_back_is_refused_whatever_the_spool_says() {
    let stanza = Stanza::archiving(system_major(), &["--wal-segsize=1"], "");
    let server = &stanza.server;
    let spool = server.make_folder("spool");
    stanza.configure(&format!("archive-async=y\nspool-path={}", spool.display()));
    server.execute("CREATE TABLE marks (n int PRIMARY KEY)");
    stanza.backup("full", &[]);
    stanza.archive_all();
    server.stop(Stop::Fast);
    let snapshot = server.folder().join("snapshot");
    copy(&server.data, &snapshot);
    server.start();
    wait_until_archived(server, &write_wal(server, 1));
    server.stop(Stop::Immediate);
    fs::remove_dir_all(&server.data).unwrap();
    fs::rename(&snapshot, &server.data).unwrap();
    let before = archive(&stanza);
    server.start();
    write_wal(server, 7);
    wait_until_refused(server, "[045]");
    let log = server.log();
    assert!(log.contains("already, with other content"), "{log}");
    assert_kept(&before, &stanza);
    assert_eq!(recovered(&stanza), "1");
}

fn copy(from: &Path, to: &Path) {
    pgcairn_tests::small_cluster::copy(from, to);
}
