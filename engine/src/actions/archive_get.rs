//! Getting one WAL file out of the archives of one or several repositories.
//!
//! Promises: the first repository that has the file, whole and with the right header, is the one it comes from; one that
//! cannot be asked, or whose copy is damaged, is passed over and told of. A get answers "not there" only if that is the
//! end of the WAL as far as anybody can tell: in every repository the configuration and the stanza were read, the file is
//! absent, no gap record covers it, and no later segment of its timeline exists; every other answer is an error, "cannot
//! tell". What it hands over is the segment of that name, and of this cluster.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::actions::archive::{ArchiveOptions, archives_of, as_archiving, check_header, key_of};
use crate::actions::download::Download;
use crate::actions::epoch_cache;
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::open::RepositoryPlace;
use crate::actions::pipeline::{both, pause};
use crate::actions::several::{RepositoryFailure, failed_in, refuse_none};
use crate::actions::stanza::{epoch_of, epochs_of};
use crate::cluster::control_file::{self, ControlFile};
use crate::ids::Namer;
use crate::monitor::{Monitor, Problem};
use crate::pack::wal::{Decoder, Piece, WalObject};
use crate::repository::stanza::{Epoch, of_cluster};
use crate::repository::{Repository, wal};
use crate::storage::Storage;
use crate::wal_name::{Timeline, WalFile};

/// How often a segment that may still arrive is looked for.
const POLL: Duration = Duration::from_millis(200);

/// What became of a get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// The file is at its destination.
    Fetched {
        /// The number of the repository that it is from.
        repository: u32,
    },
    /// The archive ends before it.
    NotThere,
}

/// A WAL file that somebody asks for.
pub(super) struct Wanted<'a> {
    pub(super) options: &'a ArchiveOptions,
    pub(super) control: &'a ControlFile,
    pub(super) name: &'a str,
    pub(super) kind: WalFile,
}

/// A repository in which the stanza was read.
pub(super) struct Opened {
    pub(super) number: u32,
    pub(super) repository: Repository,
    /// The names of this cluster's epochs, the newest first: it is several after an upgrade was taken back.
    pub(super) epochs: Vec<String>,
}

/// What all repositories together say of a file.
enum Answer {
    /// It came from the repository of this number.
    Found(u32),
    /// None has it, and each could be asked.
    Absent(Vec<Opened>),
}

/// What one repository says of a file.
enum Looked {
    Found,
    Absent(Opened),
}

/// Fetches one WAL file to `destination`, which is relative to the data directory, as `%p` is.
pub fn archive_get(
    places: &[RepositoryPlace],
    options: &ArchiveOptions,
    name: &str,
    destination: &Path,
    monitor: &dyn Monitor,
) -> Result<Got> {
    refuse_none(places)?;
    let kind = WalFile::of(name).map_err(|_| Error::NotWal(name.to_owned()))?;
    let control = control_file::read(&options.pgdata).map_err(Error::Cluster)?;
    let wanted = Wanted {
        options,
        control: &control,
        name,
        kind,
    };
    let download = Download::to(&options.pgdata.join(destination));
    let begun = Instant::now();
    let mut answer = wanted.ask(places, &download, monitor)?;
    loop {
        let asked = match answer {
            Answer::Found(repository) => {
                download.publish()?;
                return Ok(Got::Fetched { repository });
            }
            Answer::Absent(asked) => asked,
        };
        let Some(evidence) = wanted.evidence_of_more(&asked)? else {
            return Ok(Got::NotThere);
        };
        if begun.elapsed() >= options.timeout {
            return Err(Error::WalHole {
                name: name.to_owned(),
                evidence,
            });
        }
        // Segments may arrive out of order.
        pause(POLL);
        answer = wanted.ask_again(asked, &download)?;
    }
}

