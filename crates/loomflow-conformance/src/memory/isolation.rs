//! One tenant and another. No capability switches these cases off.

use futures_util::future::join_all;
use loomflow_core::{
    Embedding, Epoch, Erase, FactQuery, Identity, NewFact, PutBlock, RecallQuery, RunId, Scope,
};

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{
    Must as _, World, at, canary, export, export_text, must_fail, named, new_run, open_one, session, turn,
};
use crate::naughty;

/// Every hostile identity in one namespace, each with a word that nobody else says.
fn tenants(world: &World) -> Vec<(Scope, String)> {
    naughty::identities().iter().map(|who| (world.scope(who), canary())).collect()
}

/// Fails when `text` holds the word of anybody but the tenant number `own`.
fn must_not_leak(tenants: &[(Scope, String)], own: usize, text: &str, what: &str) {
    for (i, (scope, word)) in tenants.iter().enumerate() {
        assert!(
            i == own || !text.contains(word.as_str()),
            "{what} of {:?} holds what {:?} wrote",
            tenants[own].0.owner(),
            scope.owner()
        );
    }
    assert!(text.contains(&tenants[own].1), "{what} of {:?} lost its own", tenants[own].0.owner());
}

async fn fill(h: &Harness, scope: &Scope, word: &str) {
    let said = format!("shared {word}");
    h.remember(scope, turn(RunId::from_u128(7), &session("conv"), at(1), &said, "noted")).await;
    h.store().put_block(scope, PutBlock::new("persona", word, at(1))).await.must("put_block");
    if let Some(facts) = h.facts() {
        facts.assert(scope, NewFact::new("me", "said", word, at(1))).await.must("assert");
    }
}

/// All that a tenant can read, as one text.
async fn everything(h: &Harness, scope: &Scope) -> String {
    let mut all = format!("{:?}", h.newest(scope).await);
    all += &format!("{:?}", h.recall(scope, &RecallQuery::new("shared", 1_000)).await);
    all += &h.history(scope, &session("conv"), 1_000).await.join("\n");
    let blocks = h.store().blocks(scope).await.must("blocks");
    all += &format!("{:?}", crate::fixture::open(scope, blocks, "blocks"));
    if h.facts().is_some() {
        all += &format!("{:?}", h.query_facts(scope, &FactQuery::all(1_000)).await);
    }
    let profile = open_one(scope, h.store().profile(scope).await.must("profile"), "profile");
    all + &format!("{profile:?}") + &export_text(&export(h.store(), scope).await)
}

/// The same run id and session id in every hostile tenant are as many episodes, and each tenant reads its own.
pub async fn the_same_run_and_session_in_every_tenant(h: &Harness) -> Outcome {
    let all = tenants(&World::new());
    for (scope, word) in &all {
        let said = format!("shared {word}");
        h.remember(scope, turn(RunId::from_u128(7), &session("conv"), at(1), &said, "noted")).await;
    }
    for (i, (scope, word)) in all.iter().enumerate() {
        let newest = format!("{:?}", h.newest(scope).await);
        must_not_leak(&all, i, &newest, "recall");
        must_not_leak(&all, i, &h.history(scope, &session("conv"), 1_000).await.join("\n"), "history");
        if h.store().capabilities().lexical {
            let found = h.recall(scope, &RecallQuery::new("shared", 1_000)).await;
            must_not_leak(&all, i, &format!("{found:?}"), "recall by words");
            let foreign = &all[(i + 1) % all.len()].1;
            let found = h.recall(scope, &RecallQuery::new(foreign.as_str(), 1_000)).await;
            assert!(found.is_empty(), "{:?} found another tenant's word {word}", scope.owner());
        }
    }
    Passed
}

/// A block of one name in every hostile tenant holds that tenant's text, and removing one removes no other.
pub async fn blocks_of_the_same_name_in_every_tenant(h: &Harness) -> Outcome {
    let all = tenants(&World::new());
    for (scope, word) in &all {
        h.store().put_block(scope, PutBlock::new("persona", word.as_str(), at(1))).await.must("put_block");
    }
    for (i, (scope, _)) in all.iter().enumerate() {
        let blocks = h.store().blocks(scope).await.must("blocks");
        let blocks = crate::fixture::open(scope, blocks, "blocks");
        assert_eq!(blocks.len(), 1, "{:?} has one block", scope.owner());
        must_not_leak(&all, i, &blocks[0].content, "blocks");
    }
    for (i, (scope, _)) in all.iter().enumerate() {
        h.store().put_block(scope, PutBlock::remove("persona", at(2))).await.must("put_block");
        for (j, (other, _)) in all.iter().enumerate().skip(i).take(3) {
            let expected = usize::from(j != i);
            assert_eq!(
                h.block_names(other).await.len(),
                expected,
                "after {:?} removed its block",
                scope.owner()
            );
        }
    }
    Passed
}

