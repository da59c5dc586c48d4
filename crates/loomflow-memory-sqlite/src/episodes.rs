//! Episodes: remembered once, replayed by session, recalled by words and vectors.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use loomflow_core::rules::rank::{self, Probe, Scored};
use loomflow_core::rules::words::{self, QueryTerms};
use loomflow_core::rules::{self, Space, latest_that_fit};
use loomflow_core::{
    Embedding, Episode, EpisodeId, EpisodeMatch, Error, ErrorKind, HistoryLimit, Message, NewEpisode, Owned,
    Owner, RecallQuery, Result, Scope, SessionId, Timestamp,
};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::scan::{Found, Pass};
use crate::schema::{self, Author, Columns as _, Filter};

/// How many episodes of a session are looked at in one statement.
const HISTORY_PAGE: usize = 64;

/// An episode as it is written.
#[derive(Debug)]
pub(crate) struct NewRow {
    pub(crate) author: Author,
    pub(crate) id: EpisodeId,
    session: SessionId,
    at: Timestamp,
    said: usize,
    messages: String,
    terms: Vec<u8>,
    embedding: Option<Embedding>,
}

impl NewRow {
    /// Prepares everything that takes time before it is the episode's turn to be written.
    pub(crate) fn new(author: Author, new: NewEpisode) -> Result<Self> {
        let messages = serde_json::to_string(&new.messages).map_err(|e| {
            Error::new(ErrorKind::Internal, "the messages cannot be written as JSON").with_source(e)
        })?;
        let terms = words::to_bytes(&words::of_episode(&new.messages));
        let NewEpisode { run, session, at, messages: said, embedding, .. } = new;
        Ok(Self { author, id: run.into(), session, at, said: said.len(), messages, terms, embedding })
    }
}

const INSERT_TEXT: &str = "INSERT INTO memory_episode_texts (partition, namespace, user_id, session, terms, messages, vector) \
                           VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const INSERT: &str = "INSERT INTO memory_episodes (partition, at, id, content, session, messages) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// Stores an episode, unless its run is known.
pub(crate) async fn remember(conn: &mut SqliteConnection, new: &NewRow) -> Result<EpisodeId> {
    const OPERATION: &str = "remember";
    let fail = failed(OPERATION);
    let (author, id) = (&new.author, new.id.as_u128().to_be_bytes());
    let entered = schema::enter(conn, author, &id, OPERATION).await?;
    if entered.known {
        return Ok(new.id);
    }
    let vector = new.embedding.as_ref();
    schema::check_vector(&entered, vector, OPERATION)?;
    let text = sqlx::query(INSERT_TEXT)
        .bind(&author.partition[..])
        .bind(author.namespace())
        .bind(author.user_id())
        .bind(new.session.as_str())
        .bind(&new.terms[..])
        .bind(&*new.messages)
        .bind(vector.map(|e| rank::vector_to_bytes(&e.vector)));
    let content = text.execute(&mut *conn).await.map_err(fail)?.last_insert_rowid();
    let key = sqlx::query(INSERT)
        .bind(&author.partition[..])
        .bind(new.at.as_micros())
        .bind(&id[..])
        .bind(content)
        .bind(schema::session_key(new.session.as_str()))
        .bind(schema::number(new.said));
    key.execute(&mut *conn).await.map_err(fail)?;
    schema::settle_space(conn, author, &entered, vector, OPERATION).await?;
    Ok(new.id)
}

/// The latest messages of a session, oldest first.
pub(crate) async fn history(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
    session: &SessionId,
    limit: HistoryLimit,
) -> Result<Vec<Owned<Message>>> {
    let latest = latest(conn, filter, scope, session, limit, "history").await?;
    let oldest_first: Vec<Key> = latest.into_iter().rev().collect();
    let mut said = Vec::new();
    for (owner, episode) in texts(conn, filter, scope, &oldest_first, "history").await? {
        said.extend(episode.messages.iter().map(|m| Owned::new(owner.clone(), m.clone())));
    }
    Ok(said)
}

