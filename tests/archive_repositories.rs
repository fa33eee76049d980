//! Archiving to several repositories and getting from them: one is away, behind, damaged, another's, or holds other bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgcairn_engine::actions::{
    self, ErrorKind, Got, PushStatus, Pushed, PushedTo, QueueOptions, RepositoryPlace,
    StanzaCreateOptions, StorageLocation,
};
use pgcairn_engine::monitor::NoMonitor;
use pgcairn_engine::repository::Repository;
use pgcairn_engine::repository::stanza::add_epoch;
use pgcairn_engine::repository::wal::{self, WalGap};
use pgcairn_tests::damage::{Answer, Damage, STANZA, Site, Told, chain, segment_name};
use pgcairn_tests::places::place;
use pgcairn_tests::recording::{Recording, Verb};

/// A cluster with two repositories, opened when they are needed.
struct Two {
    site: Site,
    places: [RepositoryPlace; 2],
}

impl Two {
    fn new() -> Self {
        let site = Site::new();
        let paths = [site.repository_path(), site.beside("second")];
        let location = StorageLocation::Directory(paths[1].clone());
        let options = StanzaCreateOptions {
            stanza: STANZA.to_owned(),
            pgdata: site.cluster.data.clone(),
        };
        let storage = actions::create_storage(&location).unwrap();
        actions::stanza_create(storage, &options, None, &NoMonitor).unwrap();
        let places = places(&paths);
        Two { site, places }
    }

    fn path(&self, number: u32) -> PathBuf {
        match number {
            1 => self.site.repository_path(),
            _ => self.site.beside("second"),
        }
    }

    fn repository(&self, number: u32) -> Repository {
        let location = StorageLocation::Directory(self.path(number));
        actions::open_repository(actions::open_storage(&location).unwrap()).unwrap()
    }

    /// Runs something while one repository is away.
    fn without<T>(&self, number: u32, run: impl FnOnce() -> T) -> T {
        let away = self.site.beside("away");
        fs::rename(self.path(number), &away).unwrap();
        let done = run();
        fs::rename(&away, self.path(number)).unwrap();
        done
    }

    /// Pushes a segment into both repositories.
    fn push(&self, path: &Path) -> Answer<Vec<PushedTo>> {
        actions::archive_push(&self.places, &self.site.archive_options(), path)
    }

    /// Pushes a segment into one of them alone.
    fn push_to(&self, number: u32, path: &Path) {
        let one = &self.places[number as usize - 1];
        let options = self.site.archive_options();
        actions::archive_push(std::slice::from_ref(one), &options, path).unwrap();
    }

    /// Gets a segment; what is handed over is what lies beside the cluster under its name.
    fn get(&self, number: u32) -> (Answer<Got>, Vec<String>) {
        let (name, destination) = (segment_name(number), self.site.beside("got"));
        drop(fs::remove_file(&destination));
        let told = Told::default();
        let options = self.site.archive_options();
        let got = actions::archive_get(&self.places, &options, &name, &destination, &told);
        match &got {
            Ok(Got::Fetched { .. }) => assert!(
                fs::read(self.site.beside(&name)).unwrap() == fs::read(&destination).unwrap()
            ),
            _ => assert!(!destination.exists()),
        }
        (got, told.problems())
    }

    fn object(&self, number: u32, segment: u32) -> PathBuf {
        let name = segment_name(segment);
        let epoch = fs::read_dir(self.path(number).join("wal").join(STANZA)).unwrap();
        let epoch = epoch.map(|entry| entry.unwrap().path()).next().unwrap();
        epoch.join(&name[..16]).join(&name)
    }
}

fn places(paths: &[PathBuf; 2]) -> [RepositoryPlace; 2] {
    [1, 2].map(|number| {
        let path = paths[number as usize - 1].clone();
        RepositoryPlace::new(number, move || {
            actions::open_storage(&StorageLocation::Directory(path.clone()))
        })
    })
}

fn outcomes(pushed: Answer<Vec<PushedTo>>) -> Vec<(u32, Pushed)> {
    let pushed = pushed.unwrap().into_iter();
    pushed.map(|to| (to.repository, to.pushed)).collect()
}

