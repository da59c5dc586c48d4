//! How well recall finds what was said, without any language model: questions with an exact answer key, asked of a store
//! by words alone, by vectors alone, and by both. The binary `recall_quality` is the door.

mod generate;
mod longmemeval;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use loomflow_core::danger::{admit_embed, assume_scope, detached_context};
use loomflow_core::{
    EmbedPurpose, Embedder, Embedding, Epoch, Erase, Error, ErrorKind, Identity, MemoryStore, Message,
    Namespace, NewEpisode, RecallQuery, Result, RunId, Scope, SessionId, Timestamp, UserId,
};
use serde::Serialize;

pub use self::generate::generate;
pub use self::longmemeval::read as read_longmemeval;
use crate::progress::Progress;

/// How many sessions count as found.
pub const CUT: usize = 5;
/// Episodes that are recalled for it: several may be of one session.
const RECALLED: usize = 60;
/// Texts that are embedded together.
const BATCH: usize = 64;

/// One conversation.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::exhaustive_structs, reason = "plain data that a set is made of")]
pub struct Conversation {
    /// Unique within its haystack.
    pub id: String,
    /// When it began.
    pub at: Timestamp,
    /// What the user said, and the reply.
    pub turns: Vec<(String, String)>,
}

/// A question, and the conversations that answer it.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::exhaustive_structs, reason = "plain data that a set is made of")]
pub struct Question {
    /// What it tests.
    pub kind: String,
    /// The question.
    pub text: String,
    /// The ids of the conversations; at least one.
    pub evidence: Vec<String>,
}

/// Everything that one user ever said, and what is asked about it.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::exhaustive_structs, reason = "plain data that a set is made of")]
pub struct Haystack {
    /// Oldest first.
    pub conversations: Vec<Conversation>,
    /// What is asked.
    pub questions: Vec<Question>,
}

/// What recall may rank by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "words, vectors, or both")]
pub enum Ranking {
    /// BM25 alone.
    Words,
    /// Cosine alone.
    Vectors,
    /// Both, fused.
    Hybrid,
}

/// All of them.
pub const RANKINGS: [Ranking; 3] = [Ranking::Words, Ranking::Vectors, Ranking::Hybrid];

/// How well one ranking did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Score {
    /// Questions.
    pub questions: usize,
    /// The mean share of a question's evidence that was among the first five conversations.
    pub recall_at_5: f64,
    /// The mean of one over the rank of the first conversation that is evidence; 0 beyond all that was recalled.
    pub mrr: f64,
}

/// What a store achieved.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The store's name. Never its URL.
    pub store: String,
    /// The embedder's name.
    pub embedder: String,
    /// By ranking.
    pub rankings: BTreeMap<Ranking, Score>,
    /// By ranking and kind of question.
    pub kinds: BTreeMap<Ranking, BTreeMap<String, Score>>,
}

impl Report {
    /// A Markdown table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out =
            format!("{}, vectors of {}\n\n| ranking | questions | R@5 | MRR |", self.store, self.embedder);
        let kinds: Vec<&String> = self.kinds.values().next().map(|k| k.keys().collect()).unwrap_or_default();
        for kind in &kinds {
            let _ = write!(out, " R@5 {kind} |");
        }
        let _ = write!(out, "\n|---|---|---|---|{}\n", "---|".repeat(kinds.len()));
        for (ranking, score) in &self.rankings {
            let name = format!("{ranking:?}").to_lowercase();
            let _ =
                write!(out, "| {name} | {} | {:.3} | {:.3} |", score.questions, score.recall_at_5, score.mrr);
            for kind in &kinds {
                let of_kind = self.kinds[ranking].get(*kind).copied().unwrap_or_default();
                let _ = write!(out, " {:.3} |", of_kind.recall_at_5);
            }
            out.push('\n');
        }
        out
    }
}

