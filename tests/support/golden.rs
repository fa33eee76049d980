//! Golden repositories: one small repository for each version of the format, made once, never edited.
//!
//! `tests/golden/<version>/` holds `repository/`, as a program of that version wrote it; `expected/<label>`, what each
//! backup in it restores to, listed from the cluster that was backed up; and `zstd`, the compressor it was made with.
//!
//! **A new version**: when a stored format changes so that its version number does, add the version to [`VERSIONS`] and
//! run the tests. The folder that is missing is made, and the test that made it fails once, so that the folder is looked
//! at before it is committed. After that nothing below `tests/golden/` changes again: programs must go on reading it.
//!
//! The cluster is synthetic and small, but has one of everything: relation files with and without page checksums that
//! match, of more than one region, of more than one extent node, of zeros; a second segment; plain files within their
//! entry, of one chunk and of several; empty files and directories; names that are no UTF-8; links that are followed, to
//! a file, a directory and a tablespace; one that leads nowhere. [`make`] depends on nothing but this file and the
//! engine, so that a repository that is made anew has the same packs, byte for byte.

use std::fmt::Write as _;
use std::fs::{self, File, FileTimes};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pgcairn_engine::actions::{
    self, ArchiveOptions, BackupOptions, Goal, RestoreOptions, StanzaCreateOptions, TimelineGoal,
};
use pgcairn_engine::cluster::control_file;
use pgcairn_engine::cluster::page::checksum;
use pgcairn_engine::cluster::recovery::{Recovery, RecoveryType};
use pgcairn_engine::ids::{ChunkId, PackId, RunId, digest};
use pgcairn_engine::monitor::{NoMonitor, Tally};
use pgcairn_engine::repository::Repository;
use pgcairn_engine::repository::forget::{self, Tombstone};
use pgcairn_engine::repository::gc_log::{self, GcRecord, GcState};
use pgcairn_engine::repository::quarantine::{self, Finding};
use pgcairn_engine::repository::run::{self, Announcement, Role};
use pgcairn_engine::repository::snapshot::{self, BackupType, Manifest, Register};
use pgcairn_engine::repository::wal::{self, WalGap};
use pgcairn_engine::storage::local::LocalStorage;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::places::only;
use crate::source;

/// The versions of the format that there were, the newest last.
pub const VERSIONS: [&str; 1] = ["v1"];
/// The stanza of every golden repository.
pub const STANZA: &str = "golden";
/// The label under which a run crashed and was fenced.
pub const FENCED: &str = "20261124-030000F";
/// The run of whatever a golden repository holds that no backup of it made.
pub const RUN: RunId = RunId([0x5e; 16]);
/// The copy that is quarantined, and the pack that was swept.
pub const LOST: (ChunkId, PackId) = (ChunkId([0xc4; 32]), PackId([0x9a; 16]));
/// The epoch's name.
pub const EPOCH: &str = "15-1";
/// The WAL segment in the archive, and the gap behind it.
pub const SEGMENT: &str = "000000010000000000000001";
/// The segments that were given up.
pub const GAP: (&str, &str) = ("000000010000000000000003", "000000010000000000000005");

const PAGE: usize = 8192;
/// 2026-11-24 01:00:00 UTC: when the full backup begins.
const BEGUN_MS: i64 = 1_795_482_000_000;
const HOUR_MS: i64 = 3_600_000;
/// When backups may begin that are made into a golden repository: after all that are in it, on the same day.
pub const LATER_MS: i64 = BEGUN_MS + 12 * HOUR_MS;

/// Where a version's golden repository lies.
pub fn folder(version: &str) -> PathBuf {
    source::root().join("tests/golden").join(version)
}

/// The compressor that this build uses, as `Cargo.lock` names it: with another one, packs have other bytes.
pub fn zstd() -> String {
    let lock = source::read(&source::root().join("Cargo.lock"));
    let (_, rest) = lock
        .split_once("name = \"zstd-sys\"\nversion = \"")
        .expect("the workspace depends on zstd");
    let (version, _) = rest.split_once('"').expect("a version ends");
    version.to_owned()
}

/// Makes a golden folder.
pub fn make(folder: &Path) {
    let work = tempfile::tempdir().expect("a temporary folder");
    let at = Place {
        folder,
        work: work.path(),
    };
    at.first_cluster();
    let storage = LocalStorage::create(&folder.join("repository")).expect("a storage");
    let create = StanzaCreateOptions {
        stanza: STANZA.to_owned(),
        pgdata: at.pgdata(),
    };
    actions::stanza_create(Arc::new(storage), &create, None, &NoMonitor).expect("a stanza");
    let repository = open(&folder.join("repository"));
    at.back_up(&repository, BackupType::Full, BEGUN_MS);
    at.second_cluster();
    at.back_up(&repository, BackupType::Incr, BEGUN_MS + HOUR_MS);
    at.archive(&repository);
    other_records(&repository);
    put(&folder.join("zstd"), format!("{}\n", zstd()).as_bytes());
    fs::remove_dir(folder.join("repository/.tmp")).expect("nothing is left half-written");
}

