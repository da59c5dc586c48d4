//! Recall: the server finds the rows of the partition that match and computes their cosines, the contract's arithmetic
//! ranks them here, and the winners are fetched.
//!
//! The scan is over the partition's own rows and is exact, so nobody's rows can crowd out another's. A partition that is
//! so large that it has an approximate index of its own is searched by that index, for vectors alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use loomflow_core::rules::Space;
use loomflow_core::rules::rank::{self, Candidate, Scored};
use loomflow_core::rules::words::{Corpus, QueryTerms};
use loomflow_core::{Embedding, EpisodeMatch, Owned, RecallQuery, Result, Scope, Timestamp};
use loomflow_support_sql::postgres::{Access, Transaction, failed};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::PostgresMemory;
use crate::episodes::count;
use crate::maintain::indexed_column;
use crate::rows::Read;
use crate::schema::{Key, VectorColumns, id_column, signed, space, unsigned};

const PARTITION: &str = "
SELECT space_model, space_dimensions, indexed FROM memory_partitions WHERE partition = $1";

/// What history would replay: the running sum of messages, newest episode first, is within the limit.
const HIDDEN: &str = "
SELECT id FROM (
  SELECT id, sum(message_count) OVER (ORDER BY said_at DESC, id DESC) AS used
  FROM memory_episodes WHERE partition = $1 AND session = $2
) latest WHERE used <= $3";

const NEWEST: &str = "
SELECT id, said_at FROM memory_episodes WHERE partition = $1 AND id <> ALL($2::bytea[])
ORDER BY said_at DESC, id DESC LIMIT $3";

/// The rows that match by word or by vector, with the statistics of all. A cosine is computed once a row, which is what
/// OFFSET 0 is for; one that is not a number is greater than everything.
const MATCHING: &str = "
SELECT id, said_at, CASE WHEN worded THEN terms END AS terms, cosine,
  (SELECT count(*) FROM memory_episodes WHERE partition = $1) AS documents,
  (SELECT sum(term_count) FROM memory_episodes WHERE partition = $1)::bigint AS total
FROM (
  SELECT id, said_at, terms, terms && $2::bigint[] AS worded,
    (1 - (embedding <=> $3::real[]::vector))::real AS cosine
  FROM memory_episodes WHERE partition = $1 AND ($4 OR terms && $2::bigint[]) OFFSET 0
) scanned WHERE worded OR (cosine > 0 AND cosine <= 2)";

const BY_ID: &str = "
SELECT namespace, user_id, id, session, said_at, messages, embedding::real[] AS embedding,
  (SELECT space_model FROM memory_partitions WHERE partition = $1 LIMIT 1) AS space_model
FROM memory_episodes WHERE partition = $1 AND id = ANY($2::bytea[])";

/// What a partition's row says of its vectors.
pub(crate) struct Partition {
    space: Option<Space>,
    indexed: bool,
}

/// Refuses a vector that cannot be compared with those of the partition.
pub(crate) fn check_space(
    partition: Option<&Partition>,
    embedding: Option<&Embedding>,
    operation: &'static str,
) -> Result<()> {
    Space::check(partition.and_then(|p| p.space.as_ref()), embedding, operation)
}

/// A row that matches.
struct Matching {
    at: Timestamp,
    id: u128,
    terms: Vec<u64>,
    cosine: Option<f32>,
}

impl PostgresMemory {
    pub(crate) async fn find_episodes(
        &self,
        scope: &Scope,
        query: &RecallQuery,
    ) -> Result<Vec<Owned<EpisodeMatch>>> {
        let mut tx = self.begin(scope, Access::Read, "recall").await?;
        match self.find_episodes_in(&mut tx, scope, query).await {
            Ok(found) => tx.commit().await.map(|()| found),
            Err(e) => Err(tx.refuse(e).await),
        }
    }

