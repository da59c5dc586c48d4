//! Export: pages of each kind by key, merged by time, so that neither memory nor the log beside the file grows with it.

use std::collections::VecDeque;

use loomflow_core::{ExportItem, Owned, Owner, Result, rules};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::schema::{self, Columns as _, Filter};
use crate::{blocks, episodes, facts};

const OPERATION: &str = "export";
/// How many records of a kind are held at once.
const PAGE: usize = 64;

/// The kinds in the order in which records of one moment come.
const KINDS: [Kind; 3] = [Kind::Episode, Kind::Fact, Kind::Block];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Episode,
    Fact,
    Block,
}

/// Where an export stands. Each page is a read of its own: what is erased meanwhile is not exported any more.
#[derive(Debug)]
pub(crate) struct Export {
    partition: Vec<u8>,
    kinds: [Cursor; 3],
}

#[derive(Debug)]
struct Cursor {
    kind: Kind,
    after: Key,
    page: VecDeque<Record>,
    done: bool,
}

/// What was read of one kind.
pub(crate) type Page = Vec<Record>;

/// A record and its key.
#[derive(Debug)]
pub(crate) struct Record {
    key: Key,
    item: Owned<ExportItem>,
}

/// By what records of a kind are ordered: the number of the content for blocks, the id for the rest.
#[derive(Clone, Debug)]
struct Key {
    at: i64,
    id: Vec<u8>,
    content: i64,
}

impl Export {
    pub(crate) fn new(partition: Vec<u8>) -> Self {
        let first = Key { at: i64::MIN, id: Vec::new(), content: 0 };
        let cursor = |kind| Cursor { kind, after: first.clone(), page: VecDeque::new(), done: false };
        Self { partition, kinds: KINDS.map(cursor) }
    }

    /// Whether a page has to be read before the next record is known.
    pub(crate) fn is_hungry(&self) -> bool {
        self.kinds.iter().any(Cursor::is_hungry)
    }

    /// The next record, oldest first.
    pub(crate) fn next(&mut self) -> Option<Owned<ExportItem>> {
        let oldest = |cursor: &&mut Cursor| cursor.page.front().map_or(i64::MAX, |record| record.key.at);
        let cursors = self.kinds.iter_mut().filter(|cursor| !cursor.page.is_empty());
        cursors.min_by_key(oldest)?.page.pop_front().map(|record| record.item)
    }

    /// Reads the pages that are lacking.
    pub(crate) async fn read(
        &self,
        conn: &mut SqliteConnection,
        filter: Filter,
    ) -> Result<[Option<Page>; 3]> {
        let mut pages = [None, None, None];
        for (cursor, page) in self.kinds.iter().zip(&mut pages).filter(|(cursor, _)| cursor.is_hungry()) {
            *page = Some(cursor.read(conn, filter, &self.partition).await?);
        }
        Ok(pages)
    }

    /// Takes the pages that were read.
    pub(crate) fn feed(&mut self, pages: [Option<Page>; 3]) {
        for (cursor, page) in self.kinds.iter_mut().zip(pages) {
            let Some(page) = page else { continue };
            cursor.done = page.len() < PAGE;
            if let Some(last) = page.last() {
                cursor.after = last.key.clone();
            }
            cursor.page = page.into();
        }
    }
}

const EPISODES: &str = "SELECT k.at, k.id, k.content, t.namespace, t.user_id, t.session, t.messages, t.vector, \
     (SELECT model FROM memory_partitions AS p WHERE p.partition = t.partition) AS model \
     FROM memory_episodes AS k CROSS JOIN memory_episode_texts AS t ON t.content = k.content \
     WHERE k.partition = ?1 AND (k.at, k.id) > (?2, ?3) ORDER BY k.at, k.id LIMIT ?5";
const FACTS: &str = "SELECT k.known_from AS at, k.id, k.content, k.confidence, k.valid_from, k.valid_until, k.known_from, \
     k.known_until, k.sources, t.namespace, t.user_id, t.subject, t.predicate, t.object, t.vector, \
     (SELECT model FROM memory_partitions AS p WHERE p.partition = t.partition) AS model \
     FROM memory_facts AS k CROSS JOIN memory_fact_texts AS t ON t.content = k.content \
     WHERE k.partition = ?1 AND (k.known_from, k.id) > (?2, ?3) ORDER BY k.known_from, k.id LIMIT ?5";
const BLOCKS: &str = "SELECT k.updated_at AS at, x'' AS id, k.content, k.place, k.updated_at, t.namespace, t.user_id, t.name, t.text \
     FROM memory_blocks AS k CROSS JOIN memory_block_texts AS t ON t.content = k.content \
     WHERE k.partition = ?1 AND (k.updated_at, k.content) > (?2, ?4) AND ?3 IS NOT NULL \
     ORDER BY k.updated_at, k.content LIMIT ?5";

impl Cursor {
    fn is_hungry(&self) -> bool {
        !self.done && self.page.is_empty()
    }

    async fn read(&self, conn: &mut SqliteConnection, filter: Filter, partition: &[u8]) -> Result<Page> {
        let sql = match self.kind {
            Kind::Episode => EPISODES,
            Kind::Fact => FACTS,
            Kind::Block => BLOCKS,
        };
        let rows = sqlx::query(filter.sql(sql))
            .bind(partition)
            .bind(self.after.at)
            .bind(&self.after.id[..])
            .bind(self.after.content)
            .bind(schema::number(PAGE));
        let rows = rows.fetch_all(conn).await.map_err(failed(OPERATION))?;
        let mut last = None;
        let record = |row: &SqliteRow| {
            let id = row.cell::<&[u8]>("id")?.to_vec();
            let key = Key { at: row.cell("at")?, id, content: row.cell("content")? };
            Ok(Record { key, item: item(self.kind, row, &mut last)? })
        };
        rows.iter().map(record).collect()
    }
}

fn item(kind: Kind, row: &SqliteRow, last: &mut Option<Owner>) -> Result<Owned<ExportItem>> {
    let (owner, item) = match kind {
        Kind::Episode => {
            let key = episodes::Key::of(row)?;
            (row.owner(last)?, rules::export_episode(&episodes::episode(row, key)?)?)
        }
        Kind::Fact => {
            let (owner, fact) = facts::owned(row, last)?;
            (owner, rules::export_fact(&fact, episodes::embedding(row)?.as_ref())?)
        }
        Kind::Block => {
            let (owner, block) = blocks::block(row, last)?;
            (owner, rules::export_block(&block)?)
        }
    };
    Ok(Owned::new(owner, item))
}
