//! Verifying what is stored: whether every backup can be restored, and how far the WAL reaches.
//!
//! The story: the backups are listed, then what is where; the packs are read whole, each chunk in them decoded and held
//! against its id (`verify_packs.rs`); the tree of each backup is walked, and whatever it names must have a copy that was
//! found sound (`verify_tree.rs`): where that leads to packs that were not read yet, they are, and it is walked again; the
//! WAL archive is read (`verify_wal.rs`), and each backup must have the WAL that makes it consistent. Promises: a backup
//! is called restorable exactly if a restore of it alone (to where it is consistent) would succeed now; what was read came
//! from its medium, as far as the storage can do that; nothing in the repository is changed, but that damaged copies are
//! noted, so that the next backup stores those chunks again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::fetch::Locator;
use crate::actions::findings::Findings;
use crate::actions::known::Scope;
use crate::actions::label::backups;
use crate::actions::session::{Session, present};
use crate::actions::stanza::epochs_of;
use crate::actions::verify_packs::PackVerifier;
use crate::actions::verify_tree::{Losses, TreeVerifier};
use crate::actions::verify_wal::{ArchiveVerifier, VerifiedArchive, first_missing};
use crate::actions::wal_window::TimelineWindow;
use crate::cluster::control_file;
use crate::ids::PackId;
use crate::monitor::{Counter, Monitor, Stage, Tally};
use crate::repository::run::Role;
use crate::repository::snapshot::{self, Manifest};
use crate::repository::stanza::{self, Epoch};
use crate::repository::{self, Repository, layout};
use crate::wal_name::Segment;

/// What is verified, and how.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// What this stanza needs; `None`: everything in the repository.
    pub stanza: Option<String>,
    /// Of the stanza this backup alone.
    pub set: Option<String>,
    /// Where the chunk index is cached.
    pub cache: PathBuf,
    /// Working threads.
    pub threads: usize,
    /// This host's name.
    pub host: String,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
}

/// What was verified, and what came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifySummary {
    /// Packs that were read.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// The chunks in them.
    pub chunks: u64,
    /// Whatever is not as it should be, but for holes in the WAL and for damage that was known.
    pub problems: u64,
    /// Copies of chunks that are damaged, as was known before. Nobody uses them.
    pub known_damaged: u64,
    /// The stanzas, by name.
    pub stanzas: Vec<VerifiedStanza>,
}

/// One stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedStanza {
    /// Its name.
    pub name: String,
    /// Its epochs, oldest first; none if one backup was verified alone.
    pub epochs: Vec<VerifiedEpoch>,
    /// Its backups, oldest first.
    pub backups: Vec<VerifiedBackup>,
}

/// The archive of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedEpoch {
    /// Its name, as `15-1`.
    pub name: String,
    /// PostgreSQL's major version.
    pub version: u32,
    /// Files that were read.
    pub files: u64,
    /// Their bytes, as stored.
    pub bytes: u64,
    /// On each timeline the segments that are whole, and what is missing.
    pub timelines: Vec<TimelineWindow>,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedBackup {
    /// Its label.
    pub label: String,
    /// What it lacks; nothing if it can be restored.
    pub losses: Vec<String>,
    /// How many losses more there are than `losses` names.
    pub more_losses: u64,
}

impl VerifiedBackup {
    /// Whether it can be restored and made consistent.
    pub fn is_restorable(&self) -> bool {
        self.losses.is_empty()
    }
}

impl VerifySummary {
    /// The backups that cannot be restored, of how many.
    pub fn unrestorable(&self) -> (usize, usize) {
        let backups = || self.stanzas.iter().flat_map(|stanza| &stanza.backups);
        let lost = backups().filter(|backup| !backup.is_restorable()).count();
        (lost, backups().count())
    }
}

/// Verifies a repository.
pub fn verify(
    repository: &Repository,
    options: &VerifyOptions,
    tally: &Tally,
    monitor: &dyn Monitor,
) -> Result<VerifySummary> {
    monitor.stage(Stage::Prepare, 0, 0);
    let host = (options.host.as_str(), options.now_ms);
    let (role, cache) = (Role::Verify, &options.cache);
    present(repository, role, cache, host, monitor, |session| {
        let findings = Findings::new(monitor);
        Verify {
            repository,
            session,
            options,
            findings: &findings,
            tally,
            monitor,
        }
        .run()
    })
}

struct Verify<'a> {
    repository: &'a Repository,
    session: &'a Session<'a>,
    options: &'a VerifyOptions,
    findings: &'a Findings<'a>,
    tally: &'a Tally,
    monitor: &'a dyn Monitor,
}

/// A stanza and the backups that are verified.
struct Subject {
    name: String,
    epochs: Vec<Epoch>,
    /// None of its records is there, though it has backups.
    missing: bool,
    backups: Vec<Candidate>,
}

/// A backup, and what it was found to lack.
struct Candidate {
    label: String,
    /// `None` if its record cannot be read, which is a loss.
    manifest: Option<Manifest>,
    losses: Losses,
    /// The list of its suspect pages is lost.
    page_list_lost: bool,
}

