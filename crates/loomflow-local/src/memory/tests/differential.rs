//! Random histories of every operation, over tenants that are easy to mix up, compared with the oracle step by step.

use futures_util::TryStreamExt;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    AssertOutcome, Cardinality, Embedding, EpisodeId, Epoch, Erase, ErrorKind, Fact, FactQuery, HistoryLimit,
    Identity, MemoryStore, Message, Namespace, NewEpisode, NewFact, Owned, PutBlock, RecallQuery, RunId,
    Scope, TenantData, UserId,
};
use proptest::prelude::*;

use super::oracle::{self, Doc, Oracle};
use super::{HOSTILE, session, time};
use crate::memory::config::MemoryConfig;
use crate::memory::partition::Limits;
use crate::memory::registry::Registry;
use crate::memory::store::InMemoryMemory;

const WORDS: [&str; 9] =
    ["refund", "Refund", "order", "straße", "東京", "a-b", "order order", "!?", "late_42"];
const SESSIONS: [&str; 3] = ["s", "s2", "S"];
const TEXTS: [&str; 3] = ["tea", "coffee", "late order"];

#[derive(Clone, Debug)]
enum Op {
    Remember {
        run: u8,
        session: usize,
        at: i64,
        words: Vec<usize>,
        tools: usize,
        vector: Option<usize>,
    },
    Block {
        name: usize,
        content: Option<usize>,
        order: Option<u32>,
        at: i64,
    },
    Assert {
        s: usize,
        o: usize,
        one: bool,
        from: i64,
        len: Option<i64>,
        at: i64,
        sources: Vec<u8>,
        vector: Option<usize>,
        conf: u8,
    },
    Forget {
        session: Option<usize>,
        before: Option<i64>,
    },
    Recall {
        words: Vec<usize>,
        vector: Option<usize>,
        limit: usize,
        skip: Option<(usize, usize)>,
    },
    Facts {
        s: Option<usize>,
        o: Option<usize>,
        words: Option<Vec<usize>>,
        vector: Option<usize>,
        valid: Option<i64>,
        known: Option<i64>,
        limit: usize,
    },
    History {
        session: usize,
        limit: usize,
    },
}

fn words() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..WORDS.len(), 0..5)
}

fn vector() -> impl Strategy<Value = Option<usize>> {
    prop::option::of(0..VECTORS.len())
}

// Mostly of one kind, so that most histories are not about refusals.
const VECTORS: [(&str, &[f32]); 14] = [
    ("m", &[1.0, 0.0, 0.0]),
    ("m", &[2.0, 0.0, 0.0]),
    ("m", &[1.0, 1.0, 0.0]),
    ("m", &[-1.0, 0.5, 0.0]),
    ("m", &[0.0, 0.0, 0.0]),
    ("m", &[0.0, 1.0, 0.0]),
    ("m", &[0.0, 1.0, 1.0]),
    ("m", &[0.0, 0.0, 1.0]),
    ("m", &[1.0, 0.0, 1.0]),
    ("m", &[0.5, 0.0, 0.5]),
    ("m", &[-1.0, 0.0, 0.0]),
    ("m", &[4.0, 0.0, 0.0]),
    ("n", &[1.0, 0.0, 0.0]),
    ("m", &[1.0, 0.0]),
];

