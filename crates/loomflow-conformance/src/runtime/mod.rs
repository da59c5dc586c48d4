//! The suite of [`Runtime`]: leases, fences, and a journal that never does a step twice.

pub mod isolation;
pub mod journal;
pub mod lease;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{Result, RunId, RunLease, RunOpening, RunRecord, Runtime, Scope, SessionId};
use serde_json::json;

use crate::doubles::ManualClock;
use crate::fixture::{Must as _, at, open, redacted};
use crate::plant::{Plant, PlantHook};
use crate::{IntoHarness, Unavailable};

/// The runtime under test.
#[derive(Clone)]
pub struct Harness {
    runtime: Arc<dyn Runtime>,
    clock: Option<Arc<ManualClock>>,
    plant: PlantHook<RunOpening>,
}

impl Harness {
    /// A harness for `runtime`, which may be shared with other cases and hold other runs.
    #[must_use]
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { runtime, clock: None, plant: PlantHook::none() }
    }

    /// Says that leases run out when `clock` is turned, so that cases need not wait. Leave it out where leases follow a
    /// monotonic clock or a server's.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<ManualClock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Says how to write a foreign open run where a tenant's own query looks. Without it the suite fails.
    #[must_use]
    pub fn with_plant<F, Fut>(mut self, plant: F) -> Self
    where
        F: Fn(Plant<RunOpening>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.plant = PlantHook::new(plant);
        self
    }

    pub(crate) fn runtime(&self) -> &dyn Runtime {
        &*self.runtime
    }

    pub(crate) fn shared(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    /// Lets a [`SHORT`] lease run out.
    pub(crate) async fn outlive(&self) {
        match &self.clock {
            Some(clock) => clock.advance(SHORT + Duration::from_millis(300)),
            None => tokio::time::sleep(SHORT + Duration::from_millis(300)).await,
        }
    }

    pub(crate) async fn open(&self, scope: &Scope, run: RunId, s: &SessionId) -> RunLease {
        self.runtime.open(scope, opening(run, s, LONG)).await.must("open")
    }

    pub(crate) async fn open_runs(&self, scope: &Scope) -> Vec<RunRecord> {
        open(scope, self.runtime.open_runs(scope).await.must("open_runs"), "open_runs")
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "runtime::Harness({}, {:?})", self.runtime.store_name(), self.plant)
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

/// A lease that does not run out within a case.
const LONG: Duration = Duration::from_secs(600);
/// A lease to wait for.
const SHORT: Duration = Duration::from_secs(1);

fn opening(run: RunId, session: &SessionId, lease: Duration) -> RunOpening {
    RunOpening::new(run, session.clone(), redacted(&json!({ "input": "hello" })), lease, at(0))
}

crate::case::suite! { $ runtime, runtime_cases, __loomflow_runtime_case,
    /// One `#[test]` per case of the runtime suite, in a module `runtime_cases`. `factory` is an `async fn` that returns
    /// a fresh [`runtime::Harness`](crate::runtime::Harness), or `Result<Harness, Unavailable>`.
    behaviour: [
        lease::a_session_has_one_open_run,
        lease::a_closed_run_frees_its_session,
        lease::of_concurrent_openings_one_wins,
        lease::an_expired_lease_can_be_taken_over,
        lease::a_former_holder_is_fenced_off,
        lease::a_waiting_run_says_so,
        lease::a_renewed_lease_stays,
        lease::another_run_takes_a_session_whose_lease_ran_out,
        lease::open_runs_are_listed_oldest_first,
        journal::a_step_is_fresh_then_in_doubt_then_done,
        journal::steps_survive_a_new_holder,
        journal::committing_again_changes_nothing,
        journal::another_fingerprint_is_a_conflict,
        journal::forgetting_takes_every_run,
        journal::exports_are_complete,
    ],
    isolation: [
        isolation::the_same_session_of_two_tenants_is_two_sessions,
        isolation::a_border_between_namespace_and_user_cannot_be_shifted,
        isolation::the_same_run_of_two_tenants_is_two_runs,
        isolation::a_foreign_run_is_not_found,
        isolation::a_foreign_lease_opens_nothing,
        isolation::forgetting_one_leaves_the_other,
        isolation::stale_runs_cannot_write_back,
        isolation::two_erasures_never_share_an_epoch,
        isolation::exports_hold_their_own,
        isolation::a_foreign_run_is_withheld,
    ],
}