/// Opens the repository in a directory.
pub fn open(path: &Path) -> Repository {
    let storage = LocalStorage::create(path).expect("a storage");
    actions::open_repository(Arc::new(storage)).expect("a repository")
}

/// Opens a copy of a version's repository, which may be written to.
pub fn open_copy(version: &str, copy: &Path) -> Repository {
    let original = folder(version).join("repository");
    for file in source::files(&original) {
        let target = copy.join(file.strip_prefix(&original).expect("listed below it"));
        fs::create_dir_all(target.parent().expect("below the copy")).expect("a folder");
        fs::copy(&file, target).expect("a copy");
    }
    open(copy)
}

/// Backs up a data directory as the golden backups were made: stopped, by one thread.
pub fn back_up(
    repository: &Repository,
    pgdata: &Path,
    cache: &Path,
    backup_type: BackupType,
    now_ms: i64,
) -> Manifest {
    let options = BackupOptions {
        stanza: STANZA.to_owned(),
        pgdata: pgdata.to_owned(),
        backup_type,
        cache: cache.to_owned(),
        threads: 1,
        compress_level: 3,
        start_fast: true,
        checksum_page: None,
        delta: false,
        archive_check: false,
        archive_mode_check: false,
        archive_timeout: Duration::ZERO,
        exclude: Vec::new(),
        // The control file is that of a server that was running; none is.
        force: true,
        host: "golden".to_owned(),
        now_ms,
        stamp,
    };
    actions::backup(repository, None, &options, &Tally::default(), &NoMonitor)
        .expect("a backup")
        .manifest
}

/// Restores a backup below `work`; answers the data directory.
pub fn restore(repository: &Repository, label: &str, work: &Path) -> PathBuf {
    let pgdata = work.join("pgdata");
    let options = RestoreOptions {
        stanza: STANZA.to_owned(),
        pgdata: pgdata.clone(),
        cache: work.join("cache"),
        threads: 2,
        delta: false,
        force: false,
        set: Some(label.to_owned()),
        tablespace_map: vec![("16400".to_owned(), work.join("space"))],
        tablespace_map_all: None,
        link_map: Vec::new(),
        link_all: false,
        recovery: Recovery {
            kind: RecoveryType::None,
            restore_command: String::new(),
            settings: Vec::new(),
        },
        recovery_given: true,
        host: "golden".to_owned(),
        now_ms: BEGUN_MS,
        stamp: "2026-11-24 01:00:00".to_owned(),
        goal: Goal::Open,
        timeline: TimelineGoal::Latest,
        time: |ms| ms.to_string(),
    };
    actions::restore(repository, &options, &Tally::default(), &NoMonitor).expect("restored");
    pgdata
}

/// What is in a directory: one line for each entry, in the order of paths; links are followed where they lead somewhere.
pub fn listing(directory: &Path) -> String {
    let mut text = String::new();
    list(directory, &mut Vec::new(), &mut text);
    text
}

fn list(location: &Path, path: &mut Vec<u8>, text: &mut String) {
    let name = path.escape_ascii().to_string();
    let Ok(metadata) = fs::metadata(location) else {
        let target = fs::read_link(location).expect("only a link leads nowhere");
        writeln!(text, "link {name} -> {}", target.display()).expect("text grows");
        return;
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_dir() {
        let bytes = fs::read(location).expect("a file");
        let id = ChunkId(digest(&bytes));
        writeln!(text, "file {mode:04o} {} {id} {name}", bytes.len()).expect("text grows");
        return;
    }
    writeln!(text, "directory {mode:04o} {name}").expect("text grows");
    let mut names: Vec<_> = fs::read_dir(location)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    for name in names {
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        list(&location.join(&name), path, text);
        path.truncate(length);
    }
}

fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder");
    File::create(path)
        .and_then(|mut file| file.write_all(bytes))
        .expect("a file");
}

/// `YYYYMMDD-HHMMSS` of a time on 2026-11-24.
fn stamp(ms: i64) -> String {
    let seconds = ms / 1000 % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("20261124-{hours:02}{minutes:02}{:02}", seconds % 60)
}

