//! The client that carries a call: one request, its answer's head, and the body in pieces.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Error, ErrorKind, Result, RunContext, Secret};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use tokio::time::Instant;

use crate::config::{ClientConfig, Timeouts};
use crate::prices::vendor_of_host;
use crate::response::{Limits, Response};
use crate::tls;

/// The most idle connections that are kept to one host.
const MAX_IDLE: usize = 64;

/// An HTTP client of one provider. Cheap to clone; clones share their connections.
///
/// It follows no redirect, decompresses nothing, keeps no cookie and reads no setting from the environment. It knows no key:
/// each call brings its own, so that one client serves every tenant.
#[derive(Clone)]
pub struct HttpClient {
    http: reqwest::Client,
    provider: &'static str,
    base_url: Arc<str>,
    timeouts: Timeouts,
}

/// What a call authenticates itself with.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Auth {
    /// Nothing.
    #[default]
    None,
    /// `authorization: Bearer KEY`.
    Bearer(Arc<Secret<String>>),
    /// The key alone, in a header of this name.
    Header(&'static str, Arc<Secret<String>>),
}

/// One call: where to, as whom and with what.
#[derive(Debug)]
#[non_exhaustive]
pub struct Post {
    /// The path below the base URL, beginning with a slash.
    pub path: &'static str,
    /// As whom.
    pub auth: Auth,
    /// Headers of this call.
    pub headers: Vec<(&'static str, String)>,
    /// The body: JSON.
    pub body: Vec<u8>,
}

impl Post {
    /// A call of `path` with a JSON body.
    #[must_use]
    pub fn new(path: &'static str, auth: Auth, body: Vec<u8>) -> Self {
        Self { path, auth, headers: Vec::new(), body }
    }

    /// Sends a header with this call.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl HttpClient {
    /// A client of `provider`, whose name errors carry.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a base URL, a certificate, a proxy or a header that cannot be used.
    pub fn new(provider: &'static str, config: &ClientConfig) -> Result<Self> {
        let base_url = config.checked_base_url()?;
        let timeouts = config.timeouts.unwrap_or_default();
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let (name, value) = header(name, value)?;
            headers.append(name, value);
        }
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(&config.ca_certificates)?)
            .user_agent(concat!("loomflow/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(timeouts.connect)
            .pool_max_idle_per_host(MAX_IDLE)
            .redirect(Policy::none())
            .referer(false)
            .no_proxy();
        if let Some(proxy) = &config.proxy {
            builder =
                builder.proxy(reqwest::Proxy::all(proxy).map_err(|e| unusable("the proxy's address", e))?);
        }
        let http = builder.build().map_err(|e| unusable("the client's configuration", e))?;
        Ok(Self { http, provider, base_url: base_url.into(), timeouts })
    }

    /// The provider's name.
    #[must_use]
    pub fn provider(&self) -> &'static str {
        self.provider
    }

    /// Where the API begins, without a slash at its end.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// How long the parts of a call may take.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The vendor whose list prices hold at this address; `None` for any server whose prices only its operator knows.
    #[must_use]
    pub fn list_vendor(&self) -> Option<&'static str> {
        let url = url::Url::parse(&self.base_url).ok()?;
        (url.scheme() == "https").then(|| vendor_of_host(url.host_str().unwrap_or_default())).flatten()
    }

    /// Sends a call and waits for the head of the answer, whatever its status is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unreachable`] when nothing was sent, [`ErrorKind::Timeout`] and [`ErrorKind::Transport`] when nobody knows
    /// how far it came, and [`ErrorKind::Config`] for a key or header that cannot be sent.
    pub async fn post(&self, ctx: &RunContext, post: Post) -> Result<Response> {
        let (limits, key) = (self.limits(ctx)?, post.auth.key());
        let request = self.request(post)?;
        let wait = self.timeouts.connect.saturating_add(self.timeouts.headers);
        let until = Instant::now().checked_add(wait).unwrap_or(limits.deadline).min(limits.deadline);
        let answer = match tokio::time::timeout_at(until, self.http.execute(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(cause)) => return Err(self.told(failed_to_send(cause))),
            Err(_) => return Err(self.told(no_answer(until < limits.deadline, wait))),
        };
        Ok(Response::new(self.provider, answer, limits, key, ctx.now()))
    }

    fn limits(&self, ctx: &RunContext) -> Result<Limits> {
        let now = Instant::now();
        let own = self.timeouts.total.and_then(|total| now.checked_add(total));
        let deadline = own.map_or(ctx.deadline(), |own| own.min(ctx.deadline()));
        if deadline <= now {
            let message = "the run's deadline passed before the request was sent";
            return Err(self.told(Error::new(ErrorKind::Unreachable, message).with_retryable(false)));
        }
        Ok(Limits { deadline, idle: self.timeouts.idle })
    }

    fn request(&self, post: Post) -> Result<reqwest::Request> {
        let mut builder = self.http.post(format!("{}{}", self.base_url, post.path));
        builder = builder.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in &post.headers {
            let (name, value) = header(name, value)?;
            builder = builder.header(name, value);
        }
        if let Some((name, value)) = post.auth.header()? {
            builder = builder.header(name, value);
        }
        builder.body(post.body).build().map_err(|e| unusable("the request", e))
    }

    fn told(&self, error: Error) -> Error {
        error.with_context("provider", self.provider)
    }
}

