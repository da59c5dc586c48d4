//! Recall and queries of facts against the formulas as they are written, over random partitions, order included.

use loomflow_core::{
    Cardinality, FactQuery, FactStore as _, HistoryLimit, MemoryStore as _, Message, NewEpisode, NewFact,
    RecallQuery, RunId, SessionId, Timestamp,
};
use loomflow_memory_postgres::PostgresMemory;
use proptest::prelude::*;

use crate::support::{Database, at, scope, vector};

const WORDS: [&str; 8] =
    ["refund", "Refund", "order", "stra\u{df}e", "\u{6771}\u{4eac}", "a-b", "order order", "!?"];

#[derive(Clone, Debug)]
struct Doc {
    user: usize,
    at: i64,
    id: u128,
    words: Vec<usize>,
    vector: Option<Vec<i8>>,
    session: usize,
}

fn doc() -> impl Strategy<Value = Doc> {
    let vector = prop::option::weighted(0.7, prop::collection::vec(-1..=1_i8, 3));
    (0..2_usize, 0..5_i64, any::<u128>(), prop::collection::vec(0..WORDS.len(), 0..5), vector, 0..2_usize)
        .prop_map(|(user, at, id, words, vector, session)| Doc { user, at, id, words, vector, session })
}

type Query = (Vec<usize>, Option<Vec<i8>>, usize, Option<(usize, usize)>);

fn query() -> impl Strategy<Value = Query> {
    let vector = prop::option::weighted(0.6, prop::collection::vec(-1..=1_i8, 3));
    (
        prop::collection::vec(0..WORDS.len(), 0..4),
        vector,
        1..8_usize,
        prop::option::of((0..2_usize, 0..7_usize)),
    )
}

fn text(words: &[usize]) -> String {
    words.iter().map(|w| WORDS[*w]).collect::<Vec<_>>().join(" ")
}

fn floats(v: &[i8]) -> Vec<f32> {
    v.iter().map(|x| f32::from(*x)).collect()
}

fn session(n: usize) -> SessionId {
    SessionId::new(["s", "S"][n]).unwrap()
}

fn split(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
    parts.map(|w| w.chars().flat_map(char::to_lowercase).collect()).collect()
}

/// A document as the oracle sees it: its words, its vector, how ties are broken, whether it is left out.
struct Seen {
    words: Vec<String>,
    vector: Option<Vec<i8>>,
    tie: (i64, u128),
    hidden: bool,
}

/// Ids, best first.
fn rank(docs: &[Seen], text: &str, vector: Option<&[i8]>, limit: usize) -> Vec<u128> {
    let mut words = split(text);
    let mut seen = std::collections::HashSet::new();
    words.retain(|w| seen.insert(w.clone()));
    let n = docs.len() as f64;
    let average = docs.iter().map(|d| d.words.len()).sum::<usize>() as f64 / n;
    let bm25 = |d: &Seen| -> f64 {
        let score = |word: &String| {
            let df = docs.iter().filter(|d| d.words.contains(word)).count() as f64;
            let tf = d.words.iter().filter(|w| *w == word).count() as f64;
            let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
            if tf == 0.0 {
                0.0
            } else {
                idf * (tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * d.words.len() as f64 / average)))
            }
        };
        words.iter().map(score).sum()
    };
    let dot = |a: &[i8], b: &[i8]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
    let cosine = |d: &Seen| -> f64 {
        let (Some(q), Some(v)) = (vector, d.vector.as_deref()) else { return 0.0 };
        let norms = (dot(q, q) * dot(v, v)).sqrt();
        if norms == 0.0 { 0.0 } else { (dot(q, v) / norms * 1e6).round() }
    };
    let mut fused: Vec<(f64, (i64, u128))> = Vec::new();
    if words.is_empty() && vector.is_none() {
        fused = docs.iter().filter(|d| !d.hidden).map(|d| (0.0, d.tie)).collect();
    }
    for score in [&bm25 as &dyn Fn(&Seen) -> f64, &cosine] {
        let open = docs.iter().filter(|d| !d.hidden);
        let mut list: Vec<(f64, (i64, u128))> =
            open.map(|d| (score(d), d.tie)).filter(|(s, _)| *s > 0.0).collect();
        list.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        for (place, (_, tie)) in list.into_iter().enumerate() {
            let gain = 1.0 / (61.0 + place as f64);
            match fused.iter_mut().find(|(_, t)| *t == tie) {
                Some(found) => found.0 += gain,
                None => fused.push((gain, tie)),
            }
        }
    }
    fused.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    fused.into_iter().take(limit).map(|(_, (_, id))| id).collect()
}

