//! Recall by words.

use loomflow_core::{HistoryLimit, Message, NewEpisode, RecallQuery, RunId, Scope};

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{World, at, new_run, session, turn};
use crate::naughty;

macro_rules! needs_words {
    ($h:expr) => {
        if !$h.store().capabilities().lexical {
            return Outcome::unsupported("recall by words (Capabilities::lexical is not declared)");
        }
    };
}
pub(super) use needs_words;

async fn ids(h: &Harness, scope: &Scope, words: &str, limit: usize) -> Vec<u128> {
    let found = h.recall(scope, &RecallQuery::new(words, limit)).await;
    found.iter().map(|m| m.episode.id.as_u128()).collect()
}

async fn say(h: &Harness, scope: &Scope, id: u128, seconds: i64, words: &str) {
    h.remember(scope, turn(RunId::from_u128(id), &session("s"), at(seconds), words, "noted")).await;
}

/// More of the asked words, rarer words and shorter texts rank higher, as BM25 has it.
pub async fn ranks_by_words(h: &Harness) -> Outcome {
    needs_words!(h);
    let alice = World::new().user("alice");
    say(h, &alice, 1, 1, "falcon over the harbour wall").await;
    say(h, &alice, 2, 2, "falcon and violet over harbour").await;
    say(h, &alice, 3, 3, "violet paint on the harbour wall").await;
    say(h, &alice, 4, 4, "harbour paint drying on wall tops").await;
    assert_eq!(ids(h, &alice, "falcon violet", 10).await[0], 2, "both words beat one");
    let bob = World::new().user("bob");
    say(h, &bob, 1, 1, "granite").await;
    say(h, &bob, 2, 2, "granite among many other plain stones lying about on long slopes").await;
    assert_eq!(ids(h, &bob, "granite", 10).await, [1, 2], "the shorter text ranks higher");
    let carol = World::new().user("carol");
    say(h, &carol, 1, 1, "copper copper copper wire").await;
    say(h, &carol, 2, 2, "copper silver golden wire").await;
    assert_eq!(ids(h, &carol, "copper", 10).await, [1, 2], "the more frequent word ranks higher");
    let dave = World::new().user("dave");
    say(h, &dave, 1, 1, "zebra common").await;
    for id in 2..8 {
        say(h, &dave, id, id as i64, "plain common").await;
    }
    assert_eq!(ids(h, &dave, "zebra plain", 10).await[0], 1, "the rarer word ranks higher");
    Passed
}

/// An episode that shares no word with the query is left out, and a query nobody answers recalls nothing.
pub async fn leaves_out_what_does_not_match(h: &Harness) -> Outcome {
    needs_words!(h);
    let alice = World::new().user("alice");
    say(h, &alice, 1, 1, "falcon").await;
    say(h, &alice, 2, 2, "violet").await;
    assert_eq!(ids(h, &alice, "falcon", 10).await, [1]);
    assert!(ids(h, &alice, "granite", 10).await.is_empty());
    Passed
}

/// The user's and the model's words are searched; what a tool answered is not.
pub async fn does_not_search_tool_outcomes(h: &Harness) -> Outcome {
    needs_words!(h);
    let alice = World::new().user("alice");
    let messages = vec![Message::user("falcon"), Message::tool("c", "granite"), Message::assistant("violet")];
    h.remember(&alice, NewEpisode::new(RunId::from_u128(1), session("s"), at(1), messages)).await;
    assert_eq!(ids(h, &alice, "falcon", 10).await, [1], "the user's words are searched");
    assert_eq!(ids(h, &alice, "violet", 10).await, [1], "the model's words are searched");
    assert!(ids(h, &alice, "granite", 10).await.is_empty(), "a tool's outcome is not searched");
    Passed
}

