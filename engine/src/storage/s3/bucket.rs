//! What there is to know of a bucket before it is asked anything: where it is, by which key, whom to trust.
//!
//! Promises: a secret is in no `Debug` output and no description; certificates are looked at before they are used.

use std::fmt;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use md5::{Digest, Md5};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::storage::Key;
use crate::storage::s3::patience::Patience;

/// Where AWS's own servers are.
const AWS_DOMAINS: [&str; 2] = [".amazonaws.com", ".amazonaws.com.cn"];

/// Which bucket, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// What the user's options of this repository begin with, as messages name them: `repo1`.
    pub repo: String,
    /// The bucket.
    pub bucket: String,
    /// The repository's path in it; empty, or without a slash at either end.
    pub prefix: String,
    /// The server's URL; `None`: AWS, by region.
    pub endpoint: Option<String>,
    /// The region; `None`: what the environment says, `us-east-1` for servers other than AWS's.
    pub region: Option<String>,
    /// The bucket stands in the path of a URL instead of the host's name.
    pub path_style: bool,
    /// By what the server knows us.
    pub credential: Credential,
    /// The certificates that are trusted, files in PEM form and folders of such files; none: the system's.
    pub ca: Vec<PathBuf>,
    /// What each object is given.
    pub objects: ObjectOptions,
    /// How long to wait, and how often to ask again.
    pub patience: Patience,
}

/// By what a server knows its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A key.
    Key(S3Key),
    /// The temporary credentials that the instance's metadata give for a role.
    Role(String),
    /// AWS's usual chain: environment, profile and its process, web identity, pod identity, instance metadata.
    Chain,
}

/// What each object of the repository is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectOptions {
    /// The key of AWS's key management that the server encrypts with.
    pub kms_key_id: Option<String>,
    /// The key that the server encrypts with and does not keep.
    pub customer_key: Option<CustomerKey>,
    /// The requests are paid by who makes them.
    pub requester_pays: bool,
    /// A storage class, and the keys it is for, by what they begin with; all others are of the standard class.
    pub class: Option<(String, String)>,
    /// Tags as S3 has them in a header: `key=value&…`, percent-encoded.
    pub tagging: Option<String>,
}

impl ObjectOptions {
    /// The storage class of an object; `None`: the bucket's standard.
    pub(super) fn class_of(&self, key: &Key) -> Option<&str> {
        let (prefix, class) = self.class.as_ref()?;
        key.as_str().starts_with(prefix).then_some(class.as_str())
    }
}

/// A customer's key for encryption by the server.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerKey {
    pub(super) key: String,
    pub(super) md5: String,
}

impl CustomerKey {
    /// A key of 32 bytes in base64; `None` if it is not that.
    pub fn new(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text).ok().filter(|key| key.len() == 32)?;
        Some(CustomerKey {
            key: text.to_owned(),
            md5: BASE64.encode(Md5::digest(bytes)),
        })
    }
}

impl fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerKey(<redacted>)")
    }
}

/// An access key.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Key {
    /// Its name.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// The session it belongs to, where it is a temporary one.
    pub token: Option<String>,
}

impl fmt::Debug for S3Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Key(<redacted>)")
    }
}

impl S3Options {
    /// What stands before every key: nothing, or the prefix and a slash.
    pub(super) fn key_prefix(&self) -> String {
        if self.prefix.is_empty() {
            String::new()
        } else {
            format!("{}/", self.prefix)
        }
    }

    /// What a person would call the place; no secrets.
    pub fn describe(&self) -> String {
        let at = self.endpoint.as_deref().unwrap_or("AWS");
        format!("s3://{}/{} at {at}", self.bucket, self.prefix)
    }
}

/// Whether the server is one of AWS's own.
pub(super) fn is_aws(options: &S3Options) -> bool {
    options.endpoint.as_deref().is_none_or(|endpoint| {
        let host = host(endpoint);
        AWS_DOMAINS.iter().any(|domain| host.ends_with(domain))
    })
}

