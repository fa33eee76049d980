//! What is stored and damaged: every kind of object, in every way, before every command.
//!
//! Promises: a restore that succeeds is equal to what was backed up, one that fails leaves nothing that starts; no command
//! takes damage for absence; what the cluster still has is stored again, and then old backups restore again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pgcairn_engine::actions::{self, ErrorKind, Got};
use pgcairn_engine::ids::RunId;
use pgcairn_engine::monitor::NoMonitor;
use pgcairn_engine::repository::run::{self, Announcement, Role};
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_engine::storage::local::LocalStorage;
use pgcairn_engine::storage::{self, Key, Object, Storage};
use pgcairn_tests::damage::{Answer, Damage, STANZA, Site, Told, chain, flip};
use pgcairn_tests::places::only;
use pgcairn_tests::small_cluster::{copy, differences};

/// A site with a full and an incr, of clusters that differ by one file, and with two of every kind of object.
struct Matrix {
    site: Site,
    full: String,
    incr: String,
    segments: [String; 2],
}

impl Matrix {
    fn new() -> Self {
        let mut site = Site::new();
        site.stanza_create("other").unwrap();
        let segments = site.push_two_segments();
        let full = site.backup(BackupType::Full, &NoMonitor).unwrap();
        copy(&site.cluster.data, &site.beside("as in full"));
        site.cluster.write_relation("base/5/90003", 100, 3);
        let incr = site.backup(BackupType::Incr, &NoMonitor).unwrap();
        copy(&site.cluster.data, &site.beside("as in incr"));
        let repository = site.repository().unwrap();
        for n in [1, 2] {
            let announcement = Announcement {
                host: "gone".to_owned(),
                pid: 1,
                role: "restore".to_owned(),
                start_ms: 0,
                tool_version: String::new(),
            };
            run::announce(&repository, &Role::Restore, RunId([n; 16]), &announcement).unwrap();
        }
        site.keep();
        Matrix {
            site,
            full: full.manifest.label,
            incr: incr.manifest.label,
            segments,
        }
    }

    /// The object of a kind that is damaged, which belongs to the full, and another one.
    fn objects(&self, kind: &str) -> [PathBuf; 2] {
        let key = |prefix: &str, nth: usize| self.site.object(&self.site.keys(prefix)[nth]);
        // Packs have random names: which is whose is told by their age.
        let by_age = |prefix: &str| {
            let storage = self.site.storage().unwrap();
            let mut listed = storage.list(prefix, None, 100).unwrap();
            listed.sort_by_key(|object| object.modified_ms);
            [0, 1].map(|nth| self.site.object(listed[nth].key.as_str()))
        };
        match kind {
            "config" => [key("config", 0), key("config.copy", 0)],
            "config.copy" => [key("config.copy", 0), key("config", 0)],
            "stanza" => [key("stanzas/demo/", 0), key("stanzas/other/", 0)],
            "data pack" => by_age("data/"),
            "meta pack" => by_age("meta/"),
            "index segment" => by_age("index/"),
            "register" => [key("snapshots/", 0), key("snapshots/", 1)],
            "WAL segment" => [key("wal/", 0), key("wal/", 1)],
            _ => [key("runs/restore/", 0), key("runs/restore/", 1)],
        }
    }

