//! What is stored and damaged: every kind of object, in every way, before every command.
//!
//! Promises: a restore that succeeds is equal to what was backed up, one that fails leaves nothing that starts; no command
//! takes damage for absence; what the cluster still has is stored again, and then old backups restore again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use pgcairn_engine::actions::{self, Got};
use pgcairn_engine::ids::RunId;
use pgcairn_engine::monitor::NoMonitor;
use pgcairn_engine::repository::run::{self, Announcement, Role};
use pgcairn_engine::repository::snapshot::BackupType;
use pgcairn_tests::damage::{Answer, Damage, STANZA, Site, Told, chain};
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
            write!(line, " {:13}", told(&got, &marks, |got| format!("{got:?}"))).unwrap();
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
            Ok(Got::Fetched) => {
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
