//! The running server: the few queries that a backup makes.
//!
//! Promises: one session from start to stop, prepared so that no setting of the role or the database changes what the
//! queries mean or ends the session; start and stop are the calls of the server's version (13 to 18), always
//! non-exclusive, and never wait for the archive. Every error names the purpose of the query. The only file that knows
//! the PostgreSQL client.

use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::types::ToSql;
use postgres::{Client, Config, NoTls, Row};

use crate::cluster::{Error, Result, SUPPORTED, owner};
use crate::wal_name::{Lsn, Timeline};

/// The name under which sessions show in `pg_stat_activity`.
const APPLICATION_NAME: &str = "pgcairn";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Where distributions and PostgreSQL itself put the socket.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// What the queries below need to mean the same on every server, and to go on for as long as a backup takes.
const SESSION: &str = "
    set search_path = 'pg_catalog';
    set client_encoding = 'UTF8';
    set standard_conforming_strings = on;
    set max_parallel_workers_per_gather = 0;
    set statement_timeout = 0;
    set lock_timeout = 0;
    set idle_in_transaction_session_timeout = 0;";

/// Milliseconds since 1970-01-01 UTC by the server's clock.
const NOW: &str = "(extract(epoch from clock_timestamp()) * 1000)::bigint";

/// A session with the server of a cluster.
pub trait Server: Send {
    /// What the server is, and the settings that decide whether it can be backed up.
    fn identity(&mut self) -> Result<Identity>;
    /// Enters backup mode; `fast` asks for an immediate checkpoint. Returns once the checkpoint is done.
    fn start_backup(&mut self, label: &str, fast: bool) -> Result<Started>;
    /// Leaves backup mode, in the session that entered it. Does not wait for the archive.
    fn stop_backup(&mut self) -> Result<Stopped>;
    /// Fails if the connection is lost, or if the server was promoted or demoted since it was made.
    fn ping(&mut self) -> Result<()>;
    /// Object ids and names of all databases, templates included.
    fn databases(&mut self) -> Result<Vec<(u32, String)>>;
    /// Object ids, names and locations of all tablespaces that have one; one that is being dropped is passed over.
    fn tablespaces(&mut self) -> Result<Vec<(u32, String, String)>>;
    /// Ends the current WAL segment; answers the position behind its last record. Primaries only.
    fn switch_wal(&mut self) -> Result<Lsn>;
    /// The position behind the last WAL record; on a standby, behind the last one replayed.
    fn insert_lsn(&mut self) -> Result<Lsn>;
    /// The timeline on which WAL is written now. Right after a promotion, the control file still tells of the one before.
    /// Primaries only.
    fn timeline(&mut self) -> Result<Timeline>;
    /// Writes a checkpoint, or on a standby a restart point at the last checkpoint that was replayed; returns once it is
    /// done.
    fn checkpoint(&mut self) -> Result<()>;
    /// Writes a named restore point, so that a switch has something to switch; answers its position. Primaries only.
    fn restore_point(&mut self, name: &str) -> Result<Lsn>;
}

/// What a server is, and the settings that decide whether it can be backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `server_version_num`, for example 150004.
    pub version_num: u32,
    /// `data_directory`.
    pub data_directory: String,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// `archive_mode`: `off`, `on` or `always`.
    pub archive_mode: String,
    /// `archive_command`.
    pub archive_command: String,
    /// `archive_library`; empty before PostgreSQL 15.
    pub archive_library: String,
    /// `wal_level`: `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// Milliseconds since 1970-01-01 UTC by the server's clock.
    pub now_ms: i64,
}

/// Where a backup began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Replay begins here.
    pub lsn: Lsn,
}

/// Where a backup ended, and what restore needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Replay must reach this position.
    pub lsn: Lsn,
    /// The content of `backup_label`, byte-exact.
    pub label: Vec<u8>,
    /// The content of `tablespace_map`, byte-exact; empty if there is none.
    pub tablespace_map: Vec<u8>,
    /// Milliseconds since 1970-01-01 UTC by the server's clock.
    pub now_ms: i64,
}

/// How to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The directory of its socket; without one the usual places are tried, then `localhost`.
    pub socket_path: Option<PathBuf>,
    /// Its port.
    pub port: u16,
    /// The role; by default it is named as the user of this process.
    pub user: Option<String>,
    /// The database.
    pub database: String,
}

/// A session over PostgreSQL's own protocol.
pub struct PgServer {
    client: Client,
    version_num: u32,
    in_recovery: bool,
}

