//! LLM agents for many users at once.
//!
//! One shared [`Agent`] serves every tenant, and memory, budget, permissions, approvals, audit, telemetry, secrets and
//! durable runs are all partitioned by `user_id`: a tenant can never see, spend, approve or erase what belongs to
//! another, and an operator can prove it.
//!
//! Start with the [`prelude`]; pick backends with cargo features. A feature adds names and never changes behaviour, and
//! nothing registers itself.
//!
//! | feature | brings |
//! |---|---|
//! | `local` (default) | [`local`]: in-process implementations of every trait |
//! | `macros` (default) | [`tool`](macro@tool): an async fn becomes a tool; [`schemars`] and [`serde`], which the types of its arguments derive from |
//! | `openai` | [`openai`]: models and embedders of OpenAI and of every compatible server; [`provider`] |
//! | `tiktoken` | `openai`, and [`openai`]'s `TiktokenTokens`: prompts counted with a model's own vocabulary |
//! | `anthropic` | [`anthropic`]: models of Anthropic; [`provider`] |
//! | `cohere` | [`cohere`]: embedders of Cohere; [`provider`] |
//! | `ledger-redis` | [`ledger_redis`]: the quota ledger on Redis |
//! | `ledger-sqlite` | [`ledger_sqlite`]: the quota in a file |
//! | `memory-sqlite` | [`memory_sqlite`]: memory in a file |
//! | `memory-postgres` | [`memory_postgres`]: memory on PostgreSQL with pgvector |
//! | `memory-redis` | [`memory_redis`]: memory on Redis |
//! | `memory-qdrant` | [`memory_qdrant`]: memory on Qdrant |
//! | `ledger-postgres` | [`ledger_postgres`]: quota on PostgreSQL, shared by processes |
//!
//! [`resolve::memory`] opens the memory that a URL names, among those that are compiled in, and [`resolve::ledger`] the ledger.

#![forbid(unsafe_code)]

pub mod resolve;

pub use loomflow_core::*;

#[cfg(feature = "local")]
pub use loomflow_local as local;

#[cfg(feature = "macros")]
pub use loomflow_macros::tool;
#[doc(hidden)]
#[cfg(feature = "macros")]
pub use loomflow_support_tool::__tool;
#[cfg(feature = "macros")]
pub use loomflow_support_tool::{schemars, serde};

#[cfg(feature = "ledger-postgres")]
pub use loomflow_ledger_postgres as ledger_postgres;
#[cfg(feature = "ledger-redis")]
pub use loomflow_ledger_redis as ledger_redis;

#[cfg(feature = "ledger-sqlite")]
pub use loomflow_ledger_sqlite as ledger_sqlite;
#[cfg(feature = "memory-postgres")]
pub use loomflow_memory_postgres as memory_postgres;
#[cfg(feature = "memory-qdrant")]
pub use loomflow_memory_qdrant as memory_qdrant;
#[cfg(feature = "memory-redis")]
pub use loomflow_memory_redis as memory_redis;
#[cfg(feature = "memory-sqlite")]
pub use loomflow_memory_sqlite as memory_sqlite;

#[cfg(feature = "anthropic")]
pub use loomflow_model_anthropic as anthropic;
#[cfg(feature = "cohere")]
pub use loomflow_model_cohere as cohere;
#[cfg(feature = "openai")]
pub use loomflow_model_openai as openai;
/// What the providers' adapters share: keys, timeouts, token counts and the price table.
#[cfg(feature = "_provider")]
pub mod provider {
    pub use loomflow_support_model::{ApiKey, ClientConfig, CountTokens, EstimateTokens, Timeouts, prices};
}

/// What most applications need.
pub mod prelude {
    pub use loomflow_core::{
        Agent, BudgetConfig, Decision, Effect, Erase, Error, ErrorKind, Event, EventKind, Identity, Image,
        IntoToolOutcome, Json, Namespace, NanoUsd, PermittedCall, Price, Result, RetryPolicy, RunContext,
        RunResult, RunStatus, Secret, SecretRef, SessionId, Tool, ToolOutcome, ToolSpec, UserId, Window,
    };

    #[cfg(feature = "local")]
    pub use loomflow_local::*;

    #[cfg(feature = "macros")]
    pub use loomflow_macros::tool;

    #[cfg(feature = "_provider")]
    pub use loomflow_support_model::{ApiKey, Timeouts};

    #[cfg(feature = "openai")]
    pub use loomflow_model_openai::{OpenAiEmbedder, OpenAiModel};

    #[cfg(feature = "anthropic")]
    pub use loomflow_model_anthropic::AnthropicModel;

    #[cfg(feature = "cohere")]
    pub use loomflow_model_cohere::CohereEmbedder;

    #[cfg(feature = "ledger-redis")]
    pub use loomflow_ledger_redis::{RedisLedger, RedisLedgerConfig};

    #[cfg(feature = "ledger-sqlite")]
    pub use loomflow_ledger_sqlite::{SqliteLedger, SqliteLedgerConfig};
    #[cfg(feature = "memory-sqlite")]
    pub use loomflow_memory_sqlite::{SqliteMemory, SqliteMemoryConfig};

    #[cfg(feature = "ledger-postgres")]
    pub use loomflow_ledger_postgres::{PostgresLedger, PostgresLedgerConfig};

    #[cfg(feature = "memory-postgres")]
    pub use loomflow_memory_postgres::{PostgresMemory, PostgresMemoryConfig};

    #[cfg(feature = "memory-redis")]
    pub use loomflow_memory_redis::{RedisMemory, RedisMemoryConfig};

    #[cfg(feature = "memory-qdrant")]
    pub use loomflow_memory_qdrant::{QdrantMemory, QdrantMemoryConfig};

    pub use crate::resolve;
}
