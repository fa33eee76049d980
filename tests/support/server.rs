//! The engine's session with a server, with something happening in between.
//!
//! Promises: an ordinary implementation of the engine's trait that passes everything on to a real session, and calls back
//! right after the backup has begun and right before it ends.

use pgcairn_engine::cluster;
use pgcairn_engine::cluster::server::{
    Connection, Identity, PgServer, Server, Started, Stopped, connect,
};
use pgcairn_engine::wal_name::{Lsn, Timeline};

use crate::postgres::{self, SUPERUSER};

/// What happens at some moment of a backup.
pub type Event<'a> = Box<dyn FnMut() + Send + 'a>;

/// A session during whose backup things happen.
pub struct Eventful<'a> {
    inner: PgServer,
    begun: Event<'a>,
    ending: Event<'a>,
}

impl<'a> Eventful<'a> {
    /// Connects to a test server; `begun` is called when backup mode was entered, `ending` before it is left.
    pub fn connect(
        server: &postgres::Server,
        begun: impl FnMut() + Send + 'a,
        ending: impl FnMut() + Send + 'a,
    ) -> Self {
        let connection = Connection {
            socket_path: Some(server.folder().to_owned()),
            port: 5432,
            user: Some(SUPERUSER.to_owned()),
            database: "postgres".to_owned(),
        };
        Eventful {
            inner: connect(&connection).expect("a running server accepts connections"),
            begun: Box::new(begun),
            ending: Box::new(ending),
        }
    }
}

impl Server for Eventful<'_> {
    fn identity(&mut self) -> cluster::Result<Identity> {
        self.inner.identity()
    }

    fn start_backup(&mut self, label: &str, fast: bool) -> cluster::Result<Started> {
        let started = self.inner.start_backup(label, fast)?;
        (self.begun)();
        Ok(started)
    }

    fn stop_backup(&mut self) -> cluster::Result<Stopped> {
        (self.ending)();
        self.inner.stop_backup()
    }

    fn ping(&mut self) -> cluster::Result<()> {
        self.inner.ping()
    }

    fn databases(&mut self) -> cluster::Result<Vec<(u32, String)>> {
        self.inner.databases()
    }

    fn tablespaces(&mut self) -> cluster::Result<Vec<(u32, String, String)>> {
        self.inner.tablespaces()
    }

    fn switch_wal(&mut self) -> cluster::Result<Lsn> {
        self.inner.switch_wal()
    }

    fn insert_lsn(&mut self) -> cluster::Result<Lsn> {
        self.inner.insert_lsn()
    }

    fn timeline(&mut self) -> cluster::Result<Timeline> {
        self.inner.timeline()
    }

    fn checkpoint(&mut self) -> cluster::Result<()> {
        self.inner.checkpoint()
    }

    fn restore_point(&mut self, name: &str) -> cluster::Result<Lsn> {
        self.inner.restore_point(name)
    }
}
