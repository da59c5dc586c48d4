//! Facts: assertion, and queries.

use std::collections::HashMap;

use loomflow_core::rules::facts::{Plan, check, plan};
use loomflow_core::rules::rank::{self, Candidate};
use loomflow_core::rules::words::{self, Corpus, QueryTerms};
use loomflow_core::rules::{PROFILE_SAMPLES, Space, check_embedding};
use loomflow_core::{
    AssertOutcome, Asserted, Epoch, Fact, FactQuery, NewFact, Owned, Result, Scope, Timestamp,
};
use loomflow_support_sql::postgres::{Access, Transaction, failed};
use sqlx::postgres::PgRow;

use crate::PostgresMemory;
use crate::episodes::count;
use crate::recall::check_space;
use crate::rows::Read;
use crate::schema::{Key, VectorColumns, id_column, signed, space, unsigned};

/// Everything that an assertion depends on: always one row at least, and one for each fact that is believed.
const BELIEVED: &str = "
SELECT p.epoch, p.space_model, p.space_dimensions, f.*,
  (SELECT max(known_from) FROM memory_facts WHERE partition = $1) AS newest
FROM (SELECT) one LEFT JOIN (
  SELECT epoch, space_model, space_dimensions FROM memory_partitions WHERE partition = $1
) p ON true LEFT JOIN (
  SELECT id, namespace, user_id, subject, predicate, object, confidence, valid_from, valid_until, known_from,
    known_until, sources
  FROM memory_facts
  WHERE partition = $1 AND key = $2 AND known_until IS NULL AND subject = $3 AND predicate = $4
) f ON true";

/// Makes the partition, or gives it the space of its first vector.
const PARTITION: &str = "
INSERT INTO memory_partitions (partition, namespace, user_id, space_model, space_dimensions)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (partition) DO UPDATE
SET namespace = excluded.namespace, user_id = excluded.user_id,
  space_model = coalesce(memory_partitions.space_model, excluded.space_model),
  space_dimensions = coalesce(memory_partitions.space_dimensions, excluded.space_dimensions)
WHERE memory_partitions.namespace = ''
  OR (memory_partitions.space_model IS NULL AND excluded.space_model IS NOT NULL)";

const REINFORCE: &str = "
UPDATE memory_facts SET confidence = $3, sources = $4, embedding = coalesce(embedding, $5::real[]::vector)
WHERE partition = $1 AND id = $2";

const END: &str = "UPDATE memory_facts SET known_until = $2 WHERE partition = $1 AND id = ANY($3::bytea[])";

/// What is left of ended rows: copies with another id and another validity.
const REST: &str = "
INSERT INTO memory_facts (partition, namespace, user_id, id, subject, predicate, object, key, confidence, valid_from,
  valid_until, known_from, sources, term_count, terms, embedding)
SELECT f.partition, f.namespace, f.user_id, r.id, f.subject, f.predicate, f.object, f.key, f.confidence, r.valid_from,
  r.valid_until, $2, f.sources, f.term_count, f.terms, f.embedding
FROM unnest($3::bytea[], $4::bytea[], $5::bigint[], $6::bigint[]) r(id, old, valid_from, valid_until)
JOIN memory_facts f ON f.partition = $1 AND f.id = r.old";

const INSERT: &str = "
INSERT INTO memory_facts (partition, namespace, user_id, id, subject, predicate, object, key, confidence, valid_from,
  valid_until, known_from, sources, term_count, terms, embedding)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, cardinality($14::bigint[]), $14,
  $15::real[]::vector)";

const NEWEST: &str = "
SELECT namespace, user_id, id, subject, predicate, object, confidence, valid_from, valid_until, known_from,
  known_until, sources
FROM memory_facts
WHERE partition = $1
  AND CASE WHEN $2::bigint IS NULL THEN known_until IS NULL
      ELSE known_from <= $2 AND (known_until IS NULL OR $2 < known_until) END
  AND ($3::bigint IS NULL OR (valid_from <= $3 AND (valid_until IS NULL OR $3 < valid_until)))
  AND ($4::bytea IS NULL OR subject = $4) AND ($5::bytea IS NULL OR predicate = $5)
  AND ($6::bytea IS NULL OR object = $6)
