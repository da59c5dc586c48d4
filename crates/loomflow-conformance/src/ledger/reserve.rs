//! Setting aside, and refusing to.

use std::time::Duration;

use loomflow_core::{
    BudgetConfig, Charge, Entity, ErrorKind, Hold, HoldKey, Limits, NanoUsd, Price, RefusalReason, Window,
};

use super::{Harness, key, used, used_at};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, must_fail, new_run};

/// A refusal names whose cap it is, its key and window, and how much is used and held.
pub async fn a_refusal_names_cap_and_numbers(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100).window(Window::Day)).await;
    let alice = World::new().user("alice");
    l.spend(&alice, 20, 10).await;
    l.held(&alice, &Hold::tokens(key(), 40, 20)).await;
    let no = l.refused(&alice, &Hold::tokens(key(), 20, 20), "10 are left and 21 are needed").await;
    assert_eq!(no.reason, RefusalReason::Exhausted);
    assert_eq!((no.entity, no.cap, no.window.as_str()), (Entity::User, "per_user_max_tokens", "day"));
    assert_eq!((no.limit, no.used, no.held), (100, 30, 60));
    assert!(no.needed > 0, "a refusal says how much more was needed");
    assert!(no.resets_at.is_some(), "a day ends");
    if let Some(clock) = l.clock() {
        assert_eq!(no.resets_at, Window::Day.bounds(clock.read()).map(|(_, end)| end), "at midnight UTC");
    }
    let l = h.open(BudgetConfig::new().per_user_max_tokens(10)).await;
    let no = l.refused(&alice, &Hold::tokens(key(), 20, 20), "10 are left").await;
    assert_eq!((no.window.as_str(), no.resets_at), ("lifetime", None), "a lifetime never ends");
    Passed
}

/// When the caps leave less than was wanted, what is left is granted, and it is used up.
pub async fn grants_what_is_left(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let got = l.held(&alice, &Hold::tokens(key(), 50, 80)).await;
    assert_eq!(got.output_tokens, 50, "50 of 80 are left");
    l.refused(&alice, &Hold::tokens(key(), 0, 1), "nothing is left").await;
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let got = l.held(&alice, &Hold::tokens(key(), 20, 80)).await;
    assert_eq!(got.output_tokens, 80, "what fits exactly is granted whole");
    let l = h.open(BudgetConfig::new()).await;
    let got = l.held(&alice, &Hold::tokens(key(), 20, 1_000_000)).await;
    assert_eq!(got.output_tokens, 1_000_000, "without caps everything is granted");
    Passed
}

/// A grant is never below the hold's minimum, and never above what was wanted.
pub async fn never_grants_less_than_the_minimum(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for (minimum, granted) in [(50, true), (51, false), (1, true)] {
        let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
        let hold = Hold::tokens(key(), 50, 80).with_min_output(minimum);
        if granted {
            assert_eq!(l.held(&alice, &hold).await.output_tokens, 50);
        } else {
            l.refused(&alice, &hold, "less than the minimum is left").await;
        }
    }
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    assert_eq!(
        l.held(&alice, &Hold::tokens(key(), 100, 0)).await.output_tokens,
        0,
        "an embedding wants no output"
    );
    l.refused(&alice, &Hold::tokens(key(), 1, 0), "not even a prompt fits").await;
    Passed
}

/// A refusal sets nothing aside, against no cap: the next hold that fits is granted whole.
pub async fn a_refusal_sets_nothing_aside(h: &Harness) -> Outcome {
    let config = BudgetConfig::new().max_tokens(1_000).per_user_max_tokens(100).per_run_max_tokens(50);
    let l = h.open(config).await;
    let world = World::new();
    let alice = world.user("alice");
    let run = new_run();
    for seq in 0..5 {
        let hold = Hold::tokens(HoldKey::new(run, seq), 60, 10);
        l.refused(&alice, &hold, "the run's cap is 50").await;
    }
    let usage = l.usage(&alice).await;
    assert_eq!((usage.held_tokens, usage.open_holds, usage.used.total_tokens()), (0, 0, 0));
    let got = l.held(&alice, &Hold::tokens(HoldKey::new(run, 9), 20, 30)).await;
    assert_eq!(got.output_tokens, 30, "the refused holds left nothing behind");
    Passed
}

/// Asking again with the key of an open hold returns that hold, and holds once.
pub async fn the_same_key_holds_once(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let hold = Hold::tokens(key(), 30, 30);
    let first = l.held(&alice, &hold).await;
    for _ in 0..3 {
        let again = l.held(&alice, &hold).await;
        assert_eq!((again.id, again.output_tokens), (first.id, first.output_tokens), "the same hold");
    }
    let usage = l.usage(&alice).await;
    assert_eq!((usage.held_tokens, usage.open_holds), (60, 1), "held once");
    let other = l.held(&alice, &Hold::tokens(HoldKey::new(hold.key.run, 1), 10, 10)).await;
    assert_ne!(other.id, first.id, "another number of the run is another hold");
    Passed
}

