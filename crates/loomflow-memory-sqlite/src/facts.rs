//! Facts on their two time axes. Rules decide; this reads the rows they need and writes what they say.

use futures_util::TryStreamExt as _;
use loomflow_core::rules::facts::{Plan, check, plan};
use loomflow_core::rules::rank::{self, Probe};
use loomflow_core::rules::words::{self, QueryTerms};
use loomflow_core::rules::{self, Space};
use loomflow_core::{
    AssertOutcome, Asserted, Embedding, EpisodeId, Fact, FactId, FactQuery, NewFact, Owner, Result, Scope,
    Timestamp,
};
use loomflow_support_sql::sqlite::failed;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};

use crate::episodes::cosine;
use crate::scan::{Found, Pass};
use crate::schema::{self, Author, Columns as _, Filter};

const ASSERT: &str = "assert";

/// A fact as it is written.
#[derive(Debug)]
pub(crate) struct NewRow {
    pub(crate) author: Author,
    pub(crate) fact: NewFact,
}

/// A row that is there.
struct Row {
    fact: Fact,
    content: i64,
    has_vector: bool,
}

const BELIEVED: &str = "SELECT k.id, k.content, k.confidence, k.valid_from, k.valid_until, k.known_from, k.known_until, k.sources, \
                        t.namespace, t.user_id, t.subject, t.predicate, t.object, t.vector IS NOT NULL AS has_vector FROM memory_facts AS k \
                        CROSS JOIN memory_fact_texts AS t ON t.content = k.content \
                        WHERE k.partition = ?1 AND k.topic = ?2 AND k.known_until IS NULL AND t.subject = ?3 AND t.predicate = ?4";
const LAST_KNOWN: &str = "SELECT max(known_from) FROM memory_facts WHERE partition = ?1";

/// Asserts a fact, with everything it ends.
pub(crate) async fn assert(conn: &mut SqliteConnection, new: &NewRow) -> Result<Asserted> {
    let NewRow { author, fact: new } = new;
    let entered = schema::enter(conn, author, &[], ASSERT).await?;
    check(new)?;
    let vector = new.embedding.as_ref();
    schema::check_vector(&entered, vector, ASSERT)?;
    let rows = believed(conn, author, new).await?;
    let facts: Vec<&Fact> = rows.iter().map(|row| &row.fact).collect();
    let newest = sqlx::query_scalar::<_, Option<i64>>(LAST_KNOWN).bind(&author.partition[..]);
    let newest = newest.fetch_one(&mut *conn).await.map_err(failed(ASSERT))?;
    let asserted = match plan(new, &facts, newest.map(Timestamp::from_micros)) {
        Plan::Reinforce { row, confidence, sources } => {
            reinforce(conn, author, &rows[row], confidence, &sources, vector).await?;
            Asserted::new(rows[row].fact.id, AssertOutcome::Reinforced, Vec::new())
        }
        Plan::Write { fact, ended, rests } => {
            for row in &ended {
                end(conn, author, &rows[*row].fact, fact.known_from).await?;
            }
            let content = insert_text(conn, author, &fact, vector).await?;
            insert(conn, author, &fact, content).await?;
            for (row, rest) in &rests {
                let content = copy_text(conn, rows[*row].content).await?;
                insert(conn, author, rest, content).await?;
            }
            let superseded = ended.into_iter().map(|row| rows[row].fact.id).collect();
            Asserted::new(fact.id, AssertOutcome::New, superseded)
        }
    };
    schema::settle_space(conn, author, &entered, vector, ASSERT).await?;
    Ok(asserted)
}

async fn believed(conn: &mut SqliteConnection, author: &Author, new: &NewFact) -> Result<Vec<Row>> {
    let rows = sqlx::query(BELIEVED)
        .bind(&author.partition[..])
        .bind(schema::topic_key(&new.subject, &new.predicate))
        .bind(&*new.subject)
        .bind(&*new.predicate);
    let rows = rows.fetch_all(conn).await.map_err(failed(ASSERT))?;
    let row = |row: &SqliteRow| {
        author.check(row, ASSERT)?;
        Ok(Row { fact: fact(row)?, content: row.cell("content")?, has_vector: row.cell("has_vector")? })
    };
    rows.iter().map(row).collect()
}

const REINFORCE: &str = "UPDATE memory_facts SET confidence = ?4, sources = ?5, content = ?6 \
                         WHERE partition = ?1 AND known_from = ?2 AND id = ?3";