async fn recall_is_the_oracles(memory: &PostgresMemory, docs: &[Doc], queries: &[Query]) {
    let run = rand::random::<u64>();
    let user = |n: usize| format!("u{run:x}-{n}");
    for d in docs {
        let messages = vec![Message::user(text(&d.words))];
        let mut episode = NewEpisode::new(RunId::from_u128(d.id), session(d.session), at(d.at), messages);
        if let Some(v) = &d.vector {
            episode = episode.with_embedding(vector(&floats(v)));
        }
        memory.remember(&scope(&user(d.user)), episode).await.unwrap();
    }
    for (n, (words, v, limit, exclude)) in queries.iter().enumerate() {
        let own: Vec<&Doc> = docs.iter().filter(|d| d.user == n % 2).collect();
        let mut latest: Vec<&&Doc> =
            own.iter().filter(|d| exclude.is_some_and(|(s, _)| s == d.session)).collect();
        latest.sort_by_key(|d| std::cmp::Reverse((d.at, d.id)));
        latest.truncate(exclude.map_or(0, |(_, limit)| limit));
        let seen: Vec<Seen> = own
            .iter()
            .map(|d| Seen {
                words: split(&text(&d.words)),
                vector: d.vector.clone(),
                tie: (d.at, d.id),
                hidden: latest.iter().any(|l| l.id == d.id),
            })
            .collect();
        let mut query = RecallQuery::new(text(words), *limit);
        if let Some(v) = v {
            query = query.with_embedding(vector(&floats(v)));
        }
        if let Some((s, messages)) = exclude {
            query = query.excluding_history(session(*s), HistoryLimit::messages(*messages));
        }
        let found = memory.recall(&scope(&user(n % 2)), &query).await.unwrap();
        let found: Vec<u128> =
            found.into_iter().map(|m| m.open(&scope(&user(n % 2))).unwrap().episode.id.as_u128()).collect();
        assert_eq!(found, rank(&seen, &text(words), v.as_deref(), *limit), "{query:?} over {own:#?}");
    }
}

/// Facts that stand side by side, so that rows are what was asserted.
async fn facts_are_the_oracles(memory: &PostgresMemory, docs: &[Doc], queries: &[Query]) {
    let user = format!("f{:x}", rand::random::<u64>());
    let mut seen = Vec::new();
    let mut newest = i64::MIN;
    for (n, d) in docs.iter().enumerate() {
        let object = format!("o{n} {}", text(&d.words));
        let mut fact =
            NewFact::new("me", "has", object.as_str(), at(d.at)).with_cardinality(Cardinality::Many);
        if let Some(v) = &d.vector {
            fact = fact.with_embedding(vector(&floats(v)));
        }
        newest = newest.max(d.at);
        let id = memory.assert(&scope(&user), fact).await.unwrap().id;
        let words = split(&format!("me has {object}"));
        seen.push(Seen { words, vector: d.vector.clone(), tie: (newest, id.as_u128()), hidden: false });
    }
    for (words, v, limit, _) in queries {
        let query = FactQuery::all(*limit).about(text(words), v.as_ref().map(|v| vector(&floats(v))));
        let found = memory.query(&scope(&user), &query).await.unwrap();
        let found: Vec<u128> =
            found.into_iter().map(|f| f.open(&scope(&user)).unwrap().id.as_u128()).collect();
        assert_eq!(found, rank(&seen, &text(words), v.as_deref(), *limit), "{query:?}");
    }
    let past = FactQuery::all(100).known_at(Timestamp::from_micros(0));
    assert!(memory.query(&scope(&user), &past).await.unwrap().is_empty());
}

#[test]
fn answers_are_those_of_the_formulas() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let database = runtime.block_on(Database::new());
    let memory = runtime.block_on(database.memory());
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(docs in prop::collection::vec(doc(), 0..14), queries in prop::collection::vec(query(), 6))| {
        runtime.block_on(async {
            recall_is_the_oracles(&memory, &docs, &queries).await;
            facts_are_the_oracles(&memory, &docs, &queries).await;
        });
    });
    drop(memory);
}
