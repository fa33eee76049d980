//! The client of the AWS SDK: by which key, through which connections, and that it leaves all waiting to us.
//!
//! Promises: temporary credentials are fetched anew before they expire, however long a run takes. Refuses a file or a
//! folder of certificates that holds none.

use std::sync::Arc;

use aws_config::BehaviorVersion;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents, SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::{Connector, proxy::ProxyConfig, tls};

use crate::storage::s3::answer::chain;
use crate::storage::s3::bucket::{Credential, S3Key, S3Options, certificates, is_aws};

/// The settings of the SDK: its retries and its idea of stalled streams are off, for both are ours.
pub(super) async fn configuration(
    options: &S3Options,
    http: Option<SharedHttpClient>,
) -> aws_sdk_s3::Config {
    let version = BehaviorVersion::v2026_01_12();
    let given = options.region.clone().map(Region::new);
    let region = given.or_else(|| (!is_aws(options)).then(|| Region::from_static("us-east-1")));
    let credential = match &options.credential {
        Credential::Key(key) => Some(SharedCredentialsProvider::new(credentials(key))),
        Credential::Role(role) => {
            let provider = ImdsCredentialsProvider::builder()
                .profile(role.as_str())
                .build();
            Some(SharedCredentialsProvider::new(provider))
        }
        Credential::Chain => None,
    };
    let builder = match credential {
        Some(credential) if region.is_some() => Builder::new()
            .behavior_version(version)
            .credentials_provider(credential),
        credential => {
            let mut loader = aws_config::defaults(version);
            if let Some(region) = &region {
                loader = loader.region(region.clone());
            }
            if let Some(credential) = credential {
                loader = loader.credentials_provider(credential);
            }
            Builder::from(&loader.load().await)
        }
    };
    let (requests, responses) = if is_aws(options) {
        (
            RequestChecksumCalculation::WhenSupported,
            ResponseChecksumValidation::WhenSupported,
        )
    } else {
        (
            RequestChecksumCalculation::WhenRequired,
            ResponseChecksumValidation::WhenRequired,
        )
    };
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(options.patience.connect)
        .build();
    let mut builder = builder
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .request_checksum_calculation(requests)
        .response_checksum_validation(responses)
        .force_path_style(options.path_style);
    if let Some(region) = region {
        builder = builder.region(region);
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    if let Some(http) = http {
        builder = builder.http_client(http);
    }
    builder.build()
}

fn credentials(key: &S3Key) -> Credentials {
    Credentials::new(
        &key.id,
        &key.secret,
        key.token.clone(),
        None,
        "repo1-s3-key",
    )
}

/// The connections to use, where they are not the SDK's own: without TLS, or trusting certificates of a file.
pub(super) fn http_client(options: &S3Options) -> Result<Option<SharedHttpClient>, String> {
    let endpoint = options.endpoint.as_deref().unwrap_or_default();
    if endpoint.starts_with("http://") {
        return Ok(Some(aws_smithy_http_client::Builder::new().build_http()));
    }
    if options.ca.is_empty() {
        return Ok(None);
    }
    let mut store = tls::TrustStore::empty();
    for path in &options.ca {
        store = store.with_pem_certificate(certificates(path)?);
    }
    let context = tls::TlsContext::builder()
        .with_trust_store(store)
        .build()
        .map_err(|error| format!("{:?}: {}", options.ca, chain(&error)))?;
    let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
    let connect = Arc::new((provider, context));
    let client = aws_smithy_http_client::Builder::new().build_with_connector_fn(
        move |settings, components| {
            let (provider, context) = connect.as_ref();
            let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
            if let Some(settings) = settings {
                connector = connector.connector_settings(settings.clone());
            }
            connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
            connector
                .tls_provider(provider.clone())
                .tls_context(context.clone())
                .build()
        },
    );
    Ok(Some(client))
}