/// The score is the sum over rankings of 1 / (60 + rank); with words alone there is one ranking.
pub async fn scores_by_reciprocal_rank(h: &Harness) -> Outcome {
    needs_words!(h);
    let alice = World::new().user("alice");
    say(h, &alice, 1, 1, "falcon violet granite").await;
    say(h, &alice, 2, 2, "falcon violet copper").await;
    say(h, &alice, 3, 3, "falcon silver copper").await;
    let found = h.recall(&alice, &RecallQuery::new("falcon violet granite", 10)).await;
    let order: Vec<u128> = found.iter().map(|m| m.episode.id.as_u128()).collect();
    assert_eq!(order, [1, 2, 3]);
    for (rank, m) in (1..).zip(&found) {
        let expected = 1.0 / (60.0 + f64::from(rank));
        assert!((m.score - expected).abs() < 1e-9, "rank {rank} scores {expected}, not {}", m.score);
    }
    Passed
}

/// Equal matches are ordered newest first, then by larger id, every time the same.
pub async fn breaks_ties_by_time_then_id(h: &Harness) -> Outcome {
    needs_words!(h);
    let alice = World::new().user("alice");
    for (id, seconds) in [(5_u128, 20), (9, 10), (2, 30), (7, 20)] {
        say(h, &alice, id, seconds, "falcon over water").await;
    }
    for _ in 0..3 {
        assert_eq!(ids(h, &alice, "falcon", 10).await, [2, 7, 5, 9]);
    }
    assert_eq!(ids(h, &alice, "falcon", 2).await, [2, 7], "the limit cuts after the ties are broken");
    Passed
}

/// Recall returns at most its limit, the best ones; a limit of zero returns nothing.
pub async fn keeps_to_its_limit(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for id in 1..=5 {
        say(h, &alice, id, id as i64, "falcon").await;
    }
    for limit in [0, 1, 3, 5, 100] {
        let found = h.recall(&alice, &RecallQuery::new("", limit)).await.len();
        assert_eq!(found, limit.min(5), "at most {limit} without words");
        if h.store().capabilities().lexical {
            assert_eq!(ids(h, &alice, "falcon", limit).await.len(), limit.min(5), "at most {limit}");
        }
    }
    Passed
}

/// What history would replay for the session and limit is left out, and the next best take its place.
pub async fn leaves_out_the_history_in_the_prompt(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for id in 1..=6 {
        say(h, &alice, id, id as i64, "falcon").await;
    }
    h.remember(&alice, turn(RunId::from_u128(9), &session("t"), at(9), "falcon", "noted")).await;
    let recall = |words: &'static str, messages: usize| {
        let query =
            RecallQuery::new(words, 3).excluding_history(session("s"), HistoryLimit::messages(messages));
        let alice = crate::fixture::again(&alice);
        async move {
            let found = h.recall(&alice, &query).await;
            found.iter().map(|m| m.episode.id.as_u128()).collect::<Vec<_>>()
        }
    };
    assert_eq!(recall("", 4).await, [9, 4, 3], "episodes 5 and 6 are in the prompt");
    assert_eq!(recall("", 5).await, [9, 4, 3], "half an episode is not in the prompt");
    assert_eq!(recall("", 0).await, [9, 6, 5], "nothing is in the prompt");
    assert_eq!(recall("", 100).await, [9], "everything of the session is in the prompt");
    if h.store().capabilities().lexical {
        assert_eq!(recall("falcon", 4).await, [9, 4, 3], "the same with words");
    }
    Passed
}

/// Text that looks like a query language, quotes and wildcards is searched as text, and never fails.
pub async fn takes_a_query_as_data(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    say(h, &alice, 1, 1, "falcon and violet").await;
    say(h, &alice, 2, 2, "granite").await;
    for text in naughty::queries() {
        let found = h.recall(&alice, &RecallQuery::new(*text, 10)).await;
        assert!(found.len() <= 2, "{text:?} finds what is there");
    }
    assert_eq!(h.newest(&alice).await.len(), 2, "nothing was lost to a query");
    Passed
}

/// An unknown partition recalls nothing, with or without words.
pub async fn of_an_unknown_partition_is_empty(h: &Harness) -> Outcome {
    let nobody = World::new().user("nobody");
    h.remember(&World::new().user("somebody"), turn(new_run(), &session("s"), at(1), "falcon", "r")).await;
    assert!(h.newest(&nobody).await.is_empty());
    assert!(ids(h, &nobody, "falcon", 10).await.is_empty());
    Passed
}
