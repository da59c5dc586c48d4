//! Export: everything of a partition from one snapshot, a page at a time, oldest first over all kinds.

use std::collections::VecDeque;
use std::time::Duration;

use loomflow_core::{Error, ErrorKind, ExportItem, ExportStream, Owned, Result, Scope, Timestamp, rules};
use loomflow_support_sql::postgres::{Access, Transaction, failed};
use sqlx::postgres::PgRow;

use crate::PostgresMemory;
use crate::episodes::count;
use crate::query::Reads;
use crate::rows::Read;
use crate::schema::Key;

const PAGE: usize = 100;

/// Each page begins after the last row of the one before, by its time and its id.
const EPISODES: &str = "
SELECT namespace, user_id, id, session, said_at, messages, embedding::real[] AS embedding,
  (SELECT space_model FROM memory_partitions WHERE partition = $1 LIMIT 1) AS space_model,
  said_at AS sorts_at, id AS sorts_by
FROM memory_episodes WHERE partition = $1 AND (said_at, id) > ($2, $3::bytea) ORDER BY said_at, id LIMIT $4";

const FACTS: &str = "
SELECT namespace, user_id, id, subject, predicate, object, confidence, valid_from, valid_until, known_from,
  known_until, sources, embedding::real[] AS embedding,
  (SELECT space_model FROM memory_partitions WHERE partition = $1 LIMIT 1) AS space_model,
  known_from AS sorts_at, id AS sorts_by
FROM memory_facts WHERE partition = $1 AND (known_from, id) > ($2, $3::bytea) ORDER BY known_from, id LIMIT $4";

const BLOCKS: &str = "
SELECT namespace, user_id, name, content, place, updated_at, updated_at AS sorts_at,
  convert_to(name, 'UTF8') AS sorts_by
FROM memory_blocks WHERE partition = $1 AND (updated_at, convert_to(name, 'UTF8')) > ($2, $3::bytea)
ORDER BY updated_at, convert_to(name, 'UTF8') LIMIT $4";

/// One kind of record, read page by page.
struct Kind {
    statement: &'static str,
    write: fn(Read<'_>) -> Result<Owned<ExportItem>>,
    ready: VecDeque<(Timestamp, Owned<ExportItem>)>,
    after: (i64, Vec<u8>),
    is_over: bool,
}

impl Kind {
    fn new(statement: &'static str, write: fn(Read<'_>) -> Result<Owned<ExportItem>>) -> Self {
        // Before every row: no id is empty.
        Self { statement, write, ready: VecDeque::new(), after: (i64::MIN, Vec::new()), is_over: false }
    }

    async fn fill(&mut self, tx: &mut Transaction, reads: Reads, partition: [u8; 32]) -> Result<()> {
        let rows: Vec<PgRow> = sqlx::query(reads.sql(self.statement))
            .bind(partition)
            .bind(self.after.0)
            .bind(&self.after.1)
            .bind(count(PAGE))
            .fetch_all(tx.conn())
            .await
            .map_err(failed("export"))?;
        for row in &rows {
            let row = Read { row, operation: "export" };
            self.after = (row.get("sorts_at")?, row.get("sorts_by")?);
            self.ready.push_back((row.at("sorts_at")?, (self.write)(row)?));
        }
        self.is_over = rows.len() < PAGE;
        Ok(())
    }
}

/// An export under way. It keeps its connection until it ends or is dropped.
struct Export {
    tx: Transaction,
    reads: Reads,
    partition: [u8; 32],
    kinds: [Kind; 3],
    limit: Duration,
}

impl Export {
    /// The oldest record that is left. Of records of one moment: episodes, then facts, then blocks.
    async fn next(mut self) -> Result<Option<(Owned<ExportItem>, Self)>> {
        for kind in &mut self.kinds {
            if kind.ready.is_empty() && !kind.is_over {
                let page = kind.fill(&mut self.tx, self.reads, self.partition);
                tokio::time::timeout(self.limit, page).await.map_err(|_| late(self.limit))??;
            }
        }
        let oldest = self.kinds.iter_mut().filter(|kind| !kind.ready.is_empty());
        let oldest = oldest.min_by_key(|kind| kind.ready.front().map(|(at, _)| *at));
        match oldest.and_then(|kind| kind.ready.pop_front()) {
            Some((_, item)) => Ok(Some((item, self))),
            None => self.tx.commit().await.map(|()| None),
        }
    }
}

impl PostgresMemory {
    pub(crate) async fn open_export(&self, scope: &Scope) -> Result<ExportStream> {
        let export = Export {
            tx: self.begin(scope, Access::Read, "export").await?,
            reads: self.reads(),
            partition: Key::of(scope).partition,
            kinds: [Kind::new(EPISODES, episode), Kind::new(FACTS, fact), Kind::new(BLOCKS, block)],
            limit: self.operation_timeout(),
        };
        Ok(Box::pin(futures_util::stream::try_unfold(export, Export::next)))
    }
}

fn episode(row: Read<'_>) -> Result<Owned<ExportItem>> {
    Ok(Owned::new(row.owner()?, rules::export_episode(&row.episode()?)?))
}

fn fact(row: Read<'_>) -> Result<Owned<ExportItem>> {
    Ok(Owned::new(row.owner()?, rules::export_fact(&row.fact()?, row.embedding()?.as_ref())?))
}

fn block(row: Read<'_>) -> Result<Owned<ExportItem>> {
    Ok(Owned::new(row.owner()?, rules::export_block(&row.block()?)?))
}

fn late(limit: Duration) -> Error {
    let message = format!("PostgreSQL did not answer within {limit:?}");
    Error::new(ErrorKind::Timeout, message).with_operation("export").with_retryable(true)
}