ORDER BY known_from DESC, id DESC LIMIT $7";

/// The rows that pass the filters and match by word or by vector, with the statistics of those that pass. A cosine is
/// computed once a row, which is what OFFSET 0 is for; one that is not a number is greater than everything.
const MATCHING: &str = "
SELECT id, known_from, CASE WHEN worded THEN terms END AS terms, cosine, documents, total FROM (
  SELECT id, known_from, terms, terms && $7::bigint[] AS worded,
    (1 - (embedding <=> $8::real[]::vector))::real AS cosine,
    count(*) OVER () AS documents, (sum(term_count) OVER ())::bigint AS total
  FROM memory_facts
  WHERE partition = $1
    AND CASE WHEN $2::bigint IS NULL THEN known_until IS NULL
        ELSE known_from <= $2 AND (known_until IS NULL OR $2 < known_until) END
    AND ($3::bigint IS NULL OR (valid_from <= $3 AND (valid_until IS NULL OR $3 < valid_until)))
    AND ($4::bytea IS NULL OR subject = $4) AND ($5::bytea IS NULL OR predicate = $5)
    AND ($6::bytea IS NULL OR object = $6)
  OFFSET 0
) passing WHERE worded OR (cosine > 0 AND cosine <= 2)";

const BY_ID: &str = "
SELECT namespace, user_id, id, subject, predicate, object, confidence, valid_from, valid_until, known_from,
  known_until, sources
FROM memory_facts WHERE partition = $1 AND id = ANY($2::bytea[])";

impl PostgresMemory {
    pub(crate) async fn write_fact(&self, scope: &Scope, new: &NewFact) -> Result<Asserted> {
        let mut tx = self.begin(scope, Access::Exclusive, "assert").await?;
        match self.assert_alone(&mut tx, scope, new).await {
            Ok(asserted) => tx.commit().await.map(|()| asserted),
            Err(e) => Err(tx.refuse(e).await),
        }
    }

    /// Asserts while nobody else writes the partition.
    async fn assert_alone(&self, tx: &mut Transaction, scope: &Scope, new: &NewFact) -> Result<Asserted> {
        const OPERATION: &str = "assert";
        let key = Key::of(scope);
        let pair = words::pair(&new.subject, &new.predicate).cast_signed();
        let rows = sqlx::query(BELIEVED)
            .bind(key.partition)
            .bind(pair)
            .bind(new.subject.as_bytes())
            .bind(new.predicate.as_bytes())
            .fetch_all(tx.conn())
            .await
            .map_err(failed(OPERATION))?;
        let (mut epoch, mut newest, mut stored, mut believed) = (0, None, None, Vec::new());
        for row in &rows {
            let row = Read { row, operation: OPERATION };
            epoch = row.get::<Option<i64>>("epoch")?.unwrap_or(0);
            newest = row.maybe_at("newest")?;
            stored = space(row.get("space_model")?, row.get("space_dimensions")?);
            if row.get::<Option<&[u8]>>("id")?.is_some() {
                believed.push(row.owned(Read::fact)?.open(scope)?);
            }
        }
        scope.check_epoch(Epoch::new(epoch.unsigned_abs()), OPERATION)?;
        check(new)?;
        check_embedding(new.embedding.as_ref(), OPERATION)?;
        Space::check(stored.as_ref(), new.embedding.as_ref(), OPERATION)?;
        let vector = VectorColumns::of(new.embedding.as_ref());
        sqlx::query(PARTITION)
            .bind(key.partition)
            .bind(key.namespace)
            .bind(key.user_id)
            .bind(vector.model)
            .bind(vector.dimensions)
            .execute(tx.conn())
            .await
            .map_err(failed(OPERATION))?;
        let facts: Vec<&Fact> = believed.iter().collect();
        match plan(new, &facts, newest) {
            Plan::Reinforce { row, confidence, sources } => {
                let id = believed[row].id;
                sqlx::query(REINFORCE)
                    .bind(key.partition)
                    .bind(id_column(id.as_u128()))
                    .bind(i16::from(confidence))
                    .bind(sources.iter().map(|id| id_column(id.as_u128())).collect::<Vec<_>>())
                    .bind(vector.components)
                    .execute(tx.conn())
                    .await
                    .map_err(failed(OPERATION))?;
                Ok(Asserted::new(id, AssertOutcome::Reinforced, Vec::new()))
            }
            Plan::Write { fact, ended, rests } => {
                let rests = rests.iter().map(|(row, rest)| (&believed[*row], rest)).collect::<Vec<_>>();
                let ended: Vec<&Fact> = ended.into_iter().map(|row| &believed[row]).collect();
                supersede(tx, &key, fact.known_from, &ended, &rests).await?;
                insert(tx, &key, pair, &fact, vector).await?;
                let superseded = ended.iter().map(|fact| fact.id).collect();
                Ok(Asserted::new(fact.id, AssertOutcome::New, superseded))
            }
        }
    }

