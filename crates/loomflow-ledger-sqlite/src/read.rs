//! Reads: reports, estimates and exports. They change nothing: what ran out is counted as what it is, and written later.

use std::collections::BTreeMap;

use loomflow_core::rules::quota::{Account, Books, Cell};
use loomflow_core::{
    Epoch, Error, ErrorKind, EstimatedCharge, ExportItem, HoldId, Owned, Owner, Result, Scope, Timestamp,
    UsageReport,
};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::desk::in_window;
use crate::rows::{counter_of, hold_of, select_holds};
use crate::schema::{Author, Columns as _, Filter, in_row, kind};

/// What a read is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look<'a> {
    pub(crate) filter: Filter,
    pub(crate) scope: &'a Scope,
    pub(crate) books: &'a Books,
    pub(crate) now: Timestamp,
}

const COUNTERS: &str = "SELECT n.namespace, n.user_id, c.window, c.state, c.open_holds, c.life FROM ledger_users AS u \
     LEFT JOIN ledger_names AS n ON n.name = u.name \
     JOIN ledger_counters AS c ON c.partition = u.partition AND c.entity = 'user' WHERE u.partition = ?1 ORDER BY c.window";
const DUE: &str = select_holds!("h.partition = ?1 AND h.window = ?2 AND h.ended IS NULL AND h.expires <= ?3");
const ESTIMATES: &str = "SELECT h.place, h.id, h.window, h.run, h.seq, h.state, h.terms, h.granted, h.expires, h.number, \
     h.global, h.life, n.namespace, n.user_id FROM ledger_holds AS h \
     LEFT JOIN ledger_users AS u ON u.partition = h.partition LEFT JOIN ledger_names AS n ON n.name = u.name \
     WHERE h.partition = ?1 AND (h.ended IS NOT NULL OR h.expires <= ?2) ORDER BY h.place";
const EPOCH: &str = "SELECT epoch FROM ledger_users AS u WHERE u.partition = ?1";

impl Look<'_> {
    /// The report on the present kind of window.
    pub(crate) async fn usage(self, conn: &mut SqliteConnection) -> Result<UsageReport> {
        let author = Author::of(self.scope);
        let window = kind(self.books.periods.window());
        let mut usage = Account::new(self.books, self.now).report(self.books, self.now);
        for (found, owner, report) in self.reports(conn, "usage").await? {
            author.check(Some(&owner), "usage")?;
            if found == window {
                usage = report;
            }
        }
        Ok(usage)
    }

    /// A report on each counter of the user, by kind of window.
    async fn reports(
        self,
        conn: &mut SqliteConnection,
        operation: &'static str,
    ) -> Result<Vec<(String, Owner, UsageReport)>> {
        let fail = failed(operation);
        let partition = self.scope.owner().partition();
        let rows = sqlx::query(self.filter.sql(COUNTERS)).bind(&partition[..]);
        let rows = rows.fetch_all(&mut *conn).await.map_err(fail)?;
        let mut reports = Vec::with_capacity(rows.len());
        for row in rows {
            let window: String = row.cell("window")?;
            let books = in_window(self.books, &window)?;
            let due = sqlx::query(self.filter.sql(DUE))
                .bind(&partition[..])
                .bind(&window)
                .bind(self.now.as_micros());
            let due = due.fetch_all(&mut *conn).await.map_err(fail)?;
            let counter = counter_of(&row).map_err(in_row("ledger_counters", &partition, "entity user"))?;
            let mut account = Account::new(&books, self.now);
            (account.user, account.open_holds) = (counter.cell, counter.open_holds);
            account.holds = due.iter().map(|row| hold_of(row, &partition)).collect::<Result<_>>()?;
            reports.push((window, self.owner(&row)?, account.report(&books, self.now)));
        }
        Ok(reports)
    }

    /// The user's estimates, oldest hold first.
    pub(crate) async fn estimates(
        self,
        conn: &mut SqliteConnection,
        operation: &'static str,
    ) -> Result<Vec<(Owner, EstimatedCharge)>> {
        let partition = self.scope.owner().partition();
        let rows = sqlx::query(self.filter.sql(ESTIMATES)).bind(&partition[..]).bind(self.now.as_micros());
        let rows = rows.fetch_all(conn).await.map_err(failed(operation))?;
        let mut accounts: BTreeMap<String, Account> = BTreeMap::new();
        let mut places: BTreeMap<HoldId, (usize, Owner)> = BTreeMap::new();
        for (place, row) in rows.iter().enumerate() {
            let (id, hold) = hold_of(row, &partition)?;
            accounts.entry(row.cell("window")?).or_default().holds.insert(id, hold);
            places.insert(id, (place, self.owner(row)?));
        }
        let mut found = Vec::new();
        for (window, mut account) in accounts {
            // Only what each hold was charged is looked at, not the counters.
            account.expire(&in_window(self.books, &window)?, self.now, &mut Cell::default());
            found.extend(account.estimates());
        }
        found.sort_by_key(|estimate| places.get(&estimate.hold).map(|(place, _)| *place));
        let owned =
            |estimate: EstimatedCharge| places.remove(&estimate.hold).map(|(_, owner)| (owner, estimate));
        Ok(found.into_iter().filter_map(owned).collect())
    }

    /// Every counter, then every estimate.
    pub(crate) async fn export(self, conn: &mut SqliteConnection) -> Result<Vec<Owned<ExportItem>>> {
        let mut items = Vec::new();
        for (_, owner, report) in self.reports(conn, "export").await? {
            items.push(Owned::new(owner, item("counter", &report)?));
        }
        for (owner, estimate) in self.estimates(conn, "export").await? {
            items.push(Owned::new(owner, item("estimate", &estimate)?));
        }
        Ok(items)
    }

    pub(crate) async fn epoch(self, conn: &mut SqliteConnection) -> Result<Epoch> {
        let found = sqlx::query(EPOCH).bind(self.scope.owner().partition().to_vec());
        let row = found.fetch_optional(conn).await.map_err(failed("epoch"))?;
        row.map_or(Ok(Epoch::ZERO), |row| Ok(Epoch::new(row.cell::<i64>("epoch")?.cast_unsigned())))
    }

    /// Whose the row is. One whose name was erased was found by the hash of this very owner.
    fn owner(&self, row: &SqliteRow) -> Result<Owner> {
        Ok(row.owner()?.unwrap_or_else(|| self.scope.owner().clone()))
    }
}

fn item(kind: &str, value: &impl serde::Serialize) -> Result<ExportItem> {
    let data = serde_json::to_value(value);
    let data = data.map_err(|e| {
        Error::new(ErrorKind::Internal, "a counter could not be written as JSON").with_source(e)
    })?;
    Ok(ExportItem::new(kind, data))
}
