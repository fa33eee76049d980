//! Where the paths of a backup go: the data directory, and what its tablespaces and links point to.
//!
//! Promises: nothing is written outside the data directory but where the user said, or where the backup came from if
//! that is absent, empty, or what the target's own link points to.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::actions::error::{Error, Result};
use crate::actions::restore::RestoreOptions;
use crate::cluster::root::Root;
use crate::repository::snapshot::{Manifest, Tablespace};
use crate::repository::tree::{Entry, EntryKind};

/// The folder of tablespace links.
const TABLESPACES: &[u8] = b"pg_tblspc/";

/// A part of the backup's tree, and the directory it goes to.
struct Place {
    /// The tree path from which on it goes there; empty for the data directory.
    prefix: Vec<u8>,
    /// What stands for the prefix itself below the root: empty for a directory, a name for a linked file.
    base: Vec<u8>,
    root: Root,
    path: PathBuf,
    /// Other clusters may keep things in it: only what the backup names is touched at its first level.
    shared: bool,
}

/// All places of one restore; the data directory first.
pub(super) struct Places(Vec<Place>);

/// A tree path's place on disk.
pub(super) struct Resolved<'a> {
    pub(super) root: &'a Root,
    pub(super) relative: Vec<u8>,
    pub(super) absolute: PathBuf,
    /// It is the top of a directory that others share.
    pub(super) shared_top: bool,
}

impl Places {
    /// The data directory alone.
    pub(super) fn new(pgdata: &Path) -> Result<Self> {
        let root = Root::open(pgdata).map_err(Error::Cluster)?;
        Ok(Places(vec![Place {
            prefix: Vec::new(),
            base: Vec::new(),
            root,
            path: pgdata.to_owned(),
            shared: false,
        }]))
    }

    /// The data directory.
    pub(super) fn data(&self) -> &Root {
        &self.0[0].root
    }

    /// All directories that are written to.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|place| place.path.as_path())
    }

    /// Where `path` goes; a linked path itself goes behind its link.
    pub(super) fn resolve(&self, path: &[u8]) -> Resolved<'_> {
        self.among(path, |prefix| is_within(path, prefix))
    }

    /// Where the link at `path` itself goes.
    pub(super) fn resolve_link(&self, path: &[u8]) -> Resolved<'_> {
        self.among(path, |prefix| prefix != path && is_within(path, prefix))
    }

    fn among(&self, path: &[u8], fits: impl Fn(&[u8]) -> bool) -> Resolved<'_> {
        let fitting = self.0.iter().filter(|place| fits(&place.prefix));
        let place = fitting
            .max_by_key(|place| place.prefix.len())
            .unwrap_or(&self.0[0]);
        let below = path.get(place.prefix.len()..).unwrap_or_default();
        let below = below.strip_prefix(b"/").unwrap_or(below);
        let mut relative = place.base.clone();
        if !relative.is_empty() && !below.is_empty() {
            relative.push(b'/');
        }
        relative.extend_from_slice(below);
        let absolute = place
            .path
            .join(Path::new(std::ffi::OsStr::from_bytes(&relative)));
        let shared_top = place.shared && relative.is_empty();
        Resolved {
            root: &place.root,
            relative,
            absolute,
            shared_top,
        }
    }

    /// The path that the link at `path` must have, if it is restored as a link.
    pub(super) fn link_target(&self, path: &[u8]) -> Option<PathBuf> {
        let place = self.0.iter().skip(1).find(|place| place.prefix == path)?;
        // Joining nothing would leave a slash at the end.
        Some(match place.base.as_slice() {
            [] => place.path.clone(),
            name => place
                .path
                .join(Path::new(std::ffi::OsStr::from_bytes(name))),
        })
    }

    fn add(&mut self, entry: &Entry, destination: &Path, shared: bool) -> Result<()> {
        let make = |path: &Path| {
            fs::create_dir_all(path).map_err(|source| Error::WriteFile {
                path: path.to_owned(),
                source,
            })
        };
        let (path, base) = match entry.kind {
            EntryKind::File => {
                let folder = destination.parent().unwrap_or(Path::new("/"));
                let name = destination.file_name().map(|name| name.as_bytes().to_vec());
                (folder.to_owned(), name.unwrap_or_default())
            }
            EntryKind::Directory | EntryKind::Link => (destination.to_owned(), Vec::new()),
        };
        make(&path)?;
        let root = Root::open(&path).map_err(Error::Cluster)?;
        self.0.push(Place {
            prefix: entry.path.clone(),
            base,
            root,
            path,
            shared,
        });
        Ok(())
    }
}

