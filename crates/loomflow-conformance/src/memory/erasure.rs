//! Forgetting, and the epoch that keeps late writers from bringing it back.

use loomflow_core::{
    EpisodeId, Epoch, Erase, ErrorKind, FactQuery, NewFact, PutBlock, RecallQuery, RunId, Scope,
};

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{
    Must as _, World, at, canary, export, export_text, must_fail, new_run, open_one, session, turn,
};

async fn fill(h: &Harness, scope: &Scope, word: &str) -> RunId {
    let run = new_run();
    h.remember(scope, turn(run, &session("s"), at(1), word, "r")).await;
    h.store().put_block(scope, PutBlock::new("note", word, at(1))).await.must("put_block");
    if let Some(facts) = h.facts() {
        let fact = NewFact::new("me", "said", word, at(1)).with_sources(vec![run.into()]);
        facts.assert(scope, fact).await.must("assert");
    }
    run
}

/// Fails unless every way to read says that there is nothing.
async fn must_be_empty(h: &Harness, scope: &Scope, word: &str) {
    assert!(h.newest(scope).await.is_empty(), "recall finds nothing after an erasure");
    assert!(h.recall(scope, &RecallQuery::new(word, 10)).await.is_empty(), "nor does recall by words");
    assert!(h.history(scope, &session("s"), 20).await.is_empty(), "no history is left");
    assert!(h.block_names(scope).await.is_empty(), "no block is left");
    if h.facts().is_some() {
        let query = FactQuery::all(10);
        assert!(h.query_facts(scope, &query).await.is_empty(), "no fact is left");
        assert!(h.query_facts(scope, &query.known_at(at(1))).await.is_empty(), "no old belief is left");
    }
    let profile = open_one(scope, h.store().profile(scope).await.must("profile"), "profile");
    assert_eq!(profile, loomflow_core::MemoryProfile::default(), "the profile is that of nobody");
    let text = export_text(&export(h.store(), scope).await);
    assert!(text.is_empty(), "nothing is left to export, but there is: {text}");
}

/// Erasing everything leaves nothing for any read, and the receipt names the store and counts what went.
pub async fn everything_goes_everywhere(h: &Harness) -> Outcome {
    let world = World::new();
    let (alice, word) = (world.user("alice"), canary());
    fill(h, &alice, &word).await;
    let later = world.user_at("alice", 1);
    let line = h.store().forget(&later, &Erase::everything()).await.must("forget");
    assert_eq!(line.store, h.store().store_name(), "the receipt names the store");
    let least = if h.facts().is_some() { 3 } else { 2 };
    assert!(line.total() >= least, "the receipt counts what went: {line:?}");
    for scope in [&later, &alice] {
        must_be_empty(h, scope, &word).await;
    }
    let twice = h.store().forget(&world.user_at("alice", 2), &Erase::everything()).await.must("forget again");
    assert_eq!(twice.total(), 0, "the second time there is nothing to erase");
    Passed
}

/// Erasing one session takes its episodes and leaves other sessions and blocks.
pub async fn of_a_session_leaves_the_others(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    for (name, when) in [("s_1", 1), ("s_10", 2), ("s_1", 3), ("S_1", 4)] {
        h.remember(&alice, turn(new_run(), &session(name), at(when), name, "r")).await;
    }
    h.store().put_block(&alice, PutBlock::new("note", "stays", at(1))).await.must("put_block");
    let line = h.store().forget(&world.user_at("alice", 1), &Erase::session(session("s_1"))).await;
    assert_eq!(line.must("forget").total(), 2, "two episodes went");
    let left: Vec<String> = h.newest(&alice).await.iter().map(|e| e.input().to_owned()).collect();
    assert_eq!(left, ["S_1", "s_10"], "other sessions stay, those with similar names included");
    assert!(h.history(&alice, &session("s_1"), 20).await.is_empty());
    assert_eq!(h.history(&alice, &session("s_10"), 20).await.len(), 2);
    assert_eq!(h.block_names(&alice).await, ["note"], "blocks stay");
    Passed
}

/// Erasing one session takes the facts that came from it alone; one with another source stays, as does one without.
pub async fn of_a_session_takes_facts_that_came_from_it_alone(h: &Harness) -> Outcome {
    super::facts::needs_facts!(h);
    let world = World::new();
    let alice = world.user("alice");
    let (gone, kept) = (new_run(), new_run());
    h.remember(&alice, turn(gone, &session("gone"), at(1), "a", "r")).await;
    h.remember(&alice, turn(kept, &session("kept"), at(2), "b", "r")).await;
    let (gone, kept) = (EpisodeId::from(gone), EpisodeId::from(kept));
    for (value, sources) in
        [("alone", vec![gone]), ("both", vec![gone, kept]), ("none", vec![]), ("other", vec![kept])]
    {
        let fact = NewFact::new("alice", "likes", value, at(3)).with_sources(sources);
        super::facts::assert_fact(h, &alice, fact).await;
    }
    h.store().forget(&world.user_at("alice", 1), &Erase::session(session("gone"))).await.must("forget");
    let mut left = h.query_facts(&alice, &FactQuery::all(10)).await;
    left.sort_by(|a, b| a.object.cmp(&b.object));
    assert_eq!(super::facts::objects(&left), ["both", "none", "other"]);
    assert_eq!(left[0].sources, [kept], "the erased episode is no longer named as a source");
    Passed
}

