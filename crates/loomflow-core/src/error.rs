//! One error type: callers branch on its kind, people read its context, and it never carries a credential.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::ledger::Refusal;
use crate::rate_limit::Limited;

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, in a form a program can branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What the caller gave cannot be used; nothing was done.
    InvalidInput,
    /// The configuration or the way the parts were put together is wrong.
    Config,
    /// Not there, or not the caller's: the two are the same answer.
    NotFound,
    /// Somebody else holds it, or it was used up already.
    Conflict,
    /// A cap refused it; [`Error::refusal`] says whose and until when.
    BudgetExceeded,
    /// Policy refused it.
    Denied,
    /// A limit on rate or concurrency refused it: the provider's, or one of ours, which [`Error::limited`] then names.
    RateLimited,
    /// A bounded table is full, and nothing in it may be given away.
    Capacity,
    /// The tenant's data was erased after this scope was minted; the write was refused.
    Erased,
    /// A store handed out something that belongs to another tenant. It was not passed on.
    IsolationViolation,
    /// The deadline passed.
    Timeout,
    /// The provider is overloaded or failed on its side.
    Overloaded,
    /// The provider did not accept the credential.
    Auth,
    /// The provider refused the content.
    ContentFilter,
    /// The provider refused the request as malformed.
    BadRequest,
    /// The prompt does not fit the model.
    ContextTooLong,
    /// A model stream ended without its end.
    Truncated,
    /// The network, a file or a server failed, and how far the request came is not known.
    Transport,
    /// The server could not be reached: nothing was sent.
    Unreachable,
    /// The final output did not meet its schema within the allowed retries.
    OutputInvalid,
    /// The part that was asked does not offer this; the message names who and what.
    Unsupported,
    /// A defect: an invariant did not hold, or a part panicked.
    Internal,
}

impl ErrorKind {
    /// The kind's stable name, as used in audit records and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::Config => "config",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::BudgetExceeded => "budget_exceeded",
            Self::Denied => "denied",
            Self::RateLimited => "rate_limited",
            Self::Capacity => "capacity",
            Self::Erased => "erased",
            Self::IsolationViolation => "isolation_violation",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Auth => "auth",
            Self::ContentFilter => "content_filter",
            Self::BadRequest => "bad_request",
            Self::ContextTooLong => "context_too_long",
            Self::Truncated => "truncated",
            Self::Transport => "transport",
            Self::Unreachable => "unreachable",
            Self::OutputInvalid => "output_invalid",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }

    fn retryable(self) -> bool {
        matches!(self, Self::RateLimited | Self::Overloaded | Self::Transport | Self::Unreachable)
    }
}

/// An error of any part of LoomFlow: kind, retryability, operation, message, context, source.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    operation: &'static str,
    context: Vec<(&'static str, String)>,
    retryable: bool,
    retry_after: Option<Duration>,
    refusal: Option<Box<Refusal>>,
    limited: Option<Box<Limited>>,
    source: Option<Source>,
}

impl Error {
    /// An error of `kind`. Put no credential and no other tenant's data into `message`.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            operation: "",
            context: Vec::new(),
            retryable: kind.retryable(),
            retry_after: None,
            refusal: None,
            limited: None,
            source: None,
        }))
    }

    /// The caller's input cannot be used.
    #[must_use]
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// `who` does not offer `what`.
    #[must_use]
    pub fn unsupported(who: impl fmt::Display, what: &'static str) -> Self {
        Self::new(ErrorKind::Unsupported, format!("{who} does not support {what}")).with_operation(what)
    }

    /// The partition was erased after the scope of this write was minted.
    #[must_use]
    pub fn erased(operation: &'static str) -> Self {
        Self::new(
            ErrorKind::Erased,
            "the tenant's data was erased after this run began; the write was refused",
        )
        .with_operation(operation)
    }

    /// A cap refused.
    #[must_use]
    pub fn refused(refusal: Refusal) -> Self {
        let kind = refusal.error_kind();
        let mut error = Self::new(kind, refusal.to_string());
        error.0.refusal = Some(Box::new(refusal));
        error
    }

    /// A rate limit of ours let it not through. The error says when to try again, and is not retryable where the answer would
    /// be the same for ever.
    #[must_use]
    pub fn over_limit(limited: Limited) -> Self {
        let mut error = Self::new(limited.error_kind(), limited.to_string());
        error.0.retryable = limited.retry_after.is_some();
        error.0.retry_after = limited.retry_after;
        error.0.limited = Some(Box::new(limited));
        error
    }

    /// Names the operation that failed.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.0.operation = operation;
        self
    }

    /// Adds a key and a value for the reader. Never a credential.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Overrides whether trying again can help.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying the same thing again can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// When trying again makes sense, if that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The operation that failed; empty when it was not named.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// Keys and values for the reader.
    #[must_use]
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// The message alone, without operation, context and source.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whose cap refused, how much of it is used, and when it resets.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.0.refusal.as_deref()
    }

    /// Which rate limit of ours let it not through, whose it is, and when to try again. `None` for a provider's.
    #[must_use]
    pub fn limited(&self) -> Option<&Limited> {
        self.0.limited.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        if !inner.operation.is_empty() {
            write!(f, "{}: ", inner.operation)?;
        }
        f.write_str(&inner.message)?;
        for (key, value) in &inner.context {
            write!(f, " [{key}={value}]")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as &(dyn StdError + 'static))
    }
}
