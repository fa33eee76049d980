//! WAL fetched before it is asked for: what comes out of the spool is right, whatever was done to the spool, and an
//! absent segment is told from the repositories alone.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pgcairn_engine::actions::{
    self, ErrorKind, Got, PrefetchOptions, RepositoryPlace, StanzaCreateOptions,
};
use pgcairn_engine::ids::{BlobKind, ChunkId, Namer};
use pgcairn_engine::monitor::NoMonitor;
use pgcairn_engine::pack::writer::{PackWriter, Sealer};
use pgcairn_engine::repository::stanza::delete;
use pgcairn_tests::damage::{Answer, STANZA, Site, Told, flip, segment_name};
use pgcairn_tests::places::{only, place};

const SEGMENT: u64 = 1 << 20;

/// A cluster with an archive and a spool.
struct Ahead {
    site: Site,
    places: [RepositoryPlace; 1],
    options: PrefetchOptions,
}

impl Ahead {
    /// The archive holds the segments 1 to `last`, the queue four of them.
    fn with(last: u32) -> Self {
        let site = Site::new();
        let options = PrefetchOptions {
            archive: site.archive_options(),
            spool: site.beside("spool/in"),
            queue_max: 4 * SEGMENT,
        };
        let places = only(site.storage().unwrap());
        let ahead = Ahead {
            site,
            places,
            options,
        };
        for number in 1..=last {
            ahead.push(number);
        }
        ahead
    }

    fn push(&self, number: u32) {
        let path = self.site.segment(number, u8::try_from(number).unwrap());
        actions::archive_push(&self.places, &self.options.archive, &path).unwrap();
    }

    fn prefetch(&self, after: u32) -> Answer<u64> {
        let after = segment_name(after);
        actions::prefetch(&self.places, &self.options, &after, &NoMonitor)
    }

    /// Takes a segment out of the spool, if it is there; then it is the right one. Also what was complained of.
    fn take(&self, number: u32) -> (bool, Vec<String>) {
        let (name, destination) = (segment_name(number), self.site.beside("got"));
        drop(fs::remove_file(&destination));
        let told = Told::default();
        let taken = actions::take_prefetched(&self.options, &name, &destination, || false, &told);
        if taken {
            self.assert_right(number, &destination);
        } else {
            assert!(!destination.exists());
        }
        assert!(!self.spooled(number).exists(), "taken once, or of no use");
        (taken, told.problems())
    }

    fn assert_right(&self, number: u32, destination: &Path) {
        let pushed = self.site.beside(&segment_name(number));
        assert!(fs::read(pushed).unwrap() == fs::read(destination).unwrap());
    }

    /// Asks the archive itself.
    fn get(&self, number: u32) -> Got {
        let (name, destination) = (segment_name(number), self.site.beside("got"));
        drop(fs::remove_file(&destination));
        let options = &self.options.archive;
        let got = actions::archive_get(&self.places, options, &name, &destination, &NoMonitor);
        if got.as_ref().is_ok_and(|got| *got != Got::NotThere) {
            self.assert_right(number, &destination);
        }
        got.unwrap()
    }

    fn spooled(&self, number: u32) -> PathBuf {
        self.options.spool.join(segment_name(number))
    }

    /// The names in the spool, without what lies beside each segment.
    fn queue(&self) -> Vec<String> {
        let listed = fs::read_dir(&self.options.spool).unwrap();
        let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let is_check = |name: &String| Path::new(name).extension() == Some("check".as_ref());
        let mut names: Vec<String> = names.filter(|name| !is_check(name)).collect();
        names.sort();
        names
    }
}

/// What is done to a segment in the spool.
type Harm = fn(&Path);

fn names(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(segment_name).collect()
}

