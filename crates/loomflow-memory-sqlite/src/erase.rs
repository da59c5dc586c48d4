//! Erasure: keys are deleted, texts are blanked where they lie, and the epoch is raised in the same transaction.

use std::collections::HashSet;

use loomflow_core::rules::erases_unsourced_before;
use loomflow_core::rules::facts::{Fate, fate};
use loomflow_core::{EpisodeId, Erase, Erased, Error, ErrorKind, Result, SessionId, Timestamp};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::schema::{self, Author, Columns as _, STORE};
use crate::{blocks, facts};

const OPERATION: &str = "forget";

const RAISE: &str = "INSERT INTO memory_partitions (partition, epoch) VALUES (?1, ?2) \
                     ON CONFLICT (partition) DO UPDATE SET epoch = excluded.epoch";
const LEAVE_SPACE: &str = "UPDATE memory_partitions SET model = NULL, dimensions = NULL WHERE partition = ?1";

/// Erases `what`, and raises the epoch to the author's.
pub(crate) async fn forget(conn: &mut SqliteConnection, author: &Author, what: &Erase) -> Result<Erased> {
    let fail = failed(OPERATION);
    let (stored, _) = schema::state(conn, &author.partition, OPERATION).await?;
    if author.epoch <= stored {
        let message = "another erasure has this epoch or a newer one; mint a newer epoch and try again";
        return Err(Error::new(ErrorKind::Conflict, message).with_operation(OPERATION));
    }
    let raise = sqlx::query(RAISE).bind(&author.partition[..]).bind(author.epoch.get().cast_signed());
    raise.execute(&mut *conn).await.map_err(fail)?;
    if what.is_everything() {
        sqlx::query(LEAVE_SPACE).bind(&author.partition[..]).execute(&mut *conn).await.map_err(fail)?;
    }
    let episodes = erase_episodes(conn, author, what).await?;
    let facts = erase_facts(conn, author, what, &episodes).await?;
    let blocks = erase_blocks(conn, author, what).await?;
    let gone = Erased::new(STORE).with_count("episode", episodes.len() as u64);
    Ok(gone.with_count("fact", facts).with_count("block", blocks))
}

const EPISODES: &str = "SELECT k.content, k.id, t.namespace, t.user_id FROM memory_episodes AS k \
                        CROSS JOIN memory_episode_texts AS t ON t.content = k.content \
                        WHERE k.partition = ?1 AND (?2 IS NULL OR (k.session = ?2 AND t.session = ?3)) \
                        AND (?4 IS NULL OR k.at < ?4)";
const BLANK_EPISODES: &str = "UPDATE memory_episode_texts SET partition = x'', namespace = '', user_id = NULL, session = '', \
                              terms = x'', messages = '', vector = NULL WHERE content IN (SELECT value FROM json_each(?1))";
const DELETE_EPISODES: &str =
    "DELETE FROM memory_episodes WHERE partition = ?1 AND content IN (SELECT value FROM json_each(?2))";

async fn erase_episodes(
    conn: &mut SqliteConnection,
    author: &Author,
    what: &Erase,
) -> Result<HashSet<EpisodeId>> {
    let fail = failed(OPERATION);
    let session = what.session.as_ref().map(SessionId::as_str);
    let rows = sqlx::query(EPISODES)
        .bind(&author.partition[..])
        .bind(session.map(schema::session_key))
        .bind(session)
        .bind(what.before.map(Timestamp::as_micros));
    let rows = rows.fetch_all(&mut *conn).await.map_err(fail)?;
    let going = contents(author, &rows)?;
    sqlx::query(BLANK_EPISODES).bind(&*going).execute(&mut *conn).await.map_err(fail)?;
    delete(conn, author, DELETE_EPISODES, &going).await?;
    rows.iter().map(|row| row.id("id").map(EpisodeId::from_u128)).collect()
}

/// A row of facts, as far as its fate needs.
struct Sourced {
    content: i64,
    known_from: Timestamp,
    sources: Vec<EpisodeId>,
}

const FACTS: &str = "SELECT k.content, k.known_from, k.sources, t.namespace, t.user_id FROM memory_facts AS k \
                     CROSS JOIN memory_fact_texts AS t ON t.content = k.content WHERE k.partition = ?1";
