//! One write: what it loads of a user and of all users together, what it lets run out, and what it writes back.

use std::collections::BTreeMap;
use std::sync::Arc;

use loomflow_core::rules::quota::{Account, Books, Cell, Periods};
use loomflow_core::{Owner, Result, RunId, Timestamp};
use loomflow_support_sql::sqlite::failed;
use loomflow_support_sql::window_of;
use sqlx::sqlite::SqliteConnection;

use crate::keeping::Keeping;
use crate::prune;
use crate::rows::{self, Counter, Entity, Loaded, Pick};
use crate::schema::{Author, Columns as _, Key, damaged, is_damage, kind};

/// Holds of others that one write lets run out at most, so that none pays for all.
pub(crate) const SWEEP: i64 = 256;

/// What a write is told.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) operation: &'static str,
    pub(crate) author: Author,
    pub(crate) books: Books,
    /// Whether it clears away a little of what nobody needs.
    pub(crate) prunes: bool,
    pub(crate) keeping: Arc<Keeping>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Desk<'c> {
    pub(crate) conn: &'c mut SqliteConnection,
    pub(crate) operation: &'static str,
    pub(crate) now: Timestamp,
    /// No new counter begins in an earlier window than that of this moment.
    begin: Timestamp,
    books: Books,
    space: Key,
    pub(crate) keeping: Arc<Keeping>,
    /// The counters of all users together by kind of window: as they were, and as they are.
    globals: BTreeMap<String, (Option<Cell>, Cell)>,
}

/// What is kept of a user beside the counters.
struct User {
    /// The epoch of the last erasure; `None` for a user who is not known.
    epoch: Option<u64>,
    named: Option<Owner>,
    floor: Timestamp,
}

const USER: &str = "SELECT m.floor, u.epoch, n.namespace, n.user_id FROM ledger_meta AS m \
                    LEFT JOIN ledger_users AS u ON u.partition = ?1 \
                    LEFT JOIN ledger_names AS n ON n.name = u.name WHERE m.one = 1";
const WINDOW_OF: &str = "SELECT window FROM ledger_holds WHERE partition = ?1 AND id = ?2";

/// Does one operation on the author's account. What ran out meanwhile is written even where the operation is refused.
pub(crate) async fn change<T: Send>(
    conn: &mut SqliteConnection,
    order: &Order,
    now: Timestamp,
    pick: Pick,
    act: impl FnOnce(&mut Account, &Books, &mut Cell) -> Result<T> + Send,
) -> Result<Result<T>> {
    let Order { operation, author, books, prunes, .. } = order;
    let user = user(conn, author, operation).await?;
    let mut desk = Desk::new(conn, order, now, user.floor);
    let mut window = kind(books.periods.window());
    if let Pick::Id(id) = pick {
        let asked =
            sqlx::query(WINDOW_OF).bind(&author.partition[..]).bind(id.as_u128().to_be_bytes().to_vec());
        let asked = asked.fetch_optional(&mut *desk.conn).await.map_err(failed(operation))?;
        // A hold is settled in the account it was reserved in.
        if let Some(row) = asked {
            window = row.cell("window")?;
        }
    }
    if !books.global.is_empty() {
        desk.sweep(now, SWEEP, Some((&author.partition, &window))).await?;
    }
    let mut loaded = desk.load(author.partition, &window, pick).await?;
    order.keeping.damage.sound(&author.partition);
    let mut global = desk.take_global(&loaded).await?;
    let outcome = act(&mut loaded.account, &loaded.books, &mut global.1);
    desk.put_global(&window, global);
    if loaded.has_new_hold() {
        remember(desk.conn, author, &user, operation).await?;
    }
    desk.save(loaded).await?;
    if *prunes {
        prune::stale(&mut desk).await?;
    }
    desk.finish().await?;
    if *prunes {
        prune::clear(&mut desk).await?;
        prune::users(&mut desk, author).await?;
    }
    Ok(outcome)
}

