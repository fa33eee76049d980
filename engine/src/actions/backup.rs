//! One backup, from the announcement to the commit.
//!
//! The story: choose type, prior and label; announce; read the gc log; bring the index up to date; start the server's
//! backup mode; read what must be read (`plan.rs`, `copy.rs`), build the tree (`assemble.rs`); stop; prove the WAL;
//! decide the register. Promises: the backup is listed only if all that it needs is durable; a run that fails fences
//! its own register before it takes its announcement back, and what it stored is used by the next.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::actions::assemble::{Assembled, Assembler, NodeStore};
use crate::actions::copy::Copier;
use crate::actions::error::{Error, Result, with_causes};
use crate::actions::known::{Known, Scope, bring_up_to_date, unindexed};
use crate::actions::label::{Chosen, Committed, announce_unique, backups, choose};
use crate::actions::nodes::NodeReader;
use crate::actions::online::{BackupMode, Window};
use crate::actions::packer::Packer;
use crate::actions::pages::{PageVerdict, is_torn};
use crate::actions::pipeline::{beside, run_backup};
use crate::actions::plan::{Basis, Planner};
use crate::actions::session::{BEAT_SECONDS, Session};
use crate::actions::stanza::epoch_of;
use crate::actions::stat_record::{self, StatReader, StatWriter};
use crate::cluster::control_file::{self, ControlFile};
use crate::cluster::data_dir::{WalkOptions, walk};
use crate::cluster::server::Server;
use crate::dedup::chunker::Chunker;
use crate::ids::{BlobKind, ChunkId, Namer, PackId};
use crate::monitor::{Counter, Monitor, Problem, Stage, Tally};
use crate::pack::writer::Sealer;
use crate::repository::layout::PackClass;
use crate::repository::snapshot::{self, BackupType, Decision, Manifest, Register, Sums};
use crate::repository::stanza::Epoch;
use crate::repository::tree::encode_page_list;
use crate::repository::{self, Repository, gc_log, packs};

/// How often the server's session is kept alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a backup is asked to do.
#[derive(Debug, Clone)]
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
    let mode = BackupMode::prepare(server, options, &control)?;
    let same = |manifest: &Manifest| {
        manifest.system_id == control.system_id && manifest.version == control.version
    };
    let existing = backups(repository, &options.stanza)?;
    for unreadable in &existing.unreadable {
        monitor.problem(&Problem {
            object: format!("backup {}", unreadable.snapshot.label),
            message: format!("cannot be restored: {}", with_causes(&unreadable.error)),
        });
    }
    let (backup_type, prior, full) = choose(options.backup_type, existing.committed, same);
    if backup_type != options.backup_type {
        monitor.note("no prior backup exists, the backup will be a full one");
    }
    let (label, mut session) = announce_unique(
        repository,
        &options.stanza,
        backup_type,
        full.as_deref(),
        &options.host,
        options.now_ms,
        options.stamp,
    )?;
    let chosen = Chosen {
        backup_type,
        label,
        prior,
    };
    let run = Run {
        options,
        control: &control,
        epoch: &epoch,
        tally,
        monitor,
    };
    let outcome = session
        .read_gc()
        .and_then(|()| run.to_commit(&mut session, mode, &chosen));
    match outcome {
        Ok(manifest) => {
            if let Err(error) = session.withdraw() {
                monitor.problem(&Problem {
                    object: chosen.label,
                    message: format!("announcement stays: {error}"),
                });
            }
            stat_record::remove_old(&options.cache, repository.id, &options.stanza);
            Ok(BackupSummary {
                manifest,
                seconds: begun.elapsed().as_secs_f64(),
            })
        }
        Err(error) => {
            give_up(&session, options, &chosen.label);
            Err(error)
        }
    }
}

/// Ends a failed run: its register is fenced first, so that no late write of it can commit; if that cannot be done the
/// announcement stays, and whoever deletes waits for its lease.
fn give_up(session: &Session<'_>, options: &BackupOptions, label: &str) {
    let fenced = snapshot::decide(
        session.repository,
        &options.stanza,
        label,
        session.run,
        &Register::Fenced,
    );
    if fenced.is_ok() {
        drop(session.withdraw());
    }
}

