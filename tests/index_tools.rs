//! The chunk index as a thing of its own: `pgcairn-index`, and what backup and restore do when the index, the segments
//! or the gc log are not as usual. All on copies of a golden repository.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what goes wrong here fails the test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pgcairn_engine::actions::open_index;
use pgcairn_engine::ids::{PackId, RunId};
use pgcairn_engine::repository::forget::{self, Tombstone};
use pgcairn_engine::repository::gc_log::{self, GcRecord};
use pgcairn_engine::repository::layout::PackClass;
use pgcairn_engine::repository::segment::{self, IndexSegment};
use pgcairn_engine::repository::snapshot::{self, BackupType};
use pgcairn_engine::repository::{Repository, layout, packs};
use pgcairn_tests::golden::{self, STANZA};
use pgcairn_tests::process::{Finished, built, finish};
use pgcairn_tests::source;
use tempfile::TempDir;

const VERSION: &str = "v1";
const FULL: &str = "20261124-010000F";
const INCR: &str = "20261124-010000F_20261124-020000I";

/// A copy of a golden repository, and a cache.
struct Place {
    work: TempDir,
    repository: Repository,
}

impl Place {
    fn new() -> Self {
        let work = TempDir::new().unwrap();
        let repository = golden::open_copy(VERSION, &work.path().join("repository"));
        Place { work, repository }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(built("pgcairn-index"));
        command
            .arg("--repo1-path")
            .arg(self.path("repository"))
            .arg("--cache-path")
            .arg(self.path("cache"))
            .args(arguments);
        finish(&mut command)
    }

    /// The value that a command prints behind a name; the command must exit with `code`.
    #[track_caller]
    fn value(&self, arguments: &[&str], code: i32, name: &str) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.code, Some(code), "{finished:?}");
        let line = finished
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {finished:?}"))
            .trim()
            .to_owned()
    }

    fn packs(&self) -> Vec<(PackClass, PackId)> {
        let of = |class| {
            let listed = packs::list(&self.repository, class).unwrap();
            listed.into_iter().map(move |pack| (class, pack.pack))
        };
        of(PackClass::Data).chain(of(PackClass::Meta)).collect()
    }

    /// The file of an object.
    fn file(&self, key: &str) -> PathBuf {
        self.path("repository").join(key)
    }

    fn segments(&self) -> Vec<PathBuf> {
        let keys = segment::list(&self.repository, None).unwrap();
        keys.iter().map(|key| self.file(key.as_str())).collect()
    }

    /// Restores a backup of the golden repository, which must be what it was; answers the data directory.
    #[track_caller]
    fn restore(&self, label: &str) -> PathBuf {
        let work = self.path(&format!("restored-{label}"));
        fs::create_dir(&work).unwrap();
        let pgdata = golden::restore(&self.repository, label, &work);
        assert_is(&pgdata, label);
        pgdata
    }

    /// Backs up what was restored; answers the label and the bytes that were new.
    fn back_up(&self, pgdata: &Path) -> (String, u64) {
        let (cache, now_ms) = (self.path("cache"), golden::LATER_MS);
        let full = BackupType::Full;
        let manifest = golden::back_up(&self.repository, pgdata, &cache, full, now_ms);
        (manifest.label, manifest.sums.new_bytes)
    }

    fn append(&self, record: GcRecord) {
        let mut state = gc_log::read(&self.repository).unwrap();
        assert!(gc_log::append(&self.repository, &mut state, record).unwrap());
    }

    fn condemn_all(&self) -> Vec<PackId> {
        let packs: Vec<PackId> = self.packs().into_iter().map(|(_, pack)| pack).collect();
        self.append(GcRecord::Condemn {
            packs: packs.clone(),
            wal: Vec::new(),
            tombstones: 1,
        });
        packs
    }
}

#[track_caller]
fn assert_is(pgdata: &Path, label: &str) {
    let expected = source::read(&golden::folder(VERSION).join("expected").join(label));
    assert_eq!(golden::listing(pgdata), expected, "{label}");
}

fn flip_last_byte(path: &Path) {
    use std::io::Write as _;
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&bytes).unwrap();
}

