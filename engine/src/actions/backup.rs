//! One backup, from the announcement to the commit.
//!
//! The story: choose type, prior and label; announce; read the gc log; bring the index up to date; start the server's
//! backup mode; read what must be read (`plan.rs`, `copy.rs`), build the tree (`assemble.rs`); stop; prove the WAL;
//! decide the register. Promises: the backup is listed only if all that it needs is durable; a run that fails fences
//! its own register before it takes its announcement back, and what it stored is used by the next.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::actions::assemble::{Assembled, Assembler, NodeStore};
use crate::actions::commit::usable_packs;
use crate::actions::copy::{Copier, Job};
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::known::{Known, Scope, bring_up_to_date, unindexed};
use crate::actions::label::{Chosen, Committed, announce_unique, choose};
use crate::actions::nodes::NodeReader;
use crate::actions::online::{BackupMode, Window};
use crate::actions::packer::Packer;
use crate::actions::pages::{PageVerdict, is_torn};
use crate::actions::pipeline::{Outlet, beside, run_backup};
use crate::actions::plan::{Basis, Planned, Planner};
use crate::actions::session::{BEAT_SECONDS, Session};
use crate::actions::standby::Standby;
use crate::actions::stanza::epoch_of;
use crate::actions::stat_record::{self, StatReader, StatWriter};
use crate::cluster::control_file::{self, ControlFile};
use crate::cluster::data_dir::{WalkOptions, walk};
use crate::cluster::server::Server;
use crate::dedup::chunker::Chunker;
use crate::ids::{BlobKind, ChunkId, Namer};
use crate::monitor::{Counter, Monitor, Problem, Stage, Tally};
use crate::pack::writer::Sealer;
use crate::repository::config::Config;
use crate::repository::snapshot::{self, BackupType, Decision, Manifest, Register};
use crate::repository::stanza::Epoch;
use crate::repository::tree::encode_page_list;
use crate::repository::{self, Repository, forget};

/// How often the server's session is kept alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The option under which a manifest says that the files were copied from a standby.
pub(super) const FROM_STANDBY: &str = "backup-standby";

/// What a backup is asked to do.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command"
)]
pub struct BackupOptions {
    /// The stanza.
    pub stanza: String,
    /// The data directory.
    pub pgdata: PathBuf,
    /// The type that is wanted; without a full to build on it becomes a full.
    pub backup_type: BackupType,
    /// Where the chunk index and the stat records are cached.
    pub cache: PathBuf,
    /// Working threads.
    pub threads: usize,
    /// zstd level.
    pub compress_level: i32,
    /// Ask the server for an immediate checkpoint.
    pub start_fast: bool,
    /// Page checksums are verified; `None`: if the cluster has them.
    pub checksum_page: Option<bool>,
    /// Read every file, whatever its stat record says.
    pub delta: bool,
    /// Prove that archiving reaches the repository, and that the needed WAL did.
    pub archive_check: bool,
    /// Refuse `archive_mode=always`, and commands that are not ours.
    pub archive_mode_check: bool,
    /// How long WAL is waited for.
    pub archive_timeout: Duration,
    /// Paths, relative to the data directory, that are left out.
    pub exclude: Vec<Vec<u8>>,
    /// Back up files although a server may be using them (offline only).
    pub force: bool,
    /// This host's name.
    pub host: String,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
    /// Prints a time as labels do: `YYYYMMDD-HHMMSS`.
    pub stamp: fn(i64) -> String,
}

/// What a backup did.
#[derive(Debug, Clone)]
pub struct BackupSummary {
    /// The committed manifest.
    pub manifest: Manifest,
    /// How long it took.
    pub seconds: f64,
}

/// Backs up a cluster; without a server, a stopped one.
pub fn backup(
    repository: &Repository,
    server: Option<&mut dyn Server>,
    options: &BackupOptions,
    tally: &Tally,
    monitor: &dyn Monitor,
) -> Result<BackupSummary> {
    back_up(repository, options, tally, monitor, |control| {
        BackupMode::prepare(server, options, control)
    })
}

/// Backs up a running cluster whose files, but for those that are each server's own, are copied from a standby;
/// `options.pgdata` is the primary's.
pub fn backup_from_standby<'s>(
    repository: &Repository,
    primary: &'s mut dyn Server,
    standby: Standby<'s>,
    options: &BackupOptions,
    tally: &Tally,
    monitor: &dyn Monitor,
) -> Result<BackupSummary> {
    back_up(repository, options, tally, monitor, |control| {
        BackupMode::prepare_with_standby(primary, standby, options, control)
    })
}

