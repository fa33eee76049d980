//! A cluster, its repository and its configuration: what a user of `pgcairn` has.
//!
//! Promises: everything lies in the folder of one [`Server`]; `pgcairn` is run as its account, with its configuration
//! file; a restore goes to a server of its own, which archives nothing. Refuses: to guess; what a command must answer
//! and does not fails the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::postgres::{SUPERUSER, Server};
use crate::process::{Finished, finish, wait_until};

/// The stanza of every test.
pub const STANZA: &str = "main";

/// A cluster with a repository for it.
#[derive(Debug)]
pub struct Stanza {
    /// The cluster.
    pub server: Server,
    /// The configuration file.
    pub config: PathBuf,
    /// The repository's directory.
    pub repository: PathBuf,
    /// The directory of the local caches.
    pub cache: PathBuf,
}

impl Stanza {
    /// Lays out configuration and folders for a server that may not exist yet; the repository is empty.
    pub fn of(server: Server) -> Self {
        let [repository, cache, log, lock] =
            ["repo", "cache", "log.d", "lock"].map(|name| server.make_folder(name));
        let text = format!(
            "[global]\nrepo1-path={}\ncache-path={}\nlog-path={}\nlock-path={}\nstart-fast=y\n\n[{STANZA}]\n{}",
            repository.display(),
            cache.display(),
            log.display(),
            lock.display(),
            server.stanza_options()
        );
        let config = server.make_file("pgcairn.conf", text);
        Stanza {
            server,
            config,
            repository,
            cache,
        }
    }

    /// A running server of one version that archives its WAL to its stanza.
    pub fn archiving(major: u32, initdb: &[&str], settings: &str) -> Self {
        let stanza = Stanza::of(Server::empty(major));
        stanza.begin(initdb, settings);
        stanza
    }

    /// Makes the server, which archives its WAL to the stanza, starts it, and makes the stanza.
    pub fn begin(&self, initdb: &[&str], settings: &str) {
        self.server.init(initdb);
        self.server.configure(&format!(
            "archive_mode = on\narchive_command = '{}'\n{settings}",
            self.archive_command()
        ));
        self.server.start();
        self.pgcairn(["stanza-create"]).success();
    }

    /// Adds lines to the configuration file; they belong to the stanza's section, or to one that they begin.
    pub fn configure(&self, lines: &str) {
        let config = fs::read_to_string(&self.config).expect("the configuration can be read");
        let name = self.config.file_name().and_then(|name| name.to_str());
        let name = name.expect("its name is text");
        self.server.make_file(name, format!("{config}\n{lines}\n"));
    }

    /// What a server's `archive_command` is.
    pub fn archive_command(&self) -> String {
        format!(
            "{} --config={} --stanza={STANZA} archive-push \"%p\"",
            self.server.pgcairn_path().display(),
            self.config.display()
        )
    }

