//! Named blocks.

use loomflow_core::{Epoch, MemoryBlock, Owned, PutBlock, Result, Scope};
use loomflow_support_sql::postgres::{Access, failed};

use crate::PostgresMemory;
use crate::rows::Read;
use crate::schema::Key;

const BLOCKS: &str = "
SELECT namespace, user_id, name, content, place, updated_at FROM memory_blocks
WHERE partition = $1 ORDER BY place, name";

/// Writes a block where its scope is not stale. A new one stands at 0, an old one keeps its place.
const PUT: &str = "
WITH part AS MATERIALIZED (
  SELECT epoch, namespace FROM memory_partitions WHERE partition = $1
), made AS (
  INSERT INTO memory_partitions (partition, namespace, user_id)
  SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM part WHERE namespace <> '')
  ON CONFLICT (partition) DO UPDATE SET namespace = excluded.namespace, user_id = excluded.user_id
), written AS (
  INSERT INTO memory_blocks (partition, namespace, user_id, name, content, place, updated_at)
  SELECT $1, $2, $3, $5, $6, coalesce($7, 0), $8 WHERE NOT EXISTS (SELECT FROM part WHERE epoch > $4)
  ON CONFLICT (partition, name) DO UPDATE SET namespace = excluded.namespace, user_id = excluded.user_id,
    content = excluded.content, place = coalesce($7, memory_blocks.place), updated_at = excluded.updated_at
)
SELECT epoch FROM part";

const REMOVE: &str = "
WITH part AS MATERIALIZED (
  SELECT epoch FROM memory_partitions WHERE partition = $1
), removed AS (
  DELETE FROM memory_blocks
  WHERE partition = $1 AND name = $3 AND NOT EXISTS (SELECT FROM part WHERE epoch > $2)
)
SELECT epoch FROM part";

impl PostgresMemory {
    pub(crate) async fn read_blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
        let mut tx = self.begin(scope, Access::Read, "blocks").await?;
        let rows = sqlx::query(self.reads().sql(BLOCKS))
            .bind(Key::of(scope).partition)
            .fetch_all(tx.conn())
            .await
            .map_err(failed("blocks"))?;
        tx.commit().await?;
        rows.iter().map(|row| Read { row, operation: "blocks" }.owned(Read::block)).collect()
    }

    /// Writes or removes a block whose name was checked.
    pub(crate) async fn write_block(&self, scope: &Scope, block: &PutBlock) -> Result<()> {
        let key = Key::of(scope);
        let mut tx = self.begin(scope, Access::Write, "put_block").await?;
        let statement = match &block.content {
            Some(content) => sqlx::query_scalar(PUT)
                .bind(key.partition)
                .bind(key.namespace)
                .bind(key.user_id)
                .bind(key.epoch)
                .bind(&*block.name)
                .bind(content.as_bytes())
                .bind(block.order.map(i64::from))
                .bind(block.at.as_micros()),
            None => sqlx::query_scalar(REMOVE).bind(key.partition).bind(key.epoch).bind(&*block.name),
        };
        let epoch: Option<i64> = statement.fetch_optional(tx.conn()).await.map_err(failed("put_block"))?;
        match scope.check_epoch(Epoch::new(epoch.unwrap_or(0).unsigned_abs()), "put_block") {
            Ok(()) => tx.commit().await,
            Err(e) => Err(tx.refuse(e).await),
        }
    }
}
