//! Restoring a backup: into an empty directory, or over one that is partly right (delta).
//!
//! The story: choose the backup; look at the target and refuse what is live, foreign or not ours; announce; survey the
//! tree and place its links; put down the marker, then remove `global/pg_control`, so that nothing startable is left;
//! make the tree and fill it (`unfold.rs`, `fill.rs`); label, recovery settings; make all of it durable; `pg_control` under
//! its name; the marker goes last. Promises: a restore that is killed anywhere is recognised by its marker and can be run again.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::actions::error::{Error, Result, with_causes};
use crate::actions::fetch::Locator;
use crate::actions::fill::Filler;
use crate::actions::known::Scope;
use crate::actions::label::Committed;
use crate::actions::nodes::{NodeReader, TreeCursor};
use crate::actions::pipeline::run_jobs;
use crate::actions::places::{Places, place_links};
use crate::actions::recovery_target::{Goal, choose};
use crate::actions::session::{Session, present};
use crate::actions::stanza::epochs_of;
use crate::actions::target::{self, MARKER, Marker};
use crate::actions::unfold::Unfolder;
use crate::actions::wal_path::TimelineGoal;
use crate::cluster::control_file;
use crate::cluster::recovery::{self, Recovery, RecoveryType};
use crate::monitor::{Counter, Monitor, NoMonitor, Problem, Stage, Tally};
use crate::repository::Repository;
use crate::repository::run::Role;
use crate::repository::snapshot::Manifest;
use crate::repository::tree::{Content, Entry, EntryKind, FOLLOWED};

/// Requests that are under way at once, at least: one is answered while another is decoded.
const LEAST_THREADS: usize = 2;
/// The same where each is a round trip: what hides the latency of a store.
const LEAST_REMOTE_THREADS: usize = 10;

/// The first PostgreSQL that reads WAL ahead of what it replays, and so asks for segments behind its target.
const FIRST_LOOKING_AHEAD: u32 = 15;

/// What a restore is asked to do.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command"
)]
pub struct RestoreOptions {
    /// The stanza.
    pub stanza: String,
    /// Where the data directory goes.
    pub pgdata: PathBuf,
    /// Where the chunk index is cached.
    pub cache: PathBuf,
    /// Working threads.
    pub threads: usize,
    /// Keep what is right already.
    pub delta: bool,
    /// Write into a directory that is not empty, or that was another cluster.
    pub force: bool,
    /// The backup's label; `None`: the newest that reaches the target.
    pub set: Option<String>,
    /// Where tablespaces go: oid or name, path.
    pub tablespace_map: Vec<(String, PathBuf)>,
    /// The directory in which all other tablespaces go, each under its name.
    pub tablespace_map_all: Option<PathBuf>,
    /// Where links go: path in the data directory, destination.
    pub link_map: Vec<(String, PathBuf)>,
    /// Restore links as links.
    pub link_all: bool,
    /// What the restored server does when it starts.
    pub recovery: Recovery,
    /// Where recovery is to end.
    pub goal: Goal,
    /// Along which timeline.
    pub timeline: TimelineGoal,
    /// The type of recovery was asked for; otherwise the backup of a stopped cluster gets none.
    pub recovery_given: bool,
    /// This host's name.
    pub host: String,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
    /// The time as it is written into settings.
    pub stamp: String,
    /// How a time is told to a person.
    pub time: fn(i64) -> String,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoreSummary {
    /// The backup.
    pub label: String,
    /// Files of the cluster.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes read from the repository's packs.
    pub fetched_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes that were right already.
    pub kept_bytes: u64,
    /// Files, links and directories that were not in the backup.
    pub removed: u64,
    /// How long it took in all.
    pub seconds: f64,
    /// How much of that was spent on making it durable.
    pub sync_seconds: f64,
}

/// Restores a backup.
pub fn restore(
    repository: &Repository,
    options: &RestoreOptions,
    tally: &Tally,
    monitor: &dyn Monitor,
) -> Result<RestoreSummary> {
    let begun = Instant::now();
    monitor.stage(Stage::Prepare, 0, 0);
    // All that a restore needs is in the backup itself: a damaged record of the stanza does not stop it.
    let epochs = match epochs_of(repository, &options.stanza) {
        Err(Error::Repository(damage)) if damage.is_damage() => {
            monitor.problem(&Problem {
                object: format!("stanza {}", options.stanza),
                message: with_causes(&damage),
            });
            Vec::new()
        }
        epochs => epochs?,
    };
    let (cache, host) = (&options.cache, &options.host);
    present(
        repository,
        Role::Restore,
        cache,
        (host, options.now_ms),
        monitor,
        |session| {
            let chosen = choose(repository, options, &epochs, monitor)?;
            Restore {
                repository,
                session,
                options,
                chosen: &chosen.backup,
                before_hole: chosen.before_hole,
                tally,
                monitor,
                begun,
            }
            .run()
        },
    )
}

/// Whether a repository has a backup that can be restored so, as far as that can be told without reading its files.
pub fn can_restore(repository: &Repository, options: &RestoreOptions) -> Result<()> {
    let epochs = match epochs_of(repository, &options.stanza) {
        Err(Error::Repository(damage)) if damage.is_damage() => Vec::new(),
        epochs => epochs?,
    };
    choose(repository, options, &epochs, &NoMonitor).map(drop)
}

struct Restore<'a> {
    repository: &'a Repository,
    session: &'a Session<'a>,
    options: &'a RestoreOptions,
    chosen: &'a Committed,
    before_hole: bool,
    tally: &'a Tally,
    monitor: &'a dyn Monitor,
    begun: Instant,
}

