//! The connection: one, multiplexed, bounded, made again when it is lost.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use loomflow_core::resilience::{Readiness, Repeat, Resilience};
use loomflow_core::{Error, ErrorKind, Result, Secret};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    Client, Cmd, FromRedisValue, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisResult, Script,
};

use crate::error::store_error;

/// Commands that wait for their turn to be sent; one more waits for a place.
const QUEUED: usize = 64;
const RECONNECT_AFTER: Duration = Duration::from_millis(20);
const RECONNECTS: usize = 2;

/// How to reach a server, and how long to wait for it.
#[derive(Clone)]
#[non_exhaustive]
pub struct LinkOptions {
    /// `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    pub url: Arc<Secret<String>>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long one operation may take, its retry not included.
    pub operation_timeout: Duration,
    /// The most operations that are sent and not answered yet; one more waits.
    pub max_in_flight: usize,
}

impl LinkOptions {
    /// To the server at `url`, with 5 s to connect, 10 s for an operation and 256 operations in flight.
    #[must_use]
    pub fn new(url: Arc<Secret<String>>) -> Self {
        Self {
            url,
            connect_timeout: Duration::from_secs(5),
            operation_timeout: Duration::from_secs(10),
            max_in_flight: 256,
        }
    }
}

impl fmt::Debug for LinkOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkOptions")
            .field("connect_timeout", &self.connect_timeout)
            .field("operation_timeout", &self.operation_timeout)
            .field("max_in_flight", &self.max_in_flight)
            .finish_non_exhaustive()
    }
}

/// A connection that many tasks share. Cloning gives another handle to it.
///
/// - A connection that is lost is made again; the operation that noticed is tried once more, if that is safe.
/// - An operation whose time is over may have met a dead link that nobody closed, so the connection is given up as well.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    config: ConnectionManagerConfig,
    /// The connection, and how many there were before it.
    current: Mutex<(u64, ConnectionManager)>,
    resilience: Resilience,
}

impl Link {
    /// Connects, logs in and asks the server whether it serves.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for a URL that cannot be used, a refused login or TLS; [`ErrorKind::Unreachable`],
    /// [`ErrorKind::Transport`] or [`ErrorKind::Timeout`] when nobody answers.
    pub async fn connect(options: &LinkOptions) -> Result<Self> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(None)
            .set_number_of_retries(RECONNECTS)
            .set_min_delay(RECONNECT_AFTER)
            .set_max_delay(options.connect_timeout)
            .set_pipeline_buffer_size(QUEUED)
            .set_concurrency_limit(options.max_in_flight.max(1));
        let client = client(options.url.expose())?;
        let failed = |e| store_error(e, "connect");
        let patient = config.clone().set_number_of_retries(0);
        let opening = ConnectionManager::new_with_config(client.clone(), patient);
        let first = tokio::time::timeout(options.connect_timeout, opening).await.map_err(|_| {
            let message = format!("Redis did not take the connection within {:?}", options.connect_timeout);
            Error::new(ErrorKind::Timeout, message).with_operation("connect").with_retryable(true)
        })?;
        drop(first.map_err(failed)?);
        let manager =
            ConnectionManager::new_lazy_with_config(client.clone(), config.clone()).map_err(failed)?;
        let link = Self {
            inner: Arc::new(Inner {
                client,
                config,
                current: Mutex::new((0, manager)),
                resilience: Resilience::new("Redis", options.operation_timeout),
            }),
        };
        link.ping("connect").await?;
        Ok(link)
    }

    /// Sends one command.
    ///
    /// # Errors
    ///
    /// As [`store_error`] classifies them, and as [`Resilience::run`] says.
    pub async fn command<T: FromRedisValue + Send>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        command: &Cmd,
    ) -> Result<T> {
        self.run(operation, repeat, |mut manager| async move { command.query_async(&mut manager).await })
            .await
    }

    /// Sends several commands at once, one behind the other on one connection.
    ///
    /// # Errors
    ///
    /// As [`Link::command`].
    pub async fn pipeline<T: FromRedisValue + Send>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        commands: &Pipeline,
    ) -> Result<T> {
        self.run(operation, repeat, |mut manager| async move { commands.query_async(&mut manager).await })
            .await
    }

    /// Runs a script on the keys of one tenant: by its digest, and with its text where the server does not know it.
    ///
    /// - The script is atomic: dropped or cut, it was run whole or not at all.
    ///
    /// # Errors
    ///
    /// As [`Link::command`].
    pub async fn script<T: FromRedisValue + Send>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        script: &Script,
        key: &str,
        args: &[Vec<u8>],
    ) -> Result<T> {
        let mut call = script.key(key);
        for arg in args {
            call.arg(arg);
        }
        let call = &call;
        self.run(operation, repeat, |mut manager| async move { call.invoke_async(&mut manager).await }).await
    }

    /// Whether the server answers.
    pub async fn ready(&self) -> Readiness {
        let answer = self.ping("ready").await;
        self.inner.resilience.readiness(&answer)
    }

    async fn ping(&self, operation: &'static str) -> Result<()> {
        self.command::<String>(operation, Repeat::Safe, &redis::cmd("PING")).await.map(drop)
    }

    async fn run<T, F, Fut>(&self, operation: &'static str, repeat: Repeat, attempt: F) -> Result<T>
    where
        F: Fn(ConnectionManager) -> Fut + Send + Sync,
        Fut: Future<Output = RedisResult<T>> + Send,
        T: Send,
    {
        let (number, _) = self.current();
        let attempt = &attempt;
        let result = self.inner.resilience.run(operation, repeat, || {
            let (_, manager) = self.current();
            async move { attempt(manager).await.map_err(|e| store_error(e, operation)) }
        });
        let result = result.await;
        if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Timeout) {
            self.give_up(number);
        }
        result
    }

    fn current(&self) -> (u64, ConnectionManager) {
        self.inner.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves connection `number` for a new one, unless somebody did.
    fn give_up(&self, number: u64) {
        let mut current = self.inner.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != number {
            return;
        }
        let inner = &self.inner;
        if let Ok(manager) =
            ConnectionManager::new_lazy_with_config(inner.client.clone(), inner.config.clone())
        {
            *current = (number + 1, manager);
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({:?})", self.inner.resilience)
    }
}

fn client(url: &str) -> Result<Client> {
    // What the parser says may hold the URL, and with it the password.
    let refuse = |_| {
        let message = "the URL of Redis cannot be used: give redis://[user:password@]host[:port][/database], or rediss:// \
                       for TLS";
        Error::new(ErrorKind::Config, message).with_operation("connect")
    };
    let info = url.into_connection_info().map_err(refuse)?;
    if url.starts_with("rediss:") {
        // The one provider of this house; an application that installed its own keeps it.
        let _installed = rustls::crypto::ring::default_provider().install_default();
    }
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
    Client::open(info.set_redis_settings(settings)).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(url: &str) -> Error {
        Link::connect(&LinkOptions::new(Arc::new(Secret::new(url.to_owned())))).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_url_that_cannot_be_used_is_not_shown() {
        for url in
            ["", "postgres://u:hunter2@h/1", "redis://u:hunter2@host:99999999", "redis://u:hunter2@h/x"]
        {
            let error = refused(url).await;
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for scheme in ["redis", "rediss"] {
            let error = refused(&format!("{scheme}://u:hunter2@127.0.0.1:{port}")).await;
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
            assert!(error.is_retryable() && !format!("{error} {error:?}").contains("hunter2"));
        }
    }
}
