//! Pushing WAL: what the repository is asked, and where a segment goes when the stanza changed meanwhile.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgcairn_engine::actions::{
    self, ArchiveOptions, ErrorKind, Got, PrefetchOptions, Pushed, StanzaCreateOptions,
};
use pgcairn_engine::monitor::NoMonitor;
use pgcairn_engine::repository;
use pgcairn_engine::repository::stanza::{self, add_epoch, delete};
use pgcairn_engine::storage::local::LocalStorage;
use pgcairn_tests::damage::{STANZA as SITE, Site, segment_name};
use pgcairn_tests::places::only;
use pgcairn_tests::postgres::{Server, system_major};
use pgcairn_tests::process::wait_until;
use pgcairn_tests::recording::{Recording, Verb};
use pgcairn_tests::stanza::{STANZA, Stanza};

/// A stopped cluster with a stanza, the storage with a record of its calls, and what a push needs.
fn at_rest() -> (Stanza, Arc<Recording>, ArchiveOptions) {
    let stanza = Stanza::of(Server::empty(system_major()));
    stanza.server.init(&[]);
    stanza.pgcairn(["--no-online", "stanza-create"]).success();
    let local = LocalStorage::open(&stanza.repository).unwrap();
    let storage = Arc::new(Recording::new(Arc::new(local)));
    let options = ArchiveOptions {
        stanza: STANZA.to_owned(),
        pgdata: stanza.server.data.clone(),
        cache: stanza.cache.clone(),
        compress_level: 3,
        threads: 2,
        header_check: false,
        timeout: Duration::from_secs(1),
    };
    (stanza, storage, options)
}

/// A copy of the cluster's first segment under another name.
fn segment(stanza: &Stanza, n: u32) -> PathBuf {
    let folder = stanza.server.data.join("pg_wal");
    let path = folder.join(format!("0000000100000000{n:08X}"));
    fs::copy(folder.join("000000010000000000000001"), &path).unwrap();
    path
}

fn push(storage: &Arc<Recording>, options: &ArchiveOptions, path: &Path) -> Pushed {
    let repositories = only(storage.clone());
    actions::archive_push(&repositories, options, path).unwrap()[0].pushed
}

/// The calls so far, without their order: some are made at the same time.
fn calls(storage: &Recording) -> Vec<(Verb, String)> {
    let mut calls: Vec<_> = storage
        .take()
        .into_iter()
        .map(|call| (call.verb, call.key))
        .collect();
    calls.sort_by(|one, other| one.1.cmp(&other.1));
    calls
}

#[test]
fn a_push_whose_epoch_is_remembered_makes_one_put_and_confirms_the_epoch() {
    let (stanza, storage, options) = at_rest();
    let record = |n: u32| format!("stanzas/{STANZA}/{n:010}");
    let place = |epoch: u32, n: u32| {
        let major = stanza.server.major;
        format!("wal/{STANZA}/{major}-{epoch}/0000000100000000/0000000100000000{n:08X}")
    };
    push(&storage, &options, &segment(&stanza, 2));
    assert!(calls(&storage).iter().any(|(verb, _)| *verb == Verb::List));
    push(&storage, &options, &segment(&stanza, 3));
    let quick = |n| {
        vec![
            (Verb::Get, record(1)),
            (Verb::Get, record(2)),
            (Verb::Put, place(1, n)),
        ]
    };
    assert_eq!(calls(&storage), quick(3));
    // The stanza is deleted and made anew for the same cluster: the old epoch is dead, whatever was remembered.
    let repository = repository::open(storage.clone()).unwrap();
    delete(&repository, STANZA).unwrap();
    let again = StanzaCreateOptions {
        stanza: STANZA.to_owned(),
        pgdata: options.pgdata.clone(),
    };
    let made = actions::stanza_create(storage.clone(), &again, None, &NoMonitor).unwrap();
    assert!(made.epoch.ends_with("-3"), "{made:?}");
    storage.take();
    push(&storage, &options, &segment(&stanza, 4));
    assert!(stanza.repository.join(place(3, 4)).exists());
    storage.take();
    push(&storage, &options, &segment(&stanza, 5));
    let expected = [
        (Verb::Get, record(3)),
        (Verb::Get, record(4)),
        (Verb::Put, place(3, 5)),
    ];
    assert_eq!(calls(&storage), expected);
    // Another cluster's epoch: the push is refused, though its own was remembered.
    add_epoch(&repository, STANZA, 42, stanza.server.major).unwrap();
    let repositories = only(storage.clone());
    let refused = actions::archive_push(&repositories, &options, &segment(&stanza, 6));
    assert!(
        matches!(refused, Err(actions::Error::ForeignCluster { .. })),
        "{refused:?}"
    );
}

