//! Blocks: named texts of a tenant. A block that is replaced is written anew, and its old text is blanked.

use loomflow_core::{MemoryBlock, Owner, PutBlock, Result, Scope};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::schema::{self, Author, Columns as _, Filter};

const ALL: &str = "SELECT t.namespace, t.user_id, t.name, t.text, k.content, k.place, k.updated_at FROM memory_blocks AS k \
                   CROSS JOIN memory_block_texts AS t ON t.content = k.content \
                   WHERE k.partition = ?1 ORDER BY k.place, t.name";

/// All blocks, in their order, each with the owner that its row says.
pub(crate) async fn blocks(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
) -> Result<Vec<(Owner, MemoryBlock)>> {
    let rows = sqlx::query(filter.sql(ALL)).bind(schema::partition(scope));
    let rows = rows.fetch_all(conn).await.map_err(failed("blocks"))?;
    let mut last = None;
    rows.iter().map(|row| block(row, &mut last)).collect()
}

/// The block of a row.
pub(crate) fn block(row: &SqliteRow, last: &mut Option<Owner>) -> Result<(Owner, MemoryBlock)> {
    let place = u32::try_from(row.cell::<i64>("place")?).map_err(|_| schema::damaged("place"))?;
    let (name, text) = (row.cell::<&str>("name")?, row.cell::<&str>("text")?);
    Ok((row.owner(last)?, MemoryBlock::new(name, text, place, row.time("updated_at")?)))
}

const OLD: &str = "SELECT k.content, k.place, t.namespace, t.user_id FROM memory_blocks AS k CROSS JOIN memory_block_texts AS t ON t.content = k.content \
                   WHERE k.partition = ?1 AND t.name = ?2";
const REMOVE: &str = "DELETE FROM memory_blocks WHERE partition = ?1 AND content = ?2";
const INSERT_TEXT: &str =
    "INSERT INTO memory_block_texts (partition, namespace, user_id, name, text) VALUES (?1, ?2, ?3, ?4, ?5)";
const INSERT: &str =
    "INSERT INTO memory_blocks (partition, content, place, updated_at) VALUES (?1, ?2, ?3, ?4)";

/// Writes, replaces or removes a block whose name was checked.
pub(crate) async fn put(conn: &mut SqliteConnection, author: &Author, put: &PutBlock) -> Result<()> {
    const OPERATION: &str = "put_block";
    let fail = failed(OPERATION);
    schema::enter(conn, author, &[], OPERATION).await?;
    let old = sqlx::query(OLD).bind(&author.partition[..]).bind(&*put.name);
    let old = old.fetch_optional(&mut *conn).await.map_err(fail)?;
    let mut place = 0;
    if let Some(old) = old {
        author.check(&old, OPERATION)?;
        let content: i64 = old.cell("content")?;
        place = old.cell("place")?;
        blank(conn, &schema::list([content]), OPERATION).await?;
        let remove = sqlx::query(REMOVE).bind(&author.partition[..]).bind(content);
        remove.execute(&mut *conn).await.map_err(fail)?;
    }
    let Some(text) = &put.content else { return Ok(()) };
    let insert = sqlx::query(INSERT_TEXT)
        .bind(&author.partition[..])
        .bind(author.namespace())
        .bind(author.user_id())
        .bind(&*put.name)
        .bind(&**text);
    let content = insert.execute(&mut *conn).await.map_err(fail)?.last_insert_rowid();
    let insert = sqlx::query(INSERT)
        .bind(&author.partition[..])
        .bind(content)
        .bind(put.order.map_or(place, i64::from))
        .bind(put.at.as_micros());
    insert.execute(conn).await.map(drop).map_err(fail)
}

const BLANK: &str = "UPDATE memory_block_texts SET partition = x'', namespace = '', user_id = NULL, name = '', text = '' \
                     WHERE content IN (SELECT value FROM json_each(?1))";

/// Overwrites texts where they lie.
pub(crate) async fn blank(
    conn: &mut SqliteConnection,
    contents: &str,
    operation: &'static str,
) -> Result<()> {
    sqlx::query(BLANK).bind(contents).execute(conn).await.map(drop).map_err(failed(operation))
}