#[test]
fn stats_tell_how_far_the_index_is_behind() {
    let place = Place::new();
    let segments = place.segments().len().to_string();
    let behind = "segments not applied yet";
    assert_eq!(place.value(&["stats"], 0, behind), segments);
    assert_eq!(place.value(&["verify"], 0, "problems"), "0");
    assert_eq!(place.value(&["stats"], 0, behind), "0");
    assert_eq!(place.value(&["stats"], 0, "segments applied"), segments);
    let id = place.repository.id.to_string();
    assert_eq!(place.value(&["stats"], 0, "repository"), id);
    let packs = place.packs().len().to_string();
    assert_eq!(place.value(&["stats"], 0, "packs"), packs);
}

#[test]
fn dump_shows_each_copy_of_each_chunk_or_those_of_one() {
    let place = Place::new();
    let copies = place.value(&["verify"], 0, "copies");
    let all = place.run(&["dump"]).success();
    assert_eq!(all.lines().count().to_string(), copies);
    assert!(all.lines().is_sorted());
    let line = all.lines().nth(3).unwrap();
    let id = line.split(' ').next().unwrap();
    assert_eq!(
        place.run(&["dump", "--chunk", id]).success(),
        format!("{line}\n")
    );
    assert_eq!(
        place.run(&["dump", "--chunk", &"0".repeat(64)]).code,
        Some(1)
    );
    assert_eq!(place.run(&["dump", "--chunk", "0"]).code, Some(2));
}

#[test]
fn verify_names_packs_that_are_missing_or_cut() {
    let place = Place::new();
    let [(class, gone), .., (other, cut)] = place.packs()[..] else {
        panic!("the golden repository has several packs");
    };
    fs::remove_file(place.file(layout::pack(class, gone).as_str())).unwrap();
    let cut_file = place.file(layout::pack(other, cut).as_str());
    fs::File::options()
        .write(true)
        .open(cut_file)
        .unwrap()
        .set_len(100)
        .unwrap();
    let finished = place.run(&["verify"]);
    assert_eq!(finished.code, Some(1));
    let told = &finished.stderr;
    assert!(
        told.contains(&format!("pack {gone}: is not listed")),
        "{told}"
    );
    assert!(
        told.contains(&format!("pack {cut}: has 100 bytes")),
        "{told}"
    );
    assert_eq!(place.value(&["verify"], 1, "problems"), "2");
}

#[test]
fn verify_finds_facts_of_one_side_only() {
    let place = Place::new();
    let copies: u64 = place.value(&["verify"], 0, "copies").parse().unwrap();
    // Facts in the index whose segment is gone.
    let first = place.segments().remove(0);
    fs::remove_file(&first).unwrap();
    let lost = place.run(&["verify"]);
    assert_eq!(lost.code, Some(1));
    assert!(lost.stderr.contains("is in the index, in no segment"));
    // A segment that the index believes to have applied.
    let place = Place::new();
    let (run, n) = (RunId([7; 16]), 1);
    let key = layout::index_segment(STANZA, run, n).unwrap();
    let known = segment::list(&place.repository, None).unwrap();
    let mut segment = segment::get(&place.repository, &known[0]).unwrap();
    for fact in &mut segment.packs[0].blobs {
        fact.offset += 1;
    }
    let facts = segment.packs[0].blobs.len();
    segment.packs.truncate(1);
    let index = open_index(&place.repository, &place.path("cache")).unwrap();
    index.apply(key.as_str(), &IndexSegment::default()).unwrap();
    drop(index);
    segment::put(&place.repository, STANZA, run, n, &segment).unwrap();
    let missed = place.run(&["verify"]);
    assert_eq!(missed.code, Some(1));
    assert!(missed.stderr.contains("is in a segment, not in the index"));
    let problems = place.value(&["verify"], 1, "problems");
    assert_eq!(problems, facts.to_string());
    assert_eq!(place.value(&["verify"], 1, "copies"), copies.to_string());
}