/// Facts about one subject in every hostile tenant stay apart, and a new value ends only the tenant's own.
pub async fn facts_of_the_same_subject_in_every_tenant(h: &Harness) -> Outcome {
    let Some(facts) = h.facts() else {
        return Passed; // There is nothing to mix up.
    };
    let all = tenants(&World::new());
    for (scope, word) in &all {
        let fact =
            NewFact::new("me", "is", word.as_str(), at(1)).with_cardinality(loomflow_core::Cardinality::One);
        let done = facts.assert(scope, fact).await.must("assert");
        assert!(done.superseded.is_empty(), "{:?} ended another tenant's fact", scope.owner());
    }
    for (i, (scope, _)) in all.iter().enumerate() {
        let found = h.query_facts(scope, &FactQuery::all(1_000)).await;
        assert_eq!(found.len(), 1, "{:?} has one fact", scope.owner());
        must_not_leak(&all, i, &found[0].object, "facts");
        let found = h.query_facts(scope, &FactQuery::all(1_000).known_at(at(1))).await;
        assert_eq!(found.len(), 1, "{:?} believed one fact", scope.owner());
    }
    Passed
}

/// A profile counts the tenant's own records, and shows none of another.
pub async fn profiles_count_their_own(h: &Harness) -> Outcome {
    let world = World::new();
    let all = tenants(&world);
    for (i, (scope, word)) in all.iter().enumerate() {
        let s = session(word);
        for n in 0..1 + i % 3 {
            h.remember(scope, turn(new_run(), &s, at(n as i64), "hi", "ho")).await;
        }
        if let Some(facts) = h.facts() {
            facts.assert(scope, NewFact::new("me", "said", word.as_str(), at(1))).await.must("assert");
        }
    }
    for (i, (scope, _)) in all.iter().enumerate() {
        let profile = open_one(scope, h.store().profile(scope).await.must("profile"), "profile");
        assert_eq!(profile.episodes, 1 + i as u64 % 3, "episodes of {:?}", scope.owner());
        assert_eq!(profile.facts, u64::from(h.facts().is_some()), "facts of {:?}", scope.owner());
        must_not_leak(&all, i, &format!("{profile:?}"), "profile");
    }
    Passed
}

/// An export holds everything of its tenant and nothing of another.
pub async fn exports_hold_their_own(h: &Harness) -> Outcome {
    let all = tenants(&World::new());
    for (scope, word) in &all {
        fill(h, scope, word).await;
    }
    for (i, (scope, _)) in all.iter().enumerate() {
        must_not_leak(&all, i, &export_text(&export(h.store(), scope).await), "export");
    }
    Passed
}

/// Equal vectors in every hostile tenant are found by their own tenant alone.
pub async fn vectors_of_others_never_match(h: &Harness) -> Outcome {
    let all = tenants(&World::new());
    let vector = || Embedding::new("conformance-3", vec![1.0, 0.5, 0.25]);
    for (scope, word) in &all {
        let episode = turn(RunId::from_u128(7), &session("conv"), at(1), word, "noted");
        h.remember(scope, episode.with_embedding(vector())).await;
    }
    for (i, (scope, _)) in all.iter().enumerate() {
        let found = h.recall(scope, &RecallQuery::new("", 1_000).with_embedding(vector())).await;
        assert!(found.len() <= 1, "{:?} recalled {} episodes and has one", scope.owner(), found.len());
        if h.store().capabilities().vectors {
            must_not_leak(&all, i, &format!("{found:?}"), "recall by vectors");
        }
    }
    Passed
}

/// For every hostile pair: erasing the one leaves the other whole, in every read.
pub async fn erasing_one_leaves_the_other(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        for (gone, kept) in [(&a, &b), (&b, &a)] {
            let world = World::new();
            let (kept, gone_word, kept_word) = (world.scope(kept), canary(), canary());
            fill(h, &world.scope(gone), &gone_word).await;
            fill(h, &kept, &kept_word).await;
            let before = everything(h, &kept).await;
            let erased = world.scope_at(gone, 1);
            h.store().forget(&erased, &Erase::everything()).await.must("forget");
            let after = everything(h, &kept).await;
            assert_eq!(before, after, "erasing {gone:?} changed what {:?} reads", kept.owner());
            let left = everything(h, &erased).await;
            assert!(!left.contains(&gone_word), "{gone:?} was erased and is still there");
            assert!(!left.contains(&kept_word), "{gone:?} reads what {:?} wrote", kept.owner());
        }
    }
    Passed
}

