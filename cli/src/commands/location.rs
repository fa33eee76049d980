//! Where the repository is, from the options.
//!
//! Promises: a bucket's key comes from a file or the environment, never from the command line (the option table sees to
//! that). Refuses half a key.

use std::path::PathBuf;
use std::time::Duration;

use pgcairn_engine::actions::StorageLocation;
use pgcairn_engine::repository::layout::{self, PackClass};
use pgcairn_engine::storage::s3::{
    Credential, CustomerKey, ObjectOptions, Patience, S3Key, S3Options,
};

use crate::error::Error;
use crate::settings::Settings;

/// The options of one repository.
struct Numbered<'a> {
    settings: &'a Settings,
    number: u32,
}

impl Numbered<'_> {
    /// The whole name of an option, `s3-bucket` for instance.
    fn name(&self, option: &str) -> String {
        format!("repo{}-{option}", self.number)
    }

    fn text(&self, option: &str) -> Option<&str> {
        self.settings.text(&self.name(option))
    }
}

/// The place that the options of this number name.
pub(super) fn location(settings: &Settings, number: u32) -> Result<StorageLocation, Error> {
    let of = Numbered { settings, number };
    let path = PathBuf::from(of.text("path").unwrap_or_default());
    if of.text("type") != Some("s3") {
        return Ok(StorageLocation::Directory(path));
    }
    let owned = |name| of.text(name).map(str::to_owned);
    Ok(StorageLocation::S3(Box::new(S3Options {
        repo: format!("repo{number}"),
        bucket: owned("s3-bucket").unwrap_or_default(),
        prefix: path.to_string_lossy().trim_matches('/').to_owned(),
        endpoint: endpoint(&of),
        region: owned("s3-region"),
        path_style: of.text("s3-uri-style") == Some("path"),
        credential: credential(&of)?,
        ca: ["storage-ca-file", "storage-ca-path"]
            .into_iter()
            .filter_map(|name| of.text(name).map(PathBuf::from))
            .collect(),
        objects: objects(&of)?,
        patience: patience(settings),
    })))
}

/// How long the store is waited for.
fn patience(settings: &Settings) -> Patience {
    let usual = Patience::default();
    match settings.duration("io-timeout") {
        Duration::ZERO => usual,
        asked => Patience {
            give_up: asked,
            give_up_unknown: usual.give_up_unknown.min(asked),
            ..usual
        },
    }
}

/// The key that stands in the options; with another key type, and without one, AWS's usual places are asked.
fn credential(of: &Numbered<'_>) -> Result<Credential, Error> {
    let text = |name| of.text(name).map(str::to_owned);
    match (of.text("s3-key-type"), text("s3-role")) {
        (Some("shared"), _) => {}
        (Some("auto"), Some(role)) => return Ok(Credential::Role(role)),
        _ => return Ok(Credential::Chain),
    }
    let missing = |name| Error::OptionMissing {
        name: of.name(name),
        command: of.settings.command,
    };
    match (text("s3-key"), text("s3-key-secret")) {
        (None, None) if text("s3-token").is_none() => Ok(Credential::Chain),
        (None, _) => Err(missing("s3-key")),
        (_, None) => Err(missing("s3-key-secret")),
        (Some(id), Some(secret)) => Ok(Credential::Key(S3Key {
            id,
            secret,
            token: text("s3-token"),
        })),
    }
}

/// What each object is given.
fn objects(of: &Numbered<'_>) -> Result<ObjectOptions, Error> {
    let customer_key = of.text("s3-sse-customer-key").map(|text| {
        CustomerKey::new(text).ok_or_else(|| Error::CustomerKey {
            name: of.name("s3-sse-customer-key"),
        })
    });
    let tags = of.settings.pairs(&of.name("storage-tag"));
    let tags: Vec<String> = tags
        .iter()
        .map(|(key, value)| format!("{}={}", encoded(key), encoded(value)))
        .collect();
    Ok(ObjectOptions {
        kms_key_id: of.text("s3-kms-key-id").map(str::to_owned),
        customer_key: customer_key.transpose()?,
        requester_pays: of.settings.flag(&of.name("s3-requester-pays")),
        class: of.text("s3-storage-class").map(|class| {
            (
                layout::pack_prefix(PackClass::Data).to_owned(),
                class.to_owned(),
            )
        }),
        tagging: (!tags.is_empty()).then(|| tags.join("&")),
    })
}