/// Erasing what happened before a moment takes what is strictly older.
pub async fn before_a_moment_leaves_what_came_after(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    for when in [1, 2, 3] {
        h.remember(&alice, turn(new_run(), &session("s"), at(when), &format!("at {when}"), "r")).await;
    }
    let line = h.store().forget(&world.user_at("alice", 1), &Erase::before(at(2))).await.must("forget");
    assert_eq!(line.total(), 1, "one episode is older");
    assert_eq!(h.history(&alice, &session("s"), 20).await, ["at 2", "r", "at 3", "r"]);
    Passed
}

/// Erasing a session before a moment takes only what is both of that session and older.
pub async fn of_a_session_before_a_moment_takes_only_both(h: &Harness) -> Outcome {
    let world = World::new();
    let alice = world.user("alice");
    for (name, when) in [("s", 1), ("t", 1), ("s", 3), ("t", 3)] {
        h.remember(&alice, turn(new_run(), &session(name), at(when), &format!("{name} at {when}"), "r"))
            .await;
    }
    let what = Erase::session(session("s")).with_before(at(2));
    h.store().forget(&world.user_at("alice", 1), &what).await.must("forget");
    assert_eq!(h.history(&alice, &session("s"), 20).await, ["s at 3", "r"]);
    assert_eq!(h.history(&alice, &session("t"), 20).await, ["t at 1", "r", "t at 3", "r"]);
    Passed
}

/// Erasing an unknown partition is a line with zero counts, and raises the epoch all the same.
pub async fn of_an_unknown_partition_is_a_line_of_zeros(h: &Harness) -> Outcome {
    let world = World::new();
    let nobody = world.user_at("nobody", 1);
    let line = h.store().forget(&nobody, &Erase::everything()).await.must("forget");
    assert_eq!((line.total(), line.store.as_str()), (0, h.store().store_name()));
    assert_eq!(h.store().epoch(&nobody).await.must("epoch"), Epoch::new(1), "the epoch is raised");
    Passed
}

/// What was erased has no weight in later rankings: a partition ranks as if it had never been there.
pub async fn what_is_erased_no_longer_weighs(h: &Harness) -> Outcome {
    super::recall::needs_words!(h);
    let world = World::new();
    let (used, fresh) = (world.user_at("used", 1), world.user_at("fresh", 1));
    let old = world.user("used");
    for i in 0..30 {
        h.remember(&old, turn(new_run(), &session("old"), at(i), "zebra falcon lying on long slopes", "r"))
            .await;
    }
    h.store().forget(&used, &Erase::everything()).await.must("forget");
    let mut rankings = Vec::new();
    for scope in [&used, &fresh] {
        let texts = ["zebra stone", "plain stone", "plain stone", "plain stone", "plain stone"];
        for (i, words) in (0_u128..).zip(texts) {
            h.remember(scope, turn(RunId::from_u128(i), &session("s"), at(i as i64), words, "r")).await;
        }
        let found = h.recall(scope, &RecallQuery::new("zebra plain", 10)).await;
        rankings.push(found.iter().map(|m| (m.episode.id.as_u128(), m.score, m.bm25)).collect::<Vec<_>>());
    }
    assert_eq!(rankings[0], rankings[1], "scores are those of a partition that was never erased");
    assert_eq!(rankings[0][0].0, 0, "the rarer word ranks higher");
    Passed
}

/// After an erasure the tenant can be served again, with a scope of the new epoch.
pub async fn a_partition_can_be_used_again(h: &Harness) -> Outcome {
    let world = World::new();
    let (old, new) = (canary(), canary());
    fill(h, &world.user("alice"), &old).await;
    let alice = world.user_at("alice", 1);
    h.store().forget(&alice, &Erase::everything()).await.must("forget");
    fill(h, &alice, &new).await;
    assert_eq!(h.history(&alice, &session("s"), 20).await, [new.as_str(), "r"]);
    assert_eq!(h.block_names(&alice).await, ["note"]);
    let text = export_text(&export(h.store(), &alice).await);
    assert!(text.contains(&new) && !text.contains(&old), "only what was said afterwards is held");
    Passed
}