/// The episodes that match best.
pub(crate) async fn recall(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
    query: &RecallQuery,
) -> Result<Vec<Owned<EpisodeMatch>>> {
    const OPERATION: &str = "recall";
    if query.embedding.is_some() {
        let (_, space) = schema::state(conn, &schema::partition(scope), OPERATION).await?;
        Space::check(space.as_ref(), query.embedding.as_ref(), OPERATION)?;
    }
    if query.limit == 0 {
        return Ok(Vec::new());
    }
    let hidden: HashSet<u128> = match &query.exclude_history {
        Some((session, limit)) => {
            let latest = latest(conn, filter, scope, session, *limit, OPERATION).await?;
            latest.into_iter().map(|key| key.id).collect()
        }
        None => HashSet::new(),
    };
    let terms = QueryTerms::parse(&query.text);
    let best: Vec<(Key, Scored)> = if terms.is_empty() && query.embedding.is_none() {
        newest(conn, filter, scope, &hidden, query.limit).await?
    } else {
        pass(conn, filter, scope, terms, query.embedding.as_ref(), &hidden).await?.rank(query.limit).await?
    };
    let keys: Vec<Key> = best.iter().map(|(key, _)| *key).collect();
    let texts = texts(conn, filter, scope, &keys, OPERATION).await?;
    let matched = |((owner, episode), (_, scored)): ((Owner, Episode), (Key, Scored))| {
        let found = EpisodeMatch::new(Arc::new(episode), scored.score);
        Owned::new(owner, found.with_scores(scored.bm25, scored.cosine))
    };
    Ok(texts.into_iter().zip(best).map(matched).collect())
}

/// What names an episode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub(crate) at: Timestamp,
    pub(crate) id: u128,
    pub(crate) content: i64,
}

impl Key {
    pub(crate) fn of(row: &SqliteRow) -> Result<Self> {
        Ok(Self { at: row.time("at")?, id: row.id("id")?, content: row.cell("content")? })
    }
}

const LATEST: &str = "SELECT k.at, k.id, k.content, k.messages FROM memory_episodes AS k \
                      CROSS JOIN memory_episode_texts AS t ON t.content = k.content \
                      WHERE k.partition = ?1 AND k.session = ?2 AND t.session = ?3 AND (k.at, k.id) < (?5, ?6) \
                      ORDER BY k.at DESC, k.id DESC LIMIT ?4";
/// What every id is less than: one that is longer.
const AFTER_ALL: [u8; 17] = [0xff; 17];

/// The latest episodes of a session whose messages fit, newest first.
async fn latest(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
    session: &SessionId,
    limit: HistoryLimit,
    operation: &'static str,
) -> Result<Vec<Key>> {
    let (mut keys, mut sizes): (Vec<Key>, Vec<usize>) = (Vec::new(), Vec::new());
    loop {
        let (at, id) = match keys.last() {
            Some(last) => (last.at.as_micros(), last.id.to_be_bytes().to_vec()),
            None => (i64::MAX, AFTER_ALL.to_vec()),
        };
        let page = sqlx::query(filter.sql(LATEST))
            .bind(schema::partition(scope))
            .bind(schema::session_key(session.as_str()))
            .bind(session.as_str())
            .bind(schema::number(HISTORY_PAGE))
            .bind(at)
            .bind(id);
        let page = page.fetch_all(&mut *conn).await.map_err(failed(operation))?;
        for row in &page {
            keys.push(Key::of(row)?);
            sizes.push(usize::try_from(row.cell::<i64>("messages")?).unwrap_or(usize::MAX));
        }
        let fit = latest_that_fit(sizes.iter().copied(), limit);
        if fit < keys.len() || page.len() < HISTORY_PAGE {
            keys.truncate(fit);
            return Ok(keys);
        }
    }
}

const NEWEST: &str = "SELECT k.at, k.id, k.content FROM memory_episodes AS k WHERE k.partition = ?1 \
                      ORDER BY k.at DESC, k.id DESC LIMIT ?2";

async fn newest(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
    hidden: &HashSet<u128>,
    limit: usize,
) -> Result<Vec<(Key, Scored)>> {
    let rows = sqlx::query(filter.sql(NEWEST))
        .bind(schema::partition(scope))
        .bind(schema::number(limit.saturating_add(hidden.len())));
    let rows = rows.fetch_all(conn).await.map_err(failed("recall"))?;
    let keys = rows.iter().map(Key::of).collect::<Result<Vec<Key>>>()?;
    let unscored = |key: Key| {
        let scored = Scored { index: 0, at: key.at, id: key.id, bm25: None, cosine: None, score: 0.0 };
        (key, scored)
    };
    Ok(keys.into_iter().filter(|key| !hidden.contains(&key.id)).take(limit).map(unscored).collect())
}

