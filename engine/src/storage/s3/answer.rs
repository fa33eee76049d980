//! What an S3 server's refusal means: which kind of failure it is, whether to ask again, and what a person should check.
//!
//! Promises: every text says what failed and what to look at; none holds a key's secret, because nothing that was sent
//! is repeated. Refuses to call an object absent unless the server says so in S3's own words: a proxy's 404 is not that.

use std::time::Duration;

use crate::storage::ErrorKind;

/// Why a request, or all attempts at it, failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// What callers branch on.
    pub(super) kind: ErrorKind,
    /// What happened, and what to check.
    pub(super) text: String,
    /// Whether asking again may help.
    pub(super) again: bool,
    /// Whether the request may have taken effect all the same.
    pub(super) doubtful: bool,
    /// How long the server asked to be left alone.
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that another attempt would meet too.
    pub(super) fn lasting(kind: ErrorKind, text: impl Into<String>) -> Self {
        Failure {
            kind,
            text: text.into(),
            again: false,
            doubtful: false,
            retry_after: None,
        }
    }

    /// No answer, or none that can be trusted: the request may have taken effect or not.
    pub(super) fn unanswered(text: impl Into<String>) -> Self {
        Failure {
            kind: ErrorKind::Unreachable,
            text: text.into(),
            again: true,
            doubtful: true,
            retry_after: None,
        }
    }
}

/// A server's refusal.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answer<'a> {
    /// The status of HTTP.
    pub(super) status: u16,
    /// S3's word for the error, if the body held one.
    pub(super) code: Option<&'a str>,
    /// The server's own text.
    pub(super) message: Option<&'a str>,
    /// The region the bucket is in, if the server named it.
    pub(super) region: Option<&'a str>,
    /// The server's clock.
    pub(super) date: Option<&'a str>,
    /// The header `Retry-After`.
    pub(super) retry_after: Option<&'a str>,
}

/// What the refused request was for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) bucket: &'a str,
    pub(super) region: &'a str,
    /// What the options of the repository begin with, `repo1` for instance.
    pub(super) repo: &'a str,
}

/// The longest time a server may ask to be left alone.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Judges a refusal.
pub(super) fn judge(answer: &Answer<'_>, asked: &Asked<'_>) -> Failure {
    named(answer, asked).unwrap_or_else(|| by_status(answer, asked))
}

/// The refusals that S3 has a word for.
fn named(answer: &Answer<'_>, asked: &Asked<'_>) -> Option<Failure> {
    use ErrorKind::{Denied, Full, NotFound, Other, Truncated, Unreachable};
    let Asked { bucket, repo, .. } = asked;
    let lasting = |kind, text: String| Some(Failure::lasting(kind, with_message(text, answer)));
    // A redirection may come without a body.
    let redirected = answer.region.is_some() && (300..400).contains(&answer.status);
    match answer.code.or(redirected.then_some("Redirect"))? {
        "NoSuchKey" => Some(Failure::lasting(NotFound, "NoSuchKey")),
        "InvalidRange" => Some(Failure::lasting(Truncated, "InvalidRange")),
        "NoSuchBucket" | "InvalidBucketName" => lasting(
            Unreachable,
            format!("there is no bucket '{bucket}': check {repo}-s3-bucket and {repo}-s3-endpoint"),
        ),
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => lasting(Unreachable, elsewhere(answer, asked)),
        "RequestTimeTooSkewed" | "RequestExpired" => {
            let server = answer.date.map_or_else(String::new, |date| {
                format!(" (the server's clock says {date})")
            });
            lasting(
                Denied,
                format!("this host's clock is wrong{server}: set it right"),
            )
        }
        "InvalidAccessKeyId" | "NotSignedUp" => lasting(
            Denied,
            format!("the access key is not known: check {repo}-s3-key"),
        ),
        "SignatureDoesNotMatch" => lasting(
            Denied,
            format!("the secret key does not fit the access key: check {repo}-s3-key-secret"),
        ),
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => lasting(
            Denied,
            format!("the session token is not valid, or not any more: check {repo}-s3-token"),
        ),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => lasting(
            Denied,
            format!(
                "access denied: the key needs s3:ListBucket on bucket '{bucket}' and s3:GetObject, s3:PutObject and \
                     s3:DeleteObject on its objects; some servers say the same of a wrong {repo}-s3-key or \
                     {repo}-s3-key-secret"
            ),
        ),
        "InvalidObjectState" => lasting(
            Other,
            "the object is in an archive storage class: restore it to a readable one first"
                .to_owned(),
        ),
        "QuotaExceeded" | "QuotaExceededException" | "XMinioStorageFull" => {
            lasting(Full, "the store has no space left for it".to_owned())
        }
        "NotImplemented" => lasting(
            Other,
            "the store does not know a feature that this needs".to_owned(),
        ),
        _ => None,
    }
}

