//! How fields of a backend's configuration are read, for `#[serde(deserialize_with = "...")]`.

use std::sync::Arc;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize as _, Deserializer};

use crate::secret::Secret;

/// Text that nobody is to see, such as a connection string.
///
/// # Errors
///
/// When it is no text.
pub fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<Secret<String>>, D::Error> {
    String::deserialize(from).map(|text| Arc::new(Secret::new(text)))
}

/// A time in seconds, fractions allowed.
///
/// # Errors
///
/// When it is no number, negative, or longer than a [`Duration`] can be.
pub fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)
}
