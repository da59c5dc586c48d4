//! One tenant's limits and another's. No capability switches these cases off.

use loomflow_core::{Amounts, Entity, Erase, LimitReason, RateLimitConfig, Scope};

use super::{Harness, Instance, slow_runs, slow_tokens, tokens};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, canary, export, export_text};
use crate::naughty;

/// Every hostile identity has a burst of its own.
pub async fn hostile_users_have_limits_of_their_own(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100)).await;
    let world = World::new();
    let all: Vec<Scope> = naughty::identities().iter().map(|who| world.scope(who)).collect();
    for scope in &all {
        l.admitted(scope, &tokens(60), &format!("the first of {:?}", scope.owner())).await;
    }
    for scope in &all {
        l.has_tokens_left(scope, 40, &format!("60 of 100 of {:?} were taken", scope.owner())).await;
    }
    Passed
}

/// A user who is held back holds nobody else back, under every hostile pair.
pub async fn a_user_held_back_holds_nobody_else_back(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(2)).await;
    for (a, b) in naughty::pairs() {
        let world = World::new();
        l.drain_runs(&world.scope(&a), 2, "a burst").await;
        l.drain_runs(&world.scope(&b), 2, &format!("{b:?} has a whole burst although {a:?} has none")).await;
    }
    Passed
}

/// One user in two namespaces has two limits, and so have all users of each together.
pub async fn namespaces_are_apart(h: &Harness) -> Outcome {
    for config in [slow_runs(2), RateLimitConfig::new().global_rps(1.0 / 60.0).global_burst(2)] {
        let l = h.open(config).await;
        let world = World::new();
        let others = ["-1", "-10", "-A", "-a", ":", "}"].map(|after| world.beside(after));
        for namespace in others.iter().chain([&world]) {
            l.drain_runs(&namespace.user("alice"), 2, "a namespace is an application of its own").await;
        }
    }
    Passed
}

/// The border between namespace and user cannot be moved: `a` + `b:c` takes nothing of `a:b` + `c`.
pub async fn a_border_between_namespace_and_user_cannot_be_shifted(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(1)).await;
    for (separator, name) in
        [("", "bc"), (":", "b:c"), ("/", "b/c"), ("|", "b|c"), ("_", "b_c"), ("}", "b}c")]
    {
        let world = World::new();
        l.drain_runs(&world.user(name), 1, "one").await;
        for other in [world.beside(&format!("{separator}b")).user("c"), world.beside(separator).user("bc")] {
            if other.owner() != world.user(name).owner() {
                l.drain_runs(&other, 1, &format!("{:?} took nothing", other.owner())).await;
            }
        }
    }
    Passed
}

/// An answer names no user, least of all another.
pub async fn an_answer_names_nobody(h: &Harness) -> Outcome {
    let l = h.open(RateLimitConfig::new().global_rps(1.0 / 60.0).global_burst(1)).await;
    let (world, name) = (World::new(), canary());
    l.admitted(&world.user(&name), &Amounts::run(), "one of all").await;
    let limited = l.limited(&world.user("bob"), &Amounts::run(), "none of all is left").await;
    assert_eq!(limited.entity, Entity::Global);
    assert!(!format!("{limited:?} {limited}").contains(&name), "an answer names another user");
    Passed
}

/// What is given back for one user is given to no other, and what one owes no other does.
pub async fn settling_for_one_leaves_the_other(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100)).await;
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let (one, other) = (world.scope(&a), world.scope(&b));
        l.admitted(&one, &tokens(50), "it fits").await;
        l.admitted(&other, &tokens(50), "it fits").await;
        l.limiter().settle(&one, &tokens(50), &tokens(0)).await.must("settle");
        l.has_tokens_left(&other, 50, &format!("what {a:?} gave back is not {b:?}'s")).await;
        l.limiter().settle(&other, &tokens(0), &tokens(40)).await.must("settle");
        l.has_tokens_left(&one, 100, &format!("what {b:?} owes is not {a:?}'s to wait for")).await;
    }
    Passed
}

/// However many strangers come by, nobody who is held back becomes free; a full table refuses newcomers instead.
pub async fn many_strangers_make_no_limit_fresh(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(1).max_users(4)).await;
    let world = World::new();
    let mut served = Vec::new();
    for i in 0..40 {
        let scope = world.user(&format!("user_{i}"));
        match l.ask(&scope, &Amounts::run()).await {
            Ok(()) => served.push(scope),
            Err(limited) => {
                assert_eq!(
                    limited.reason,
                    LimitReason::Capacity,
                    "a newcomer is refused for want of room alone"
                );
                assert!(limited.retry_after.is_some(), "and told when there may be room");
            }
        }
    }
    assert!(served.len() >= 4, "at least the users that fit are served");
    for scope in &served {
        let limited = l.limited(scope, &Amounts::run(), "the burst was taken before others came").await;
        assert_eq!(limited.reason, LimitReason::Rate, "{:?} is still known", scope.owner());
    }
    Passed
}

/// Erasing a user's data makes no limit fresh, and the receipt says what was kept.
pub async fn forgetting_makes_no_limit_fresh(h: &Harness) -> Outcome {
    let l = h.open(slow_runs(2)).await;
    let world = World::new();
    l.drain_runs(&world.user("alice"), 2, "a burst").await;
    let line = l.limiter().forget(&world.user_at("alice", 1), &Erase::everything()).await.must("forget");
    assert_eq!(line.store, l.limiter().store_name(), "the receipt names the store");
    assert!(!line.retained.is_empty(), "the receipt says that something is kept, and why");
    for scope in [world.user("alice"), world.user_at("alice", 1)] {
        l.limited(&scope, &Amounts::run(), "the burst was taken before the erasure").await;
    }
    let nobody = l.limiter().forget(&world.user_at("nobody", 1), &Erase::everything()).await.must("forget");
    assert!(nobody.retained.is_empty(), "nothing is kept of a user who took nothing");
    Passed
}

/// Erasing one user leaves another held back, and free what was free.
pub async fn forgetting_one_leaves_the_other(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(100)).await;
    for (a, b) in naughty::pairs() {
        let world = World::new();
        l.admitted(&world.scope(&a), &tokens(10), "it fits").await;
        l.admitted(&world.scope(&b), &tokens(70), "it fits").await;
        l.limiter().forget(&world.scope_at(&a, 1), &Erase::everything()).await.must("forget");
        l.has_tokens_left(&world.scope(&b), 30, &format!("70 of {b:?} were taken before {a:?} was erased"))
            .await;
    }
    Passed
}

/// An export has the tenant's own limits and nobody else's.
pub async fn exports_hold_their_own(h: &Harness) -> Outcome {
    let l = h.open(slow_tokens(1_000)).await;
    let world = World::new();
    let names: Vec<String> = (0..3).map(|_| canary()).collect();
    for name in &names {
        l.admitted(&world.user(name), &tokens(500), "it fits").await;
    }
    for name in &names {
        let text = exported(&l, &world.user(name)).await;
        assert!(
            text.contains("per_user_tokens_per_minute"),
            "the export says which limit is not whole: {text}"
        );
        for other in names.iter().filter(|other| *other != name) {
            assert!(!text.contains(other.as_str()), "the export names another user");
        }
    }
    assert_eq!(exported(&l, &world.user("nobody")).await, "", "an unknown user has nothing to export");
    Passed
}

async fn exported(l: &Instance, scope: &Scope) -> String {
    export_text(&export(l.limiter(), scope).await)
}
