//! What there is to know of a bucket before it is asked anything: where it is, by which key, whom to trust.
//!
//! Promises: a secret is in no `Debug` output and no description; certificates are looked at before they are used.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::storage::patience::Patience;

/// Where AWS's own servers are.
const AWS_DOMAINS: [&str; 2] = [".amazonaws.com", ".amazonaws.com.cn"];

/// Which bucket, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
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
    /// The key; `None`: AWS's usual chain (environment, profile, web identity, pod identity, instance metadata).
    pub key: Option<S3Key>,
    /// The certificates that are trusted, in PEM form; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// How long to wait, and how often to ask again.
    pub patience: Patience,
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

/// The bytes of a file of certificates, each of which has been looked at: the SDK takes them on trust.
pub(super) fn certificates(path: &Path) -> Result<Vec<u8>, String> {
    let unfit = |error: String| format!("{} holds no certificates: {error}", path.display());
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| unfit(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| unfit(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unfit("it is empty".to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(endpoint: Option<&str>) -> S3Options {
        S3Options {
            bucket: "cairns".to_owned(),
            prefix: "repo".to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: None,
            path_style: false,
            key: Some(S3Key {
                id: "AKID".to_owned(),
                secret: "SECRET".to_owned(),
                token: Some("TOKEN".to_owned()),
            }),
            ca_file: None,
            patience: Patience::default(),
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let text = format!("{:?} {}", at(None), at(None).describe());
        for word in ["AKID", "SECRET", "TOKEN"] {
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
            std::fs::File::create(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
                .unwrap();
            certificates(&path).unwrap_err()
        };
        assert!(refused("").contains("holds no certificates"));
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(refused(nonsense).contains("holds no certificates"));
    }
}