#[test]
fn the_queue_holds_what_follows_and_is_filled_again_before_it_is_empty() {
    let ahead = Ahead::with(9);
    assert!(!ahead.take(2).0, "nothing was fetched yet");
    assert!(actions::is_running_low(&ahead.options, &segment_name(1)));
    assert_eq!(ahead.prefetch(1).unwrap(), 4);
    assert_eq!(ahead.queue(), names(2..=5));
    for (number, low) in [(2, false), (3, false), (4, true)] {
        let (taken, problems) = ahead.take(number);
        assert!(taken, "{number}");
        assert_eq!(problems, [""; 0]);
        let is_low = actions::is_running_low(&ahead.options, &segment_name(number));
        assert_eq!(is_low, low, "after {number}");
    }
    assert_eq!(ahead.prefetch(4).unwrap(), 3);
    assert_eq!(ahead.queue(), names(5..=8));
    assert_eq!(ahead.prefetch(4).unwrap(), 0, "it is full");
    // The end of the archive is the end of the queue, and is not written down: what comes later is found.
    assert_eq!(ahead.prefetch(8).unwrap(), 1);
    assert_eq!(ahead.queue(), names([9]));
    assert_eq!(ahead.get(10), Got::NotThere);
    ahead.push(10);
    assert_eq!(ahead.prefetch(8).unwrap(), 1);
    // Another file system than the spool's, as far as there is one.
    let folder = tempfile::tempdir().unwrap();
    let (name, got) = (segment_name(10), folder.path().join("got"));
    assert!(actions::take_prefetched(
        &ahead.options,
        &name,
        &got,
        || false,
        &NoMonitor
    ));
    ahead.assert_right(10, &got);
    assert!(!ahead.spooled(10).exists());
}

#[test]
fn a_damaged_spool_costs_a_request_and_never_the_right_bytes() {
    let ahead = Ahead::with(5);
    let damages: [(&str, Harm); 6] = [
        ("cut", |path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(4096)
                .unwrap();
        }),
        ("grown", |path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(2 * SEGMENT)
                .unwrap();
        }),
        ("flipped", |path| flip(path, 500_000)),
        ("check flipped", |path| {
            flip(&path.with_extension("check"), 40);
        }),
        ("check missing", |path| {
            fs::remove_file(path.with_extension("check")).unwrap();
        }),
        ("another segment", |path| {
            fs::rename(path.with_file_name(segment_name(4)), path).unwrap();
        }),
    ];
    for (what, damage) in damages {
        ahead.prefetch(1).unwrap();
        damage(&ahead.spooled(3));
        let (taken, problems) = ahead.take(3);
        assert!(!taken, "{what}");
        assert_eq!(problems.len(), 1, "{what}: {problems:?}");
        assert!(problems[0].contains(&segment_name(3)), "{problems:?}");
        assert_eq!(ahead.get(3), Got::Fetched { repository: 1 }, "{what}");
        assert!(ahead.take(2).0, "{what}: the others are as good as before");
    }
    // Both of another segment: they are whole, and still not this one.
    ahead.prefetch(1).unwrap();
    for kind in ["", "check"] {
        let from = ahead.spooled(4).with_extension(kind);
        fs::rename(from, ahead.spooled(3).with_extension(kind)).unwrap();
    }
    assert!(!ahead.take(3).0);
}

#[test]
fn what_is_no_longer_wanted_goes_and_what_is_not_ours_stays() {
    let ahead = Ahead::with(6);
    ahead.prefetch(1).unwrap();
    let spool = &ahead.options.spool;
    let old_timeline = spool.join("000000070000000000000004");
    fs::copy(ahead.spooled(4), &old_timeline).unwrap();
    File::create(ahead.spooled(6).with_extension("tmp")).unwrap();
    File::create(ahead.spooled(3).with_extension("tmp")).unwrap();
    File::create(spool.join("keep me")).unwrap();
    File::options()
        .write(true)
        .open(ahead.spooled(5))
        .unwrap()
        .set_len(7)
        .unwrap();
    let fetched = ahead.prefetch(3).unwrap();
    assert_eq!(fetched, 2, "5, which was of another length, and 6");
    let expected: Vec<String> = names(4..=6)
        .into_iter()
        .chain(["keep me".to_owned()])
        .collect();
    assert_eq!(ahead.queue(), expected);
    let checks = names(4..=6)
        .into_iter()
        .map(|name| spool.join(name).with_extension("check"));
    assert!(checks.into_iter().all(|check| check.exists()));
    assert!(!old_timeline.exists() && !ahead.spooled(2).with_extension("check").exists());
    actions::forget_prefetched(spool);
    assert_eq!(ahead.queue(), ["keep me"]);
}