/// Connects and prepares the session.
pub fn connect(connection: &Connection) -> Result<PgServer> {
    let socket = connection
        .socket_path
        .clone()
        .or_else(|| usual_socket(connection.port));
    let place = match &socket {
        Some(directory) => format!("{}/.s.PGSQL.{}", directory.display(), connection.port),
        None => format!("localhost:{}", connection.port),
    };
    let mut config = Config::new();
    match &socket {
        Some(directory) => config.host_path(directory),
        None => config.host("localhost"),
    };
    config
        .port(connection.port)
        .dbname(&connection.database)
        .application_name(APPLICATION_NAME);
    config.connect_timeout(CONNECT_TIMEOUT);
    if let Some(user) = connection.user.clone().or_else(owner::current_user_name) {
        config.user(&user);
    }
    let client = config.connect(NoTls).map_err(|e| Error::Connect {
        place,
        source: Box::new(e),
    })?;
    let mut server = PgServer {
        client,
        version_num: 0,
        in_recovery: false,
    };
    server.prepare()?;
    Ok(server)
}

fn usual_socket(port: u16) -> Option<PathBuf> {
    let has_socket = |directory: &&&str| {
        Path::new(directory)
            .join(format!(".s.PGSQL.{port}"))
            .exists()
    };
    SOCKET_DIRECTORIES
        .iter()
        .find(has_socket)
        .map(PathBuf::from)
}

impl PgServer {
    fn prepare(&mut self) -> Result<()> {
        self.run("prepare the session", SESSION)?;
        let row = self.row(
            "ask for the server's version",
            "select current_setting('server_version_num')::int4, pg_is_in_recovery()",
            &[],
        )?;
        let version_num: i32 = column(&row, 0, "ask for the server's version")?;
        self.version_num = u32::try_from(version_num).unwrap_or(0);
        self.in_recovery = column(&row, 1, "ask for the server's version")?;
        if !SUPPORTED.contains(&(self.version_num / 10_000)) {
            return Err(Error::UnsupportedServer {
                version_num: self.version_num,
            });
        }
        if self.version_num >= 140_000 {
            self.run("prepare the session", "set idle_session_timeout = 0")?;
        }
        Ok(())
    }

    /// Whether start and stop have the names that they got in PostgreSQL 15.
    fn has_renamed_functions(&self) -> bool {
        self.version_num >= 150_000
    }

    fn run(&mut self, purpose: &'static str, sql: &str) -> Result<()> {
        self.client
            .batch_execute(sql)
            .map_err(|e| failed(purpose, e))
    }

    fn row(
        &mut self,
        purpose: &'static str,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Row> {
        self.client
            .query_one(sql, values)
            .map_err(|e| failed(purpose, e))
    }

    fn position(
        &mut self,
        purpose: &'static str,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Lsn> {
        let row = self.row(purpose, sql, values)?;
        position(&row, 0, purpose)
    }
}

impl Server for PgServer {
    fn identity(&mut self) -> Result<Identity> {
        const PURPOSE: &str = "ask for the server's settings";
        let sql = format!(
            "select current_setting('data_directory'), pg_is_in_recovery(), current_setting('archive_mode'),
                current_setting('archive_command'), coalesce(current_setting('archive_library', true), ''),
                current_setting('wal_level'), {NOW}"
        );
        let row = self.row(PURPOSE, &sql, &[])?;
        Ok(Identity {
            version_num: self.version_num,
            data_directory: column(&row, 0, PURPOSE)?,
            in_recovery: column(&row, 1, PURPOSE)?,
            archive_mode: column(&row, 2, PURPOSE)?,
            archive_command: column(&row, 3, PURPOSE)?,
            archive_library: column(&row, 4, PURPOSE)?,
            wal_level: column(&row, 5, PURPOSE)?,
            now_ms: column(&row, 6, PURPOSE)?,
        })
    }

    fn start_backup(&mut self, label: &str, fast: bool) -> Result<Started> {
        let sql = if self.has_renamed_functions() {
            "select pg_backup_start($1, $2)::text"
        } else {
            "select pg_start_backup($1, $2, false)::text"
        };
        Ok(Started {
            lsn: self.position("start the backup", sql, &[&label, &fast])?,
        })
    }

