//! Approximate indexes of large partitions, each of its own partition alone.
//!
//! One index over all tenants would be filtered after the search: a tenant whose vectors are like many others' would find
//! nothing. So there is none. A partition is scanned exactly, and only one that is too large for that gets an index, over
//! its own rows.

use std::collections::BTreeSet;
use std::fmt;

use loomflow_core::{Error, ErrorKind, Result};
use loomflow_support_sql::postgres::{connect_as_owner, failed};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::schema::MEMORY;
use crate::{PostgresMemory, PostgresMemoryConfig};

/// The advisory lock of maintenance: one at a time in a database.
const LOCK: i64 = 0x6c6f_6f6d_6d61_696e;
const PREFIX: &str = "memory_episodes_near_";

/// Partitions with more than `$1` vectors.
const LARGE: &str = "
SELECT encode(p.partition, 'hex'), p.space_dimensions, n.vectors, p.indexed FROM (
  SELECT partition, count(*) AS vectors FROM memory_episodes WHERE embedding IS NOT NULL
  GROUP BY partition HAVING count(*) > $1
) n JOIN memory_partitions p ON p.partition = n.partition WHERE p.space_dimensions IS NOT NULL
ORDER BY p.partition";

const MARKED: &str = "SELECT encode(partition, 'hex') FROM memory_partitions WHERE indexed";

const INDEXES: &str = "
SELECT c.relname::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = 'memory_episodes'::regclass AND c.relname LIKE 'memory\\_episodes\\_near\\_%'";

/// How an index sees the column of vectors: with a number of dimensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexedColumn {
    dimensions: usize,
}

/// How the index of a partition with vectors of so many dimensions sees them.
pub(crate) fn indexed_column(dimensions: usize) -> IndexedColumn {
    IndexedColumn { dimensions }
}

impl IndexedColumn {
    /// The type.
    pub(crate) fn kind(self) -> String {
        format!("vector({})", self.dimensions)
    }

    /// As far as pgvector indexes them at full precision. Halves, which reach further, hold no component above 65,504:
    /// a vector that has one could not be remembered any more.
    fn can_be_indexed(self) -> bool {
        (1..=2_000).contains(&self.dimensions)
    }

    /// Which rows the index has; a statement that says the same can use it.
    pub(crate) fn rows(self, partition_hex: &str) -> String {
        format!("partition = '\\x{partition_hex}'::bytea AND vector_dims(embedding) = {}", self.dimensions)
    }
}

impl fmt::Display for IndexedColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(embedding::{})", self.kind())
    }
}

/// A partition that is large.
struct Large {
    hex: String,
    column: IndexedColumn,
    is_marked: bool,
}

impl Large {
    fn index(&self) -> String {
        format!("{PREFIX}{}_{}", &self.hex[..32], self.column.dimensions)
    }
}

impl PostgresMemory {
    /// Gives every partition with more than [`PostgresMemoryConfig::index_above`] vectors an approximate index (HNSW) of
    /// its own, and takes it from those that have shrunk to half of that. To be run now and then, with the connection
    /// string of the tables' owner. It locks out nobody; where it already runs, it does nothing.
    ///
    /// - Recall by vector is exact without an index, and approximate with one.
    /// - Vectors of more than 2,000 dimensions get no index and are always compared exactly.
    /// - A partition whose index cannot be made keeps no other from theirs; the first such error is returned at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when the user does not own the tables; whatever the server fails with.
    pub async fn maintain(config: &PostgresMemoryConfig) -> Result<()> {
        let mut conn = connect_as_owner(&config.settings(), &MEMORY).await?;
        let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut conn)
            .await
            .map_err(failed("maintain"))?;
        if alone {
            let threshold = i64::try_from(config.index_above).unwrap_or(i64::MAX);
            work(&mut conn, threshold).await?;
        }
        conn.close().await.map_err(failed("maintain"))
    }
}

async fn work(conn: &mut PgConnection, threshold: i64) -> Result<()> {
    let wanted = large(conn, threshold).await?;
    let marked: Vec<String> =
        sqlx::query_scalar(MARKED).fetch_all(&mut *conn).await.map_err(failed("maintain"))?;
    for hex in marked.iter().filter(|hex| wanted.iter().all(|large| large.hex != **hex)) {
        mark(conn, hex, false).await?;
    }
    let names: BTreeSet<String> = wanted.iter().map(Large::index).collect();
    let mut there = BTreeSet::new();
    let indexes: Vec<(String, bool)> =
        sqlx::query_as(INDEXES).fetch_all(&mut *conn).await.map_err(failed("maintain"))?;
    for (name, is_valid) in indexes {
        // What a build that was interrupted leaves is not valid.
        if is_valid && names.contains(&name) {
            there.insert(name);
        } else {
            run(conn, format!("DROP INDEX CONCURRENTLY IF EXISTS \"{name}\"")).await?;
        }
    }
    let mut failures = Vec::new();
    for large in &wanted {
        if let Err(e) = index(conn, large, there.contains(&large.index())).await {
            failures.push(e);
        }
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Makes a partition's index unless it is there, and says so in the partition's row.
async fn index(conn: &mut PgConnection, large: &Large, is_there: bool) -> Result<()> {
    let Large { column, hex, .. } = large;
    let (name, rows) = (large.index(), column.rows(hex));
    if !is_there {
        let sql = format!(
            "CREATE INDEX CONCURRENTLY \"{name}\" ON memory_episodes USING hnsw ({column} vector_cosine_ops) WHERE {rows}"
        );
        if let Err(e) = run(conn, sql).await {
            // What is left of it serves no search and still takes part in every write.
            drop(run(conn, format!("DROP INDEX CONCURRENTLY IF EXISTS \"{name}\"")).await);
            return Err(e);
        }
    }
    if large.is_marked { Ok(()) } else { mark(conn, hex, true).await }
}

/// The partitions that want an index: those above the threshold, and those that have one and are above half of it.
async fn large(conn: &mut PgConnection, threshold: i64) -> Result<Vec<Large>> {
    let rows: Vec<(String, i32, i64, bool)> =
        sqlx::query_as(LARGE).bind(threshold / 2).fetch_all(conn).await.map_err(failed("maintain"))?;
    let wanted = rows.into_iter().filter(|(_, _, vectors, is_marked)| *vectors > threshold || *is_marked);
    let large = wanted.map(|(hex, dimensions, _, is_marked)| Large {
        hex,
        column: indexed_column(usize::try_from(dimensions).unwrap_or(0)),
        is_marked,
    });
    Ok(large.filter(|large| large.column.can_be_indexed()).collect())
}

/// Says in the partition's row whether recall uses an index. The owner, too, writes only rows of the partition it names.
async fn mark(conn: &mut PgConnection, hex: &str, indexed: bool) -> Result<()> {
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::new(ErrorKind::Internal, "a partition is not 32 bytes").with_operation("maintain"));
    }
    run(
        conn,
        format!(
            "BEGIN; SELECT set_config('loomflow.partition', '{hex}', true);
             UPDATE memory_partitions SET indexed = {indexed} WHERE partition = '\\x{hex}'::bytea; COMMIT"
        ),
    )
    .await
}

async fn run(conn: &mut PgConnection, sql: String) -> Result<()> {
    conn.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(drop).map_err(failed("maintain"))
}
