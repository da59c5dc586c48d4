//! What one entry of the in-memory audit log costs, its MAC included, and what verifying one costs.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Action, Actor, AuditEvent, AuditLog, Epoch, Identity, KeepAll, Namespace, Redactor, RunId, Scope,
    SessionId, Timestamp, UserId,
};
use loomflow_local::InMemoryAuditLog;

const VERIFIED: u64 = 1_000;

fn event(redactor: &Redactor) -> AuditEvent {
    let payload = redactor.object().str("model", "fake").num("input_tokens", 100).num("output_tokens", 10);
    AuditEvent::new(
        Timestamp::from_micros(1_700_000_000_000_000),
        Actor::Model,
        Action::ModelCall,
        payload.finish(),
    )
    .in_run(SessionId::new("user_1-s").unwrap(), RunId::from_u128(1 << 100))
}

fn bench(c: &mut Criterion) {
    let scope: Scope =
        assume_scope(Namespace::default(), Identity::User(UserId::new("user_1").unwrap()), Epoch::ZERO);
    let redactor = Redactor::new(Arc::new(KeepAll));
    let log = InMemoryAuditLog::new().with_capacity(100_000);
    c.bench_function("audit/append", |b| {
        b.iter(|| log.append(&scope, black_box(event(&redactor))).now_or_never().unwrap().unwrap());
    });

    let log = InMemoryAuditLog::new();
    for _ in 0..VERIFIED {
        log.append(&scope, event(&redactor)).now_or_never().unwrap().unwrap();
    }
    let mut group = c.benchmark_group("audit");
    group.throughput(Throughput::Elements(VERIFIED));
    // So few entries are checked in one poll; a longer log makes way for others now and then.
    group.bench_function("verify_1000", |b| {
        b.iter(|| log.verify().now_or_never().unwrap().unwrap());
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