const HELD: &str = "SELECT id FROM memory_episodes WHERE partition = ?1";
const SET_SOURCES: &str =
    "UPDATE memory_facts SET sources = ?4 WHERE partition = ?1 AND known_from = ?2 AND content = ?3";
const DELETE_FACTS: &str =
    "DELETE FROM memory_facts WHERE partition = ?1 AND content IN (SELECT value FROM json_each(?2))";

async fn erase_facts(
    conn: &mut SqliteConnection,
    author: &Author,
    what: &Erase,
    erased: &HashSet<EpisodeId>,
) -> Result<u64> {
    let fail = failed(OPERATION);
    let rows = sqlx::query(FACTS).bind(&author.partition[..]).fetch_all(&mut *conn).await.map_err(fail)?;
    let rows = rows.iter().map(|row| sourced(author, row)).collect::<Result<Vec<Sourced>>>()?;
    let held = sqlx::query(HELD).bind(&author.partition[..]);
    let held = held.fetch_all(&mut *conn).await.map_err(fail)?;
    let held =
        held.iter().map(|row| row.id("id").map(EpisodeId::from_u128)).collect::<Result<HashSet<_>>>()?;
    let mut going = Vec::new();
    for row in rows {
        let (is_erased, is_held) = (|id| erased.contains(&id), |id| held.contains(&id));
        let by_time = erases_unsourced_before(what);
        let fate = match what.is_everything() {
            true => Fate::Goes,
            false => fate(&row.sources, row.known_from, is_erased, is_held, by_time),
        };
        match fate {
            Fate::Stays => {}
            Fate::Goes => going.push(row.content),
            Fate::Keeps(sources) => {
                let set = sqlx::query(SET_SOURCES)
                    .bind(&author.partition[..])
                    .bind(row.known_from.as_micros())
                    .bind(row.content)
                    .bind(facts::source_bytes(&sources));
                set.execute(&mut *conn).await.map_err(fail)?;
            }
        }
    }
    let gone = going.len() as u64;
    let going = schema::list(going);
    facts::blank(conn, &going, OPERATION).await?;
    delete(conn, author, DELETE_FACTS, &going).await?;
    Ok(gone)
}

fn sourced(author: &Author, row: &SqliteRow) -> Result<Sourced> {
    author.check(row, OPERATION)?;
    let sources = facts::sources(row.cell("sources")?);
    Ok(Sourced { content: row.cell("content")?, known_from: row.time("known_from")?, sources })
}

const BLOCKS: &str = "SELECT k.content, t.namespace, t.user_id FROM memory_blocks AS k \
                      CROSS JOIN memory_block_texts AS t ON t.content = k.content \
                      WHERE k.partition = ?1 AND (?2 IS NULL OR k.updated_at < ?2)";
const DELETE_BLOCKS: &str =
    "DELETE FROM memory_blocks WHERE partition = ?1 AND content IN (SELECT value FROM json_each(?2))";

async fn erase_blocks(conn: &mut SqliteConnection, author: &Author, what: &Erase) -> Result<u64> {
    let by_time = erases_unsourced_before(what);
    if by_time.is_none() && !what.is_everything() {
        return Ok(0);
    }
    let rows = sqlx::query(BLOCKS).bind(&author.partition[..]).bind(by_time.map(Timestamp::as_micros));
    let rows = rows.fetch_all(&mut *conn).await.map_err(failed(OPERATION))?;
    let going = contents(author, &rows)?;
    blocks::blank(conn, &going, OPERATION).await?;
    delete(conn, author, DELETE_BLOCKS, &going).await?;
    Ok(rows.len() as u64)
}

async fn delete(
    conn: &mut SqliteConnection,
    author: &Author,
    sql: &'static str,
    contents: &str,
) -> Result<()> {
    let delete = sqlx::query(sql).bind(&author.partition[..]).bind(contents);
    delete.execute(conn).await.map(drop).map_err(failed(OPERATION))
}

fn contents(author: &Author, rows: &[SqliteRow]) -> Result<String> {
    let content = |row: &SqliteRow| {
        author.check(row, OPERATION)?;
        row.cell("content")
    };
    let contents = rows.iter().map(content).collect::<Result<Vec<i64>>>()?;
    Ok(schema::list(contents))
}