/// Pages as a server would leave them, with a text that compresses; `salt` tells files apart.
fn pages(first_block: u32, count: u32, salt: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count as usize * PAGE);
    for block in first_block..first_block + count {
        let mut page = vec![0; PAGE];
        // pd_lsn, then pd_lower, pd_upper, pd_special and the page's size and layout version.
        page[4..8].copy_from_slice(&0x0100_0000_u32.to_le_bytes());
        for (at, value) in [(12, 40_u16), (14, 4096), (16, 8192), (18, 8196)] {
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        for (row, slot) in page[4096..].chunks_mut(64).enumerate() {
            let text = format!("{salt}: row {row} of block {block}");
            slot[..text.len()].copy_from_slice(text.as_bytes());
        }
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&page);
    }
    bytes
}

/// Bytes of the generator `SplitMix64` (Steele, Lea, Flood 2014): they do not compress.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let words = (0..bytes.div_ceil(8)).flat_map(|_| next().to_le_bytes());
    words.take(bytes).collect()
}

/// Where a golden folder is made, and from what.
struct Place<'a> {
    folder: &'a Path,
    work: &'a Path,
}

impl Place<'_> {
    fn pgdata(&self) -> PathBuf {
        self.work.join("pgdata")
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        put(&self.pgdata().join(path), bytes);
    }

    /// The cluster that is backed up first.
    fn first_cluster(&self) {
        let control = include_bytes!("../../engine/src/cluster/testdata/pg_control.15");
        self.put("global/pg_control", &control_file::padded(control));
        self.put("PG_VERSION", b"15\n");
        self.put("global/1262", &pages(0, 1, "databases"));
        self.put("global/pg_filenode.map", &[7; 524]);
        self.put("base/5/PG_VERSION", b"15\n");
        self.put("base/5/112", b"");
        self.put("base/5/1247", &pages(0, 20, "types"));
        self.put("base/5/16384", &pages(0, 700, "a large table"));
        self.put("base/5/16384_fsm", &vec![0; 3 * PAGE]);
        self.put("base/5/16384_vm", &pages(0, 1, "visible"));
        self.put("base/5/16384.1", &pages(131_072, 3, "the second segment"));
        let mut damaged = pages(0, 40, "a damaged table");
        damaged[11 * PAGE + 5000] ^= 1;
        self.put("base/5/16390", &damaged);
        // More than a region: nothing but zeros, and at the end a page.
        let mut sparse = vec![0; (17 << 20) - PAGE];
        sparse.extend(pages(2175, 1, "the end"));
        self.put("base/5/16399", &sparse);
        self.put("pg_xact/0000", &noise(1, 24 << 10));
        self.put("pg_stat/some", &noise(2, 16 << 10).repeat(20));
        self.put("pg_logical/inline", &noise(3, 512));
        put(&self.work.join("outside/postgresql.conf"), b"port = 5432\n");
        put(&self.work.join("outside/folder/in it"), b"by a link\n");
        put(
            &self.work.join("space/PG_15_202209061/5/16401"),
            &pages(0, 9, "in a tablespace"),
        );
        for empty in ["pg_notify", "pg_wal/archive_status", "pg_dynshmem"] {
            fs::create_dir_all(self.pgdata().join(empty)).expect("a folder");
        }
        fs::create_dir_all(self.pgdata().join("pg_tblspc")).expect("a folder");
        for (link, target) in [
            ("postgresql.conf", "../outside/postgresql.conf"),
            ("linked", "../outside/folder"),
            ("nowhere", "gone/for/ever"),
            ("pg_tblspc/16400", "../../space"),
        ] {
            symlink(target, self.pgdata().join(link)).expect("a link");
        }
        for name in [
            &b"odd/\xff\xfe not UTF-8"[..],
            b"odd/new\nline",
            b"odd/ \\ ",
        ] {
            put(
                &self.pgdata().join(std::ffi::OsStr::from_bytes(name)),
                b"odd\n",
            );
        }
        settle(self.work, BEGUN_MS - 24 * HOUR_MS);
    }

    /// Half an hour later: pages changed in place, a table grew, one came, one went.
    fn second_cluster(&self) {
        let changed = BEGUN_MS + HOUR_MS / 2;
        let mut large = pages(0, 700, "a large table");
        for block in [3_u32, 350, 351, 699] {
            let at = block as usize * PAGE;
            large[at..at + PAGE].copy_from_slice(&pages(block, 1, "updated"));
        }
        self.put("base/5/16384", &large);
        self.put("base/5/1247", &pages(0, 23, "types"));
        self.put("base/5/16500", &pages(0, 2, "a new table"));
        fs::remove_file(self.pgdata().join("base/5/112")).expect("removed");
        for path in ["base/5/16384", "base/5/1247", "base/5/16500"] {
            settle(&self.pgdata().join(path), changed);
        }
        set_time(&self.pgdata().join("base/5"), changed);
    }

    fn back_up(&self, repository: &Repository, backup_type: BackupType, now_ms: i64) {
        let cache = self.work.join("cache");
        let manifest = back_up(repository, &self.pgdata(), &cache, backup_type, now_ms);
        let expected = listing(&self.pgdata());
        put(
            &self.folder.join("expected").join(manifest.label),
            expected.as_bytes(),
        );
    }

    /// A WAL segment and a history file.
    fn archive(&self, repository: &Repository) {
        let control = control_file::read(&self.pgdata()).expect("a control file");
        let mut wal = vec![0; control.wal_segment_bytes as usize];
        for (at, field) in [
            (0, &0xD110_u16.to_le_bytes()[..]),
            (2, &2_u16.to_le_bytes()),
            (4, &1_u32.to_le_bytes()),
            (8, &u64::from(control.wal_segment_bytes).to_le_bytes()),
            (24, &control.system_id.to_le_bytes()),
            (32, &control.wal_segment_bytes.to_le_bytes()),
            (36, &8192_u32.to_le_bytes()),
        ] {
            wal[at..at + field.len()].copy_from_slice(field);
        }
        wal[8192..12_288].copy_from_slice(&noise(4, 4096));
        self.put(&format!("pg_wal/{SEGMENT}"), &wal);
        self.put("pg_wal/00000002.history", b"1\t0/2000000\tno reason\n");
        let options = ArchiveOptions {
            stanza: STANZA.to_owned(),
            pgdata: self.pgdata(),
            cache: self.work.join("cache"),
            compress_level: 3,
            threads: 1,
            header_check: true,
            timeout: Duration::ZERO,
        };
        for name in [SEGMENT, "00000002.history"] {
            let path = Path::new("pg_wal").join(name);
            actions::archive_push(&only(Arc::clone(&repository.storage)), &options, &path)
                .expect("archived");
        }
    }
}

