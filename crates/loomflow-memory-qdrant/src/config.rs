//! How to reach the server, and how long to wait for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::Secret;
use serde::{Deserialize, Deserializer};

/// Where a [`QdrantMemory`](crate::QdrantMemory) is kept.
///
/// `Debug` shows neither the URL nor the key.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct QdrantMemoryConfig {
    /// The server's gRPC address: `http://host:6334`, or `https://..` with the system's certificates.
    #[serde(deserialize_with = "loomflow_core::settings::secret")]
    pub url: Arc<Secret<String>>,
    /// The key that the server asks for; `None` for a server without one.
    #[serde(default, deserialize_with = "optional_secret")]
    pub api_key: Option<Arc<Secret<String>>>,
    /// The collection that holds the memory. Created when it is not there.
    #[serde(default = "collection")]
    pub collection: String,
    /// Whether connecting brings the collection up to date; otherwise one that is not is refused.
    #[serde(default = "yes")]
    pub migrate: bool,
    /// How long connecting may take.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Duration,
    /// How long one request may take. An operation is several requests.
    #[serde(default = "operation_timeout")]
    pub operation_timeout: Duration,
    /// How many connections are kept; each carries many requests at once.
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    #[cfg(feature = "testing")]
    #[serde(skip)]
    pub(crate) fault: Option<Fault>,
}

/// What a test can break.
#[cfg(feature = "testing")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Reads look at every partition.
    NoPartitionFilter,
}

impl QdrantMemoryConfig {
    /// The server at `url`, with everything else as usual.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: Arc::new(Secret::new(url.into())),
            api_key: None,
            collection: collection(),
            migrate: true,
            connect_timeout: connect_timeout(),
            operation_timeout: operation_timeout(),
            max_connections: max_connections(),
            #[cfg(feature = "testing")]
            fault: None,
        }
    }

    /// Sets the key that the server asks for.
    #[must_use]
    pub fn with_api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(Arc::new(Secret::new(key.into())));
        self
    }

    /// Sets the collection; `loomflow_memory` otherwise.
    #[must_use]
    pub fn with_collection(mut self, name: impl Into<String>) -> Self {
        self.collection = name.into();
        self
    }

    /// Sets whether connecting brings the collection up to date; it does otherwise.
    #[must_use]
    pub fn with_migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Sets how long connecting may take; 5 s otherwise.
    #[must_use]
    pub fn with_connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets how long one request may take; 10 s otherwise.
    #[must_use]
    pub fn with_operation_timeout(mut self, limit: Duration) -> Self {
        self.operation_timeout = limit;
        self
    }

    /// Sets how many connections are kept; 2 otherwise, and at least 1.
    #[must_use]
    pub fn with_max_connections(mut self, n: usize) -> Self {
        self.max_connections = n;
        self
    }

    /// Breaks what `fault` names. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    pub(crate) fn loses_partition_filter(&self) -> bool {
        #[cfg(feature = "testing")]
        return self.fault == Some(Fault::NoPartitionFilter);
        #[cfg(not(feature = "testing"))]
        return false;
    }
}

impl fmt::Debug for QdrantMemoryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QdrantMemoryConfig")
            .field("url", &"[redacted]")
            .field("api_key", &self.api_key.as_ref().map(|_| "[redacted]"))
            .field("collection", &self.collection)
            .field("migrate", &self.migrate)
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

fn collection() -> String {
    "loomflow_memory".to_owned()
}

fn yes() -> bool {
    true
}

fn connect_timeout() -> Duration {
    Duration::from_secs(5)
}

fn operation_timeout() -> Duration {
    Duration::from_secs(10)
}

fn max_connections() -> usize {
    2
}

fn optional_secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arc<Secret<String>>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(|text| Arc::new(Secret::new(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        let config = QdrantMemoryConfig::new("http://user:hunter2@host:6334").with_api_key("s3cret");
        let shown = format!("{config:?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("s3cret") && !shown.contains("host"),
            "{shown}"
        );
    }

    #[test]
    fn a_config_is_read_with_defaults_and_without_unknown_names() {
        let read = |json: &str| serde_json::from_str::<QdrantMemoryConfig>(json);
        let config = read(r#"{"url": "http://h:1", "api_key": "k", "collection": "c"}"#).unwrap();
        assert_eq!((config.url.expose().as_str(), config.collection.as_str()), ("http://h:1", "c"));
        assert!(config.migrate && config.max_connections == 2);
        assert!(read(r#"{"url": "http://h:1", "colection": "c"}"#).is_err());
        assert!(read("{}").is_err());
    }
}
