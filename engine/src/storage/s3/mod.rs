//! Objects in a bucket of S3, or of anything that speaks it.
//!
//! **Promises**: a put is one request that carries the whole body, signed, with the condition that no object has the key;
//! where an answer is lost, the object is read back and compared, so that "exists already" never means this very put.
//! All attempts, pauses and deadlines are ours ([`Patience`]); nothing waits without end. A bucket that is not there is
//! [`ErrorKind::Unreachable`], never an empty listing. No error, description or `Debug` output holds a secret.
//! **Refuses**: listings out of order, and answers to ranges that were not asked for. Whether the server honours the
//! condition is not known here: it is probed when a repository is made.

mod answer;
mod bucket;
mod client;
mod patience;

use std::future::Future;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{BuildError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, Delete, ObjectIdentifier, RequestPayer, ServerSideEncryption, StorageClass,
};
use tokio::runtime::{Handle, Runtime};
use tokio::time::{sleep, timeout};

use crate::storage::{Error, ErrorKind, Key, Object, Result, Storage};
use answer::{Answer, Asked, Failure, chain, judge, region_in, without_answer};
use bucket::is_aws;
pub use bucket::{Credential, CustomerKey, ObjectOptions, S3Key, S3Options};
use client::{configuration, http_client};
use patience::Attempts;
pub use patience::Patience;

/// Threads that move bytes; those who call wait on their own.
const WORKERS: usize = 2;
/// The most a listing request may ask for.
const PAGE: usize = 1000;
/// How a customer's key encrypts: S3 knows no other.
const CUSTOMER_ALGORITHM: &str = "AES256";
/// Bytes reserved for a body before any of it has come.
const LARGEST_RESERVE: u64 = 64 << 20;
/// How often a put is begun anew because what stood in its way was gone when it was looked at.
const RACES: usize = 3;

/// What a request answers, before it is told with key and place.
type Outcome<T, E = Failure> = std::result::Result<T, E>;

/// A storage in a bucket. Shared by threads; each call occupies its caller until it is answered.
#[derive(Debug)]
pub struct S3Storage {
    client: Client,
    bucket: String,
    /// What stands before every key: empty, or ending with a slash.
    prefix: String,
    place: String,
    /// What the options of the repository begin with.
    repo: String,
    /// The server has answered: it is where it should be.
    known: AtomicBool,
    region: String,
    patience: Patience,
    objects: ObjectOptions,
    checksums: bool,
    handle: Handle,
    _workers: Workers,
}