#[test]
fn a_push_succeeds_when_all_repositories_hold_the_segment_and_names_the_one_that_does_not() {
    let two = Two::new();
    let first = two.site.segment(1, 0);
    let (stored, there) = (Pushed::Stored, Pushed::AlreadyThere);
    assert_eq!(outcomes(two.push(&first)), [(1, stored), (2, stored)]);
    for (number, other) in [(1, 2), (2, 1)] {
        let segment = two.site.segment(1 + number, 0);
        let error = two.without(number, || two.push(&segment)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageUnreachable);
        let told = chain(&error);
        assert!(told.contains(&format!("repo{number}: ")), "{told}");
        assert!(!told.contains(&format!("repo{other}: ")), "{told}");
        assert!(two.object(other, 1 + number).exists(), "the other has it");
        let mut again = outcomes(two.push(&segment));
        again.sort_by_key(|(at, _)| *at != number);
        assert_eq!(again, [(number, stored), (other, there)]);
    }
    let no_repository = actions::archive_push(&[], &two.site.archive_options(), &first);
    assert_eq!(no_repository.unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn other_bytes_in_one_repository_are_refused_and_stay_and_the_other_gets_the_segment() {
    for number in [1, 2] {
        let two = Two::new();
        two.push_to(number, &two.site.segment(1, 7));
        let before = fs::read(two.object(number, 1)).unwrap();
        let segment = two.site.segment(1, 0);
        let error = two.push(&segment).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WalDuplicate, "{}", chain(&error));
        assert!(chain(&error).contains(&format!("repo{number}: ")));
        assert!(fs::read(two.object(number, 1)).unwrap() == before);
        assert!(two.object(3 - number, 1).exists());
        // Both copies are whole: the first repository is the one that is believed.
        two.site.segment(1, if number == 1 { 7 } else { 0 });
        let (got, problems) = two.get(1);
        assert_eq!(got.unwrap(), Got::Fetched { repository: 1 });
        assert_eq!(problems, [""; 0]);
    }
}

#[test]
fn a_repository_of_another_cluster_or_without_the_stanza_fails_a_push_and_is_passed_over_by_a_get()
{
    let two = Two::new();
    let segment = two.site.segment(1, 0);
    two.push(&segment).unwrap();
    add_epoch(&two.repository(1), STANZA, 42, 15).unwrap();
    let second = two.site.segment(2, 0);
    let error = two.push(&second).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ArchiveMismatch);
    assert!(chain(&error).contains("repo1: "), "{}", chain(&error));
    // The epoch before is this cluster's still: recovery may need it.
    assert_eq!(two.get(1).0.unwrap(), Got::Fetched { repository: 1 });
    fs::remove_dir_all(two.path(1).join("stanzas")).unwrap();
    let (got, problems) = two.get(2);
    assert_eq!(got.unwrap(), Got::Fetched { repository: 2 });
    assert!(problems[0].contains("of repo1: "), "{problems:?}");
    // And where no other has it, nothing is known.
    let error = two.get(3).0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StanzaMissing, "{}", chain(&error));
}

#[test]
fn a_get_passes_over_what_is_away_or_damaged_and_says_so_and_over_what_is_behind() {
    let two = Two::new();
    for number in [1, 2] {
        two.push(&two.site.segment(number, 0)).unwrap();
    }
    let objects = [two.object(1, 1), two.object(1, 2)];
    let kept = ["kept 1", "kept 2"].map(|name| two.site.beside(name));
    for (object, kept) in objects.iter().zip(&kept) {
        fs::copy(object, kept).unwrap();
    }
    assert_eq!(two.get(1).0.unwrap(), Got::Fetched { repository: 1 });
    let (got, problems) = two.without(1, || two.get(1));
    assert_eq!(got.unwrap(), Got::Fetched { repository: 2 });
    assert!(problems[0].contains("of repo1: "), "{problems:?}");
    for damage in [Damage::Cut, Damage::Flipped, Damage::Swapped] {
        damage.strike(&objects[0], &objects[1]);
        let (got, problems) = two.get(1);
        assert_eq!(got.unwrap(), Got::Fetched { repository: 2 }, "{damage:?}");
        assert_eq!(problems.len(), 1, "{damage:?}: {problems:?}");
        for (object, kept) in objects.iter().zip(&kept) {
            fs::copy(kept, object).unwrap();
        }
    }
    // The first lacks a segment that the second has: nothing is wrong with that.
    fs::remove_file(two.object(1, 1)).unwrap();
    let (got, problems) = two.get(1);
    assert_eq!(got.unwrap(), Got::Fetched { repository: 2 });
    assert_eq!(problems, [""; 0]);
    // Damaged here and away there: it cannot be told, and both are named.
    let error = two.without(2, || {
        Damage::Flipped.strike(&two.object(1, 2), &two.object(1, 2));
        two.get(2).0.unwrap_err()
    });
    let told = chain(&error);
    assert!(
        told.contains("repo1: ") && told.contains("repo2: "),
        "{told}"
    );
}