/// What a first pass over the tree tells.
struct Survey {
    links: Vec<Entry>,
    bytes: u64,
    files: u64,
}

impl Restore<'_> {
    fn run(&self) -> Result<RestoreSummary> {
        let manifest = &self.chosen.manifest;
        let marker = Marker::of(self.repository.id, manifest);
        let control = self.control_bytes()?;
        let state = target::inspect(&self.options.pgdata, self.options, &marker, &control)?;
        state.notes.iter().for_each(|note| self.monitor.note(note));
        let mut note = |object, message| self.monitor.problem(&Problem { object, message });
        let (cache, scope) = (&self.options.cache, Scope::Stanza(&self.options.stanza));
        let locator = Locator::new(self.session, cache, scope, &mut note)?;
        let nodes = NodeReader::new(self.repository, &locator.known.index, &manifest.label)?
            .with_locator(&locator);
        let survey = survey(&nodes, manifest).map_err(|error| self.named(error, false))?;
        let mut places = Places::new(&self.options.pgdata)?;
        place_links(
            &mut places,
            &survey.links,
            manifest,
            self.options,
            &mut note,
        )?;
        // Nothing is refused from here on.
        target::claim(&places, &marker)?;
        self.monitor
            .stage(Stage::Restore, survey.bytes, survey.files);
        let removed = self
            .fill(&places, &nodes, &locator)
            .map_err(|error| self.named(error, true))?;
        self.write_label(&places)?;
        self.write_recovery(&places)?;
        self.monitor.stage(Stage::Sync, 0, 0);
        let syncing = Instant::now();
        target::sync(places.paths())?;
        target::release(&places, &control, manifest.pg_control_mode)?;
        Ok(RestoreSummary {
            label: manifest.label.clone(),
            files: survey.files,
            bytes: survey.bytes,
            fetched_bytes: self.tally.get(Counter::FetchedBytes),
            written_bytes: self.tally.get(Counter::WrittenBytes),
            kept_bytes: self.tally.get(Counter::KeptBytes),
            removed,
            seconds: self.begun.elapsed().as_secs_f64(),
            sync_seconds: syncing.elapsed().as_secs_f64(),
        })
    }

    /// Damage of the backup, told as what it means.
    fn named(&self, error: Error, begun: bool) -> Error {
        if !error.is_damage() {
            return error;
        }
        Error::NotRestorable {
            label: self.chosen.manifest.label.clone(),
            begun,
            source: Box::new(error),
        }
    }

    fn fill(&self, places: &Places, nodes: &NodeReader<'_>, locator: &Locator<'_>) -> Result<u64> {
        let preserved: &[&[u8]] = match self.options.recovery.kind {
            RecoveryType::Preserve => &[MARKER, b"recovery.signal", b"standby.signal"],
            _ => &[MARKER],
        };
        let manifest = &self.chosen.manifest;
        let filler = Filler {
            repository: self.repository,
            locator,
            tally: self.tally,
            monitor: self.monitor,
        };
        let least = if self.repository.storage.is_remote() {
            LEAST_REMOTE_THREADS
        } else {
            LEAST_THREADS
        };
        let mut removed = 0;
        run_jobs(
            self.options.threads.max(least),
            |jobs| {
                let unfolder = Unfolder::new(
                    places,
                    nodes,
                    &manifest.label,
                    preserved,
                    self.tally,
                    self.monitor,
                );
                removed = unfolder.run(manifest.root, jobs)?;
                Ok(())
            },
            |jobs| filler.work(jobs),
        )?;
        Ok(removed)
    }

    fn write_label(&self, places: &Places) -> Result<()> {
        let Some(label) = &self.chosen.manifest.backup_label else {
            return Ok(());
        };
        target::write_file(places.data(), b"backup_label", label, 0o600)
    }

    fn write_recovery(&self, places: &Places) -> Result<()> {
        let mut recovery = self.options.recovery.clone();
        if !self.chosen.manifest.online && !self.options.recovery_given {
            recovery.kind = RecoveryType::None;
        }
        if self.before_hole && self.chosen.manifest.version >= FIRST_LOOKING_AHEAD {
            let setting = ("recovery_prefetch".to_owned(), "off".to_owned());
            recovery.settings.insert(0, setting);
        }
        recovery::write(places.data(), &recovery, &self.options.stamp).map_err(Error::Cluster)
    }

    /// The control file of a live backup gets an impossible checkpoint, so that the server does not start if somebody
    /// removes `backup_label`; that of a stopped cluster is as it was.
    fn control_bytes(&self) -> Result<Vec<u8>> {
        let manifest = &self.chosen.manifest;
        if !manifest.online {
            return Ok(control_file::padded(&manifest.pg_control));
        }
        let path = Path::new("global/pg_control");
        let control = control_file::parse(&manifest.pg_control, path).map_err(Error::Cluster)?;
        Ok(control_file::poisoned(&control))
    }
}

/// Reads the whole tree once: its links must be placed before anything is written, and its size makes progress known.
fn survey(nodes: &NodeReader<'_>, manifest: &Manifest) -> Result<Survey> {
    let mut survey = Survey {
        links: Vec::new(),
        bytes: 0,
        files: 0,
    };
    let mut cursor = TreeCursor::new(nodes, manifest.root)?;
    while let Some(entry) = cursor.next()? {
        survey.bytes += entry.bytes;
        survey.files += u64::from(entry.kind == EntryKind::File);
        if entry.flags & FOLLOWED != 0 {
            survey.links.push(Entry {
                content: Content::Nothing,
                ..entry
            });
        }
    }
    Ok(survey)
}
