//! `backup`: one backup of the cluster, full, diff or incr.

use pgcairn_engine::actions::{self, BackupOptions};
use pgcairn_engine::cluster::server::Server;
use pgcairn_engine::monitor::Tally;
use pgcairn_engine::repository::snapshot::BackupType;

use super::{compress_level, connect, host, open_repository, stanza, take_lock, tell, threads};
use crate::clock;
use crate::error::Error;
use crate::log::Log;
use crate::progress::Progress;
use crate::report;
use crate::settings::Settings;

pub(super) fn run(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let _lock = take_lock(settings, "backup")?;
    let repository = open_repository(settings)?;
    let mut server = connect(settings)?;
    let (tally, progress) = (Tally::default(), Progress::new(log));
    let server = server.as_mut().map(|server| server as &mut dyn Server);
    let summary = actions::backup(&repository, server, &options(settings), &tally, &progress)?;
    tell(
        settings,
        &progress,
        &report::backup_lines(&summary),
        &report::backup_json(&summary),
    )
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
