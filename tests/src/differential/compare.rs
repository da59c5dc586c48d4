//! One history on a store and on the oracle, side by side.

use std::panic::AssertUnwindSafe;

use futures_util::{FutureExt as _, TryStreamExt as _};
use loomflow_core::{
    Cardinality, Clock as _, Embedding, Episode, EpisodeId, Erase, ErrorKind, Fact, FactQuery, FactStore,
    HistoryLimit, MemoryBlock, MemoryStore, Message, NewEpisode, NewFact, Owned, PutBlock, RecallQuery,
    Result, RunId, Scope, SystemClock, ToolCall,
};

use super::history::{
    self, BLOCKS, History, Nonsense, OBJECTS, Op, PREDICATES, SUBJECTS, Step, WORDS, session, text, time,
};
use super::oracle::{Row, User};
use super::ranking::Hit;

type Outcome<T = ()> = std::result::Result<T, String>;

/// How far a fused score may be from the formula: the last bits of a sum.
const FUSED: f64 = 1e-9;
/// How far what it is fused from may be: stores may compute in single precision.
const PART: f64 = 1e-5;

/// Fails with both values unless they are equal.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}\n     found {found:?}\n  expected {expected:?}"))
}

/// Compares every step; says which one differs, and how.
pub(super) async fn run(store: &dyn MemoryStore, history: &History, max_episodes: usize) -> Outcome {
    let namespace = format!("diff-{:016x}", rand::random::<u64>());
    let users = history::all_tenants().map(|_| User::default()).collect();
    let mut pair = Pair { store, namespace, users, max_episodes };
    for (number, step) in history.steps.iter().enumerate() {
        let done = AssertUnwindSafe(pair.step(history.tenant(step), step)).catch_unwind().await;
        let done = done.unwrap_or_else(|_| Err("the store panicked".to_owned()));
        done.map_err(|why| format!("step {number} of {}: {:?}: {why}", history.steps.len(), step.op))?;
    }
    for tenant in history::all_tenants() {
        pair.look(tenant).await.map_err(|why| format!("tenant {tenant} at the end: {why}"))?;
    }
    for tenant in history::all_tenants() {
        pair.clear(tenant).await.map_err(|why| format!("erasing tenant {tenant} at the end: {why}"))?;
    }
    Ok(())
}

struct Pair<'s> {
    store: &'s dyn MemoryStore,
    namespace: String,
    users: Vec<User>,
    max_episodes: usize,
}

/// A step's tenant: the oracle's side, and the scopes to ask the store with.
struct Asked<'p> {
    store: &'p dyn MemoryStore,
    user: &'p mut User,
    scope: Scope,
    stale: bool,
}

impl Asked<'_> {
    fn facts(&self) -> Outcome<&dyn FactStore> {
        self.store.facts().ok_or_else(|| "the store has no facts".to_owned())
    }

    /// Compares a refusal with the expected one. `Some` is an answer to compare.
    fn refused<T>(&self, result: Result<T>, clash: bool) -> Outcome<Option<T>> {
        let expected = if self.stale { Some(ErrorKind::Erased) } else { clash.then_some(ErrorKind::Config) };
        refused(result, expected)
    }

    fn open<T>(&self, found: Vec<Owned<T>>) -> Outcome<Vec<T>> {
        found.into_iter().map(|owned| owned.open(&self.scope).map_err(|e| e.to_string())).collect()
    }
}

fn refused<T>(result: Result<T>, expected: Option<ErrorKind>) -> Outcome<Option<T>> {
    match (result, expected) {
        (Ok(value), None) => Ok(Some(value)),
        (Err(e), Some(kind)) if e.kind() == kind => Ok(None),
        (Ok(_), Some(kind)) => Err(format!("it is not refused as {kind:?}")),
        (Err(e), expected) => Err(format!("it failed with {:?} ({e:?}) instead of {expected:?}", e.kind())),
    }
}

