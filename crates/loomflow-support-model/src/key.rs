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
    /// What [`RunContext::secret`] fails with, and [`ErrorKind::Config`] for an empty key.
    pub async fn resolve(&self, ctx: &RunContext) -> Result<Option<Arc<Secret<String>>>> {
        let key = match &self.0 {
            Origin::None => return Ok(None),
            Origin::Named(name) => ctx.secret(name).await?,
            Origin::Fixed(key) => {
                ctx.redactor().register(key);
                key.clone()
            }
        };
        if key.expose().trim().is_empty() {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the API key ({self:?}) is empty; for a server without keys use ApiKey::none()"),
            ));
        }
        Ok(Some(key))
    }
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

/// `text` without the key, wherever a server echoed it.
pub(crate) fn without_key(text: &str, key: Option<&Secret<String>>) -> String {
    match key.map(|key| key.expose().trim()) {
        // A key of a few characters is a test's; taking it out of every word would only garble.
        Some(key) if key.len() >= 4 => text.replace(key, "[key]"),
        _ => text.to_owned(),
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

    #[test]
    fn an_echoed_key_is_taken_out() {
        let key = Secret::new("sk-abc\n".to_owned());
        assert_eq!(without_key("bad key sk-abc!", Some(&key)), "bad key [key]!");
        assert_eq!(without_key("sk-abc", None), "sk-abc");
    }
}
