//! A server that archives and one that recovers, both ahead of what is asked for, with a spool on a disk that is full:
//! it costs time alone.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgcairn_tests::postgres::{Server, system_major};
use pgcairn_tests::process::wait_until;
use pgcairn_tests::stanza::{STANZA, Stanza};
use rustix::process::geteuid;

const SEGMENT: u64 = 1 << 20;

/// A small disk of its own, which is full at first.
struct Disk(PathBuf);

impl Disk {
    /// `None` where no file system can be mounted; why is printed.
    #[expect(
        clippy::print_stderr,
        reason = "what was not tested is told to whoever runs the tests"
    )]
    fn mount(folder: &Path, segments: u64) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can mount a small disk");
            return None;
        }
        let options = format!("size={},mode=0777", segments * SEGMENT);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        let done = mount.arg(folder).output().unwrap();
        if !done.status.success() {
            let why = String::from_utf8_lossy(&done.stderr);
            eprintln!("skipped: a small disk cannot be mounted: {why}");
            return None;
        }
        let disk = Disk(folder.to_owned());
        disk.fill();
        Some(disk)
    }

    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// All files but the filler.
    fn files(&self) -> Vec<PathBuf> {
        let (mut folders, mut files) = (vec![self.0.clone()], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path != self.filler() {
                    files.push(path);
                }
            }
        }
        files
    }
}

impl Drop for Disk {
    /// At once, whoever has files open there.
    fn drop(&mut self) {
        let done = Command::new("umount").arg("--lazy").arg(&self.0).status();
        drop(done);
    }
}

/// What the processes in the background have written down.
fn wait_for_log(stanza: &Stanza, command: &str, says: &str) {
    let folder = stanza.server.folder().join("log.d");
    let log = folder.join(format!("{STANZA}-{command}-async.log"));
    wait_until("the failure is in the log", || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        log.contains(says).then_some(())
    });
}

#[test]
fn a_full_spool_costs_time_alone_and_nothing_is_left_in_it() {
    let stanza = Stanza::archiving(system_major(), &["--wal-segsize=1"], "");
    let server = &stanza.server;
    let spool = server.make_folder("spool");
    let Some(disk) = Disk::mount(&spool, 3) else {
        return;
    };
    stanza.configure(&format!(
        "archive-async=y\nspool-path={}\n[{STANZA}:archive-get]\narchive-get-queue-max=16MiB",
        spool.display()
    ));
    let full = stanza.backup("full", &[]);
    let first = server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    server.execute("CREATE TABLE marks (n int)");
    for n in 1..=12 {
        server.execute(&format!("INSERT INTO marks VALUES ({n})"));
        server.value("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1 << 20))");
    }
    stanza.archive_all();
    assert!(server.log().contains("is pushed here"), "{}", server.log());
    wait_for_log(&stanza, "archive-push", "No space left on device");
    assert_eq!(disk.files(), [""; 0].map(PathBuf::from));

    let fetched = server.folder().join("fetched");
    let got = stanza.pgcairn(["archive-get", &first, fetched.to_str().unwrap()]);
    got.success();
    let original = server.data.join("pg_wal").join(&first);
    assert!(fs::read(&fetched).unwrap() == fs::read(original).unwrap());
    wait_for_log(&stanza, "archive-get", "make room for");
    assert_eq!(disk.files(), [""; 0].map(PathBuf::from));

    // There is room for some of the segments that are fetched ahead, and not for all.
    fs::remove_file(disk.filler()).unwrap();
    let place = Server::empty(server.major);
    stanza.restore(&place, &full.label, &[]);
    place.start();
    place.wait_for_promotion();
    assert_eq!(place.value("SELECT sum(n) FROM marks"), "78");
    wait_until("nothing unfinished is in the spool", || {
        let is_whole = |path: &PathBuf| match path.extension() {
            None => path.with_extension("check").exists(),
            Some(kind) => kind == "check" && path.with_extension("").exists(),
        };
        disk.files().iter().all(is_whole).then_some(())
    });
}
