//! Export: everything of a partition, a page at a time, oldest first over all kinds. Each page is a snapshot; all of it is
//! none, so that a slow reader keeps neither a connection nor old versions of everybody's rows.

use std::collections::VecDeque;
use std::time::Duration;

use loomflow_core::{
    Error, ErrorKind, ExportItem, ExportStream, Owned, Owner, Result, Scope, Timestamp, rules,
};
use loomflow_support_sql::postgres::{Access, Transaction, failed};
use sqlx::postgres::PgRow;

use crate::PostgresMemory;
use crate::episodes::count;
use crate::query::Reads;
use crate::rows::Read;

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

    fn is_wanted(&self) -> bool {
        self.ready.is_empty() && !self.is_over
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

/// An export under way. Between pages it holds nothing of the server's, however slowly it is read.
struct Export {
    memory: PostgresMemory,
    owner: Owner,
    kinds: [Kind; 3],
}

impl Export {
    /// The oldest record that is left. Of records of one moment: episodes, then facts, then blocks.
    async fn next(mut self) -> Result<Option<(Owned<ExportItem>, Self)>> {
        let limit = self.memory.operation_timeout();
        tokio::time::timeout(limit, self.fill()).await.map_err(|_| late(limit))??;
        let oldest = self.kinds.iter_mut().filter(|kind| !kind.ready.is_empty());
        let oldest = oldest.min_by_key(|kind| kind.ready.front().map(|(at, _)| *at));
        Ok(oldest.and_then(|kind| kind.ready.pop_front()).map(|(_, item)| (item, self)))
    }

    /// Reads the next page of every kind of which none is left, in a transaction of its own.
    async fn fill(&mut self) -> Result<()> {
        if self.kinds.iter().all(|kind| !kind.is_wanted()) {
            return Ok(());
        }
        let mut tx = self.memory.begin_of(&self.owner, Access::Read, "export").await?;
        for kind in self.kinds.iter_mut().filter(|kind| kind.is_wanted()) {
            kind.fill(&mut tx, self.memory.reads(), self.owner.partition()).await?;
        }
        tx.commit().await
    }
}

impl PostgresMemory {
    pub(crate) async fn open_export(&self, scope: &Scope) -> Result<ExportStream> {
        let kinds = [Kind::new(EPISODES, episode), Kind::new(FACTS, fact), Kind::new(BLOCKS, block)];
        let mut export = Export { memory: self.clone(), owner: scope.owner().clone(), kinds };
        // What is wrong with the server is told before the stream begins.
        export.fill().await?;
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
