//! Bounds that give nothing away: flooding, idleness, full tables, erasure, and many threads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use loomflow_core::{
    BudgetConfig, Charge, Clock, Entity, Epoch, Erase, Error, ErrorKind, Granted, Hold, HoldKey, Identity,
    Ledger, Namespace, Refusal, RefusalReason, Reserve, RunId, Scope, TenantData, Timestamp, Usage, UserId,
    Window, danger,
};
use loomflow_local::StandardBudget;

fn scope(user: &str) -> Scope {
    danger::assume_scope(Namespace::default(), Identity::User(UserId::new(user).unwrap()), Epoch::ZERO)
}

fn hold(n: u128, input: u64, output: u64) -> Hold {
    Hold::tokens(HoldKey::new(RunId::from_u128(n), 0), input, output)
}

fn used(input: u64, output: u64) -> Charge {
    Charge::Used { usage: Usage::new(input, output), estimated: false }
}

async fn granted(ledger: &dyn Ledger, scope: &Scope, hold: &Hold) -> Granted {
    match ledger.reserve(scope, hold).await.unwrap() {
        Reserve::Held(granted) => granted,
        Reserve::Refused(refusal) => panic!("refused: {refusal}"),
    }
}

async fn refused(ledger: &dyn Ledger, scope: &Scope, hold: &Hold) -> Refusal {
    match ledger.reserve(scope, hold).await.unwrap() {
        Reserve::Held(granted) => panic!("granted {granted:?}"),
        Reserve::Refused(refusal) => *refusal,
    }
}

/// Reserves, sends and uses all of it.
async fn spend(ledger: &dyn Ledger, scope: &Scope, n: u128, input: u64, output: u64) {
    let id = granted(ledger, scope, &hold(n, input, output)).await.id;
    ledger.sent(scope, id).await.unwrap();
    assert!(!ledger.close(scope, id, used(input, output)).await.unwrap().duplicate);
}