fn is_within(path: &[u8], prefix: &[u8]) -> bool {
    prefix.is_empty()
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Decides where each link of the backup goes; `links` are its followed links, in path order.
pub(super) fn place_links(
    places: &mut Places,
    links: &[Entry],
    manifest: &Manifest,
    options: &RestoreOptions,
    note: &mut dyn FnMut(String, String),
) -> Result<()> {
    check_maps(links, manifest, options)?;
    for link in links {
        match link.path.strip_prefix(TABLESPACES) {
            Some(oid) => {
                let oid = String::from_utf8_lossy(oid).into_owned();
                let destination = tablespace_destination(places, link, &oid, manifest, options)?;
                places.add(link, &destination, true)?;
            }
            None => {
                if let Some(destination) = link_destination(places, link, options, note)? {
                    places.add(link, &destination, false)?;
                }
            }
        }
    }
    Ok(())
}

/// Every mapping must name something that the backup has.
fn check_maps(links: &[Entry], manifest: &Manifest, options: &RestoreOptions) -> Result<()> {
    let known = |wanted: &str| {
        manifest
            .tablespaces
            .iter()
            .any(|space| names(space, wanted))
            || links
                .iter()
                .any(|link| link.path.strip_prefix(TABLESPACES) == Some(wanted.as_bytes()))
    };
    if let Some((unknown, _)) = options
        .tablespace_map
        .iter()
        .find(|(wanted, _)| !known(wanted))
    {
        return Err(Error::UnknownTablespace(unknown.clone()));
    }
    let linked = |wanted: &str| links.iter().any(|link| link.path == wanted.as_bytes());
    match options.link_map.iter().find(|(wanted, _)| !linked(wanted)) {
        Some((unknown, _)) => Err(Error::UnknownLink(unknown.clone())),
        None => Ok(()),
    }
}

fn names(tablespace: &Tablespace, wanted: &str) -> bool {
    tablespace.name == wanted || tablespace.oid.to_string() == wanted
}

fn tablespace_destination(
    places: &Places,
    link: &Entry,
    oid: &str,
    manifest: &Manifest,
    options: &RestoreOptions,
) -> Result<PathBuf> {
    let tablespace = manifest
        .tablespaces
        .iter()
        .find(|space| space.oid.to_string() == oid);
    let name = tablespace.map_or(oid, |space| space.name.as_str());
    let is_ours =
        |wanted: &str| wanted == oid || tablespace.is_some_and(|space| names(space, wanted));
    let mapped = options
        .tablespace_map
        .iter()
        .find(|(wanted, _)| is_ours(wanted))
        .map(|(_, path)| path.clone());
    let mapped = mapped.or_else(|| {
        options
            .tablespace_map_all
            .as_ref()
            .map(|all| all.join(name))
    });
    let given = mapped.is_some();
    let path = mapped.unwrap_or_else(|| PathBuf::from(std::ffi::OsStr::from_bytes(&link.target)));
    let refuse = |why: String| Error::TablespacePath {
        tablespace: format!("{oid} ({name})"),
        path: path.clone(),
        why,
    };
    if !path.is_absolute() {
        return Err(refuse("the path is not absolute".to_owned()));
    }
    let version_folder = path.join(format!(
        "PG_{}_{}",
        manifest.version, manifest.catalog_version
    ));
    let own = own_link(places, &link.path).is_some_and(|own| own == path);
    let free = is_absent_or_empty(&version_folder);
    if own || free || (given && (options.delta || options.force)) {
        return Ok(path);
    }
    let hint = if given {
        "--delta or --force"
    } else {
        "--tablespace-map"
    };
    Err(refuse(format!(
        "it is in use and is not this cluster's; say where it goes with {hint}"
    )))
}

/// Where a link that is no tablespace goes; `None`: it becomes a plain file or directory.
fn link_destination(
    places: &Places,
    link: &Entry,
    options: &RestoreOptions,
    note: &mut dyn FnMut(String, String),
) -> Result<Option<PathBuf>> {
    let name = String::from_utf8_lossy(&link.path).into_owned();
    let mapped = options
        .link_map
        .iter()
        .find(|(wanted, _)| *wanted == name)
        .map(|(_, path)| path.clone());
    let given = mapped.is_some();
    let recorded = PathBuf::from(std::ffi::OsStr::from_bytes(&link.target));
    let path = match mapped {
        Some(path) => path,
        None if options.link_all => recorded,
        None => {
            let message = format!(
                "was a link to {}, is restored as a plain file or directory",
                recorded.display()
            );
            note(name, message);
            return Ok(None);
        }
    };
    let refuse = |why: &str| Error::LinkPath {
        link: name.clone(),
        path: path.clone(),
        why: why.to_owned(),
    };
    if !path.is_absolute() {
        return Err(refuse("the path is not absolute"));
    }
    let own = own_link(places, &link.path).is_some_and(|own| own == path);
    if own || is_absent_or_empty(&path) || (given && (options.delta || options.force)) {
        return Ok(Some(path));
    }
    Err(refuse(
        "it is in use and is not this cluster's; say where it goes with --link-map",
    ))
}

/// What the link at `path` in the data directory points to now.
fn own_link(places: &Places, path: &[u8]) -> Option<PathBuf> {
    fs::read_link(places.resolve_link(path).absolute).ok()
}

fn is_absent_or_empty(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut listing) => listing.next().is_none(),
        Err(_) => fs::symlink_metadata(path).is_err(),
    }
}