/// A key whose hold is open does not let other amounts past the caps: they are a conflict, and nothing changes.
pub async fn the_same_key_with_other_amounts_is_a_conflict(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    let alice = World::new().user("alice");
    let hold = Hold::tokens(key(), 30, 30);
    let first = l.held(&alice, &hold).await;
    for other in
        [Hold::tokens(hold.key, 31, 30), Hold::tokens(hold.key, 30, 31), Hold::tokens(hold.key, 5_000, 30)]
    {
        let answer = l.ledger().reserve(&alice, &other).await;
        must_fail(answer, ErrorKind::Conflict, "a known key with other amounts");
    }
    assert_eq!(l.held(&alice, &hold).await.id, first.id, "the same amounts are the same hold");
    assert_eq!(l.usage(&alice).await.held_tokens, 60, "held once");
    Passed
}

/// Caps on prompt tokens, generated tokens and both together each hold on their own.
pub async fn every_kind_of_token_cap_holds(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let new = BudgetConfig::new;
    for (config, cap) in [
        (new().per_user_max_input_tokens(50), "per_user_max_input_tokens"),
        (new().per_user_max_output_tokens(50), "per_user_max_output_tokens"),
        (new().per_user_max_tokens(100), "per_user_max_tokens"),
        (new().max_input_tokens(50), "max_input_tokens"),
        (new().max_output_tokens(50), "max_output_tokens"),
        (new().max_tokens(100), "max_tokens"),
        (new().per_run_max_tokens(100), "per_run_max_tokens"),
        (new().per_run_max_input_tokens(50), "per_run_max_input_tokens"),
        (new().per_run_max_output_tokens(50), "per_run_max_output_tokens"),
    ] {
        let l = h.open(config).await;
        let run = new_run();
        let first = l.held(&alice, &Hold::tokens(HoldKey::new(run, 0), 50, 50).with_min_output(50)).await;
        let no = l.refused(&alice, &Hold::tokens(HoldKey::new(run, 1), 1, 1), cap).await;
        assert_eq!((no.cap, no.held, no.used), (cap, no.limit, 0), "the refusal names the cap");
        l.close(&alice, first.id, used(50, 50)).await;
        let no = l.refused(&alice, &Hold::tokens(HoldKey::new(run, 2), 1, 1), cap).await;
        assert_eq!((no.cap, no.used, no.held), (cap, no.limit, 0), "settled use counts like a hold");
    }
    Passed
}

/// A cost cap limits the output to what the money left pays for, and counts what was charged.
pub async fn cost_is_capped(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_user_max_cost(NanoUsd(100))).await;
    let alice = World::new().user("alice");
    // One nano-dollar per token in and out.
    let price = Some(Price::per_token(1_000, 1_000));
    let got = l.held(&alice, &Hold::tokens(key(), 40, 100).with_price(price)).await;
    assert_eq!(got.output_tokens, 60, "60 nano-dollars are left for the output");
    l.close(&alice, got.id, used_at(40, 10, 50)).await;
    let line = l.line(&alice, "per_user_max_cost_usd").await;
    assert_eq!((line.limit, line.used, line.held), (100, 50, 0), "what it cost is counted, in nano-dollars");
    assert_eq!(l.usage(&alice).await.used.cost_usd, NanoUsd(50));
    let no = l.refused(&alice, &Hold::tokens(key(), 51, 1).with_price(price), "50 are left").await;
    assert_eq!((no.cap, no.reason), ("per_user_max_cost_usd", RefusalReason::Exhausted));
    // A price below a nano-dollar per token is not free: a call costs at least its rounded-up sum.
    let cheap = Some(Price::per_token(1, 1));
    for _ in 0..50 {
        let got = l.held(&alice, &Hold::tokens(key(), 1, 1).with_price(cheap)).await;
        l.close(&alice, got.id, used_at(1, 1, 1)).await;
    }
    l.refused(&alice, &Hold::tokens(key(), 1, 1).with_price(cheap), "all the money is spent").await;
    Passed
}

/// Under a cost cap an unknown price is refused and never counted as zero; a price of zero is free.
pub async fn an_unknown_price_is_refused_under_a_cost_cap(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let new = BudgetConfig::new;
    for (config, cap) in [
        (new().max_cost(NanoUsd(5)), "max_cost_usd"),
        (new().per_user_max_cost(NanoUsd(5)), "per_user_max_cost_usd"),
        (new().per_run_max_cost(NanoUsd(5)), "per_run_max_cost_usd"),
    ] {
        let l = h.open(config).await;
        let no = l.refused(&alice, &Hold::tokens(key(), 1, 1), "nobody knows what it costs").await;
        assert_eq!((no.reason, no.cap), (RefusalReason::UnknownPrice, cap));
        l.held(&alice, &Hold::tokens(key(), 1_000, 1_000).with_price(Some(Price::default()))).await;
        assert_eq!(l.usage(&alice).await.open_holds, 1, "the refused hold set nothing aside");
    }
    let l = h.open(BudgetConfig::new().per_user_max_tokens(100)).await;
    l.held(&alice, &Hold::tokens(key(), 1, 1)).await;
    Passed
}

