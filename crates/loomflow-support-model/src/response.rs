//! The answer of a provider: its head, and its body in pieces that keep to their bounds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Error, ErrorKind, Result, Secret, Timestamp};
use tokio::time::Instant;

use crate::client::causes;
use crate::decode::broke_protocol;
use crate::key::without_key;
use crate::text::plain;

/// Where providers put the id of a request.
const REQUEST_IDS: [&str; 4] = ["x-request-id", "request-id", "apim-request-id", "x-ms-request-id"];
/// The longest id that is kept, in characters.
const MAX_REQUEST_ID: usize = 128;

/// The longest that the body of an error is waited for. It comes with its head, or it can be done without.
const ERROR_BODY: Duration = Duration::from_secs(5);

/// How long the rest of an answer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) deadline: Instant,
    pub(crate) idle: Duration,
}

/// The head of an answer, and its body still to be read. Dropping it gives up the rest, and the connection with it.
pub struct Response {
    answer: reqwest::Response,
    limits: Limits,
    told: Told,
    at: Timestamp,
}

/// What every error of an answer carries, and what none may.
#[derive(Clone)]
pub(crate) struct Told {
    provider: &'static str,
    request_id: Option<Arc<str>>,
    key: Option<Arc<Secret<String>>>,
}

impl Response {
    pub(crate) fn new(
        provider: &'static str,
        answer: reqwest::Response,
        limits: Limits,
        key: Option<Arc<Secret<String>>>,
        at: Timestamp,
    ) -> Self {
        let mut response = Self { answer, limits, told: Told { provider, request_id: None, key }, at };
        let id = REQUEST_IDS.iter().find_map(|name| response.header(name));
        let id = id.map(|id| without_key(&plain(id, MAX_REQUEST_ID), response.told.key.as_deref()));
        response.told.request_id = id.filter(|id| !id.is_empty()).map(Arc::from);
        response
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.answer.status().as_u16()
    }

    /// A header that is text, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.answer.headers().get(name)?.to_str().ok()
    }

    /// The media type in lower case, without its parameters; empty when there is none.
    #[must_use]
    pub fn media_type(&self) -> String {
        let value = self.header("content-type").unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// The provider's id of the request.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.told.request_id.as_deref()
    }

    /// When the head was there.
    pub(crate) fn at(&self) -> Timestamp {
        self.at
    }

    pub(crate) fn told(&self) -> &Told {
        &self.told
    }

    /// An error about this answer, as it may be shown: with the provider and the request's id, without the key.
    #[must_use]
    pub fn tell(&self, error: Error) -> Error {
        self.told.tell(error)
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>> {
        let Limits { deadline, idle } = self.limits;
        let until = Instant::now().checked_add(idle).unwrap_or(deadline).min(deadline);
        match tokio::time::timeout_at(until, self.answer.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(cause)) => {
                let why = causes(&cause.without_url());
                Err(Error::new(ErrorKind::Transport, format!("the answer broke off: {why}")))
            }
            Err(_) if until < deadline => {
                let message = format!("the answer stood still for {idle:?}");
                Err(Error::new(ErrorKind::Timeout, message).with_retryable(true))
            }
            Err(_) => Err(Error::new(ErrorKind::Timeout, "the time of the call was over within the answer")),
        }
    }

    /// The whole body.
    ///
    /// # Errors
    ///
    /// [`broke_protocol`] for one of more than `max` bytes, [`ErrorKind::Timeout`] and [`ErrorKind::Transport`] for one that
    /// does not come to its end.
    pub async fn read_all(&mut self, max: usize) -> Result<Vec<u8>> {
        let (mut body, cut) = self.read_up_to(max).await.map_err(|e| self.tell(e))?;
        if cut {
            return Err(self.tell(broke_protocol(format!("the answer is larger than {max} bytes"))));
        }
        body.shrink_to_fit();
        Ok(body)
    }

    /// The first `max` bytes of a body that only explains, as far as they come soon. A server that drips them must not hold
    /// up a call whose outcome is known.
    pub(crate) async fn explanation(&mut self, max: usize) -> Vec<u8> {
        let limit = self.limits.idle.min(ERROR_BODY);
        let mut body = Vec::new();
        // Whether it came to its end changes nothing.
        let _ = tokio::time::timeout(limit, self.read_into(&mut body, max)).await;
        body
    }

    /// The first `max` bytes of the body, and whether there are more.
    async fn read_up_to(&mut self, max: usize) -> Result<(Vec<u8>, bool)> {
        let mut body = Vec::new();
        let cut = self.read_into(&mut body, max).await?;
        Ok((body, cut))
    }

    async fn read_into(&mut self, body: &mut Vec<u8>, max: usize) -> Result<bool> {
        while let Some(chunk) = self.chunk().await? {
            let chunk = chunk.as_ref();
            let fits = chunk.len().min(max - body.len());
            body.extend_from_slice(&chunk[..fits]);
            if fits < chunk.len() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Told {
    pub(crate) fn request_id(&self) -> Option<&Arc<str>> {
        self.request_id.as_ref()
    }

    pub(crate) fn tell(&self, error: Error) -> Error {
        let mut error = self.scrubbed(error).with_context("provider", self.provider);
        let named = error.context().iter().any(|(name, _)| *name == "request_id");
        if let Some(id) = self.request_id.as_ref().filter(|_| !named) {
            error = error.with_context("request_id", id);
        }
        error
    }

    /// The error without the key, should the server have echoed it.
    fn scrubbed(&self, error: Error) -> Error {
        let key = self.key.as_deref();
        let message = without_key(error.message(), key);
        let context: Vec<_> =
            error.context().iter().map(|(name, value)| (*name, without_key(value, key))).collect();
        if message == error.message() && error.context() == context {
            return error;
        }
        // Its source is left behind: it could show the same.
        let clean = Error::new(error.kind(), message)
            .with_retryable(error.is_retryable())
            .with_operation(error.operation());
        let clean = match error.retry_after() {
            Some(after) => clean.with_retry_after(after),
            None => clean,
        };
        context.into_iter().fold(clean, |clean, (name, value)| clean.with_context(name, value))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} {} {:?})", self.told.provider, self.status(), self.request_id())
    }
}
