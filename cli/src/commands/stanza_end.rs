//! `stanza-delete`: give a stanza up.
//!
//! Promises, as pgBackRest has it: only after `stop`, so that nothing on this host archives to it meanwhile.

use pgcairn_engine::actions::{self, StanzaDeleteOptions};

use super::{host, repositories, stanza, take_lock, tell};
use crate::clock;
use crate::error::Error;
use crate::lock;
use crate::log::Log;
use crate::progress::Progress;
use crate::report;
use crate::settings::Settings;

pub(super) fn run(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let name = stanza(settings);
    if lock::stopped(&settings.path("lock-path"), name).is_none() {
        return Err(Error::NotStopped {
            stanza: name.to_owned(),
        });
    }
    let [number] = repositories::numbers(settings)?[..] else {
        return Err(Error::OptionMissing {
            name: "repo".to_owned(),
            command: settings.command,
        });
    };
    let _lock = take_lock(settings, "backup")?;
    let progress = Progress::new(log);
    let options = StanzaDeleteOptions {
        stanza: name.to_owned(),
        pgdata: settings.path("pg1-path"),
        force: settings.flag("force"),
        host: host(),
        now_ms: clock::now_ms(),
    };
    let summary = actions::stanza_delete(&repositories::open(settings, number)?, &options)?;
    let lines = [format!(
        "stanza '{name}' deleted, {} backups forgotten",
        summary.backups
    )];
    let json = report::stanza_delete_json(name, summary);
    tell(settings, &progress, &lines, &json)
}
