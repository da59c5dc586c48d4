//! Every case of a tool cache. A cache may forget at any time, so a miss is never wrong; a foreign hit always is.

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, canary};
use crate::naughty;

/// A value that was just kept is found under its key, and under no other.
pub async fn keeps_a_value(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    assert_eq!(h.get(&alice, "k").await, None, "nothing was kept yet");
    h.put(&alice, "k", "value \"\u{1f600}\" \n").await;
    h.put(&alice, "empty", "").await;
    let Some(found) = h.get(&alice, "k").await else {
        return Outcome::unsupported("keeping values (a value that was just put is gone)");
    };
    assert_eq!(found, "value \"\u{1f600}\" \n");
    assert_eq!(h.get(&alice, "empty").await.as_deref(), Some(""), "an empty value is a value");
    for other in ["K", "k ", "", "k\0", "kk"] {
        assert_eq!(h.get(&alice, other).await, None, "nothing was kept under {other:?}");
    }
    Passed
}

/// Keeping another value under a key replaces the first.
pub async fn the_last_value_stands(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for value in ["one", "two", "three"] {
        h.put(&alice, "k", value).await;
        let found = h.get(&alice, "k").await;
        assert!(found.is_none() || found.as_deref() == Some(value), "{found:?} is not the last value");
    }
    Passed
}

/// Under every hostile tenant and key, what is found is what that tenant kept under that key.
pub async fn hostile_tenants_and_keys_do_not_mix(h: &Harness) -> Outcome {
    let world = World::new();
    let keys = naughty::keys();
    let pairs = naughty::pairs();
    for (n, (a, b)) in pairs.iter().enumerate() {
        let (k1, k2) = (&keys[n % keys.len()], &keys[(n + 1) % keys.len()]);
        let cells = [(a, k1), (a, k2), (b, k1), (b, k2)];
        let mut kept = Vec::new();
        for (who, key) in cells {
            let (scope, value) = (world.scope(who), canary());
            h.put(&scope, key, &value).await;
            kept.push((scope, key, value));
        }
        for (scope, key, value) in &kept {
            let found = h.get(scope, key).await;
            let own = found.is_none() || found.as_ref() == Some(value);
            assert!(own, "{:?} found a foreign value under {key:?}", scope.owner());
        }
    }
    Passed
}

/// One user in two namespaces is two tenants, and the border between namespace, user and key cannot be shifted.
pub async fn namespaces_are_apart(h: &Harness) -> Outcome {
    for separator in ["", ":", "/", "|", "_", "\0"] {
        let world = World::new();
        let suffix = if separator == "\0" { "-" } else { separator };
        let long = world.beside(&format!("{suffix}b"));
        let kept = canary();
        h.put(&world.user("b"), &format!("c{separator}k"), &kept).await;
        for (scope, key) in [
            (long.user("b"), format!("c{separator}k")),
            (long.user("c"), "k".to_owned()),
            (world.user(&format!("b{suffix}c")), "k".to_owned()),
            (world.user("bc"), format!("{separator}k")),
        ] {
            assert_eq!(h.get(&scope, &key).await, None, "{:?} under {key:?}", scope.owner());
        }
    }
    Passed
}

/// Clearing a tenant takes all its values and nobody else's.
pub async fn clearing_one_leaves_the_other(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let (gone, kept) = (world.scope(&a), world.scope(&b));
        for key in ["k", "l"] {
            h.put(&gone, key, "gone").await;
            h.put(&kept, key, "kept").await;
        }
        let before = h.get(&kept, "k").await;
        h.cache().clear(&world.scope_at(&a, 1)).await.must("clear");
        for epoch in [0, 1] {
            for key in ["k", "l"] {
                assert_eq!(h.get(&world.scope_at(&a, epoch), key).await, None, "{a:?} was cleared");
            }
        }
        let after = h.get(&kept, "k").await;
        assert!(after.is_none() || after == before, "{b:?} found something else after clearing {a:?}");
        if before.is_some() {
            assert_eq!(after, before, "clearing {a:?} took what {b:?} kept");
        }
    }
    Passed
}

/// What a run from before the clearing puts late is not found by the runs after it.
pub async fn a_late_write_does_not_come_back_after_clearing(h: &Harness) -> Outcome {
    let world = World::new();
    let (stale, fresh) = (world.user("alice"), world.user_at("alice", 1));
    h.put(&stale, "k", "old").await;
    h.cache().clear(&fresh).await.must("clear");
    // The cache may refuse it or keep it out of sight.
    let _answer = h.cache().put(&stale, "k", "late").await;
    assert_eq!(
        h.get(&fresh, "k").await,
        None,
        "a run after the clearing found what was written from before it"
    );
    Passed
}

/// A clear of an epoch that was cleared before takes what came in between.
pub async fn clearing_again_takes_what_came_between(h: &Harness) -> Outcome {
    let world = World::new();
    let between = world.user_at("alice", 1);
    h.cache().clear(&between).await.must("clear");
    h.put(&between, "k", "between").await;
    h.cache().clear(&between).await.must("clear again");
    assert_eq!(h.get(&between, "k").await, None, "what was kept between two clears is still there");
    Passed
}
