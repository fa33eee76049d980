//! Real PostgreSQL servers for tests, and the programs that judge them.
//!
//! Promises: a server has a folder of its own, with data directory, socket and log; it listens on that socket alone, so
//! servers never meet one another nor a server of this machine; as root, servers and `pgcairn` run as an unprivileged
//! account; a dropped [`Server`] is stopped and its folder removed (kept when the test failed and `CAIRN_KEEP` is set).
//! Refuses: to skip; a missing program fails the test and names the set-up script.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs, thread};

use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use rustix::process::Pid;
use tempfile::TempDir;

use crate::process::{self, Finished, PATIENCE, finish, wait_until};

/// The superuser of every test server.
pub const SUPERUSER: &str = "postgres";

/// What a server is asked for that a test does not set itself: small, quick, careless about a loss of power.
const SETTINGS: &str = "fsync = off\nshared_buffers = 32MB\nautovacuum_naptime = 5s\nlog_line_prefix = '%m [%p] '\n\
                        max_wal_senders = 4\nwal_level = replica\n";

/// How a server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Ends the sessions and writes a checkpoint.
    Fast,
    /// Ends everything at once; the next start recovers from the WAL.
    Immediate,
}

/// One PostgreSQL server, or the place for one, in a folder of its own.
#[derive(Debug)]
pub struct Server {
    /// The PostgreSQL version, such as 15.
    pub major: u32,
    /// The data directory; absent until [`Server::init`] or a restore makes it.
    pub data: PathBuf,
    folder: TempDir,
}

impl Server {
    /// A server of the system's version, running, with page checksums and with lines added to its `postgresql.conf`.
    pub fn running(settings: &str) -> Self {
        let server = Server::empty(system_major());
        server.init(&["--data-checksums"]);
        server.configure(settings);
        server.start();
        server
    }

