//! The suite of [`Ledger`]: nobody spends more than a cap allows, and nothing is counted twice.

pub mod close;
pub mod concurrency;
pub mod isolation;
pub mod lease;
pub mod reserve;
pub mod window;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use loomflow_core::{
    BudgetConfig, CapUsage, Charge, EstimatedCharge, Granted, Hold, HoldId, HoldKey, Ledger, NanoUsd,
    Refusal, Reserve, RunId, Scope, Settled, Usage, UsageReport,
};

use crate::doubles::ManualClock;
use crate::fixture::Must as _;
use crate::{IntoHarness, Unavailable};

/// A ledger that enforces the budget it was asked for.
#[derive(Clone, Debug)]
pub struct Instance {
    ledger: Arc<dyn Ledger>,
    clock: Option<Arc<ManualClock>>,
}

impl Instance {
    /// A ledger on the machine's clock, or the server's. Cases about windows are then unsupported.
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>) -> Self {
        Self { ledger, clock: None }
    }

    /// Says that the ledger reads the time from `clock`, so that cases can turn it.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<ManualClock>) -> Self {
        self.clock = Some(clock);
        self
    }

    pub(crate) fn clock(&self) -> Option<&ManualClock> {
        self.clock.as_deref()
    }

    pub(crate) fn ledger(&self) -> &dyn Ledger {
        &*self.ledger
    }

    pub(crate) fn shared(&self) -> Arc<dyn Ledger> {
        self.ledger.clone()
    }

    pub(crate) async fn held(&self, scope: &Scope, hold: &Hold) -> Granted {
        granted(self.ledger.reserve(scope, hold).await.must("reserve"))
    }

    pub(crate) async fn refused(&self, scope: &Scope, hold: &Hold, why: &str) -> Refusal {
        match self.ledger.reserve(scope, hold).await.must("reserve") {
            Reserve::Refused(refusal) => *refusal,
            Reserve::Held(got) => panic!("{why}: {hold:?} must be refused, but was granted {got:?}"),
        }
    }

    pub(crate) async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Settled {
        self.ledger.close(scope, hold, charge).await.must("close")
    }

    pub(crate) async fn usage(&self, scope: &Scope) -> UsageReport {
        self.ledger.usage(scope).await.must("usage")
    }

    pub(crate) async fn estimates(&self, scope: &Scope) -> Vec<EstimatedCharge> {
        let listed = self.ledger.estimates(scope).await.must("estimates");
        listed.into_iter().map(|owned| owned.open(scope).must("opening an estimate")).collect()
    }

    /// Reserves, sends and settles `input` and `output` tokens.
    pub(crate) async fn spend(&self, scope: &Scope, input: u64, output: u64) {
        let hold = Hold::tokens(key(), input, output).with_min_output(output);
        let got = self.held(scope, &hold).await;
        self.ledger.sent(scope, got.id).await.must("sent");
        self.close(scope, got.id, used(input, output)).await;
    }

    /// The line of the cap `name` in the usage of `scope`.
    pub(crate) async fn line(&self, scope: &Scope, name: &str) -> CapUsage {
        let usage = self.usage(scope).await;
        let line = usage.windows.iter().find(|line| line.cap == name).cloned();
        line.unwrap_or_else(|| panic!("usage has no line for {name}: {:?}", usage.windows))
    }
}

type OpenFn = Arc<dyn Fn(BudgetConfig) -> BoxFuture<'static, Result<Instance, Unavailable>> + Send + Sync>;

/// Opens ledgers, each with the budget a case needs and with counters of its own.
#[derive(Clone)]
pub struct Harness {
    open: OpenFn,
}

impl Harness {
    /// A harness that opens ledgers with `open`: an `async fn` from a budget to an [`Instance`].
    pub fn new<F, Fut, P>(open: F) -> Self
    where
        F: Fn(BudgetConfig) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = P> + Send + 'static,
        P: IntoHarness<Instance>,
    {
        let open = Arc::new(open);
        Self {
            open: Arc::new(move |config| {
                let opening = open(config);
                Box::pin(async move { opening.await.into_harness() })
            }),
        }
    }

    /// A fresh ledger with this budget.
    pub(crate) async fn open(&self, config: BudgetConfig) -> Instance {
        config.validate().must("a budget of the suite");
        let opened = (self.open)(config).await;
        opened.unwrap_or_else(|why| panic!("the ledger became unavailable within the suite: {why}"))
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ledger::Harness")
    }
}

