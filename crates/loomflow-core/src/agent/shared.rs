//! Lets the builder take a part by value or as the `Arc` that somebody else holds too.

use std::sync::Arc;

use crate::approval::{ApprovalHandler, ApprovalStore};
use crate::audit::AuditLog;
use crate::cache::ToolCache;
use crate::clock::Clock;
use crate::ledger::Ledger;
use crate::memory::MemoryStore;
use crate::model::{Embedder, Model};
use crate::permissions::{Permissions, PostToolHook, PreToolHook};
use crate::rate_limit::RateLimiter;
use crate::redact::Scrub;
use crate::runtime::Runtime;
use crate::schema::OutputSchema;
use crate::secret::Secrets;
use crate::telemetry::Telemetry;
use crate::tool::Tool;

/// A part of an agent, given by value or shared.
pub trait IntoShared<T: ?Sized> {
    /// The part, shared.
    fn into_shared(self) -> Arc<T>;
}

macro_rules! shared {
    ($($part:ident),* $(,)?) => {$(
        impl<P: $part> IntoShared<dyn $part> for P {
            fn into_shared(self) -> Arc<dyn $part> {
                Arc::new(self)
            }
        }
        impl<P: $part> IntoShared<dyn $part> for Arc<P> {
            fn into_shared(self) -> Arc<dyn $part> {
                self
            }
        }
        impl IntoShared<dyn $part> for Arc<dyn $part> {
            fn into_shared(self) -> Arc<dyn $part> {
                self
            }
        }
    )*};
}

shared!(
    ApprovalHandler,
    ApprovalStore,
    AuditLog,
    Clock,
    Embedder,
    Ledger,
    MemoryStore,
    Model,
    OutputSchema,
    Permissions,
    PostToolHook,
    PreToolHook,
    RateLimiter,
    Runtime,
    Scrub,
    Secrets,
    Telemetry,
    Tool,
    ToolCache,
);