    /// The place for a server: a folder that the servers' account owns, without a data directory.
    pub fn empty(major: u32) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("pgc-")
            .tempdir()
            .expect("a temporary folder can be made");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))
            .expect("its mode can be set");
        let server = Server {
            major,
            data: folder.path().join("data"),
            folder,
        };
        server.give(server.folder());
        server
    }

    /// The folder that holds all of this server; a place for repositories and files of the test too.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Gives a file or folder of the test to the servers' account.
    pub fn give(&self, path: &Path) {
        process::give(path);
    }

    /// Makes a folder within [`Server::folder`] that belongs to the servers' account.
    pub fn make_folder(&self, name: &str) -> PathBuf {
        let path = self.folder().join(name);
        fs::create_dir(&path).expect("a folder can be made in the server's folder");
        self.give(&path);
        path
    }

    /// Makes a file within [`Server::folder`] that belongs to the servers' account.
    pub fn make_file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder().join(name);
        let mut file = fs::File::create(&path).expect("a file can be made in the server's folder");
        file.write_all(content.as_ref()).expect("it can be written");
        self.give(&path);
        path
    }

    /// Makes the data directory, with the test settings; `options` are more options of `initdb`.
    pub fn init(&self, options: &[&str]) {
        let mut initdb = self.command(self.server_program("initdb"));
        initdb.args([
            "--auth=trust",
            "--no-locale",
            "--encoding=UTF8",
            "--no-sync",
            "--username",
            SUPERUSER,
            "--pgdata",
        ]);
        finish(initdb.arg(&self.data).args(options)).success();
        self.configure(SETTINGS);
    }

    /// Adds lines to `postgresql.conf`; they count from the next start on.
    pub fn configure(&self, lines: &str) {
        let path = self.data.join("postgresql.conf");
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(path)
            .expect("the server has its configuration file");
        writeln!(file, "\n{lines}").expect("it can be written");
    }

    /// Starts the server and waits until it accepts connections.
    #[track_caller]
    pub fn start(&self) {
        let started = self.try_start();
        assert_eq!(
            started.code,
            Some(0),
            "the server did not start: {}\n{}",
            started.stderr,
            self.log()
        );
    }

    /// Starts the server, which may fail; [`Server::log`] then has the reason.
    pub fn try_start(&self) -> Finished {
        process::adopt_orphans();
        // Given here, and not in the data directory, so that a data directory restored from another server obeys.
        let socket = format!(
            "-c listen_addresses= -c port=5432 -c unix_socket_directories={}",
            self.folder().display()
        );
        self.control(&[
            "start",
            "-w",
            "-t",
            &PATIENCE.as_secs().to_string(),
            "-o",
            &socket,
        ])
    }

    /// Stops the server.
    #[track_caller]
    pub fn stop(&self, how: Stop) {
        let mode = if how == Stop::Fast {
            "fast"
        } else {
            "immediate"
        };
        self.control(&[
            "stop",
            "-w",
            "-t",
            &PATIENCE.as_secs().to_string(),
            "-m",
            mode,
        ])
        .success();
    }

    /// Stops the server and starts it again.
    #[track_caller]
    pub fn restart(&self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Kills the server's processes, all of them, as a crash of the machine would.
    pub fn kill(&self) {
        let postmaster = self.postmaster().expect("the server runs");
        // The postmaster first: it would see its children die, and put itself in order.
        let mut processes = vec![postmaster];
        processes.extend(process::children(postmaster));
        process::kill(&processes);
    }

    /// Whether the server runs.
    pub fn is_running(&self) -> bool {
        self.postmaster().is_some()
    }

    /// Waits until a recovering server has become one that accepts writes.
    pub fn wait_for_promotion(&self) {
        wait_until("recovery has ended", || {
            (self.value("SELECT pg_is_in_recovery()") == "f").then_some(())
        });
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The settings by which `pgcairn` finds this server, as lines of a stanza's section.
    pub fn stanza_options(&self) -> String {
        let (data, socket) = (self.data.display(), self.folder().display());
        format!("pg1-path={data}\npg1-socket-path={socket}\npg1-port=5432\npg1-user={SUPERUSER}\n")
    }

    /// A session in a database.
    pub fn connect(&self, database: &str) -> Client {
        let mut config = Config::new();
        config
            .host_path(self.folder())
            .port(5432)
            .user(SUPERUSER)
            .dbname(database);
        config
            .connect(NoTls)
            .expect("a running server accepts connections")
    }

    /// Runs statements in the database `postgres`.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        self.connect("postgres")
            .batch_execute(sql)
            .expect("the statements are right");
    }

    /// The rows of a query in a database, as text; NULL is the empty text.
    #[track_caller]
    pub fn rows(&self, database: &str, sql: &str) -> Vec<Vec<String>> {
        let messages = self
            .connect(database)
            .simple_query(sql)
            .expect("the query is right");
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|column| row.get(column).unwrap_or_default().to_owned())
                    .collect(),
            ),
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    }

    /// The one value of a query in the database `postgres`, as text.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        let rows = self.rows("postgres", sql);
        rows.into_iter()
            .flatten()
            .next()
            .expect("the query has a result")
    }

    /// Runs pgbench on the database `postgres` until it is done.
    #[track_caller]
    pub fn pgbench(&self, options: &[&str]) {
        finish(self.client_command("pgbench").args(options).arg("postgres")).success();
    }

    /// Starts pgbench on the database `postgres` as a load in the background.
    pub fn load(&self, clients: u32) -> Load {
        let mut pgbench = self.client_command("pgbench");
        // The time is a bound for a test that hangs; the load ends when it is stopped.
        pgbench.args([
            "--no-vacuum",
            "--time=3600",
            "--client",
            &clients.to_string(),
            "postgres",
        ]);
        Load(
            pgbench
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("pgbench starts"),
        )
    }

    /// Checks all tables and B-tree indexes of all databases; the server's version must be the system's or older.
    #[track_caller]
    pub fn amcheck(&self) {
        let options = [
            "--all",
            "--install-missing",
            "--heapallindexed",
            "--no-strict-names",
        ];
        finish(self.client_command("pg_amcheck").args(options)).success();
    }

    /// Verifies the checksums of all pages of the stopped server; its version must be the system's.
    #[track_caller]
    pub fn verify_checksums(&self) {
        assert_eq!(
            self.major,
            system_major(),
            "pg_checksums reads data directories of its own version alone"
        );
        let mut command = self.command(client_folder().join("pg_checksums"));
        finish(command.args(["--check", "--pgdata"]).arg(&self.data)).success();
    }

    /// All databases as SQL text; the server's version must be the system's or older.
    #[track_caller]
    pub fn dump(&self) -> String {
        finish(&mut self.client_command("pg_dumpall")).success()
    }

    /// A hash of the rows of every logged table and materialised view, under `database.schema.table`. (A restore
    /// empties unlogged tables, as a crash does.)
    pub fn hashes(&self) -> BTreeMap<String, String> {
        // A limit of -2 marks a database whose DROP did not end: nobody can connect to it any more.
        let databases = "SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 \
                         AND datname <> 'template0'";
        let tables = "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
                      WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND nspname <> 'information_schema' \
                      AND nspname NOT LIKE 'pg\\_%'";
        let mut hashes = BTreeMap::new();
        for database in self.rows("postgres", databases).into_iter().flatten() {
            for table in self.rows(&database, tables).into_iter().flatten() {
                let hash = format!(
                    "SELECT md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE \"C\"), '')) FROM {table} t"
                );
                let hash = self
                    .rows(&database, &hash)
                    .into_iter()
                    .flatten()
                    .next()
                    .expect("an aggregate has a row");
                hashes.insert(format!("{database}.{table}"), hash);
            }
        }
        hashes
    }

    /// Runs `pgcairn` as the servers' account.
    pub fn pgcairn<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        finish(self.command(self.pgcairn_path()).args(arguments))
    }

    /// A `pgcairn` that the servers' account can run, for archive and restore commands too.
    pub fn pgcairn_path(&self) -> PathBuf {
        // The build folder may lie in a home directory that nobody else may enter.
        let path = self.folder().join("pgcairn");
        if !path.exists() {
            let built = built_pgcairn();
            if fs::hard_link(&built, &path).is_err() {
                fs::copy(&built, &path).expect("the program can be copied");
            }
        }
        path
    }

    /// A command that runs as the servers' account, without settings of the caller's own PostgreSQL and `pgcairn`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = process::unprivileged(program);
        command
            .env("HOME", self.folder())
            .current_dir(self.folder());
        command
    }

    fn client_command(&self, program: &str) -> Command {
        let mut command = self.command(client_folder().join(program));
        command
            .env("PGHOST", self.folder())
            .env("PGPORT", "5432")
            .env("PGUSER", SUPERUSER);
        command
    }

    fn control(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command(self.server_program("pg_ctl"));
        command
            .args(arguments)
            .arg("--pgdata")
            .arg(&self.data)
            .arg("--log")
            .arg(self.folder().join("log"));
        // To files: a server that was started inherits the outputs, so that pipes would stay open while it runs.
        let (out, err) = (
            self.folder().join("pg_ctl.out"),
            self.folder().join("pg_ctl.err"),
        );
        let create = |path: &Path| {
            fs::File::create(path).expect("a file can be made in the server's folder")
        };
        let status = command
            .stdout(create(&out))
            .stderr(create(&err))
            .status()
            .expect("pg_ctl runs");
        let text = |path: &Path| fs::read_to_string(path).expect("what pg_ctl said can be read");
        Finished {
            code: status.code(),
            stdout: text(&out),
            stderr: text(&err),
        }
    }

    fn server_program(&self, name: &str) -> PathBuf {
        server_folder(self.major).join(name)
    }

    /// The server's first process, if it runs.
    fn postmaster(&self) -> Option<Pid> {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(file.lines().next()?.trim().parse().ok()?)?;
        // A file that a killed server left may name a process that has nothing to do with it.
        let folder = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()?;
        (folder == self.data).then_some(pid)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_running() {
            self.control(&["stop", "-w", "-t", "30", "-m", "immediate"]);
        }
        if thread::panicking() && env::var_os("CAIRN_KEEP").is_some() {
            self.folder.disable_cleanup(true);
            // Nothing better can be done about a closed standard error.
            drop(writeln!(
                std::io::stderr(),
                "kept: {}",
                self.folder().display()
            ));
        }
    }
}