/// The bucket is not where it was asked for.
fn elsewhere(answer: &Answer<'_>, asked: &Asked<'_>) -> String {
    let Asked {
        bucket,
        region,
        repo,
    } = asked;
    let right = answer.region.map_or_else(
        || "is in another one".to_owned(),
        |right| format!("is in '{right}'"),
    );
    format!(
        "bucket '{bucket}' was asked for in region '{region}' but {right}: set {repo}-s3-region (and {repo}-s3-endpoint, \
         if it names a region)"
    )
}

/// The other refusals, by their status alone.
fn by_status(answer: &Answer<'_>, asked: &Asked<'_>) -> Failure {
    let repo = asked.repo;
    let text = with_message(
        match answer.code {
            Some(code) => format!("the server answered {} {code}", answer.status),
            None => format!("the server answered {}", answer.status),
        },
        answer,
    );
    let retry_after = answer
        .retry_after
        .and_then(|seconds| seconds.trim().parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER));
    match answer.status {
        412 => Failure::lasting(ErrorKind::AlreadyExists, text),
        416 => Failure::lasting(ErrorKind::Truncated, text),
        507 => Failure::lasting(ErrorKind::Full, text),
        // Two requests for one key crossed: this one did nothing.
        409 => Failure {
            again: true,
            retry_after,
            ..Failure::lasting(ErrorKind::Other, text)
        },
        408 | 429 | 500..=599 => Failure {
            retry_after,
            ..Failure::unanswered(text)
        },
        400 if answer.code == Some("RequestTimeout") => Failure::unanswered(text),
        401 | 403 => Failure::lasting(
            ErrorKind::Denied,
            format!("{text}: check the keys and what they may do"),
        ),
        404 => Failure::lasting(
            ErrorKind::Other,
            format!("{text}, but not as S3 says it: does {repo}-s3-endpoint lead to an S3 server?"),
        ),
        300..=399 => Failure::lasting(
            ErrorKind::Unreachable,
            format!("{text}: check {repo}-s3-endpoint and {repo}-s3-region"),
        ),
        _ => Failure::lasting(ErrorKind::Other, text),
    }
}

fn with_message(text: String, answer: &Answer<'_>) -> String {
    match answer.message {
        Some(message) if !message.is_empty() => format!("{text} ({message})"),
        _ => text,
    }
}

/// What a person should check when there was no answer at all, from the words of what went wrong.
pub(super) fn without_answer(chain: &str, repo: &str) -> Failure {
    let lower = chain.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&["no credentials found in chain", "credentialsnotloaded"]) {
        return Failure::lasting(
            ErrorKind::Denied,
            format!(
                "no credentials were found: set {repo}-s3-key and {repo}-s3-key-secret, or use one of the usual places \
                 (environment, profile, web identity, pod identity, instance metadata)"
            ),
        );
    }
    if has(&["credential"]) {
        return Failure {
            kind: ErrorKind::Denied,
            ..Failure::unanswered(format!("the credentials could not be had: {chain}"))
        };
    }
    if has(&["causedasendentity"]) {
        return Failure::lasting(
            ErrorKind::Unreachable,
            format!(
                "the server's certificate is one of an authority, which must not be a server's own: {chain}: make one with \
                 basicConstraints=CA:FALSE, or let an authority sign one, and name it with {repo}-storage-ca-file"
            ),
        );
    }
    if has(&["certificate", "unknownissuer", "invaliddnsname"]) {
        return Failure::lasting(
            ErrorKind::Unreachable,
            format!(
                "the server's certificate is not trusted: {chain}: check {repo}-storage-ca-file and the host's name"
            ),
        );
    }
    if has(&["corrupt message", "invalidcontenttype", "invalid message"]) {
        return Failure::lasting(
            ErrorKind::Unreachable,
            format!(
                "the server does not speak TLS: {chain}: an endpoint without it begins with http://"
            ),
        );
    }
    if has(&["dns error", "failed to lookup", "name or service not known"]) {
        return Failure::unanswered(format!(
            "the server's name cannot be resolved: {chain}: check {repo}-s3-endpoint, {repo}-storage-host and DNS"
        ));
    }
    Failure::unanswered(format!("no answer: {chain}"))
}

