//! Repositories on stores that do not keep put-if-absent, whatever they say.
//!
//! Promises: such a store is found out when the repository is made, the user is told what follows, and one host alone
//! loses nothing on it: what is there is never replaced.

use std::sync::{Arc, Mutex};

use pgcairn_engine::actions::{self, StanzaCreateOptions};
use pgcairn_engine::monitor::{Monitor, Problem, Stage, Tally};
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_engine::repository::{self, Repository};
use pgcairn_engine::storage::memory::MemoryStorage;
use pgcairn_engine::storage::{ErrorKind, Key, Storage};
use pgcairn_tests::careless::{Care, Careless};
use pgcairn_tests::host::{Host, STANZA};
use pgcairn_tests::pgdata::Pgdata;

/// Keeps the problems that it was told of.
#[derive(Default)]
struct Problems(Mutex<Vec<String>>);

impl Monitor for Problems {
    fn stage(&self, _stage: Stage, _total_bytes: u64, _total_files: u64) {}
    fn progress(&self, _tally: &Tally) {}
    fn problem(&self, problem: &Problem) {
        self.0.lock().expect("no panic").push(problem.to_string());
    }
    fn note(&self, _text: &str) {}
}

/// Makes a stanza, and answers the repository and what the user was told.
fn made(storage: Arc<dyn Storage>) -> (Repository, String) {
    let pgdata = Pgdata::small();
    let options = StanzaCreateOptions {
        stanza: STANZA.to_owned(),
        pgdata: pgdata.path.clone(),
    };
    let problems = Problems::default();
    actions::stanza_create(Arc::clone(&storage), &options, None, &problems).expect("a stanza");
    let repository = repository::open(storage).expect("a repository");
    let told = problems.0.into_inner().expect("no panic").join("\n");
    (repository, told)
}

fn careless(care: Care) -> (Repository, String) {
    made(Arc::new(Careless::new(care)))
}

#[test]
fn a_store_that_lets_one_of_racing_puts_win_is_believed() {
    let (repository, told) = made(Arc::new(MemoryStorage::new()));
    assert!(repository.config.capabilities.put_if_absent);
    assert_eq!(told, "");
}

#[test]
fn a_store_that_replaces_or_looks_too_early_is_found_out_and_the_user_told() {
    for care in [Care::None, Care::BeforeTheBody] {
        let (repository, told) = careless(care);
        assert!(!repository.config.capabilities.put_if_absent, "{care:?}");
        assert!(told.contains("only one host may write"), "{told}");
        assert_eq!(repository.storage.list("probe/", None, 1).unwrap(), []);
    }
}

#[test]
fn on_a_careless_store_nothing_that_is_there_is_replaced() {
    let (repository, _) = careless(Care::None);
    let key = Key::new("wal/main/15-1/x").unwrap();
    repository.storage.put(&key, b"first").unwrap();
    let refused = repository.storage.put(&key, b"second").unwrap_err();
    assert_eq!(refused.kind, ErrorKind::AlreadyExists);
    assert_eq!(repository.storage.get(&key).unwrap(), b"first");
    let empty = Key::new("wal/main/15-1/empty").unwrap();
    repository.storage.put(&empty, b"").unwrap();
    assert!(repository.storage.put(&empty, b"second").is_err());
}

#[test]
fn a_careless_store_holds_backups_that_restore() {
    let pgdata = Pgdata::small();
    let host = Host::new(&pgdata.path, pgdata.folder());
    let repository = host.stanza_create(Arc::new(Careless::new(Care::BeforeTheBody)));
    host.backup(&repository, BackupType::Full).unwrap();
    host.backup(&repository, BackupType::Incr).unwrap();
    let target = pgdata.folder().join("restored");
    host.restore(&repository, &target, None).unwrap();
    assert_eq!(
        std::fs::read(target.join("PG_VERSION")).unwrap(),
        std::fs::read(pgdata.path.join("PG_VERSION")).unwrap()
    );
}
