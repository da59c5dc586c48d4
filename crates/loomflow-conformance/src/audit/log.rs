//! Appending, reading back and verifying.

use futures_util::future::join_all;
use loomflow_core::{Action, Actor, AuditEvent, AuditQuery, Erase};
use serde_json::json;

use super::{Harness, event};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, abandon, again, at, canary, export, export_text, new_run, redacted};

async fn must_verify(h: &Harness) {
    let verified = h.log().verify().await.must("verify");
    assert!(verified.is_valid(), "a log that nobody touched is whole: {:?}", verified.problems);
}

/// An entry comes back with its time, conversation, run, actor, action and payload; the receipt names its place.
pub async fn entries_come_back_as_they_were(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let inside = event(new_run(), Action::ModelCall, 5, "e\u{301} \u{1f600} \"quoted\" \\ and\nmore");
    let outside = AuditEvent::new(at(6), Actor::User, Action::MemoryExport, redacted(&json!({})));
    for event in [inside, outside] {
        let seq = h.append(&alice, event.clone()).await;
        let found = h.query(&alice, &AuditQuery::first(10)).await;
        let entry = found.last().unwrap_or_else(|| panic!("the entry {seq} is not found"));
        assert_eq!((entry.seq, &entry.event), (seq, &event));
    }
    must_verify(h).await;
    Passed
}

/// One caller's events are read in the order they were appended, whatever their times, under growing places.
pub async fn entries_are_in_the_order_they_were_appended(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let run = new_run();
    let mut places = Vec::new();
    for i in 0..20 {
        places.push(h.append(&alice, event(run, Action::ToolResult, 100 - i, &format!("number {i}"))).await);
    }
    assert!(places.is_sorted_by(|a, b| a < b), "places grow: {places:?}");
    let found = h.query(&alice, &AuditQuery::first(100)).await;
    assert_eq!(found.iter().map(|e| e.seq).collect::<Vec<_>>(), places);
    for (i, entry) in found.iter().enumerate() {
        assert!(entry.event.payload.get().contains(&format!("number {i}\"")), "entry {i} is out of order");
    }
    Passed
}

/// A query narrows by action, run and place, takes all together, and keeps to its limit, oldest first.
pub async fn queries_filter(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let (one, two) = (new_run(), new_run());
    let mut seqs = Vec::new();
    for (run, action) in [
        (one, Action::RunStarted),
        (two, Action::RunStarted),
        (one, Action::ModelCall),
        (one, Action::ModelCall),
        (two, Action::ModelCall),
    ] {
        seqs.push(h.append(&alice, event(run, action, 1, "x")).await);
    }
    let all = || AuditQuery::first(100);
    for (query, expected) in [
        (all(), vec![0, 1, 2, 3, 4]),
        (all().action(Action::ModelCall), vec![2, 3, 4]),
        (all().run(one), vec![0, 2, 3]),
        (all().run(one).action(Action::ModelCall), vec![2, 3]),
        (all().after(seqs[2]), vec![3, 4]),
        (all().after(seqs[4]), vec![]),
        (AuditQuery::first(2), vec![0, 1]),
        (AuditQuery::first(1).action(Action::ModelCall).after(seqs[2]), vec![3]),
        (AuditQuery::first(0), vec![]),
        (all().action(Action::KeyRotated), vec![]),
        (all().run(new_run()), vec![]),
    ] {
        let expected: Vec<u64> = expected.into_iter().map(|i: usize| seqs[i]).collect();
        let found: Vec<u64> = h.query(&alice, &query).await.iter().map(|e| e.seq).collect();
        assert_eq!(found, expected, "{query:?}");
    }
    Passed
}

/// An unknown partition has no entries, and nothing to export or erase.
pub async fn of_an_unknown_partition_is_empty(h: &Harness) -> Outcome {
    let world = World::new();
    let nobody = world.user("nobody");
    assert!(h.query(&nobody, &AuditQuery::first(10)).await.is_empty());
    assert!(export(h.log(), &nobody).await.is_empty());
    let line = h.log().forget(&world.user_at("nobody", 1), &Erase::everything()).await.must("forget");
    assert_eq!(line.total(), 0);
    Passed
}

/// Every action and every actor can be recorded, is read back as itself, and is found by its name.
pub async fn every_action_and_actor_is_kept(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let actors = [Actor::User, Actor::Model, Actor::System, Actor::Approver];
    for (i, action) in Action::ALL.iter().enumerate() {
        let event = AuditEvent::new(at(1), actors[i % 4], *action, redacted(&json!({})));
        h.append(&alice, event.clone()).await;
        let found = h.query(&alice, &AuditQuery::first(10).action(*action)).await;
        assert_eq!(found.len(), 1, "{action} is found");
        assert_eq!(found[0].event, event, "{action} is kept");
    }
    must_verify(h).await;
    Passed
}

