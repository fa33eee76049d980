//! What every storage promises: one function per promise, run on each implementation.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgcairn_engine::storage::local::LocalStorage;
use pgcairn_engine::storage::memory::MemoryStorage;
use pgcairn_engine::storage::s3::S3Storage;
use pgcairn_engine::storage::{ErrorKind, Key, Object, Result, Storage};
use pgcairn_tests::s3_server::S3Server;
use tempfile::TempDir;

/// Runs every promise on a new storage each. `$place` makes something that holds a `storage`.
macro_rules! promises {
    ($implementation:ident, $place:expr; $($promise:ident)+) => {
        mod $implementation {
            $(
                #[test]
                fn $promise() {
                    let place = $place;
                    super::$promise(&place.storage);
                }
            )+
        }
    };
    ($implementation:ident, $place:expr) => {
        promises! {
            $implementation, $place;
            what_was_put_is_got
            what_is_absent_is_not_found
            an_empty_object_is_an_object
            a_second_put_changes_nothing
            one_of_many_racing_puts_wins_whole
            a_range_is_filled_exactly
            a_range_past_the_end_is_truncated
            a_listing_takes_any_text_as_prefix
            a_listing_starts_after_a_key_that_need_not_exist
            a_listing_is_in_key_order_across_separators
            pages_of_a_listing_make_the_whole
            a_listing_tells_length_and_time
            a_prefix_that_no_key_can_have_lists_nothing
            deleting_twice_is_deleting
            a_key_can_be_put_again_after_it_was_deleted
            no_part_of_an_object_is_ever_seen
        }
    };
}

promises!(
    memory,
    super::Memory {
        storage: super::MemoryStorage::new()
    }
);
promises!(local, super::Local::new());
promises!(s3, super::Bucket::new());

struct Memory {
    storage: MemoryStorage,
}

struct Local {
    storage: LocalStorage,
    directory: TempDir,
}

impl Local {
    fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        let storage =
            LocalStorage::create(&directory.path().join("root")).expect("a root can be made");
        Local { storage, directory }
    }
}

struct Bucket {
    storage: S3Storage,
    _server: S3Server,
}

impl Bucket {
    fn new() -> Self {
        let server = S3Server::start();
        Bucket {
            storage: server.storage(),
            _server: server,
        }
    }
}

fn key(text: &str) -> Key {
    Key::new(text).expect("the test's keys are keys")
}

fn put_all(storage: &dyn Storage, keys: &[&str]) {
    for text in keys {
        storage.put(&key(text), text.as_bytes()).expect("put");
    }
}

fn listed(
    storage: &dyn Storage,
    prefix: &str,
    start_after: Option<&str>,
    limit: usize,
) -> Vec<String> {
    let objects = storage.list(prefix, start_after, limit).expect("list");
    objects
        .iter()
        .map(|object| object.key.to_string())
        .collect()
}

fn failure<T>(answer: Result<T>) -> Option<ErrorKind> {
    answer.err().map(|error| error.kind)
}

fn what_was_put_is_got(storage: &dyn Storage) {
    let body: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    storage.put(&key("data/00/pack"), &body).expect("put");
    storage.put(&key("config"), b"config").expect("put");
    assert!(storage.get(&key("data/00/pack")).expect("get") == body);
    assert_eq!(storage.get(&key("config")).expect("get"), b"config");
}

fn what_is_absent_is_not_found(storage: &dyn Storage) {
    put_all(storage, &["a/b"]);
    for absent in ["a/c", "b", "c/d/e", "a"] {
        assert_eq!(
            failure(storage.get(&key(absent))),
            Some(ErrorKind::NotFound),
            "{absent}"
        );
        assert_eq!(
            failure(storage.get_range(&key(absent), 0, &mut [])),
            Some(ErrorKind::NotFound),
            "{absent}"
        );
    }
    assert_eq!(listed(storage, "c/", None, 10), [""; 0]);
}

fn an_empty_object_is_an_object(storage: &dyn Storage) {
    storage.put(&key("a/empty"), b"").expect("put");
    assert_eq!(storage.get(&key("a/empty")).expect("get"), b"");
    assert_eq!(storage.list("a/", None, 10).expect("list")[0].bytes, 0);
    assert_eq!(
        failure(storage.put(&key("a/empty"), b"more")),
        Some(ErrorKind::AlreadyExists)
    );
}