    /// Runs `pgcairn` with this stanza's configuration.
    pub fn pgcairn<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        finish(
            self.server
                .command(self.server.pgcairn_path())
                .args(self.arguments(arguments)),
        )
    }

    /// The arguments of a `pgcairn` for this stanza.
    pub fn arguments<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Vec<String> {
        let mut all = vec![
            format!("--config={}", self.config.display()),
            format!("--stanza={STANZA}"),
        ];
        all.extend(arguments.into_iter().map(|word| word.as_ref().to_owned()));
        all
    }

    /// Makes a backup; `options` are more options of the command.
    #[track_caller]
    pub fn backup(&self, kind: &str, options: &[&str]) -> Backup {
        let mut words = vec![format!("--type={kind}"), "--output=json".to_owned()];
        words.extend(options.iter().map(|option| (*option).to_owned()));
        words.push("backup".to_owned());
        let said = self.pgcairn(&words).success();
        Backup::parse(&said)
    }

    /// Restores a backup to a server's place, which stays stopped and will archive nothing; answers the command's JSON.
    #[track_caller]
    pub fn restore(&self, to: &Server, set: &str, options: &[&str]) -> Value {
        let mut words = vec![
            format!("--set={set}"),
            format!("--pg1-path={}", to.data.display()),
            "--archive-mode=off".to_owned(),
            "--output=json".to_owned(),
        ];
        words.extend(options.iter().map(|option| (*option).to_owned()));
        words.push("restore".to_owned());
        let said = self.pgcairn(&words).success();
        serde_json::from_str(&said).expect("a restore answers JSON")
    }

    /// A running standby, made of the newest backup; what the server writes reaches it as it is written, or, unless
    /// `streaming`, through the archive. It archives nothing.
    #[track_caller]
    pub fn standby(&self, streaming: bool) -> Server {
        let standby = Server::empty(self.server.major);
        let conninfo = format!(
            "--recovery-option=primary_conninfo=host={} port=5432 user={SUPERUSER}",
            self.server.folder().display()
        );
        let mut options = vec!["--type=standby"];
        options.extend(streaming.then_some(conninfo.as_str()));
        self.restore(&standby, "latest", &options);
        standby.start();
        standby
    }

    /// Makes a server the second cluster of the configuration.
    pub fn add_second_cluster(&self, server: &Server) {
        let mut text = fs::read_to_string(&self.config).expect("there is a configuration");
        text.push_str(&server.stanza_options().replace("pg1-", "pg2-"));
        self.server.make_file("pgcairn.conf", text);
    }

    /// Waits until a backup asks the server whether it is still there, as it does while it waits for a standby.
    pub fn wait_for_ping(&self) {
        let pinged = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgcairn' \
                      AND query = 'select pg_is_in_recovery()'";
        wait_until("the backup waits", || {
            (self.server.value(pinged) == "1").then_some(())
        });
    }

    /// The stanza in `info --output=json`.
    #[track_caller]
    pub fn info(&self) -> Value {
        let said = self.pgcairn(["--output=json", "info"]).success();
        let mut stanzas: Vec<Value> =
            serde_json::from_str(&said).expect("info answers a list in JSON");
        stanzas.pop().expect("info lists the stanza")
    }

    /// Throws all local caches away.
    pub fn forget_cache(&self) {
        // A push that is under way may remember something meanwhile.
        wait_until("the caches are removed", || {
            fs::remove_dir_all(&self.cache).ok()
        });
        fs::create_dir_all(&self.cache).expect("their folder can be made again");
        self.server.give(&self.cache);
    }

    /// Bytes of all objects of the repository but the archived WAL.
    pub fn repository_bytes(&self) -> u64 {
        let entries = fs::read_dir(&self.repository)
            .expect("the repository can be listed")
            .map(|entry| entry.expect("an entry"));
        entries
            .filter(|entry| entry.file_name() != "wal")
            .map(|entry| bytes_below(&entry.path()))
            .sum()
    }

    /// Ends the current WAL segment and waits until all that was written so far is archived.
    pub fn archive_all(&self) {
        // A switch does nothing at the very start of a segment.
        self.server
            .value("SELECT pg_create_restore_point('archived up to here')");
        let segment = self.server.value("SELECT pg_walfile_name(pg_switch_wal())");
        let sql = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
        wait_until("the last segment is archived", || {
            (self.server.value(sql) >= segment).then_some(())
        });
    }
}

fn bytes_below(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).expect("an object can be looked at");
    if !metadata.is_dir() {
        return metadata.len();
    }
    let entries = fs::read_dir(path).expect("a folder of the repository can be listed");
    entries
        .map(|entry| bytes_below(&entry.expect("an entry").path()))
        .sum()
}

/// What a backup said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Its label.
    pub label: String,
    /// `full`, `diff` or `incr`.
    pub kind: String,
    /// The cluster's bytes.
    pub size: u64,
    /// Bytes read from the cluster.
    pub read: u64,
    /// Bytes put into the repository.
    pub stored: u64,
    /// Pages with a wrong checksum that recovery will not repair.
    pub bad_pages: u64,
}

impl Backup {
    fn parse(json: &str) -> Self {
        let value: Value = serde_json::from_str(json).expect("a backup answers JSON");
        let text = |name: &str| value[name].as_str().expect("a text").to_owned();
        let number = |name: &str| value[name].as_u64().expect("a number");
        Backup {
            label: text("label"),
            kind: text("type"),
            size: number("size"),
            read: number("read"),
            stored: number("stored"),
            bad_pages: number("bad-pages"),
        }
    }
}

/// Waits until the last change of any file below a directory is `age` ago.
pub fn wait_until_older(directory: &Path, age: Duration) {
    wait_until("the files are old enough", || {
        (newest_change(directory) + age < SystemTime::now()).then_some(())
    });
}

/// When the youngest file below a directory was changed.
fn newest_change(path: &Path) -> SystemTime {
    // What vanishes is as old as can be.
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return SystemTime::UNIX_EPOCH;
    };
    let own = metadata.modified().expect("Linux keeps this time");
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    below
        .map(|entry| newest_change(&entry.path()))
        .fold(own, SystemTime::max)
}
