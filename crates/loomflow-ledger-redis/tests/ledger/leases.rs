//! Holds whose owner never comes back.

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::{BudgetConfig, Hold, Ledger, Usage};

use crate::common::{connect, fresh_prefix, held, key, open, raw, refused, url, used, user};

/// More holds than one call settles.
const MANY: u64 = 200;

#[tokio::test]
async fn however_many_leases_run_out_nothing_is_held_after_them() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let clock = Arc::new(ManualClock::default());
    let budget = BudgetConfig::new().max_tokens(10 * MANY).per_user_max_tokens(10 * MANY);
    let ledger = open(&url, &prefix, budget).await.with_clock(clock.clone());
    let lease = Duration::from_secs(60);
    for round in 0..3 {
        for n in 0..MANY {
            let gone = user(&format!("gone_{}", n % 7));
            held(&ledger, &gone, &Hold::tokens(key(), 5, 5).with_min_output(5).with_lease(lease)).await;
        }
        let here = user("here");
        refused(&ledger, &here, &Hold::tokens(key(), 1, 0)).await;
        clock.advance(lease);
        match round {
            0 => {
                let all = held(&ledger, &here, &Hold::tokens(key(), 10 * MANY, 0)).await;
                ledger.close(&here, all.id, loomflow_core::Charge::Refund).await.unwrap();
            }
            1 => assert_eq!(ledger.namespace_usage(&here).await.unwrap().held_tokens, 0),
            _ => {
                let usage = ledger.usage(&user("gone_3")).await.unwrap();
                assert_eq!((usage.held_tokens, usage.open_holds), (0, 0));
            }
        }
    }
    ledger.namespace_usage(&user("here")).await.unwrap();
    let mut raw = raw(&url).await;
    let due: Vec<String> =
        redis::cmd("KEYS").arg(format!("{prefix}:*:due")).query_async(&mut raw).await.unwrap();
    assert!(due.is_empty(), "nothing waits for its end any more");
}

#[tokio::test]
async fn a_late_charge_takes_the_place_of_nothing_and_of_an_estimate() {
    let clock = Arc::new(ManualClock::default());
    let ledger =
        connect("redis-plain", BudgetConfig::new().max_tokens(1_000)).await.with_clock(clock.clone());
    let ada = user("ada");
    let lease = Duration::from_secs(60);
    let hold = || Hold::tokens(key(), 30, 20).with_lease(lease);
    let (held_only, sent) = (held(&ledger, &ada, &hold()).await, held(&ledger, &ada, &hold()).await);
    ledger.sent(&ada, sent.id).await.unwrap();
    clock.advance(lease);
    assert_eq!(ledger.usage(&ada).await.unwrap().used, Usage::new(30, 20), "what was sent is charged");
    assert_eq!(ledger.estimates(&ada).await.unwrap().len(), 1, "what was refunded is no estimate");
    for got in [held_only, sent] {
        for _ in 0..2 {
            assert!(ledger.close(&ada, got.id, used(30, 4)).await.unwrap().duplicate);
        }
    }
    let usage = ledger.usage(&ada).await.unwrap();
    assert_eq!((usage.used, usage.estimated_tokens, usage.held_tokens), (Usage::new(60, 8), 0, 0));
    assert_eq!(ledger.namespace_usage(&ada).await.unwrap().used, Usage::new(60, 8));
}
