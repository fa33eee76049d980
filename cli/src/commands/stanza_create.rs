//! `stanza-create`: make the repository if there is none, and the stanza in it.

use pgcairn_engine::actions::{self, StanzaCreateOptions};
use pgcairn_engine::cluster::server::Server;

use super::location::location;
use super::{connect, stanza, take_lock, tell};
use crate::error::Error;
use crate::log::Log;
use crate::progress::Progress;
use crate::report;
use crate::settings::Settings;

pub(super) fn run(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let _lock = take_lock(settings, "backup")?;
    let progress = Progress::new(log);
    let mut server = connect(settings)?;
    let options = StanzaCreateOptions {
        stanza: stanza(settings).to_owned(),
        pgdata: settings.path("pg1-path"),
    };
    let storage = actions::create_storage(&location(settings)?)?;
    let server = server.as_mut().map(|server| server as &mut dyn Server);
    let summary = actions::stanza_create(storage, &options, server, &progress)?;
    let name = stanza(settings);
    let (lines, json) = (
        report::stanza_create_lines(name, &summary),
        report::stanza_create_json(name, &summary),
    );
    tell(settings, &progress, &lines, &json)
}