fn a_second_put_changes_nothing(storage: &dyn Storage) {
    storage.put(&key("a/b"), b"first").expect("put");
    let before = storage.list("", None, 10).expect("list");
    assert_eq!(
        failure(storage.put(&key("a/b"), b"second")),
        Some(ErrorKind::AlreadyExists)
    );
    assert_eq!(
        failure(storage.put(&key("a/b"), b"first")),
        Some(ErrorKind::AlreadyExists)
    );
    assert_eq!(storage.get(&key("a/b")).expect("get"), b"first");
    assert_eq!(storage.list("", None, 10).expect("list"), before);
}

fn one_of_many_racing_puts_wins_whole(storage: &dyn Storage) {
    const WRITERS: u8 = 16;
    const KEYS: usize = 64;
    let race_key = |n: usize| key(&format!("race/{:02}/{n}", n % 8));
    let body = |writer: u8| vec![writer; 5_000 + usize::from(writer)];
    let won = |writer: u8| -> Vec<usize> {
        let wins = |n: &usize| match storage.put(&race_key(*n), &body(writer)) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}");
                // Who lost sees the winner's object at once, and whole.
                let seen = storage
                    .get(&race_key(*n))
                    .expect("the winner's object is there");
                assert_eq!(seen, body(seen[0]));
                false
            }
        };
        (0..KEYS).filter(wins).collect()
    };
    let won = &won;
    let wins: Vec<(u8, Vec<usize>)> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || (writer, won(writer))))
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().expect("no writer panics"))
            .collect()
    });
    let mut winners = BTreeMap::new();
    for (writer, keys) in wins {
        for n in keys {
            assert_eq!(
                winners.insert(n, writer),
                None,
                "two puts of key {n} succeeded"
            );
        }
    }
    assert_eq!(winners.len(), KEYS);
    for (n, winner) in winners {
        assert_eq!(storage.get(&race_key(n)).expect("get"), body(winner));
    }
}

fn a_range_is_filled_exactly(storage: &dyn Storage) {
    storage.put(&key("a/b"), b"0123456789").expect("put");
    let range = |offset: u64, length: usize| {
        let mut buffer = vec![b'x'; length];
        storage
            .get_range(&key("a/b"), offset, &mut buffer)
            .expect("the range is there");
        String::from_utf8(buffer).expect("digits")
    };
    assert_eq!(range(0, 10), "0123456789");
    assert_eq!(range(3, 4), "3456");
    assert_eq!(range(9, 1), "9");
    assert_eq!(range(0, 0), "");
    assert_eq!(range(10, 0), "");
}

fn a_range_past_the_end_is_truncated(storage: &dyn Storage) {
    storage.put(&key("a/b"), b"0123456789").expect("put");
    for (offset, length) in [
        (0, 11),
        (9, 2),
        (10, 1),
        (11, 0),
        (11, 1),
        (u64::MAX, 0),
        (u64::MAX, 1),
        (1 << 63, 1),
    ] {
        let answer = storage.get_range(&key("a/b"), offset, &mut vec![0; length]);
        assert_eq!(
            failure(answer),
            Some(ErrorKind::Truncated),
            "{length} bytes from {offset} on"
        );
    }
}

fn a_listing_takes_any_text_as_prefix(storage: &dyn Storage) {
    put_all(
        storage,
        &[
            "config",
            "config.copy",
            "data/00/a",
            "data/0f/b",
            "data/10/c",
            "meta/00/d",
        ],
    );
    assert_eq!(listed(storage, "conf", None, 10), ["config", "config.copy"]);
    assert_eq!(listed(storage, "config.copy", None, 10), ["config.copy"]);
    assert_eq!(
        listed(storage, "data/0", None, 10),
        ["data/00/a", "data/0f/b"]
    );
    assert_eq!(listed(storage, "data/0f/", None, 10), ["data/0f/b"]);
    assert_eq!(listed(storage, "data/0f/b", None, 10), ["data/0f/b"]);
    assert_eq!(
        listed(storage, "d", None, 10),
        ["data/00/a", "data/0f/b", "data/10/c"]
    );
    assert_eq!(listed(storage, "data/2", None, 10), [""; 0]);
    assert_eq!(listed(storage, "", None, 10).len(), 6);
    assert_eq!(listed(storage, "", None, 0), [""; 0]);
}

