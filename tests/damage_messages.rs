//! What a person reads, and what a script sees, when something that is stored is damaged.
//!
//! Promises: a message names what is damaged and what that affects, and says what can be done; letter for letter.

#![expect(
    clippy::disallowed_methods,
    reason = "what a test breaks or makes up need be neither atomic nor durable"
)]

use std::fs;
use std::path::{Path, PathBuf};

use pgcairn_tests::damage::flip;
use pgcairn_tests::postgres::{Server, system_major};
use pgcairn_tests::process::{Finished, finish, give, unprivileged};
use pgcairn_tests::small_cluster::{LARGE, PAGE, SMALL, SmallCluster, copy, differences};

/// A cluster and a repository that the unprivileged account owns, and the program as that account runs it.
struct Shell {
    cluster: SmallCluster,
    /// Holds the program where that account can run it.
    server: Server,
}

impl Shell {
    fn new() -> Self {
        let cluster = SmallCluster::new();
        let server = Server::empty(system_major());
        let folder = cluster.folder();
        give(folder);
        let dir = folder.display();
        let config = format!(
            "[global]\nrepo1-path={dir}/repository\ncache-path={dir}/cache\nlock-path={dir}/lock\nlog-path={dir}/log\n\
             compress-level=1\nlog-timestamp=n\nlog-level-file=off\n\n[demo]\npg1-path={dir}/data\n"
        );
        fs::write(folder.join("pgcairn.conf"), config).unwrap();
        let shell = Shell { cluster, server };
        shell.run(&["stanza-create", "--no-online"]).success();
        shell
    }

    fn folder(&self) -> &Path {
        self.cluster.folder()
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = unprivileged(self.server.pgcairn_path());
        let config = self.folder().join("pgcairn.conf");
        command.arg(format!("--config={}", config.display()));
        finish(
            command
                .current_dir(self.folder())
                .arg("--stanza=demo")
                .args(arguments),
        )
    }

    fn backup(&self, backup_type: &str) -> Finished {
        self.run(&["backup", "--no-online", &format!("--type={backup_type}")])
    }

    fn restore(&self, more: &[&str]) -> Finished {
        let target = format!("--pg1-path={}/target", self.folder().display());
        let words = ["restore", "--delta", "--type=preserve", &target];
        self.run(&[&words, more].concat())
    }

    fn target(&self) -> PathBuf {
        self.folder().join("target")
    }

    /// The files of all objects below a folder of the repository.
    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.folder().join("repository").join(folder)];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            } else {
                found.push(path);
            }
        }
        found.sort();
        found
    }

    /// The exit code and what was printed, with names that differ from run to run replaced.
    fn told(&self, finished: &Finished) -> String {
        let code = finished.code.expect("it was not killed");
        let text = format!("exit {code}\n{}{}", finished.stdout, finished.stderr);
        let text = text.replace(&self.folder().display().to_string(), "<dir>");
        let mut told = String::new();
        let mut word = String::new();
        for character in text.chars().chain(['\n']) {
            if character.is_ascii_alphanumeric() {
                word.push(character);
                continue;
            }
            let digits =
                |from: usize, to: usize| word[from..to].bytes().all(|b| b.is_ascii_digit());
            let shown = match word.len() {
                32 => "<id>",
                64 => "<chunk>",
                // The folder of a pack: the first two digits of its id.
                2 if told.ends_with("data/") || told.ends_with("meta/") => "<i>",
                // A label's two parts, of eight and of six digits and a letter.
                8 if digits(0, 8) => "<day>",
                7 if digits(0, 6) && word.ends_with('F') => "<full>",
                7 if digits(0, 6) && word.ends_with('I') => "<incr>",
                _ => &word,
            };
            told.push_str(shown);
            word.clear();
            told.push(character);
        }
        told.trim_end().to_owned()
    }
}

#[test]
fn a_restore_says_what_is_damaged_and_what_can_be_done() {
    let shell = Shell::new();
    shell.backup("full").success();
    let pack = shell.objects("data").remove(0);
    flip(&pack, 2000);
    insta::assert_snapshot!(shell.told(&shell.restore(&[])), @"");
    assert!(!shell.target().join("global/pg_control").exists());
    insta::assert_snapshot!(shell.told(&shell.backup("full")), @"");
    shell.restore(&[]).success();
    let differences = differences(&shell.cluster.data, &shell.target());
    assert_eq!(differences, [""; 0]);
}