    async fn find_episodes_in(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        query: &RecallQuery,
    ) -> Result<Vec<Owned<EpisodeMatch>>> {
        let mut indexed = false;
        if query.embedding.is_some() {
            let partition = self.read_partition(tx, scope, "recall").await?;
            check_space(partition.as_ref(), query.embedding.as_ref(), "recall")?;
            indexed = partition.is_some_and(|p| p.indexed);
        }
        if query.limit == 0 {
            return Ok(Vec::new());
        }
        let hidden = self.hidden(tx, scope, query).await?;
        let terms = QueryTerms::parse(&query.text);
        let best = if terms.is_empty() && query.embedding.is_none() {
            self.newest(tx, scope, &hidden, query.limit).await?
        } else {
            let (mut found, corpus) = self.matching(tx, scope, query, &terms, !indexed).await?;
            if indexed {
                self.add_nearest(tx, scope, query, &hidden, &mut found).await?;
            }
            let candidates: Vec<Candidate<'_>> = found
                .iter()
                .map(|m| Candidate {
                    at: m.at,
                    id: m.id,
                    terms: &m.terms,
                    cosine: m.cosine,
                    hidden: hidden.contains(&m.id),
                })
                .collect();
            rank::rank(&terms, corpus, &candidates, query.limit)
        };
        self.episodes_by_id(tx, scope, &best).await
    }

    pub(crate) async fn read_partition(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        operation: &'static str,
    ) -> Result<Option<Partition>> {
        let row = sqlx::query(self.reads().sql(PARTITION))
            .bind(Key::of(scope).partition)
            .fetch_optional(tx.conn())
            .await
            .map_err(failed(operation))?;
        row.map(|row| {
            let row = Read { row: &row, operation };
            let space = space(row.get("space_model")?, row.get("space_dimensions")?);
            Ok(Partition { space, indexed: row.get("indexed")? })
        })
        .transpose()
    }

    /// The episodes that the prompt has already.
    async fn hidden(&self, tx: &mut Transaction, scope: &Scope, query: &RecallQuery) -> Result<Vec<u128>> {
        let Some((session, limit)) = &query.exclude_history else { return Ok(Vec::new()) };
        let rows = sqlx::query(self.reads().sql(HIDDEN))
            .bind(Key::of(scope).partition)
            .bind(session.as_str())
            .bind(count(limit.messages))
            .fetch_all(tx.conn())
            .await
            .map_err(failed("recall"))?;
        rows.iter().map(|row| Read { row, operation: "recall" }.id("id")).collect()
    }

    async fn newest(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        hidden: &[u128],
        limit: usize,
    ) -> Result<Vec<Scored>> {
        let rows = sqlx::query(self.reads().sql(NEWEST))
            .bind(Key::of(scope).partition)
            .bind(hidden.iter().map(|id| id_column(*id)).collect::<Vec<_>>())
            .bind(count(limit))
            .fetch_all(tx.conn())
            .await
            .map_err(failed("recall"))?;
        rows.iter()
            .map(|row| {
                let row = Read { row, operation: "recall" };
                let (at, id) = (row.at("said_at")?, row.id("id")?);
                Ok(Scored { index: 0, at, id, bm25: None, cosine: None, score: 0.0 })
            })
            .collect()
    }

    /// The rows that match, exactly: by words, and by vector as well when `scan_vectors` says so.
    async fn matching(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        query: &RecallQuery,
        terms: &QueryTerms,
        scan_vectors: bool,
    ) -> Result<(Vec<Matching>, Corpus)> {
        let mut corpus = Corpus::default();
        if terms.is_empty() && !scan_vectors {
            return Ok((Vec::new(), corpus));
        }
        let rows = sqlx::query(self.reads().sql(MATCHING))
            .bind(Key::of(scope).partition)
            .bind(signed(&terms.by_column()))
            .bind(VectorColumns::of(query.embedding.as_ref()).components)
            .bind(scan_vectors && query.embedding.is_some())
            .fetch_all(tx.conn())
            .await
            .map_err(failed("recall"))?;
        if let Some(row) = rows.first() {
            let row = Read { row, operation: "recall" };
            corpus.documents = usize::try_from(row.get::<i64>("documents")?).unwrap_or(0);
            corpus.terms = row.get::<i64>("total")?.unsigned_abs();
        }
        Ok((rows.iter().map(matching).collect::<Result<_>>()?, corpus))
    }