fn op() -> impl Strategy<Value = Op> {
    let source = prop::collection::vec(0..24_u8, 0..3);
    prop_oneof![
        6 => (0..24_u8, 0..3_usize, 0..12_i64, words(), 0..2_usize, vector())
            .prop_map(|(run, session, at, words, tools, vector)| Op::Remember { run, session, at, words, tools, vector }),
        1 => (0..3_usize, prop::option::of(0..3_usize), prop::option::of(0..3_u32), 0..12_i64)
            .prop_map(|(name, content, order, at)| Op::Block { name, content, order, at }),
        5 => (0..2_usize, 0..3_usize, any::<bool>(), 0..12_i64, prop::option::of(1..6_i64), 0..12_i64, source, vector(), 0..=100_u8)
            .prop_map(|(s, o, one, from, len, at, sources, vector, conf)| Op::Assert { s, o, one, from, len, at, sources, vector, conf }),
        1 => (prop::option::weighted(0.6, 0..3_usize), prop::option::weighted(0.6, 0..14_i64))
            .prop_map(|(session, before)| Op::Forget { session, before }),
        4 => (words(), vector(), 0..6_usize, prop::option::of((0..3_usize, 0..9_usize)))
            .prop_map(|(words, vector, limit, skip)| Op::Recall { words, vector, limit, skip }),
        3 => (prop::option::of(0..2_usize), prop::option::of(0..3_usize), prop::option::of(words()), vector(), prop::option::of(0..14_i64), prop::option::of(0..14_i64), 0..6_usize)
            .prop_map(|(s, o, words, vector, valid, known, limit)| Op::Facts { s, o, words, vector, valid, known, limit }),
        2 => (0..3_usize, 0..12_usize).prop_map(|(session, limit)| Op::History { session, limit }),
    ]
}

fn text(words: &[usize]) -> String {
    words.iter().map(|w| WORDS[*w]).collect::<Vec<_>>().join(" ")
}

fn embedding(at: Option<usize>) -> Option<Embedding> {
    at.map(|at| Embedding::new(VECTORS[at].0, VECTORS[at].1))
}

fn tenant(n: usize, epoch: u64) -> Scope {
    let (namespace, identity) = match n {
        0 => ("app", Identity::Anonymous),
        1 => ("ap", Identity::User(UserId::new("puser_1").unwrap())),
        n => ("app", Identity::User(UserId::new(HOSTILE[n - 2]).unwrap())),
    };
    assume_scope(Namespace::new(namespace).unwrap(), identity, Epoch::new(epoch))
}

/// A fact without its id, which is drawn at random.
fn plain(f: &Fact) -> String {
    let mut sources: Vec<EpisodeId> = f.sources.clone();
    sources.sort_unstable();
    format!(
        "{} {} {} {} {:?} {:?} {:?} {:?} {sources:?}",
        f.subject,
        f.predicate,
        f.object,
        f.confidence,
        f.valid_from,
        f.valid_until,
        f.known_from,
        f.known_until
    )
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list
}

fn open<T>(scope: &Scope, found: Vec<Owned<T>>) -> Vec<T> {
    found.into_iter().map(|owned| owned.open(scope).unwrap()).collect()
}

struct Pair {
    memory: InMemoryMemory,
    oracle: Oracle,
}

impl Pair {
    fn new(max_episodes: usize, scan: usize) -> Self {
        let config = MemoryConfig::new().with_max_episodes_per_user(max_episodes);
        let limits = Limits { scan, ..Limits::from(&config) };
        let memory = InMemoryMemory::over(Registry::with_limits(&config, limits));
        Self { memory, oracle: Oracle { users: Default::default(), max_episodes } }
    }

