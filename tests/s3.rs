//! What the storage on S3 does when the network and the server do what they sometimes do.
//!
//! Promises: after every fault the answer is what it would have been without, or an error that says what to check; the
//! requests that were made are counted, not guessed.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use pgcairn_engine::storage::s3::{
    Credential, CustomerKey, ObjectOptions, Patience, S3Key, S3Options, S3Storage,
};
use pgcairn_engine::storage::{ErrorKind, Key, Storage};
use pgcairn_tests::damage::chain;
use pgcairn_tests::fault_proxy::{Fault, FaultProxy};
use pgcairn_tests::s3_server::{S3Server, SECRET};

/// Short, so that what is given up is given up soon; long enough that nothing else is.
fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        silence: Duration::from_secs(5),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        give_up: Duration::from_mins(1),
        ..Patience::default()
    }
}

/// A server, a proxy before it, and a storage that goes through the proxy.
struct Place {
    storage: S3Storage,
    proxy: FaultProxy,
    server: S3Server,
}

impl Place {
    fn new() -> Self {
        Self::with(patience())
    }

    fn with(patience: Patience) -> Self {
        let server = S3Server::start();
        let proxy = FaultProxy::start(server.address);
        let storage = open(&S3Options {
            patience,
            ..S3Server::options(proxy.address)
        });
        Place {
            storage,
            proxy,
            server,
        }
    }

    /// What the server holds, seen without the proxy.
    fn held(&self, name: &str) -> Vec<u8> {
        self.server.storage().get(&key(name)).expect("it is there")
    }

    /// The requests since the last call, as `PUT 1, GET 2`.
    fn requests(&self) -> String {
        let told = |(method, count): (&String, &u64)| format!("{method} {count}");
        let requests: BTreeMap<String, u64> = self.proxy.take_passed().requests;
        requests.iter().map(told).collect::<Vec<_>>().join(", ")
    }
}

fn open(options: &S3Options) -> S3Storage {
    S3Storage::open(options).expect("the options are sound")
}

fn key(text: &str) -> Key {
    Key::new(text).expect("the test's keys are keys")
}

/// Puts, reads, lists and deletes an object while `faults` wait for the requests, and compares all answers.
fn everything_succeeds_despite(faults: &[Fault]) {
    let place = Place::new();
    let (storage, proxy) = (&place.storage, &place.proxy);
    let order = |method| {
        for fault in faults {
            proxy.order(method, fault.clone());
        }
    };
    let body: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    order("PUT");
    storage.put(&key("data/a"), &body).expect("put");
    order("GET");
    assert!(storage.get(&key("data/a")).expect("get") == body);
    order("GET");
    let mut range = vec![0; 200_000];
    storage
        .get_range(&key("data/a"), 1_000, &mut range)
        .expect("get a range");
    assert!(range == body[1_000..201_000]);
    order("GET");
    assert_eq!(storage.list("data/", None, 10).expect("list").len(), 1);
    order("DELETE");
    storage.delete(&key("data/a")).expect("delete");
    assert_eq!(storage.list("", None, 10).expect("list"), []);
    assert_eq!(proxy.unused(), 0);
}

#[test]
fn each_call_is_one_request() {
    let place = Place::new();
    let storage = &place.storage;
    storage.put(&key("a/b"), &vec![7; 100_000]).expect("put");
    assert_eq!(place.requests(), "PUT 1");
    storage.get(&key("a/b")).expect("get");
    assert_eq!(place.requests(), "GET 1");
    storage
        .get_range(&key("a/b"), 5, &mut [0; 10])
        .expect("get a range");
    assert_eq!(place.requests(), "GET 1");
    storage.list("a/", None, 1_000).expect("list");
    assert_eq!(place.requests(), "GET 1");
    storage.put(&key("a/b"), b"other").expect_err("it exists");
    assert_eq!(place.requests(), "PUT 1");
    storage.delete(&key("a/b")).expect("delete");
    assert_eq!(place.requests(), "DELETE 1");
    for name in ["c/1", "c/2", "c/3"] {
        storage.put(&key(name), b"body").expect("put");
    }
    place.requests();
    let together = ["c/1", "c/2", "c/3", "c/none"].map(key);
    storage.delete_all(&together).expect("delete");
    assert_eq!(place.requests(), "POST 1");
    assert_eq!(storage.list("c/", None, 10).expect("list"), []);
    place.requests();
    storage.list("a//", None, 10).expect("list");
    assert_eq!(place.requests(), "");
}

