//! The end of a backup: what it says of itself, and the decision that makes it exist.
//!
//! Promises: the register is put only after the packs that were usable when the run began were seen to be there still;
//! of a lost answer the register itself is asked; the stat record comes after the commit.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::actions::assemble::Assembled;
use crate::actions::backup::{Copied, FROM_STANDBY, Run};
use crate::actions::error::{Error, Result};
use crate::actions::known::Known;
use crate::actions::label::Chosen;
use crate::actions::online::Window;
use crate::actions::session::Session;
use crate::cluster::control_file::{self, ControlFile};
use crate::ids::{ChunkId, PackId};
use crate::monitor::{Counter, Problem};
use crate::repository::layout::PackClass;
use crate::repository::snapshot::{self, Decision, Manifest, Register, Sums};
use crate::repository::{gc_log, packs};

impl Run<'_> {
    /// Checks that nothing the backup may refer to was removed, then decides the register.
    pub(super) fn commit(
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
        let mut gc = session.gc.clone();
        gc_log::refresh(repository, &mut gc).map_err(Error::Repository)?;
        if let Some(gone) = usable
            .iter()
            .find(|pack| !present.contains(pack) || gc.dead.contains(pack))
        {
            return Err(Error::PackVanished {
                pack: gone.to_string(),
            });
        }
        let stat = copied.stat;
        let manifest = self.manifest(
            session,
            chosen,
            &copied.assembled,
            &copied.window,
            copied.pg_control,
            (copied.page_list, copied.bad_pages, copied.torn_pages),
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
        assembled: &Assembled,
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
            stop_timeline: window.stop_timeline,
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
            options: self.shaping_options(),
            pg_control: pg_control.bytes,
            pg_control_mode: mode_of_control(&options.pgdata),
            backup_label: window.backup_label.clone(),
            tablespace_map: window.tablespace_map.clone(),
            page_list,
        }
    }

    /// The options that shaped the backup, in the order of their names.
    fn shaping_options(&self) -> Vec<(String, String)> {
        let level = self.options.compress_level.to_string();
        let mut options = vec![
            ("compress-level".to_owned(), level),
            ("delta".to_owned(), self.options.delta.to_string()),
        ];
        if self.standby.is_some() {
            options.insert(0, (FROM_STANDBY.to_owned(), true.to_string()));
        }
        options
    }
}

/// The permission bits of the control file; PostgreSQL's own where they cannot be read.
fn mode_of_control(pgdata: &Path) -> u32 {
    let metadata = std::fs::metadata(pgdata.join(control_file::PATH));
    metadata.map_or(0o600, |metadata| metadata.permissions().mode() & 0o7777)
}

/// The packs that this run may refer to: those listed when it began, but for what is condemned or dead.
pub(super) fn usable_packs(known: &Known, unusable: &BTreeSet<PackId>) -> BTreeSet<PackId> {
    let suspect: BTreeSet<&PackId> = known.suspects.iter().collect();
    let listed = known.listed.iter().map(|(_, pack, _)| *pack);
    listed
        .filter(|pack| !unusable.contains(pack) && !suspect.contains(pack))
        .collect()
}
