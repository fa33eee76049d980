//! `start` and `stop`: whether processes of a stanza may run on this host.
//!
//! Promises: what is stopped refuses to begin, archive commands too; what runs already is left alone. A restore, `info`
//! and `stanza-delete` are never refused.

use super::stanza;
use crate::error::Error;
use crate::lock;
use crate::log::Log;
use crate::options::Command;
use crate::settings::Settings;

pub(super) fn stop(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let name = settings.text("stanza");
    if lock::stop(&settings.path("lock-path"), name)? {
        log.warn(&format!("stop file already exists for {}", told(name)));
    }
    Ok(0)
}

pub(super) fn start(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let name = settings.text("stanza");
    if !lock::start(&settings.path("lock-path"), name)? {
        log.warn(&format!("stop file does not exist for {}", told(name)));
    }
    Ok(0)
}

/// Refuses a command that must not run while its stanza is stopped.
pub(super) fn refuse_stopped(settings: &Settings) -> Result<(), Error> {
    let obeys = matches!(
        settings.command,
        Command::ArchiveGet
            | Command::ArchivePush
            | Command::Backup
            | Command::Check
            | Command::StanzaCreate
            | Command::StanzaUpgrade
    );
    if !obeys {
        return Ok(());
    }
    match lock::stopped(&settings.path("lock-path"), stanza(settings)) {
        Some(what) => Err(Error::Stopped { what }),
        None => Ok(()),
    }
}

fn told(stanza: Option<&str>) -> String {
    stanza.map_or_else(
        || "all stanzas".to_owned(),
        |name| format!("stanza '{name}'"),
    )
}
