//! The memory under test: embedded, or the store that a URL names, in a namespace of this run's own, so that a server can
//! be shared.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use loomflow::resolve::{self, StoreUrl};
use loomflow_core::{Agent, Erase, MemoryStore, Namespace, Result, UserAgent};
use loomflow_local::{EchoModel, InMemoryMemory, MemoryConfig};

use crate::config::Config;

/// Tenants that are erased at the same time after the load.
const ERASED_AT_ONCE: usize = 8;

/// Which memory.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_enums, reason = "the command line names all of them")]
pub enum Memory {
    /// In this process, with room for everything.
    Embedded,
    /// Where the resolver finds it.
    At(StoreUrl),
}

impl Memory {
    /// Reads the flag. What the URL says is checked when it is opened.
    pub(crate) fn parse(url: &str) -> Result<Self, Infallible> {
        Ok(if url == "inmemory" { Self::Embedded } else { Self::At(url.into()) })
    }
}

/// The memory, ready.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn MemoryStore>,
    /// As the report has it: the store's own name, without what it is reached by.
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
}

impl Opened {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Whatever the resolver says; none of it repeats the URL.
    pub(crate) async fn open(config: &Config) -> Result<Self> {
        match &config.memory {
            Memory::Embedded => {
                let users = config.users.saturating_mul(2).max(16);
                let limits = MemoryConfig::new().with_max_users(users).with_max_bytes(None);
                Ok(Self {
                    store: Arc::new(InMemoryMemory::with_config(&limits)),
                    name: "inmemory".to_owned(),
                    namespace: Namespace::default(),
                })
            }
            Memory::At(url) => {
                let store = resolve::memory(url.clone()).await?;
                let name = store.store_name();
                Ok(Self {
                    name: name.strip_prefix("memory:").unwrap_or(name).to_owned(),
                    namespace: Namespace::new(format!("bench-{:032x}", rand::random::<u128>()))?,
                    store,
                })
            }
        }
    }
}

/// Erases what this run left in a store that others use, too.
#[derive(Debug)]
pub(crate) struct Leftovers(Option<Agent>);

impl Leftovers {
    /// Nothing is left of an embedded memory, and `--keep` keeps.
    pub(crate) fn of(config: &Config, memory: &Opened) -> Result<Self> {
        if config.keep || matches!(config.memory, Memory::Embedded) {
            return Ok(Self(None));
        }
        // Without an audit log: what is cleared away here is no part of the load.
        let agent = Agent::builder("")
            .model(EchoModel::new())
            .memory(memory.store.clone())
            .namespace(memory.namespace.clone())
            .build()?;
        Ok(Self(Some(agent)))
    }

    /// Erases the first `n` tenants, whom `enter` names.
    pub(crate) async fn erase(
        &self,
        n: usize,
        enter: impl Fn(&Agent, usize) -> Result<UserAgent>,
    ) -> Result<()> {
        let Some(agent) = &self.0 else { return Ok(()) };
        let tenants: Vec<UserAgent> = (0..n).map(|place| enter(agent, place)).collect::<Result<_>>()?;
        stream::iter(tenants)
            .map(|tenant| async move { tenant.forget(Erase::everything()).await.map(drop) })
            .buffer_unordered(ERASED_AT_ONCE)
            .try_collect()
            .await
    }
}