async fn reinforce(
    conn: &mut SqliteConnection,
    author: &Author,
    row: &Row,
    confidence: u8,
    sources: &[EpisodeId],
    vector: Option<&Embedding>,
) -> Result<()> {
    let mut content = row.content;
    if !row.has_vector && vector.is_some() {
        // A text that grows would have to move: it is written anew instead.
        content = insert_text(conn, author, &row.fact, vector).await?;
        blank(conn, &schema::list([row.content]), ASSERT).await?;
    }
    let update = sqlx::query(REINFORCE)
        .bind(&author.partition[..])
        .bind(row.fact.known_from.as_micros())
        .bind(id_bytes(row.fact.id))
        .bind(i64::from(confidence))
        .bind(source_bytes(sources))
        .bind(content);
    update.execute(conn).await.map(drop).map_err(failed(ASSERT))
}

const END: &str =
    "UPDATE memory_facts SET known_until = ?4 WHERE partition = ?1 AND known_from = ?2 AND id = ?3";

async fn end(conn: &mut SqliteConnection, author: &Author, fact: &Fact, at: Timestamp) -> Result<()> {
    let update = sqlx::query(END)
        .bind(&author.partition[..])
        .bind(fact.known_from.as_micros())
        .bind(id_bytes(fact.id))
        .bind(at.as_micros());
    update.execute(conn).await.map(drop).map_err(failed(ASSERT))
}

const INSERT_TEXT: &str = "INSERT INTO memory_fact_texts (partition, namespace, user_id, subject, predicate, object, terms, vector) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

async fn insert_text(
    conn: &mut SqliteConnection,
    author: &Author,
    fact: &Fact,
    vector: Option<&Embedding>,
) -> Result<i64> {
    let insert = sqlx::query(INSERT_TEXT)
        .bind(&author.partition[..])
        .bind(author.namespace())
        .bind(author.user_id())
        .bind(&*fact.subject)
        .bind(&*fact.predicate)
        .bind(&*fact.object)
        .bind(words::to_bytes(&words::of_fact(fact)))
        .bind(vector.map(|e| rank::vector_to_bytes(&e.vector)));
    insert.execute(conn).await.map(|done| done.last_insert_rowid()).map_err(failed(ASSERT))
}

const COPY_TEXT: &str = "INSERT INTO memory_fact_texts (partition, namespace, user_id, subject, predicate, object, terms, vector) \
     SELECT partition, namespace, user_id, subject, predicate, object, terms, vector FROM memory_fact_texts WHERE content = ?1";

async fn copy_text(conn: &mut SqliteConnection, content: i64) -> Result<i64> {
    let copy = sqlx::query(COPY_TEXT).bind(content);
    copy.execute(conn).await.map(|done| done.last_insert_rowid()).map_err(failed(ASSERT))
}

const INSERT: &str = "INSERT INTO memory_facts (partition, known_from, id, content, topic, confidence, valid_from, valid_until, \
                      known_until, sources) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

async fn insert(conn: &mut SqliteConnection, author: &Author, fact: &Fact, content: i64) -> Result<()> {
    let insert = sqlx::query(INSERT)
        .bind(&author.partition[..])
        .bind(fact.known_from.as_micros())
        .bind(id_bytes(fact.id))
        .bind(content)
        .bind(schema::topic_key(&fact.subject, &fact.predicate))
        .bind(i64::from(fact.confidence))
        .bind(fact.valid_from.as_micros())
        .bind(fact.valid_until.map(Timestamp::as_micros))
        .bind(fact.known_until.map(Timestamp::as_micros))
        .bind(source_bytes(&fact.sources));
    insert.execute(conn).await.map(drop).map_err(failed(ASSERT))
}

const MATCHING: &str = "SELECT k.id, k.content, k.confidence, k.valid_from, k.valid_until, k.known_from, k.known_until, k.sources, \
     t.namespace, t.user_id, t.subject, t.predicate, t.object, t.terms, CASE WHEN ?7 THEN t.vector END AS vector \
     FROM memory_facts AS k CROSS JOIN memory_fact_texts AS t ON t.content = k.content \
     WHERE k.partition = ?1 AND (?2 IS NULL OR (k.valid_from <= ?2 AND (k.valid_until IS NULL OR ?2 < k.valid_until))) \
     AND ((?3 IS NULL AND k.known_until IS NULL) OR (k.known_from <= ?3 AND (k.known_until IS NULL OR ?3 < k.known_until))) \
     AND (?4 IS NULL OR t.subject = ?4) AND (?5 IS NULL OR t.predicate = ?5) AND (?6 IS NULL OR t.object = ?6) \
     ORDER BY k.known_from DESC, k.id DESC LIMIT ?8";