/// What stays the same through one run.
struct Run<'a> {
    options: &'a BackupOptions,
    control: &'a ControlFile,
    epoch: &'a Epoch,
    tally: &'a Tally,
    monitor: &'a dyn Monitor,
}

/// What was copied, before the register is decided.
struct Copied {
    assembled: Assembled,
    stat: StatWriter,
    window: Window,
    pg_control: ControlFile,
    page_list: Option<ChunkId>,
    bad_pages: u64,
    torn_pages: u64,
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
        let basis = match (prior, &nodes) {
            (Some(prior), Some(nodes)) => {
                Some(self.basis(repository, prior, nodes, &known, chosen.backup_type))
            }
            _ => None,
        };
        let mode = Mutex::new(mode);
        let mut beats = 1;
        let mut ticks = 0;
        let tick = || {
            mode.lock().unwrap_or_else(PoisonError::into_inner).ping()?;
            ticks += 1;
            if ticks * KEEP_ALIVE.as_secs() >= BEAT_SECONDS {
                ticks = 0;
                beats += 1;
                session.beat(beats)?;
            }
            Ok(())
        };
        let copied = beside(KEEP_ALIVE, tick, || {
            let copied = self.copy(
                session,
                &mode,
                &packer,
                &known,
                nodes.as_ref(),
                basis,
                chosen,
            )?;
            packer.publish_rest()?;
            let mut mode = mode.lock().unwrap_or_else(PoisonError::into_inner);
            mode.prove_wal(
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
        let listed = snapshot::list(repository, &self.options.stanza).map_err(Error::Repository)?;
        let kept = |snapshot: &&snapshot::Snapshot| {
            snapshot.run == prior.snapshot.run && !snapshot.forgotten
        };
        Ok(listed
            .iter()
            .any(|snapshot| kept(&snapshot))
            .then_some(prior))
    }

    /// What files are compared with. They are kept unread only by diff and incr, only against the snapshot's own stat
    /// record, and only while nothing about the cluster or the repository is odd.
    fn basis<'n>(
        &self,
        repository: &Repository,
        prior: &'n Committed,
        nodes: &'n NodeReader<'n>,
        known: &Known,
        backup_type: BackupType,
    ) -> Basis<'n>
    where
        'a: 'n,
    {
        let manifest = &prior.manifest;
        let sound = known.suspects.is_empty() && !known.quarantined;
        let same = manifest.timeline == self.control.timeline
            && manifest.stop_timeline == self.control.timeline
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

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one run, each borrowed for as long as its threads live"
    )]
    fn copy<'r>(
        &self,
        session: &Session<'_>,
        mode: &Mutex<BackupMode<'_>>,
        packer: &Packer<'r>,
        known: &'r Known,
        nodes: Option<&'r NodeReader<'r>>,
        basis: Option<Basis<'r>>,
        chosen: &Chosen,
    ) -> Result<Copied> {
        let config = &session.repository.config;
        let lock = || mode.lock().unwrap_or_else(PoisonError::into_inner);
        self.monitor.stage(Stage::StartBackup, 0, 0);
        let window = lock().start(
            session.repository,
            self.options,
            self.epoch,
            self.control,
            &chosen.label,
        )?;
        let totals = chosen
            .prior
            .as_ref()
            .map(|prior| prior.manifest.sums)
            .unwrap_or_default();
        self.monitor
            .stage(Stage::Copy, totals.file_bytes, totals.files);
        let chunker = Chunker::new(config).map_err(Error::Index)?;
        let copier = Copier {
            config,
            index: &known.index,
            packer,
            prior: nodes,
            chunker: &chunker,
            page_bytes: self.control.page_bytes,
            check_pages: self.options.checksum_page.unwrap_or(true) && self.control.checksums,
            compress_level: self.options.compress_level,
            tally: self.tally,
            monitor: self.monitor,
        };
        let sealer = Sealer::new(self.options.compress_level).map_err(|source| Error::Pack {
            path: "the compressor".to_owned(),
            source,
        })?;
        let store = NodeStore {
            index: &known.index,
            packer,
            namer: Namer::plain(),
            sealer,
        };
        let (cache, stanza) = (&self.options.cache, &self.options.stanza);
        let stat = stat_record::path_of(
            cache,
            session.repository.id,
            stanza,
            &chosen.label,
            session.run,
        );
        let assembler = Assembler::new(
            store,
            StatWriter::create(stat)?,
            config,
            self.tally,
            self.monitor,
        );
        let online = window.online();
        run_backup(
            self.options.threads,
            |plan, jobs| {
                let mut problem = |path: &Path, message: String| {
                    self.monitor.problem(&Problem {
                        object: path.display().to_string(),
                        message,
                    });
                };
                let files = walk(
                    &self.options.pgdata,
                    &self.walk_options(online),
                    &mut problem,
                )
                .map_err(Error::Cluster)?;
                Planner::new(plan, jobs, basis, config.region_bytes)?.run(files)
            },
            |jobs, results| copier.work(jobs, results),
            || packer.store(),
            |plan, results| {
                let copied = assembler.run(plan, results).and_then(|(assembled, stat)| {
                    let mut window = window;
                    let pg_control =
                        control_file::read(&self.options.pgdata).map_err(Error::Cluster)?;
                    self.monitor.stage(Stage::StopBackup, 0, 0);
                    lock().stop(&mut window)?;
                    self.judge(packer, known, assembled, stat, window, pg_control)
                });
                match copied {
                    Ok(copied) => packer.close().map(|()| copied),
                    Err(error) => {
                        packer.abandon();
                        Err(error)
                    }
                }
            },
        )
    }

    fn walk_options(&self, online: bool) -> WalkOptions {
        WalkOptions {
            version: self.control.version,
            catalog_version: self.control.catalog_version,
            segment_blocks: self.control.segment_blocks,
            online,
            exclude: self.options.exclude.clone(),
        }
    }

    /// Decides, now that the backup's end is known, which suspect pages recovery will repair; stores the list.
    fn judge(
        &self,
        packer: &Packer<'_>,
        known: &Known,
        mut assembled: Assembled,
        stat: StatWriter,
        window: Window,
        pg_control: ControlFile,
    ) -> Result<Copied> {
        let mut verdicts = Vec::new();
        let mut bad_pages = assembled.unlisted_suspects;
        for (path, page) in std::mem::take(&mut assembled.suspects) {
            let torn = window.online() && is_torn(page, window.start_lsn, window.written_lsn);
            if !torn {
                bad_pages += 1;
                let message = format!("page checksum of block {} does not match", page.block);
                self.monitor.problem(&Problem {
                    object: String::from_utf8_lossy(&path).into_owned(),
                    message,
                });
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
        let page_list = if verdicts.is_empty() {
            None
        } else {
            let bytes = encode_page_list(
                verdicts
                    .iter()
                    .map(|page| (&page.path[..], page.block, page.torn)),
            );
            let sealer =
                Sealer::new(self.options.compress_level).map_err(|source| Error::Pack {
                    path: "the page list".to_owned(),
                    source,
                })?;
            let mut store = NodeStore {
                index: &known.index,
                packer,
                namer: Namer::plain(),
                sealer,
            };
            let id = store.namer.name(BlobKind::Node, &bytes);
            store.store(id, &bytes)?;
            Some(id)
        };
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

    /// Checks that nothing the backup may refer to was removed, then decides the register.
    fn commit(
        &self,
        session: &Session<'_>,
        chosen: &Chosen,
        copied: Copied,
        usable: &BTreeSet<PackId>,
    ) -> Result<Manifest> {
        let repository = session.repository;
        let mut present = BTreeSet::new();
        for class in [PackClass::Data, PackClass::Meta] {
            present.extend(
                packs::list(repository, class)
                    .map_err(Error::Repository)?
                    .iter()
                    .map(|pack| pack.pack),
            );
        }
        let dead = gc_log::read(repository).map_err(Error::Repository)?.dead;
        if let Some(gone) = usable
            .iter()
            .find(|pack| !present.contains(pack) || dead.contains(pack))
        {
            return Err(Error::PackVanished {
                pack: gone.to_string(),
            });
        }
        let stat = copied.stat;
        let manifest = self.manifest(
            session,
            chosen,
            copied.assembled,
            &copied.window,
            copied.pg_control,
            {
                let (page_list, bad, torn) =
                    (copied.page_list, copied.bad_pages, copied.torn_pages);
                (page_list, bad, torn)
            },
        );
        let register = Register::Committed(Box::new(manifest.clone()));
        let (stanza, label) = (&self.options.stanza, &chosen.label);
        match snapshot::decide(repository, stanza, label, session.run, &register)
            .map_err(Error::Repository)?
        {
            Decision::Decided => {}
            Decision::AlreadyDecided(_) => {
                return Err(Error::Fenced {
                    label: label.clone(),
                });
            }
        }
        if let Err(error) = stat.finish() {
            self.monitor.problem(&Problem {
                object: label.clone(),
                message: format!("no stat record: {error}"),
            });
        }
        Ok(manifest)
    }

    fn manifest(
        &self,
        session: &Session<'_>,
        chosen: &Chosen,
        assembled: Assembled,
        window: &Window,
        pg_control: ControlFile,
        (page_list, bad_pages, torn_pages): (Option<ChunkId>, u64, u64),
    ) -> Manifest {
        let (options, control) = (self.options, self.control);
        Manifest {
            label: chosen.label.clone(),
            backup_type: chosen.backup_type,
            prior: chosen
                .prior
                .as_ref()
                .map(|prior| prior.manifest.label.clone()),
            run: session.run,
            nonce: session.run.0,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: options.host.clone(),
            stanza: options.stanza.clone(),
            epoch: self.epoch.n,
            system_id: control.system_id,
            version: control.version,
            catalog_version: control.catalog_version,
            page_bytes: control.page_bytes,
            segment_blocks: control.segment_blocks,
            wal_segment_bytes: control.wal_segment_bytes,
            checksums: control.checksums,
            wal_level: control.wal_level.to_string(),
            online: window.online(),
            start_ms: options.now_ms,
            stop_ms: window.stop_ms,
            start_lsn: window.start_lsn,
            stop_lsn: window.stop_lsn,
            timeline: window.timeline,
            stop_timeline: window.timeline,
            wal_start: window.wal_start(control.wal_segment_bytes),
            wal_stop: window.wal_stop(control.wal_segment_bytes),
            databases: window.databases.clone(),
            tablespaces: window.tablespaces.clone(),
            root: assembled.root,
            sums: Sums {
                files: assembled.files,
                file_bytes: assembled.sums.file_bytes,
                read_bytes: self.tally.get(Counter::ReadBytes),
                new_bytes: self.tally.get(Counter::NewBytes),
                stored_bytes: self.tally.get(Counter::StoredBytes),
                tree_stored_bytes: assembled.sums.stored_bytes,
                bad_pages,
                torn_pages,
            },
            options: vec![
                (
                    "compress-level".to_owned(),
                    options.compress_level.to_string(),
                ),
                ("delta".to_owned(), options.delta.to_string()),
            ],
            pg_control: pg_control.bytes,
            pg_control_mode: mode_of_control(&options.pgdata),
            backup_label: window.backup_label.clone(),
            tablespace_map: window.tablespace_map.clone(),
            page_list,
        }
    }
}

/// The permission bits of the control file; PostgreSQL's own where they cannot be read.
fn mode_of_control(pgdata: &Path) -> u32 {
    let metadata = std::fs::metadata(pgdata.join(control_file::PATH));
    metadata.map_or(0o600, |metadata| metadata.permissions().mode() & 0o7777)
}

/// The packs that this run may refer to: those listed when it began, but for what is condemned or dead.
fn usable_packs(known: &Known, unusable: &BTreeSet<PackId>) -> BTreeSet<PackId> {
    let suspect: BTreeSet<&PackId> = known.suspects.iter().collect();
    let listed = known.listed.iter().map(|(_, pack, _)| *pack);
    listed
        .filter(|pack| !unusable.contains(pack) && !suspect.contains(pack))
        .collect()
}