#[doc(hidden)]
#[allow(clippy::unused_async, reason = "all suites are provided the same way")]
pub async fn provide<F, Fut, P>(factory: F) -> Result<Harness, Unavailable>
where
    F: Fn(BudgetConfig) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = P> + Send + 'static,
    P: IntoHarness<Instance>,
{
    let harness = Harness::new(factory);
    // Opened once for nothing, so that a missing server skips the case instead of failing it.
    (harness.open)(BudgetConfig::new()).await?;
    Ok(harness)
}

fn granted(reserve: Reserve) -> Granted {
    match reserve {
        Reserve::Held(got) => got,
        Reserve::Refused(refusal) => panic!("reserve must be granted, but was refused: {refusal}"),
    }
}

/// A key that no other hold has.
fn key() -> HoldKey {
    HoldKey::new(RunId::from_u128(rand::random()), 0)
}

fn used(input: u64, output: u64) -> Charge {
    Charge::Used { usage: Usage::new(input, output), estimated: false }
}

fn used_at(input: u64, output: u64, cost: u64) -> Charge {
    Charge::Used { usage: Usage::new(input, output).with_cost(NanoUsd(cost)), estimated: false }
}

crate::case::suite! { $ ledger, ledger_cases, __loomflow_ledger_case,
    /// One `#[test]` per case of the ledger suite, in a module `ledger_cases`. `factory` is an `async fn` from a
    /// `BudgetConfig` to a fresh [`ledger::Instance`](crate::ledger::Instance), or `Result<Instance, Unavailable>`.
    behaviour: [
        reserve::a_refusal_names_cap_and_numbers,
        reserve::grants_what_is_left,
        reserve::never_grants_less_than_the_minimum,
        reserve::a_refusal_sets_nothing_aside,
        reserve::the_same_key_holds_once,
        reserve::the_same_key_with_other_amounts_is_a_conflict,
        reserve::every_kind_of_token_cap_holds,
        reserve::cost_is_capped,
        reserve::an_unknown_price_is_refused_under_a_cost_cap,
        reserve::wall_clock_is_capped,
        reserve::the_global_cap_counts_everybody,
        reserve::the_run_cap_counts_one_run,
        reserve::without_caps_usage_is_counted_all_the_same,
        reserve::limits_say_what_is_capped,
        close::counts_what_was_used,
        close::counts_once,
        close::a_refund_gives_everything_back,
        close::an_excess_is_recorded,
        close::marks_estimates,
        close::a_closed_hold_can_be_neither_sent_nor_extended,
        close::an_unknown_hold_is_not_found,
        close::warnings_are_given_once,
        close::estimates_are_listed,
        close::an_invoice_replaces_an_estimate,
        close::only_an_estimate_can_be_reconciled,
        close::the_namespace_total_is_the_sum,
        lease::an_expired_hold_is_refunded,
        lease::an_expired_sent_hold_is_charged_its_estimate,
        lease::an_actual_charge_replaces_the_estimate,
        lease::an_extended_hold_stays,
        lease::an_expired_hold_of_another_frees_the_global_cap,
        window::calendar_windows_reset_at_their_border,
        window::a_lifetime_never_resets,
        window::a_rolling_window_forgets_late_and_never_early,
        window::warnings_come_back_in_the_next_window,
        window::turning_the_clock_back_gives_nothing_away,
        concurrency::reserves_at_once_never_exceed_a_user_cap,
        concurrency::reserves_at_once_never_exceed_the_global_cap,
        concurrency::partial_grants_at_once_never_exceed,
        concurrency::the_same_key_at_once_holds_once,
        concurrency::closes_at_once_count_once,
        concurrency::the_books_balance_under_load,
        concurrency::dropped_calls_are_whole_or_absent,
    ],
    isolation: [
        isolation::hostile_users_spend_their_own,
        isolation::namespaces_spend_their_own,
        isolation::the_global_cap_counts_one_namespace,
        isolation::a_border_between_namespace_and_user_cannot_be_shifted,
        isolation::the_same_run_of_two_users_is_two_runs,
        isolation::a_foreign_hold_is_not_found,
        isolation::a_foreign_estimate_is_not_found,
        isolation::a_full_user_stops_nobody_else,
        isolation::a_refusal_names_no_other_user,
        isolation::forgetting_does_not_reset_a_quota,
        isolation::forgetting_one_leaves_the_other,
        isolation::eviction_never_resets_a_quota,
        isolation::exports_hold_their_own,
    ],
}
