//! The suite of [`AuditLog`]: ordered, whole, and each tenant's own.

pub mod isolation;
pub mod log;

use std::fmt;
use std::sync::Arc;

use loomflow_core::{Action, Actor, AuditEntry, AuditEvent, AuditLog, AuditQuery, Result, RunId, Scope};
use serde_json::json;

use crate::fixture::{Must as _, at, open, redacted, session};
use crate::plant::{Plant, PlantHook};
use crate::{IntoHarness, Unavailable};

/// The log under test.
#[derive(Clone)]
pub struct Harness {
    log: Arc<dyn AuditLog>,
    plant: PlantHook<AuditEvent>,
}

impl Harness {
    /// A harness for `log`, which may be shared with other cases and hold other entries.
    #[must_use]
    pub fn new(log: Arc<dyn AuditLog>) -> Self {
        Self { log, plant: PlantHook::none() }
    }

    /// Says how to write a foreign entry where a tenant's own query finds it. Without it the suite fails.
    #[must_use]
    pub fn with_plant<F, Fut>(mut self, plant: F) -> Self
    where
        F: Fn(Plant<AuditEvent>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.plant = PlantHook::new(plant);
        self
    }

    pub(crate) fn log(&self) -> &dyn AuditLog {
        &*self.log
    }

    pub(crate) fn shared(&self) -> Arc<dyn AuditLog> {
        self.log.clone()
    }

    pub(crate) async fn append(&self, scope: &Scope, event: AuditEvent) -> u64 {
        self.log.append(scope, event).await.must("append").seq
    }

    pub(crate) async fn query(&self, scope: &Scope, query: &AuditQuery) -> Vec<AuditEntry> {
        open(scope, self.log.query(scope, query).await.must("query"), "query")
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "audit::Harness({}, {:?})", self.log.store_name(), self.plant)
    }
}

#[doc(hidden)]
#[allow(clippy::future_not_send, reason = "a factory need not be Send")]
pub async fn provide<F, Fut, P>(factory: F) -> Result<Harness, Unavailable>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = P>,
    P: IntoHarness<Harness>,
{
    factory().await.into_harness()
}

/// An event of `run` that says `word`.
fn event(run: RunId, action: Action, seconds: i64, word: &str) -> AuditEvent {
    AuditEvent::new(at(seconds), Actor::System, action, redacted(&json!({ "said": word })))
        .in_run(session("conv"), run)
}

crate::case::suite! { $ audit, audit_cases, __loomflow_audit_case,
    /// One `#[test]` per case of the audit suite, in a module `audit_cases`. `factory` is an `async fn` that returns a
    /// fresh [`audit::Harness`](crate::audit::Harness), or `Result<Harness, Unavailable>`.
    behaviour: [
        log::entries_come_back_as_they_were,
        log::entries_are_in_the_order_they_were_appended,
        log::queries_filter,
        log::of_an_unknown_partition_is_empty,
        log::every_action_and_actor_is_kept,
        log::hostile_payloads_are_data,
        log::concurrent_appends_keep_every_callers_order,
        log::dropped_appends_are_whole_or_absent,
        log::forgetting_keeps_the_log_whole,
        log::exports_are_complete,
    ],
    isolation: [
        isolation::hostile_tenants_read_their_own,
        isolation::another_tenants_run_is_not_found,
        isolation::namespaces_are_apart,
        isolation::a_border_between_namespace_and_user_cannot_be_shifted,
        isolation::forgetting_one_leaves_the_other,
        isolation::exports_hold_their_own,
        isolation::a_foreign_entry_trips_a_query,
        isolation::a_foreign_entry_trips_an_export,
    ],
}