/// Wall clock is granted like tokens: what is left, but not less than the minimum, and it is counted.
pub async fn wall_clock_is_capped(h: &Harness) -> Outcome {
    let seconds = Duration::from_secs;
    let l = h.open(BudgetConfig::new().per_user_max_wall_clock(seconds(6))).await;
    let alice = World::new().user("alice");
    let got = l.held(&alice, &Hold::wall_clock(key(), seconds(10))).await;
    assert_eq!(got.wall_clock, seconds(6), "6 of 10 seconds are left");
    let no = l.refused(&alice, &Hold::wall_clock(key(), seconds(1)), "nothing is left").await;
    assert_eq!((no.cap, no.limit, no.held), ("per_user_max_wall_clock", 6_000_000, 6_000_000));
    l.close(&alice, got.id, Charge::WallClock(seconds(2))).await;
    assert_eq!(l.usage(&alice).await.wall_clock, seconds(2), "what was used is counted");
    let got = l.held(&alice, &Hold::wall_clock(key(), seconds(3))).await;
    assert_eq!(got.wall_clock, seconds(3), "what was not used was given back");
    assert_eq!(l.usage(&alice).await.used.total_tokens(), 0, "wall clock is not tokens");
    Passed
}

/// The global cap counts all users together, and a refusal by it says so.
pub async fn the_global_cap_counts_everybody(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().max_tokens(100).per_user_max_tokens(90)).await;
    let world = World::new();
    let (alice, bob) = (world.user("alice"), world.user("bob"));
    l.spend(&alice, 30, 10).await;
    l.held(&alice, &Hold::tokens(key(), 10, 10)).await;
    let no = l.refused(&bob, &Hold::tokens(key(), 41, 1), "40 are left for everybody").await;
    assert_eq!((no.entity, no.cap, no.limit, no.used, no.held), (Entity::Global, "max_tokens", 100, 40, 20));
    assert_eq!(l.held(&bob, &Hold::tokens(key(), 10, 90)).await.output_tokens, 30, "30 are left");
    Passed
}

/// A run's cap counts that run alone, over all its holds, and ends with it.
pub async fn the_run_cap_counts_one_run(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new().per_run_max_tokens(50)).await;
    let alice = World::new().user("alice");
    let (run, next) = (new_run(), new_run());
    let got = l.held(&alice, &Hold::tokens(HoldKey::new(run, 0), 20, 10)).await;
    l.close(&alice, got.id, used(20, 10)).await;
    l.held(&alice, &Hold::tokens(HoldKey::new(run, 1), 10, 10)).await;
    let no = l.refused(&alice, &Hold::tokens(HoldKey::new(run, 2), 1, 1), "the run has used its 50").await;
    assert_eq!((no.entity, no.cap, no.window.as_str()), (Entity::Run, "per_run_max_tokens", "run"));
    assert_eq!((no.limit, no.used, no.held), (50, 30, 20));
    l.held(&alice, &Hold::tokens(HoldKey::new(next, 0), 25, 25)).await;
    l.ledger().end_run(&alice, run).await.must("end_run");
    let usage = l.usage(&alice).await;
    assert_eq!(usage.open_holds, 2, "an open hold of an ended run stays counted");
    assert_eq!(usage.used.total_tokens(), 30, "the user's own count does not end with the run");
    Passed
}

/// Usage is counted whether or not anything is capped.
pub async fn without_caps_usage_is_counted_all_the_same(h: &Harness) -> Outcome {
    let l = h.open(BudgetConfig::new()).await;
    let alice = World::new().user("alice");
    l.spend(&alice, 30, 12).await;
    l.spend(&alice, 5, 3).await;
    let usage = l.usage(&alice).await;
    assert_eq!((usage.used.input_tokens, usage.used.output_tokens), (35, 15));
    assert_eq!((usage.held_tokens, usage.open_holds), (0, 0));
    assert!(usage.windows.is_empty(), "there is no cap to report on");
    let nobody = l.usage(&World::new().user("nobody")).await;
    assert_eq!(nobody.used.total_tokens(), 0, "an unknown user has used nothing");
    Passed
}

/// The ledger says whether wall clock and runs are capped, so that the loop asks for what is limited.
pub async fn limits_say_what_is_capped(h: &Harness) -> Outcome {
    let new = BudgetConfig::new;
    let second = Duration::from_secs(1);
    for (config, expected) in [
        (new(), Limits::new(false, false)),
        (new().per_user_max_tokens(1), Limits::new(false, false)),
        (new().max_wall_clock(second), Limits::new(true, false)),
        (new().per_user_max_wall_clock(second), Limits::new(true, false)),
        (new().per_run_max_tokens(1), Limits::new(false, true)),
        (new().per_run_max_wall_clock(second), Limits::new(true, true)),
    ] {
        assert_eq!(h.open(config).await.ledger().limits(), expected);
    }
    Passed
}