    pub(crate) async fn find_facts(&self, scope: &Scope, query: &FactQuery) -> Result<Vec<Owned<Fact>>> {
        let mut tx = self.begin(scope, Access::Read, "query").await?;
        let found = self.find_facts_in(&mut tx, scope, query).await;
        match found {
            Ok(found) => tx.commit().await.map(|()| found),
            Err(e) => Err(tx.refuse(e).await),
        }
    }

    async fn find_facts_in(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        query: &FactQuery,
    ) -> Result<Vec<Owned<Fact>>> {
        if query.embedding.is_some() {
            let partition = self.read_partition(tx, scope, "query").await?;
            check_space(partition.as_ref(), query.embedding.as_ref(), "query")?;
        }
        if query.limit == 0 {
            return Ok(Vec::new());
        }
        let terms = query.text.as_deref().map_or_else(|| QueryTerms::parse(""), QueryTerms::parse);
        if terms.is_empty() && query.embedding.is_none() {
            return self.newest_facts(tx, scope, query, "query").await;
        }
        let rows = self.matching_facts(tx, scope, query, &terms).await?;
        let mut corpus = Corpus::default();
        let mut candidates = Vec::with_capacity(rows.len());
        for row in &rows {
            let row = Read { row, operation: "query" };
            corpus.documents = usize::try_from(row.get::<i64>("documents")?).unwrap_or(0);
            corpus.terms = row.get::<i64>("total")?.unsigned_abs();
            let terms = row.get::<Option<Vec<i64>>>("terms")?.unwrap_or_default();
            candidates.push((row.at("known_from")?, row.id("id")?, unsigned(&terms), row.get("cosine")?));
        }
        let views: Vec<Candidate<'_>> = candidates
            .iter()
            .map(|(at, id, terms, cosine)| Candidate {
                at: *at,
                id: *id,
                terms,
                cosine: *cosine,
                hidden: false,
            })
            .collect();
        let best: Vec<u128> =
            rank::rank(&terms, corpus, &views, query.limit).iter().map(|found| found.id).collect();
        self.facts_by_id(tx, scope, &best).await
    }

    /// Facts that are believed and hold at `now`, the newest first.
    pub(crate) async fn current_facts(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        now: Timestamp,
        operation: &'static str,
    ) -> Result<Vec<Owned<Fact>>> {
        self.newest_facts(tx, scope, &FactQuery::current(now, PROFILE_SAMPLES), operation).await
    }

    async fn newest_facts(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        query: &FactQuery,
        operation: &'static str,
    ) -> Result<Vec<Owned<Fact>>> {
        let rows = sqlx::query(self.reads().sql(NEWEST))
            .bind(Key::of(scope).partition)
            .bind(query.known_at.map(Timestamp::as_micros))
            .bind(query.valid_at.map(Timestamp::as_micros))
            .bind(query.subject.as_deref().map(str::as_bytes))
            .bind(query.predicate.as_deref().map(str::as_bytes))
            .bind(query.object.as_deref().map(str::as_bytes))
            .bind(count(query.limit))
            .fetch_all(tx.conn())
            .await
            .map_err(failed(operation))?;
        rows.iter().map(|row| Read { row, operation }.owned(Read::fact)).collect()
    }

