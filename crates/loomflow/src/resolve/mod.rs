//! A URL picks a store, so that an operator can choose one without a line of code.
//!
//! | URL | store | cargo feature |
//! |---|---|---|
//! | `inmemory` | [`InMemoryMemory`](crate::local::InMemoryMemory): this process, until it ends | `local` (default) |
//! | `sqlite:PATH` | one file on this machine | `memory-sqlite` |
//! | `postgres://USER:PASSWORD@HOST/DATABASE` | PostgreSQL; `postgresql://` is the same | `memory-postgres` |
//! | `redis://:PASSWORD@HOST:PORT` | Redis; `rediss://` over TLS | `memory-redis` |
//! | `qdrant:http://HOST:PORT` | Qdrant, its gRPC port; `qdrant:https://` over TLS; `?api_key=KEY` behind it | `memory-qdrant` |
//!
//! Approvals ([`approvals`]) are kept at `inmemory`, `sqlite:PATH` (`runtime-sqlite`) or `postgres://...`
//! (`runtime-postgres`); the same URL as the memory's names the same file or database, in tables of their own.
//!
//! A URL is a secret: it is wiped when it has been used, and no error repeats any of it. `@ / ? #` and blanks in a
//! password are written percent-encoded (`%40 %2F %3F %23 %20`).

mod url;

use std::sync::Arc;

use loomflow_core::{ApprovalStore, Error, ErrorKind, MemoryStore, Result};

pub use self::url::StoreUrl;
use self::url::{Kind, Target};

const MEMORY: &str = "resolve_memory";
const APPROVALS: &str = "resolve_approvals";

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
    let target = url.into().parse().map_err(|error| error.with_operation(MEMORY))?;
    open_memory(target).await
}

/// Opens the store of approvals that `url` names, and brings its schema up to date where it has one.
///
/// What a URL cannot say is said by the store's own configuration, such as `runtime_postgres::PostgresApprovalsConfig`.
///
/// # Errors
///
/// As [`memory`]; [`ErrorKind::Config`] also for a store that keeps memories and no approvals.
pub async fn approvals(url: impl Into<StoreUrl> + Send) -> Result<Arc<dyn ApprovalStore>> {
    let target = url.into().parse().map_err(|error| error.with_operation(APPROVALS))?;
    open_approvals(target).await
}

/// Connects to one store, if its crate was compiled in.
macro_rules! connect {
    ($operation:ident, $feature:literal, $target:ident, $package:ident, $store:ident, $config:ident $(, $set:expr)?) => {{
        #[cfg(feature = $feature)]
        {
            let config = $package::$config::new($target.place.expose().as_str());
            $(let config = $set(config);)?
            Ok(Arc::new(Box::pin($package::$store::connect(config)).await?))
        }
        #[cfg(not(feature = $feature))]
        {
            Err(switched_off(&$target, $operation, $feature))
        }
    }};
}

async fn open_memory(target: Target) -> Result<Arc<dyn MemoryStore>> {
    match target.kind {
        Kind::InMemory => {
            #[cfg(feature = "local")]
            return Ok(Arc::new(loomflow_local::InMemoryMemory::new()));
            #[cfg(not(feature = "local"))]
            return Err(switched_off(&target, MEMORY, "local"));
        }
        Kind::Sqlite => {
            connect!(
                MEMORY,
                "memory-sqlite",
                target,
                loomflow_memory_sqlite,
                SqliteMemory,
                SqliteMemoryConfig
            )
        }
        Kind::Postgres => {
            connect!(
                MEMORY,
                "memory-postgres",
                target,
                loomflow_memory_postgres,
                PostgresMemory,
                PostgresMemoryConfig
            )
        }
        Kind::Redis => {
            connect!(MEMORY, "memory-redis", target, loomflow_memory_redis, RedisMemory, RedisMemoryConfig)
        }
        Kind::Qdrant => {
            #[cfg(feature = "memory-qdrant")]
            let with_key = |config: loomflow_memory_qdrant::QdrantMemoryConfig| match &target.key {
                Some(key) => config.with_api_key(key.expose().as_str()),
                None => config,
            };
            connect!(
                MEMORY,
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

async fn open_approvals(target: Target) -> Result<Arc<dyn ApprovalStore>> {
    match target.kind {
        Kind::InMemory => {
            #[cfg(feature = "local")]
            return Ok(Arc::new(loomflow_local::InMemoryApprovalStore::new()));
            #[cfg(not(feature = "local"))]
            return Err(switched_off(&target, APPROVALS, "local"));
        }
        Kind::Sqlite => {
            connect!(
                APPROVALS,
                "runtime-sqlite",
                target,
                loomflow_runtime_sqlite,
                SqliteApprovals,
                SqliteApprovalsConfig
            )
        }
        Kind::Postgres => {
            connect!(
                APPROVALS,
                "runtime-postgres",
                target,
                loomflow_runtime_postgres,
                PostgresApprovals,
                PostgresApprovalsConfig
            )
        }
        Kind::Redis | Kind::Qdrant => {
            let message = format!(
                "`{}` keeps no approvals; use inmemory, sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE",
                target.kind.form()
            );
            Err(Error::new(ErrorKind::Config, message).with_operation(APPROVALS))
        }
    }
}

#[allow(dead_code, reason = "with every feature on, nothing is switched off")]
fn switched_off(target: &Target, operation: &'static str, feature: &str) -> Error {
    let message = format!(
        "`{}` needs the cargo feature `{feature}`, which this program was built without; in Cargo.toml: loomflow = {{ \
         version = \"{}\", features = [\"{feature}\"] }}",
        target.kind.form(),
        env!("CARGO_PKG_VERSION"),
    );
    Error::new(ErrorKind::Config, message).with_operation(operation)
}