/// A text as it stands in a query (RFC 3986: all but the unreserved characters encoded).
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// The server's URL: the endpoint, its host and port replaced where that is asked for.
fn endpoint(of: &Numbered<'_>) -> Option<String> {
    let endpoint = of.text("s3-endpoint");
    let host = of.text("storage-host");
    let given = host.or(endpoint)?.trim_end_matches('/');
    let split = |url: &str| {
        let (scheme, rest) = url.split_once("://")?;
        Some((scheme.to_owned(), rest.to_owned()))
    };
    let scheme_of = |url: Option<&str>| url.and_then(split).map(|(scheme, _)| scheme);
    let scheme = scheme_of(host)
        .or_else(|| scheme_of(endpoint))
        .unwrap_or_else(|| "https".to_owned());
    let place = split(given).map_or_else(|| given.to_owned(), |(_, rest)| rest);
    let Some(port) = of.settings.number(&of.name("storage-port")) else {
        return Some(format!("{scheme}://{place}"));
    };
    let place = match place.rsplit_once(':') {
        Some((name, old)) if old.bytes().all(|c| c.is_ascii_digit()) => name.to_owned(),
        _ => place,
    };
    Some(format!("{scheme}://{place}:{port}"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crate::{arguments, config, ini};

    use super::*;

    fn settled(options: &str, file: &str) -> Settings {
        let line = format!("pgcairn info --repo1-type=s3 --repo1-s3-bucket=cairns {options}");
        let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        let line = arguments::parse(words).unwrap();
        config::merge(
            line,
            &std::collections::BTreeMap::new(),
            &ini::parse(file).unwrap(),
        )
        .unwrap()
    }

    fn at(options: &str) -> Option<String> {
        endpoint(&Numbered {
            settings: &settled(options, ""),
            number: 1,
        })
    }

    #[test]
    fn the_endpoint_is_a_url_whose_host_and_port_can_be_replaced() {
        assert_eq!(at(""), None);
        let endpoint = "--repo1-s3-endpoint=s3.example.org";
        assert_eq!(at(endpoint).unwrap(), "https://s3.example.org");
        assert_eq!(
            at(&format!("{endpoint}:9000 --repo1-storage-port=9001")).unwrap(),
            "https://s3.example.org:9001"
        );
        assert_eq!(
            at(&format!(
                "{endpoint} --repo1-storage-host=10.0.0.1 --repo1-storage-port=9000"
            ))
            .unwrap(),
            "https://10.0.0.1:9000"
        );
        assert_eq!(
            at("--repo1-s3-endpoint=http://localhost:9000/").unwrap(),
            "http://localhost:9000"
        );
    }

    #[test]
    fn half_a_key_is_refused_by_the_name_of_the_other_half() {
        let half = settled("", "[global]\nrepo1-s3-key=AKID\n");
        let error = location(&half, 1).unwrap_err().to_string();
        assert!(error.contains("repo1-s3-key-secret"), "{error}");
        assert!(!error.contains("AKID"), "{error}");
    }

    #[test]
    fn a_repository_on_s3_lies_below_its_path() {
        let settings = settled(
            "--repo1-path=/cairns/main --repo1-s3-uri-style=path",
            "[global]\nrepo1-s3-key=AKID\nrepo1-s3-key-secret=S\n",
        );
        let StorageLocation::S3(options) = location(&settings, 1).unwrap() else {
            unreachable!("repo1-type is s3");
        };
        assert_eq!(options.prefix, "cairns/main");
        assert!(options.path_style && matches!(options.credential, Credential::Key(_)));
    }

    fn bucket(options: &str, file: &str) -> Result<S3Options, Error> {
        match location(&settled(options, file), 1)? {
            StorageLocation::S3(options) => Ok(*options),
            StorageLocation::Directory(_) => unreachable!("repo1-type is s3"),
        }
    }

    #[test]
    fn other_key_types_ask_where_aws_tools_do_and_a_role_asks_the_instance() {
        let key = "[global]\nrepo1-s3-key=AKID\nrepo1-s3-key-secret=S\n";
        let credential = |options: &str| bucket(options, key).unwrap().credential;
        for kind in ["auto", "web-id", "pod-id", "process"] {
            let options = format!("--repo1-s3-key-type={kind}");
            assert_eq!(credential(&options), Credential::Chain);
        }
        assert_eq!(
            credential("--repo1-s3-key-type=auto --repo1-s3-role=backup"),
            Credential::Role("backup".to_owned())
        );
    }

    #[test]
    fn objects_get_what_was_asked_for_and_an_unfit_key_is_not_repeated() {
        let asked = "--repo1-s3-requester-pays --repo1-s3-storage-class=GLACIER_IR --repo1-storage-tag=team=a/b \
                     --repo1-storage-tag=x=1";
        let objects = bucket(asked, "[global]\nrepo1-s3-kms-key-id=k\n")
            .unwrap()
            .objects;
        assert_eq!(objects.kms_key_id.as_deref(), Some("k"));
        assert!(objects.requester_pays);
        assert_eq!(
            objects.class,
            Some(("data/".to_owned(), "GLACIER_IR".to_owned()))
        );
        assert_eq!(objects.tagging.as_deref(), Some("team=a%2Fb&x=1"));
        let unfit = bucket("", "[global]\nrepo1-s3-sse-customer-key=topsecret\n")
            .unwrap_err()
            .to_string();
        assert!(
            unfit.contains("repo1-s3-sse-customer-key") && !unfit.contains("topsecret"),
            "{unfit}"
        );
    }
}
