//! A real `kill -9` at any moment of the real program, under a live server with a load on it.
//!
//! Whatever the moment: every backup that is listed restores, the next one succeeds, and a killed restore leaves nothing
//! that could be started by accident and can be run again.

#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong in a helper of a test fails the test"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use pgcairn_tests::pgdata::{Noise, PAGE, assert_equal, tree};
use pgcairn_tests::postgres::{Server, system_major};
use serde_json::Value;

/// Which moments are chosen.
const SEED: u64 = 4;
/// How many backups are killed, at least.
const KILLS: u32 = 7;
/// The name of the marker that a restore leaves until it has ended.
const MARKER: &str = "pgcairn.restore";

/// A live server that archives into a repository.
struct Scene {
    server: Server,
    noise: Noise,
}

impl Scene {
    fn new() -> Self {
        let server = Server::empty(system_major());
        server.init(&["--data-checksums"]);
        server.make_folder("repo");
        let folder = server.folder().display();
        let configuration = format!(
            "[global]\nrepo1-path={folder}/repo\ncache-path={folder}/cache\nlog-path={folder}/logs\n\
             lock-path={folder}/locks\nstart-fast=y\n\n[main]\n{}",
            server.stanza_options()
        );
        server.make_file("pgcairn.conf", configuration);
        let scene = Scene {
            server,
            noise: Noise(SEED),
        };
        let push: Vec<_> = std::iter::once(scene.server.pgcairn_path().display().to_string())
            .chain(scene.options())
            .collect();
        scene.server.configure(&format!(
            "archive_mode = on\narchive_command = '{} archive-push %p'",
            push.join(" ")
        ));
        scene.server.start();
        scene.run(&["stanza-create"]).unwrap();
        scene
    }

    fn options(&self) -> [String; 2] {
        let folder = self.server.folder().display();
        [
            format!("--config={folder}/pgcairn.conf"),
            "--stanza=main".to_owned(),
        ]
    }

    /// Runs a command to its end; what it says if it fails.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        let done = self
            .server
            .pgcairn(self.options().into_iter().chain(arguments));
        if done.code == Some(0) {
            Ok(done.stdout)
        } else {
            Err(format!("{}{}", done.stdout, done.stderr))
        }
    }

    /// Runs a command to its end; answers how long that took.
    fn time(&self, arguments: &[&str]) -> Duration {
        let start = Instant::now();
        self.run(arguments).unwrap();
        start.elapsed()
    }

    /// Kills a command at a moment of the time that it normally takes. One that has ended by then was quicker than
    /// expected: that is learnt. Answers whether it was killed.
    fn kill(&mut self, arguments: &[&str], normally: &mut Duration) -> bool {
        let micros = u64::try_from(normally.as_micros()).expect("not that long");
        let moment = Duration::from_micros(self.noise.below(micros));
        let mut command = self.server.command(self.server.pgcairn_path());
        command
            .args(self.options())
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("pgcairn runs");
        // Not to wait for something: the moment is what is tested.
        thread::sleep(moment);
        let ended = child.try_wait().expect("a child can be asked").is_some();
        if ended {
            *normally = moment.max(Duration::from_millis(2));
        } else {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
        }
        !ended
    }

    /// The labels that are listed.
    fn listed(&self) -> Vec<String> {
        let info = self.run(&["info", "--output=json"]).unwrap();
        let info: Value = serde_json::from_str(&info).unwrap();
        let backups = info[0]["backup"].as_array().expect("a list of backups");
        let label = |backup: &Value| backup["label"].as_str().expect("a label").to_owned();
        backups.iter().map(label).collect()
    }

    fn restore_arguments(target: &Path, label: &str) -> Vec<String> {
        vec![
            "restore".to_owned(),
            format!("--pg1-path={}", target.display()),
            format!("--set={label}"),
            "--type=preserve".to_owned(),
        ]
    }
}