/// The facts that match, each with the owner that its row says.
pub(crate) async fn query(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
    query: &FactQuery,
) -> Result<Vec<(Owner, Fact)>> {
    const OPERATION: &str = "query";
    if query.embedding.is_some() {
        let (_, space) = schema::state(conn, &schema::partition(scope), OPERATION).await?;
        Space::check(space.as_ref(), query.embedding.as_ref(), OPERATION)?;
    }
    if query.limit == 0 {
        return Ok(Vec::new());
    }
    let mut pass = Pass::new(QueryTerms::parse(query.text.as_deref().unwrap_or_default()));
    let probe = query.embedding.as_ref().map(Probe::new);
    let plain = !pass.has_words() && probe.is_none();
    // Without words the newest are wanted; with them all have to be looked at.
    let limit = if plain { schema::number(query.limit) } else { -1 };
    let mut rows = matching(filter, scope, query, probe.is_some(), limit).fetch(conn);
    let (mut last, mut newest) = (None, Vec::new());
    while let Some(row) = rows.try_next().await.map_err(failed(OPERATION))? {
        if plain {
            newest.push(owned(&row, &mut last)?);
            continue;
        }
        let cosine = cosine(probe.as_ref(), &row)?;
        let found = || {
            let (owner, fact) = owned(&row, &mut last)?;
            let (at, id) = (fact.known_from, fact.id.as_u128());
            Ok(Found { at, id, cosine, hidden: false, value: (owner, fact) })
        };
        pass.see(row.cell("terms")?, cosine, found).await?;
    }
    if plain {
        return Ok(newest);
    }
    Ok(pass.rank(query.limit).await?.into_iter().map(|(fact, _)| fact).collect())
}

fn matching(
    filter: Filter,
    scope: &Scope,
    query: &FactQuery,
    vectors: bool,
    limit: i64,
) -> Query<'static, Sqlite, SqliteArguments> {
    sqlx::query(filter.sql(MATCHING))
        .bind(schema::partition(scope))
        .bind(query.valid_at.map(Timestamp::as_micros))
        .bind(query.known_at.map(Timestamp::as_micros))
        .bind(query.subject.as_deref().map(str::to_owned))
        .bind(query.predicate.as_deref().map(str::to_owned))
        .bind(query.object.as_deref().map(str::to_owned))
        .bind(vectors)
        .bind(limit)
}

/// The fact of a row.
pub(crate) fn fact(row: &SqliteRow) -> Result<Fact> {
    let text = |name| row.cell::<&str>(name);
    let new = NewFact::new(text("subject")?, "", text("object")?, row.time("known_from")?)
        .with_validity(row.time("valid_from")?, row.time_if_any("valid_until")?)
        .with_sources(sources(row.cell("sources")?));
    let mut fact = Fact::from_new(FactId::from_u128(row.id("id")?), &new);
    // As it was stored: it need not have been in canonical form.
    fact.predicate = text("predicate")?.into();
    fact.confidence =
        u8::try_from(row.cell::<i64>("confidence")?).map_err(|_| schema::damaged("confidence"))?;
    fact.known_until = row.time_if_any("known_until")?;
    Ok(fact)
}

/// The owner and the fact of a row.
pub(crate) fn owned(row: &SqliteRow, last: &mut Option<Owner>) -> Result<(Owner, Fact)> {
    Ok((row.owner(last)?, fact(row)?))
}

const BLANK: &str = "UPDATE memory_fact_texts SET partition = x'', namespace = '', user_id = NULL, subject = '', predicate = '', \
                     object = '', terms = x'', vector = NULL WHERE content IN (SELECT value FROM json_each(?1))";

/// Overwrites texts where they lie.
pub(crate) async fn blank(
    conn: &mut SqliteConnection,
    contents: &str,
    operation: &'static str,
) -> Result<()> {
    sqlx::query(BLANK).bind(contents).execute(conn).await.map(drop).map_err(failed(operation))
}

fn id_bytes(id: FactId) -> Vec<u8> {
    id.as_u128().to_be_bytes().to_vec()
}

/// Sources as a column has them: sixteen bytes each.
pub(crate) fn source_bytes(sources: &[EpisodeId]) -> Vec<u8> {
    sources.iter().flat_map(|id| id.as_u128().to_be_bytes()).collect()
}

/// Sources as they were written.
pub(crate) fn sources(bytes: &[u8]) -> Vec<EpisodeId> {
    bytes.as_chunks().0.iter().map(|id| EpisodeId::from_u128(u128::from_be_bytes(*id))).collect()
}

/// Whether a query's vector can be one.
pub(crate) fn check_query(query: &FactQuery) -> Result<()> {
    rules::check_embedding(query.embedding.as_ref(), "query")
}
