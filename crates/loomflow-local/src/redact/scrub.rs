//! The scrubber: exact secrets first, then shapes.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use loomflow_core::{Scrub, Secret};
use parking_lot::RwLock;

use crate::redact::exact::Exact;
use crate::redact::patterns::{Patterns, names_a_secret};

const MARK: &str = "[redacted]";
const DEFAULT_MAX_SECRETS: usize = 4_096;

/// Takes secrets out of text and puts `[redacted]` in their place.
///
/// - Every registered secret of 8 bytes or more is found exactly: raw, as a JSON string, percent-encoded, and within
///   base64 (standard and URL-safe, at any alignment). The newest 4,096 are kept.
/// - About 45 well-known shapes are found whoever they belong to: provider keys, tokens, private keys, JSON web tokens,
///   passwords in URLs, and the values of `password=`, `api_key=`, `token=` and their like. A scheme (`Bearer`) and a
///   name stay readable.
/// - In JSON the whole value of a member is taken out when the member's name says that it is a secret, such as
///   `password`, `apiKey` or `db-access-token`. Counts, such as `input_tokens`, stay.
///
/// A secret that is cut in two by the caller, such as by streaming, is found in neither half.
///
/// The automaton that finds registered secrets holds copies of them for as long as the scrubber lives.
#[derive(Debug)]
pub struct PatternScrub {
    patterns: Patterns,
    exact: RwLock<Exact>,
    /// Whether there is any registered secret: most text is scrubbed before the first.
    any: AtomicBool,
}

impl PatternScrub {
    /// A scrubber that knows the shapes and no secret yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_secrets(DEFAULT_MAX_SECRETS)
    }

    /// A scrubber that keeps the newest `max` registered secrets, at least one.
    #[must_use]
    pub fn with_max_secrets(max: usize) -> Self {
        Self { patterns: Patterns::new(), exact: RwLock::new(Exact::new(max)), any: AtomicBool::new(false) }
    }
}

impl Default for PatternScrub {
    fn default() -> Self {
        Self::new()
    }
}

impl Scrub for PatternScrub {
    fn scrub<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let exact = if self.any.load(Ordering::Acquire) { self.exact.read().scrub(text, MARK) } else { None };
        match self.patterns.scrub(exact.as_deref().unwrap_or(text), MARK).or(exact) {
            Some(clean) => Cow::Owned(clean),
            None => Cow::Borrowed(text),
        }
    }

    fn scrub_member<'t>(&self, key: &str, value: &'t str) -> Cow<'t, str> {
        if value.is_empty() || value == MARK || !names_a_secret(key) {
            return self.scrub(value);
        }
        Cow::Borrowed(MARK)
    }

    fn register(&self, secret: &Arc<Secret<String>>) {
        // A secret is registered each time it is resolved: the common case must not block readers.
        if self.exact.read().knows(secret.expose()) {
            return;
        }
        if self.exact.write().register(secret) {
            self.any.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