#[test]
fn of_the_archive_before_an_upgrade_that_was_taken_back_only_what_came_before_is_handed_out() {
    let site = Site::new();
    let push = |number: u32, last: u8| {
        let places = only(site.storage().unwrap());
        let path = site.segment(number, last);
        actions::archive_push(&places, &site.archive_options(), &path).unwrap();
        fs::read(path).unwrap()
    };
    let first = push(1, 1);
    // The storage is rolled back to here; what follows is archived, and left behind.
    push(2, 1);
    push(3, 1);
    let repository = site.repository().unwrap();
    let [own] = stanza::epochs(&repository, SITE).unwrap()[..] else {
        panic!("it has one epoch");
    };
    add_epoch(&repository, SITE, 42, own.version).unwrap();
    add_epoch(&repository, SITE, own.system_id, own.version).unwrap();
    let again = push(2, 2);
    let destination = site.beside("got");
    let get = |number: u32| site.archive_get(&segment_name(number), &destination);
    for (number, wanted) in [(1, first), (2, again)] {
        assert_eq!(get(number).unwrap(), Got::Fetched { repository: 1 });
        assert!(
            fs::read(&destination).unwrap() == wanted,
            "segment {number}"
        );
    }
    assert_eq!(get(3).unwrap(), Got::NotThere);
    // The newer archive has a hole: what the older one has under that name does not fill it.
    push(4, 2);
    assert_eq!(get(3).unwrap_err().kind(), ErrorKind::FileMissing);
    let ahead = PrefetchOptions {
        archive: site.archive_options(),
        spool: site.beside("spool"),
        queue_max: 16 << 20,
    };
    let places = only(site.storage().unwrap());
    let fetched = actions::prefetch(&places, &ahead, &segment_name(1), &NoMonitor).unwrap();
    assert_eq!(fetched, 1, "2, and not what was left behind");
}

#[test]
fn a_damaged_memory_of_the_epoch_costs_a_listing_and_nothing_else() {
    let (stanza, storage, options) = at_rest();
    push(&storage, &options, &segment(&stanza, 2));
    let folder = options.cache.join("epochs");
    let file = fs::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    File::create(&file).unwrap().write_all(&bytes).unwrap();
    storage.take();
    assert_eq!(
        push(&storage, &options, &segment(&stanza, 3)),
        Pushed::Stored
    );
    assert!(calls(&storage).iter().any(|(verb, _)| *verb == Verb::List));
    push(&storage, &options, &segment(&stanza, 4));
    assert!(calls(&storage).iter().all(|(verb, _)| *verb != Verb::List));
    assert_eq!(
        push(&storage, &options, &segment(&stanza, 4)),
        Pushed::AlreadyThere
    );
}

/// A running cluster that archives with these options besides.
fn archiving_with(options: &str) -> Stanza {
    let stanza = Stanza::archiving(system_major(), &[], "");
    let spool = stanza.server.make_folder("spool");
    stanza.configure(&format!("spool-path={}\n{options}", spool.display()));
    stanza
}

/// Fills segments, without waiting for any to be archived; answers the name of the last.
fn fill_segments(server: &Server, count: usize) -> String {
    let mut last = String::new();
    for n in 0..count {
        server.value(&format!("SELECT pg_create_restore_point('segment {n}')"));
        last = server.value("SELECT pg_walfile_name(pg_switch_wal())");
    }
    last
}

fn wait_until_archived(server: &Server, segment: &str) {
    let sql = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
    wait_until("the segment is archived", || {
        (server.value(sql).as_str() >= segment).then_some(())
    });
}

#[test]
fn asynchronous_archiving_loses_nothing_when_the_store_comes_and_goes() {
    let stanza = archiving_with("archive-async=y");
    let server = &stanza.server;
    stanza.backup("full", &[]);
    wait_until_archived(server, &fill_segments(server, 5));
    let away = server.folder().join("away");
    fs::rename(&stanza.repository, &away).unwrap();
    let last = fill_segments(server, 3);
    let failures = "SELECT failed_count > 0 FROM pg_stat_archiver";
    wait_until("archiving has failed", || {
        (server.value(failures) == "t").then_some(())
    });
    fs::rename(&away, &stanza.repository).unwrap();
    wait_until_archived(server, &last);
    let timeline = &stanza.info()["archive"][0]["timeline"][0];
    assert_eq!(
        timeline["missing"].as_array().unwrap().len(),
        0,
        "{timeline}"
    );
    assert!(timeline["present"][0]["stop"].as_str().unwrap() >= last.as_str());
}

#[test]
fn wal_that_is_dropped_is_known_as_a_gap_and_never_as_the_end() {
    for mode in ["archive-async=y", "archive-async=n"] {
        let stanza = archiving_with(&format!("{mode}\narchive-push-queue-max=40MB"));
        let server = &stanza.server;
        stanza.backup("full", &[]);
        stanza.archive_all();
        let away = server.folder().join("away");
        fs::rename(&stanza.repository, &away).unwrap();
        let dropped = server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        fill_segments(server, 4);
        wait_until_archived(server, &dropped);
        fs::rename(&away, &stanza.repository).unwrap();
        // At the latest with the next segment, the gap is recorded.
        wait_until_archived(server, &fill_segments(server, 1));
        let missing = &stanza.info()["archive"][0]["timeline"][0]["missing"];
        assert_eq!(missing[0]["start"], dropped.as_str(), "{mode}: {missing}");
        let target = server.folder().join("fetched");
        let get = ["archive-get", &dropped, target.to_str().unwrap()];
        let get = stanza.pgcairn(["--archive-timeout=1"].iter().chain(&get));
        assert_eq!(get.code, Some(126), "{mode}");
        assert!(
            get.stderr.contains("dropped by archive-push"),
            "{}",
            get.stderr
        );
        let check = stanza.pgcairn(["--no-archive-check", "check"]);
        assert!(
            check.stdout.contains("wrong   archived WAL"),
            "{}",
            check.stdout
        );
    }
}
