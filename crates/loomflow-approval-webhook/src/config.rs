//! Where the webhook is, what it is signed with, and how long it is tried.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Error, ErrorKind, Result, Secret};
use loomflow_support_model::{ClientConfig, Timeouts};
use serde::Deserialize;
use url::{Host, Url};

/// The least bytes of a secret.
const LEAST_SECRET: usize = 32;

/// Where the webhook is, what it is signed with, and how long it is tried. `Debug` shows neither the URL, whose path may be a
/// secret, nor the secret.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct WebhookConfig {
    /// Where requests are posted to: `https://`, or `http://` on this machine. Without user, query and fragment.
    #[serde(deserialize_with = "loomflow_core::settings::secret")]
    pub url: Arc<Secret<String>>,
    /// What bodies are signed with, both ways: at least 32 bytes, known to the receiver alone.
    #[serde(deserialize_with = "loomflow_core::settings::secret")]
    pub secret: Arc<Secret<String>>,
    /// How often a request is sent at the most, the first time included; 4 by default.
    #[serde(default = "attempts")]
    pub attempts: u32,
    /// How long one attempt may take; 5 s by default. The agent's limit for its handler bounds all of them.
    #[serde(default = "attempt_timeout")]
    pub attempt_timeout: Duration,
    /// How long it is until the second attempt, and twice as long until each next; each with a jitter of a half. 250 ms by
    /// default.
    #[serde(default = "backoff")]
    pub backoff: Duration,
    /// How old the signature of an answer may be; 5 minutes by default.
    #[serde(default = "tolerance")]
    pub tolerance: Duration,
    /// Certificates (PEM) of authorities to trust beside the platform's.
    #[serde(default)]
    pub ca_certificates: Vec<String>,
}

impl WebhookConfig {
    /// Posts to `url`, signed with `secret`.
    #[must_use]
    pub fn new(url: impl Into<String>, secret: Secret<String>) -> Self {
        Self {
            url: Arc::new(Secret::new(url.into())),
            secret: Arc::new(secret),
            attempts: attempts(),
            attempt_timeout: attempt_timeout(),
            backoff: backoff(),
            tolerance: tolerance(),
            ca_certificates: Vec::new(),
        }
    }

    /// Sets how often a request is sent at the most; less than 1 counts as 1.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets how long one attempt may take.
    #[must_use]
    pub fn with_attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = limit;
        self
    }

    /// Sets how long it is until the second attempt.
    #[must_use]
    pub fn with_backoff(mut self, pause: Duration) -> Self {
        self.backoff = pause;
        self
    }

    /// Sets how old the signature of an answer may be.
    #[must_use]
    pub fn with_tolerance(mut self, age: Duration) -> Self {
        self.tolerance = age;
        self
    }

    /// Trusts the authorities in `pem`, too.
    #[must_use]
    pub fn with_ca_certificates(mut self, pem: impl Into<String>) -> Self {
        self.ca_certificates.push(pem.into());
        self
    }

    /// A client of the webhook.
    pub(crate) fn client(&self) -> Result<ClientConfig> {
        if self.secret.expose().len() < LEAST_SECRET {
            return Err(config("the webhook's secret is too short; make one of at least 32 random bytes"));
        }
        let url = Url::parse(self.url.expose()).map_err(|_| config("the webhook's URL cannot be read"))?;
        let local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if url.scheme() != "https" && !(url.scheme() == "http" && local) {
            return Err(config("the webhook's URL begins with https://; http:// is for this machine alone"));
        }
        let limit = self.attempt_timeout;
        let timeouts = Timeouts::default().with_connect(limit).with_headers(limit).with_idle(limit);
        let client = ClientConfig::new(self.url.expose().as_str()).with_timeouts(timeouts.with_total(limit));
        Ok(self.ca_certificates.iter().fold(client, |client, pem| client.with_ca_certificates(pem.as_str())))
    }
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig")
            .field("url", &"(secret)")
            .field("secret", &"(secret)")
            .field("attempts", &self.attempts)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("backoff", &self.backoff)
            .field("tolerance", &self.tolerance)
            .finish_non_exhaustive()
    }
}

fn config(why: &str) -> Error {
    Error::new(ErrorKind::Config, why.to_owned()).with_operation("approval webhook")
}

fn attempts() -> u32 {
    4
}

fn attempt_timeout() -> Duration {
    Duration::from_secs(5)
}

fn backoff() -> Duration {
    Duration::from_millis(250)
}

fn tolerance() -> Duration {
    Duration::from_secs(300)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_is_https_or_on_this_machine_and_its_secret_is_long() {
        let made = |url: &str, bytes: usize| {
            let config = WebhookConfig::new(url, Secret::new("s".repeat(bytes)));
            let shown = format!("{config:?}");
            assert!(!shown.contains("://") && !shown.contains("/x") && !shown.contains("ssss"), "{shown}");
            config.client().map(drop).map_err(|e| e.kind())
        };
        for url in
            ["https://hook.example/x", "http://127.0.0.1:1/hook", "http://localhost/hook", "http://[::1]/"]
        {
            assert_eq!(made(url, 32), Ok(()), "{url}");
        }
        for url in [
            "http://hook.example/x",
            "http://127.0.0.1.example/hook",
            "ftp://localhost/hook",
            "hook",
            "http://10.0.0.1/",
        ] {
            assert_eq!(made(url, 32), Err(ErrorKind::Config), "{url}");
        }
        assert_eq!(made("https://hook.example/x", 31), Err(ErrorKind::Config));
    }
}
