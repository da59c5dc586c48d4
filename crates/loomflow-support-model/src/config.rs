//! Where a provider is and how long it may take.

use std::fmt;
use std::time::Duration;

use loomflow_core::{Error, ErrorKind, Result};
use url::Url;

/// How long the parts of a call may take. What a run has left bounds them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Until the connection stands, its TLS handshake included: 5 s.
    pub connect: Duration,
    /// From then until the answer's headers are there: 60 s. See [`Timeouts::for_whole_replies`], too.
    pub headers: Duration,
    /// Between two pieces of the body: 60 s.
    pub idle: Duration,
    /// All of it; `None`, the default, leaves it to the run's deadline.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { connect: Duration::from_secs(5), headers: minute, idle: minute, total: None }
    }
}

impl Timeouts {
    /// The defaults for replies that are not streamed: the headers, which come when all of it is generated, may take ten minutes.
    #[must_use]
    pub fn for_whole_replies() -> Self {
        Self::default().with_headers(Duration::from_mins(10))
    }

    /// Sets the time until the connection stands.
    #[must_use]
    pub fn with_connect(mut self, limit: Duration) -> Self {
        self.connect = limit;
        self
    }

    /// Sets the time until the headers are there.
    #[must_use]
    pub fn with_headers(mut self, limit: Duration) -> Self {
        self.headers = limit;
        self
    }

    /// Sets the time between two pieces of the body.
    #[must_use]
    pub fn with_idle(mut self, limit: Duration) -> Self {
        self.idle = limit;
        self
    }

    /// Sets the time for all of it.
    #[must_use]
    pub fn with_total(mut self, limit: Duration) -> Self {
        self.total = Some(limit);
        self
    }
}

/// What an [`HttpClient`](crate::HttpClient) is made of.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Where the provider's API begins, such as `https://api.openai.com/v1`.
    pub base_url: String,
    /// How long it may take; `None` is [`Timeouts::default`], or [`Timeouts::for_whole_replies`] where an adapter asks for those.
    pub timeouts: Option<Timeouts>,
    /// Certificates (PEM) of authorities to trust beside the platform's.
    pub ca_certificates: Vec<String>,
    /// A proxy for every request. The environment's proxy settings are not read.
    pub proxy: Option<String>,
    /// Headers of every request. Not for credentials: those are an [`ApiKey`](crate::ApiKey).
    pub headers: Vec<(String, String)>,
}

impl ClientConfig {
    /// A client of the API at `base_url`.
    #[must_use]
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            timeouts: None,
            ca_certificates: Vec::new(),
            proxy: None,
            headers: Vec::new(),
        }
    }

    /// Sets where the API begins.
    #[must_use]
    pub fn with_base_url(mut self, base_url: impl Into<String>) -> Self {
        self.base_url = base_url.into();
        self
    }

    /// Sets how long it may take.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = Some(timeouts);
        self
    }

    /// Trusts the authorities in `pem`, too.
    #[must_use]
    pub fn with_ca_certificates(mut self, pem: impl Into<String>) -> Self {
        self.ca_certificates.push(pem.into());
        self
    }

    /// Sends every request through the proxy at `url`.
    #[must_use]
    pub fn with_proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Sends a header with every request.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The base URL, checked, without a slash at its end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] unless it is `http` or `https` with a host and without user, query and fragment.
    pub fn checked_base_url(&self) -> Result<String> {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::Config,
                format!("the base URL {why}; it begins with http:// or https:// and a host"),
            )
        };
        let url = Url::parse(self.base_url.trim()).map_err(|e| bad(&format!("cannot be read ({e})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("is neither http nor https"));
        }
        if url.host_str().unwrap_or_default().is_empty() {
            return Err(bad("has no host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("carries a user or password: give the key as an ApiKey instead"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("has a query or a fragment, and paths are put to its end"));
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
}

/// Writes the setters that every adapter's configuration has for its client, which it keeps in the field `client`.
#[macro_export]
macro_rules! client_settings {
    () => {
        /// Sets where the API begins. What form that takes, and where it begins unless it is said, stands on the crate's page.
        pub fn with_base_url(mut self, base_url: impl Into<String>) -> Self {
            self.client = self.client.with_base_url(base_url);
            self
        }

        /// Sets how long the parts of a call may take. Without this they are the defaults of
        /// [`Timeouts`]($crate::Timeouts), but for what is known to take longer: the headers of a whole reply, and a model
        /// that reasons in silence.
        pub fn with_timeouts(mut self, timeouts: $crate::Timeouts) -> Self {
            self.client = self.client.with_timeouts(timeouts);
            self
        }

        /// Sets everything about the client at once: address, timeouts, authorities, proxy, headers.
        pub fn with_client(mut self, client: $crate::ClientConfig) -> Self {
            self.client = client;
            self
        }

        /// Trusts the certificate authorities in `pem` beside the platform's.
        pub fn with_ca_certificates(mut self, pem: impl Into<String>) -> Self {
            self.client = self.client.with_ca_certificates(pem);
            self
        }

        /// Sends every request through a proxy. The environment's settings are not read.
        pub fn with_proxy(mut self, url: impl Into<String>) -> Self {
            self.client = self.client.with_proxy(url);
            self
        }

        /// Sends a header with every request. Not for a key: that is an [`ApiKey`]($crate::ApiKey).
        pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            self.client = self.client.with_header(name, value);
            self
        }
    };
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ClientConfig")
            .field("base_url", &without_secrets(&self.base_url))
            .field("timeouts", &self.timeouts)
            .field("ca_certificates", &self.ca_certificates.len())
            .field("proxy", &self.proxy.as_deref().map(without_secrets))
            .field("headers", &names)
            .finish()
    }
}

/// An address without its user, query and fragment, to be shown.
pub(crate) fn without_secrets(address: &str) -> String {
    match Url::parse(address) {
        Ok(mut url) => {
            url.set_query(None);
            url.set_fragment(None);
            // Both fail only for addresses that cannot have a user.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.into()
        }
        // It may be relative, or anything: its path is enough.
        Err(_) => {
            let path = address.split(['?', '#']).next().unwrap_or_default();
            if path.contains('@') { "(not shown)".to_owned() } else { crate::text::plain(path, 200) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_checked_and_normalised() {
        let check = |url: &str| ClientConfig::new(url).checked_base_url();
        assert_eq!(check("http://127.0.0.1:9000/v1/").unwrap(), "http://127.0.0.1:9000/v1");
        assert_eq!(check(" https://API.example.com ").unwrap(), "https://api.example.com");
        for (bad, why) in [
            ("", "cannot be read"),
            ("api.openai.com/v1", "cannot be read"),
            ("ftp://a/b", "neither http nor https"),
            ("file:///etc/passwd", "neither"),
            ("https://user:pw@a/v1", "user or password"),
            ("https://a/v1?key=secret", "query"),
            ("https://a/v1#x", "fragment"),
        ] {
            let error = check(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(why), "{bad}: {error}");
            assert!(!error.message().contains("pw") && !error.message().contains("secret"), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_credential() {
        let config = ClientConfig::new("https://u:hidden@a/v1")
            .with_proxy("http://u:hidden@proxy:3128")
            .with_header("x-team", "hidden")
            .with_ca_certificates("hidden");
        let shown = format!("{config:?}");
        assert!(
            !shown.contains("hidden") && shown.contains("x-team") && shown.contains("proxy:3128"),
            "{shown}"
        );
    }
}
