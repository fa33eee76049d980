//! `archive-push` and `archive-get`: what PostgreSQL calls with `%p` and `%f`.
//!
//! Promises: a relative path is PostgreSQL's, taken from the data directory; elsewhere it is refused.

use std::env;
use std::path::{Path, PathBuf};

use pgcairn_engine::actions::{self, ArchiveOptions, Got, Pushed};

use super::{compress_level, open_repository, open_storage, stanza, threads};
use crate::error::Error;
use crate::exit;
use crate::log::Log;
use crate::settings::Settings;

pub(super) fn push(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let [path] = settings.parameters.as_slice() else {
        return Err(Error::ParameterMissing {
            what: "WAL segment to push",
        });
    };
    let segment = resolve(settings, path)?;
    let name = segment
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let pushed = actions::archive_push(&open_storage(settings)?, &options(settings), &segment)?;
    match pushed {
        Pushed::Stored => log.info(&format!("pushed WAL file '{name}' to the archive")),
        Pushed::AlreadyThere => log.warn(&format!(
            "WAL file '{name}' already exists in the repo1 archive with the same checksum\nHINT: this is valid in \
             some recovery scenarios but may also indicate a problem."
        )),
    }
    Ok(0)
}

pub(super) fn get(settings: &Settings, log: &Log) -> Result<u8, Error> {
    let [name, path] = settings.parameters.as_slice() else {
        return Err(Error::ParameterMissing {
            what: "WAL segment to get",
        });
    };
    let destination = resolve(settings, path)?;
    let repository = open_repository(settings)?;
    match actions::archive_get(&repository, &options(settings), name, &destination)? {
        Got::Fetched => {
            log.info(&format!("found {name} in the repo1 archive"));
            Ok(0)
        }
        Got::NotThere => {
            log.info(&format!("unable to find {name} in the archive"));
            Ok(exit::NOT_THERE)
        }
    }
}

fn options(settings: &Settings) -> ArchiveOptions {
    ArchiveOptions {
        stanza: stanza(settings).to_owned(),
        pgdata: settings.path("pg1-path"),
        cache: settings.path("cache-path"),
        compress_level: compress_level(settings),
        threads: threads(settings),
        header_check: settings.flag("archive-header-check"),
        timeout: settings.duration("archive-timeout"),
    }
}

fn resolve(settings: &Settings, path: &str) -> Result<PathBuf, Error> {
    if Path::new(path).is_absolute() {
        return Ok(PathBuf::from(path));
    }
    let (current, pgdata) = (
        env::current_dir().map_err(|source| Error::WorkingDirectory { source })?,
        settings.path("pg1-path"),
    );
    if !same_directory(&current, &pgdata) {
        return Err(Error::OtherDirectory { current, pgdata });
    }
    Ok(current.join(path))
}

/// Whether two texts name the same directory; one that does not exist is compared by its text.
fn same_directory(one: &Path, other: &Path) -> bool {
    let resolve = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    resolve(one) == resolve(other)
}