impl Pair<'_> {
    async fn step(&mut self, tenant: usize, step: &Step) -> Outcome {
        let user = &mut self.users[tenant];
        let stale = step.stale && user.epoch > 0;
        let epoch = user.epoch - u64::from(stale);
        let scope = history::scope(&self.namespace, tenant, epoch);
        let asked = Asked { store: self.store, user, scope, stale };
        match &step.op {
            Op::Remember { .. } => remember(asked, &step.op, self.max_episodes).await,
            Op::Block { name, content, order, at } => {
                let mut put = PutBlock::remove(BLOCKS[*name], time(*at));
                (put.content, put.order) = (content.map(|c| OBJECTS[c].into()), *order);
                let done = asked.store.put_block(&asked.scope, put.clone()).await;
                if asked.refused(done, false)?.is_some() {
                    asked.user.put_block(put);
                }
                blocks(asked).await
            }
            Op::Assert { .. } => assert(asked, &step.op).await,
            Op::Forget { session: s, before, newer } => {
                let erasing = history::scope(&self.namespace, tenant, asked.user.epoch + newer);
                let mut what = Erase::everything();
                (what.session, what.before) = (s.map(session), before.map(time));
                forget(asked, &erasing, &what).await
            }
            Op::Recall { words, vector, limit, skip } => {
                let mut query = RecallQuery::new(text(words), *limit);
                query.embedding = vector.map(|v| v.embedding());
                query.exclude_history = skip.map(|(s, n)| (session(s), HistoryLimit::messages(n)));
                recall(asked, &query).await
            }
            Op::Facts { triple: [s, p, o], words, vector, valid, known, limit } => {
                let mut query = FactQuery::all(*limit);
                query.subject = s.map(|s| SUBJECTS[s].into());
                query.predicate = p.map(|p| PREDICATES[p].into());
                query.object = o.map(|o| OBJECTS[o].into());
                query.text = words.as_ref().map(|w| text(w).into());
                query.embedding = vector.map(|v| v.embedding());
                (query.valid_at, query.known_at) = (valid.map(time), known.map(time));
                let found = asked.facts()?.query(&asked.scope, &query).await;
                let clash = asked.user.clashes(query.embedding.as_ref()).then_some(ErrorKind::Config);
                let Some(found) = refused(found, clash)? else { return Ok(()) };
                let found = asked.open(found)?;
                same("facts", found.iter().collect(), asked.user.facts(&query))
            }
            Op::History { session: s, limit } => {
                let s = session(*s);
                let found = asked.store.history(&asked.scope, &s, HistoryLimit::messages(*limit)).await;
                let found = asked.open(found.map_err(|e| format!("{e:?}"))?)?;
                same("history", found, asked.user.history(&s, *limit))
            }
            Op::Nonsense(nonsense) => refuse(asked, *nonsense).await,
            Op::Look => self.look(tenant).await,
        }
    }

    /// Everything that a tenant holds, compared whole.
    async fn look(&mut self, tenant: usize) -> Outcome {
        let scope = history::scope(&self.namespace, tenant, self.users[tenant].epoch);
        let asked = Asked { store: self.store, user: &mut self.users[tenant], scope, stale: false };
        let export = export(&asked).await?;
        same("exported episodes", export.episodes, asked.user.episodes.iter().rev().cloned().collect())?;
        asked.user.compare_rows(export.rows)?;
        let mut held = export.blocks;
        held.sort_by_key(|b| (b.order, b.name.clone()));
        same("exported blocks", &held, &asked.user.blocks)?;
        let epoch = asked.store.epoch(&asked.scope).await.map_err(|e| format!("{e:?}"))?;
        same("epoch", epoch.get(), asked.user.epoch)?;
        let profile = asked.store.profile(&asked.scope).await.and_then(|p| p.open(&asked.scope));
        let profile = profile.map_err(|e| format!("{e:?}"))?;
        same("profile", profile, asked.user.profile(SystemClock.now()))?;
        blocks(asked).await
    }

    /// Leaves nothing on a server that others use, and sees that nothing is left.
    async fn clear(&mut self, tenant: usize) -> Outcome {
        let user = &mut self.users[tenant];
        let erasing = history::scope(&self.namespace, tenant, user.epoch + 1);
        let scope = history::scope(&self.namespace, tenant, user.epoch);
        forget(Asked { store: self.store, user, scope, stale: false }, &erasing, &Erase::everything())
            .await?;
        self.look(tenant).await
    }
}

