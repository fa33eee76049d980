//! A load of DDL: everything that makes, moves, rewrites and removes files of a cluster while it is backed up.
//!
//! Promises: two sessions go round until they are stopped; a statement that fails ends its session, and the test when
//! it stops the churn. Refuses: the tables of pgbench, which have a load of their own.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use postgres::Client;

use crate::postgres::Server;

/// What must be there before the churn begins; `{place}` is a folder for a tablespace.
const PREPARATION: &[&str] = &[
    "CREATE TABLESPACE linked LOCATION '{place}'",
    "CREATE TABLESPACE inplace LOCATION ''",
    "CREATE DATABASE model",
    "CREATE TABLE moved AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n",
    "CREATE INDEX moved_t ON moved (t)",
    "CREATE TABLE stays_linked TABLESPACE linked AS SELECT n FROM generate_series(1, 1000) n",
    "CREATE TABLE stays_inplace TABLESPACE inplace AS SELECT n FROM generate_series(1, 1000) n",
    "CREATE TABLE rewritten AS SELECT n, repeat('x', n % 200) AS t FROM generate_series(1, 10000) n",
    "CREATE TABLE truncated (n int, t text)",
    "CREATE UNLOGGED TABLE unlogged AS SELECT n FROM generate_series(1, 5000) n",
    "CREATE INDEX unlogged_n ON unlogged (n)",
    "CREATE TABLE toggled AS SELECT n, md5(n::text) AS t FROM generate_series(1, 5000) n",
    "CREATE TABLE grown (n int, t text)",
];

/// What happens to whole databases and tablespaces.
const PLACES: &[&str] = &[
    "CREATE DATABASE copied TEMPLATE model STRATEGY file_copy",
    "ALTER TABLE moved SET TABLESPACE linked",
    "CREATE DATABASE logged TEMPLATE model STRATEGY wal_log TABLESPACE linked",
    "ALTER INDEX moved_t SET TABLESPACE inplace",
    "DROP DATABASE copied",
    "CREATE TABLESPACE fleeting LOCATION ''",
    "CREATE TABLE visitor TABLESPACE fleeting AS SELECT n FROM generate_series(1, 500) n",
    "ALTER TABLE moved SET TABLESPACE inplace",
    "DROP TABLE visitor",
    "DROP TABLESPACE fleeting",
    "DROP DATABASE logged",
    "ALTER TABLE moved SET TABLESPACE pg_default",
    "ALTER INDEX moved_t SET TABLESPACE pg_default",
];

/// What happens to tables; the growth by COPY comes behind it.
const TABLES: &[&str] = &[
    "INSERT INTO truncated SELECT n, md5(n::text) FROM generate_series(1, 5000) n",
    "UPDATE rewritten SET t = t || 'y' WHERE n % 10 = 0",
    "VACUUM FULL rewritten",
    "CREATE INDEX fresh ON rewritten (n, t)",
    "TRUNCATE truncated",
    "ALTER TABLE toggled SET UNLOGGED",
    "INSERT INTO unlogged SELECT n FROM generate_series(1, 1000) n",
    "CREATE TABLE short AS SELECT * FROM rewritten",
    "CREATE INDEX CONCURRENTLY short_n ON short (n)",
    "ALTER TABLE toggled SET LOGGED",
    "DROP INDEX fresh",
    "DROP TABLE short",
    "UPDATE rewritten SET t = repeat('x', n % 200)",
    "VACUUM rewritten",
    "VACUUM (FREEZE) grown",
];

/// The sessions, while they run.
#[derive(Debug)]
pub struct Churn {
    stop: Arc<AtomicBool>,
    statements: Arc<AtomicU64>,
    sessions: Vec<JoinHandle<()>>,
}

impl Churn {
    /// Makes the objects that the churn is about. The server must have `allow_in_place_tablespaces`.
    pub fn prepare(server: &Server) {
        let place = server.make_folder("space");
        let mut client = server.connect("postgres");
        for statement in PREPARATION {
            run(
                &mut client,
                &statement.replace("{place}", &place.display().to_string()),
            );
        }
        server
            .connect("model")
            .batch_execute("CREATE TABLE t AS SELECT n, md5(n::text) AS t FROM generate_series(1, 3000) n; CREATE INDEX ON t (t)")
            .expect("the model can be filled");
    }

    /// Begins.
    pub fn start(server: &Server) -> Self {
        let (stop, statements) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let session = |list: &'static [&'static str], grows: bool| {
            let mut client = server.connect("postgres");
            let (stop, statements) = (Arc::clone(&stop), Arc::clone(&statements));
            let round = move || {
                while !stop.load(Ordering::Relaxed) {
                    for statement in list {
                        run(&mut client, statement);
                        statements.fetch_add(1, Ordering::Relaxed);
                    }
                    if grows {
                        copy(&mut client);
                    }
                }
            };
            thread::Builder::new()
                .name("churn".to_owned())
                .spawn(round)
                .expect("a thread can be started")
        };
        let sessions = vec![session(PLACES, false), session(TABLES, true)];
        Churn {
            stop,
            statements,
            sessions,
        }
    }

    /// Statements that were run so far.
    pub fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    /// Ends at the end of a round; fails the test if a statement had failed.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session
                .join()
                .expect("every statement of the churn succeeds");
        }
    }
}

#[track_caller]
fn run(client: &mut Client, statement: &str) {
    client
        .batch_execute(statement)
        .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

/// Grows a table as a bulk load does.
fn copy(client: &mut Client) {
    let mut sink = client
        .copy_in("COPY grown FROM STDIN")
        .expect("a COPY can begin");
    for n in 0..5000 {
        writeln!(sink, "{n}\trow number {n} of this round").expect("rows can be sent");
    }
    sink.finish().expect("a COPY can end");
}