fn a_listing_starts_after_a_key_that_need_not_exist(storage: &dyn Storage) {
    put_all(storage, &["a/1", "a/2", "b/1", "b/2", "c"]);
    assert_eq!(listed(storage, "", Some("a/2"), 2), ["b/1", "b/2"]);
    assert_eq!(listed(storage, "", Some("a/"), 2), ["a/1", "a/2"]);
    assert_eq!(listed(storage, "", Some("a/19"), 2), ["a/2", "b/1"]);
    assert_eq!(listed(storage, "", Some("b/1/x"), 9), ["b/2", "c"]);
    assert_eq!(listed(storage, "b/", Some("a/2"), 9), ["b/1", "b/2"]);
    assert_eq!(listed(storage, "b/", Some("b/1"), 9), ["b/2"]);
    assert_eq!(listed(storage, "b/", Some("b0"), 9), [""; 0]);
    assert_eq!(listed(storage, "", Some("c"), 9), [""; 0]);
    assert_eq!(listed(storage, "", Some("~"), 9), [""; 0]);
}

fn a_listing_is_in_key_order_across_separators(storage: &dyn Storage) {
    let mut keys = vec![
        "a-b", "a/b", "a0", "a.b/c", "a+", "a=", "aB", "a/-", "a/0/x", "a/b-c/d", "a/b0", "a-/z",
        "A",
    ];
    put_all(storage, &keys);
    keys.sort_unstable();
    assert_eq!(listed(storage, "", None, 100), keys);
    assert_eq!(listed(storage, "", None, 4), keys[..4]);
    for after in &keys {
        let expected: Vec<&str> = keys.iter().copied().filter(|other| other > after).collect();
        assert_eq!(
            listed(storage, "", Some(after), 100),
            expected,
            "after {after}"
        );
    }
    for prefix in ["a", "a-", "a/", "a/b", "a.", "a."] {
        let expected: Vec<&str> = keys
            .iter()
            .copied()
            .filter(|other| other.starts_with(prefix))
            .collect();
        assert_eq!(
            listed(storage, prefix, None, 100),
            expected,
            "with {prefix}"
        );
    }
}

fn pages_of_a_listing_make_the_whole(storage: &dyn Storage) {
    let separators = ["-", "/", "0", "/x/", "."];
    let text = |n: usize| format!("wal/{:x}{}{n:04}", n * 7 % 16, separators[n % 5]);
    let mut keys: Vec<String> = (0..1_100).map(text).collect();
    for text in &keys {
        storage.put(&key(text), b"").expect("put");
    }
    keys.sort_unstable();
    for limit in [7, 100, 1_000, 1_100, 5_000] {
        let mut paged: Vec<String> = Vec::new();
        loop {
            let page = listed(storage, "wal/", paged.last().map(String::as_str), limit);
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert!(paged == keys, "pages of {limit}");
    }
}

fn a_listing_tells_length_and_time(storage: &dyn Storage) {
    let now_ms = || {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        i64::try_from(since.as_millis()).expect("a time within range")
    };
    // A file's time is the kernel's clock at its last tick, which may be some milliseconds behind.
    let before = now_ms() - 100;
    storage.put(&key("a/b"), &[1; 1_234]).expect("put");
    let objects = storage.list("", None, 10).expect("list");
    let [
        Object {
            key: found,
            bytes: 1_234,
            modified_ms,
        },
    ] = objects.as_slice()
    else {
        unreachable!("one object of that length was put: {objects:?}");
    };
    assert_eq!(found.as_str(), "a/b");
    assert!(
        (before..=now_ms()).contains(modified_ms),
        "{modified_ms} against {before}"
    );
}

fn a_prefix_that_no_key_can_have_lists_nothing(storage: &dyn Storage) {
    put_all(storage, &["a/b"]);
    for prefix in [
        "/", "/a", "a//", "../", "a/../a/", "./", "a/./", "a/b/", "é", "a/\0/", "a/ ",
    ] {
        assert_eq!(listed(storage, prefix, None, 10), [""; 0], "{prefix:?}");
    }
}

fn deleting_twice_is_deleting(storage: &dyn Storage) {
    put_all(storage, &["a/b", "a/c"]);
    storage.delete(&key("a/b")).expect("delete");
    storage.delete(&key("a/b")).expect("delete again");
    storage
        .delete(&key("x/y/z"))
        .expect("delete what never was");
    assert_eq!(failure(storage.get(&key("a/b"))), Some(ErrorKind::NotFound));
    assert_eq!(listed(storage, "", None, 10), ["a/c"]);
}

fn a_key_can_be_put_again_after_it_was_deleted(storage: &dyn Storage) {
    put_all(storage, &["a/b"]);
    storage.delete(&key("a/b")).expect("delete");
    storage.put(&key("a/b"), b"again").expect("put again");
    assert_eq!(storage.get(&key("a/b")).expect("get"), b"again");
}

fn no_part_of_an_object_is_ever_seen(storage: &dyn Storage) {
    const OBJECTS: u8 = 12;
    const BYTES: usize = 4 << 20;
    let name = |n: u8| key(&format!("data/{n:02}/pack"));
    let finished = AtomicBool::new(false);
    let read_all = || {
        let mut seen = 0;
        for n in 0..OBJECTS {
            match storage.get(&name(n)) {
                Ok(body) => {
                    assert!(
                        body.len() == BYTES && body.iter().all(|byte| *byte == n),
                        "object {n} was seen in part"
                    );
                    seen += 1;
                }
                Err(error) => assert_eq!(error.kind, ErrorKind::NotFound, "{error}"),
            }
        }
        let objects = storage.list("data/", None, 100).expect("list");
        assert!(
            objects.iter().all(|object| object.bytes == BYTES as u64),
            "{objects:?}"
        );
        assert!(
            objects.len() >= seen,
            "an object that was read is not listed"
        );
    };
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !finished.load(Ordering::SeqCst) {
                read_all();
            }
        });
        let put = |n: u8| storage.put(&name(n), &vec![n; BYTES]);
        let puts: Vec<Result<()>> = (0..OBJECTS).map(put).collect();
        finished.store(true, Ordering::SeqCst);
        reader.join().expect("the reader saw whole objects only");
        assert!(puts.iter().all(Result::is_ok), "{puts:?}");
    });
    assert_eq!(
        storage.list("data/", None, 100).expect("list").len(),
        usize::from(OBJECTS)
    );
}

