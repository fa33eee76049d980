//! A real S3 server in this process, on loopback: s3s over files in a temporary directory.
//!
//! Promises: an address of its own for each server, one bucket, one key, signatures checked; it ends with its handle.
//! What `s3s-fs` 0.14.1 does not do is done here: it looks whether an object is there *before* it reads a body and
//! publishes by a rename that replaces, so of racing puts several win; here puts of one key wait for each other. It takes
//! a directory for an object, and the want of a bucket for the want of a key; here both are told apart.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput,
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, GetObjectInput,
    GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output,
    PutObjectInput, PutObjectOutput, UploadPartInput, UploadPartOutput,
};
use s3s::service::S3ServiceBuilder;
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use pgcairn_engine::storage::s3::{
    Credential, ObjectOptions, Patience, S3Key, S3Options, S3Storage,
};

/// The bucket that each server has.
pub const BUCKET: &str = "cairns";
/// The name of the key that each server knows.
pub const KEY: &str = "AKCAIRN";
/// Its secret.
pub const SECRET: &str = "a-secret-that-is-never-shown";

/// What a put may carry; S3's own limit is 5 GiB.
const LARGEST_BODY: usize = 1 << 30;

/// A running server.
pub struct S3Server {
    /// Where it listens.
    pub address: SocketAddr,
    runtime: Option<Runtime>,
    /// Removed when the server ends.
    directory: Option<TempDir>,
}

impl S3Server {
    /// Starts a server with an empty bucket.
    pub fn start() -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        let mut server = Self::start_in(directory.path());
        server.directory = Some(directory);
        server
    }

    /// Starts a server with an empty bucket, which lies in a folder that this makes and that stays.
    pub fn start_in(root: &Path) -> Self {
        std::fs::create_dir_all(root.join(BUCKET)).expect("a bucket can be made");
        let files = FileSystem::new(root).expect("the directory is there");
        let mut service = S3ServiceBuilder::new(OneAtATime {
            files,
            root: root.to_owned(),
            keys: Mutex::default(),
        });
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads can be started");
        let listener = runtime
            .block_on(TcpListener::bind(("127.0.0.1", 0)))
            .expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                connection.set_nodelay(true).ok();
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that went away is no concern of the server's.
                    drop(
                        server
                            .serve_connection(TokioIo::new(connection), service)
                            .await,
                    );
                });
            }
        });
        S3Server {
            address,
            runtime: Some(runtime),
            directory: None,
        }
    }

    /// How this server is reached, or a proxy before it.
    pub fn options(at: SocketAddr) -> S3Options {
        S3Options {
            repo: "repo1".to_owned(),
            bucket: BUCKET.to_owned(),
            prefix: "repo/sitory".to_owned(),
            endpoint: Some(format!("http://{at}")),
            region: Some("us-east-1".to_owned()),
            path_style: true,
            credential: Credential::Key(S3Key {
                id: KEY.to_owned(),
                secret: SECRET.to_owned(),
                token: None,
            }),
            ca: Vec::new(),
            objects: ObjectOptions::default(),
            patience: Patience::default(),
        }
    }

    /// A storage in the bucket.
    pub fn storage(&self) -> S3Storage {
        S3Storage::open(&Self::options(self.address)).expect("the options are sound")
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if let Some(directory) = self.directory.take() {
            // A request that still runs may write behind it; it is in the system's folder for such things.
            drop(directory.close());
        }
    }
}

/// `s3s-fs`, with puts and deletes of one key one at a time; what only other clients ask for is passed on.
struct OneAtATime {
    files: FileSystem,
    root: PathBuf,
    keys: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl OneAtATime {
    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(keys.entry(key.to_owned()).or_default())
    }
}

/// Where the range of `bytes 5-9/10` begins.
fn first_byte(content_range: &str) -> Option<u64> {
    let (first, _) = content_range.strip_prefix("bytes ")?.split_once('-')?;
    first.parse().ok()
}

fn read(path: &Path, offset: u64, bytes: i64) -> io::Result<Vec<u8>> {
    let mut body = vec![0; usize::try_from(bytes).unwrap_or(0)];
    File::open(path)?.read_exact_at(&mut body, offset)?;
    Ok(body)
}

#[async_trait::async_trait]
impl S3 for OneAtATime {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        // Read before anything is refused: an answer that comes before the body's end breaks the connection.
        if let Some(body) = request.input.body.take() {
            let body = Body::from(body).store_all_limited(LARGEST_BODY).await;
            let body = body.map_err(|_| s3_error!(IncompleteBody))?;
            request.input.body = Some(Body::from(body).into());
        }
        if !self.root.join(&request.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let turn = self.turn(&request.input.key);
        let _turn = turn.lock().await;
        self.files.put_object(request).await
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let bucket = self.root.join(&request.input.bucket);
        if !bucket.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let path = bucket.join(&request.input.key);
        if path.is_dir() {
            return Err(s3_error!(NoSuchKey));
        }
        let mut answer = self.files.get_object(request).await?;
        // What it would read in pieces of 4 KiB, each on another thread, is read at once.
        let offset = answer.output.content_range.as_deref().and_then(first_byte);
        let bytes = answer.output.content_length.unwrap_or(0);
        let body = read(&path, offset.unwrap_or(0), bytes).map_err(|_| s3_error!(NoSuchKey))?;
        answer.output.body = Some(Body::from(body).into());
        Ok(answer)
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let turn = self.turn(&request.input.key);
        let _turn = turn.lock().await;
        self.files.delete_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(request).await
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.files.delete_objects(request).await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.files.create_multipart_upload(request).await
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.files.upload_part(request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.files.complete_multipart_upload(request).await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.files.abort_multipart_upload(request).await
    }
}