#[test]
fn a_missing_pack_is_named_by_restore_and_by_backup() {
    let shell = Shell::new();
    shell.backup("full").success();
    fs::remove_file(shell.objects("data").remove(0)).unwrap();
    insta::assert_snapshot!(shell.told(&shell.restore(&[])), @"");
    insta::assert_snapshot!(shell.told(&shell.backup("incr")), @"");
    shell.restore(&[]).success();
}

#[test]
fn a_damaged_record_of_a_backup_is_named_by_info_restore_and_backup() {
    let shell = Shell::new();
    shell.backup("full").success();
    flip(&shell.objects("snapshots").remove(0), 300);
    insta::assert_snapshot!(shell.told(&shell.run(&["info"])), @"");
    insta::assert_snapshot!(shell.told(&shell.restore(&[])), @"");
    assert!(!shell.target().exists());
    insta::assert_snapshot!(shell.told(&shell.backup("incr")), @"");
}

#[test]
fn damage_to_the_tree_the_index_and_the_config_is_named_by_backup() {
    let shell = Shell::new();
    shell.backup("full").success();
    flip(&shell.objects("meta").remove(0), 100);
    flip(&shell.objects("index").remove(0), 100);
    flip(&shell.folder().join("repository/config"), 50);
    fs::remove_dir_all(shell.folder().join("cache")).unwrap();
    insta::assert_snapshot!(shell.told(&shell.backup("full")), @"");
    shell.restore(&[]).success();
}

#[test]
fn a_bad_page_is_a_warning_and_shown_by_info() {
    let shell = Shell::new();
    flip(&shell.cluster.data.join(LARGE), 5 * PAGE + 4000);
    let backup = shell.backup("full");
    assert_eq!(backup.code, Some(0));
    insta::assert_snapshot!(backup.stderr, @"");
    let info = shell.run(&["info"]).success();
    let line = info.lines().find(|line| line.contains("error")).unwrap();
    assert_eq!(
        line.trim(),
        "error(s) detected during backup: 1 page with a bad checksum"
    );
}

#[test]
fn archive_get_never_exits_with_1_for_what_is_damaged_or_away() {
    let shell = Shell::new();
    let segment = "000000010000000000000001";
    let listed = fs::read_dir(shell.cluster.data.join("pg_wal")).unwrap();
    let from = listed
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_file())
        .unwrap();
    let mut wal = fs::read(from).unwrap();
    wal[8..16].copy_from_slice(&(1_u64 << 20).to_le_bytes());
    let path = shell.folder().join(segment);
    fs::write(&path, wal).unwrap();
    shell
        .run(&["archive-push", path.to_str().unwrap()])
        .success();
    let got = shell.folder().join("got");
    let get = || shell.run(&["archive-get", segment, got.to_str().unwrap()]);
    let object = shell.objects("wal").remove(0);
    let kept = shell.folder().join("kept");
    copy(&object, &kept);

    fs::write(&object, &fs::read(&kept).unwrap()[..1000]).unwrap();
    insta::assert_snapshot!(shell.told(&get()), @"");
    copy(&kept, &object);
    assert_eq!(get().code, Some(0));

    let (repository, away) = (
        shell.folder().join("repository"),
        shell.folder().join("away"),
    );
    fs::rename(&repository, &away).unwrap();
    insta::assert_snapshot!(shell.told(&get()), @"");
    // What is left of a disk that is not mounted: an empty directory.
    fs::create_dir(&repository).unwrap();
    insta::assert_snapshot!(shell.told(&get()), @"");
    // A standby asks again and again: it gets the number itself, which is never 1.
    fs::write(shell.cluster.data.join("standby.signal"), "").unwrap();
    assert_eq!(get().code, Some(55));
    fs::remove_dir(&repository).unwrap();
    assert_eq!(get().code, Some(103));
    assert!(
        fs::read_dir(shell.folder())
            .unwrap()
            .all(|entry| entry.unwrap().path() != repository)
    );
}

#[test]
fn modes_that_keep_the_owner_out_do_not_stop_a_delta_restore() {
    use std::os::unix::fs::PermissionsExt as _;
    let shell = Shell::new();
    shell.backup("full").success();
    shell.restore(&[]).success();
    for name in [SMALL, "PG_VERSION", "base/5", "global"] {
        let mode = if name == "PG_VERSION" { 0o400 } else { 0 };
        fs::set_permissions(shell.target().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    shell.restore(&[]).success();
    assert_eq!(differences(&shell.cluster.data, &shell.target()), [""; 0]);
}