/// Reads a repository's configuration and the stanza in it.
pub(super) fn open(
    place: &RepositoryPlace,
    options: &ArchiveOptions,
    control: &ControlFile,
) -> Result<Opened> {
    let repository = place.repository()?;
    let stanza = &options.stanza;
    let epochs = epochs_of(&repository, stanza)?;
    let mut own = of_cluster(&epochs, control.system_id, control.version);
    if own.is_empty() {
        // It says whose the stanza is.
        own.push(epoch_of(&repository, stanza, control, &options.pgdata).map_err(as_archiving)?);
    }
    if let Some(epoch) = own.first().filter(|own| epochs.last() == Some(own)) {
        epoch_cache::remember(options, &repository, *epoch);
    }
    Ok(Opened {
        number: place.number,
        repository,
        epochs: own.iter().map(Epoch::name).collect(),
    })
}

impl Wanted<'_> {
    /// Asks one repository after the other until one has the file.
    fn ask(
        &self,
        places: &[RepositoryPlace],
        into: &Download,
        monitor: &dyn Monitor,
    ) -> Result<Answer> {
        let (mut absent, mut failures) = (Vec::new(), Vec::new());
        for place in places {
            let looked = self.look(place, into);
            match looked {
                Ok(Looked::Found) => {
                    for failure in failures {
                        monitor.problem(&passed_over(&failure, self.name, place.number));
                    }
                    return Ok(Answer::Found(place.number));
                }
                Ok(Looked::Absent(opened)) => absent.push(opened),
                // No other repository would help.
                Err(error @ Error::WriteFile { .. }) => return Err(error),
                Err(error) => failures.push(RepositoryFailure {
                    number: place.number,
                    error,
                }),
            }
        }
        if failures.is_empty() {
            return Ok(Answer::Absent(absent));
        }
        Err(self.cannot_tell(failures, places.len()))
    }

    /// Asks the repositories again that did not have the file a moment ago.
    fn ask_again(&self, asked: Vec<Opened>, into: &Download) -> Result<Answer> {
        for opened in &asked {
            if self.download_from(opened, into)? {
                return Ok(Answer::Found(opened.number));
            }
        }
        Ok(Answer::Absent(asked))
    }

    /// Looks whether a repository has the file: where the epoch is remembered to be, which is one round trip and no
    /// listing; and if it is absent there, or the memory is not right any more, after reading configuration and stanza.
    fn look(&self, place: &RepositoryPlace, into: &Download) -> Result<Looked> {
        let storage = place.storage()?;
        let (storage, stanza) = (storage.as_ref(), &self.options.stanza);
        if let Some(remembered) = epoch_cache::read(self.options, storage, self.control) {
            let epoch = remembered.epoch.name();
            let (confirmed, downloaded) = both(
                || epoch_cache::is_confirmed(storage, stanza, &remembered),
                || self.download(storage, &epoch, into),
            );
            if confirmed? && downloaded? {
                return Ok(Looked::Found);
            }
        }
        let opened = open(place, self.options, self.control)?;
        let found = self.download_from(&opened, into)?;
        Ok(if found {
            Looked::Found
        } else {
            Looked::Absent(opened)
        })
    }

    fn cannot_tell(&self, failures: Vec<RepositoryFailure>, asked: usize) -> Error {
        let what = || format!("it cannot be told whether {} exists", self.name);
        failed_in(what, failures, asked)
    }

    /// Fetches the file from one repository; `false` if it is not there.
    fn download_from(&self, from: &Opened, into: &Download) -> Result<bool> {
        let storage = from.repository.storage.as_ref();
        for epoch in self.archives(from)? {
            if self.download(storage, epoch, into)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The archives of one repository in which the file may be.
    fn archives<'o>(&self, of: &'o Opened) -> Result<&'o [String]> {
        archives_of(&of.repository, &self.options.stanza, &of.epochs, self.name)
    }

    /// Fetches the file from one archive; `false` if it is not there.
    fn download(&self, storage: &dyn Storage, epoch: &str, into: &Download) -> Result<bool> {
        let Some(stored) = self.fetch(storage, epoch)? else {
            return Ok(false);
        };
        let file = into.begin()?;
        let decoder = Decoder::checking(&Namer::plain());
        let mut decoder = decoder.map_err(|source| stored.damaged(source))?;
        self.decode(&stored, &stored.open()?, &mut decoder, |piece| {
            file.write_all_at(piece.bytes, piece.offset)
                .map_err(|source| into.failed(source))
        })?;
        Ok(true)
    }

    /// The object that holds the file in one archive, if it is there.
    pub(super) fn fetch(&self, storage: &dyn Storage, epoch: &str) -> Result<Option<Stored>> {
        let stanza = &self.options.stanza;
        match wal::get(storage, stanza, epoch, self.name) {
            Ok(object) => Ok(Some(Stored {
                key: key_of(stanza, epoch, self.name)?,
                object,
            })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(Error::Repository(error)),
        }
    }

    /// Hands the pieces of the file to `take`, as the decoder has them, once the header was found to be right.
    pub(super) fn decode(
        &self,
        stored: &Stored,
        object: &WalObject<'_>,
        decoder: &mut Decoder,
        mut take: impl FnMut(&Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        // PostgreSQL would take another segment's content for the end of the WAL.
        let with_header = matches!(self.kind, WalFile::Segment | WalFile::Partial);
        let with_header = self.options.header_check && with_header;
        let check = |head: &[u8]| {
            let misplaced = |found| stored.misplaced(found);
            let cluster = (self.control.system_id, self.control.version);
            check_header(head, object.file_bytes, self.name, cluster, misplaced).map(drop)
        };
        if with_header && object.pieces() == 0 {
            check(&[])?;
        }
        for index in 0..object.pieces() {
            let piece = decoder
                .piece(object, index)
                .map_err(|source| stored.damaged(source))?;
            if with_header && index == 0 {
                check(piece.bytes)?;
            }
            take(&piece)?;
        }
        Ok(())
    }

    /// What says that the WAL does not end before this absent file, if anything does.
    fn evidence_of_more(&self, asked: &[Opened]) -> Result<Option<String>> {
        let mut failures = Vec::new();
        for one in asked {
            match self.evidence_in(one) {
                Ok(None) => {}
                Ok(evidence) => return Ok(evidence),
                Err(error) => failures.push(RepositoryFailure {
                    number: one.number,
                    error,
                }),
            }
        }
        if failures.is_empty() {
            return Ok(None);
        }
        Err(self.cannot_tell(failures, asked.len()))
    }

    fn evidence_in(&self, asked: &Opened) -> Result<Option<String>> {
        if self.kind != WalFile::Segment {
            return Ok(None);
        }
        for epoch in self.archives(asked)? {
            if let Some(evidence) = self.evidence_in_archive(&asked.repository, epoch)? {
                return Ok(Some(evidence));
            }
        }
        Ok(None)
    }

    fn evidence_in_archive(&self, repository: &Repository, epoch: &str) -> Result<Option<String>> {
        let (stanza, name) = (&self.options.stanza, self.name);
        if let Some(gap) =
            wal::gap_covering(repository, stanza, epoch, name).map_err(Error::Repository)?
        {
            return Ok(Some(format!(
                "segments {} to {} were dropped by archive-push",
                gap.first, gap.last
            )));
        }
        let timeline = name
            .get(..8)
            .and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let Some(timeline) = timeline.map(Timeline) else {
            return Ok(None);
        };
        let later = wal::first_after(repository, stanza, epoch, timeline, name)
            .map_err(Error::Repository)?;
        Ok(later.map(|later| format!("{later} is there")))
    }
}

fn passed_over(failure: &RepositoryFailure, name: &str, found_in: u32) -> Problem {
    Problem {
        object: format!("{name} of repo{}", failure.number),
        message: format!(
            "{}; it was taken from repo{found_in}",
            with_causes(&failure.error)
        ),
    }
}

/// A file as a repository has it.
pub(super) struct Stored {
    key: String,
    object: Vec<u8>,
}

impl Stored {
    pub(super) fn open(&self) -> Result<WalObject<'_>> {
        WalObject::open(&self.object).map_err(|source| self.damaged(source))
    }

    pub(super) fn misplaced(&self, found: String) -> Error {
        let key = self.key.clone();
        Error::WalMisplaced { key, found }
    }

    fn damaged(&self, source: crate::pack::Error) -> Error {
        Error::WalDamaged {
            key: self.key.clone(),
            source,
        }
    }
}
