//! Opening the store of approvals that a URL names.

use std::sync::Arc;

use loomflow_core::{ApprovalStore, Error, ErrorKind, Result};

use super::StoreUrl;
#[allow(unused_imports, reason = "with every feature on, nothing is switched off")]
use super::switched_off;
use super::url::{Kind, Part, Target};

const OPERATION: &str = "resolve_approvals";
const APPROVALS: Part = Part { name: "approvals", kinds: &[Kind::InMemory, Kind::Sqlite, Kind::Postgres] };

/// Opens the store of approvals that `url` names, and brings its schema up to date where it has one.
///
/// What a URL cannot say is said by the store's own configuration, such as `runtime_postgres::PostgresApprovalsConfig`.
///
/// # Errors
///
/// As [`memory`](super::memory); a scheme that keeps no approvals is refused, too.
pub async fn approvals(url: impl Into<StoreUrl> + Send) -> Result<Arc<dyn ApprovalStore>> {
    let target = url.into().parse(&APPROVALS).map_err(|error| error.with_operation(OPERATION))?;
    open(target).await
}

/// Connects to one store, if its crate was compiled in.
macro_rules! connect {
    ($feature:literal, $target:ident, $package:ident, $store:ident, $config:ident) => {{
        #[cfg(feature = $feature)]
        {
            let config = $package::$config::new($target.place.expose().as_str());
            Ok(Arc::new(Box::pin($package::$store::connect(config)).await?))
        }
        #[cfg(not(feature = $feature))]
        {
            Err(switched_off(&$target, $feature, OPERATION))
        }
    }};
}

async fn open(target: Target) -> Result<Arc<dyn ApprovalStore>> {
    match target.kind {
        Kind::InMemory => {
            #[cfg(feature = "local")]
            return Ok(Arc::new(loomflow_local::InMemoryApprovalStore::new()));
            #[cfg(not(feature = "local"))]
            return Err(switched_off(&target, "local", OPERATION));
        }
        Kind::Sqlite => {
            connect!(
                "runtime-sqlite",
                target,
                loomflow_runtime_sqlite,
                SqliteApprovals,
                SqliteApprovalsConfig
            )
        }
        Kind::Postgres => {
            connect!(
                "runtime-postgres",
                target,
                loomflow_runtime_postgres,
                PostgresApprovals,
                PostgresApprovalsConfig
            )
        }
        Kind::Redis | Kind::Qdrant => {
            Err(Error::new(ErrorKind::Config, "this store keeps no approvals").with_operation(OPERATION))
        }
    }
}