/// Lets holds of the whole namespace run out. Answers the counter of all users together, and whether any did: then more
/// may be due.
pub(crate) async fn settle_all(
    conn: &mut SqliteConnection,
    order: &Order,
    now: Timestamp,
) -> Result<(Cell, bool)> {
    let Order { operation, author, books, .. } = order;
    let user = user(conn, author, operation).await?;
    let mut desk = Desk::new(conn, order, now, user.floor);
    let swept = desk.sweep(now, SWEEP, None).await?;
    let window = kind(books.periods.window());
    let cell = desk.global(&window).await?.1.clone();
    desk.finish().await?;
    Ok((cell, swept))
}

async fn user(conn: &mut SqliteConnection, author: &Author, operation: &'static str) -> Result<User> {
    let found =
        sqlx::query(USER).bind(&author.partition[..]).fetch_one(conn).await.map_err(failed(operation))?;
    let epoch = found.cell::<Option<i64>>("epoch")?.map(i64::cast_unsigned);
    let user = User { epoch, named: found.owner()?, floor: found.time("floor")? };
    author.check(user.named.as_ref(), operation)?;
    Ok(user)
}

const NAME: &str = "INSERT INTO ledger_names (namespace, user_id) VALUES (?1, ?2)";
const KNOW: &str = "INSERT INTO ledger_users (partition, epoch, name) VALUES (?1, 0, ?2) \
                    ON CONFLICT (partition) DO UPDATE SET name = excluded.name";

/// Puts the name beside the counters of a user who has none; not for a scope from before the user's erasure.
async fn remember(
    conn: &mut SqliteConnection,
    author: &Author,
    user: &User,
    operation: &'static str,
) -> Result<()> {
    if user.named.is_some() || user.epoch.is_some_and(|epoch| author.epoch.get() < epoch) {
        return Ok(());
    }
    let fail = failed(operation);
    let name = sqlx::query(NAME).bind(author.namespace()).bind(author.user_id());
    let name = name.execute(&mut *conn).await.map_err(fail)?.last_insert_rowid();
    let know = sqlx::query(KNOW).bind(&author.partition[..]).bind(name);
    know.execute(&mut *conn).await.map(drop).map_err(fail)
}

/// The caps in windows of another kind.
pub(crate) fn in_window(books: &Books, window: &str) -> Result<Books> {
    let mut books = *books;
    let window = window_of(window).ok_or_else(|| damaged("window"))?;
    books.periods = Periods::new(window);
    Ok(books)
}

const DUE_OF_ALL: &str = "SELECT partition, window, count(*) AS holds FROM (SELECT partition, window FROM ledger_holds \
                          WHERE space = ?1 AND ended IS NULL AND expires <= ?2 ORDER BY expires LIMIT ?3 OFFSET ?4) \
                          GROUP BY partition, window";
/// How often a sweep looks further where all that it found are of accounts that it cannot settle.
const LOOKS: u32 = 4;

impl<'c> Desk<'c> {
    fn new(conn: &'c mut SqliteConnection, order: &Order, now: Timestamp, floor: Timestamp) -> Self {
        let Order { operation, author, books, keeping, .. } = order;
        let (space, globals, keeping) = (author.space, BTreeMap::new(), keeping.clone());
        Self { conn, operation, now, begin: now.max(floor), books: *books, space, keeping, globals }
    }

    /// Closes holds of the namespace whose lease ran out by `until`, those of the users of the first `limit` ones; the
    /// account `but` is loaded by itself. Answers whether there were any.
    ///
    /// An account with a damaged row is passed by: what it holds stays held, and nobody else waits for its repair.
    pub(crate) async fn sweep(
        &mut self,
        until: Timestamp,
        limit: i64,
        but: Option<(&Key, &str)>,
    ) -> Result<bool> {
        let mut passed = 0;
        for _ in 0..LOOKS {
            let due = sqlx::query(DUE_OF_ALL).bind(&self.space[..]).bind(until.as_micros());
            let due = due.bind(limit).bind(passed).fetch_all(&mut *self.conn).await;
            let (mut found, mut settled) = (0, false);
            for row in &due.map_err(failed(self.operation))? {
                let (partition, window): (Key, &str) = (row.bytes("partition")?, row.cell("window")?);
                found += row.cell::<i64>("holds")?;
                settled |= but != Some((&partition, window)) && self.settle(partition, window).await?;
            }
            passed += found;
            if settled || found < limit {
                return Ok(settled);
            }
        }
        Ok(false)
    }