async fn remember(asked: Asked<'_>, op: &Op, max_episodes: usize) -> Outcome {
    let Op::Remember { run, session: s, at, words, tools, vector } = op else { return Ok(()) };
    let mut messages = vec![Message::user(text(words))];
    if *tools {
        let call = ToolCall::new("c0", "refund", r#"{"order": 1}"#);
        messages.push(Message::assistant_calls("late", vec![call]));
        messages.push(Message::tool("c0", "refund refund"));
    }
    messages.push(Message::assistant(WORDS[usize::from(*run) % WORDS.len()]));
    let run = RunId::from_u128(u128::from(*run) + 1);
    let mut new = NewEpisode::new(run, session(*s), time(*at), messages);
    new.embedding = vector.map(|v| v.embedding());
    let known = asked.user.episodes.iter().any(|e| e.id == EpisodeId::from(run));
    let clash = !known && asked.user.clashes(new.embedding.as_ref());
    let done = asked.store.remember(&asked.scope, new.clone()).await;
    if let Some(id) = asked.refused(done, clash)? {
        same("id", id, EpisodeId::from(run))?;
        asked.user.remember(new, max_episodes);
    }
    Ok(())
}

async fn assert(asked: Asked<'_>, op: &Op) -> Outcome {
    let Op::Assert { triple: [s, p, o], one, from, length, at, sources, vector, confidence } = op else {
        return Ok(());
    };
    let sources = sources.iter().map(|n| EpisodeId::from_u128(u128::from(*n) + 1)).collect();
    let mut new = NewFact::new(SUBJECTS[*s], PREDICATES[*p], OBJECTS[*o], time(*at))
        .with_validity(time(*from), length.map(|l| time(from + l)))
        .with_cardinality(if *one { Cardinality::One } else { Cardinality::Many })
        .with_confidence(*confidence)
        .with_sources(sources);
    new.embedding = vector.map(|v| v.embedding());
    let clash = asked.user.clashes(new.embedding.as_ref());
    let done = asked.facts()?.assert(&asked.scope, new.clone()).await;
    if let Some(answer) = asked.refused(done, clash)? {
        asked.user.assert(&new, &answer)?;
    }
    let rows = export(&asked).await?.rows;
    asked.user.compare_rows(rows)
}

async fn forget(asked: Asked<'_>, erasing: &Scope, what: &Erase) -> Outcome {
    let newer = erasing.epoch().get() > asked.user.epoch;
    let done = asked.store.forget(erasing, what).await;
    let Some(receipt) = refused(done, (!newer).then_some(ErrorKind::Conflict))? else { return Ok(()) };
    asked.user.epoch = erasing.epoch().get();
    let gone = asked.user.forget(what);
    let expected = ["episode", "fact", "block"].map(|kind| kind.to_owned()).into_iter().zip(gone).collect();
    same("receipt", receipt.counts, expected)
}

async fn recall(asked: Asked<'_>, query: &RecallQuery) -> Outcome {
    let found = asked.store.recall(&asked.scope, query).await;
    let clash = asked.user.clashes(query.embedding.as_ref()).then_some(ErrorKind::Config);
    let Some(found) = refused(found, clash)? else { return Ok(()) };
    let found = asked.open(found)?;
    let expected = asked.user.recall(query);
    let ids = |of: &[(&Episode, Hit)]| of.iter().map(|(e, _)| e.id).collect::<Vec<_>>();
    same("recalled", found.iter().map(|m| m.episode.id).collect(), ids(&expected))?;
    for (m, (episode, hit)) in found.iter().zip(expected) {
        same("recalled episode", &*m.episode, episode)?;
        let cosine = m.cosine.map(f64::from);
        if (m.score - hit.score).abs() > FUSED || !near(m.bm25, hit.bm25) || !near(cosine, hit.cosine) {
            let scores = (m.score, m.bm25, cosine);
            return Err(format!("{} scored {scores:?}, and not {hit:?}", episode.id));
        }
    }
    Ok(())
}

fn near(found: Option<f64>, expected: Option<f64>) -> bool {
    match (found, expected) {
        (Some(a), Some(b)) => (a - b).abs() <= PART,
        (a, b) => a.is_none() && b.is_none(),
    }
}

async fn blocks(asked: Asked<'_>) -> Outcome {
    let found = asked.store.blocks(&asked.scope).await.map_err(|e| format!("{e:?}"))?;
    same("blocks", asked.open(found)?, asked.user.blocks.clone())
}

async fn refuse(asked: Asked<'_>, nonsense: Nonsense) -> Outcome {
    let scope = &asked.scope;
    if asked.stale {
        // Which of two refusals comes first is nobody's promise.
        return Ok(());
    }
    let at = time(1);
    let episode = |vector: &[f32]| {
        let new = NewEpisode::new(RunId::from_u128(999), session(0), at, vec![Message::user("refund")]);
        new.with_embedding(Embedding::new("m", vector))
    };
    let done = match nonsense {
        Nonsense::EmptyVector => asked.store.remember(scope, episode(&[])).await.map(drop),
        Nonsense::NotFinite => {
            asked.store.remember(scope, episode(&[1.0, f32::NAN, 0.0, 0.0])).await.map(drop)
        }
        Nonsense::QueryNotFinite => {
            let mut query = RecallQuery::new("refund", 3);
            query.embedding = Some(Embedding::new("m", [f32::INFINITY, 0.0, 0.0, 0.0]));
            asked.store.recall(scope, &query).await.map(drop)
        }
        Nonsense::BlockName => asked.store.put_block(scope, PutBlock::new("a\nb", "x", at)).await,
        Nonsense::EmptyObject => {
            asked.facts()?.assert(scope, NewFact::new("ada", "likes", "", at)).await.map(drop)
        }
        Nonsense::BlankSubject => {
            asked.facts()?.assert(scope, NewFact::new(" \t", "likes", "tea", at)).await.map(drop)
        }
        Nonsense::BackwardValidity => {
            let fact = NewFact::new("ada", "likes", "tea", at).with_validity(at, Some(at));
            asked.facts()?.assert(scope, fact).await.map(drop)
        }
    };
    refused(done, Some(ErrorKind::InvalidInput)).map(drop)
}

/// An export, taken apart.
#[derive(Default)]
struct Export {
    episodes: Vec<Episode>,
    rows: Vec<Row>,
    blocks: Vec<MemoryBlock>,
}

async fn export(asked: &Asked<'_>) -> Outcome<Export> {
    let items = asked.store.export(&asked.scope).await.map_err(|e| format!("{e:?}"))?;
    let items: Vec<_> = items.try_collect().await.map_err(|e| format!("{e:?}"))?;
    let mut export = Export::default();
    let mut times = Vec::new();
    for item in asked.open(items)? {
        let bad = |e: serde_json::Error| format!("the exported {} cannot be read: {e}", item.kind);
        match &*item.kind {
            "episode" => {
                let episode: Episode = serde_json::from_value(item.data.clone()).map_err(bad)?;
                times.push(episode.at);
                export.episodes.push(episode);
            }
            "fact" => {
                let fact: Fact = serde_json::from_value(item.data.clone()).map_err(bad)?;
                let vector = item.data.get("embedding").cloned().unwrap_or_default();
                times.push(fact.known_from);
                export.rows.push((fact, serde_json::from_value(vector).map_err(bad)?));
            }
            "block" => {
                let block: MemoryBlock = serde_json::from_value(item.data.clone()).map_err(bad)?;
                times.push(block.updated_at);
                export.blocks.push(block);
            }
            other => return Err(format!("an export has no items of the kind {other}")),
        }
    }
    if !times.is_sorted() {
        return Err(format!("an export is oldest first: {times:?}"));
    }
    Ok(export)
}