    /// Does one kind of damage and runs every command; answers one line.
    fn line(&mut self, kind: &str, damage: Damage, warm: bool) -> String {
        self.site.reset(warm);
        let [object, other] = self.objects(kind);
        damage.strike(&object, &other);
        let marks = self.marks(&object, &other);
        let mut line = format!("{:22}|", format!("{kind} {damage:?}").to_lowercase());
        let info = self.site.repository().and_then(|repository| {
            let infos = actions::info(&repository, Some(STANZA))?;
            Ok(infos
                .iter()
                .map(|info| (info.backups.len(), info.unreadable.len()))
                .sum_pairs())
        });
        write!(
            line,
            " {:8}|",
            told(&info, &marks, |(good, bad)| format!("{good}+{bad}"))
        )
        .unwrap();
        for segment in self.segments.clone() {
            let got = self.get(&segment);
            let word = |got| match got {
                Got::Fetched { .. } => "Fetched".to_owned(),
                Got::NotThere => "NotThere".to_owned(),
            };
            write!(line, " {:13}", told(&got, &marks, |got| word(*got))).unwrap();
        }
        line.push('|');
        self.restores(&mut line, &marks);
        for backup_type in [BackupType::Incr, BackupType::Full] {
            let problems = Told::default();
            let backup = self.site.backup(backup_type, &problems);
            write!(line, " {:13}", told(&backup, &marks, |_| "ok".to_owned())).unwrap();
            if let Ok(backup) = backup {
                self.restore(&backup.manifest.label, "as in incr").unwrap();
            }
        }
        line.push('|');
        self.restores(&mut line, &marks);
        line.trim_end_matches(['|', ' ']).to_owned()
    }

    /// What a message must name one of, to be of use: the key, the pack, or the backup.
    fn marks(&self, object: &Path, other: &Path) -> Vec<String> {
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        vec![
            name(object),
            name(other),
            STANZA.to_owned(),
            self.full.clone(),
            self.incr.clone(),
        ]
    }

    fn restores(&self, line: &mut String, marks: &[String]) {
        for (label, like) in [(&self.full, "as in full"), (&self.incr, "as in incr")] {
            let restored = self.restore(label, like);
            write!(line, " {:14}", told(&restored, marks, |()| "ok".to_owned())).unwrap();
        }
        line.push('|');
    }

    /// Restores into a new directory; what comes out is right or cannot be started.
    fn restore(&self, label: &str, like: &str) -> Answer<()> {
        let target = self.site.beside("target");
        if target.exists() {
            fs::remove_dir_all(&target).unwrap();
        }
        let options = self.site.restore_options(Some(label), &target);
        match self.site.restore(&options, &NoMonitor) {
            Ok(_) => {
                let like = self.site.beside(like);
                assert_eq!(differences(&like, &target), [""; 0], "{label}");
                Ok(())
            }
            Err(error) => {
                assert!(
                    !target.join("global/pg_control").exists(),
                    "{label}: {error}"
                );
                Err(error)
            }
        }
    }

    /// Gets a segment; what comes out is right or is not there.
    fn get(&self, segment: &str) -> Answer<Got> {
        let destination = self.site.beside("got");
        if destination.exists() {
            fs::remove_file(&destination).unwrap();
        }
        let got = self.site.archive_get(segment, &destination);
        match got {
            Ok(Got::Fetched { .. }) => {
                let pushed = fs::read(self.site.beside(segment)).unwrap();
                assert!(
                    pushed == fs::read(&destination).unwrap(),
                    "{segment} is another file"
                );
            }
            _ => assert!(!destination.exists(), "{segment}"),
        }
        got
    }

    fn table(&mut self, kinds: &[&str], warm: bool) -> String {
        let mut table = String::from(
            "                      | info    | get first, last            | restore full, incr          | \
             backup incr, full          | restore full, incr\n",
        );
        for kind in kinds {
            for damage in Damage::ALL {
                table.push_str(&self.line(kind, damage, warm));
                table.push('\n');
            }
        }
        table
    }
}

trait SumPairs {
    fn sum_pairs(self) -> (usize, usize);
}