#[test]
fn a_storm_of_refusals_is_sat_out() {
    everything_succeeds_despite(&[
        Fault::Refused(500, ""),
        Fault::Refused(502, ""),
        Fault::Refused(503, "Retry-After: 0\r\n"),
        Fault::Refused(503, ""),
        Fault::Refused(429, ""),
        Fault::Refused(409, ""),
    ]);
}

#[test]
fn broken_connections_are_made_again() {
    everything_succeeds_despite(&[Fault::Broken, Fault::Broken, Fault::Broken]);
}

#[test]
fn lost_answers_change_nothing() {
    everything_succeeds_despite(&[Fault::AnswerLost]);
    everything_succeeds_despite(&[Fault::AnswerReplaced(500), Fault::AnswerLost]);
}

#[test]
fn what_breaks_off_is_read_again() {
    let place = Place::new();
    let body = vec![7; 1 << 20];
    place.storage.put(&key("a"), &body).expect("put");
    for bytes in [0, 1, 1000, (1 << 20) - 1] {
        place.proxy.order("GET", Fault::Cut(bytes));
        assert!(place.storage.get(&key("a")).expect("get") == body);
        let mut range = vec![0; 1 << 19];
        place.proxy.order("GET", Fault::Cut(bytes / 2));
        place
            .storage
            .get_range(&key("a"), 1 << 19, &mut range)
            .expect("get a range");
        assert!(range == body[1 << 19..]);
    }
    assert_eq!(place.proxy.unused(), 0);
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let place = Place::with(Patience {
        connect: Duration::from_millis(300),
        silence: Duration::from_millis(700),
        ..patience()
    });
    let (storage, proxy) = (&place.storage, &place.proxy);
    proxy.order("PUT", Fault::Silence);
    storage.put(&key("a"), b"body").expect("put");
    proxy.order("GET", Fault::Silence);
    proxy.order("GET", Fault::SilentBody);
    assert_eq!(storage.get(&key("a")).expect("get"), b"body");
    proxy.order("GET", Fault::SilentBody);
    assert_eq!(storage.list("", None, 10).expect("list").len(), 1);
    proxy.order("DELETE", Fault::Silence);
    storage.delete(&key("a")).expect("delete");
    assert_eq!(proxy.unused(), 0);
}

#[test]
fn a_server_that_only_trickles_is_asked_again() {
    let place = Place::with(Patience {
        connect: Duration::from_millis(300),
        silence: Duration::from_millis(700),
        least_bytes_per_second: 1 << 20,
        ..patience()
    });
    let body = vec![7; 100_000];
    place.storage.put(&key("a"), &body).expect("put");
    place.requests();
    let trickle = Fault::Trickle(Duration::from_millis(50));
    place.proxy.order("GET", trickle.clone());
    assert!(place.storage.get(&key("a")).expect("get") == body);
    assert_eq!(place.requests(), "GET 2");
    place.proxy.order("GET", trickle);
    let mut range = vec![0; 50_000];
    place
        .storage
        .get_range(&key("a"), 1, &mut range)
        .expect("get a range");
    assert!(range == body[1..50_001]);
    assert_eq!(place.requests(), "GET 2");
}

#[test]
fn a_server_that_never_recovers_is_unreachable() {
    let place = Place::with(Patience {
        give_up: Duration::from_millis(200),
        ..patience()
    });
    for _ in 0..10_000 {
        place.proxy.order("GET", Fault::Refused(503, ""));
    }
    let error = place.storage.get(&key("a/b")).expect_err("it is down");
    assert_eq!(error.kind, ErrorKind::Unreachable);
    let text = chain(&error);
    assert!(
        text.contains("get a/b in s3://cairns/repo/sitory at http://127.0.0.1:"),
        "{text}"
    );
    assert!(text.contains("503") && text.contains("attempts"), "{text}");
}

#[test]
fn a_lost_answer_is_resolved_by_reading_back() {
    let place = Place::new();
    place.proxy.order("PUT", Fault::AnswerLost);
    place.storage.put(&key("a"), b"own").expect("it was put");
    assert_eq!(place.requests(), "GET 1, PUT 2");
    assert_eq!(place.held("a"), b"own");
    // The answer to an attempt was lost that had lost the race: the object is another's.
    place.proxy.order("PUT", Fault::AnswerLost);
    let error = place
        .storage
        .put(&key("a"), b"other")
        .expect_err("it is another's");
    assert_eq!(error.kind, ErrorKind::AlreadyExists);
    assert_eq!(place.held("a"), b"own");
}