#[test]
fn segments_of_an_epoch_that_is_over_go() {
    let ahead = Ahead::with(3);
    ahead.prefetch(1).unwrap();
    let repository = ahead.site.repository().unwrap();
    delete(&repository, STANZA).unwrap();
    let options = StanzaCreateOptions {
        stanza: STANZA.to_owned(),
        pgdata: ahead.site.cluster.data.clone(),
    };
    let storage = ahead.site.storage().unwrap();
    actions::stanza_create(storage, &options, None, &NoMonitor).unwrap();
    // While the repository is away nobody knows; what is there is what recovery can go on with.
    let (path, away) = (ahead.site.repository_path(), ahead.site.beside("away"));
    fs::rename(&path, &away).unwrap();
    assert_eq!(ahead.prefetch(1).unwrap(), 0);
    assert_eq!(ahead.queue(), names(2..=3));
    fs::rename(&away, &path).unwrap();
    let places = only(ahead.site.storage().unwrap());
    let after = segment_name(1);
    let fetched = actions::prefetch(&places, &ahead.options, &after, &NoMonitor).unwrap();
    assert_eq!(fetched, 0);
    assert_eq!(ahead.queue(), [""; 0]);
}

#[test]
fn a_damaged_copy_in_one_repository_is_fetched_from_the_next() {
    let ahead = Ahead::with(2);
    let second = ahead.site.beside("second");
    pgcairn_tests::small_cluster::copy(&ahead.site.repository_path(), &second);
    let key = ahead.site.keys("wal/").pop().unwrap();
    flip(&ahead.site.object(&key), 3000);
    let location = actions::StorageLocation::Directory(second);
    let places = [
        place(1, ahead.site.storage().unwrap()),
        place(2, actions::open_storage(&location).unwrap()),
    ];
    let told = Told::default();
    let after = segment_name(1);
    let fetched = actions::prefetch(&places, &ahead.options, &after, &told).unwrap();
    assert_eq!(fetched, 1);
    assert!(
        told.problems()[0].contains("of repo1"),
        "{:?}",
        told.problems()
    );
    assert!(ahead.take(2).0);
}

#[test]
fn a_piece_that_is_not_its_id_is_never_handed_over() {
    let ahead = Ahead::with(2);
    // Its checksum is right, its header too, and its piece is not what the id says.
    let (namer, mut sealer) = (Namer::plain(), Sealer::new(3).unwrap());
    let mut pack = PackWriter::with_buffer(Vec::new());
    let raw = fs::read(ahead.site.beside(&segment_name(2))).unwrap();
    let id = namer.name(BlobKind::Wal, &raw);
    let mut blob = sealer.seal(&namer, BlobKind::Wal, id, &raw).unwrap();
    blob.id = ChunkId([7; 32]);
    pack.push(&blob).unwrap();
    let key = ahead.site.keys("wal/").pop().unwrap();
    let mut object = File::create(ahead.site.object(&key)).unwrap();
    object.write_all(&pack.finish().bytes).unwrap();
    assert_eq!(ahead.prefetch(1).unwrap(), 1);
    let (taken, problems) = ahead.take(2);
    assert!(!taken && problems[0].contains("damaged"), "{problems:?}");
    let (name, got) = (segment_name(2), ahead.site.beside("got"));
    let options = &ahead.options.archive;
    let error = actions::archive_get(&ahead.places, options, &name, &got, &NoMonitor).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let left = fs::read_dir(got.parent().unwrap()).unwrap();
    let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|file| file.starts_with("got")).count(), 0);
}

