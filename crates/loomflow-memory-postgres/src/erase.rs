//! Erasure.

use loomflow_core::rules::erases_unsourced_before;
use loomflow_core::rules::facts::{Fate, fate};
use loomflow_core::{EpisodeId, Epoch, Erase, Erased, Error, ErrorKind, Result, Scope, SessionId, Timestamp};
use loomflow_support_sql::postgres::{Access, Transaction, failed};

use crate::PostgresMemory;
use crate::episodes::count;
use crate::rows::Read;
use crate::schema::{Key, id_column};
use crate::store::STORE;

const FACTS_AT_ONCE: usize = 500;

const EPOCH: &str = "SELECT epoch FROM memory_partitions WHERE partition = $1";

const RAISE: &str = "
INSERT INTO memory_partitions (partition, namespace, user_id, epoch) VALUES ($1, $2, $3, $4)
ON CONFLICT (partition) DO UPDATE SET epoch = excluded.epoch";

/// Everything. What stays of the partition is its epoch, under a hash; who it was of is written again by the next write.
/// The next vector may be of another space, and what is left is too small for an index.
const EVERYTHING: &str = "
WITH episodes AS (DELETE FROM memory_episodes WHERE partition = $1 RETURNING 1),
  facts AS (DELETE FROM memory_facts WHERE partition = $1 RETURNING 1),
  blocks AS (DELETE FROM memory_blocks WHERE partition = $1 RETURNING 1),
  fresh AS (UPDATE memory_partitions SET namespace = '', user_id = NULL, space_model = NULL, space_dimensions = NULL, indexed = false
    WHERE partition = $1)
SELECT (SELECT count(*) FROM episodes) AS episodes, (SELECT count(*) FROM facts) AS facts,
  (SELECT count(*) FROM blocks) AS blocks";

/// Some facts after an id, with those of their sources that go and those that stay held.
const FACTS: &str = "
SELECT id, known_from, sources,
  ARRAY(SELECT e.id FROM memory_episodes e WHERE e.partition = $1 AND e.id = ANY(f.sources)
    AND ($3::text IS NULL OR e.session = $3) AND ($4::bigint IS NULL OR e.said_at < $4)) AS erased,
  ARRAY(SELECT e.id FROM memory_episodes e WHERE e.partition = $1 AND e.id = ANY(f.sources)
    AND NOT (($3::text IS NULL OR e.session = $3) AND ($4::bigint IS NULL OR e.said_at < $4))) AS held
FROM memory_facts f WHERE partition = $1 AND id > $2 ORDER BY id LIMIT $5";

const DELETE_FACTS: &str = "DELETE FROM memory_facts WHERE partition = $1 AND id = ANY($2::bytea[])";

/// The sources that facts keep, as pairs in order.
const KEEP_SOURCES: &str = "
UPDATE memory_facts f SET sources = kept.sources FROM (
  SELECT fact, array_agg(source ORDER BY place) AS sources
  FROM unnest($2::bytea[], $3::bytea[]) WITH ORDINALITY pairs(fact, source, place) GROUP BY fact
) kept WHERE f.partition = $1 AND f.id = kept.fact";

const DELETE_EPISODES: &str = "
DELETE FROM memory_episodes
WHERE partition = $1 AND ($2::text IS NULL OR session = $2) AND ($3::bigint IS NULL OR said_at < $3)";

const DELETE_BLOCKS: &str = "DELETE FROM memory_blocks WHERE partition = $1 AND updated_at < $2";

/// How many records went.
#[derive(Clone, Copy, Debug, Default)]
struct Gone {
    episodes: u64,
    facts: u64,
    blocks: u64,
}

impl PostgresMemory {
    pub(crate) async fn erase(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let mut tx = self.begin(scope, Access::Exclusive, "forget").await?;
        match erase_alone(&mut tx, scope, what).await {
            Ok(gone) => {
                tx.commit().await?;
                Ok(Erased::new(STORE)
                    .with_count("episode", gone.episodes)
                    .with_count("fact", gone.facts)
                    .with_count("block", gone.blocks))
            }
            Err(e) => Err(tx.refuse(e).await),
        }
    }
}

