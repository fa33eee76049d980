//! Restoring over what is there: whatever it is, the outcome is the backup; only what differs is fetched; and nothing
//! outside the directories that were named is touched.

#![expect(
    clippy::disallowed_methods,
    clippy::large_stack_arrays,
    clippy::inconsistent_struct_constructor,
    reason = "what a test breaks or makes up need be neither atomic nor durable, and it is a few pages long"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use pgcairn_engine::actions::{Error, ErrorKind, RestoreSummary};
use pgcairn_engine::monitor::NoMonitor;
use pgcairn_engine::repository::snapshot::{BackupType, Manifest};
use pgcairn_tests::damage::{Answer, Site};
use pgcairn_tests::process::finish;
use pgcairn_tests::small_cluster::{LARGE, PAGE, SMALL, copy, differences};
use pgcairn_tests::stored_tree::StoredTree;

/// A relation of 2,304 pages: more than one region.
const HUGE: &str = "base/5/90004";
/// No stored chunk of a relation is longer than this.
const LARGEST_CHUNK: u64 = 512 << 10;

/// A cluster, its backup, and a directory that is restored into again and again.
struct Delta {
    site: Site,
    manifest: Manifest,
    tree: StoredTree,
    target: PathBuf,
    /// Not the target's: it must stay as it is.
    outside: PathBuf,
    outside_before: PathBuf,
}

impl Delta {
    fn new() -> Self {
        let mut site = Site::new();
        site.cluster.write_relation(HUGE, 2304, 4);
        let data = site.cluster.data.clone();
        // A hole, a file of zeros and nothing, an empty file, and one that is kept in the tree.
        let hole = fs::File::create(data.join("base/5/90005")).unwrap();
        hole.set_len(1 << 20).unwrap();
        fs::write(data.join("base/5/90006"), "").unwrap();
        fs::write(data.join("note"), "a few bytes").unwrap();
        let manifest = site.backup(BackupType::Full, &NoMonitor).unwrap().manifest;
        let tree = StoredTree::read(&site.repository().unwrap(), &manifest);
        let outside = site.beside("outside");
        fs::create_dir_all(outside.join("global")).unwrap();
        for name in ["90001", "global/pg_control", "stray"] {
            fs::write(outside.join(name), "of somebody else").unwrap();
        }
        let outside_before = site.beside("outside before");
        copy(&outside, &outside_before);
        let target = site.beside("target");
        let delta = Delta {
            manifest,
            tree,
            target,
            outside,
            outside_before,
            site,
        };
        delta.restore().unwrap();
        assert_eq!(differences(&data, &delta.target), [""; 0]);
        delta
    }

    fn restore(&self) -> Answer<RestoreSummary> {
        let options = self
            .site
            .restore_options(Some(&self.manifest.label), &self.target);
        self.site.restore(&options, &NoMonitor)
    }

    /// Changes the target, restores over it, and checks all that must hold whatever was changed; answers how many
    /// extents had to be fetched, and the summary.
    fn after(&self, what: &str, change: impl FnOnce(&Path)) -> (u64, RestoreSummary) {
        change(&self.target);
        let (missing, differ) = self.tree.missing_bytes(&self.target);
        let summary = self.restore().unwrap();
        let data = &self.site.cluster.data;
        assert_eq!(differences(data, &self.target), [""; 0], "{what}");
        assert_eq!(
            differences(&self.outside_before, &self.outside),
            [""; 0],
            "{what}"
        );
        // Chunks that lie in two files of one batch are fetched once.
        assert!(
            summary.fetched_bytes <= missing,
            "{what}: fetched {} bytes, {missing} differ",
            summary.fetched_bytes
        );
        (differ, summary)
    }
}

fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn remove(path: &Path) {
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn nothing_is_fetched_or_written_where_nothing_differs() {
    let delta = Delta::new();
    let (differ, summary) = delta.after("nothing", |_| ());
    assert_eq!(
        (differ, summary.fetched_bytes, summary.written_bytes),
        (0, 0, 0)
    );
    assert_eq!(summary.removed, 0);
    assert_eq!(summary.kept_bytes, summary.bytes);
    let (differ, summary) = delta.after("a touched file", |target| {
        let file = fs::File::options()
            .append(true)
            .open(target.join(SMALL))
            .unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
    });
    assert_eq!(
        (differ, summary.fetched_bytes, summary.written_bytes),
        (0, 0, 0)
    );
}

#[test]
fn only_the_extents_that_differ_are_fetched() {
    let delta = Delta::new();
    let pages = [
        (SMALL, 0),
        (SMALL, 383),
        (HUGE, 0),
        (HUGE, 1),
        (HUGE, 2047),
        (HUGE, 2048),
    ];
    let (differ, summary) = delta.after("flipped pages", |target| {
        for (relation, page) in pages {
            overwrite(&target.join(relation), |bytes| {
                bytes[page * PAGE + 4000] ^= 1;
            });
        }
    });
    assert!((4..=6).contains(&differ), "{differ}");
    // The pages differ from each other, so that no chunk serves two extents.
    let (missing, _) = (summary.fetched_bytes, summary.written_bytes);
    assert!(missing > 0 && missing <= pages.len() as u64 * LARGEST_CHUNK);
    assert!(summary.written_bytes <= differ * LARGEST_CHUNK);

    let (differ, summary) =
        delta.after("a hole that was filled, a file that was inline", |target| {
            overwrite(&target.join("base/5/90005"), |bytes| bytes[700_000] = 1);
            overwrite(&target.join("note"), |bytes| bytes[0] ^= 1);
        });
    assert_eq!(
        (differ, summary.fetched_bytes),
        (0, 0),
        "both are in the tree itself"
    );

    let (differ, _) = delta.after("a truncated segment", |target| {
        let file = fs::File::options()
            .write(true)
            .open(target.join(LARGE))
            .unwrap();
        file.set_len(300 * PAGE as u64 + 77).unwrap();
    });
    assert!(differ > 1, "{differ}");

    let (differ, summary) = delta.after("a longer file", |target| {
        overwrite(&target.join(SMALL), |bytes| bytes.extend([7; 3 * PAGE]));
        fs::write(target.join("base/5/90006"), "no longer empty").unwrap();
    });
    assert_eq!(
        (differ, summary.fetched_bytes, summary.written_bytes),
        (0, 0, 0)
    );

    let (differ, summary) = delta.after("missing files", |target| {
        for name in [SMALL, "global/1260", "base/5/90006"] {
            remove(&target.join(name));
        }
        remove(&target.join("pg_xact"));
    });
    assert!(differ > 0);
    assert!(summary.written_bytes >= 384 * PAGE as u64);
}

#[test]
fn what_the_backup_does_not_have_is_removed() {
    let delta = Delta::new();
    let (differ, summary) = delta.after("strays", |target| {
        // Names that sort before, between and behind those of the backup, also by whole components.
        for name in [
            "base/5/90001_fsm",
            "base/5-5",
            "base/!",
            "~",
            "base/5/0",
            "global/pg_control.old",
        ] {
            fs::write(target.join(name), "stray").unwrap();
        }
        fs::create_dir_all(target.join("base/4711/deep/er")).unwrap();
        fs::write(target.join("base/4711/deep/er/file"), "stray").unwrap();
        symlink("/", target.join("base/root")).unwrap();
        symlink(&delta.outside, target.join("base/5/outside")).unwrap();
        finish(Command::new("mkfifo").arg(target.join("base/pipe"))).success();
        fs::write(target.join("recovery.signal.old"), "stray").unwrap();
    });
    assert_eq!((differ, summary.fetched_bytes), (0, 0));
    assert_eq!(summary.removed, 11);
}

#[test]
fn modes_owners_and_kinds_are_set_right() {
    let delta = Delta::new();
    let (differ, summary) = delta.after("modes and owners", |target| {
        for (name, mode) in [
            (SMALL, 0o000),
            (LARGE, 0o4777),
            ("base/5", 0o777),
            ("global", 0o700),
            ("base", 0o1700),
        ] {
            fs::set_permissions(target.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        if rustix::process::geteuid().is_root() {
            chown(target.join(HUGE), Some(0), Some(0)).unwrap();
            chown(target.join("pg_wal"), Some(0), Some(0)).unwrap();
        }
    });
    assert_eq!((differ, summary.fetched_bytes), (0, 0));
    delta.after(
        "files where directories belong, and the other way round",
        |target| {
            for name in ["pg_xact", "pg_tblspc", "global"] {
                remove(&target.join(name));
                fs::write(target.join(name), "a file").unwrap();
            }
            for name in [SMALL, "PG_VERSION", "note"] {
                remove(&target.join(name));
                fs::create_dir_all(target.join(name).join("in/it")).unwrap();
            }
            // The marker says that this is a target, which PG_VERSION does not any more.
            let marker = format!("system-id={}\n", delta.manifest.system_id);
            fs::write(target.join("pgcairn.restore"), marker).unwrap();
            remove(&target.join(HUGE));
            finish(Command::new("mkfifo").arg(target.join(HUGE))).success();
        },
    );
}

#[test]
fn links_in_the_target_lead_nowhere() {
    let delta = Delta::new();
    let outside = &delta.outside;
    delta.after("a link where a file belongs", |target| {
        remove(&target.join(SMALL));
        symlink(outside.join("90001"), target.join(SMALL)).unwrap();
        remove(&target.join(LARGE));
        symlink(outside.join("not there"), target.join(LARGE)).unwrap();
        remove(&target.join("note"));
        symlink("../outside/stray", target.join("note")).unwrap();
    });
    delta.after("a link where a directory belongs", |target| {
        remove(&target.join("base"));
        symlink(outside, target.join("base")).unwrap();
    });
    delta.after(
        "a link to another cluster's control file's directory",
        |target| {
            remove(&target.join("global"));
            symlink(outside.join("global"), target.join("global")).unwrap();
        },
    );
    delta.after("links under names that a restore uses itself", |target| {
        symlink(outside.join("stray"), target.join("pgcairn.restore.tmp")).unwrap();
        symlink(
            outside.join("stray"),
            target.join("global/pg_control.pgcairn.tmp"),
        )
        .unwrap();
        remove(&target.join("global/pg_control"));
        symlink(
            outside.join("global/pg_control"),
            target.join("global/pg_control"),
        )
        .unwrap();
    });
    delta.after("a file that has another name elsewhere", |target| {
        let twin = delta.site.beside("twin");
        overwrite(&target.join(SMALL), |bytes| bytes[0] ^= 1);
        fs::hard_link(target.join(SMALL), &twin).unwrap();
    });
    let twin = fs::read(delta.site.beside("twin")).unwrap();
    let source = fs::read(delta.site.cluster.data.join(SMALL)).unwrap();
    assert_eq!(
        twin[0],
        source[0] ^ 1,
        "the other name's content stays as it was"
    );
}

/// A cluster with a tablespace, backed up, with a good copy of it in `target`.
struct Spaces {
    site: Site,
    space: PathBuf,
    target: PathBuf,
}

impl Spaces {
    fn new() -> Self {
        let mut site = Site::new();
        let space = site.beside("space");
        let control = pgcairn_engine::cluster::control_file::read(&site.cluster.data).unwrap();
        let version = format!("PG_{}_{}", control.version, control.catalog_version);
        fs::create_dir_all(space.join(&version).join("5")).unwrap();
        fs::write(space.join(&version).join("5/90010"), [5; 3 * PAGE]).unwrap();
        symlink(&space, site.cluster.data.join("pg_tblspc/16400")).unwrap();
        site.backup(BackupType::Full, &NoMonitor).unwrap();
        let target = site.beside("target");
        copy(&site.cluster.data, &target);
        Spaces {
            site,
            space,
            target,
        }
    }

    /// Restores into the target with a map.
    fn restore(&self, map: &[(&str, &Path)], delta: bool) -> Answer<RestoreSummary> {
        let mut options = self.site.restore_options(None, &self.target);
        options.delta = delta;
        let pair = |(name, path): &(&str, &Path)| ((*name).to_owned(), path.to_path_buf());
        options.tablespace_map = map.iter().map(pair).collect();
        self.site.restore(&options, &NoMonitor)
    }
}

#[test]
fn a_refused_tablespace_leaves_target_and_tablespace_as_they_were() {
    let spaces = Spaces::new();
    let (space, target) = (spaces.space.clone(), spaces.target.clone());
    remove(&target.join("pg_tblspc/16400"));
    let before = spaces.site.beside("before");
    copy(&target, &before);
    let space_before = spaces.site.beside("space before");
    copy(&space, &space_before);
    let refused = spaces.restore(&[], true).unwrap_err();
    assert!(
        matches!(&refused, Error::TablespacePath { path, .. } if *path == space),
        "{refused}"
    );
    assert_eq!(refused.kind(), ErrorKind::TablespaceMap);
    let text = format!(
        "tablespace 16400 (16400) cannot be restored to {}: it is in use and is not this cluster's; say where it goes \
         with --tablespace-map",
        space.display()
    );
    assert_eq!(refused.to_string(), text);
    let elsewhere = spaces.site.beside("elsewhere");
    let refused = spaces.restore(
        &[("16400", &elsewhere), ("no_such_space", &elsewhere)],
        true,
    );
    let refused = refused.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "--tablespace-map names no_such_space, which the backup does not have"
    );
    assert_eq!(refused.kind(), ErrorKind::TablespaceMap);
    assert_eq!(
        differences(&before, &target),
        [""; 0],
        "a cluster that was not restored still starts"
    );
    assert_eq!(differences(&space_before, &space), [""; 0]);
    assert!(!elsewhere.exists());
}

#[test]
fn a_tablespace_goes_where_it_was_mapped_or_where_it_is_its_own() {
    let spaces = Spaces::new();
    let (space, target) = (spaces.space.clone(), spaces.target.clone());
    let link = target.join("pg_tblspc/16400");
    spaces.restore(&[], true).unwrap();
    assert_eq!(
        fs::read_link(&link).unwrap(),
        space,
        "the target's own link points there"
    );

    let mapped = spaces.site.beside("mapped");
    fs::create_dir(&mapped).unwrap();
    fs::write(mapped.join("not ours"), "stays").unwrap();
    spaces.restore(&[("16400", &mapped)], true).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), mapped);
    assert_eq!(fs::read(mapped.join("not ours")).unwrap(), b"stays");
    fs::remove_file(mapped.join("not ours")).unwrap();
    assert_eq!(differences(&space, &mapped), [""; 0]);

    remove(&target);
    remove(&space);
    spaces.restore(&[], false).unwrap();
    assert_eq!(
        fs::read_link(&link).unwrap(),
        space,
        "the recorded path was free"
    );
    assert_eq!(differences(&mapped, &space), [""; 0]);
    assert_eq!(differences(&spaces.site.cluster.data, &target), [""; 0]);
}
