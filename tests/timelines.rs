//! Backups right at a promotion: what they need is told on the right timeline, is in the archive or in the backup itself,
//! and is enough to restore them.

use std::fs;

use pgcairn_engine::cluster::control_file;
use pgcairn_tests::postgres::{SUPERUSER, Server, Stop, system_major};
use pgcairn_tests::process::{Finished, wait_until};
use pgcairn_tests::stanza::{STANZA, Stanza};
use serde_json::Value;

/// Checkpoints that nobody asks for take for ever, the one after a promotion too.
const SLOW_CHECKPOINTS: &str = "checkpoint_timeout = 1h\ncheckpoint_completion_target = 0.9\n";

/// The options by which `pgcairn` finds a server that is not in the configuration.
fn at(server: &Server) -> [String; 2] {
    [
        format!("--pg1-path={}", server.data.display()),
        format!("--pg1-socket-path={}", server.folder().display()),
    ]
}

fn run(stanza: &Stanza, server: &Server, words: &[&str]) -> Finished {
    let options = at(server);
    stanza.pgcairn(
        options
            .iter()
            .map(String::as_str)
            .chain(words.iter().copied()),
    )
}

/// Lets a standby archive to the stanza once it is promoted.
fn archive_after_promotion(stanza: &Stanza, standby: &Server) {
    let place = format!("--stanza={STANZA} {}", at(standby)[0]);
    let command = stanza
        .archive_command()
        .replace(&format!("--stanza={STANZA}"), &place);
    standby.execute("ALTER SYSTEM SET archive_mode = on");
    standby.execute(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
    standby.restart();
}

/// Fills the buffers of a standby, so that the checkpoint after its promotion does not end soon, and promotes it.
fn promote_with_much_to_write(primary: &Server, standby: &Server) {
    primary.pgbench(&["--initialize", "--quiet", "--scale=3"]);
    let written = primary.value("SELECT pg_current_wal_insert_lsn()");
    wait_until("the standby has replayed it", || {
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        (standby.value(&sql) == "t").then_some(())
    });
    standby.execute("SELECT pg_promote()");
    let timeline = standby.value("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)");
    assert_eq!(timeline, "00000002");
    let control = control_file::read(&standby.data).unwrap();
    assert_eq!(
        control.timeline.0, 1,
        "the checkpoint after the promotion has ended already"
    );
}

#[test]
fn right_after_a_promotion_check_and_backup_know_the_new_timeline_and_the_backup_restores() {
    let stanza = Stanza::archiving(system_major(), &["--data-checksums"], SLOW_CHECKPOINTS);
    let before = stanza.backup("full", &[]);
    let new = stanza.standby(true);
    archive_after_promotion(&stanza, &new);
    promote_with_much_to_write(&stanza.server, &new);
    stanza.server.stop(Stop::Fast);

    let checked = run(
        &stanza,
        &new,
        &["--archive-timeout=10", "--output=json", "check"],
    );
    let items: Vec<Value> = serde_json::from_str(&checked.stdout).unwrap();
    let switch = items
        .iter()
        .find(|item| item["name"] == "WAL switch")
        .unwrap();
    let message = switch["message"].as_str().unwrap();
    assert!(message.starts_with("00000002"), "{message}");
    assert_eq!(checked.code, Some(0), "{checked:?}");

    new.execute("CREATE TABLE marks AS SELECT 1 AS n");
    let said = run(&stanza, &new, &["--output=json", "backup"]).success();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["type"], "incr");
    assert_eq!(
        said["read"], said["size"],
        "a file of another timeline was trusted"
    );
    let info = stanza.info();
    let backup = info["backup"].as_array().unwrap().last().unwrap().clone();
    for end in ["start", "stop"] {
        let segment = backup["archive"][end].as_str().unwrap();
        assert!(segment.starts_with("00000002"), "{segment}");
    }
    new.execute("INSERT INTO marks VALUES (2)");
    let expected = new.hashes();
    new.execute("SELECT pg_create_restore_point('end')");
    let last = new.value("SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("the last segment is archived", || {
        let archived = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
        (new.value(archived) >= last).then_some(())
    });
    let label = backup["label"].as_str().unwrap();
    let immediate = ["--type=immediate", "--target-action=promote"];
    for (set, options, marks) in [
        (label, &[][..], "2"),
        (label, &immediate[..], "1"),
        (&before.label, &[][..], "2"),
    ] {
        let server = Server::empty(system_major());
        stanza.restore(&server, set, options);
        server.start();
        server.wait_for_promotion();
        assert_eq!(
            server.value("SELECT count(*) FROM marks"),
            marks,
            "{set} {options:?}"
        );
        if marks == "2" {
            assert_eq!(server.hashes(), expected, "{set}");
        }
        server.amcheck();
    }
}

#[test]
fn a_standby_that_was_stopped_across_a_promotion_is_backed_up_with_the_wal_of_both_timelines() {
    let stanza = Stanza::archiving(system_major(), &[], SLOW_CHECKPOINTS);
    stanza.backup("full", &[]);
    let [new, follower] = [stanza.standby(true), stanza.standby(true)];
    promote_with_much_to_write(&stanza.server, &new);
    let conninfo = format!("host={} port=5432 user={SUPERUSER}", new.folder().display());
    follower.execute(&format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'"));
    follower.execute("SELECT pg_reload_conf()");
    new.execute("CREATE TABLE another_life AS SELECT 1 AS n");
    let there = "SELECT count(*) FROM pg_class WHERE relname = 'another_life'";
    wait_until("the standby follows", || {
        (follower.value(there) == "1").then_some(())
    });
    let expected = new.hashes();
    follower.stop(Stop::Fast);
    let control = control_file::read(&follower.data).unwrap();
    assert_eq!(
        (control.timeline.0, control.min_recovery_timeline.0),
        (1, 2)
    );

    let backup = ["--no-online", "--type=full", "--output=json", "backup"];
    let said = run(&stanza, &follower, &backup).success();
    let said: Value = serde_json::from_str(&said).unwrap();
    let server = Server::empty(system_major());
    stanza.restore(&server, said["label"].as_str().unwrap(), &[]);
    server.start();
    assert_eq!(server.hashes(), expected);

    // Without one of its segments, or the file that tells how the timelines belong together, it could not be restored.
    let second = |file: &str| file.starts_with("00000002") && !file.ends_with("history");
    for needed in [
        &|file: &str| file == "00000002.history",
        &second as &dyn Fn(&str) -> bool,
    ] {
        let files = fs::read_dir(follower.data.join("pg_wal")).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let found = files.filter(|file| needed(file.file_name().unwrap().to_str().unwrap()));
        let found: Vec<_> = found.collect();
        let aside = |path: &std::path::Path| path.with_extension("aside");
        for path in &found {
            fs::rename(path, aside(path)).unwrap();
        }
        let refused = run(&stanza, &follower, &backup);
        assert_eq!(refused.code, Some(55), "{refused:?}");
        assert!(
            refused.stderr.contains("is not whole in its pg_wal"),
            "{refused:?}"
        );
        for path in &found {
            fs::rename(aside(path), path).unwrap();
        }
    }
    run(&stanza, &follower, &backup).success();
}
