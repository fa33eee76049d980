//! Is a server running on this data directory?
//!
//! Promises: says no only if there is no `postmaster.pid`, or the process that it names does not exist on this host.
//! A number that is in use again after a crash counts as running: the user then removes the file, as PostgreSQL itself
//! may ask for. Cannot see a server in another container or on another host that shares the directory.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, test_kill_process};

use crate::cluster::{Error, Result};

/// Fails if a server runs on `pgdata`, or if that cannot be ruled out.
pub fn refuse_running(pgdata: &Path) -> Result<()> {
    let path = pgdata.join("postmaster.pid");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::file("read", &path, e)),
    };
    // A standalone backend writes its number negated.
    let text = String::from_utf8_lossy(&text);
    let number = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<i32>().ok());
    let pid = number.and_then(|number| Pid::from_raw(number.checked_abs()?));
    let running = Error::Running {
        pgdata: pgdata.to_owned(),
        pid: number.map(i32::unsigned_abs),
    };
    match pid.map(test_kill_process) {
        Some(Err(rustix::io::Errno::SRCH)) => Ok(()),
        _ => Err(running),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pgdata_with(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut file = fs::File::create(dir.path().join("postmaster.pid")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        dir
    }

    #[test]
    fn no_pid_file_is_no_server() {
        refuse_running(tempfile::tempdir().unwrap().path()).unwrap();
    }

    #[test]
    fn a_live_process_is_a_server_and_a_dead_one_is_not() {
        let me = std::process::id();
        assert!(matches!(
            refuse_running(pgdata_with(&format!("{me}\n/data\n")).path()),
            Err(Error::Running { pid: Some(pid), .. }) if pid == me
        ));
        assert!(refuse_running(pgdata_with(&format!("-{me}\n")).path()).is_err());
        // Larger than any pid that Linux gives (2^22).
        refuse_running(pgdata_with("1073741823\n").path()).unwrap();
    }

    #[test]
    fn a_pid_file_that_says_nothing_cannot_be_ruled_out() {
        for text in ["", "\n", "postgres\n", "0\n"] {
            assert!(
                matches!(
                    refuse_running(pgdata_with(text).path()),
                    Err(Error::Running { .. })
                ),
                "{text:?}"
            );
        }
    }
}