#[test]
fn a_put_in_doubt_is_never_called_refused() {
    let place = Place::new();
    place.proxy.order("PUT", Fault::AnswerLost);
    place.proxy.order("PUT", Fault::Refused(403, ""));
    let error = place
        .storage
        .put(&key("a"), b"body")
        .expect_err("refused in the end");
    // It is there: "denied" would say that it is not.
    assert_eq!(error.kind, ErrorKind::Unreachable, "{}", chain(&error));
    assert_eq!(place.held("a"), b"body");
}

#[test]
fn a_put_that_arrives_twice_or_late_replaces_nothing() {
    let place = Place::with(Patience {
        connect: Duration::from_millis(300),
        silence: Duration::from_millis(700),
        ..patience()
    });
    place.proxy.order("PUT", Fault::Twice);
    let twice = place.storage.put(&key("a"), b"first");
    assert_eq!(
        twice.map_err(|error| error.kind),
        Err(ErrorKind::AlreadyExists)
    );
    assert_eq!(place.held("a"), b"first");
    // The first attempt is held somewhere, the second succeeds, then the first arrives.
    let gate = place.proxy.order_held("PUT");
    place.storage.put(&key("b"), b"first").expect("put");
    gate.wait_until_reached();
    place.server.storage().delete(&key("a")).expect("delete");
    gate.open();
    assert_eq!(place.held("b"), b"first");
}

#[test]
fn racing_puts_with_lost_answers_have_one_winner_each() {
    const WRITERS: u8 = 8;
    const KEYS: usize = 16;
    let place = Place::new();
    for _ in 0..KEYS {
        place.proxy.order("PUT", Fault::AnswerLost);
        place.proxy.order("PUT", Fault::AnswerReplaced(503));
    }
    let wins = |writer: u8| -> Vec<usize> {
        let win = |n: &usize| match place
            .storage
            .put(&key(&format!("race/{n}")), &[writer; 100])
        {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::AlreadyExists, "{}", chain(&error));
                false
            }
        };
        (0..KEYS).filter(win).collect()
    };
    let wins = &wins;
    let winners: Vec<(u8, Vec<usize>)> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || (writer, wins(writer))))
            .collect();
        let join = |writer: thread::ScopedJoinHandle<'_, _>| writer.join().expect("no panic");
        writers.into_iter().map(join).collect()
    });
    let all: usize = winners.iter().map(|(_, keys)| keys.len()).sum();
    assert_eq!(all, KEYS);
    for (writer, keys) in winners {
        for n in keys {
            assert_eq!(place.held(&format!("race/{n}")), [writer; 100]);
        }
    }
    assert_eq!(place.proxy.unused(), 0);
}

#[test]
fn a_missing_bucket_is_not_an_empty_one() {
    let server = S3Server::start();
    let storage = open(&S3Options {
        bucket: "nowhere".to_owned(),
        ..S3Server::options(server.address)
    });
    let errors = [
        storage.get(&key("a")).map(drop),
        storage.list("", None, 10).map(drop),
        storage.put(&key("a"), b"body"),
        storage.delete(&key("a")),
    ];
    for error in errors {
        let error = error.expect_err("there is no such bucket");
        assert_eq!(error.kind, ErrorKind::Unreachable, "{}", chain(&error));
        assert!(
            chain(&error).contains("check repo1-s3-bucket"),
            "{}",
            chain(&error)
        );
    }
}