/// Erases while nobody writes the partition.
async fn erase_alone(tx: &mut Transaction, scope: &Scope, what: &Erase) -> Result<Gone> {
    let key = Key::of(scope);
    let stored: Option<i64> = sqlx::query_scalar(EPOCH)
        .bind(key.partition)
        .fetch_optional(tx.conn())
        .await
        .map_err(failed("forget"))?;
    if scope.epoch() <= Epoch::new(stored.unwrap_or(0).unsigned_abs()) {
        let message = "the partition was erased at this epoch or a newer one; begin the erasure again with a newer epoch";
        return Err(Error::new(ErrorKind::Conflict, message).with_operation("forget").with_retryable(true));
    }
    sqlx::query(RAISE)
        .bind(key.partition)
        .bind(key.namespace)
        .bind(key.user_id)
        .bind(key.epoch)
        .execute(tx.conn())
        .await
        .map_err(failed("forget"))?;
    if what.is_everything() { everything(tx, &key).await } else { part(tx, &key, what).await }
}

async fn everything(tx: &mut Transaction, key: &Key<'_>) -> Result<Gone> {
    let row =
        sqlx::query(EVERYTHING).bind(key.partition).fetch_one(tx.conn()).await.map_err(failed("forget"))?;
    let number = |column| Read { row: &row, operation: "forget" }.get::<i64>(column).map(i64::unsigned_abs);
    Ok(Gone { episodes: number("episodes")?, facts: number("facts")?, blocks: number("blocks")? })
}

async fn part(tx: &mut Transaction, key: &Key<'_>, what: &Erase) -> Result<Gone> {
    // The facts first: what becomes of them depends on which episodes go, and those are still there to be asked.
    let mut gone = Gone { facts: facts(tx, key, what).await?, ..Gone::default() };
    gone.episodes = sqlx::query(DELETE_EPISODES)
        .bind(key.partition)
        .bind(what.session.as_ref().map(SessionId::as_str))
        .bind(what.before.map(Timestamp::as_micros))
        .execute(tx.conn())
        .await
        .map_err(failed("forget"))?
        .rows_affected();
    if let Some(moment) = erases_unsourced_before(what) {
        gone.blocks = sqlx::query(DELETE_BLOCKS)
            .bind(key.partition)
            .bind(moment.as_micros())
            .execute(tx.conn())
            .await
            .map_err(failed("forget"))?
            .rows_affected();
    }
    Ok(gone)
}

/// Takes out the facts that go, some at a time, and returns how many they were.
async fn facts(tx: &mut Transaction, key: &Key<'_>, what: &Erase) -> Result<u64> {
    let mut gone = 0;
    let mut after = Vec::new();
    loop {
        let rows = sqlx::query(FACTS)
            .bind(key.partition)
            .bind(&after)
            .bind(what.session.as_ref().map(SessionId::as_str))
            .bind(what.before.map(Timestamp::as_micros))
            .bind(count(FACTS_AT_ONCE))
            .fetch_all(tx.conn())
            .await
            .map_err(failed("forget"))?;
        let (mut goes, mut keeps) = (Vec::new(), Vec::new());
        for row in &rows {
            let row = Read { row, operation: "forget" };
            let (erased, held) = (row.ids("erased")?, row.ids("held")?);
            after = row.get("id")?;
            match fate(
                &row.sources()?,
                row.at("known_from")?,
                |id| erased.contains(&id),
                |id| held.contains(&id),
                erases_unsourced_before(what),
            ) {
                Fate::Goes => goes.push(after.clone()),
                Fate::Keeps(sources) => keeps.push((after.clone(), sources)),
                Fate::Stays => {}
            }
        }
        gone += settle(tx, key, goes, keeps).await?;
        if rows.len() < FACTS_AT_ONCE {
            return Ok(gone);
        }
    }
}

async fn settle(
    tx: &mut Transaction,
    key: &Key<'_>,
    goes: Vec<Vec<u8>>,
    keeps: Vec<(Vec<u8>, Vec<EpisodeId>)>,
) -> Result<u64> {
    if !keeps.is_empty() {
        let pairs = keeps.iter().flat_map(|(fact, sources)| sources.iter().map(move |s| (fact, *s)));
        let (facts, sources): (Vec<&[u8]>, Vec<Vec<u8>>) =
            pairs.map(|(fact, source)| (&**fact, id_column(source.as_u128()))).unzip();
        sqlx::query(KEEP_SOURCES)
            .bind(key.partition)
            .bind(facts)
            .bind(sources)
            .execute(tx.conn())
            .await
            .map_err(failed("forget"))?;
    }
    if goes.is_empty() {
        return Ok(0);
    }
    let done = sqlx::query(DELETE_FACTS).bind(key.partition).bind(goes).execute(tx.conn()).await;
    done.map(|done| done.rows_affected()).map_err(failed("forget"))
}
