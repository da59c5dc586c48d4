//! Whose key a call is made with.

use std::fmt;
use std::sync::Arc;

use loomflow_core::{Error, ErrorKind, Result, RunContext, Secret, SecretRef};

/// A provider's key, or where it comes from. It belongs to calls, never to a connection.
///
/// A [`SecretRef`] is resolved for each call and each tenant, so that every tenant may bring a key of its own; each
/// such resolution is audited. A fixed [`Secret`] is everybody's.
///
/// A key in plain text is not accepted, so that none is written into code:
///
/// ```compile_fail
/// let _ = loomflow_support_model::ApiKey::from("sk-very-secret");
/// ```
///
/// ```
/// use loomflow_core::SecretRef;
/// let _ = loomflow_support_model::ApiKey::from(SecretRef::new("OPENAI_API_KEY")?);
/// # Ok::<(), loomflow_core::Error>(())
/// ```
#[derive(Clone)]
pub struct ApiKey(Origin);

#[derive(Clone)]
enum Origin {
    None,
    Named(SecretRef),
    Fixed(Arc<Secret<String>>),
}

impl ApiKey {
    /// No key at all: for servers that ask for none.
    #[must_use]
    pub fn none() -> Self {
        Self(Origin::None)
    }

    /// The key of this call; `None` where none is sent.
    ///
    /// # Errors
    ///
    /// What [`RunContext::secret`] fails with, and [`ErrorKind::Config`] for an empty key. A kind that would say that a request
    /// may have been taken becomes [`ErrorKind::Unreachable`]: the call is not charged for a secret store that is down.
    pub async fn resolve(&self, ctx: &RunContext) -> Result<Option<Arc<Secret<String>>>> {
        let key = match &self.0 {
            Origin::None => return Ok(None),
            Origin::Named(name) => ctx.secret(name).await.map_err(nothing_was_sent)?,
            Origin::Fixed(key) => {
                ctx.redactor().register(key);
                key.clone()
            }
        };
        let trimmed = key.expose().trim();
        if trimmed.is_empty() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the API key ({self:?}) is empty; for a server without keys use ApiKey::none()"),
            ));
        }
        if trimmed.len() == key.expose().len() {
            return Ok(Some(key));
        }
        // Read from a file, it ends with a line feed. What is sent, and what a server may echo, has none, so that is what the
        // redactor must know.
        let sent = Arc::new(Secret::new(trimmed.to_owned()));
        ctx.redactor().register(&sent);
        Ok(Some(sent))
    }
}

fn nothing_was_sent(error: Error) -> Error {
    if !matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Transport | ErrorKind::Internal) {
        return error;
    }
    let message = format!("nothing was sent, for the API key could not be resolved: {}", error.message());
    Error::new(ErrorKind::Unreachable, message).with_retryable(error.is_retryable()).with_source(error)
}

impl From<SecretRef> for ApiKey {
    fn from(name: SecretRef) -> Self {
        Self(Origin::Named(name))
    }
}

impl From<Secret<String>> for ApiKey {
    fn from(key: Secret<String>) -> Self {
        Self(Origin::Fixed(Arc::new(key)))
    }
}

impl From<Arc<Secret<String>>> for ApiKey {
    fn from(key: Arc<Secret<String>>) -> Self {
        Self(Origin::Fixed(key))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::None => f.write_str("none"),
            Origin::Named(name) => write!(f, "secret:{name}"),
            Origin::Fixed(_) => f.write_str("fixed"),
        }
    }
}

/// The fewest characters that are taken for a key, or for its beginning: fewer are a word of any text.
const LEAST: usize = 4;

/// `text` without the key, wherever a server echoed it, and without the beginning of a key that the text's own bound cut
/// in two: texts are made short before they come here, and half a key is not to be shown either.
pub(crate) fn without_key(text: &str, key: Option<&Secret<String>>) -> String {
    match key.map(|key| key.expose().trim()) {
        // A key of a few characters is a test's; taking it out of every word would only garble.
        Some(key) if key.len() >= LEAST => {
            let text = text.replace(key, TAKEN_OUT);
            let parts: Vec<String> = text.split('…').map(|part| without_beginning(part, key)).collect();
            parts.join("…")
        }
        _ => text.to_owned(),
    }
}

const TAKEN_OUT: &str = "[key]";

/// `text` without the beginning of `key` that it ends with.
fn without_beginning(text: &str, key: &str) -> String {
    let beginnings = (LEAST..key.len()).rev().filter_map(|length| key.get(..length));
    match beginnings.filter_map(|beginning| text.strip_suffix(beginning)).next() {
        Some(before) => format!("{before}{TAKEN_OUT}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::context;

    #[tokio::test]
    async fn keys_come_from_where_they_were_said_to_and_are_never_shown() {
        let ctx = context();
        assert!(ApiKey::none().resolve(&ctx).await.unwrap().is_none());
        let fixed = ApiKey::from(Secret::new("sk-fixed".to_owned()));
        assert_eq!(fixed.resolve(&ctx).await.unwrap().unwrap().expose(), "sk-fixed");
        assert_eq!(format!("{fixed:?}"), "fixed");
        let named = ApiKey::from(SecretRef::new("KEY").unwrap());
        assert_eq!(named.resolve(&ctx).await.map(drop).unwrap_err().kind(), ErrorKind::NotFound);
        let empty = ApiKey::from(Secret::new(" \n".to_owned()));
        assert_eq!(empty.resolve(&ctx).await.map(drop).unwrap_err().kind(), ErrorKind::Config);
    }

    #[tokio::test]
    async fn the_key_the_redactor_knows_is_the_one_that_is_sent() {
        let read_from_a_file = ApiKey::from(Secret::new("sk-0123456789\n".to_owned()));
        let key = read_from_a_file.resolve(&context()).await.unwrap().unwrap();
        assert_eq!(key.expose(), "sk-0123456789", "echoed, it has no line feed to be recognised by");
    }

    #[test]
    fn an_echoed_key_is_taken_out() {
        let key = Secret::new("sk-abc\n".to_owned());
        assert_eq!(without_key("bad key sk-abc!", Some(&key)), "bad key [key]!");
        assert_eq!(without_key("sk-abc", None), "sk-abc");
    }

    #[test]
    fn no_half_of_a_key_stays_where_a_text_was_cut() {
        let key = Secret::new("sk-0123456789é".to_owned());
        let without = |text: &str| without_key(text, Some(&key));
        assert_eq!(without("a sk-0123456789é, sk-0123456789é"), "a [key], [key]");
        for cut in ["sk-0", "sk-0123", "sk-0123456789"] {
            assert_eq!(without(&format!("bad key {cut}…")), "bad key [key]…");
            assert_eq!(without(&format!("bad key {cut}… and {cut}")), "bad key [key]… and [key]");
        }
        assert_eq!(without("keys begin with sk-"), "keys begin with sk-");
        assert_eq!(without("sk-0123 is not it"), "sk-0123 is not it");
    }
}