/// Gives all that lies at a path its mode and its time, folders after what is in them.
fn settle(path: &Path, ms: i64) {
    let metadata = fs::symlink_metadata(path).expect("an entry");
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("a folder") {
            settle(&entry.expect("an entry").path(), ms);
        }
    }
    if !metadata.is_symlink() {
        let odd = path.ends_with("odd") || path.ends_with("pg_stat");
        let mode = match (metadata.is_dir(), odd) {
            (true, false) => 0o700,
            (true, true) => 0o750,
            (false, _) => 0o600,
        };
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, permissions).expect("a mode");
    }
    set_time(path, ms);
}

/// Sets the time stamp of a file, a folder, or a link itself.
fn set_time(path: &Path, ms: i64) {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        let time = Timespec {
            tv_sec: ms / 1000,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("a time stamp");
        return;
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs());
    File::open(path)
        .and_then(|file| file.set_times(FileTimes::new().set_modified(time)))
        .expect("a time stamp");
}

/// One of each record that backups and archiving do not leave behind.
fn other_records(repository: &Repository) {
    let done = "a record is put";
    let role = Role::Backup {
        stanza: STANZA.to_owned(),
        label: FENCED.to_owned(),
    };
    let announcement = Announcement {
        host: "golden".to_owned(),
        pid: 4711,
        role: role.name().to_owned(),
        start_ms: BEGUN_MS + 2 * HOUR_MS,
        tool_version: "0.1.0".to_owned(),
    };
    run::announce(repository, &role, RUN, &announcement).expect(done);
    run::publish_gc_seen(repository, &role, RUN, 0).expect(done);
    run::beat(repository, &role, RUN, 2).expect(done);
    snapshot::decide(repository, STANZA, FENCED, RUN, &Register::Fenced).expect(done);
    let (host, reason) = ("golden".to_owned(), "a test".to_owned());
    let tombstone = Tombstone {
        forgotten_ms: BEGUN_MS,
        host: host.clone(),
    };
    forget::put(repository, STANZA, FENCED, RUN, &tombstone).expect(done);
    let (chunk, pack) = LOST;
    let finding = Finding {
        found_ms: BEGUN_MS,
        host,
        reason,
    };
    quarantine::put(repository, chunk, pack, &finding).expect(done);
    let mut state = GcState::default();
    let condemn = GcRecord::Condemn {
        packs: vec![pack],
        wal: Vec::new(),
        tombstones: 1,
    };
    let sweep = GcRecord::Sweep {
        packs: vec![pack],
        wal: Vec::new(),
        of: 1,
    };
    for record in [condemn, sweep] {
        assert!(gc_log::append(repository, &mut state, record).expect(done));
    }
    let gap = WalGap {
        first: GAP.0.to_owned(),
        last: GAP.1.to_owned(),
    };
    wal::put_gap(repository, STANZA, EPOCH, &gap).expect(done);
}