    async fn matching_facts(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        query: &FactQuery,
        terms: &QueryTerms,
    ) -> Result<Vec<PgRow>> {
        sqlx::query(self.reads().sql(MATCHING))
            .bind(Key::of(scope).partition)
            .bind(query.known_at.map(Timestamp::as_micros))
            .bind(query.valid_at.map(Timestamp::as_micros))
            .bind(query.subject.as_deref().map(str::as_bytes))
            .bind(query.predicate.as_deref().map(str::as_bytes))
            .bind(query.object.as_deref().map(str::as_bytes))
            .bind(signed(&terms.by_column()))
            .bind(VectorColumns::of(query.embedding.as_ref()).components)
            .fetch_all(tx.conn())
            .await
            .map_err(failed("query"))
    }

    async fn facts_by_id(
        &self,
        tx: &mut Transaction,
        scope: &Scope,
        ids: &[u128],
    ) -> Result<Vec<Owned<Fact>>> {
        let rows = sqlx::query(self.reads().sql(BY_ID))
            .bind(Key::of(scope).partition)
            .bind(ids.iter().map(|id| id_column(*id)).collect::<Vec<_>>())
            .fetch_all(tx.conn())
            .await
            .map_err(failed("query"))?;
        let places: HashMap<u128, usize> = ids.iter().enumerate().map(|(at, id)| (*id, at)).collect();
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let row = Read { row, operation: "query" };
            let Some(place) = places.get(&row.id("id")?) else { continue };
            found.push((*place, row.owned(Read::fact)?));
        }
        found.sort_by_key(|(place, _)| *place);
        Ok(found.into_iter().map(|(_, fact)| fact).collect())
    }
}

async fn supersede(
    tx: &mut Transaction,
    key: &Key<'_>,
    now: Timestamp,
    ended: &[&Fact],
    rests: &[(&Fact, &Fact)],
) -> Result<()> {
    if !ended.is_empty() {
        sqlx::query(END)
            .bind(key.partition)
            .bind(now.as_micros())
            .bind(ended.iter().map(|fact| id_column(fact.id.as_u128())).collect::<Vec<_>>())
            .execute(tx.conn())
            .await
            .map_err(failed("assert"))?;
    }
    if !rests.is_empty() {
        sqlx::query(REST)
            .bind(key.partition)
            .bind(now.as_micros())
            .bind(rests.iter().map(|(_, rest)| id_column(rest.id.as_u128())).collect::<Vec<_>>())
            .bind(rests.iter().map(|(old, _)| id_column(old.id.as_u128())).collect::<Vec<_>>())
            .bind(rests.iter().map(|(_, rest)| rest.valid_from.as_micros()).collect::<Vec<_>>())
            .bind(
                rests.iter().map(|(_, rest)| rest.valid_until.map(Timestamp::as_micros)).collect::<Vec<_>>(),
            )
            .execute(tx.conn())
            .await
            .map_err(failed("assert"))?;
    }
    Ok(())
}

async fn insert(
    tx: &mut Transaction,
    key: &Key<'_>,
    pair: i64,
    fact: &Fact,
    vector: VectorColumns<'_>,
) -> Result<()> {
    sqlx::query(INSERT)
        .bind(key.partition)
        .bind(key.namespace)
        .bind(key.user_id)
        .bind(id_column(fact.id.as_u128()))
        .bind(fact.subject.as_bytes())
        .bind(fact.predicate.as_bytes())
        .bind(fact.object.as_bytes())
        .bind(pair)
        .bind(i16::from(fact.confidence))
        .bind(fact.valid_from.as_micros())
        .bind(fact.valid_until.map(Timestamp::as_micros))
        .bind(fact.known_from.as_micros())
        .bind(fact.sources.iter().map(|id| id_column(id.as_u128())).collect::<Vec<_>>())
        .bind(signed(&words::of_fact(fact)))
        .bind(vector.components)
        .execute(tx.conn())
        .await
        .map(drop)
        .map_err(failed("assert"))
}