/// The host in a URL, without its port.
fn host(endpoint: &str) -> &str {
    let rest = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or(rest);
    match rest.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) => host,
        _ => rest,
    }
}

/// The bytes of a file or folder of certificates, each of which has been looked at: the SDK takes them on trust.
pub(super) fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        files = entries
            .map_err(failed)?
            .iter()
            .map(DirEntry::path)
            .collect();
        // As folders of certificates have it: certificates, and links to them, but also what lists withdrawn ones.
        files.retain(|file| file.is_file());
        files.sort();
    }
    let unfit = |error: String| format!("{} holds no certificates: {error}", path.display());
    let mut roots = RootCertStore::empty();
    let mut all = Vec::new();
    for file in files {
        let bytes = fs::read(&file).map_err(failed)?;
        for certificate in CertificateDer::pem_slice_iter(&bytes) {
            let certificate = certificate.map_err(|error| unfit(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| unfit(error.to_string()))?;
        }
        all.extend_from_slice(&bytes);
        all.push(b'\n');
    }
    if roots.is_empty() {
        return Err(unfit("it is empty".to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32 bytes, from 0 to 31.
    const CUSTOMER: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn at(endpoint: Option<&str>) -> S3Options {
        S3Options {
            repo: "repo1".to_owned(),
            bucket: "cairns".to_owned(),
            prefix: "repo".to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: None,
            path_style: false,
            credential: Credential::Key(S3Key {
                id: "AKID".to_owned(),
                secret: "SECRET".to_owned(),
                token: Some("TOKEN".to_owned()),
            }),
            ca: Vec::new(),
            objects: ObjectOptions {
                customer_key: CustomerKey::new(CUSTOMER),
                ..ObjectOptions::default()
            },
            patience: Patience::default(),
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let text = format!("{:?} {}", at(None), at(None).describe());
        for word in ["AKID", "SECRET", "TOKEN", CUSTOMER] {
            assert!(!text.contains(word), "{text}");
        }
    }

    #[test]
    fn awss_own_servers_are_told_from_others() {
        assert!(is_aws(&at(None)));
        assert!(is_aws(&at(Some("https://s3.eu-west-1.amazonaws.com:443/"))));
        assert!(!is_aws(&at(Some("http://127.0.0.1:9000"))));
        assert!(!is_aws(&at(Some("https://amazonaws.com.example.org"))));
    }

    #[test]
    fn a_file_without_certificates_is_refused_before_it_is_used() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("ca.pem");
        let refused = |text: &str| {
            fs::File::create(&path)
                .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
                .unwrap();
            certificates(&path).unwrap_err()
        };
        assert!(refused("").contains("holds no certificates"));
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(refused(nonsense).contains("holds no certificates"));
    }

    #[test]
    fn a_customers_key_has_32_bytes_and_a_digest() {
        // MD5 of the bytes 0 to 31.
        assert_eq!(
            CustomerKey::new(CUSTOMER).unwrap().md5,
            "tP/LI3N87DFaSk0aoqYgzg=="
        );
        for unfit in ["", "AAEC", "not base64", &CUSTOMER[4..]] {
            assert_eq!(CustomerKey::new(unfit), None, "{unfit}");
        }
    }

    #[test]
    fn only_what_the_class_is_for_is_of_it() {
        let objects = ObjectOptions {
            class: Some(("data/".to_owned(), "STANDARD_IA".to_owned())),
            ..ObjectOptions::default()
        };
        let class = |key: &str| objects.class_of(&Key::new(key).unwrap()).map(str::to_owned);
        assert_eq!(class("data/ab/cd").as_deref(), Some("STANDARD_IA"));
        assert_eq!(class("meta/ab/cd"), None);
        assert_eq!(class("snapshots/data/x"), None);
    }
}