/// For every hostile pair: erasing the one raises the epoch of that one alone, so the other's runs go on writing.
pub async fn erasing_one_does_not_make_the_other_stale(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let (erased, other) = (world.scope_at(&a, 1), world.scope(&b));
        h.store().forget(&erased, &Erase::everything()).await.must("forget");
        let epoch = h.store().epoch(&other).await.must("epoch");
        assert_eq!(epoch, Epoch::ZERO, "erasing {a:?} raised the epoch of {b:?}");
        fill(h, &other, "shared").await;
        let stale =
            h.store().remember(&world.scope(&a), turn(new_run(), &session("s"), at(1), "x", "y")).await;
        must_fail(stale, loomflow_core::ErrorKind::Erased, "a stale write");
    }
    Passed
}

/// One user in two namespaces is two tenants; erasing the one leaves the other.
pub async fn namespaces_are_apart(h: &Harness) -> Outcome {
    let world = World::new();
    let worlds = [world.beside("-1"), world.beside("-10"), world.beside("-A"), world.beside("-a"), world];
    let all: Vec<_> = worlds.iter().map(|w| (w.user("alice"), canary())).collect();
    for (scope, word) in &all {
        fill(h, scope, word).await;
    }
    for (i, (scope, _)) in all.iter().enumerate() {
        must_not_leak(&all, i, &everything(h, scope).await, "what is read");
    }
    h.store().forget(&worlds[0].user_at("alice", 1), &Erase::everything()).await.must("forget");
    for (i, (scope, _)) in all.iter().enumerate().skip(1) {
        must_not_leak(&all, i, &everything(h, scope).await, "what is read after an erasure elsewhere");
    }
    Passed
}

/// The border between namespace and user cannot be moved: `a` + `b:c` is nobody of `a:b` + `c`.
pub async fn a_border_between_namespace_and_user_cannot_be_shifted(h: &Harness) -> Outcome {
    for separator in ["", ":", "/", "|", "_", "-", ".", "::", "\\", ",", "u", "\u{e9}"] {
        let world = World::new();
        let long = world.beside(&format!("{separator}b"));
        let all = [
            (world.user(&format!("b{separator}c")), canary()),
            (long.user("c"), canary()),
            (world.user("b"), canary()),
            (long.scope(&Identity::Anonymous), canary()),
            (world.scope(&Identity::Anonymous), canary()),
        ];
        for (scope, word) in &all {
            fill(h, scope, word).await;
        }
        for (i, (scope, _)) in all.iter().enumerate() {
            must_not_leak(&all, i, &everything(h, scope).await, "what is read");
        }
    }
    Passed
}

/// The anonymous bucket is a tenant of its own that no name reaches; erasing it leaves every named tenant.
pub async fn anonymous_is_nobody_else(h: &Harness) -> Outcome {
    let world = World::new();
    let mut all = vec![(world.scope(&Identity::Anonymous), canary())];
    for name in ["anonymous", "(anonymous)", "null", "NULL", "None", "default", "0", "-", "*", "%", "a", "u"]
    {
        all.push((world.scope(&named(name)), canary()));
    }
    for (scope, word) in &all {
        fill(h, scope, word).await;
    }
    for (i, (scope, _)) in all.iter().enumerate() {
        must_not_leak(&all, i, &everything(h, scope).await, "what is read");
    }
    let erased = world.scope_at(&Identity::Anonymous, 1);
    h.store().forget(&erased, &Erase::everything()).await.must("forget");
    assert!(h.newest(&erased).await.is_empty(), "the anonymous bucket is erased");
    for (i, (scope, _)) in all.iter().enumerate().skip(1) {
        must_not_leak(&all, i, &everything(h, scope).await, "what is read after erasing anonymous");
    }
    Passed
}

