//! Replaying a conversation.

use loomflow_core::{Message, NewEpisode};

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{World, at, new_run, session, turn};
use crate::naughty;

/// History is the messages of one session, oldest first.
pub async fn is_oldest_first_and_of_one_session(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let (s, other) = (session("s"), session("other"));
    h.remember(&alice, turn(new_run(), &s, at(1), "one", "two")).await;
    h.remember(&alice, turn(new_run(), &other, at(2), "not", "this")).await;
    h.remember(&alice, turn(new_run(), &s, at(3), "three", "four")).await;
    assert_eq!(h.history(&alice, &s, 20).await, ["one", "two", "three", "four"]);
    assert_eq!(h.history(&alice, &other, 20).await, ["not", "this"]);
    Passed
}

/// A turn that is remembered late stands where it was said, not where it was written.
pub async fn is_ordered_by_when_it_was_said(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let s = session("s");
    h.remember(&alice, turn(new_run(), &s, at(30), "later", "later reply")).await;
    h.remember(&alice, turn(new_run(), &s, at(10), "earlier", "earlier reply")).await;
    assert_eq!(h.history(&alice, &s, 20).await, ["earlier", "earlier reply", "later", "later reply"]);
    assert_eq!(h.history(&alice, &s, 2).await, ["later", "later reply"], "the latest are kept");
    Passed
}

/// The limit takes the longest run of latest whole episodes that fit, and never skips one to fit an older one.
pub async fn keeps_episodes_whole(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let s = session("s");
    let three = vec![Message::user("b1"), Message::tool("c", "b2"), Message::assistant("b3")];
    h.remember(&alice, turn(new_run(), &s, at(1), "a1", "a2")).await;
    h.remember(&alice, NewEpisode::new(new_run(), s.clone(), at(2), three)).await;
    h.remember(&alice, turn(new_run(), &s, at(3), "c1", "c2")).await;
    for (limit, expected) in [
        (0, &[][..]),
        (1, &[]),
        (2, &["c1", "c2"]),
        (4, &["c1", "c2"]),
        (5, &["b1", "b2", "b3", "c1", "c2"]),
        (6, &["b1", "b2", "b3", "c1", "c2"]),
        (7, &["a1", "a2", "b1", "b2", "b3", "c1", "c2"]),
        (usize::MAX, &["a1", "a2", "b1", "b2", "b3", "c1", "c2"]),
    ] {
        assert_eq!(h.history(&alice, &s, limit).await, expected, "at most {limit} messages");
    }
    Passed
}

/// An unknown session, and any session of an unknown partition, has no history.
pub async fn of_an_unknown_session_is_empty(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    assert!(h.history(&alice, &session("s"), 20).await.is_empty(), "an unknown partition has none");
    h.remember(&alice, turn(new_run(), &session("s"), at(0), "hi", "ho")).await;
    assert!(h.history(&alice, &session("t"), 20).await.is_empty(), "an unknown session has none");
    Passed
}

/// Sessions whose ids a careless store would mix up do not mix.
pub async fn hostile_sessions_do_not_mix(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let all = naughty::sessions();
    for (i, s) in all.iter().enumerate() {
        h.remember(&alice, turn(new_run(), s, at(i as i64), &format!("said in {i}"), "r")).await;
    }
    for (i, s) in all.iter().enumerate() {
        let found = h.history(&alice, s, 1_000).await;
        assert_eq!(found, [format!("said in {i}"), "r".into()], "the history of session {s:?}");
    }
    Passed
}
