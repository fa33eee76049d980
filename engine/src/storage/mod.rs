//! Bytes under keys: a directory, S3, memory.
//!
//! **Knows**: keys, whole objects, conditions on putting, listing. **Does not know**: what is in an object.
//! **Invariants**: an object appears whole or not at all; an object is never replaced by a put; what `put` or `delete`
//! has confirmed is durable and is seen by every later `get` and `list`, from any host.

use std::borrow::Borrow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub mod local;
pub mod looking;
pub mod memory;
pub mod s3;
mod walk;

/// The name of an object: components of `[A-Za-z0-9._=@+-]`, separated by `/`; none empty, `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A key, if `text` has the form of one.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        let fits = |c: u8| c.is_ascii_alphanumeric() || b"._=@+-".contains(&c);
        let sound =
            |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(fits);
        (text.len() <= 900 && text.split('/').all(sound)).then_some(Key(text))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Keys compare and hash as their text does.
impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its key.
    pub key: Key,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was put, by the store's clock: milliseconds since 1970-01-01 UTC.
    pub modified_ms: i64,
}

/// Why a storage did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what} {key} in {place}: {kind}")]
pub struct Error {
    /// What callers branch on.
    pub kind: ErrorKind,
    /// What was being done: `get`, `put`, …
    pub what: &'static str,
    /// The key or prefix concerned.
    pub key: String,
    /// The storage, as [`Storage::describe`] names it.
    pub place: String,
    /// The cause, where there is one.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No object has this key.
    NotFound,
    /// An object with this key exists; it was left as it is.
    AlreadyExists,
    /// The object is shorter than the range that was asked for.
    Truncated,
    /// The storage forbids it.
    Denied,
    /// No space is left.
    Full,
    /// The storage could not be asked, or did not answer in time; whether a put took effect is not known.
    Unreachable,
    /// Anything else; the source says what.
    Other,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::NotFound => "no such object",
            ErrorKind::AlreadyExists => "the object exists already",
            ErrorKind::Truncated => "the object is shorter than it should be",
            ErrorKind::Denied => "permission denied",
            ErrorKind::Full => "no space left",
            ErrorKind::Unreachable => "not reachable",
            ErrorKind::Other => "failed",
        })
    }
}

/// What a storage answers.
pub type Result<T> = std::result::Result<T, Error>;

/// A place that holds objects under keys. Shared by threads; every call but `delete_all` and a long `list` is one request.
pub trait Storage: Send + Sync {
    /// Puts a new object: whole, durable before it returns, and only if no object has this key
    /// ([`ErrorKind::AlreadyExists`] otherwise; of any number of racing puts exactly one succeeds).
    fn put(&self, key: &Key, body: &[u8]) -> Result<()>;
    /// The whole object.
    fn get(&self, key: &Key) -> Result<Vec<u8>>;
    /// Fills `buffer` with the object's bytes from `offset` on; [`ErrorKind::Truncated`] if it has too few.
    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// The objects whose keys begin with `prefix` (any text, not only whole components) and sort after `start_after`,
    /// in key order, `limit` at most.
    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Vec<Object>>;
    /// Deletes an object; one that is not there is deleted already.
    fn delete(&self, key: &Key) -> Result<()>;
    /// Deletes objects, in any order; those that are not there are deleted already.
    fn delete_all(&self, keys: &[Key]) -> Result<()> {
        keys.iter().try_for_each(|key| self.delete(key))
    }
    /// Lets the next read of an object come from the medium that holds it, where a cache of this machine could answer
    /// instead. A wish: it may be ignored.
    fn drop_cached(&self, _key: &Key) {}
    /// What a person would call this storage; no secrets.
    fn describe(&self) -> String;
    /// Whether every request costs a round trip: then many should be under way at once, and reading a little that is not
    /// needed is cheaper than asking twice.
    fn is_remote(&self) -> bool {
        false
    }
}

/// Milliseconds since 1970-01-01 UTC; negative before it.
fn unix_ms(time: SystemTime) -> i64 {
    let whole = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(span) => whole(span),
        Err(before) => -whole(before.duration()),
    }
}
