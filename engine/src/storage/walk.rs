//! The files beneath a directory as objects in key order.
//!
//! **Promises**: the order of keys as plain text, across directories; only directories that can hold a match are read;
//! memory holds one directory's names per depth, and as many objects as were asked for. **Refuses**: to leave the
//! directory, whatever the prefix; what is below `.tmp/`, what is no plain file, and names that are no keys are passed
//! over.

use std::fs;
use std::io;
use std::path::Path;

use crate::storage::local::{is_absence, is_temporary};
use crate::storage::{Key, Object, unix_ms};

/// A walk over the objects in key order. `/` is a byte like any other in that order (`a-b` < `a/b` < `a0`), so a
/// directory sorts under its name with a `/` behind it, among its neighbours' whole names.
pub(super) struct Walk<'a> {
    pub(super) root: &'a Path,
    pub(super) prefix: &'a str,
    /// Keys up to this one are passed over; no key is empty.
    pub(super) after: &'a str,
}

impl Walk<'_> {
    /// The first objects, `limit` at most. Holds one directory's names per depth.
    pub(super) fn objects(&self, limit: usize) -> io::Result<Vec<Object>> {
        let mut objects = Vec::new();
        let mut levels = vec![self.names_in(self.start())?.into_iter()];
        while objects.len() < limit
            && let Some(level) = levels.last_mut()
        {
            match level.next() {
                None => drop(levels.pop()),
                Some(directory) if directory.ends_with('/') => {
                    levels.push(self.names_in(&directory)?.into_iter());
                }
                Some(name) => objects.extend(self.object(name)?),
            }
        }
        Ok(objects)
    }

    /// The deepest directory that holds all that can match: the prefix up to its last `/`.
    fn start(&self) -> &str {
        self.prefix
            .rfind('/')
            .map_or("", |last| self.prefix.get(..=last).unwrap_or(""))
    }

    /// What may match in a directory, in key order: whole keys, those of directories with a `/` at the end.
    fn names_in(&self, directory: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        if !directory.is_empty()
            && (!is_key(directory.trim_end_matches('/')) || is_temporary(directory))
        {
            return Ok(names);
        }
        let entries = match fs::read_dir(self.root.join(directory)) {
            Err(error) if is_absence(&error) => return Ok(names),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let mut key = format!("{directory}{name}");
            if !is_key(&key) || is_temporary(&key) {
                continue;
            }
            if is_directory(&entry)? {
                key.push('/');
            }
            if self.may_match(&key) {
                names.push(key);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Whether an object, or one in a directory, matches and sorts after what is passed over.
    fn may_match(&self, name: &str) -> bool {
        let holds_after = name.ends_with('/') && self.after.starts_with(name);
        name.starts_with(self.prefix) && (name > self.after || holds_after)
    }

    /// The line of a file; none if it has just vanished or is no plain file.
    fn object(&self, name: String) -> io::Result<Option<Object>> {
        let metadata = match fs::metadata(self.root.join(&name)) {
            Err(error) if is_absence(&error) => return Ok(None),
            metadata => metadata?,
        };
        let modified_ms = unix_ms(metadata.modified()?);
        let object = |key| Object {
            key,
            bytes: metadata.len(),
            modified_ms,
        };
        Ok(if metadata.is_file() {
            Key::new(name).map(object)
        } else {
            None
        })
    }
}

/// Links are followed: an operator may have moved a part of the repository.
fn is_directory(entry: &fs::DirEntry) -> io::Result<bool> {
    let kind = match entry.file_type() {
        Err(error) if is_absence(&error) => return Ok(false),
        kind => kind?,
    };
    Ok(kind.is_dir() || (kind.is_symlink() && entry.path().is_dir()))
}

fn is_key(text: &str) -> bool {
    Key::new(text).is_some()
}
