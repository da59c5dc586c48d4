//! Many writers at once, and writers that go away.

use futures_util::future::join_all;

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, abandon, again, at, new_run, open_one, session, turn};

/// Turns that are remembered at once are all kept, each whole.
pub async fn concurrent_turns_are_all_kept(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let tasks = (0..50).map(|i| {
        let (store, scope) = (h.shared(), again(&alice));
        let episode = turn(new_run(), &session("s"), at(i), &format!("said {i}"), &format!("reply {i}"));
        tokio::spawn(async move { store.remember(&scope, episode).await.must("a concurrent remember") })
    });
    for done in join_all(tasks).await {
        done.unwrap_or_else(|e| panic!("a concurrent remember panicked: {e}"));
    }
    let expected: Vec<String> = (0..50).flat_map(|i| [format!("said {i}"), format!("reply {i}")]).collect();
    assert_eq!(h.history(&alice, &session("s"), 1_000).await, expected);
    let profile = open_one(&alice, h.store().profile(&alice).await.must("profile"), "profile");
    assert_eq!(profile.episodes, 50);
    Passed
}

/// One run that is remembered twenty times at once is one episode.
pub async fn the_same_turn_at_once_is_stored_once(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let run = new_run();
    let tasks = (0..20).map(|_| {
        let (store, scope) = (h.shared(), again(&alice));
        let episode = turn(run, &session("s"), at(1), "said", "reply");
        tokio::spawn(async move { store.remember(&scope, episode).await.must("the same run at once") })
    });
    for done in join_all(tasks).await {
        done.unwrap_or_else(|e| panic!("a concurrent remember panicked: {e}"));
    }
    assert_eq!(h.newest(&alice).await.len(), 1);
    assert_eq!(h.history(&alice, &session("s"), 100).await, ["said", "reply"]);
    Passed
}

/// A write whose caller goes away, at whatever point, is there whole or not at all, and can be made again.
pub async fn dropped_writes_are_whole_or_absent(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for polls in 0..12 {
        let s = session(&format!("s{polls}"));
        let (run, when) = (new_run(), at(i64::from(polls)));
        let episode = || turn(run, &s, when, "said", "reply");
        abandon(h.store().remember(&alice, episode()), polls).await;
        let found = h.history(&alice, &s, 20).await;
        assert!(found.is_empty() || found == ["said", "reply"], "half a turn was kept: {found:?}");
        h.remember(&alice, episode()).await;
        assert_eq!(
            h.history(&alice, &s, 20).await,
            ["said", "reply"],
            "dropped after {polls} polls, then repeated"
        );
    }
    assert_eq!(h.newest(&alice).await.len(), 12, "each run is one episode");
    Passed
}
