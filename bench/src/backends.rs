//! The memory and the ledger under test: embedded, or what a URL names, in a namespace of this run's own, so that a server
//! can be shared.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use loomflow::resolve::{self, StoreUrl};
use loomflow_core::{Agent, BudgetConfig, Erase, Ledger, MemoryStore, Namespace, Result, UserAgent};
use loomflow_local::{EchoModel, InMemoryMemory, MemoryConfig, StandardBudget};

use crate::config::Config;

/// Tenants that are erased at the same time after the load.
const ERASED_AT_ONCE: usize = 8;

/// Which memory, or which ledger.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_enums, reason = "the command line names all of them")]
pub enum Backend {
    /// In this process, with room for everything.
    Embedded,
    /// Where the resolver finds it.
    At(StoreUrl),
}

impl Backend {
    /// Reads the flag. What the URL says is checked when it is opened.
    pub(crate) fn parse(url: &str) -> Result<Self, Infallible> {
        Ok(if url == "inmemory" { Self::Embedded } else { Self::At(url.into()) })
    }
}

/// The stores of one run, ready.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) memory: Arc<dyn MemoryStore>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) namespace: Namespace,
    /// As the report has them: a store's own name, without what it is reached by.
    pub(crate) memory_name: String,
    pub(crate) ledger_name: String,
    /// Of everything there is to erase afterwards, how it is reached.
    leftovers: Leftovers,
}

impl Opened {
    /// Connects; the ledger gets the caps of `budget`.
    ///
    /// # Errors
    ///
    /// Whatever the resolver says; none of it repeats the URL.
    pub(crate) async fn open(config: &Config, budget: BudgetConfig) -> Result<Self> {
        let memory: Arc<dyn MemoryStore> = match &config.memory {
            Backend::Embedded => {
                let limits = MemoryConfig::new().with_max_users(config.room()).with_max_bytes(None);
                Arc::new(InMemoryMemory::with_config(&limits))
            }
            Backend::At(url) => resolve::memory(url.clone()).await?,
        };
        let ledger: Arc<dyn Ledger> = match &config.ledger {
            Backend::Embedded => Arc::new(StandardBudget::new(budget.max_users(config.room()))?),
            Backend::At(url) => resolve::ledger(url.clone(), budget).await?,
        };
        let namespace = if config.is_embedded() {
            Namespace::default()
        } else {
            Namespace::new(format!("bench-{:032x}", rand::random::<u128>()))?
        };
        let leftovers = Leftovers::of(config, &memory, &ledger, &namespace)?;
        let memory_name = short(memory.store_name(), "memory:");
        let ledger_name = short(ledger.store_name(), "ledger:");
        Ok(Self { memory, ledger, namespace, memory_name, ledger_name, leftovers })
    }

    /// What is to be erased when the load is over.
    pub(crate) fn leftovers(&self) -> Leftovers {
        self.leftovers.clone()
    }
}

fn short(name: &str, kind: &str) -> String {
    name.strip_prefix(kind).unwrap_or(name).to_owned()
}

/// Erases what this run left in stores that others use, too.
#[derive(Clone, Debug)]
pub(crate) struct Leftovers(Option<Agent>);

impl Leftovers {
    /// Nothing is left of what is embedded, and `--keep` keeps.
    fn of(
        config: &Config,
        memory: &Arc<dyn MemoryStore>,
        ledger: &Arc<dyn Ledger>,
        namespace: &Namespace,
    ) -> Result<Self> {
        if config.keep || config.is_embedded() {
            return Ok(Self(None));
        }
        // Without an audit log: what is cleared away here is no part of the load.
        let agent = Agent::builder("")
            .model(EchoModel::new())
            .memory(memory.clone())
            .budget(ledger.clone())
            .namespace(namespace.clone())
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