/// A pgbench that runs in the background; it ends when this is dropped.
#[derive(Debug)]
pub struct Load(Child);

impl Load {
    /// Whether pgbench still runs, that is, whether no statement of it has failed.
    pub fn is_running(&mut self) -> bool {
        self.0
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself, because the server was stopped.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The newest PostgreSQL version that is installed from packages.
pub fn system_major() -> u32 {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let installed = versions.filter(|entry| entry.path().join("bin/pgbench").exists());
    let majors = installed.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    majors
        .max()
        .expect("PostgreSQL is installed: run tests/setup.sh")
}

/// The folder with psql, pgbench and the like.
fn client_folder() -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{}/bin", system_major()))
}

/// The folder with initdb, `pg_ctl` and postgres of one version.
#[track_caller]
fn server_folder(major: u32) -> PathBuf {
    let named = env::var_os(format!("CAIRN_TEST_PG_BIN_{major}")).map(PathBuf::from);
    let installed = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let unpacked = build_folder().map(|folder| folder.join(format!("postgres/{major}/bin")));
    let found = named
        .into_iter()
        .chain([installed])
        .chain(unpacked)
        .find(|folder| folder.join("postgres").exists());
    found.unwrap_or_else(|| panic!("no server of PostgreSQL {major}: run tests/setup.sh {major}"))
}

/// Where the set-up script keeps what it unpacks.
fn build_folder() -> Option<PathBuf> {
    let named = env::var_os("CAIRN_BUILD_DIR").map(PathBuf::from);
    let user = || Some(PathBuf::from(env::var_os("XDG_CACHE_HOME")?));
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let of_root = rustix::process::geteuid()
        .is_root()
        .then(|| PathBuf::from("/var/cache/pgcairn"));
    named
        .or(of_root)
        .or_else(|| user().or_else(home).map(|cache| cache.join("pgcairn")))
}

/// The `pgcairn` that was built along with the running test.
fn built_pgcairn() -> PathBuf {
    let test = env::current_exe().expect("a test knows its own path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("cargo builds tests in a folder of a profile's folder");
    let program = profile.join("pgcairn");
    assert!(
        program.exists(),
        "{} is not built: build the workspace first",
        program.display()
    );
    program
}