const SCAN_WORDS: &str = "SELECT k.at, k.id, k.content, t.terms, NULL AS vector FROM memory_episodes AS k \
                          CROSS JOIN memory_episode_texts AS t ON t.content = k.content WHERE k.partition = ?1";
const SCAN_VECTORS: &str = "SELECT k.at, k.id, k.content, x'' AS terms, t.vector FROM memory_episodes AS k \
                            CROSS JOIN memory_episode_texts AS t ON t.content = k.content WHERE k.partition = ?1";
const SCAN_BOTH: &str = "SELECT k.at, k.id, k.content, t.terms, t.vector FROM memory_episodes AS k \
                         CROSS JOIN memory_episode_texts AS t ON t.content = k.content WHERE k.partition = ?1";

/// One pass over the partition.
async fn pass(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
    terms: QueryTerms,
    vector: Option<&Embedding>,
    hidden: &HashSet<u128>,
) -> Result<Pass<Key>> {
    let mut pass = Pass::new(terms);
    let probe = vector.map(Probe::new);
    let scan = match (pass.has_words(), &probe) {
        (true, None) => SCAN_WORDS,
        (false, _) => SCAN_VECTORS,
        (true, Some(_)) => SCAN_BOTH,
    };
    let mut rows = sqlx::query(filter.sql(scan)).bind(schema::partition(scope)).fetch(conn);
    while let Some(row) = rows.try_next().await.map_err(failed("recall"))? {
        let cosine = cosine(probe.as_ref(), &row)?;
        let found = || {
            let key = Key::of(&row)?;
            Ok(Found { at: key.at, id: key.id, cosine, hidden: hidden.contains(&key.id), value: key })
        };
        pass.see(row.cell("terms")?, cosine, found).await?;
    }
    Ok(pass)
}

/// The cosine of a row's vector with the query's, if both have one.
pub(crate) fn cosine(probe: Option<&Probe<'_>>, row: &SqliteRow) -> Result<Option<f32>> {
    let Some(probe) = probe else { return Ok(None) };
    let vector = row.cell::<Option<&[u8]>>("vector")?;
    Ok(vector.and_then(|bytes| probe.cosine_of(&rank::vector_from_bytes(bytes))))
}

const TEXTS: &str = "SELECT t.namespace, t.user_id, t.session, t.messages, t.vector, \
                     (SELECT model FROM memory_partitions AS p WHERE p.partition = t.partition) AS model \
                     FROM json_each(?2) AS wanted CROSS JOIN memory_episode_texts AS t ON t.content = wanted.value \
                     WHERE t.partition = ?1 ORDER BY wanted.key";

/// The episodes that `keys` name, in that order, each with the owner that its row says.
pub(crate) async fn texts(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
    keys: &[Key],
    operation: &'static str,
) -> Result<Vec<(Owner, Episode)>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(filter.sql(TEXTS))
        .bind(schema::partition(scope))
        .bind(schema::list(keys.iter().map(|key| key.content)));
    let rows = rows.fetch_all(conn).await.map_err(failed(operation))?;
    if rows.len() != keys.len() {
        return Err(schema::damaged("content"));
    }
    let mut last = None;
    rows.iter().zip(keys).map(|(row, key)| Ok((row.owner(&mut last)?, episode(row, *key)?))).collect()
}

pub(crate) fn episode(row: &SqliteRow, key: Key) -> Result<Episode> {
    let unreadable = |_| schema::damaged("messages");
    let messages: Arc<[Message]> = serde_json::from_str(row.cell("messages")?).map_err(unreadable)?;
    let session = SessionId::new(row.cell::<&str>("session")?)?;
    // The run of an id is the id.
    let run = loomflow_core::RunId::from_u128(key.id);
    let mut episode = Episode::from(NewEpisode::new(run, session, key.at, messages));
    episode.embedding = embedding(row)?;
    Ok(episode)
}

/// The vector of a row that has the partition's model beside it.
pub(crate) fn embedding(row: &SqliteRow) -> Result<Option<Embedding>> {
    let (model, vector) = (row.cell::<Option<&str>>("model")?, row.cell::<Option<&[u8]>>("vector")?);
    Ok(model.zip(vector).map(|(model, bytes)| Embedding::new(model, rank::vector_from_bytes(bytes))))
}

/// Whether a query's vector can be one.
pub(crate) fn check_query(query: &RecallQuery) -> Result<()> {
    rules::check_embedding(query.embedding.as_ref(), "recall")
}