/// The region that the body of a refusal names, as `<Region>…</Region>`.
pub(super) fn region_in(body: &str) -> Option<&str> {
    let (_, rest) = body.split_once("<Region>")?;
    let (region, _) = rest.split_once("</Region>")?;
    Some(region)
}

/// An error and its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked<'_> = Asked {
        bucket: "cairns",
        region: "us-east-1",
        repo: "repo1",
    };

    /// As the SDK says it.
    const NO_CREDENTIALS: &str = "dispatch failure: other: the credential provider was not enabled: no credentials found in \
        chain. Attempted: Environment: the credential provider was not enabled: environment variable not set";

    fn refused(status: u16, code: Option<&str>) -> Failure {
        let answer = Answer {
            status,
            code,
            ..Answer::default()
        };
        judge(&answer, &ASKED)
    }

    #[test]
    fn only_s3s_own_word_makes_an_object_absent() {
        assert_eq!(refused(404, Some("NoSuchKey")).kind, ErrorKind::NotFound);
        assert_eq!(
            refused(404, Some("NoSuchBucket")).kind,
            ErrorKind::Unreachable
        );
        assert_eq!(refused(404, None).kind, ErrorKind::Other);
    }

    #[test]
    fn a_wrong_region_is_named_with_the_right_one() {
        let answer = Answer {
            status: 301,
            code: Some("PermanentRedirect"),
            region: region_in("<Error><Region>eu-west-1</Region></Error>"),
            ..Answer::default()
        };
        let failure = judge(&answer, &ASKED);
        assert!(
            failure.text.contains("'us-east-1' but is in 'eu-west-1'"),
            "{}",
            failure.text
        );
        assert!(!failure.again);
    }

    #[test]
    fn overload_is_asked_again_and_leaves_doubt_but_a_conflict_leaves_none() {
        for status in [429, 500, 502, 503, 504] {
            let failure = refused(status, None);
            assert!(failure.again && failure.doubtful, "{status}");
        }
        let conflict = refused(409, Some("ConditionalRequestConflict"));
        assert!(conflict.again && !conflict.doubtful);
        assert!(!refused(403, Some("AccessDenied")).again);
    }

    #[test]
    fn a_server_may_ask_for_time_but_not_for_ever() {
        let asked = |seconds| {
            let answer = Answer {
                status: 503,
                retry_after: Some(seconds),
                ..Answer::default()
            };
            judge(&answer, &ASKED).retry_after
        };
        assert_eq!(asked("2"), Some(Duration::from_secs(2)));
        assert_eq!(asked("86400"), Some(LONGEST_RETRY_AFTER));
        assert_eq!(asked("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }

    #[test]
    fn what_went_wrong_without_an_answer_says_what_to_check() {
        let text = |chain| without_answer(chain, "repo2").text;
        assert!(text("dns error: failed to lookup address information").contains("DNS"));
        assert!(text("invalid peer certificate: UnknownIssuer").contains("repo2-storage-ca-file"));
        assert!(text(NO_CREDENTIALS).contains("repo2-s3-key"));
        assert!(!without_answer(NO_CREDENTIALS, "repo1").again);
        let own = "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))";
        assert!(text(own).contains("CA:FALSE"));
        assert!(without_answer("connection reset by peer", "repo1").again);
        assert!(!without_answer("invalid peer certificate: Expired", "repo1").again);
    }

    #[test]
    fn each_refusal_says_what_to_check() {
        for (status, code, kind, says) in [
            (403, "RequestTimeTooSkewed", ErrorKind::Denied, "clock"),
            (
                403,
                "InvalidObjectState",
                ErrorKind::Other,
                "archive storage class",
            ),
            (400, "ExpiredToken", ErrorKind::Denied, "repo1-s3-token"),
            (403, "AccessDenied", ErrorKind::Denied, "s3:ListBucket"),
            (403, "InvalidAccessKeyId", ErrorKind::Denied, "repo1-s3-key"),
            (507, "QuotaExceeded", ErrorKind::Full, "no space"),
        ] {
            let failure = refused(status, Some(code));
            assert_eq!(failure.kind, kind, "{code}");
            assert!(failure.text.contains(says), "{}", failure.text);
            assert!(!failure.again, "{code}");
        }
    }
}