/// What others write changes neither order nor scores: word statistics are the partition's own.
pub async fn ranking_ignores_what_others_wrote(h: &Harness) -> Outcome {
    let world = World::new();
    let bob = world.user("bob");
    let vector = |x: f32| Embedding::new("conformance-2", vec![x, 1.0]);
    let texts = ["zebra stone", "plain stone", "plain stone", "plain stone", "plain stone"];
    for (i, words) in (1_u128..).zip(texts) {
        let episode = turn(RunId::from_u128(i), &session("s"), at(i as i64), words, "noted");
        h.remember(&bob, episode.with_embedding(vector(i as f32))).await;
    }
    let queries = [
        RecallQuery::new("zebra plain", 10),
        RecallQuery::new("", 10).with_embedding(vector(1.0)),
        RecallQuery::new("zebra plain", 2).with_embedding(vector(2.0)),
        RecallQuery::new("", 10),
    ];
    let mut alone = Vec::new();
    for query in &queries {
        alone.push(h.recall(&bob, query).await);
    }
    for n in 0..40 {
        let foreign = world.user(["bo", "bob2", "Bob", "b"][n % 4]);
        let words =
            if n % 2 == 0 { "zebra zebra" } else { "zebra among so many other words that lengths shift" };
        let episode = turn(new_run(), &session("s"), at(1_000 + n as i64), words, "noted");
        h.remember(&foreign, episode.with_embedding(vector(n as f32))).await;
    }
    for (query, before) in queries.iter().zip(&alone) {
        let after = h.recall(&bob, query).await;
        assert_eq!(&after, before, "what others wrote changed the ranking for {query:?}");
    }
    if h.store().capabilities().lexical {
        assert_eq!(
            alone[0][0].episode.id.as_u128(),
            1,
            "the word that is rare in this partition ranks higher"
        );
    }
    Passed
}

/// Others' better and newer matches do not use up a tenant's limit: filtering comes before cutting.
pub async fn others_cannot_crowd_a_tenant_out(h: &Harness) -> Outcome {
    let world = World::new();
    let bob = world.user("bob");
    let vector = |x: f32| Embedding::new("conformance-2", vec![x, 1.0]);
    for i in 0..3 {
        let episode = turn(new_run(), &session("s"), at(i), "zebra over stones and long slopes", "noted");
        h.remember(&bob, episode.with_embedding(vector(0.5))).await;
    }
    for n in 0..60 {
        let foreign = world.user(&format!("bob{}", n % 7));
        let episode = turn(new_run(), &session("s"), at(1_000 + n), "zebra", "zebra");
        h.remember(&foreign, episode.with_embedding(vector(9.0))).await;
    }
    let caps = h.store().capabilities();
    let query = |words: &'static str| RecallQuery::new(words, 3);
    assert_eq!(h.recall(&bob, &query("")).await.len(), 3, "the newest of this tenant");
    if caps.lexical {
        assert_eq!(h.recall(&bob, &query("zebra")).await.len(), 3, "the best of this tenant by words");
    }
    if caps.vectors {
        let near = query("").with_embedding(vector(9.0));
        assert_eq!(h.recall(&bob, &near).await.len(), 3, "the best of this tenant by vectors");
    }
    assert_eq!(h.history(&bob, &session("s"), 6).await.len(), 6, "the latest of this tenant's session");
    Passed
}

/// A query that looks like an operator, a wildcard or an injection finds nothing of another tenant.
pub async fn hostile_queries_find_nothing_foreign(h: &Harness) -> Outcome {
    let world = World::new();
    let (mallory, word) = (world.user("mallory"), canary());
    let secret = format!("falcon violet {word}");
    h.remember(&world.user("alice"), turn(new_run(), &session("s"), at(1), &secret, "r")).await;
    h.remember(&mallory, turn(new_run(), &session("s"), at(1), "falcon", "r")).await;
    for text in naughty::queries() {
        let found = h.recall(&mallory, &RecallQuery::new(*text, 100)).await;
        assert!(!format!("{found:?}").contains(&word), "the query {text:?} found another tenant's words");
        if h.facts().is_some() {
            let query = FactQuery::all(100).about(*text, None);
            assert!(h.query_facts(&mallory, &query).await.is_empty());
        }
    }
    Passed
}

/// Tenants that write and read at once each read their own.
pub async fn concurrent_tenants_stay_apart(h: &Harness) -> Outcome {
    let all = tenants(&World::new());
    let tasks = all.iter().map(|(scope, word)| {
        let (h, scope, word) = (h.clone(), crate::fixture::again(scope), word.clone());
        tokio::spawn(async move {
            fill(&h, &scope, &word).await;
            everything(&h, &scope).await
        })
    });
    for (i, read) in join_all(tasks).await.into_iter().enumerate() {
        let read = read.unwrap_or_else(|e| panic!("a concurrent tenant failed: {e}"));
        must_not_leak(&all, i, &read, "what is read under load");
    }
    Passed
}