impl<I: Iterator<Item = (usize, usize)>> SumPairs for I {
    fn sum_pairs(self) -> (usize, usize) {
        self.fold((0, 0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
    }
}

/// A short word for what came out; an error must name one of `marks`.
fn told<T>(answer: &Answer<T>, marks: &[String], word: impl Fn(&T) -> String) -> String {
    match answer {
        Ok(answer) => word(answer),
        Err(error) => {
            let text = chain(error);
            assert!(marks.iter().any(|mark| text.contains(mark)), "{text}");
            format!("{:?}", error.kind())
        }
    }
}

#[test]
fn damaged_records_are_named_and_stop_only_what_needs_them() {
    let kinds = [
        "config",
        "config.copy",
        "stanza",
        "register",
        "announcement",
    ];
    insta::assert_snapshot!(Matrix::new().table(&kinds, false), @r"
                          | info    | get first, last            | restore full, incr          | backup incr, full          | restore full, incr
    config missing        | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    config cut            | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    config flipped        | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    config swapped        | Damaged | Damaged       Damaged      | Damaged        Damaged       | Damaged       Damaged      | Damaged        Damaged
    config garbage        | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    config.copy missing   | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    config.copy cut       | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    config.copy flipped   | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    config.copy swapped   | Damaged | Damaged       Damaged      | Damaged        Damaged       | Damaged       Damaged      | Damaged        Damaged
    config.copy garbage   | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    stanza missing        | 0+0     | StanzaMissing StanzaMissing| StanzaMissing  StanzaMissing | StanzaMissing StanzaMissing| StanzaMissing  StanzaMissing
    stanza cut            | Damaged | Damaged       Damaged      | ok             ok            | Damaged       Damaged      | ok             ok
    stanza flipped        | Damaged | Damaged       Damaged      | ok             ok            | Damaged       Damaged      | ok             ok
    stanza swapped        | Damaged | Damaged       Damaged      | ok             ok            | Damaged       Damaged      | ok             ok
    stanza garbage        | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    register missing      | 1+0     | Fetched       Fetched      | BackupNotFound ok            | ok            ok           | BackupNotFound ok
    register cut          | 1+1     | Fetched       Fetched      | Damaged        ok            | ok            ok           | Damaged        ok
    register flipped      | 1+1     | Fetched       Fetched      | Damaged        ok            | ok            ok           | Damaged        ok
    register swapped      | 0+2     | Fetched       Fetched      | Damaged        Damaged       | ok            ok           | Damaged        Damaged
    register garbage      | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    announcement missing  | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    announcement cut      | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    announcement flipped  | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    announcement swapped  | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    announcement garbage  | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    ");
}

#[test]
fn damaged_packs_are_stored_again_and_damaged_segments_are_not_missed() {
    let kinds = ["data pack", "meta pack", "index segment"];
    let mut matrix = Matrix::new();
    let table = matrix.table(&kinds, false);
    assert_eq!(
        table,
        matrix.table(&kinds, true),
        "the local cache changes nothing but time"
    );
    insta::assert_snapshot!(table, @r"
                          | info    | get first, last            | restore full, incr          | backup incr, full          | restore full, incr
    data pack missing     | 2+0     | Fetched       Fetched      | Damaged        Damaged       | ok            ok           | ok             ok
    data pack cut         | 2+0     | Fetched       Fetched      | Damaged        Damaged       | ok            ok           | ok             ok
    data pack flipped     | 2+0     | Fetched       Fetched      | Damaged        Damaged       | ok            ok           | ok             ok
    data pack swapped     | 2+0     | Fetched       Fetched      | Damaged        Damaged       | ok            ok           | ok             ok
    data pack garbage     | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    meta pack missing     | 2+0     | Fetched       Fetched      | Damaged        Damaged       | ok            ok           | Damaged        ok
    meta pack cut         | 2+0     | Fetched       Fetched      | Damaged        Damaged       | ok            ok           | Damaged        ok
    meta pack flipped     | 2+0     | Fetched       Fetched      | Damaged        ok            | ok            ok           | Damaged        ok
    meta pack swapped     | 2+0     | Fetched       Fetched      | Damaged        Damaged       | ok            ok           | Damaged        ok
    meta pack garbage     | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    index segment missing | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    index segment cut     | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    index segment flipped | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    index segment swapped | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    index segment garbage | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    ");
}

#[test]
fn a_damaged_wal_object_is_never_the_end_of_the_wal() {
    insta::assert_snapshot!(Matrix::new().table(&["WAL segment"], true), @r"
                          | info    | get first, last            | restore full, incr          | backup incr, full          | restore full, incr
    wal segment missing   | 2+0     | FileMissing   Fetched      | ok             ok            | ok            ok           | ok             ok
    wal segment cut       | 2+0     | Damaged       Fetched      | ok             ok            | ok            ok           | ok             ok
    wal segment flipped   | 2+0     | Damaged       Fetched      | ok             ok            | ok            ok           | ok             ok
    wal segment swapped   | 2+0     | Damaged       Damaged      | ok             ok            | ok            ok           | ok             ok
    wal segment garbage   | 2+0     | Fetched       Fetched      | ok             ok            | ok            ok           | ok             ok
    ");
}

#[test]
fn a_stanza_record_that_is_lost_is_made_again_and_its_backups_are_back() {
    let matrix = Matrix::new();
    fs::remove_file(&matrix.objects("stanza")[0]).unwrap();
    assert!(matrix.restore(&matrix.incr, "as in incr").is_err());
    matrix.site.stanza_create(STANZA).unwrap();
    matrix.restore(&matrix.full, "as in full").unwrap();
    let got = matrix.get(&matrix.segments[0]).unwrap();
    assert_eq!(got, Got::Fetched { repository: 1 });
}

#[test]
fn a_damaged_config_is_told_and_written_again_from_its_copy() {
    for key in ["config", "config.copy"] {
        let mut site = Site::new();
        flip(&site.object(key), 60);
        let told = Told::default();
        site.backup(BackupType::Full, &told).unwrap();
        assert_eq!(
            told.problems(),
            [format!(
                "{key}: record {key} cannot be used: checksum does not match: remove it if it is there, then stanza-create \
                 writes it again from the other copy"
            )]
        );
        fs::remove_file(site.object(key)).unwrap();
        site.stanza_create(STANZA).unwrap();
        let told = Told::default();
        site.backup(BackupType::Full, &told).unwrap();
        assert_eq!(told.problems(), [""; 0]);
    }
}

#[test]
fn a_backup_repairs_the_tree_of_the_one_before_when_it_meets_the_damage() {
    let mut site = Site::new();
    let first = site.backup(BackupType::Full, &NoMonitor).unwrap().manifest;
    let pack = site.keys("meta/").remove(0);
    let bytes = fs::metadata(site.object(&pack)).unwrap().len();
    // Any node may be hit: each is met, because each is compared with.
    site.keep();
    for at in (50..bytes - 1000).step_by(1500) {
        site.reset(true);
        flip(&site.object(&pack), usize::try_from(at).unwrap());
        let told = Told::default();
        let second = site.backup(BackupType::Full, &told).unwrap().manifest;
        assert!(
            told.problems().iter().any(|told| told.contains(&pack)),
            "{:?}",
            told.problems()
        );
        for label in [&first.label, &second.label] {
            let target = site.beside("target");
            let options = site.restore_options(Some(label), &target);
            site.restore(&options, &NoMonitor).unwrap();
            assert_eq!(differences(&site.cluster.data, &target), [""; 0]);
        }
    }
}

#[test]
fn verify_calls_a_backup_restorable_exactly_if_it_can_be_restored() {
    let matrix = Matrix::new();
    let backups = [(&matrix.full, "as in full"), (&matrix.incr, "as in incr")];
    let all = backups.map(|(label, _)| label.clone());
    assert_eq!(matrix.site.verdict(), (all.to_vec(), 0));
    let storage = matrix.site.storage().unwrap();
    let objects = storage.list("", None, usize::MAX).unwrap();
    let mut lost = 0;
    for object in &objects {
        let key = object.key.as_str();
        let length = usize::try_from(object.bytes).unwrap();
        let file = matrix.site.object(key);
        let flip_at = |at: usize| flip(&file, at);
        let ways: [(&str, &dyn Fn()); 5] = [
            ("early", &|| flip_at(length / 7)),
            ("in the middle", &|| flip_at(length / 2)),
            ("late", &|| flip_at(length - 3)),
            ("cut", &|| Damage::Cut.strike(&file, &file)),
            ("missing", &|| Damage::Missing.strike(&file, &file)),
        ];
        // Announcements do not say what is stored; and of what is gone, nothing else may tell.
        let silent = |how| {
            let gone = ["snapshots/", "stanzas/other/", "index/", "wal/"];
            key.starts_with("runs/")
                || how == "missing" && gone.iter().any(|gone| key.starts_with(gone))
        };
        for (how, strike) in ways {
            matrix.site.reset(true);
            strike();
            let (restorable, problems) = matrix.site.verdict();
            assert_eq!(problems == 0, silent(how), "{key}: {how}");
            for (label, like) in backups {
                // Each time anew, because what verify notes must help nobody here.
                matrix.site.reset(true);
                strike();
                let alone = matrix.site.verify_set(Some(label), &NoMonitor);
                let alone = alone.is_ok_and(|verified| verified.unrestorable() == (0, 1));
                matrix.site.reset(true);
                strike();
                let restored = matrix.restore(label, like).is_ok();
                assert_eq!(
                    restorable.contains(label),
                    restored,
                    "{label}, {key}: {how}"
                );
                assert_eq!(alone, restored, "{label} alone, {key}: {how}");
                lost += usize::from(!restored);
            }
        }
    }
    assert!(lost > 20, "only {lost}");
}

/// A storage in a directory that is taken away before a chosen call.
struct Unmounting {
    inner: LocalStorage,
    directory: PathBuf,
    calls_left: AtomicU64,
}

impl Unmounting {
    fn new(directory: &Path, calls: u64) -> Self {
        Unmounting {
            inner: LocalStorage::open(directory).unwrap(),
            directory: directory.to_owned(),
            calls_left: AtomicU64::new(calls),
        }
    }

    fn call(&self) -> &LocalStorage {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            fs::rename(&self.directory, self.directory.with_extension("away")).unwrap();
        }
        &self.inner
    }
}

impl Storage for Unmounting {
    fn put(&self, key: &Key, body: &[u8]) -> storage::Result<()> {
        self.call().put(key, body)
    }
    fn get(&self, key: &Key) -> storage::Result<Vec<u8>> {
        self.call().get(key)
    }
    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> storage::Result<()> {
        self.call().get_range(key, offset, buffer)
    }
    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
    ) -> storage::Result<Vec<Object>> {
        self.call().list(prefix, start_after, limit)
    }
    fn delete(&self, key: &Key) -> storage::Result<()> {
        self.call().delete(key)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn a_repository_that_goes_away_under_archive_get_is_never_the_end_of_the_wal() {
    let site = Site::new();
    site.push_two_segments();
    let path = site.repository_path();
    let next = "000000010000000000000003";
    let mut calls = 0;
    loop {
        calls += 1;
        let storage = Arc::new(Unmounting::new(&path, calls));
        let got = actions::archive_get(
            &only(storage),
            &site.archive_options(),
            next,
            &site.beside("got"),
            &NoMonitor,
        );
        if path.exists() {
            // It was not taken away, because there were not so many calls.
            assert_eq!(got.unwrap(), Got::NotThere);
            break;
        }
        assert_eq!(
            got.unwrap_err().kind(),
            ErrorKind::StorageUnreachable,
            "before call {calls}"
        );
        fs::rename(path.with_extension("away"), &path).unwrap();
    }
    assert!(calls > 4, "{calls}");
}
