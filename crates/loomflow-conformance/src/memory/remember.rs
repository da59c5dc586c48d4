//! Storing turns and reading them back.

use loomflow_core::{EpisodeId, FactQuery, Message, NewEpisode, NewFact, PutBlock, ToolCall};

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, at, canary, new_run, session, turn};

/// The id of a remembered turn is derived from its run.
pub async fn returns_an_id_derived_from_the_run(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let run = new_run();
    let id = h.store().remember(&alice, turn(run, &session("s"), at(0), "hi", "ho")).await.must("remember");
    assert_eq!(id, EpisodeId::from(run), "the id of an episode is that of its run");
    let found = h.newest(&alice).await;
    assert_eq!(found.iter().map(|e| e.id).collect::<Vec<_>>(), [id], "recall names the same id");
    Passed
}

/// Remembering one run twice, with whatever content, succeeds, changes nothing and returns the same id.
pub async fn the_same_run_is_stored_once(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let (run, first, second) = (new_run(), canary(), canary());
    let store = h.store();
    let a = store.remember(&alice, turn(run, &session("s"), at(0), &first, "r")).await.must("remember");
    let b = store
        .remember(&alice, turn(run, &session("t"), at(9), &second, "r"))
        .await
        .must("the same run again");
    assert_eq!(a, b, "the same run has the same id");
    let found = h.newest(&alice).await;
    assert_eq!(found.len(), 1, "one run is one episode");
    assert_eq!((found[0].input(), found[0].at), (&*first, at(0)), "the first content stands");
    assert!(h.history(&alice, &session("t"), 20).await.is_empty(), "the repetition wrote no other session");
    Passed
}

/// Messages come back exactly as they were: roles, calls, call ids, Unicode, quotes and size.
pub async fn messages_come_back_as_they_were(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let s = session("s");
    let calls = vec![
        ToolCall::new("c1", "look.up", r#"{"q":"\"\\é"}"#),
        ToolCall::new("c2", "look.up", "not json at all"),
    ];
    let messages = vec![
        Message::user("e\u{301} \u{e9} \u{1f600} 'quoted' \"double\" \\ back\nnew line\ttab"),
        Message::assistant_calls("", calls),
        Message::tool("c1", ""),
        Message::tool("c2", "x".repeat(100_000)),
        Message::assistant(" leading and trailing "),
    ];
    h.remember(&alice, NewEpisode::new(new_run(), s.clone(), at(0), messages.clone())).await;
    let found = h.newest(&alice).await;
    assert_eq!(found[0].messages.to_vec(), messages, "recall returns the messages unchanged");
    assert_eq!(found[0].session, s, "recall returns the session");
    let limit = loomflow_core::HistoryLimit::messages(20);
    let replay = h.store().history(&alice, &s, limit).await.must("history");
    let replay = crate::fixture::open(&alice, replay, "history");
    assert_eq!(replay, messages, "history returns the messages unchanged");
    Passed
}

/// With no words and no vector, recall returns the newest episodes first, ties by larger id, each with a score of 0.
pub async fn the_newest_come_first_without_a_query(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let s = session("s");
    for (id, seconds) in [(5_u128, 20), (9, 10), (2, 30), (7, 20)] {
        h.remember(&alice, turn(loomflow_core::RunId::from_u128(id), &s, at(seconds), "falcon", "r")).await;
    }
    let found = h.recall(&alice, &loomflow_core::RecallQuery::new("", 10)).await;
    let ids: Vec<u128> = found.iter().map(|m| m.episode.id.as_u128()).collect();
    assert_eq!(ids, [2, 7, 5, 9], "newest first, ties by larger id");
    assert!(found.iter().all(|m| m.score == 0.0), "nothing was asked, so nothing scores");
    let two = h.recall(&alice, &loomflow_core::RecallQuery::new("", 2)).await;
    assert_eq!(two.len(), 2, "the limit holds");
    Passed
}

/// Text that stores trip over comes back exactly: NUL, noncharacters, separators of lines, surrogate-like escapes, SQL.
pub async fn hostile_text_comes_back_as_it_was(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let hostile = [
        "a\0b",
        "\0",
        "\u{feff}x\u{ffff}",
        "\u{2028}\u{85}\r\n",
        r"\u0000 \x00 \ud800",
        "'; DROP TABLE x; --",
        "%_*?[]{}",
    ];
    for (n, text) in (0_i64..).zip(hostile) {
        h.remember(&alice, turn(new_run(), &session("s"), at(n), text, text)).await;
        h.store().put_block(&alice, PutBlock::new(format!("b{n}"), text, at(n))).await.must("put_block");
        if let Some(facts) = h.facts() {
            let fact = NewFact::new(format!("s{text}"), "said", format!("o{text}"), at(n));
            facts.assert(&alice, fact).await.must("assert");
        }
    }
    let expected: Vec<&str> = hostile.iter().flat_map(|text| [*text, *text]).collect();
    assert_eq!(h.history(&alice, &session("s"), 100).await, expected, "history returns texts unchanged");
    let blocks = h.store().blocks(&alice).await.must("blocks");
    let blocks = crate::fixture::open(&alice, blocks, "blocks");
    assert_eq!(blocks.iter().map(|b| &*b.content).collect::<Vec<_>>(), hostile, "and so do blocks");
    if h.facts().is_some() {
        for text in hostile {
            let query = FactQuery::all(10).subject(format!("s{text}")).object(format!("o{text}"));
            assert_eq!(h.query_facts(&alice, &query).await.len(), 1, "a fact about s{text:?} is found");
        }
    }
    Passed
}
