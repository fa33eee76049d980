//! `stanza-create`: make the repository if there is none, and the stanza in it. `stanza-upgrade`: the stanza is another
//! cluster, or another version of it, from now on.

use pgcairn_engine::actions::{self, StanzaCreateOptions, StanzaCreateSummary};
use pgcairn_engine::cluster::server::Server;
use serde_json::Value;

use super::location::location;
use super::{connect, repositories, stanza, take_lock, tell};
use crate::error::Error;
use crate::log::Log;
use crate::progress::Progress;
use crate::report;
use crate::settings::Settings;

pub(super) fn create(settings: &Settings, log: &Log) -> Result<u8, Error> {
    make(settings, log, |number, server, progress| {
        let storage = actions::create_storage(&location(settings, number)?)?;
        Ok(actions::stanza_create(
            storage,
            &options(settings),
            server,
            progress,
        )?)
    })
}

pub(super) fn upgrade(settings: &Settings, log: &Log) -> Result<u8, Error> {
    make(settings, log, |number, server, _| {
        let repository = repositories::open(settings, number)?;
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
    action: impl Fn(u32, Option<&mut dyn Server>, &Progress<'_>) -> Result<StanzaCreateSummary, Error>,
) -> Result<u8, Error> {
    let _lock = take_lock(settings, "backup")?;
    let progress = Progress::new(log);
    let mut server = connect(settings)?;
    let name = stanza(settings);
    let (mut lines, mut made) = (Vec::new(), Vec::new());
    for number in repositories::numbers(settings)? {
        let server = server.as_mut().map(|server| server as &mut dyn Server);
        let summary = action(number, server, &progress)?;
        lines.push(report::stanza_create_line(name, number, &summary));
        made.push(report::stanza_create_json(name, number, &summary));
    }
    tell(settings, &progress, &lines, &Value::Array(made))
}

fn options(settings: &Settings) -> StanzaCreateOptions {
    StanzaCreateOptions {
        stanza: stanza(settings).to_owned(),
        pgdata: settings.path("pg1-path"),
    }
}