    async fn step(&mut self, user: usize, stale: bool, op: Op) {
        let max = self.oracle.max_episodes;
        let reader = tenant(user, 0);
        let model = self.oracle.user(reader.owner());
        let stored = model.epoch;
        let stale = stale && stored > 0;
        let scope = tenant(user, if stale { stored - 1 } else { stored });
        let clash = |model: &oracle::User, vector| model.clashes(embedding(vector).as_ref());
        let refused = |error: Option<ErrorKind>, clash: bool| {
            let expected = if stale { Some(ErrorKind::Erased) } else { clash.then_some(ErrorKind::Config) };
            assert_eq!(error, expected);
            expected.is_some()
        };
        match op {
            Op::Remember { run, session: s, at, words, tools, vector } => {
                let mut messages = vec![Message::user(text(&words))];
                messages.extend((0..tools).map(|i| Message::tool(format!("c{i}"), "refund refund")));
                messages.push(Message::assistant(WORDS[usize::from(run) % WORDS.len()]));
                let run = RunId::from_u128(u128::from(run));
                let mut new = NewEpisode::new(run, session(SESSIONS[s]), time(at), messages);
                new.embedding = embedding(vector);
                let known = model.episodes.iter().any(|e| e.id == EpisodeId::from(run));
                let result = self.memory.remember(&scope, new.clone()).await;
                if !refused(result.as_ref().err().map(|e| e.kind()), !known && clash(model, vector)) {
                    assert_eq!(result.unwrap(), EpisodeId::from(run));
                    model.remember(new, max);
                }
            }
            Op::Block { name, content, order, at } => {
                let mut put = PutBlock::remove(format!("b{name}"), time(at));
                put.content = content.map(|c| TEXTS[c].into());
                put.order = order;
                let result = self.memory.put_block(&scope, put.clone()).await;
                if !refused(result.err().map(|e| e.kind()), false) {
                    model.put_block(put);
                }
            }
            Op::Assert { s, o, one, from, len, at, sources, vector, conf } => {
                let sources = sources.into_iter().map(|n| EpisodeId::from_u128(u128::from(n)));
                let mut new = NewFact::new(["ada", "Ada"][s], "likes", TEXTS[o], time(at))
                    .with_validity(time(from), len.map(|l| time(from + l)))
                    .with_cardinality(if one { Cardinality::One } else { Cardinality::Many })
                    .with_confidence(conf);
                for source in sources {
                    if !new.sources.contains(&source) {
                        new.sources.push(source);
                    }
                }
                new.embedding = embedding(vector);
                let result = self.memory.facts().unwrap().assert(&scope, new.clone()).await;
                if !refused(result.as_ref().err().map(|e| e.kind()), clash(model, vector)) {
                    let done = result.unwrap();
                    let (written, ended) = model.assert(&new);
                    assert_eq!(done.outcome == AssertOutcome::New, written);
                    assert_eq!(done.superseded.len(), ended);
                }
            }
            Op::Forget { session: s, before } => {
                let erasing = tenant(user, stored + 1);
                let mut what = Erase::everything();
                what.session = s.map(|s| session(SESSIONS[s]));
                what.before = before.map(time);
                let receipt = self.memory.forget(&erasing, &what).await.unwrap();
                let counts: Vec<u64> = receipt.counts.iter().map(|(_, n)| *n).collect();
                model.epoch += 1;
                assert_eq!(counts, model.forget(&what), "{what:?}");
            }
            Op::Recall { words, vector, limit, skip } => {
                let mut query = RecallQuery::new(text(&words), limit);
                query.embedding = embedding(vector);
                query.exclude_history = skip.map(|(s, n)| (session(SESSIONS[s]), HistoryLimit::messages(n)));
                let found = self.memory.recall(&scope, &query).await;
                if clash(model, vector) {
                    assert_eq!(found.unwrap_err().kind(), ErrorKind::Config);
                    return;
                }
                let found = open(&scope, found.unwrap());
                let found: Vec<_> = found.iter().map(|m| (m.episode.id, m.score)).collect();
                assert_eq!(found, model.recall(&query), "{query:?}");
            }
            Op::Facts { s, o, words, vector, valid, known, limit } => {
                let mut query = FactQuery::all(limit);
                query.subject = s.map(|s| ["ada", "Ada"][s].into());
                query.object = o.map(|o| TEXTS[o].into());
                query.text = words.map(|w| text(&w).into());
                query.embedding = embedding(vector);
                query.valid_at = valid.map(time);
                query.known_at = known.map(time);
                self.compare_facts(&scope, query).await;
            }
            Op::History { session: s, limit } => {
                let s = session(SESSIONS[s]);
                let found = self.memory.history(&scope, &s, HistoryLimit::messages(limit)).await.unwrap();
                assert_eq!(open(&scope, found), model.history(&s, limit));
            }
        }
    }