/// The runtime; left to itself when dropped, because a name that is being resolved cannot be interrupted.
#[derive(Debug)]
struct Workers(Option<Runtime>);

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl S3Storage {
    /// Makes what is needed to ask the server; asks nothing yet (but the environment for a region, if none is given).
    pub fn open(options: &S3Options) -> Result<Self> {
        let place = options.describe();
        let fail = |kind, text: String| Error {
            kind,
            what: "open",
            key: "the bucket".to_owned(),
            place: place.clone(),
            source: Some(text.into()),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|source| fail(ErrorKind::Other, format!("no threads: {source}")))?;
        let http = http_client(options).map_err(|text| fail(ErrorKind::Other, text))?;
        let config = runtime.block_on(configuration(options, http));
        let region = config.region().map(ToString::to_string).ok_or_else(|| {
            fail(
                ErrorKind::Other,
                format!("no region is known: set {}-s3-region", options.repo),
            )
        })?;
        Ok(S3Storage {
            client: Client::from_conf(config),
            bucket: options.bucket.clone(),
            prefix: options.key_prefix(),
            repo: options.repo.clone(),
            known: AtomicBool::new(false),
            region,
            patience: options.patience.clone(),
            objects: options.objects.clone(),
            checksums: is_aws(options),
            handle: runtime.handle().clone(),
            _workers: Workers(Some(runtime)),
            place,
        })
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn fail(&self, what: &'static str, key: &str, failure: Failure) -> Error {
        Error {
            kind: failure.kind,
            what,
            key: key.to_owned(),
            place: self.place.clone(),
            source: Some(failure.text.into()),
        }
    }

    /// Attempts until there is an answer that stands, or no time is left. `bytes` are moved by each attempt.
    fn ask<T>(&self, bytes: u64, mut attempt: impl AsyncFnMut() -> Outcome<T>) -> Outcome<T> {
        let deadline = self.patience.deadline(bytes);
        let persist = async {
            let mut attempts = Attempts::new(&self.patience);
            loop {
                let timed = timeout(deadline, attempt()).await;
                let outcome = timed.unwrap_or_else(|_| {
                    Err(Failure::unanswered(format!(
                        "no answer within {deadline:?}"
                    )))
                });
                let failure = match outcome {
                    Err(failure) if failure.again => failure,
                    settled => {
                        self.known.store(true, Ordering::Relaxed);
                        return settled;
                    }
                };
                match attempts.pause(failure.retry_after, self.known.load(Ordering::Relaxed)) {
                    Some(pause) => sleep(pause).await,
                    None => {
                        return Err(Failure {
                            text: format!("{}{}", failure.text, attempts.told()),
                            ..failure
                        });
                    }
                }
            }
        };
        self.handle.block_on(persist)
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            bucket: &self.bucket,
            region: &self.region,
            repo: &self.repo,
        }
    }

    fn refusal<E>(&self, error: &SdkError<E>) -> Failure
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let raw = match error {
            SdkError::ServiceError(refused) => refused.raw(),
            // What came is no answer of S3's; its status says whether to ask again.
            SdkError::ResponseError(broken) if !broken.raw().status().is_success() => broken.raw(),
            _ => return without_answer(&chain(error), &self.repo),
        };
        self.known.store(true, Ordering::Relaxed);
        let header = |name: &str| raw.headers().get(name);
        let body = raw.body().bytes().unwrap_or_default();
        let announced = header("content-length").and_then(|length| length.parse().ok());
        if announced.is_some_and(|length: usize| body.len() < length) {
            return Failure::unanswered("the server's refusal broke off");
        }
        let body = std::str::from_utf8(body).ok();
        let answer = Answer {
            status: raw.status().as_u16(),
            code: error.code(),
            message: error.message(),
            region: header("x-amz-bucket-region").or_else(|| body.and_then(region_in)),
            date: header("date"),
            retry_after: header("retry-after"),
        };
        let asked = self.asked();
        judge(&answer, &asked)
    }

    /// One put, attempted until it is answered; `doubt` tells whether an attempt may have taken effect unseen.
    fn put_once(&self, key: &Key, body: &SdkBody, bytes: u64, doubt: &mut bool) -> Outcome<()> {
        self.ask(bytes, async || {
            let before = mem::replace(doubt, true);
            let body = body
                .try_clone()
                .ok_or_else(|| Failure::lasting(ErrorKind::Other, "the body cannot be repeated"))?;
            let objects = &self.objects;
            let kms = objects.kms_key_id.as_ref();
            let customer = objects.customer_key.as_ref();
            let request = self
                .client
                .put_object()
                .bucket(&self.bucket)
                .key(self.full(key.as_str()))
                .if_none_match("*")
                .set_checksum_algorithm(self.checksums.then_some(ChecksumAlgorithm::Crc32C))
                .set_request_payer(self.payer())
                .set_server_side_encryption(kms.map(|_| ServerSideEncryption::AwsKms))
                .set_ssekms_key_id(kms.cloned())
                .set_sse_customer_algorithm(customer.map(|_| CUSTOMER_ALGORITHM.to_owned()))
                .set_sse_customer_key(customer.map(|key| key.key.clone()))
                .set_sse_customer_key_md5(customer.map(|key| key.md5.clone()))
                .set_storage_class(objects.class_of(key).map(StorageClass::from))
                .set_tagging(objects.tagging.clone())
                .body(ByteStream::new(body));
            let failure = match request.send().await {
                Ok(_) => {
                    *doubt = false;
                    return Ok(());
                }
                Err(error) => self.refusal(&error),
            };
            *doubt = before || failure.doubtful;
            Err(failure)
        })
    }

    /// Reads a body of `bytes` to its end, handing on each part. A server that falls silent is not waited for, nor one that
    /// is slower than any transfer should be.
    async fn drain(
        &self,
        output: &mut GetObjectOutput,
        bytes: u64,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Outcome<()> {
        let slowest = self.patience.deadline(bytes);
        let read = async {
            while let Ok(next) = timeout(self.patience.silence, output.body.next()).await {
                match next {
                    Some(Err(error)) => {
                        let text = format!("the object broke off: {}", chain(&error));
                        return Err(Failure::unanswered(text));
                    }
                    Some(Ok(part)) if !take(&part) => {
                        let text = "the server sent more than it announced";
                        return Err(Failure::unanswered(text));
                    }
                    Some(Ok(_)) => {}
                    None => return Ok(()),
                }
            }
            let text = "the server fell silent within the object";
            Err(Failure::unanswered(text))
        };
        let slow = |_| Failure::unanswered(format!("the object did not come within {slowest:?}"));
        timeout(slowest, read).await.map_err(slow)?
    }

    /// Who pays for the requests, where that is not the bucket's owner.
    fn payer(&self) -> Option<RequestPayer> {
        self.objects
            .requester_pays
            .then_some(RequestPayer::Requester)
    }

    fn get_object(&self, key: &str) -> GetObjectFluentBuilder {
        let customer = self.objects.customer_key.as_ref();
        self.client
            .get_object()
            .bucket(&self.bucket)
            .key(key)
            .set_request_payer(self.payer())
            .set_sse_customer_algorithm(customer.map(|_| CUSTOMER_ALGORITHM.to_owned()))
            .set_sse_customer_key(customer.map(|key| key.key.clone()))
            .set_sse_customer_key_md5(customer.map(|key| key.md5.clone()))
    }

    async fn get_once(&self, key: &str) -> Outcome<Vec<u8>> {
        let request = self.get_object(key);
        let mut output = self.answered(request.send()).await?;
        let announced = u64::try_from(output.content_length().unwrap_or(0)).unwrap_or(0);
        let mut body =
            Vec::with_capacity(usize::try_from(announced.min(LARGEST_RESERVE)).unwrap_or(0));
        self.drain(&mut output, announced, |part| {
            body.extend_from_slice(part);
            true
        })
        .await?;
        if output.content_length().is_some() && body.len() as u64 != announced {
            return Err(Failure::unanswered("the object broke off"));
        }
        Ok(body)
    }

    async fn get_range_once(
        &self,
        key: &str,
        offset: u64,
        end: u64,
        buffer: &mut [u8],
    ) -> Outcome<()> {
        let request = self
            .get_object(key)
            .range(format!("bytes={offset}-{}", end - 1));
        let mut output = self.answered(request.send()).await?;
        match output.content_range().and_then(parse_content_range) {
            Some((first, last)) if first == offset && last + 1 == end => {}
            Some((first, last)) if first == offset && last < end => {
                let text = format!(
                    "bytes {offset} to {end} were asked for, it ends at {}",
                    last + 1
                );
                return Err(Failure::lasting(ErrorKind::Truncated, text));
            }
            other => {
                let text = format!("bytes {offset} to {end} were asked for, {other:?} answered");
                return Err(Failure::lasting(ErrorKind::Other, text));
            }
        }
        let mut filled = 0_usize;
        self.drain(&mut output, end - offset, |part| {
            let place = buffer.get_mut(filled..filled.saturating_add(part.len()));
            filled += part.len();
            place.map(|place| place.copy_from_slice(part)).is_some()
        })
        .await?;
        if filled == buffer.len() {
            Ok(())
        } else {
            Err(Failure::unanswered("the range broke off"))
        }
    }

    /// An answer to a request that sends nothing: the server has only so long to begin it.
    async fn answered<T, E>(
        &self,
        request: impl Future<Output = Outcome<T, SdkError<E>>>,
    ) -> Outcome<T>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let patience = &self.patience;
        match timeout(patience.connect + patience.silence, request).await {
            Ok(answer) => answer.map_err(|error| self.refusal(&error)),
            Err(_) => Err(Failure::unanswered("the server does not answer")),
        }
    }

    /// One page of a listing, and whether there is more.
    async fn list_once(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Outcome<(Vec<Listed>, bool)> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.full(prefix))
            .set_start_after(after.map(str::to_owned))
            .set_request_payer(self.payer())
            .max_keys(i32::try_from(limit.min(PAGE)).unwrap_or(1));
        let output = self.answered(request.send()).await?;
        let mut page: Vec<Listed> = Vec::with_capacity(output.contents().len());
        for object in output.contents() {
            let name = object.key().unwrap_or_default().to_owned();
            let last = page.last().map(|last| last.name.as_str()).or(after);
            if last.is_some_and(|last| name.as_str() <= last) {
                let text =
                    format!("the server lists out of order: {name} does not come after {last:?}");
                return Err(Failure::lasting(ErrorKind::Other, text));
            }
            page.push(Listed {
                name,
                bytes: u64::try_from(object.size().unwrap_or(0)).unwrap_or(0),
                modified_ms: object
                    .last_modified()
                    .and_then(|time| time.to_millis().ok())
                    .unwrap_or(0),
            });
        }
        let more = output.is_truncated() == Some(true) && !page.is_empty();
        Ok((page, more))
    }

    /// Deletes up to a thousand objects with one request.
    async fn delete_once(&self, keys: &[Key]) -> Outcome<()> {
        let unfit = |error: BuildError| Failure::lasting(ErrorKind::Other, error.to_string());
        let mut listed = Delete::builder().quiet(true);
        for key in keys {
            let named = ObjectIdentifier::builder().key(self.full(key.as_str()));
            listed = listed.objects(named.build().map_err(unfit)?);
        }
        let request = self
            .client
            .delete_objects()
            .bucket(&self.bucket)
            .delete(listed.build().map_err(unfit)?)
            .set_request_payer(self.payer());
        let output = self.answered(request.send()).await?;
        let mut refused = output.errors().iter();
        let Some(refused) = refused.find(|error| error.code() != Some("NoSuchKey")) else {
            return Ok(());
        };
        let answer = Answer {
            // An object's own status is not told: where its code says nothing, asking again may help.
            status: 500,
            code: refused.code(),
            message: refused.message(),
            ..Answer::default()
        };
        let asked = self.asked();
        let failure = judge(&answer, &asked);
        Err(Failure {
            text: format!("{}: {}", refused.key().unwrap_or_default(), failure.text),
            ..failure
        })
    }

    /// Whether an object reaches up to `offset`, from a listing: what no header can ask for.
    fn check_range(&self, what: &'static str, key: &Key, offset: u64) -> Result<()> {
        let listed = self.list(key.as_str(), None, 1)?;
        let failure = match listed.first() {
            Some(object) if object.key == *key && offset <= object.bytes => return Ok(()),
            Some(object) if object.key == *key => {
                let text = format!("it has {} bytes, not {offset}", object.bytes);
                Failure::lasting(ErrorKind::Truncated, text)
            }
            _ => Failure::lasting(ErrorKind::NotFound, "it is not listed"),
        };
        Err(self.fail(what, key.as_str(), failure))
    }
}