/// Fills a store with each haystack, as a user of its own, asks all questions by each ranking, and erases them again.
///
/// # Errors
///
/// Whatever the store or the embedder fails with.
pub async fn measure(
    store: &dyn MemoryStore,
    embedder: &dyn Embedder,
    haystacks: &[Haystack],
    quiet: bool,
) -> Result<Report> {
    let namespace = Namespace::new(format!("quality-{:016x}", rand::random::<u64>()))?;
    let mut answers: BTreeMap<Ranking, Vec<(&str, f64, f64)>> = BTreeMap::new();
    let total = haystacks.iter().map(|h| h.questions.len() as u64).sum();
    let progress = Progress::over(total, "questions", quiet);
    let _drawing = progress.draw();
    for (n, haystack) in haystacks.iter().enumerate() {
        let user = Identity::User(UserId::new(format!("user_{n}"))?);
        let scope = assume_scope(namespace.clone(), user.clone(), Epoch::ZERO);
        fill(store, embedder, &scope, haystack).await?;
        let texts: Vec<Arc<str>> = haystack.questions.iter().map(|q| q.text.as_str().into()).collect();
        let vectors = embed(embedder, &scope, &texts, EmbedPurpose::Query).await?;
        for (question, vector) in haystack.questions.iter().zip(vectors) {
            for ranking in RANKINGS {
                let (found, first) = ask(store, &scope, question, &vector, ranking).await?;
                answers.entry(ranking).or_default().push((&question.kind, found, first));
            }
            progress.tick();
        }
        let erasing = assume_scope(namespace.clone(), user, Epoch::new(1));
        store.forget(&erasing, &Erase::everything()).await?;
    }
    let mut report = Report {
        store: store.store_name().to_owned(),
        embedder: embedder.name().to_owned(),
        rankings: BTreeMap::new(),
        kinds: BTreeMap::new(),
    };
    for (ranking, answers) in answers {
        report.rankings.insert(ranking, score(answers.iter()));
        let kinds = report.kinds.entry(ranking).or_default();
        for (kind, ..) in &answers {
            let of_kind = answers.iter().filter(|(k, ..)| k == kind);
            kinds.entry((*kind).to_owned()).or_insert_with(|| score(of_kind));
        }
    }
    Ok(report)
}

fn score<'a>(answers: impl Iterator<Item = &'a (&'a str, f64, f64)>) -> Score {
    let mut score = Score::default();
    for (_, found, first) in answers {
        score.questions += 1;
        score.recall_at_5 += found;
        score.mrr += first;
    }
    let n = score.questions.max(1) as f64;
    (score.recall_at_5, score.mrr) = (score.recall_at_5 / n, score.mrr / n);
    score
}

async fn fill(
    store: &dyn MemoryStore,
    embedder: &dyn Embedder,
    scope: &Scope,
    haystack: &Haystack,
) -> Result<()> {
    let mut episodes = Vec::new();
    for conversation in &haystack.conversations {
        for (n, (said, reply)) in (0..).zip(&conversation.turns) {
            let at = Timestamp::from_micros(conversation.at.as_micros() + n * 60_000_000);
            let messages = vec![Message::user(said.as_str()), Message::assistant(reply.as_str())];
            let run = RunId::from_u128(episodes.len() as u128 + 1);
            episodes.push(NewEpisode::new(run, SessionId::new(conversation.id.as_str())?, at, messages));
        }
    }
    let text = |e: &NewEpisode| -> Arc<str> {
        e.messages.iter().map(|m| &*m.text).collect::<Vec<_>>().join("\n").into()
    };
    let texts: Vec<Arc<str>> = episodes.iter().map(text).collect();
    let vectors = embed(embedder, scope, &texts, EmbedPurpose::Document).await?;
    for (episode, vector) in episodes.into_iter().zip(vectors) {
        store.remember(scope, episode.with_embedding(vector)).await?;
    }
    Ok(())
}

async fn embed(
    embedder: &dyn Embedder,
    scope: &Scope,
    texts: &[Arc<str>],
    purpose: EmbedPurpose,
) -> Result<Vec<Embedding>> {
    let scope = assume_scope(scope.namespace().clone(), scope.identity().clone(), scope.epoch());
    let ctx = detached_context(scope);
    let mut vectors = Vec::with_capacity(texts.len());
    for batch in texts.chunks(BATCH) {
        let embedded = embedder.embed(&ctx, admit_embed(batch.to_vec(), purpose)).await?;
        vectors.extend(embedded.vectors.into_iter().map(|v| Embedding::new(embedder.name(), v)));
    }
    if vectors.len() == texts.len() {
        return Ok(vectors);
    }
    Err(Error::new(
        ErrorKind::Internal,
        "the embedder gave another number of vectors than it was given texts",
    ))
}

/// The share of the evidence among the first conversations, and one over the rank of the first.
async fn ask(
    store: &dyn MemoryStore,
    scope: &Scope,
    question: &Question,
    vector: &Embedding,
    ranking: Ranking,
) -> Result<(f64, f64)> {
    let text = if ranking == Ranking::Vectors { "" } else { question.text.as_str() };
    let mut query = RecallQuery::new(text, RECALLED);
    query.embedding = (ranking != Ranking::Words).then(|| vector.clone());
    let mut found: Vec<String> = Vec::new();
    for owned in store.recall(scope, &query).await? {
        let session = owned.open(scope)?.episode.session.as_str().to_owned();
        if !found.contains(&session) {
            found.push(session);
        }
    }
    let hits = question.evidence.iter().filter(|id| found.iter().take(CUT).any(|f| f == *id)).count();
    let first =
        found.iter().position(|f| question.evidence.contains(f)).map_or(0.0, |at| 1.0 / (at as f64 + 1.0));
    Ok((hits as f64 / question.evidence.len() as f64, first))
}
