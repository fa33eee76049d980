//! `stanza-create`: make the repository if there is none, and the stanza in it. `stanza-upgrade`: the stanza is another
//! cluster, or another version of it, from now on.

use pgcairn_engine::actions::{self, StanzaCreateOptions, StanzaCreateSummary};
use pgcairn_engine::cluster::server::Server;

use super::{connect, location, open_repository, stanza, take_lock, tell};
use crate::error::Error;
use crate::log::Log;
use crate::progress::Progress;
use crate::report;
use crate::settings::Settings;

pub(super) fn create(settings: &Settings, log: &Log) -> Result<u8, Error> {
    make(settings, log, |server, progress| {
        let storage = actions::create_storage(&location(settings)?)?;
        Ok(actions::stanza_create(
            storage,
            &options(settings),
            server,
            progress,
        )?)
    })
}

pub(super) fn upgrade(settings: &Settings, log: &Log) -> Result<u8, Error> {
    make(settings, log, |server, _| {
        let repository = open_repository(settings)?;
        Ok(actions::stanza_upgrade(
            &repository,
            &options(settings),
            server,
        )?)
    })
}

fn make(
    settings: &Settings,
    log: &Log,
    action: impl FnOnce(Option<&mut dyn Server>, &Progress<'_>) -> Result<StanzaCreateSummary, Error>,
) -> Result<u8, Error> {
    let _lock = take_lock(settings, "backup")?;
    let progress = Progress::new(log);
    let mut server = connect(settings)?;
    let server = server.as_mut().map(|server| server as &mut dyn Server);
    let summary = action(server, &progress)?;
    let name = stanza(settings);
    let (lines, json) = (
        report::stanza_create_lines(name, &summary),
        report::stanza_create_json(name, &summary),
    );
    tell(settings, &progress, &lines, &json)
}

fn options(settings: &Settings) -> StanzaCreateOptions {
    StanzaCreateOptions {
        stanza: stanza(settings).to_owned(),
        pgdata: settings.path("pg1-path"),
    }
}