#[test]
fn a_root_that_is_gone_is_unreachable() {
    let place = Local::new();
    let root = place.directory.path().join("root");
    put_all(&place.storage, &["a/b"]);
    let all_fail = || {
        let storage = &place.storage;
        let answers = [
            failure(storage.get(&key("a/b"))),
            failure(storage.get_range(&key("a/b"), 0, &mut [])),
            failure(storage.list("", None, 10)),
            failure(storage.list("a/", None, 10)),
            failure(storage.put(&key("a/c"), b"body")),
            failure(storage.delete(&key("a/b"))),
        ];
        assert_eq!(answers, [Some(ErrorKind::Unreachable); 6]);
    };
    fs::rename(&root, place.directory.path().join("elsewhere")).unwrap();
    all_fail();
    assert!(!root.exists());
    // What is left of an unmounted disk is the empty directory it was mounted on.
    fs::create_dir(&root).unwrap();
    all_fail();
    // Somebody once made a repository in it by mistake.
    fs::create_dir(root.join(".tmp")).unwrap();
    all_fail();
    assert_eq!(fs::read_dir(root.join(".tmp")).unwrap().count(), 0);
}

#[test]
fn a_root_that_never_was_is_unreachable_and_is_not_made() {
    let directory = TempDir::new().unwrap();
    let root = directory.path().join("root");
    assert_eq!(
        failure(LocalStorage::open(&root)),
        Some(ErrorKind::Unreachable)
    );
    assert!(!root.exists());
}

#[test]
fn a_listing_shows_objects_only() {
    let place = Local::new();
    let root = place.directory.path().join("root");
    put_all(&place.storage, &["a/b", "c"]);
    let strange = [".tmp/left-over", "a/white space", "ä", "lost~"];
    for path in strange {
        fs::copy(root.join("c"), root.join(path)).unwrap();
    }
    fs::create_dir_all(root.join("empty/lost + found")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
    assert_eq!(listed(&place.storage, "", None, 10), ["a/b", "c"]);
    for prefix in [".", ".tmp", ".tmp/", ".tmp/left", "lost", "a/white"] {
        assert_eq!(
            listed(&place.storage, prefix, None, 10),
            [""; 0],
            "{prefix}"
        );
    }
}

#[test]
fn a_part_of_a_repository_may_be_a_link() {
    let place = Local::new();
    let root = place.directory.path().join("root");
    fs::create_dir(place.directory.path().join("moved")).unwrap();
    std::os::unix::fs::symlink("../moved", root.join("wal")).unwrap();
    put_all(&place.storage, &["wal/a", "x/b"]);
    assert_eq!(listed(&place.storage, "", None, 10), ["wal/a", "x/b"]);
    assert_eq!(place.storage.get(&key("wal/a")).unwrap(), b"wal/a");
}

#[test]
fn a_local_storage_is_described_by_its_path() {
    let place = Local::new();
    let root = place.directory.path().join("root");
    assert_eq!(
        place.storage.describe(),
        format!("directory {}", root.display())
    );
    let error = place.storage.get(&key("a/b")).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("get a/b in directory {}: no such object", root.display())
    );
}
