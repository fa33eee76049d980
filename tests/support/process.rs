//! Processes of tests: programs run to their end, the account that servers run as, processes killed.
//!
//! Promises: what runs as [`unprivileged`] is never root. Refuses: to wait for ever; whatever takes longer than
//! [`PATIENCE`] fails the test.

use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::process::{
    Pid, Signal, WaitOptions, geteuid, getpid, kill_process, set_child_subreaper, waitpid,
};

/// How long anything may take that normally takes a moment.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Finished {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Standard output of a program that succeeded; fails the test, with both outputs, if it did not.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(
            self.code,
            Some(0),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

/// An unprivileged account of this machine.
#[derive(Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

/// The account that servers run as; `None` where the tests do not run as root, and servers run as their user.
fn account() -> Option<&'static Account> {
    static ACCOUNT: OnceLock<Option<Account>> = OnceLock::new();
    let find = || {
        if !geteuid().is_root() {
            return None;
        }
        let users =
            fs::read_to_string("/etc/passwd").expect("the accounts of this machine can be read");
        let numbers = |name: &str| {
            let fields = users
                .lines()
                .map(|line| line.split(':').collect::<Vec<_>>())
                .find(|fields| fields[0] == name)?;
            Some(Account {
                uid: fields.get(2)?.parse().ok()?,
                gid: fields.get(3)?.parse().ok()?,
            })
        };
        let account = ["postgres", "pgcairn"].into_iter().find_map(numbers);
        Some(
            account
                .expect("an account `postgres` or `pgcairn` for the servers: run tests/setup.sh"),
        )
    };
    ACCOUNT.get_or_init(find).as_ref()
}

/// A command that runs as the account of the test servers, without the caller's own settings of PostgreSQL and
/// `pgcairn`, and without input.
pub fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").stdin(Stdio::null());
    if let Some(account) = account() {
        command.gid(account.gid).uid(account.uid);
    }
    command
}

/// Gives a file or folder to the account of the test servers.
pub fn give(path: &Path) {
    if let Some(account) = account() {
        chown(path, Some(account.uid), Some(account.gid)).expect("root may give files away");
    }
}

/// A program of this workspace, as it was built beside the tests.
pub fn built(program: &str) -> PathBuf {
    let test = env::current_exe().expect("a test knows its own path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("cargo builds tests in a folder of a profile's folder");
    let path = profile.join(program);
    let is_built = path.exists();
    assert!(
        is_built,
        "{} is missing: build the workspace",
        path.display()
    );
    path
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(command: &mut Command) -> Finished {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?} does not run: {e}"));
    Finished::new(&output)
}

/// Asks again and again until there is an answer; fails the test when that takes too long.
#[track_caller]
pub fn wait_until<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// From now on, processes whose parents end become children of this one.
///
/// A test kills servers and must see them gone before it starts them again; an ended process is gone only once its
/// parent has asked for its exit status, and not every first process of a container asks for that of orphans.
pub fn adopt_orphans() {
    set_child_subreaper(Some(getpid())).expect("Linux lets a process adopt orphans");
}

/// Kills processes, in this order, and waits until they are gone. They must be descendants of this process.
pub fn kill(processes: &[Pid]) {
    for pid in processes {
        // A process that has ended meanwhile is as dead as it should be.
        let _ = kill_process(*pid, Signal::KILL);
    }
    wait_until("killed processes are gone", || {
        let gone = |pid: &Pid| {
            // It is a child only once its own parent has gone.
            let _ = waitpid(Some(*pid), WaitOptions::NOHANG);
            parent(&pid.as_raw_nonzero().to_string()).is_none()
        };
        processes.iter().all(gone).then_some(())
    });
}

/// The parent of a process, while it exists: field 4 of its `stat` file (proc(5)).
fn parent(pid: &str) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, closing brackets included.
    let field = stat
        .get(stat.rfind(')')? + 1..)?
        .split_whitespace()
        .nth(1)?;
    Pid::from_raw(field.parse().ok()?)
}

/// The processes that a process has started.
pub fn children(of: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc")
        .expect("a Linux system has /proc")
        .flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|pid| parent(pid) == Some(of))
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}