    /// Closes the holds of one account whose lease ran out. Answers whether it could be read.
    async fn settle(&mut self, partition: Key, window: &str) -> Result<bool> {
        match self.expire(partition, window).await {
            Ok(()) => Ok(true),
            Err(error) if is_damage(&error) => {
                self.keeping.damage.found(&partition, error.message());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn expire(&mut self, partition: Key, window: &str) -> Result<()> {
        let mut loaded = self.load(partition, window, Pick::None).await?;
        let mut global = self.take_global(&loaded).await?;
        loaded.account.expire(&loaded.books, self.now, &mut global.1);
        self.put_global(window, global);
        self.save(loaded).await
    }

    async fn load(&mut self, partition: Key, window: &str, pick: Pick) -> Result<Loaded> {
        let books = in_window(&self.books, window)?;
        let of = (partition, window.to_owned(), books);
        rows::load(self.conn, of, (self.now, self.begin), pick, self.operation).await
    }

    async fn save(&mut self, loaded: Loaded) -> Result<()> {
        loaded.save(self.conn, &self.space, self.now, self.operation).await
    }

    /// The counter of all users together, taken out to be changed; a blank one where nothing of the account is counted in it.
    async fn take_global(&mut self, loaded: &Loaded) -> Result<(Option<Cell>, Cell)> {
        if !loaded.books.global.is_empty() || loaded.is_in_global() {
            self.global(&loaded.window).await?;
        }
        Ok(self.globals.remove(&loaded.window).unwrap_or_default())
    }

    fn put_global(&mut self, window: &str, global: (Option<Cell>, Cell)) {
        // A blank one was never looked for in the file.
        if global != Default::default() {
            self.globals.insert(window.to_owned(), global);
        }
    }

    async fn global(&mut self, window: &str) -> Result<&(Option<Cell>, Cell)> {
        if !self.globals.contains_key(window) {
            let found = rows::counter(self.conn, &self.space, Entity::Global, window, self.operation).await?;
            let stored = found.map(|counter| counter.cell);
            let blank = || Ok(Cell::new(in_window(&self.books, window)?.periods.number(self.begin)));
            let cell = stored.clone().map_or_else(blank, Ok)?;
            self.globals.insert(window.to_owned(), (stored, cell));
        }
        Ok(&self.globals[window])
    }

    /// Writes the counters of all users together.
    async fn finish(&mut self) -> Result<()> {
        for (window, (stored, cell)) in std::mem::take(&mut self.globals) {
            let books = in_window(&self.books, &window)?;
            let is_blank = stored.is_none() && cell == Cell::new(cell.window);
            if is_blank || stored.as_ref() == Some(&cell) {
                continue;
            }
            let counter = Counter { cell, open_holds: 0, life: None };
            let idle = rows::idle_at(&counter, &books, self.now);
            let entity = Entity::Global;
            rows::put_counter(self.conn, &self.space, entity, &window, &counter, idle, self.operation)
                .await?;
        }
        Ok(())
    }
}

const END_RUN: &str =
    "DELETE FROM ledger_counters WHERE partition = ?1 AND entity = 'run' AND window = '' AND run = ?2";

/// Takes out the counter of a run. Holds of it that are open know by its life that it is gone.
pub(crate) async fn end_run(conn: &mut SqliteConnection, author: &Author, run: RunId) -> Result<()> {
    let end = sqlx::query(END_RUN).bind(&author.partition[..]).bind(run.as_u128().to_be_bytes().to_vec());
    end.execute(conn).await.map(drop).map_err(failed("end_run"))
}