/// A line of a listing as the server sent it.
struct Listed {
    name: String,
    bytes: u64,
    modified_ms: i64,
}

impl Storage for S3Storage {
    fn put(&self, key: &Key, body: &[u8]) -> Result<()> {
        let fail = |failure| self.fail("put", key.as_str(), failure);
        let sent = SdkBody::from(body.to_vec());
        let mut doubt = false;
        for _ in 0..RACES {
            let failure = match self.put_once(key, &sent, body.len() as u64, &mut doubt) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if !doubt {
                return Err(fail(failure));
            }
            if failure.kind != ErrorKind::AlreadyExists {
                let kind = ErrorKind::Unreachable;
                return Err(fail(Failure { kind, ..failure }));
            }
            // An answer to an earlier attempt was lost: the object may be what that attempt made.
            match self.get(key) {
                Ok(found) if found == body => return Ok(()),
                Ok(_) => return Err(fail(failure)),
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(Error {
                        kind: ErrorKind::Unreachable,
                        what: "put",
                        ..error
                    });
                }
            }
        }
        Err(fail(Failure::unanswered(
            "it is said to exist, and not to be there, in turns",
        )))
    }

    fn get(&self, key: &Key) -> Result<Vec<u8>> {
        let name = self.full(key.as_str());
        // No pack and no record is larger; a larger object only has to come faster.
        self.ask(LARGEST_RESERVE, async || self.get_once(&name).await)
            .map_err(|failure| self.fail("get", key.as_str(), failure))
    }

    fn get_range(&self, key: &Key, offset: u64, buffer: &mut [u8]) -> Result<()> {
        const WHAT: &str = "get a range of";
        let bytes = buffer.len() as u64;
        let end = match offset.checked_add(bytes) {
            // S3's own numbers are signed.
            Some(end) if bytes > 0 && i64::try_from(end).is_ok() => end,
            _ => return self.check_range(WHAT, key, offset),
        };
        let name = self.full(key.as_str());
        self.ask(bytes, async || {
            self.get_range_once(&name, offset, end, buffer).await
        })
        .map_err(|failure| self.fail(WHAT, key.as_str(), failure))
    }

    fn list(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Vec<Object>> {
        let mut objects: Vec<Object> = Vec::new();
        if !begins_a_key(prefix) {
            return Ok(objects);
        }
        let mut after = start_after.map(|after| self.full(after));
        let mut more = limit > 0;
        while more && objects.len() < limit {
            let wanted = limit - objects.len();
            let asked = self.ask(0, async || {
                self.list_once(prefix, after.as_deref(), wanted).await
            });
            let (page, is_truncated) =
                asked.map_err(|failure| self.fail("list", prefix, failure))?;
            after = page.last().map(|last| last.name.clone());
            more = is_truncated;
            objects.extend(page.into_iter().filter_map(|listed| {
                let name = listed.name.strip_prefix(&self.prefix)?;
                Some(Object {
                    key: Key::new(name)?,
                    bytes: listed.bytes,
                    modified_ms: listed.modified_ms,
                })
            }));
        }
        Ok(objects)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let name = self.full(key.as_str());
        let deleted = self.ask(0, async || {
            let request = self
                .client
                .delete_object()
                .bucket(&self.bucket)
                .key(&name)
                .set_request_payer(self.payer());
            self.answered(request.send()).await.map(|_| ())
        });
        match deleted {
            Err(failure) if failure.kind == ErrorKind::NotFound => Ok(()),
            deleted => deleted.map_err(|failure| self.fail("delete", key.as_str(), failure)),
        }
    }

    fn delete_all(&self, keys: &[Key]) -> Result<()> {
        for keys in keys.chunks(PAGE) {
            let deleted = self.ask(0, async || self.delete_once(keys).await);
            let first = keys.first().map_or("", Key::as_str);
            deleted.map_err(|failure| self.fail("delete", first, failure))?;
        }
        Ok(())
    }

    fn describe(&self) -> String {
        self.place.clone()
    }

    fn is_remote(&self) -> bool {
        true
    }
}

/// The first and the last byte that `bytes 0-9/10` names.
fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    let (range, _) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Whether any key could begin with this text. What could not is not asked for: servers differ in what they make of it.
fn begins_a_key(prefix: &str) -> bool {
    Key::new(format!("{prefix}x")).is_some()
}
