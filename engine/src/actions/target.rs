//! The directory that is restored into: looked at before anything is touched, claimed by a marker, released at the end.
//!
//! Promises: a live cluster, a foreign one, and a directory that is no cluster are refused before anything is written;
//! from the claim to the release there is no `global/pg_control`, so nothing starts by accident; a marker that outlived
//! its restore gives no leave to write over a cluster that was used since.

use std::fs::{self, DirEntry, File};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::actions::error::{Error, Result};
use crate::actions::places::Places;
use crate::actions::restore::RestoreOptions;
use crate::cluster::control_file;
use crate::cluster::owner;
use crate::cluster::root::{Access, Kind, Root};
use crate::cluster::running::refuse_running;
use crate::ids::RepositoryId;
use crate::repository::snapshot::Manifest;

/// The marker's name in the data directory.
pub(super) const MARKER: &[u8] = b"pgcairn.restore";
/// The marker, for paths.
const MARKER_FILE: &str = "pgcairn.restore";
/// What the marker is called until it is complete.
const MARKER_TEMPORARY: &[u8] = b"pgcairn.restore.tmp";
/// The folder of the control file.
const GLOBAL: &[u8] = b"global";
/// The control file, and what it is called until it is complete.
const CONTROL: &[u8] = b"global/pg_control";
const CONTROL_TEMPORARY: &[u8] = b"global/pg_control.pgcairn.tmp";

/// What a restore leaves in its target while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    repository: String,
    backup: String,
    system_id: String,
}

impl Marker {
    /// The marker of a backup's restore.
    pub(super) fn of(repository: RepositoryId, manifest: &Manifest) -> Self {
        Marker {
            repository: repository.to_string(),
            backup: manifest.label.clone(),
            system_id: manifest.system_id.to_string(),
        }
    }

    fn print(&self) -> String {
        let Marker {
            repository,
            backup,
            system_id,
        } = self;
        format!(
            "A restore by pgcairn is under way, or was interrupted: run it again.\n\
             repository={repository}\nbackup={backup}\nsystem-id={system_id}\n"
        )
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().to_owned()
        };
        Marker {
            repository: field("repository"),
            backup: field("backup"),
            system_id: field("system-id"),
        }
    }
}

/// What the target was found to be.
pub(super) struct State {
    /// What the user should know of it.
    pub(super) notes: Vec<String>,
}

/// Looks at the target and refuses what must not be written over; makes the directory if it is not there. `control` is
/// what `global/pg_control` will be.
pub(super) fn inspect(
    pgdata: &Path,
    options: &RestoreOptions,
    marker: &Marker,
    control: &[u8],
) -> Result<State> {
    let failed = |source| Error::WriteFile {
        path: pgdata.to_owned(),
        source,
    };
    let mut notes = Vec::new();
    let listing = match fs::read_dir(pgdata) {
        Ok(listing) => listing,
        Err(error) if error.kind() == IoKind::NotFound && !pgdata.is_symlink() => {
            fs::create_dir(pgdata).map_err(failed)?;
            fs::set_permissions(pgdata, fs::Permissions::from_mode(0o700)).map_err(failed)?;
            return Ok(State { notes });
        }
        Err(error) if error.kind() == IoKind::NotADirectory => {
            return Err(Error::TargetMissing(pgdata.to_owned()));
        }
        Err(error) => return Err(failed(error)),
    };
    refuse_running(pgdata).map_err(Error::Cluster)?;
    // A restore that was killed before its marker was in place has done nothing else.
    let counts = |entry: &DirEntry| entry.file_name().as_encoded_bytes() != MARKER_TEMPORARY;
    if !listing.flatten().any(|entry| counts(&entry)) {
        return Ok(State { notes });
    }
    let foreign = |found: String| Error::TargetForeign {
        path: pgdata.to_owned(),
        found,
        expected: format!("system id {}", marker.system_id),
    };
    if let Some(found) = read_marker(pgdata)?.filter(|_| !was_used(pgdata, control)) {
        if found.system_id != marker.system_id && !options.force {
            return Err(foreign(format!(
                "an interrupted restore of system id {}",
                found.system_id
            )));
        }
        notes.push(format!(
            "continuing a restore of {} that was interrupted",
            found.backup
        ));
        return Ok(State { notes });
    }
    if !options.delta && !options.force {
        return Err(Error::TargetNotEmpty(pgdata.to_owned()));
    }
    if !pgdata.join("PG_VERSION").is_file() {
        return Err(Error::TargetNotACluster(pgdata.to_owned()));
    }
    if let Ok(control) = control_file::read(pgdata) {
        if control.system_id.to_string() != marker.system_id && !options.force {
            return Err(foreign(format!(
                "a cluster with system id {}",
                control.system_id
            )));
        }
    } else {
        notes.push(format!(
            "{} has no readable global/pg_control",
            pgdata.display()
        ));
    }
    Ok(State { notes })
}