/// A payload that looks like the log's own members, or like syntax, is kept as data, and the log stays whole.
pub async fn hostile_payloads_are_data(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let zeros = "0".repeat(64);
    let texts = [
        format!("\",\"mac\":\"{zeros}\"}}"),
        "\n{\"v\":1,\"seq\":1}\n".to_owned(),
        "\u{2028}\u{2029}\u{0}".to_owned(),
        "x'; DROP TABLE audit; --".to_owned(),
        "x".repeat(100_000),
    ];
    for text in texts {
        let payload =
            redacted(&json!({ "text": text, "mac": zeros, "user_id": "somebody else", "deep": [[text]] }));
        let event = AuditEvent::new(at(1), Actor::Model, Action::ToolResult, payload);
        let seq = h.append(&alice, event.clone()).await;
        let found = h.query(&alice, &AuditQuery::first(10).after(seq - 1)).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].event, event);
    }
    must_verify(h).await;
    Passed
}

/// Under concurrent appends every event is recorded once, every caller's order is kept, and the log stays whole.
pub async fn concurrent_appends_keep_every_callers_order(h: &Harness) -> Outcome {
    let world = World::new();
    let callers: Vec<_> = (0..10).map(|i| (world.user(&format!("user_{}", i % 4)), new_run())).collect();
    let tasks = callers.iter().map(|(scope, run)| {
        let (log, scope, run) = (h.shared(), again(scope), *run);
        tokio::spawn(async move {
            for i in 0..20 {
                log.append(&scope, event(run, Action::ToolResult, i, &format!("number {i}")))
                    .await
                    .must("append");
            }
        })
    });
    for done in join_all(tasks).await {
        done.unwrap_or_else(|e| panic!("a concurrent append failed: {e}"));
    }
    let mut places = Vec::new();
    for (scope, run) in &callers {
        let found = h.query(scope, &AuditQuery::first(1_000).run(*run)).await;
        assert_eq!(found.len(), 20, "every event is recorded, once");
        for (i, entry) in found.iter().enumerate() {
            assert!(entry.event.payload.get().contains(&format!("number {i}\"")), "an order was not kept");
        }
        places.extend(found.iter().map(|e| e.seq));
    }
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), count, "no two entries share a place");
    must_verify(h).await;
    Passed
}

/// An append whose caller goes away, at whatever point, is there whole or not at all, and the log stays whole.
pub async fn dropped_appends_are_whole_or_absent(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for polls in 0..12 {
        let event = event(new_run(), Action::ToolIntent, 1, &format!("dropped {polls}"));
        abandon(h.log().append(&alice, event.clone()), polls).await;
        let query = AuditQuery::first(10).run(event.run.unwrap_or_else(new_run));
        let found = h.query(&alice, &query).await;
        assert!(found.len() <= 1 && found.iter().all(|e| e.event == event), "half an entry: {found:?}");
        h.append(&alice, super::event(new_run(), Action::ToolIntent, 1, "kept")).await;
    }
    must_verify(h).await;
    Passed
}

/// Erasing a tenant says what went and what was kept, and the log stays whole and can be appended to.
pub async fn forgetting_keeps_the_log_whole(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, word) = (world.user("alice"), canary());
    for i in 0..3 {
        h.append(&alice, event(new_run(), Action::ModelCall, i, &word)).await;
    }
    let later = world.user_at("alice", 1);
    let line = h.log().forget(&later, &Erase::everything()).await.must("forget");
    assert_eq!(line.store, h.log().store_name(), "the receipt names the store");
    let text = format!("{:?}", h.query(&later, &AuditQuery::first(100)).await)
        + &export_text(&export(h.log(), &later).await);
    if text.contains(&word) {
        assert!(!line.retained.is_empty(), "payloads were kept, and the receipt does not say why");
    } else {
        assert!(line.total() >= 3, "payloads are gone, and the receipt does not count them: {line:?}");
    }
    must_verify(h).await;
    h.append(&later, event(new_run(), Action::RunStarted, 9, "after")).await;
    must_verify(h).await;
    Passed
}

/// An export has every entry of the tenant, oldest first.
pub async fn exports_are_complete(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let words: Vec<String> = (0..30).map(|_| canary()).collect();
    for word in &words {
        h.append(&alice, event(new_run(), Action::ModelCall, 1, word)).await;
    }
    let items = export(h.log(), &alice).await;
    assert_eq!(items.len(), words.len(), "every entry is exported, once");
    for (item, word) in items.iter().zip(&words) {
        assert!(item.data.to_string().contains(word.as_str()), "entries are exported oldest first");
    }
    Passed
}
