//! What a reservation costs in the in-process budget: reserve, send, settle, on one core, through the trait object.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use loomflow_core::{
    BudgetConfig, Charge, Epoch, Hold, HoldKey, Identity, Ledger, Namespace, Price, Reserve, RunId, Scope,
    Usage, UserId, Window, danger,
};
use loomflow_local::StandardBudget;

const USERS: usize = 10_000;

fn scopes(n: usize) -> Vec<Scope> {
    (0..n)
        .map(|i| {
            let user = Identity::User(UserId::new(format!("customer-{i:08}@example.com")).unwrap());
            danger::assume_scope(Namespace::default(), user, Epoch::ZERO)
        })
        .collect()
}

/// One call, all of its ledger work. The in-process budget never waits, so its futures are ready when first polled.
fn call(ledger: &dyn Ledger, scope: &Scope, n: u128, sent: bool) {
    let hold = Hold::tokens(HoldKey::new(RunId::from_u128(n), 0), 100, 50)
        .with_price(Some(Price::per_token(400_000, 1_600_000)));
    let Reserve::Held(granted) = ledger.reserve(scope, &hold).now_or_never().unwrap().unwrap() else {
        panic!("the bench's caps are never reached");
    };
    if sent {
        ledger.sent(scope, granted.id).now_or_never().unwrap().unwrap();
    }
    let charge = Charge::Used { usage: Usage::new(100, 40), estimated: false };
    black_box(ledger.close(scope, granted.id, charge).now_or_never().unwrap().unwrap());
}

fn ledger(c: &mut Criterion) {
    let per_user = BudgetConfig::new().per_user_max_tokens(u64::MAX / 2);
    let full = per_user.clone().max_tokens(u64::MAX / 2).per_run_max_tokens(100_000).window(Window::Day);
    let scopes = scopes(USERS);
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(1));
    for (name, config, sent) in [
        ("reserve+close/per_user", per_user.clone(), false),
        ("reserve+sent+close/per_user", per_user.clone(), true),
        ("reserve+sent+close/per_user+global+per_run+day", full, true),
        ("reserve+sent+close/evicting_every_time", per_user.max_users(1_000), true),
    ] {
        let per_run = config.per_run.tokens.is_some();
        let ledger: Arc<dyn Ledger> = Arc::new(StandardBudget::new(config).unwrap());
        let mut n = 0_u128;
        group.bench_function(name, |b| {
            b.iter(|| {
                n += 1;
                let scope = &scopes[n as usize % USERS];
                call(&*ledger, scope, n, sent);
                if per_run {
                    ledger.end_run(scope, RunId::from_u128(n)).now_or_never().unwrap().unwrap();
                }
            });
        });
    }
    group.bench_function("first_call_of_a_user", |b| {
        let ledger = StandardBudget::new(BudgetConfig::new().per_user_max_tokens(u64::MAX / 2)).unwrap();
        let mut n = 0_u128;
        b.iter_batched(
            || {
                n += 1;
                let user = Identity::User(UserId::new(format!("customer-{n:08}")).unwrap());
                (n, danger::assume_scope(Namespace::default(), user, Epoch::ZERO))
            },
            |(n, scope)| call(&ledger, &scope, n, true),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, ledger);
criterion_main!(benches);