fn back_up<'s>(
    repository: &Repository,
    options: &BackupOptions,
    tally: &Tally,
    monitor: &dyn Monitor,
    prepare: impl FnOnce(&ControlFile) -> Result<BackupMode<'s>>,
) -> Result<BackupSummary> {
    let begun = Instant::now();
    for (key, damage) in repository::config_damage(repository).map_err(Error::Repository)? {
        let message = format!(
            "{}: remove it if it is there, then stanza-create writes it again from the other copy",
            with_causes(&damage)
        );
        let object = key.to_string();
        monitor.problem(&Problem { object, message });
    }
    let control = control_file::read(&options.pgdata).map_err(Error::Cluster)?;
    let epoch = epoch_of(repository, &options.stanza, &control, &options.pgdata)?;
    let mode = prepare(&control)?;
    let standby = mode.standby().map(Path::to_owned);
    let same = |manifest: &Manifest| {
        manifest.system_id == control.system_id && manifest.version == control.version
    };
    let listed = snapshot::list(repository, &options.stanza).map_err(Error::Repository)?;
    let (backup_type, prior, full) =
        choose(repository, options.backup_type, &listed, same, monitor)?;
    if backup_type != options.backup_type {
        monitor.note("no prior backup exists, the backup will be a full one");
    }
    let (label, mut session) =
        announce_unique(repository, options, &listed, backup_type, full.as_deref())?;
    let chosen = Chosen {
        backup_type,
        label,
        prior,
    };
    let run = Run {
        options,
        control: &control,
        epoch: &epoch,
        standby,
        tally,
        monitor,
    };
    let outcome = session
        .read_gc()
        .and_then(|()| run.to_commit(&mut session, mode, &chosen));
    let manifest = match outcome {
        Ok(manifest) => {
            if let Err(error) = session.withdraw() {
                monitor.problem(&Problem {
                    object: chosen.label,
                    message: format!("announcement stays: {error}"),
                });
            }
            manifest
        }
        Err(error) => give_up(&session, options, &chosen.label).ok_or(error)?,
    };
    stat_record::remove_old(&options.cache, repository.id, &options.stanza);
    Ok(BackupSummary {
        manifest,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Ends a failed run: its register is fenced first, so that no late write of it can commit; if that cannot be done the
/// announcement stays, and whoever deletes waits for its lease. Answers what the register says if it turns out that
/// the run has committed, of which only the answer was lost.
fn give_up(session: &Session<'_>, options: &BackupOptions, label: &str) -> Option<Manifest> {
    let fenced = snapshot::decide(
        session.repository,
        &options.stanza,
        label,
        session.run,
        &Register::Fenced,
    );
    let decision = fenced.ok()?;
    drop(session.withdraw());
    match decision {
        Decision::AlreadyDecided(Register::Committed(manifest)) => Some(*manifest),
        _ => None,
    }
}

/// What stays the same through one run.
pub(super) struct Run<'a> {
    pub(super) options: &'a BackupOptions,
    pub(super) control: &'a ControlFile,
    pub(super) epoch: &'a Epoch,
    /// The data directory of the standby that files are copied from.
    pub(super) standby: Option<PathBuf>,
    pub(super) tally: &'a Tally,
    pub(super) monitor: &'a dyn Monitor,
}

/// What one run works with once its index is up to date.
struct Live<'r, 's> {
    session: &'r Session<'r>,
    known: &'r Known,
    packer: &'r Packer<'r>,
    mode: &'r Mutex<BackupMode<'s>>,
    chosen: &'r Chosen,
}

impl<'s> Live<'_, 's> {
    fn mode(&self) -> MutexGuard<'_, BackupMode<'s>> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was copied, before the register is decided.
pub(super) struct Copied {
    pub(super) assembled: Assembled,
    pub(super) stat: StatWriter,
    pub(super) window: Window,
    pub(super) pg_control: ControlFile,
    pub(super) page_list: Option<ChunkId>,
    pub(super) bad_pages: u64,
    pub(super) torn_pages: u64,
}

impl<'a> Run<'a> {
    fn to_commit(
        &self,
        session: &mut Session<'_>,
        mode: BackupMode<'_>,
        chosen: &Chosen,
    ) -> Result<Manifest> {
        let repository = session.repository;
        self.monitor.stage(Stage::Prepare, 0, 0);
        let mut problem = |object, message| self.monitor.problem(&Problem { object, message });
        let known = bring_up_to_date(session, &self.options.cache, Scope::All, &mut problem)?;
        let session = &*session;
        let packer = Packer::new(session, &known.index, &self.options.stanza, self.tally);
        self.adopt_unindexed(repository, &known, &packer)?;
        let prior = self.still_there(repository, chosen.prior.as_ref())?;
        let nodes = match prior {
            Some(prior) => Some(NodeReader::new(
                repository,
                &known.index,
                &prior.manifest.label,
            )?),
            None => None,
        };
        let mode = Mutex::new(mode);
        let live = Live {
            session,
            known: &known,
            packer: &packer,
            mode: &mode,
            chosen,
        };
        let mut beats = 1;
        let mut ticks = 0;
        let tick = || {
            live.mode().ping()?;
            ticks += 1;
            if ticks * KEEP_ALIVE.as_secs() >= BEAT_SECONDS {
                ticks = 0;
                beats += 1;
                session.beat(beats)?;
            }
            Ok(())
        };
        let copied = beside(KEEP_ALIVE, tick, || {
            let copied = self.copy(&live, nodes.as_ref(), prior)?;
            packer.publish_rest()?;
            BackupMode::prove_wal(
                repository,
                self.options,
                self.epoch,
                self.control,
                &copied.window,
            )?;
            Ok(copied)
        })?;
        let usable = usable_packs(&known, &session.unusable());
        self.commit(session, chosen, copied, &usable)
    }

    /// What an earlier run stored and could not name is named by this one.
    fn adopt_unindexed(
        &self,
        repository: &Repository,
        known: &Known,
        packer: &Packer<'_>,
    ) -> Result<()> {
        let mut problem = |object, message| self.monitor.problem(&Problem { object, message });
        let found = unindexed(repository, known, &mut problem)?;
        packer.publish(found.packs)
    }

    /// The prior backup, unless it was forgotten before this run announced itself: then its chunks may be going away.
    fn still_there<'p>(
        &self,
        repository: &Repository,
        prior: Option<&'p Committed>,
    ) -> Result<Option<&'p Committed>> {
        let Some(prior) = prior else { return Ok(None) };
        let forgotten =
            forget::list(repository, &self.options.stanza).map_err(Error::Repository)?;
        let key = (prior.snapshot.label.clone(), prior.snapshot.run);
        Ok((!forgotten.contains(&key)).then_some(prior))
    }

    /// What files are compared with. They are kept unread only by diff and incr, only against the snapshot's own stat
    /// record, and only while nothing about the cluster or the repository is odd.
    fn basis<'n>(
        &self,
        live: &Live<'n, '_>,
        prior: &'n Committed,
        nodes: &'n NodeReader<'n>,
        window: &Window,
    ) -> Basis<'n>
    where
        'a: 'n,
    {
        let (repository, known) = (live.session.repository, live.known);
        let (manifest, backup_type) = (&prior.manifest, live.chosen.backup_type);
        let sound = known.suspects.is_empty() && !known.quarantined;
        let from_standby = manifest
            .options
            .iter()
            .any(|(name, _)| name == FROM_STANDBY);
        let same = manifest.timeline == window.timeline
            && manifest.stop_timeline == window.timeline
            && from_standby == self.standby.is_some()
            && manifest.checksums == self.control.checksums
            && manifest.page_bytes == self.control.page_bytes;
        let trusting = backup_type != BackupType::Full && !self.options.delta && sound && same;
        if !sound {
            self.monitor.problem(&Problem {
                object: repository.storage.describe(),
                message: "packs are missing or damaged: every file is read, and what is missing is stored again"
                    .to_owned(),
            });
        }
        let (cache, stanza) = (&self.options.cache, &self.options.stanza);
        let path = stat_record::path_of(
            cache,
            repository.id,
            stanza,
            &manifest.label,
            prior.snapshot.run,
        );
        let stat = trusting.then(|| StatReader::open(&path)).flatten();
        Basis {
            nodes,
            root: manifest.root,
            stat,
            start_ms: manifest.start_ms,
            label: &manifest.label,
            monitor: self.monitor,
        }
    }

    /// Copies the cluster: from entering backup mode to leaving it.
    fn copy<'r>(
        &self,
        live: &Live<'r, '_>,
        nodes: Option<&'r NodeReader<'r>>,
        prior: Option<&'r Committed>,
    ) -> Result<Copied>
    where
        'a: 'r,
    {
        let config = &live.session.repository.config;
        self.monitor.stage(Stage::StartBackup, 0, 0);
        let repository = live.session.repository;
        let label = &live.chosen.label;
        let window = live.mode().start(
            repository,
            self.options,
            self.epoch,
            self.control,
            label,
            self.monitor,
        )?;
        let basis = prior
            .zip(nodes)
            .map(|(prior, nodes)| self.basis(live, prior, nodes, &window));
        let totals = live
            .chosen
            .prior
            .as_ref()
            .map(|prior| prior.manifest.sums)
            .unwrap_or_default();
        self.monitor
            .stage(Stage::Copy, totals.file_bytes, totals.files);
        let chunker = Chunker::new(config).map_err(Error::Index)?;
        let copier = Copier {
            config,
            index: &live.known.index,
            packer: live.packer,
            prior: nodes,
            chunker: &chunker,
            page_bytes: self.control.page_bytes,
            check_pages: self.options.checksum_page.unwrap_or(true) && self.control.checksums,
            compress_level: self.options.compress_level,
            tally: self.tally,
            monitor: self.monitor,
        };
        let assembler = self.assembler(live)?;
        let online = window.online();
        run_backup(
            self.options.threads,
            |plan, jobs| self.plan(plan, jobs, basis, config, online),
            |jobs, results| copier.work(jobs, results),
            || live.packer.store(),
            |plan, results| {
                let finished = assembler
                    .run(plan, results)
                    .and_then(|(assembled, stat)| self.conclude(live, assembled, stat, window))
                    .and_then(|copied| live.packer.close().map(|()| copied));
                if finished.is_err() {
                    live.packer.abandon();
                }
                finished
            },
        )
    }

    fn plan(
        &self,
        plan: &Outlet<Planned>,
        jobs: &Outlet<Job>,
        basis: Option<Basis<'_>>,
        config: &Config,
        online: bool,
    ) -> Result<()> {
        let mut problem = |path: &Path, message: String| {
            self.monitor.problem(&Problem {
                object: path.display().to_string(),
                message,
            });
        };
        let options = self.walk_options(online);
        let files = walk(&self.options.pgdata, &options, &mut problem).map_err(Error::Cluster)?;
        Planner::new(plan, jobs, basis, config.region_bytes)?.run(files)
    }

    fn node_store<'r>(&self, live: &Live<'r, '_>) -> Result<NodeStore<'r>> {
        let sealer = Sealer::new(self.options.compress_level).map_err(|source| Error::Pack {
            path: "the snapshot tree".to_owned(),
            source,
        })?;
        Ok(NodeStore {
            index: &live.known.index,
            packer: live.packer,
            namer: Namer::plain(),
            sealer,
        })
    }

    fn assembler<'r>(&'r self, live: &Live<'r, '_>) -> Result<Assembler<'r>> {
        let (cache, stanza, session) = (&self.options.cache, &self.options.stanza, live.session);
        let id = session.repository.id;
        let stat = stat_record::path_of(cache, id, stanza, &live.chosen.label, session.run);
        let config = &session.repository.config;
        Ok(Assembler::new(
            self.node_store(live)?,
            StatWriter::create(stat)?,
            config,
            self.tally,
            self.monitor,
        ))
    }

    /// Leaves backup mode, and decides, now that the backup's end is known, which suspect pages recovery will repair.
    fn conclude(
        &self,
        live: &Live<'_, '_>,
        mut assembled: Assembled,
        stat: StatWriter,
        mut window: Window,
    ) -> Result<Copied> {
        let pg_control = control_file::read(&self.options.pgdata).map_err(Error::Cluster)?;
        self.monitor.stage(Stage::StopBackup, 0, 0);
        live.mode().stop(&mut window)?;
        let mut verdicts = Vec::new();
        let mut bad_pages = assembled.unlisted_suspects;
        for (path, page) in std::mem::take(&mut assembled.suspects) {
            let torn = window.online() && is_torn(page, window.start_lsn, window.written_lsn);
            if !torn {
                bad_pages += 1;
                let message = format!("page checksum of block {} does not match", page.block);
                let object = String::from_utf8_lossy(&path).into_owned();
                self.monitor.problem(&Problem { object, message });
            }
            verdicts.push(PageVerdict {
                path,
                block: page.block,
                torn,
            });
        }
        let torn_pages = verdicts.iter().filter(|verdict| verdict.torn).count() as u64;
        self.tally.add(Counter::BadPages, bad_pages);
        self.tally.add(Counter::TornPages, torn_pages);
        let page_list = self.store_page_list(live, &verdicts)?;
        Ok(Copied {
            assembled,
            stat,
            window,
            pg_control,
            page_list,
            bad_pages,
            torn_pages,
        })
    }

    fn store_page_list(
        &self,
        live: &Live<'_, '_>,
        verdicts: &[PageVerdict],
    ) -> Result<Option<ChunkId>> {
        if verdicts.is_empty() {
            return Ok(None);
        }
        let bytes = encode_page_list(
            verdicts
                .iter()
                .map(|page| (&page.path[..], page.block, page.torn)),
        );
        let mut store = self.node_store(live)?;
        let id = store.namer.name(BlobKind::Node, &bytes);
        store.store(id, &bytes)?;
        Ok(Some(id))
    }

    fn walk_options(&self, online: bool) -> WalkOptions {
        WalkOptions {
            version: self.control.version,
            catalog_version: self.control.catalog_version,
            segment_blocks: self.control.segment_blocks,
            online,
            exclude: self.options.exclude.clone(),
            standby: self.standby.clone(),
        }
    }
}