#[test]
fn rebuild_makes_the_same_index_and_publishes_what_no_segment_names() {
    let place = Place::new();
    place.run(&["verify"]).success();
    let dump = place.run(&["dump"]).success();
    let packs = place.packs().len().to_string();
    assert_eq!(place.value(&["rebuild"], 0, "footers read"), packs);
    assert_eq!(place.run(&["dump"]).success(), dump);
    for segment in place.segments() {
        fs::remove_file(segment).unwrap();
    }
    let unnamed = place.value(&["rebuild"], 0, "packs in no segment");
    assert_eq!(unnamed, packs);
    assert_eq!(place.run(&["dump"]).success(), "");
    let published = place.value(&["rebuild", "--publish"], 0, "segments published");
    assert_eq!(published, "1");
    assert_eq!(place.run(&["dump"]).success(), dump);
    fs::remove_dir_all(place.path("cache")).unwrap();
    assert_eq!(place.value(&["verify"], 0, "packs in no segment"), "0");
    assert_eq!(place.run(&["dump"]).success(), dump);
    place.restore(INCR);
}

#[test]
fn rebuild_names_what_it_cannot_read_and_goes_on() {
    let place = Place::new();
    let (class, pack) = place.packs()[0];
    let key = layout::pack(class, pack).to_string();
    flip_last_byte(&place.file(&key));
    let segment = place.segments().remove(0);
    flip_last_byte(&segment);
    let finished = place.run(&["rebuild", "--publish"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains(&format!("{key}: is damaged")));
    assert!(finished.stderr.contains("index/golden/"));
    assert_eq!(finished.stderr.lines().count(), 2, "{finished:?}");
}

#[test]
fn compact_changes_no_answer() {
    let place = Place::new();
    place.run(&["verify"]).success();
    let dump = place.run(&["dump"]).success();
    let before: u64 = place
        .value(&["stats"], 0, "bytes of files")
        .parse()
        .unwrap();
    let after: u64 = place.value(&["compact"], 0, "bytes after").parse().unwrap();
    assert!(
        after > 0 && after <= before,
        "{before} bytes became {after}"
    );
    assert_eq!(place.run(&["dump"]).success(), dump);
}

#[test]
fn a_place_without_a_repository_is_refused() {
    let place = Place::new();
    fs::remove_file(place.file("config")).unwrap();
    fs::remove_file(place.file("config.copy")).unwrap();
    let finished = place.run(&["stats"]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("holds no pgcairn repository"));
}

/// A pack is condemned although a backup needs it: the backup was committed meanwhile. It is rescued before the sweep;
/// until then the condemned pack holds the only copy.
#[test]
fn a_backup_restores_while_its_packs_are_condemned() {
    let place = Place::new();
    place.condemn_all();
    place.restore(FULL);
}

/// Orphans, packs that no segment names, are what prune condemns first. A backup that finds them by their footers and
/// builds on them would lose them to the sweep, for which nobody waits: it has read the gc log.
#[test]
fn a_backup_builds_on_no_condemned_pack_that_no_segment_names() {
    let place = Place::new();
    let pgdata = place.restore(INCR);
    for segment in place.segments() {
        fs::remove_file(segment).unwrap();
    }
    for snapshot in snapshot::list(&place.repository, STANZA).unwrap() {
        let (label, run) = (&snapshot.label, snapshot.run);
        let tombstone = Tombstone {
            forgotten_ms: 0,
            host: "golden".to_owned(),
        };
        forget::put(&place.repository, STANZA, label, run, &tombstone).unwrap();
    }
    let condemned = place.condemn_all();
    let (label, new_bytes) = place.back_up(&pgdata);
    assert!(
        new_bytes > 5 << 20,
        "everything is stored again: {new_bytes}"
    );
    place.append(GcRecord::Sweep {
        packs: condemned.clone(),
        wal: Vec::new(),
        of: 3,
    });
    for (class, pack) in place.packs() {
        if condemned.contains(&pack) {
            packs::delete(&place.repository, class, pack).unwrap();
        }
    }
    let again = place.path("again");
    fs::create_dir(&again).unwrap();
    let restored = golden::restore(&place.repository, &label, &again);
    assert_eq!(golden::listing(&restored), golden::listing(&pgdata));
}