/// Fails unless every write of `stale` is refused.
async fn must_refuse_writes(h: &Harness, stale: &Scope, word: &str) {
    let late = turn(new_run(), &session("s"), at(2), word, "r");
    must_fail(
        h.store().remember(stale, late).await,
        ErrorKind::Erased,
        "remember by a run from before the erasure",
    );
    let block = h.store().put_block(stale, PutBlock::new("late", word, at(2))).await;
    must_fail(block, ErrorKind::Erased, "put_block by a run from before the erasure");
    let remove = h.store().put_block(stale, PutBlock::remove("late", at(2))).await;
    must_fail(remove, ErrorKind::Erased, "removing a block by a run from before the erasure");
    if let Some(facts) = h.facts() {
        let fact = facts.assert(stale, NewFact::new("a", "likes", word, at(2))).await;
        must_fail(fact, ErrorKind::Erased, "assert by a run from before the erasure");
    }
}

/// A run that began before an erasure cannot write anything back: its writes fail with `erased`, now and later.
pub async fn stale_writes_are_refused(h: &Harness) -> Outcome {
    let world = World::new();
    let (stale, word) = (world.user("alice"), canary());
    let run = fill(h, &stale, &word).await;
    let fresh = world.user_at("alice", 1);
    h.store().forget(&fresh, &Erase::everything()).await.must("forget");
    must_refuse_writes(h, &stale, &word).await;
    let same = h.store().remember(&stale, turn(run, &session("s"), at(1), &word, "r")).await;
    must_fail(same, ErrorKind::Erased, "remembering an erased run again");
    must_be_empty(h, &fresh, &word).await;
    fill(h, &fresh, &canary()).await;
    must_refuse_writes(h, &stale, &word).await;
    let text = export_text(&export(h.store(), &fresh).await);
    assert!(!text.contains(&word), "a stale write left something behind: {text}");
    Passed
}

/// A user whom the store has never seen can be erased, and a run that was under way then cannot write.
pub async fn stale_writes_are_refused_for_a_user_never_seen(h: &Harness) -> Outcome {
    let world = World::new();
    let (stale, word) = (world.user("newcomer"), canary());
    h.store().forget(&world.user_at("newcomer", 1), &Erase::everything()).await.must("forget");
    must_refuse_writes(h, &stale, &word).await;
    must_be_empty(h, &world.user_at("newcomer", 1), &word).await;
    Passed
}

/// The stored epoch is the largest an erasure carried: it starts at zero, is read by any scope, and never goes back.
pub async fn the_epoch_never_goes_back(h: &Harness) -> Outcome {
    let world = World::new();
    let epoch = async |scope: &Scope| h.store().epoch(scope).await.must("epoch").get();
    let old = world.user("alice");
    assert_eq!(epoch(&old).await, 0, "a partition that was never erased");
    h.store().forget(&world.user_at("alice", 5), &Erase::everything()).await.must("forget");
    assert_eq!(epoch(&old).await, 5, "an older scope reads the stored epoch");
    assert_eq!(epoch(&world.user_at("alice", 9)).await, 5, "so does a newer one");
    let late = h.store().forget(&world.user_at("alice", 3), &Erase::everything()).await;
    must_fail(late, ErrorKind::Conflict, "an erasure that is older than the stored epoch");
    assert_eq!(epoch(&old).await, 5, "an older erasure does not lower it");
    must_refuse_writes(h, &world.user_at("alice", 4), "late").await;
    h.remember(&world.user_at("alice", 5), turn(new_run(), &session("s"), at(1), "a", "r")).await;
    assert_eq!(epoch(&world.user("bob")).await, 0, "another tenant's epoch is untouched");
    Passed
}

/// Erasing one session raises the epoch like erasing everything, so a run of that session cannot write it back.
pub async fn a_partial_erasure_raises_the_epoch_too(h: &Harness) -> Outcome {
    let world = World::new();
    let stale = world.user("alice");
    fill(h, &stale, "word").await;
    h.store().forget(&world.user_at("alice", 1), &Erase::session(session("s"))).await.must("forget");
    must_refuse_writes(h, &stale, "late").await;
    h.store().forget(&world.user_at("alice", 2), &Erase::before(at(9))).await.must("forget");
    must_refuse_writes(h, &world.user_at("alice", 1), "late").await;
    Passed
}

/// Two erasures that overlap do not share an epoch: the second is refused before it touches anything, and done with a
/// newer one. Otherwise a run that began between them could write back what the second erased.
pub async fn two_erasures_never_share_an_epoch(h: &Harness) -> Outcome {
    let world = World::new();
    let (between, word) = (world.user_at("alice", 1), canary());
    h.store().forget(&between, &Erase::everything()).await.must("forget");
    fill(h, &between, &word).await;
    for what in [Erase::everything(), Erase::session(session("s")), Erase::before(at(9))] {
        for epoch in [0, 1] {
            let again = h.store().forget(&world.user_at("alice", epoch), &what).await;
            must_fail(again, ErrorKind::Conflict, "an erasure of an epoch that is not newer");
        }
    }
    assert_eq!(h.history(&between, &session("s"), 20).await, [word.as_str(), "r"], "nothing was touched");
    h.store().forget(&world.user_at("alice", 2), &Erase::everything()).await.must("forget again");
    must_refuse_writes(h, &between, &word).await;
    must_be_empty(h, &world.user_at("alice", 2), &word).await;
    Passed
}
