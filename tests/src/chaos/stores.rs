//! Which ledgers there are, how each is opened, and what can be done to the server behind it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::{Direction, FaultyProxy};
use loomflow_core::{BudgetConfig, Clock, Error, ErrorKind, Ledger, Result};
use loomflow_ledger_postgres::{PostgresLedger, PostgresLedgerConfig};
use loomflow_ledger_redis::{RedisLedger, RedisLedgerConfig};
use loomflow_ledger_sqlite::{SqliteLedger, SqliteLedgerConfig};
use loomflow_local::StandardBudget;

use crate::own::{OwnPostgres, OwnRedis, OwnServer};

/// How long an operation may take: thousands begin at the same moment, and wait for one another.
const PATIENCE: Duration = Duration::from_secs(120);

/// A ledger that chaos is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// In one process, and gone with it.
    InMemory,
    /// In a file.
    Sqlite,
    /// On PostgreSQL.
    Postgres,
    /// On Redis.
    Redis,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::InMemory, Self::Sqlite, Self::Postgres, Self::Redis];

    fn name(self) -> &'static str {
        match self {
            Self::InMemory => "inmemory",
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("there is no ledger `{text}`; there are: {}", known.join(", "))
        })
    }
}

/// Opens the ledger behind a URL. The only place that knows the backends.
///
/// # Errors
///
/// What opening it fails with.
pub(super) async fn open(url: &str, config: BudgetConfig, clock: Arc<dyn Clock>) -> Result<Arc<dyn Ledger>> {
    let scheme = url.split(':').next().unwrap_or_default();
    Ok(match scheme {
        "inmemory" => Arc::new(StandardBudget::new(config)?.with_clock(clock)),
        "sqlite" => {
            let config = SqliteLedgerConfig::new(url.trim_start_matches("sqlite:"), config);
            let config = config.with_operation_timeout(PATIENCE);
            Arc::new(SqliteLedger::connect(config).await?.with_clock(clock))
        }
        // Their time is the server's.
        "postgres" => {
            let config = PostgresLedgerConfig::new(url, config).with_operation_timeout(PATIENCE);
            Arc::new(Box::pin(PostgresLedger::connect(config)).await?)
        }
        "redis" => {
            let config = RedisLedgerConfig::new(url, config).with_operation_timeout(PATIENCE);
            Arc::new(RedisLedger::connect(config).await?)
        }
        _ => return Err(Error::new(ErrorKind::Config, "there is no such ledger")),
    })
}

/// A ledger of a run's own, and the server behind it if there is one.
#[derive(Debug)]
pub(super) struct Place {
    /// Which.
    pub(super) kind: Kind,
    url: String,
    server: Option<OwnServer>,
    proxy: Option<FaultyProxy>,
}

impl Place {
    /// Starts the server, if there is one, and a network that fails before it. What is a file lies in `dir`.
    ///
    /// # Errors
    ///
    /// When the system has no port left.
    ///
    /// # Panics
    ///
    /// When the service is not up, or a server does not start.
    pub(super) async fn start(kind: Kind, dir: &Path) -> std::io::Result<Self> {
        let (url, server) = match kind {
            Kind::InMemory => ("inmemory".to_owned(), None),
            Kind::Sqlite => (format!("sqlite:{}", dir.join("ledger.db").display()), None),
            Kind::Postgres => {
                let server = OwnPostgres::start().await;
                (server.url().to_owned(), Some(server))
            }
            Kind::Redis => {
                let server = OwnRedis::start(false).await;
                (server.url().to_owned(), Some(server))
            }
        };
        let proxy = match server {
            Some(_) => Some(FaultyProxy::start(&url).await?),
            None => None,
        };
        Ok(Self { kind, url, server, proxy })
    }

    /// The way for whoever judges: nothing fails on it but the server.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The way for workers: through the network that fails.
    pub(super) fn url_for_workers(&self) -> String {
        self.proxy.as_ref().map_or_else(|| self.url.clone(), |proxy| proxy.url_like(&self.url))
    }

    /// Whether other processes can use it.
    pub(super) fn is_shared(&self) -> bool {
        self.kind != Kind::InMemory
    }

    /// Whether there is a server to be killed and a network to be cut.
    pub(super) fn has_server(&self) -> bool {
        self.server.is_some()
    }

    /// Kills the server and starts it again on what it had written.
    pub(super) async fn restart(&mut self) {
        if let Some(server) = &mut self.server {
            server.restart().await;
        }
    }

    /// Cuts every connection of the workers, or the next ones in the middle of a request or a reply, `bytes` from now.
    pub(super) async fn cut(&self, how: Cut) {
        let Some(proxy) = &self.proxy else { return };
        match how {
            Cut::All => proxy.cut().await,
            Cut::Request(bytes) => proxy.cut_after(Direction::Requests, bytes),
            Cut::Reply(bytes) => proxy.cut_after(Direction::Replies, bytes),
        }
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_enums, reason = "what the proxy can do")]
pub(super) enum Cut {
    /// Every one, now.
    All,
    /// One, in the middle of a request.
    Request(u64),
    /// One, in the middle of a reply: the request was heard.
    Reply(u64),
}