    fn stop_backup(&mut self) -> Result<Stopped> {
        const PURPOSE: &str = "stop the backup";
        let function = if self.has_renamed_functions() {
            "pg_backup_stop(false)"
        } else {
            "pg_stop_backup(false, false)"
        };
        let sql =
            format!("select lsn::text, labelfile, coalesce(spcmapfile, ''), {NOW} from {function}");
        let row = self.row(PURPOSE, &sql, &[])?;
        Ok(Stopped {
            lsn: position(&row, 0, PURPOSE)?,
            label: column::<String>(&row, 1, PURPOSE)?.into_bytes(),
            tablespace_map: column::<String>(&row, 2, PURPOSE)?.into_bytes(),
            now_ms: column(&row, 3, PURPOSE)?,
        })
    }

    fn ping(&mut self) -> Result<()> {
        const PURPOSE: &str = "ask whether the server is still there";
        let row = self.row(PURPOSE, "select pg_is_in_recovery()", &[])?;
        let in_recovery: bool = column(&row, 0, PURPOSE)?;
        if in_recovery == self.in_recovery {
            Ok(())
        } else {
            Err(Error::RoleChanged {
                was_standby: self.in_recovery,
            })
        }
    }

    fn databases(&mut self) -> Result<Vec<(u32, String)>> {
        const PURPOSE: &str = "ask for the databases";
        let sql = "select oid, datname::text from pg_database order by oid";
        let rows = self
            .client
            .query(sql, &[])
            .map_err(|e| failed(PURPOSE, e))?;
        rows.iter()
            .map(|row| Ok((column(row, 0, PURPOSE)?, column(row, 1, PURPOSE)?)))
            .collect()
    }

    fn tablespaces(&mut self) -> Result<Vec<(u32, String, String)>> {
        const PURPOSE: &str = "ask for the tablespaces";
        let sql = "select oid, spcname::text from pg_tablespace
            where spcname not in ('pg_default', 'pg_global') order by oid";
        let rows = self
            .client
            .query(sql, &[])
            .map_err(|e| failed(PURPOSE, e))?;
        let mut tablespaces = Vec::new();
        for row in &rows {
            let (oid, name): (u32, String) = (column(row, 0, PURPOSE)?, column(row, 1, PURPOSE)?);
            let location = self
                .client
                .query_one("select pg_tablespace_location($1)", &[&oid]);
            match location {
                Ok(row) => tablespaces.push((oid, name, column(&row, 0, PURPOSE)?)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(failed(PURPOSE, error)),
            }
        }
        Ok(tablespaces)
    }

    fn switch_wal(&mut self) -> Result<Lsn> {
        self.position(
            "end the current WAL segment",
            "select pg_switch_wal()::text",
            &[],
        )
    }

    fn insert_lsn(&mut self) -> Result<Lsn> {
        let sql = "select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
            else pg_current_wal_insert_lsn() end)::text";
        self.position("ask for the end of the WAL", sql, &[])
    }

    fn timeline(&mut self) -> Result<Timeline> {
        const PURPOSE: &str = "ask for the timeline";
        let sql = "select pg_walfile_name(pg_current_wal_insert_lsn())";
        let row = self.row(PURPOSE, sql, &[])?;
        let segment: String = column(&row, 0, PURPOSE)?;
        Timeline::of_wal_file(&segment).map_err(|e| failed(PURPOSE, e))
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.run("write a checkpoint", "checkpoint")
    }

    fn restore_point(&mut self, name: &str) -> Result<Lsn> {
        self.position(
            "write a restore point",
            "select pg_create_restore_point($1)::text",
            &[&name],
        )
    }
}

/// Whether a tablespace had been dropped when its location was asked for. The server looks at the disk, where it may
/// be gone while the catalogue still has it.
fn is_gone(error: &postgres::Error) -> bool {
    // PostgreSQL 13 and 14 give this error no code of its own.
    error
        .code()
        .is_some_and(|code| *code == SqlState::UNDEFINED_FILE || *code == SqlState::INTERNAL_ERROR)
}

fn failed(
    purpose: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Query {
        purpose,
        source: source.into(),
    }
}

fn column<'a, T: postgres::types::FromSql<'a>>(
    row: &'a Row,
    index: usize,
    purpose: &'static str,
) -> Result<T> {
    row.try_get(index).map_err(|e| failed(purpose, e))
}

fn position(row: &Row, index: usize, purpose: &'static str) -> Result<Lsn> {
    let text: String = column(row, index, purpose)?;
    text.parse()
        .map_err(|e: crate::wal_name::BadName| failed(purpose, e))
}