    /// Adds what the partition's own index finds nearest. Its predicate and its dimensions have to stand in the statement.
    async fn add_nearest(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        query: &RecallQuery,
        hidden: &[u128],
        found: &mut Vec<Matching>,
    ) -> Result<()> {
        let Some(embedding) = &query.embedding else { return Ok(()) };
        let wanted = query.limit.saturating_mul(4).clamp(100, i32::MAX as usize);
        // The index is searched in steps of at most 1,000, and on until so many that are not hidden were found.
        let step = wanted.min(1_000);
        let most = wanted.saturating_add(hidden.len()).saturating_mul(2).clamp(20_000, i32::MAX as usize);
        let column = indexed_column(embedding.vector.len());
        let set = format!(
            "SET LOCAL hnsw.iterative_scan TO strict_order; SET LOCAL hnsw.ef_search TO {step}; \
                     SET LOCAL hnsw.max_scan_tuples TO {most}"
        );
        tx.conn().execute(sqlx::raw_sql(AssertSqlSafe(set))).await.map_err(failed("recall"))?;
        let sql = format!(
            "SELECT id, said_at, NULL::bigint[] AS terms, (1 - ({column} <=> $1::real[]::{kind}))::real AS cosine \
             FROM memory_episodes WHERE {rows} AND id <> ALL($2::bytea[]) ORDER BY {column} <=> $1::real[]::{kind} LIMIT {wanted}",
            kind = column.kind(),
            rows = column.rows(&scope.owner().partition_hex()),
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(&*embedding.vector)
            .bind(hidden.iter().map(|id| id_column(*id)).collect::<Vec<_>>())
            .fetch_all(tx.conn())
            .await
            .map_err(failed("recall"))?;
        let known: HashSet<u128> = found.iter().map(|m| m.id).collect();
        for row in &rows {
            let near = matching(row)?;
            let positive = near.cosine.is_some_and(|cosine| cosine > 0.0 && cosine <= 2.0);
            if positive && !known.contains(&near.id) {
                found.push(near);
            }
        }
        Ok(())
    }

    async fn episodes_by_id(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        best: &[Scored],
    ) -> Result<Vec<Owned<EpisodeMatch>>> {
        if best.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(self.reads().sql(BY_ID))
            .bind(Key::of(scope).partition)
            .bind(best.iter().map(|found| id_column(found.id)).collect::<Vec<_>>())
            .fetch_all(tx.conn())
            .await
            .map_err(failed("recall"))?;
        let places: HashMap<u128, usize> =
            best.iter().enumerate().map(|(at, found)| (found.id, at)).collect();
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let row = Read { row, operation: "recall" };
            let Some(place) = places.get(&row.id("id")?) else { continue };
            let scored = &best[*place];
            let matched = EpisodeMatch::new(Arc::new(row.episode()?), scored.score);
            let matched = matched.with_scores(scored.bm25, scored.cosine);
            found.push((*place, Owned::new(row.owner()?, matched)));
        }
        found.sort_by_key(|(place, _)| *place);
        Ok(found.into_iter().map(|(_, matched)| matched).collect())
    }
}

fn matching(row: &PgRow) -> Result<Matching> {
    let row = Read { row, operation: "recall" };
    let terms = row.get::<Option<Vec<i64>>>("terms")?.unwrap_or_default();
    Ok(Matching {
        at: row.at("said_at")?,
        id: row.id("id")?,
        terms: unsigned(&terms),
        cosine: row.get("cosine")?,
    })
}
