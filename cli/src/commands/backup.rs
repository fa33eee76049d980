//! `backup`: one backup of the cluster, full, diff or incr; from the primary, or from a standby if that is asked for.

use pgcairn_engine::actions::{self, BackupOptions, CopyFrom, Standby};
use pgcairn_engine::monitor::Tally;
use pgcairn_engine::repository::snapshot::BackupType;

use super::{clusters, compress_level, host, repositories, stanza, take_lock, tell, threads};
use crate::clock;
use crate::error::Error;
use crate::log::Log;
use crate::progress::Progress;
use crate::report;
use crate::settings::Settings;

pub(super) fn run(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let _lock = take_lock(settings, "backup")?;
    let repository = repositories::open(settings, repositories::first(settings, log)?)?;
    let (tally, progress) = (Tally::default(), Progress::new(log));
    let mut options = options(settings);
    let summary = if settings.flag("online") {
        let mut roles = actions::find_roles(clusters(settings)?, copy_from(settings), &progress)?;
        options.pgdata = roles.primary.pgdata;
        let primary = roles.primary.server.as_mut();
        match &mut roles.standby {
            None => actions::backup(&repository, Some(primary), &options, &tally, &progress)?,
            Some(member) => {
                let standby = Standby {
                    server: member.server.as_mut(),
                    pgdata: member.pgdata.clone(),
                };
                let (repository, monitor) = (&repository, &progress);
                actions::backup_from_standby(
                    repository, primary, standby, &options, &tally, monitor,
                )?
            }
        }
    } else {
        if copy_from(settings) != CopyFrom::Primary {
            log.warn(
                "option backup-standby is enabled but backup is offline - backup will be performed from pg1-path",
            );
        }
        actions::backup(&repository, None, &options, &tally, &progress)?
    };
    tell(
        settings,
        &progress,
        &report::backup_lines(&summary),
        &report::backup_json(&summary),
    )
}

fn copy_from(settings: &Settings) -> CopyFrom {
    match settings.text("backup-standby") {
        Some("y") => CopyFrom::Standby,
        Some("prefer") => CopyFrom::PreferStandby,
        _ => CopyFrom::Primary,
    }
}

fn options(settings: &Settings) -> BackupOptions {
    BackupOptions {
        stanza: stanza(settings).to_owned(),
        pgdata: settings.path("pg1-path"),
        backup_type: match settings.text("type") {
            Some("full") => BackupType::Full,
            Some("diff") => BackupType::Diff,
            _ => BackupType::Incr,
        },
        cache: settings.path("cache-path"),
        threads: threads(settings),
        compress_level: compress_level(settings),
        start_fast: settings.flag("start-fast"),
        force: settings.flag("force"),
        checksum_page: settings.flag_if_set("checksum-page"),
        delta: settings.flag("delta"),
        archive_check: settings.flag("archive-check"),
        archive_timeout: settings.duration("archive-timeout"),
        archive_mode_check: settings.flag("archive-mode-check"),
        exclude: settings
            .list("exclude")
            .iter()
            .map(|path| path.clone().into_bytes())
            .collect(),
        host: host(),
        now_ms: clock::now_ms(),
        stamp: clock::label_time,
    }
}
