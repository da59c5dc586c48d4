//! A URL picks a store, so that an operator can choose one without a line of code.
//!
//! [`memory`]:
//!
//! | URL | store | cargo feature |
//! |---|---|---|
//! | `inmemory` | [`InMemoryMemory`](crate::local::InMemoryMemory): this process, until it ends | `local` (default) |
//! | `sqlite:PATH` | one file on this machine | `memory-sqlite` |
//! | `postgres://USER:PASSWORD@HOST/DATABASE` | PostgreSQL; `postgresql://` is the same | `memory-postgres` |
//! | `redis://:PASSWORD@HOST:PORT` | Redis; `rediss://` over TLS | `memory-redis` |
//! | `qdrant:http://HOST:PORT` | Qdrant, its gRPC port; `qdrant:https://` over TLS; `?api_key=KEY` behind it | `memory-qdrant` |
//!
//! [`ledger`], which keeps the quota:
//!
//! | URL | store | cargo feature |
//! |---|---|---|
//! | `inmemory` | [`StandardBudget`](crate::local::StandardBudget): this process, until it ends | `local` (default) |
//! | `sqlite:PATH` | one file on this machine | `ledger-sqlite` |
//! | `postgres://USER:PASSWORD@HOST/DATABASE` | PostgreSQL; `postgresql://` is the same | `ledger-postgres` |
//! | `redis://:PASSWORD@HOST:PORT` | Redis; `rediss://` over TLS | `ledger-redis` |
//!
//! A URL is a secret: it is wiped when it has been used, and no error repeats any of it. `@ / ? #` and blanks in a
//! password are written percent-encoded (`%40 %2F %3F %23 %20`).

mod ledger;
mod url;

use std::sync::Arc;

use loomflow_core::{Error, ErrorKind, MemoryStore, Result};

pub use self::ledger::ledger;
pub use self::url::StoreUrl;
use self::url::{Kind, Part, Target};

const OPERATION: &str = "resolve_memory";
const MEMORY: Part = Part {
    name: "memory",
    kinds: &[Kind::InMemory, Kind::Sqlite, Kind::Postgres, Kind::Redis, Kind::Qdrant],
};
#[cfg(test)]
use self::ledger::LEDGER;

/// Opens the memory that `url` names, and brings its schema up to date where it has one.
///
/// What a URL cannot say (a pool's size, timeouts, a schema that only its owner may change) is said by the store's own
/// configuration, such as `memory_postgres::PostgresMemoryConfig`; its `connect` gives the same store.
///
/// # Errors
///
/// - [`ErrorKind::Config`] for an empty URL, an unknown scheme (naming the nearest known one, and all of them), a missing
///   path or host, characters that have to be percent-encoded, and a scheme whose cargo feature is off (naming it).
/// - Whatever connecting fails with: [`ErrorKind::Auth`], [`ErrorKind::Unreachable`], [`ErrorKind::Timeout`], or
///   [`ErrorKind::Config`] for a schema this program does not know.
pub async fn memory(url: impl Into<StoreUrl> + Send) -> Result<Arc<dyn MemoryStore>> {
    let target = url.into().parse(&MEMORY).map_err(|error| error.with_operation(OPERATION))?;
    open(target).await
}

/// Connects to one store, if its crate was compiled in.
macro_rules! connect {
    ($feature:literal, $target:ident, $package:ident, $memory:ident, $config:ident $(, $set:expr)?) => {{
        #[cfg(feature = $feature)]
        {
            let config = $package::$config::new($target.place.expose().as_str());
            $(let config = $set(config);)?
            Ok(Arc::new(Box::pin($package::$memory::connect(config)).await?))
        }
        #[cfg(not(feature = $feature))]
        {
            Err(switched_off(&$target, $feature, OPERATION))
        }
    }};
}

async fn open(target: Target) -> Result<Arc<dyn MemoryStore>> {
    match target.kind {
        Kind::InMemory => {
            #[cfg(feature = "local")]
            return Ok(Arc::new(loomflow_local::InMemoryMemory::new()));
            #[cfg(not(feature = "local"))]
            return Err(switched_off(&target, "local", OPERATION));
        }
        Kind::Sqlite => {
            connect!("memory-sqlite", target, loomflow_memory_sqlite, SqliteMemory, SqliteMemoryConfig)
        }
        Kind::Postgres => {
            connect!(
                "memory-postgres",
                target,
                loomflow_memory_postgres,
                PostgresMemory,
                PostgresMemoryConfig
            )
        }
        Kind::Redis => {
            connect!("memory-redis", target, loomflow_memory_redis, RedisMemory, RedisMemoryConfig)
        }
        Kind::Qdrant => {
            #[cfg(feature = "memory-qdrant")]
            let with_key = |config: loomflow_memory_qdrant::QdrantMemoryConfig| match &target.key {
                Some(key) => config.with_api_key(key.expose().as_str()),
                None => config,
            };
            connect!(
                "memory-qdrant",
                target,
                loomflow_memory_qdrant,
                QdrantMemory,
                QdrantMemoryConfig,
                with_key
            )
        }
    }
}

#[allow(dead_code, reason = "with every feature on, nothing is switched off")]
fn switched_off(target: &Target, feature: &str, operation: &'static str) -> Error {
    let message = format!(
        "`{}` needs the cargo feature `{feature}`, which this program was built without; in Cargo.toml: loomflow = {{ \
         version = \"{}\", features = [\"{feature}\"] }}",
        target.kind.form(),
        env!("CARGO_PKG_VERSION"),
    );
    Error::new(ErrorKind::Config, message).with_operation(operation)
}
