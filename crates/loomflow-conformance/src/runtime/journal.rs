//! The journal: what is known about a step before it is taken.

use loomflow_core::{Digest, Erase, ErrorKind, Recorded, Redacted, StepKey};
use serde_json::json;

use super::{Harness, LONG, SHORT, opening};
use crate::Outcome::{self, Passed};
use crate::fixture::{
    Must as _, World, export, export_text, must_fail, new_run, open_one, redacted, session,
};

macro_rules! needs_journal {
    ($h:expr) => {
        if !$h.runtime().journals() {
            return Outcome::unsupported("a journal (Runtime::journals is false)");
        }
    };
}

pub(super) fn step(seq: u32, what: &str) -> StepKey {
    StepKey::new(seq, Digest::of(&[what.as_bytes()]), false)
}

pub(super) fn outcome(text: &str) -> Redacted<String> {
    redacted(&json!(text))
}

/// A step is fresh the first time, in doubt once it is begun, and done with its outcome once it is committed.
pub async fn a_step_is_fresh_then_in_doubt_then_done(h: &Harness) -> Outcome {
    needs_journal!(h);
    let alice = World::new().user("alice");
    let run = new_run();
    let lease = h.open(&alice, run, &session("s")).await;
    let r = h.runtime();
    for seq in 0..3 {
        let key = step(seq, "a");
        assert_eq!(r.begin(&alice, &lease, &key).await.must("begin"), Recorded::Fresh);
        assert_eq!(r.begin(&alice, &lease, &key).await.must("begin again"), Recorded::InDoubt);
        let text = format!("outcome \"{seq}\" \u{1f600}");
        r.commit(&alice, &lease, &key, outcome(&text)).await.must("commit");
        let expected = Recorded::Done(outcome(&text).into_inner());
        assert_eq!(r.begin(&alice, &lease, &key).await.must("begin after commit"), expected);
    }
    let found = open_one(&alice, r.load(&alice, run).await.must("load"), "load");
    assert_eq!(found.steps, 3, "the record counts the steps");
    assert_eq!(found.input, redacted(&json!({ "input": "hello" })).into_inner(), "and has the input");
    Passed
}

/// What a holder recorded is known to the next: done steps are done, begun ones are in doubt, the rest is fresh.
pub async fn steps_survive_a_new_holder(h: &Harness) -> Outcome {
    needs_journal!(h);
    let alice = World::new().user("alice");
    let run = new_run();
    let r = h.runtime();
    let first = r.open(&alice, opening(run, &session("s"), SHORT)).await.must("open");
    r.begin(&alice, &first, &step(0, "a")).await.must("begin");
    r.commit(&alice, &first, &step(0, "a"), outcome("done")).await.must("commit");
    r.begin(&alice, &first, &step(1, "b")).await.must("begin");
    h.outlive().await;
    let second = r.open(&alice, opening(run, &session("s"), LONG)).await.must("take over");
    let done = Recorded::Done(outcome("done").into_inner());
    assert_eq!(r.begin(&alice, &second, &step(0, "a")).await.must("begin"), done);
    assert_eq!(r.begin(&alice, &second, &step(1, "b")).await.must("begin"), Recorded::InDoubt);
    assert_eq!(r.begin(&alice, &second, &step(2, "c")).await.must("begin"), Recorded::Fresh);
    Passed
}

/// Committing a step again changes nothing: the first outcome stands.
pub async fn committing_again_changes_nothing(h: &Harness) -> Outcome {
    needs_journal!(h);
    let alice = World::new().user("alice");
    let lease = h.open(&alice, new_run(), &session("s")).await;
    let (r, key) = (h.runtime(), step(0, "a"));
    r.begin(&alice, &lease, &key).await.must("begin");
    for text in ["first", "first", "second"] {
        r.commit(&alice, &lease, &key, outcome(text)).await.must("commit");
    }
    let known = r.begin(&alice, &lease, &key).await.must("begin");
    assert_eq!(known, Recorded::Done(outcome("first").into_inner()));
    Passed
}

/// Another fingerprint under a recorded number is a conflict, whether the step is begun or done.
pub async fn another_fingerprint_is_a_conflict(h: &Harness) -> Outcome {
    needs_journal!(h);
    let alice = World::new().user("alice");
    let lease = h.open(&alice, new_run(), &session("s")).await;
    let r = h.runtime();
    r.begin(&alice, &lease, &step(0, "a")).await.must("begin");
    must_fail(r.begin(&alice, &lease, &step(0, "b")).await, ErrorKind::Conflict, "another step in doubt");
    r.commit(&alice, &lease, &step(0, "a"), outcome("done")).await.must("commit");
    must_fail(r.begin(&alice, &lease, &step(0, "b")).await, ErrorKind::Conflict, "another step, done");
    assert!(matches!(r.begin(&alice, &lease, &step(0, "a")).await.must("begin"), Recorded::Done(_)));
    Passed
}

/// Erasing a tenant takes its runs and steps.
pub async fn forgetting_takes_every_run(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    let run = new_run();
    h.open(&alice, run, &session("s")).await;
    let later = world.user_at("alice", 1);
    let line = h.runtime().forget(&later, &Erase::everything()).await.must("forget");
    assert_eq!(line.store, h.runtime().store_name(), "the receipt names the store");
    for scope in [&alice, &later] {
        must_fail(h.runtime().load(scope, run).await, ErrorKind::NotFound, "load after an erasure");
        assert!(h.open_runs(scope).await.is_empty(), "no open run is left");
    }
    assert!(export(h.runtime(), &later).await.is_empty(), "nothing is left to export");
    h.open(&later, new_run(), &session("s")).await;
    Passed
}

/// An export of a journal has the runs and what came of their steps.
pub async fn exports_are_complete(h: &Harness) -> Outcome {
    needs_journal!(h);
    let alice = World::new().user("alice");
    let run = new_run();
    let lease = h.open(&alice, run, &session("s")).await;
    let (r, word) = (h.runtime(), crate::fixture::canary());
    r.begin(&alice, &lease, &step(0, "a")).await.must("begin");
    r.commit(&alice, &lease, &step(0, "a"), outcome(&word)).await.must("commit");
    let text = export_text(&export(r, &alice).await);
    assert!(text.contains(&run.to_string()), "the export names the run: {text}");
    assert!(text.contains(&word), "the export has what came of its step: {text}");
    assert!(export(r, &World::new().user("nobody")).await.is_empty(), "an unknown partition has nothing");
    Passed
}