#[test]
fn a_killed_backup_is_not_listed_and_the_next_one_succeeds() {
    let mut scene = Scene::new();
    scene
        .server
        .pgbench(&["--initialize", "--quiet", "--scale=2"]);
    let mut full = scene.time(&["backup", "--type=full"]);
    let load = scene.server.load(1);
    let mut incr = scene.time(&["backup", "--type=incr"]);
    let mut kills = 0;
    while kills < KILLS {
        for (kind, normally) in [("--type=full", &mut full), ("--type=incr", &mut incr)] {
            let before = scene.listed();
            kills += u32::from(scene.kill(&["backup", kind], normally));
            let after = scene.listed();
            assert!(after.starts_with(&before), "{after:?}, before {before:?}");
            assert!(after.len() <= before.len() + 1);
        }
        scene.run(&["backup", "--type=incr"]).unwrap();
        let announced = tree(&scene.server.folder().join("repo/runs"));
        let announced = announced.values().filter(|(_, bytes)| bytes.is_some());
        assert_eq!(announced.count(), 0, "the dead were ended");
    }
    drop(load);
    scene.run(&["backup", "--type=incr"]).unwrap();
    let hashes = scene.server.hashes();
    let listed = scene.listed();
    for label in &listed {
        let copy = Server::empty(scene.server.major);
        let place = format!("--pg1-path={}", copy.data.display());
        let set = format!("--set={label}");
        let immediate = ["--type=immediate", "--target-action=promote"];
        let restore = [["restore", &place], [&set, immediate[0]]].concat();
        scene
            .run(&[&restore[..], &immediate[1..]].concat())
            .unwrap();
        // All bytes were verified; whether PostgreSQL agrees is asked once after a kill, and at the end.
        if [listed.get(2), listed.last()].contains(&Some(label)) {
            copy.configure("archive_mode = off");
            copy.start();
            copy.wait_for_promotion();
            copy.amcheck();
        }
        if Some(label) == listed.last() {
            assert_eq!(copy.hashes(), hashes);
        }
    }
}

type Tree = BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>;

/// Kills a restore and runs it again; `target` is then as `whole` says.
fn kill_and_rerun(
    scene: &mut Scene,
    whole: &Tree,
    target: &Path,
    arguments: &[String],
    normally: &mut Duration,
) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let untouched = target.exists().then(|| tree(target));
    scene.kill(&arguments, normally);
    let startable = target.join("global/pg_control").exists();
    let mut left = if target.exists() {
        tree(target)
    } else {
        Tree::new()
    };
    let marked = left.remove(Path::new(MARKER)).is_some();
    left.remove(Path::new("pgcairn.restore.tmp"));
    if startable && untouched.as_ref() != Some(&left) {
        assert_equal(whole, &left);
    }
    if marked || !startable || left != *whole {
        scene.run(&arguments).unwrap();
    }
    assert_equal(whole, &tree(target));
}

#[test]
fn a_killed_restore_is_not_startable_and_can_be_run_again() {
    let mut scene = Scene::new();
    scene
        .server
        .pgbench(&["--initialize", "--quiet", "--scale=2"]);
    scene.run(&["backup", "--type=full"]).unwrap();
    let label = scene.listed().remove(0);
    let reference = scene.server.folder().join("reference");
    let arguments = Scene::restore_arguments(&reference, &label);
    let mut normally = scene.time(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let whole = tree(&reference);

    for round in 0..4 {
        let target = scene.server.folder().join(format!("fresh-{round}"));
        let arguments = Scene::restore_arguments(&target, &label);
        kill_and_rerun(&mut scene, &whole, &target, &arguments, &mut normally);
        fs::remove_dir_all(target).unwrap();
    }
    let mut arguments = arguments;
    arguments.push("--delta".to_owned());
    for _ in 0..4 {
        wreck(&mut scene.noise, &reference, &whole);
        kill_and_rerun(&mut scene, &whole, &reference, &arguments, &mut normally);
    }
}

/// Changes pages, cuts and removes files, and adds some, beneath a data directory.
fn wreck(noise: &mut Noise, data: &Path, whole: &Tree) {
    let files: Vec<&PathBuf> = whole
        .keys()
        .filter(|path| path.starts_with("base"))
        .collect();
    for round in 0..60 {
        let at = usize::try_from(noise.below(files.len() as u64)).expect("an index");
        let path = data.join(files[at]);
        if path.is_dir() || !path.exists() {
            continue;
        }
        let file = File::options().write(true).open(&path).unwrap();
        let bytes = file.metadata().unwrap().len();
        match round % 3 {
            0 => file.set_len(bytes / 2).unwrap(),
            1 => fs::remove_file(path).unwrap(),
            _ => {
                let page = noise.below(bytes / PAGE as u64);
                file.write_all_at(b"wrecked", page * PAGE as u64).unwrap();
            }
        }
    }
    File::create(data.join("base/stray")).unwrap();
}
