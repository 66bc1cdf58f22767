//! The key set that tokens are verified with: read at the start and again and again, from a file or a page. A set that cannot be
//! read or used leaves the one before it in use.

use crate::config::auth::{JwksPlace, JwtConfig};
use anyhow::Context;
use quorate_endpoint::{PageClient, PageLimits, PageUrl};
use quorate_gateway::{UpstreamConfig, upstream_client_config};
use quorate_routing::identity::{Authenticator, Jwks, Verifier};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest set that is read.
const MAX_BYTES: usize = 1 << 20;

/// How often the set is looked at.
struct Pace {
    /// After it was read.
    refresh: Duration,
    /// After it could not be read.
    retry: Duration,
    /// Time for one look.
    timeout: Duration,
}

impl Pace {
    fn new(refresh: Duration) -> Self {
        Self {
            refresh,
            retry: Duration::from_secs(5).min(refresh),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Keeps the authenticator's keys up to date until `stop`.
///
/// # Errors
/// The place of the set, or the authority for it, cannot be used.
pub fn follow(
    config: &JwtConfig,
    authenticator: Arc<Authenticator>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    follow_at(Pace::new(config.refresh.0), config, authenticator, stop)
}

fn follow_at(
    pace: Pace,
    config: &JwtConfig,
    authenticator: Arc<Authenticator>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let place = config.place()?;
    let client = match &place {
        JwksPlace::File(_) => None,
        JwksPlace::Page(page) => Some(client(page, config)?),
    };
    let (rules, shown) = (config.rules(), config.jwks.clone());
    tokio::spawn(async move {
        let mut last = String::new();
        loop {
            let read = match (&place, &client) {
                (JwksPlace::Page(page), Some(client)) => fetch(client, page, pace.timeout).await,
                (JwksPlace::File(path), _) => from_file(path).await,
                (JwksPlace::Page(_), None) => return,
            };
            let wait = match read.and_then(|text| {
                if text != last {
                    let keys = Jwks::parse(&text)?;
                    tracing::info!(jwks = shown, keys = keys.len(), "tokens are accepted");
                    authenticator.set_verifier(Arc::new(Verifier {
                        rules: rules.clone(),
                        keys,
                    }));
                    last = text;
                }
                Ok(())
            }) {
                Ok(()) => pace.refresh,
                Err(error) => {
                    tracing::warn!(
                        jwks = shown,
                        "the key set for tokens cannot be used: {error:#}"
                    );
                    metrics::counter!("quorate_jwks_errors_total").increment(1);
                    pace.retry
                }
            };
            if stop
                .run_until_cancelled(tokio::time::sleep(wait))
                .await
                .is_none()
            {
                return;
            }
        }
    });
    Ok(())
}

fn client(page: &PageUrl, config: &JwtConfig) -> anyhow::Result<PageClient> {
    let tls = if page.target.tls {
        let upstream = UpstreamConfig {
            ca: config.ca.clone(),
            ..UpstreamConfig::default()
        };
        Some(upstream_client_config(&upstream).context("auth.jwt.ca")?)
    } else {
        None
    };
    Ok(PageClient::new(page.target.clone(), false, tls))
}

async fn fetch(client: &PageClient, page: &PageUrl, timeout: Duration) -> anyhow::Result<String> {
    let limits = PageLimits {
        timeout,
        body: MAX_BYTES,
    };
    let answer = client.get(&page.path, limits).await?;
    anyhow::ensure!(
        answer.status.is_success(),
        "the answer is {}",
        answer.status
    );
    Ok(String::from_utf8(answer.body.to_vec())?)
}

async fn from_file(path: &Path) -> anyhow::Result<String> {
    let size = tokio::fs::metadata(path).await?.len();
    anyhow::ensure!(
        size <= MAX_BYTES as u64,
        "it is longer than {MAX_BYTES} bytes"
    );
    Ok(tokio::fs::read_to_string(path).await?)
}

#[cfg(test)]
mod tests;