/// Whether the directory has a control file that this restore would not write. Beside a marker: the restore was killed
/// when it was done but for the marker, and a server has run there since; or it was killed before it had begun.
fn was_used(pgdata: &Path, control: &[u8]) -> bool {
    fs::read(pgdata.join(control_file::PATH)).is_ok_and(|found| found != control)
}

fn read_marker(pgdata: &Path) -> Result<Option<Marker>> {
    let path = pgdata.join(MARKER_FILE);
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(4096).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(Marker::parse(&text))),
        Err(error) if error.kind() == IoKind::NotFound => Ok(None),
        Err(source) => Err(Error::ReadFile { path, source }),
    }
}

/// Puts the marker down, durably, and then takes `global/pg_control` away, durably. A link in its way is taken away
/// itself: what it points to may be another cluster's.
pub(super) fn claim(places: &Places, marker: &Marker) -> Result<()> {
    let root = places.data();
    root.remove(MARKER_TEMPORARY).map_err(Error::Cluster)?;
    write_file(root, MARKER_TEMPORARY, marker.print().as_bytes(), 0o600)?;
    root.rename(MARKER_TEMPORARY, MARKER)
        .and_then(|()| root.sync_dir(b""))
        .map_err(Error::Cluster)?;
    let global = root.stat(GLOBAL).map_err(Error::Cluster)?;
    match global {
        Some(global) if global.kind == Kind::Link => root
            .remove(GLOBAL)
            .and_then(|()| root.sync_dir(b""))
            .map_err(Error::Cluster)?,
        // Its owner may have taken the right to write in it from himself.
        Some(global) if global.kind == Kind::Directory && global.mode & 0o700 != 0o700 => {
            root.chmod(GLOBAL, 0o700).map_err(Error::Cluster)?;
        }
        _ => {}
    }
    let (control, folder) = (places.resolve(CONTROL), places.resolve(GLOBAL));
    control
        .root
        .remove(&control.relative)
        .map_err(Error::Cluster)?;
    let listed = folder.relative.is_empty()
        || folder
            .root
            .stat(&folder.relative)
            .map_err(Error::Cluster)?
            .is_some_and(|facts| facts.kind == Kind::Directory);
    if listed {
        folder
            .root
            .sync_dir(&folder.relative)
            .map_err(Error::Cluster)?;
    }
    Ok(())
}

/// Makes everything below `paths` durable: whole file systems at once, which costs less than file by file.
pub(super) fn sync<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<()> {
    for path in paths {
        let failed = |source| Error::WriteFile {
            path: path.to_owned(),
            source,
        };
        let directory = File::open(path).map_err(failed)?;
        rustix::fs::syncfs(&directory).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// Writes `pg_control`, gives it its name, and removes the marker: from here on the cluster can be started.
pub(super) fn release(places: &Places, control: &[u8], mode: u32) -> Result<()> {
    let (temporary, folder) = (places.resolve(CONTROL_TEMPORARY), places.resolve(GLOBAL));
    write_file(temporary.root, &temporary.relative, control, mode)?;
    temporary
        .root
        .rename(&temporary.relative, &places.resolve(CONTROL).relative)
        .and_then(|()| folder.root.sync_dir(&folder.relative))
        .map_err(Error::Cluster)?;
    let root = places.data();
    root.remove(MARKER)
        .and_then(|()| root.sync_dir(b""))
        .map_err(Error::Cluster)
}

/// Writes a small file of the data directory, durably; it belongs to whom the data directory belongs to.
pub(super) fn write_file(root: &Root, path: &[u8], bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = root
        .open_file(path, Access::Create)
        .map_err(Error::Cluster)?;
    let written = file
        .set_len(0)
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all());
    written.map_err(|source| Error::WriteFile {
        path: root.location(path),
        source,
    })?;
    root.chmod(path, mode).map_err(Error::Cluster)?;
    match root.stat(b"").map_err(Error::Cluster)? {
        Some(top) if owner::is_root() => root.chown(path, top.uid, top.gid).map_err(Error::Cluster),
        _ => Ok(()),
    }
}
