//! Warnings in a rolling window, and the bound on namespaces that are counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::{
    BudgetConfig, Charge, Entity, Epoch, ErrorKind, Hold, HoldId, HoldKey, Identity, Ledger, Namespace,
    RefusalReason, Reserve, RunId, Scope, Timestamp, Usage, UserId, Warning, Window, danger,
};
use loomflow_local::StandardBudget;

const WINDOW: Duration = Duration::from_secs(60);

fn scope_in(namespace: &str, user: &str) -> Scope {
    let identity = Identity::User(UserId::new(user).unwrap());
    danger::assume_scope(Namespace::new(namespace).unwrap(), identity, Epoch::ZERO)
}

fn alice() -> Scope {
    scope_in("app", "alice")
}

/// Tokens by the second, in a window of sixty slices of a second each.
struct World {
    ledger: StandardBudget,
    clock: Arc<ManualClock>,
    calls: u128,
}

impl World {
    fn new(config: BudgetConfig) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_773_576_000_000_000)));
        let ledger = StandardBudget::new(config.window(Window::Rolling(WINDOW))).unwrap();
        Self { ledger: ledger.with_clock(clock.clone()), clock, calls: 0 }
    }

    fn wait(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    async fn hold(&mut self, scope: &Scope, tokens: u64) -> (HoldId, Vec<Warning>) {
        self.calls += 1;
        let hold = Hold::tokens(HoldKey::new(RunId::from_u128(self.calls), 0), tokens, 0);
        match self.ledger.reserve(scope, &hold).await.unwrap() {
            Reserve::Held(granted) => (granted.id, granted.warnings),
            Reserve::Refused(refusal) => panic!("{refusal}"),
        }
    }

    /// Reserves and settles; answers whose caps were warned about, and at which level.
    async fn spend(&mut self, scope: &Scope, tokens: u64) -> Vec<(Entity, u64)> {
        let (id, mut warnings) = self.hold(scope, tokens).await;
        let charge = Charge::Used { usage: Usage::new(tokens, 0), estimated: false };
        warnings.extend(self.ledger.close(scope, id, charge).await.unwrap().warnings);
        warnings.iter().map(|w| (w.entity, w.used)).collect()
    }
}

#[tokio::test]
async fn a_rolling_window_warns_again_when_what_left_it_brought_use_below_the_line() {
    let mut world = World::new(BudgetConfig::new().max_tokens(100).per_user_max_tokens(100));
    let alice = alice();
    assert_eq!(world.spend(&alice, 50).await, []);
    world.wait(30);
    assert_eq!(world.spend(&alice, 40).await, [(Entity::Global, 90), (Entity::User, 90)]);
    world.wait(1);
    assert_eq!(world.spend(&alice, 1).await, [], "once, as long as use stays above the line");
    world.wait(29);
    assert_eq!(world.spend(&alice, 1).await, [], "sixty seconds later the first use still counts");
    world.wait(1);
    assert_eq!(
        world.spend(&alice, 38).await,
        [(Entity::Global, 80), (Entity::User, 80)],
        "50 left, 42 stayed"
    );
    world.wait(1);
    assert_eq!(world.spend(&alice, 1).await, []);
}

#[tokio::test]
async fn a_rolling_window_stays_silent_while_use_stays_at_the_line() {
    let mut world = World::new(BudgetConfig::new().max_tokens(100).per_user_max_tokens(100));
    let alice = alice();
    assert_eq!(world.spend(&alice, 5).await, []);
    world.wait(10);
    assert_eq!(world.spend(&alice, 40).await, []);
    let (_, warnings) = world.hold(&alice, 40).await;
    assert_eq!(
        warnings.iter().map(|w| (w.entity, w.used)).collect::<Vec<_>>(),
        [(Entity::Global, 85), (Entity::User, 85)]
    );
    world.wait(51);
    assert_eq!(world.spend(&alice, 5).await, [], "5 left and 80 stayed, what is held among it");
    world.wait(10);
    assert_eq!(world.spend(&alice, 35).await, [(Entity::Global, 80), (Entity::User, 80)], "40 left");
}

#[tokio::test]
async fn a_users_warning_is_given_once_although_the_user_is_evicted() {
    let mut world = World::new(BudgetConfig::new().per_user_max_tokens(100).max_users(1));
    let (alice, bob) = (alice(), scope_in("app", "bob"));
    assert_eq!(world.spend(&alice, 50).await, []);
    world.wait(30);
    assert_eq!(world.spend(&alice, 35).await, [(Entity::User, 85)]);
    assert_eq!(world.spend(&bob, 80).await, [(Entity::User, 80)], "each user is warned of their own");
    assert_eq!(world.spend(&alice, 1).await, [], "what was said is remembered with the counter");
    world.wait(31);
    assert_eq!(world.spend(&bob, 1).await, []);
    assert_eq!(world.spend(&alice, 44).await, [(Entity::User, 80)], "50 left while the user was away");
}

#[tokio::test]
async fn namespaces_beyond_the_bound_are_refused_and_the_others_go_on() {
    let mut world = World::new(BudgetConfig::new().max_tokens(100));
    let of = |n: u32| scope_in(&format!("app-{n}"), "alice");
    for n in 0..1_024 {
        assert_eq!(world.spend(&of(n), 79).await, []);
    }
    let reserve = |n: u128, tokens| Hold::tokens(HoldKey::new(RunId::from_u128(n << 64), 0), tokens, 0);
    let more = world.ledger.reserve(&of(1_024), &reserve(1, 1)).await;
    assert_eq!(more.unwrap_err().kind(), ErrorKind::Capacity);
    let Reserve::Refused(full) = world.ledger.reserve(&of(7), &reserve(2, 22)).await.unwrap() else {
        panic!("79 + 22 of 100")
    };
    assert_eq!((full.reason, full.entity, full.used), (RefusalReason::Exhausted, Entity::Global, 79));
    assert_eq!(world.spend(&of(7), 21).await, [(Entity::Global, 100)]);
    assert!(world.ledger.usage(&of(1_024)).await.is_ok());

    let uncapped = StandardBudget::new(BudgetConfig::new().per_user_max_tokens(100)).unwrap();
    for n in 0..1_100 {
        let granted = uncapped.reserve(&of(n), &reserve(1, 1)).await.unwrap();
        assert!(matches!(granted, Reserve::Held(_)), "without a cap for everybody nothing is counted for it");
    }
}