#[test]
fn a_wrong_key_is_denied_and_never_shown() {
    let server = S3Server::start();
    for (id, secret, hint) in [
        ("AKUNKNOWN", SECRET, "repo1-s3-key"),
        (
            "AKCAIRN",
            "not-the-secret-of-this-key",
            "repo1-s3-key-secret",
        ),
    ] {
        let options = S3Options {
            credential: Credential::Key(S3Key {
                id: id.to_owned(),
                secret: secret.to_owned(),
                token: None,
            }),
            ..S3Server::options(server.address)
        };
        let storage = open(&options);
        let error = storage
            .put(&key("a"), b"body")
            .expect_err("the key is wrong");
        let text = chain(&error);
        assert_eq!(error.kind, ErrorKind::Denied, "{text}");
        assert!(text.contains(hint), "{text}");
        for shown in [text, format!("{error:?} {storage:?} {options:?}")] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

#[test]
fn a_wrong_region_is_told_with_the_right_one() {
    let place = Place::new();
    let moved = "x-amz-bucket-region: eu-north-1\r\n";
    place.proxy.order("GET", Fault::Refused(301, moved));
    let error = place.storage.get(&key("a")).expect_err("it is elsewhere");
    assert!(
        chain(&error).contains("'us-east-1' but is in 'eu-north-1'"),
        "{}",
        chain(&error)
    );
    assert_eq!(error.kind, ErrorKind::Unreachable);
}

#[test]
fn a_refusal_that_breaks_off_is_asked_again() {
    let place = Place::new();
    place.proxy.order("GET", Fault::Cut(40));
    let error = place.storage.get(&key("a")).expect_err("it is absent");
    assert_eq!(error.kind, ErrorKind::NotFound, "{}", chain(&error));
    assert_eq!(place.requests(), "GET 2");
}

#[test]
fn a_proxys_404_is_not_an_absent_object() {
    let place = Place::new();
    place.proxy.order("GET", Fault::Refused(404, ""));
    let error = place.storage.get(&key("a")).expect_err("an error");
    assert_eq!(error.kind, ErrorKind::Other, "{}", chain(&error));
    assert!(
        chain(&error).contains("repo1-s3-endpoint"),
        "{}",
        chain(&error)
    );
}

#[test]
fn where_nobody_listens_and_where_nobody_speaks_tls_is_said_so() {
    let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    let patience = Patience {
        give_up: Duration::from_millis(100),
        ..patience()
    };
    let nobody = open(&S3Options {
        patience: patience.clone(),
        ..S3Server::options(free.expect("a port was free"))
    });
    let error = nobody.get(&key("a")).expect_err("nobody listens");
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(chain(&error).contains("refused"), "{}", chain(&error));

    let server = S3Server::start();
    let plain = open(&S3Options {
        endpoint: Some(format!("https://{}", server.address)),
        patience,
        ..S3Server::options(server.address)
    });
    let error = plain.get(&key("a")).expect_err("no TLS there");
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(chain(&error).contains("http://"), "{}", chain(&error));
}

#[test]
fn what_lies_beside_the_repository_is_not_listed() {
    let server = S3Server::start();
    let beside = open(&S3Options {
        prefix: "repo".to_owned(),
        ..S3Server::options(server.address)
    });
    for name in ["a", "sitory2/a", "sitory/a", "sitory/b", "sitor/z"] {
        beside.put(&key(name), b"body").expect("put");
    }
    let listed = server.storage().list("", None, 10).expect("list");
    let names: Vec<&str> = listed.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn each_object_is_given_what_was_asked_for() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.address);
    let customer = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let storage = open(&S3Options {
        objects: ObjectOptions {
            kms_key_id: Some("kms".to_owned()),
            customer_key: CustomerKey::new(customer),
            requester_pays: true,
            class: Some(("data/".to_owned(), "STANDARD_IA".to_owned())),
            tagging: Some("team=db".to_owned()),
        },
        ..S3Server::options(proxy.address)
    });
    let has = |method, header: &str| proxy.last_head(method).contains(header);
    // This server knows no storage class but the standard one.
    let refused = storage.put(&key("data/a"), b"body").expect_err("refused");
    assert!(
        chain(&refused).contains("InvalidStorageClass"),
        "{}",
        chain(&refused)
    );
    assert!(has("PUT", "x-amz-storage-class: standard_ia"));
    storage.put(&key("meta/a"), b"body").expect("put");
    for header in [
        "if-none-match: *",
        "x-amz-server-side-encryption: aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id: kms",
        "x-amz-server-side-encryption-customer-key-md5: ",
        "x-amz-request-payer: requester",
        "x-amz-tagging: team=db",
    ] {
        assert!(has("PUT", header), "{header}");
    }
    assert!(!has("PUT", "x-amz-storage-class"));
    storage.get(&key("meta/a")).expect("get");
    for header in [
        "x-amz-server-side-encryption-customer-key: ",
        "x-amz-request-payer: requester",
    ] {
        assert!(has("GET", header), "{header}");
    }
    storage.list("", None, 1).expect("list");
    assert!(has("GET", "x-amz-request-payer: requester"));
}

#[test]
fn an_object_that_cannot_be_deleted_with_others_is_named() {
    let place = Place::new();
    place.proxy.order("POST", Fault::Refused(403, ""));
    let error = place
        .storage
        .delete_all(&[key("a"), key("b")])
        .expect_err("it is forbidden");
    assert_eq!(error.kind, ErrorKind::Denied, "{}", chain(&error));
}
