//! A cache for tools that cannot mix tenants: every key carries the scope.

use std::fmt;

use async_trait::async_trait;

use crate::error::Result;
use crate::scope::{Owned, Scope};

/// Keeps results of tools, per scope. It may forget at any time, and it must forget a tenant when told.
///
/// Reached through [`RunContext::cached`](crate::RunContext::cached), which takes no user: there is no key to get wrong.
#[async_trait]
pub trait ToolCache: fmt::Debug + Send + Sync + 'static {
    /// The value under `key` in this scope, with the owner it was stored under.
    async fn get(&self, scope: &Scope, key: &str) -> Result<Option<Owned<String>>>;

    /// Keeps `value` under `key` in this scope, for a while.
    async fn put(&self, scope: &Scope, key: &str, value: &str) -> Result<()>;

    /// Forgets everything of this scope, in every epoch up to the scope's.
    async fn clear(&self, scope: &Scope) -> Result<u64>;
}

/// Keeps nothing: every look-up misses.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct NoCache;

#[async_trait]
impl ToolCache for NoCache {
    async fn get(&self, _scope: &Scope, _key: &str) -> Result<Option<Owned<String>>> {
        Ok(None)
    }

    async fn put(&self, _scope: &Scope, _key: &str, _value: &str) -> Result<()> {
        Ok(())
    }

    async fn clear(&self, _scope: &Scope) -> Result<u64> {
        Ok(0)
    }
}