fn kept(ledger: &StandardBudget) -> (usize, usize) {
    let text = format!("{ledger:?}");
    let number = |name: &str| {
        let rest = text.split(name).nth(1).unwrap();
        rest.chars().skip(2).take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    (number(" hot_users"), number(" spilled_users"))
}

#[derive(Debug, Default)]
struct Hand(AtomicI64);

impl Hand {
    fn set(&self, text: &str) {
        self.0.store(text.parse::<Timestamp>().unwrap().as_micros(), Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn a_flood_of_throw_away_ids_frees_nobody_and_memory_stays_bounded() {
    let config = BudgetConfig::new().per_user_max_tokens(100).max_users(1_000).max_spilled_users(20_000);
    let ledger = StandardBudget::new(config).unwrap();
    let capped = scope("capped");
    spend(&ledger, &capped, 1, 50, 50).await;
    for n in 0..10_000_u128 {
        spend(&ledger, &scope(&format!("throw_away_{n}")), n, 1, 1).await;
    }
    let (hot, spilled) = kept(&ledger);
    assert!(hot <= 1_000, "{hot}");
    assert_eq!(hot + spilled, 10_001);
    let refusal = refused(&ledger, &capped, &hold(2, 1, 0)).await;
    assert_eq!((refusal.reason, refusal.used), (RefusalReason::Exhausted, 100));
    assert_eq!(kept(&ledger).0 + kept(&ledger).1, 10_001, "coming back moves a row and adds none");
    for n in [0_u128, 5_000, 9_999] {
        let report = ledger.usage(&scope(&format!("throw_away_{n}"))).await.unwrap();
        assert_eq!(report.used.total_tokens(), 2);
    }
}

#[tokio::test]
async fn ids_that_used_nothing_leave_nothing() {
    let ledger = StandardBudget::new(BudgetConfig::new().per_user_max_tokens(100)).unwrap();
    for n in 0..1_000_u128 {
        let scope = scope(&format!("u{n}"));
        let id = granted(&ledger, &scope, &hold(n, 50, 50)).await.id;
        ledger.close(&scope, id, Charge::Refund).await.unwrap();
        refused(&ledger, &scope, &hold(n, 101, 0)).await;
        ledger.usage(&scope).await.unwrap();
    }
    assert_eq!(kept(&ledger), (0, 0));
}

#[tokio::test]
async fn a_full_table_refuses_new_users_and_serves_the_old() {
    let config =
        BudgetConfig::new().per_user_max_tokens(100).max_users(2).max_spilled_users(3).window(Window::Day);
    let clock = Arc::new(Hand::default());
    clock.set("2026-03-01T10:00:00Z");
    let ledger = StandardBudget::new(config).unwrap().with_clock(clock.clone());
    for n in 0..5_u128 {
        spend(&ledger, &scope(&format!("u{n}")), n, 10, 10).await;
    }
    assert_eq!(kept(&ledger), (2, 3));
    let refusal = refused(&ledger, &scope("late"), &hold(9, 1, 1)).await;
    assert_eq!((refusal.reason, refusal.entity, refusal.limit), (RefusalReason::Capacity, Entity::User, 5));
    let error = Error::refused(refusal);
    assert_eq!(error.kind(), ErrorKind::Capacity);
    assert!(
        error.to_string().contains("5 kept") && error.to_string().contains("max_spilled_users"),
        "{error}"
    );
    for n in 0..5_u128 {
        spend(&ledger, &scope(&format!("u{n}")), 10 + n, 10, 10).await;
        let report = ledger.usage(&scope(&format!("u{n}"))).await.unwrap();
        assert_eq!(report.used.total_tokens(), 40);
    }
    assert_eq!(kept(&ledger), (2, 3));
    clock.set("2026-03-02T00:00:00Z");
    spend(&ledger, &scope("late"), 9, 1, 1).await;
    assert!(kept(&ledger).1 < 3, "rows of a window that ended make room");
}

#[tokio::test]
async fn a_user_with_open_holds_is_never_evicted() {
    let config = BudgetConfig::new().per_user_max_tokens(100).max_users(2);
    let ledger = StandardBudget::new(config).unwrap();
    let (a, b, c) = (scope("a"), scope("b"), scope("c"));
    let first = granted(&ledger, &a, &hold(1, 60, 0)).await.id;
    granted(&ledger, &b, &hold(1, 60, 0)).await;
    assert_eq!(refused(&ledger, &c, &hold(1, 1, 0)).await.reason, RefusalReason::Capacity);
    assert_eq!(refused(&ledger, &a, &hold(2, 41, 0)).await.held, 60);
    ledger.close(&a, first, used(60, 0)).await.unwrap();
    granted(&ledger, &c, &hold(1, 1, 0)).await;
    assert_eq!(ledger.usage(&a).await.unwrap().used.input_tokens, 60);
}

#[tokio::test(start_paused = true)]
async fn silence_resets_nothing_and_looking_keeps_nobody_alive() {
    let ledger = StandardBudget::new(BudgetConfig::new().per_user_max_tokens(100)).unwrap();
    let user = scope("a");
    spend(&ledger, &user, 1, 100, 0).await;
    for _ in 0..30 {
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(ledger.usage(&user).await.unwrap().used.input_tokens, 100);
    }
    assert_eq!(kept(&ledger), (0, 1));
    assert_eq!(refused(&ledger, &user, &hold(2, 1, 0)).await.used, 100);
    assert_eq!(kept(&ledger), (1, 0));
}

#[tokio::test]
async fn an_erasure_takes_the_name_and_leaves_the_quota() {
    let ledger = StandardBudget::new(BudgetConfig::new().per_user_max_tokens(100)).unwrap();
    let (user, other) = (scope("user_1"), scope("user_10"));
    spend(&ledger, &user, 1, 90, 0).await;
    spend(&ledger, &other, 1, 30, 0).await;
    let line = ledger.forget(&user, &Erase::everything()).await.unwrap();
    assert_eq!((line.store.as_str(), line.total(), line.retained.len()), ("ledger:inmemory", 1, 1));
    assert!(line.retained[0].contains("until their window ends"));
    assert_eq!(kept(&ledger), (1, 1));
    assert_eq!(refused(&ledger, &user, &hold(2, 11, 0)).await.used, 90);
    let again = ledger.forget(&scope("nobody"), &Erase::everything()).await.unwrap();
    assert_eq!((again.total(), again.retained.len()), (0, 0));
    let items: Vec<_> = ledger.export(&other).await.unwrap().collect().await;
    let item = items.into_iter().next().unwrap().unwrap().open(&other).unwrap();
    assert_eq!((item.kind.as_str(), &item.data["used"]["input_tokens"]), ("counter", &30.into()));
    assert_eq!(ledger.export(&scope("nobody")).await.unwrap().count().await, 0);

    // With an open hold the counter stays where it is, without its name, and the hold can still be closed.
    let id = granted(&ledger, &other, &hold(2, 30, 0)).await.id;
    ledger.forget(&other, &Erase::everything()).await.unwrap();
    assert_eq!(ledger.forget(&other, &Erase::everything()).await.unwrap().total(), 0);
    ledger.close(&other, id, used(30, 0)).await.unwrap();
    assert_eq!(ledger.usage(&other).await.unwrap().used.input_tokens, 60);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_runs_out_refunds_or_charges_and_the_truth_replaces_it() {
    let ledger = StandardBudget::new(BudgetConfig::new().per_user_max_tokens(100)).unwrap();
    let user = scope("a");
    let lease = Duration::from_secs(10);
    let kept = granted(&ledger, &user, &hold(1, 20, 20).with_lease(lease)).await.id;
    let sent = granted(&ledger, &user, &hold(2, 20, 20).with_lease(lease)).await.id;
    ledger.sent(&user, sent).await.unwrap();
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(ledger.usage(&user).await.unwrap().held_tokens, 80);
    tokio::time::advance(Duration::from_secs(1)).await;
    let report = ledger.usage(&user).await.unwrap();
    assert_eq!((report.held_tokens, report.used.total_tokens(), report.estimated_tokens), (0, 40, 40));
    for id in [kept, sent] {
        assert_eq!(ledger.sent(&user, id).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(ledger.extend(&user, id, lease).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert!(ledger.close(&user, sent, used(20, 5)).await.unwrap().duplicate);
    assert!(ledger.close(&user, sent, used(20, 9)).await.unwrap().duplicate);
    assert!(ledger.close(&user, kept, Charge::Refund).await.unwrap().duplicate);
    let report = ledger.usage(&user).await.unwrap();
    assert_eq!((report.used.total_tokens(), report.estimated_tokens), (25, 0));
    // The key is free again.
    let again = granted(&ledger, &user, &hold(1, 20, 20)).await.id;
    assert_ne!(again, kept);
}

#[tokio::test]
async fn a_clock_set_back_grants_no_fresh_window() {
    let clock = Arc::new(Hand::default());
    clock.set("2026-03-01T23:59:59.999999Z");
    let config = BudgetConfig::new().per_user_max_tokens(100).max_tokens(150).window(Window::Day);
    let ledger = StandardBudget::new(config).unwrap().with_clock(clock.clone());
    let user = scope("a");
    spend(&ledger, &user, 1, 100, 0).await;
    let refusal = refused(&ledger, &user, &hold(2, 1, 0)).await;
    assert_eq!(refusal.resets_at, Some("2026-03-02T00:00:00Z".parse().unwrap()));
    clock.set("2026-03-02T00:00:00Z");
    spend(&ledger, &user, 2, 100, 0).await;
    clock.set("2026-03-01T10:00:00Z");
    assert_eq!(refused(&ledger, &user, &hold(3, 1, 0)).await.entity, Entity::User);
    assert_eq!(refused(&ledger, &scope("b"), &hold(3, 51, 0)).await.entity, Entity::Global);
    clock.set("2026-03-03T00:00:00Z");
    spend(&ledger, &user, 3, 100, 0).await;
}

#[tokio::test]
async fn warnings_are_given_once_and_survive_eviction() {
    let config = BudgetConfig::new().per_user_max_tokens(100).max_users(1).window(Window::Lifetime);
    let ledger = StandardBudget::new(config).unwrap();
    let user = scope("a");
    let first = granted(&ledger, &user, &hold(1, 79, 0)).await;
    assert!(first.warnings.is_empty());
    ledger.close(&user, first.id, used(79, 0)).await.unwrap();
    let second = granted(&ledger, &user, &hold(2, 1, 0)).await;
    assert_eq!(second.warnings.len(), 1);
    assert_eq!((second.warnings[0].cap, second.warnings[0].used), ("per_user_max_tokens", 80));
    ledger.close(&user, second.id, used(1, 0)).await.unwrap();
    spend(&ledger, &scope("b"), 1, 1, 1).await;
    assert_eq!(kept(&ledger), (1, 1));
    assert!(granted(&ledger, &user, &hold(3, 5, 0)).await.warnings.is_empty());
}

#[tokio::test]
async fn delivery_beyond_the_hold_is_recorded_and_reported() {
    let config = BudgetConfig::new().per_user_max_tokens(100);
    let ledger = StandardBudget::new(config).unwrap();
    let user = scope("a");
    let id = granted(&ledger, &user, &hold(1, 50, 50)).await.id;
    let settled = ledger.close(&user, id, used(50, 70)).await.unwrap();
    assert_eq!((settled.duplicate, settled.excess_tokens), (false, 20));
    assert_eq!(ledger.usage(&user).await.unwrap().used.total_tokens(), 120);
    assert_eq!(refused(&ledger, &user, &hold(2, 1, 0)).await.used, 120);
}

/// Eight threads, one cap of all users together and one of each user; every second call is cancelled or repeated.
#[test]
fn many_threads_never_leave_the_cap_and_lose_no_token() {
    const CAP: u64 = 60_000;
    for shared in [true, false] {
        let mut config = BudgetConfig::new().per_user_max_tokens(if shared { CAP } else { CAP / 4 });
        if !shared {
            config = config.max_tokens(CAP);
        }
        let ledger = Arc::new(StandardBudget::new(config).unwrap());
        let invoiced = AtomicU64::new(0);
        let over = AtomicBool::new(false);
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        std::thread::scope(|threads| {
            for thread in 0..8_u64 {
                let (ledger, invoiced, over) = (&ledger, &invoiced, &over);
                threads.spawn(move || {
                    runtime().block_on(async {
                        let user = scope(&if shared { "all".to_owned() } else { format!("u{}", thread % 5) });
                        for n in 0..3_000_u64 {
                            let hold =
                                hold(u128::from(thread << 32 | n), n % 7, 5 + n % 11).with_min_output(1);
                            let Reserve::Held(granted) = ledger.reserve(&user, &hold).await.unwrap() else {
                                continue;
                            };
                            if n % 5 == 0 {
                                let again = ledger.reserve(&user, &hold).await.unwrap();
                                assert!(matches!(again, Reserve::Held(g) if g.id == granted.id));
                            }
                            let charge = if n % 3 == 0 {
                                Charge::Refund
                            } else {
                                ledger.sent(&user, granted.id).await.unwrap();
                                used(n % 7, granted.output_tokens)
                            };
                            let report = ledger.usage(&user).await.unwrap();
                            let line = &report.windows[0];
                            over.fetch_or(line.used + line.held > line.limit, Ordering::Relaxed);
                            if !ledger.close(&user, granted.id, charge).await.unwrap().duplicate && n % 3 != 0
                            {
                                invoiced.fetch_add(n % 7 + granted.output_tokens, Ordering::Relaxed);
                            }
                            assert!(ledger.close(&user, granted.id, charge).await.unwrap().duplicate);
                        }
                    });
                });
            }
        });
        assert!(!over.load(Ordering::Relaxed));
        let total = runtime().block_on(async {
            let mut total = 0;
            for user in ["all", "u0", "u1", "u2", "u3", "u4"] {
                let report = ledger.usage(&scope(user)).await.unwrap();
                assert_eq!((report.held_tokens, report.open_holds), (0, 0));
                total += report.used.total_tokens();
            }
            total
        });
        assert_eq!(total, invoiced.load(Ordering::Relaxed));
        assert!(total <= CAP && total > CAP - 20, "the cap is used up and never passed: {total}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_runs_out_anywhere_frees_the_cap_of_all() {
    let ledger = StandardBudget::new(BudgetConfig::new().max_tokens(100)).unwrap();
    for n in 0..20_u128 {
        let hold = hold(n, 5, 0).with_lease(Duration::from_secs(10));
        let scope = scope(&format!("u{n}"));
        let id = granted(&ledger, &scope, &hold).await.id;
        if n == 0 {
            ledger.extend(&scope, id, Duration::from_secs(20)).await.unwrap();
        }
    }
    assert_eq!(refused(&ledger, &scope("late"), &hold(99, 1, 0)).await.held, 100);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(refused(&ledger, &scope("late"), &hold(99, 96, 0)).await.held, 5);
    tokio::time::advance(Duration::from_secs(10)).await;
    granted(&ledger, &scope("late"), &hold(99, 100, 0)).await;
}

#[tokio::test]
async fn a_run_that_ended_does_not_charge_the_next_of_its_name() {
    let config = BudgetConfig::new().per_run_max_tokens(100).per_user_max_tokens(1_000);
    let ledger = StandardBudget::new(config).unwrap();
    let (user, run) = (scope("a"), RunId::from_u128(1));
    assert!(ledger.limits().per_run && !ledger.limits().wall_clock);
    let part = |seq, tokens| Hold::tokens(HoldKey::new(run, seq), tokens, 0);
    let old = granted(&ledger, &user, &part(0, 60)).await.id;
    assert_eq!(refused(&ledger, &user, &part(1, 41)).await.entity, Entity::Run);
    ledger.end_run(&user, run).await.unwrap();
    assert_eq!(ledger.usage(&user).await.unwrap().held_tokens, 60, "the hold stays counted for its user");
    granted(&ledger, &user, &part(1, 100)).await;
    ledger.close(&user, old, used(60, 0)).await.unwrap();
    let refusal = refused(&ledger, &user, &part(2, 1)).await;
    assert_eq!((refusal.entity, refusal.used, refusal.held), (Entity::Run, 0, 100));
    assert_eq!(ledger.usage(&user).await.unwrap().used.input_tokens, 60);
}

#[tokio::test]
async fn a_run_from_before_an_erasure_puts_no_name_back() {
    let at = |epoch| {
        let user = UserId::new("erased").unwrap();
        danger::assume_scope(Namespace::default(), Identity::User(user), Epoch::new(epoch))
    };
    // With an open hold the counter stays hot, and without it is spilled; both ways the name stays away.
    for keep_open in [true, false] {
        let ledger = StandardBudget::new(BudgetConfig::new().per_user_max_tokens(1_000)).unwrap();
        spend(&ledger, &at(0), 1, 10, 0).await;
        if keep_open {
            granted(&ledger, &at(0), &hold(2, 10, 0)).await;
        }
        assert_eq!(ledger.forget(&at(1), &Erase::everything()).await.unwrap().total(), 1);
        granted(&ledger, &at(0), &hold(3, 10, 0)).await;
        assert_eq!(
            ledger.forget(&at(2), &Erase::everything()).await.unwrap().total(),
            0,
            "no name came back"
        );
        granted(&ledger, &at(2), &hold(4, 10, 0)).await;
        assert_eq!(
            ledger.forget(&at(3), &Erase::everything()).await.unwrap().total(),
            1,
            "a newer run is named"
        );
    }
}