impl Verify<'_> {
    fn run(&self) -> Result<VerifySummary> {
        self.check_records()?;
        // Before the index is brought up to date: what is listed here has its chunks there.
        let mut subjects = self.subjects()?;
        let segments = layout::index_prefix(None).map_err(Error::Repository)?;
        let mut note = |object: String, message| {
            // Index segments are told below, by who reads them to verify what they say.
            if !object.starts_with(&segments) {
                self.findings.tell(object, message);
            }
        };
        let locator = Locator::new(self.session, &self.options.cache, Scope::All, &mut note)?;
        let known_damaged = self.check_trees(&locator, &mut subjects)?;
        self.monitor.stage(Stage::VerifyWal, 0, 0);
        let mut stanzas = Vec::new();
        for subject in subjects {
            stanzas.push(self.check_archive(subject)?);
        }
        Ok(VerifySummary {
            packs: self.tally.get(Counter::Packs),
            pack_bytes: self.tally.get(Counter::FetchedBytes),
            chunks: self.tally.get(Counter::Chunks),
            problems: self.findings.count(),
            known_damaged,
            stanzas,
        })
    }

    /// Records that have a copy, or that are needed only later.
    fn check_records(&self) -> Result<()> {
        for (key, error) in repository::config_damage(self.repository).map_err(Error::Repository)? {
            self.findings.tell(key.to_string(), with_causes(&error));
        }
        if self.session.gc_is_damaged {
            self.findings.add_told();
        }
        Ok(())
    }

    fn subjects(&self) -> Result<Vec<Subject>> {
        let names = match &self.options.stanza {
            Some(name) => BTreeSet::from([name.clone()]),
            None => stanza::names(self.repository).map_err(Error::Repository)?,
        };
        let mut subjects = Vec::new();
        for name in names {
            // Before the backups are listed: a stanza is deleted after its backups were forgotten.
            let epochs = match epochs_of(self.repository, &name) {
                Err(Error::StanzaMissing { .. }) => Ok(Vec::new()),
                // A restore goes on without.
                Err(Error::Repository(damage)) if damage.is_damage() => Err(with_causes(&damage)),
                epochs => Ok(epochs?),
            };
            let backups = self.backups(&name)?;
            let missing = epochs.as_ref().is_ok_and(Vec::is_empty);
            if missing && backups.is_empty() {
                if self.options.stanza.is_some() {
                    epochs_of(self.repository, &name)?;
                }
                // It was deleted.
                continue;
            }
            if missing {
                let message =
                    "has backups and no record: it was being deleted, or what it had is lost";
                self.findings
                    .tell(format!("stanza {name}"), message.to_owned());
            }
            let epochs = epochs.unwrap_or_else(|damage| {
                self.findings.tell(format!("stanza {name}"), damage);
                Vec::new()
            });
            subjects.push(Subject {
                name,
                epochs,
                missing,
                backups,
            });
        }
        Ok(subjects)
    }

    /// The backups of a stanza that are verified, those whose records cannot be read among them.
    fn backups(&self, stanza: &str) -> Result<Vec<Candidate>> {
        let mut listed = snapshot::list(self.repository, stanza).map_err(Error::Repository)?;
        if let Some(set) = &self.options.set {
            listed.retain(|backup| backup.label == *set);
        }
        let found = backups(self.repository, &listed)?;
        let committed = found.committed.into_iter().map(|backup| Candidate {
            label: backup.manifest.label.clone(),
            manifest: Some(backup.manifest),
            losses: Losses::default(),
            page_list_lost: false,
        });
        let unreadable = found.unreadable.into_iter().map(|unreadable| {
            let why = with_causes(&unreadable.error);
            self.findings
                .tell(format!("backup {}", unreadable.label), why.clone());
            let mut losses = Losses::default();
            losses.add(why);
            Candidate {
                label: unreadable.label,
                manifest: None,
                losses,
                page_list_lost: false,
            }
        });
        let mut backups: Vec<Candidate> = committed.chain(unreadable).collect();
        backups.sort_by(|a, b| a.label.cmp(&b.label));
        match &self.options.set {
            Some(set) if backups.is_empty() => Err(Error::BackupNotFound(format!(
                "stanza {stanza} has no backup {set}"
            ))),
            _ => Ok(backups),
        }
    }

    /// Reads packs and walks trees, until all that the trees need was read; answers how many copies are damaged, as was known
    /// before.
    fn check_trees(&self, locator: &Locator<'_>, subjects: &mut [Subject]) -> Result<u64> {
        let mut packs = PackVerifier::new(
            (self.session, &locator.known),
            self.findings,
            (self.tally, self.monitor),
            self.options.threads,
        );
        if self.options.stanza.is_none() {
            self.read_packs(&mut packs, None)?;
        }
        loop {
            self.monitor.stage(Stage::VerifyTrees, 0, 0);
            let has_read = |pack: &PackId| packs.has_read(pack);
            let mut trees = TreeVerifier::new(locator, &has_read);
            for backup in subjects.iter_mut().flat_map(|subject| &mut subject.backups) {
                check_tree(backup, &mut trees)?;
            }
            let (unread, hidden) = (trees.unread, packs.hidden());
            self.read_packs(&mut packs, Some(&unread))?;
            // What was walked still stands if all that it was led to is sound.
            if packs.hidden() == hidden {
                break;
            }
        }
        let without_list = subjects.iter().flat_map(|subject| &subject.backups);
        for backup in without_list.filter(|backup| backup.page_list_lost) {
            // It is told by backups, and needed by no restore.
            let message = "the list of its suspect pages is lost; it can be restored without";
            self.findings
                .tell(format!("backup {}", backup.label), message.to_owned());
        }
        Ok(packs.known_damaged())
    }

    fn read_packs(
        &self,
        packs: &mut PackVerifier<'_>,
        wanted: Option<&BTreeSet<PackId>>,
    ) -> Result<()> {
        let (bytes, _) = packs.unread_bytes(wanted);
        if bytes == 0 && wanted.is_some() {
            return Ok(());
        }
        self.monitor.stage(Stage::VerifyPacks, bytes, 0);
        packs.verify(wanted)
    }

    fn check_archive(&self, subject: Subject) -> Result<VerifiedStanza> {
        let Subject {
            name,
            epochs,
            missing,
            mut backups,
        } = subject;
        let mut archives = Vec::new();
        for epoch in &epochs {
            if self.options.set.is_none() {
                archives.push((*epoch, self.archive(&name, epoch).verify()?));
            }
        }
        for backup in &mut backups {
            if missing {
                let loss = "its stanza is missing: stanza-create makes it again";
                backup.losses.add(loss.to_owned());
            }
            self.check_wal(&name, &epochs, &archives, backup)?;
        }
        let verified = archives.into_iter().map(|(epoch, read)| VerifiedEpoch {
            name: epoch.name(),
            version: epoch.version,
            files: read.files,
            bytes: read.bytes,
            timelines: read.timelines(),
        });
        let verified = verified.collect();
        let backups = backups.into_iter().map(|backup| VerifiedBackup {
            label: backup.label,
            losses: backup.losses.named,
            more_losses: backup.losses.more,
        });
        Ok(VerifiedStanza {
            name,
            epochs: verified,
            backups: backups.collect(),
        })
    }

    /// The WAL that makes a backup consistent must be whole, in whichever of its cluster's epochs.
    fn check_wal(
        &self,
        stanza: &str,
        epochs: &[Epoch],
        archives: &[(Epoch, VerifiedArchive)],
        backup: &mut Candidate,
    ) -> Result<()> {
        let Some(manifest) = &backup.manifest else {
            return Ok(());
        };
        let Some((first, last)) = needed(manifest) else {
            return Ok(());
        };
        let own = stanza::of_cluster(epochs, manifest.system_id, manifest.version);
        let Some(newest) = own.first() else {
            let loss = "its WAL cannot be fetched: no record of the stanza that can be read is of its cluster";
            backup.losses.add(loss.to_owned());
            return Ok(());
        };
        let bytes = manifest.wal_segment_bytes;
        let missing = if self.options.set.is_some() {
            let names: Vec<String> = own.iter().map(Epoch::name).collect();
            let archive = self.archive(stanza, newest);
            archive.first_missing(&names, (first, last), bytes)?
        } else {
            // As they were read: the oldest first.
            let own = archives
                .iter()
                .rev()
                .filter(|(epoch, _)| own.contains(epoch));
            let own: Vec<&VerifiedArchive> = own.map(|(_, archive)| archive).collect();
            first_missing(&own, (first, last), bytes).map(|missing| missing.file_name(bytes))
        };
        if let Some(missing) = missing {
            backup.losses.add(format!(
                "WAL segment {missing}, without which it is not consistent, is missing or damaged"
            ));
        }
        Ok(())
    }

    fn archive<'s>(&'s self, stanza: &'s str, epoch: &'s Epoch) -> ArchiveVerifier<'s> {
        ArchiveVerifier {
            repository: self.repository,
            stanza,
            epoch,
            findings: self.findings,
            tally: self.tally,
            monitor: self.monitor,
            threads: self.options.threads,
        }
    }
}

/// The segments that make a backup consistent: the first, and the number of the last.
fn needed(manifest: &Manifest) -> Option<(Segment, u64)> {
    let bytes = manifest.wal_segment_bytes;
    let parse = |name: &String| Segment::parse(name, bytes).ok();
    let first = manifest.wal_start.as_ref().and_then(parse)?;
    let last = manifest.wal_stop.as_ref().and_then(parse)?;
    Some((first, last.number))
}

/// Looks for whatever a backup has beside its WAL.
fn check_tree(backup: &mut Candidate, trees: &mut TreeVerifier<'_>) -> Result<()> {
    let Some(manifest) = &backup.manifest else {
        return Ok(());
    };
    backup.losses = Losses::default();
    if manifest.online {
        let path = Path::new("global/pg_control");
        if let Err(error) = control_file::parse(&manifest.pg_control, path) {
            backup.losses.add(with_causes(&error));
        }
    }
    if let Some(list) = manifest.page_list {
        backup.page_list_lost = trees.locate(&[list])? == [None];
    }
    trees.walk(manifest, &mut backup.losses)
}