    async fn compare_facts(&mut self, scope: &Scope, query: FactQuery) {
        let facts = self.memory.facts().unwrap();
        // All that pass the filters, newest first.
        let mut unranked = query.clone();
        (unranked.limit, unranked.text, unranked.embedding) = (usize::MAX, None, None);
        let all = open(scope, facts.query(scope, &unranked).await.unwrap());
        let model = self.oracle.user(scope.owner());
        let expected = model.facts(&unranked).iter().map(plain).collect();
        assert_eq!(sorted(all.iter().map(plain).collect()), sorted(expected), "{unranked:?}");
        assert!(all.is_sorted_by(|a, b| (a.known_from, a.id) > (b.known_from, b.id)));
        // The ranking of these rows: their vectors are found again by their content.
        let vector = |f: &Fact| {
            let mut same = model.facts.iter().filter(|(g, _)| plain(g) == plain(f)).map(|(_, v)| v.clone());
            let first = same.next().unwrap();
            same.all(|v| v == first).then_some(first)
        };
        let docs: Option<Vec<Doc>> = all
            .iter()
            .map(|f| {
                let text = format!("{} {} {}", f.subject, f.predicate, f.object);
                let vector = vector(f)?;
                Some(Doc {
                    words: oracle::words(&text),
                    vector,
                    tie: (f.known_from, f.id.as_u128()),
                    out: false,
                })
            })
            .collect();
        let Some(docs) = docs else { return };
        let text = query.text.as_deref().unwrap_or("");
        let expected: Vec<_> = oracle::rank(&docs, text, query.embedding.as_ref(), query.limit)
            .into_iter()
            .map(|(at, _)| all[at].id)
            .collect();
        let found = facts.query(scope, &query).await;
        if model.clashes(query.embedding.as_ref()) {
            assert_eq!(found.unwrap_err().kind(), ErrorKind::Config);
            return;
        }
        let found = open(scope, found.unwrap());
        assert_eq!(found.iter().map(|f| f.id).collect::<Vec<_>>(), expected, "{query:?}");
    }

    /// What every tenant holds, compared whole.
    async fn compare_all(&mut self) {
        let mut episodes = 0;
        for n in 0..HOSTILE.len() + 2 {
            let scope = tenant(n, 0);
            let items: Vec<_> = self.memory.export(&scope).await.unwrap().try_collect().await.unwrap();
            let items = open(&scope, items);
            let of = |kind: &str| -> Vec<String> {
                items.iter().filter(|i| i.kind == kind).map(|i| i.data.to_string()).collect()
            };
            let model = self.oracle.user(scope.owner());
            let held: Vec<String> =
                model.episodes.iter().rev().map(|e| serde_json::to_value(e).unwrap().to_string()).collect();
            assert_eq!(of("episode"), held);
            let facts: Vec<String> =
                of("fact").iter().map(|f| plain(&serde_json::from_str::<Fact>(f).unwrap())).collect();
            assert_eq!(sorted(facts), sorted(model.facts.iter().map(|(f, _)| plain(f)).collect()));
            let blocks = open(&scope, self.memory.blocks(&scope).await.unwrap());
            assert_eq!(blocks, model.blocks);
            assert_eq!(of("block").len(), blocks.len());
            assert_eq!(self.memory.epoch(&scope).await.unwrap(), Epoch::new(model.epoch));
            let profile = self.memory.profile(&scope).await.unwrap().open(&scope).unwrap();
            assert_eq!(profile.episodes, model.episodes.len() as u64);
            assert_eq!(profile.last_seen, model.episodes.first().map(|e| e.at));
            episodes += profile.episodes;
        }
        assert_eq!(self.memory.stats().episodes, episodes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_the_oracle_does(
        max_episodes in prop::sample::select(vec![3_usize, 8, 1_000]),
        scan in prop::sample::select(vec![0_usize, 4, 32]),
        tenants in 1..HOSTILE.len() + 2,
        steps in prop::collection::vec((0..100_usize, prop::bool::weighted(0.1), op()), 0..90),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut pair = Pair::new(max_episodes, scan);
            for (user, stale, op) in steps {
                pair.step(user % tenants, stale, op).await;
            }
            pair.compare_all().await;
        });
    }
}