#[test]
fn a_segment_is_not_there_only_if_every_repository_says_so() {
    let two = Two::new();
    two.push(&two.site.segment(1, 0)).unwrap();
    assert_eq!(two.get(2).0.unwrap(), Got::NotThere);
    for number in [1, 2] {
        let error = two.without(number, || two.get(2)).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageUnreachable);
        assert!(chain(&error).contains(&format!("repo{number}: ")));
    }
    for number in [1, 2] {
        // One repository has a later segment, the other a gap behind that: neither is the end.
        let base = 10 * number;
        two.push_to(number, &two.site.segment(base, 0));
        let error = two.get(base - 1).0.unwrap_err();
        assert!(matches!(error, actions::Error::WalHole { .. }), "{error}");
        let repository = two.repository(3 - number);
        let gap = WalGap {
            first: segment_name(base + 1),
            last: segment_name(base + 3),
        };
        let epoch = two.object(number, base);
        let epoch = epoch.ancestors().nth(2).and_then(Path::file_name).unwrap();
        wal::put_gap(&repository, STANZA, epoch.to_str().unwrap(), &gap).unwrap();
        let error = two.get(base + 2).0.unwrap_err();
        assert!(chain(&error).contains("dropped"), "{}", chain(&error));
    }
    let nothing = actions::archive_get(
        &[],
        &two.site.archive_options(),
        &segment_name(2),
        &two.site.beside("got"),
        &NoMonitor,
    );
    assert_eq!(nothing.unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn each_repository_is_asked_for_one_put_and_the_proof_of_its_epoch() {
    let two = Two::new();
    let recorded = [1, 2].map(|number| {
        let location = StorageLocation::Directory(two.path(number));
        Arc::new(Recording::new(actions::open_storage(&location).unwrap()))
    });
    let [one, other] = recorded.clone();
    let places = [place(1, one), place(2, other)];
    let options = two.site.archive_options();
    actions::archive_push(&places, &options, &two.site.segment(1, 0)).unwrap();
    for storage in &recorded {
        storage.take();
    }
    actions::archive_push(&places, &options, &two.site.segment(2, 0)).unwrap();
    for storage in recorded {
        let mut verbs: Vec<Verb> = storage.take().into_iter().map(|call| call.verb).collect();
        verbs.sort_by_key(|verb| *verb == Verb::Put);
        assert_eq!(verbs, [Verb::Get, Verb::Get, Verb::Put]);
    }
}

#[test]
fn a_queued_file_is_done_once_all_repositories_hold_it_and_a_gap_is_recorded_in_each() {
    let two = Two::new();
    let pgdata = &two.site.cluster.data;
    let ready = |number: u32| {
        let (name, path) = (segment_name(number), two.site.segment(number, 0));
        fs::copy(path, pgdata.join("pg_wal").join(&name)).unwrap();
        let status = pgdata.join("pg_wal/archive_status");
        fs::create_dir_all(&status).unwrap();
        fs::File::create(status.join(format!("{name}.ready"))).unwrap();
        name
    };
    let options = |queue_max| QueueOptions {
        archive: two.site.archive_options(),
        spool: two.site.beside("spool"),
        queue_max,
        number_of: |_| 103,
    };
    let run =
        |queue_max| actions::push_queue(&two.places, &options(queue_max), &NoMonitor).unwrap();
    let status = |name: &str| {
        let file = pgdata.join("pg_wal").join(name);
        actions::push_status(&two.site.beside("spool"), &file)
    };
    let name = ready(1);
    two.without(2, || run(None));
    match status(&name) {
        Some(PushStatus::Failed { number: 103, why }) => {
            assert!(why.contains("repo2: "), "{why}");
        }
        other => panic!("{other:?}"),
    }
    actions::forget_failure(&two.site.beside("spool"), &name);
    run(None);
    match status(&name) {
        Some(PushStatus::Done(Some(warning))) => assert!(warning.contains("repo1"), "{warning}"),
        other => panic!("{other:?}"),
    }
    let dropped = ready(2);
    two.without(2, || run(Some(1)));
    assert!(matches!(status(&dropped), Some(PushStatus::Done(Some(_)))));
    let gaps = |number: u32| {
        let repository = two.repository(number);
        let epoch = two.object(number, 1);
        let epoch = epoch.ancestors().nth(2).and_then(Path::file_name).unwrap();
        let epoch = epoch.to_str().unwrap();
        wal::contents(&repository, STANZA, epoch)
            .unwrap()
            .gaps
            .len()
    };
    assert_eq!([gaps(1), gaps(2)], [1, 0]);
    run(None);
    assert_eq!([gaps(1), gaps(2)], [1, 1], "what was away is told later");
}