#[test]
fn a_spool_that_cannot_be_used_is_no_spool() {
    let ahead = Ahead::with(3);
    fs::create_dir(ahead.site.beside("spool")).unwrap();
    File::create(&ahead.options.spool).unwrap();
    let error = ahead.prefetch(1).unwrap_err();
    assert!(error.to_string().contains("spool"), "{error}");
    assert!(!ahead.take(2).0);
    assert_eq!(ahead.get(2), Got::Fetched { repository: 1 });
    // History files are never in it, whatever lies there.
    fs::remove_file(&ahead.options.spool).unwrap();
    fs::create_dir(&ahead.options.spool).unwrap();
    let (name, told) = ("00000002.history", Told::default());
    File::create(ahead.options.spool.join(name)).unwrap();
    let got = ahead.site.beside("got");
    assert!(!actions::take_prefetched(
        &ahead.options,
        name,
        &got,
        || true,
        &told
    ));
    let places = &ahead.places;
    let answer = actions::archive_get(places, &ahead.options.archive, name, &got, &told);
    assert_eq!(answer.unwrap(), Got::NotThere);
}

#[test]
fn a_segment_on_its_way_is_waited_for_while_somebody_fetches_and_no_longer() {
    let ahead = Ahead::with(3);
    fs::create_dir_all(&ahead.options.spool).unwrap();
    let temporary = ahead.spooled(2).with_extension("tmp");
    File::create(&temporary).unwrap();
    // A dead process fetches nothing: `take` says that nobody fetches.
    assert!(!ahead.take(2).0);
    let fetching = AtomicBool::new(true);
    let (name, got) = (segment_name(2), ahead.site.beside("got"));
    thread::scope(|scope| {
        let taken = scope.spawn(|| {
            let is_fetching = || fetching.load(Ordering::SeqCst);
            actions::take_prefetched(&ahead.options, &name, &got, is_fetching, &NoMonitor)
        });
        // Another spool, from which it comes as from a process in the background.
        let elsewhere = PrefetchOptions {
            spool: ahead.site.beside("elsewhere"),
            ..ahead.options.clone()
        };
        let after = segment_name(1);
        actions::prefetch(&ahead.places, &elsewhere, &after, &NoMonitor).unwrap();
        let from = elsewhere.spool.join(&name);
        let to = ahead.spooled(2);
        fs::rename(from.with_extension("check"), to.with_extension("check")).unwrap();
        fs::rename(from, to).unwrap();
        fs::remove_file(&temporary).unwrap();
        assert!(taken.join().unwrap());
    });
    ahead.assert_right(2, &got);
}

#[test]
fn several_at_the_same_spool_disturb_one_another_and_nobody_else() {
    let ahead = Ahead::with(12);
    thread::scope(|scope| {
        let prefetchers = [0, 4, 8].map(|offset| {
            let ahead = &ahead;
            scope.spawn(move || {
                for round in 0..40 {
                    // One may take the other's files away: then it fails, and begins anew.
                    drop(ahead.prefetch((offset + round) % 12));
                }
            })
        });
        let mut numbers = (1..=12).cycle();
        while prefetchers.iter().any(|thread| !thread.is_finished()) {
            let number = numbers.next().unwrap();
            let (name, got) = (segment_name(number), ahead.site.beside("got"));
            drop(fs::remove_file(&got));
            let options = &ahead.options;
            if actions::take_prefetched(options, &name, &got, || true, &NoMonitor) {
                ahead.assert_right(number, &got);
            } else {
                assert_eq!(ahead.get(number), Got::Fetched { repository: 1 });
            }
        }
    });
    // The spool is as good as it was.
    ahead.prefetch(0).unwrap();
    let got = ahead.site.beside("got");
    let options = &ahead.options;
    assert!(actions::take_prefetched(
        options,
        &segment_name(1),
        &got,
        || true,
        &NoMonitor
    ));
    ahead.assert_right(1, &got);
}