impl Auth {
    /// The bearer token `key`; nothing without one.
    #[must_use]
    pub fn bearer(key: Option<Arc<Secret<String>>>) -> Self {
        key.map_or(Self::None, Self::Bearer)
    }

    /// `key` in the header `name`; nothing without one.
    #[must_use]
    pub fn named(name: &'static str, key: Option<Arc<Secret<String>>>) -> Self {
        key.map_or(Self::None, |key| Self::Header(name, key))
    }

    fn key(&self) -> Option<Arc<Secret<String>>> {
        match self {
            Self::None => None,
            Self::Bearer(key) | Self::Header(_, key) => Some(key.clone()),
        }
    }

    fn header(&self) -> Result<Option<(HeaderName, HeaderValue)>> {
        let (name, value) = match self {
            Self::None => return Ok(None),
            Self::Bearer(key) => {
                (AUTHORIZATION, HeaderValue::try_from(format!("Bearer {}", key.expose().trim())))
            }
            Self::Header(name, key) => (
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                    Error::new(ErrorKind::Config, format!("{name:?} is not the name of a header for the key"))
                })?,
                HeaderValue::from_str(key.expose().trim()),
            ),
        };
        // The cause is not attached: it could show the key.
        let mut value = value.map_err(|_| {
            Error::new(
                ErrorKind::Config,
                "the API key has characters that no header can carry; is it the key alone?",
            )
        })?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue)> {
    let bad = |what| {
        Error::new(ErrorKind::Config, format!("the {what} of the extra header {name:?} cannot be sent"))
    };
    let value = HeaderValue::from_str(value).map_err(|_| bad("value"))?;
    Ok((HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("name"))?, value))
}

fn unusable(what: &str, cause: reqwest::Error) -> Error {
    Error::new(ErrorKind::Config, format!("{what} cannot be used: {}", causes(&cause.without_url())))
}

fn failed_to_send(cause: reqwest::Error) -> Error {
    let cause = cause.without_url();
    let (kind, what) = if cause.is_connect() {
        (ErrorKind::Unreachable, "the provider could not be reached, and nothing was sent")
    } else {
        (ErrorKind::Transport, "the connection broke before the provider answered")
    };
    let why = causes(&cause);
    // The TLS library's word for an answer that is no TLS at all.
    let hint =
        if why.contains("InvalidContentType") { " (is it a server without TLS, at http://?)" } else { "" };
    Error::new(kind, format!("{what}: {why}{hint}"))
}

fn no_answer(by_headers: bool, wait: Duration) -> Error {
    if by_headers {
        let message = format!("the provider did not begin to answer within {wait:?}");
        Error::new(ErrorKind::Timeout, message).with_retryable(true)
    } else {
        Error::new(ErrorKind::Timeout, "the time of the call was over before the provider began to answer")
    }
}

/// An error's causes on one line, the outermost left out: it says that there was an error.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !words.iter().any(|word| word.contains(&text)) {
            words.push(text);
        }
        cause = inner.source();
    }
    if words.is_empty() {
        crate::text::plain(&error.to_string(), 300)
    } else {
        crate::text::plain(&words.join(": "), 300)
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpClient({} at {})", self.provider, self.base_url)
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bearer(_) => f.write_str("Bearer(..)"),
            Self::Header(name, _) => write!(f, "Header({name}, ..)"),
        }
    }
}
