//! The accounts of a transaction in one kind of window, and what all users together have in it.
//!
//! A budget whose window changed leaves holds in the old kind. They are settled there, with the arithmetic of that kind:
//! nearly always there is one kind in a transaction, the present one.

use std::collections::BTreeMap;

use loomflow_core::rules::quota::Cell;
use loomflow_core::{Error, ErrorKind, Namespace, Result};
use loomflow_support_sql::postgres::{Transaction, failed};

use crate::accounts::{Accounts, Loaded, Place, Wanted};
use crate::rows::Read;
use crate::schema::Partition;
use crate::store::Store;

const TOTAL: &str = "SELECT cell FROM ledger_totals WHERE namespace = $1 AND period = $2";

/// See the module.
#[derive(Debug)]
pub(crate) struct Kind<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) accounts: Accounts,
    /// What all users together have.
    pub(crate) total: Cell,
    total_before: Option<Cell>,
}

impl<'a> Kind<'a> {
    /// The accounts of `partitions`, beside what all users together have; `None` where nothing is stored.
    ///
    /// # Errors
    ///
    /// As [`Place::load`].
    pub(crate) async fn load(
        tx: &mut Transaction,
        place: Place<'a>,
        partitions: &[Partition],
        wanted: &Wanted,
        total: Option<Cell>,
    ) -> Result<Self> {
        let accounts = place.load(tx, partitions, wanted).await?;
        let blank = || Cell::new(place.books.periods.number(place.now));
        Ok(Self { total: total.clone().unwrap_or_else(blank), total_before: total, accounts, place })
    }

    /// Whether a hold is counted among all users together.
    pub(crate) fn is_counted(&self) -> bool {
        self.accounts.values().any(|loaded| loaded.account.holds.values().any(|hold| hold.global))
    }

    /// Lets leases run out. Answers whose account cannot be settled, because a row of theirs is damaged.
    pub(crate) fn expire(&mut self) -> Vec<Partition> {
        let mut wrong = Vec::new();
        for (partition, loaded) in &mut self.accounts {
            if loaded.check().is_ok() {
                loaded.account.expire(&self.place.books, self.place.now, &mut self.total);
            } else {
                wrong.push(*partition);
            }
        }
        wrong
    }

    /// Refuses whom `other` refuses: who is asked about there must not be told that nothing is there. All of these users where
    /// their rows are of a kind that this program does not know.
    pub(crate) fn refuse_with(&mut self, partitions: &[Partition], other: Option<&Self>) {
        for partition in partitions {
            let check = match other {
                Some(other) => other.accounts.get(partition).map_or(Ok(()), Loaded::check),
                None => Err(Error::new(
                    ErrorKind::Internal,
                    "a hold of this account is of a kind of window that this program does not know: a newer one, or a \
                     damaged row (table ledger_holds, column period)",
                )),
            };
            if let (Err(error), Some(loaded)) = (check, self.accounts.get_mut(partition)) {
                loaded.refuse(&error);
            }
        }
    }

    /// Writes what changed; `begins` the counter of all users together where none is stored. Answers with the transaction's
    /// id, if anything was written.
    ///
    /// # Errors
    ///
    /// What the server fails with.
    pub(crate) async fn write(&self, tx: &mut Transaction, begins: bool) -> Result<Option<String>> {
        let changed = self.total_before.as_ref().map_or(begins, |before| *before != self.total);
        self.place.write(tx, &self.accounts, changed.then_some(&self.total)).await
    }

    /// In which other kinds the wanted holds are that are not in this one, and whose.
    ///
    /// # Errors
    ///
    /// What the server fails with.
    pub(crate) async fn elsewhere(
        &self,
        tx: &mut Transaction,
        wanted: &Wanted,
    ) -> Result<BTreeMap<String, Wanted>> {
        let mut found: BTreeMap<String, Wanted> = BTreeMap::new();
        for (partition, period, id) in self.place.find(tx, wanted.missing(&self.accounts)).await? {
            found.entry(period).or_default().hold(partition, id);
        }
        Ok(found)
    }
}

impl Store {
    /// Accounts in another kind of window than the present one. `None` where this program does not know that kind.
    ///
    /// What all users together have in it is looked at when `whole` is locked; where that cannot be read, the accounts are
    /// refused.
    ///
    /// # Errors
    ///
    /// As [`Kind::load`].
    pub(crate) async fn other_kind<'a>(
        &self,
        tx: &mut Transaction,
        place: &Place<'a>,
        period: &str,
        (partitions, wanted): (&[Partition], &Wanted),
        whole: bool,
    ) -> Result<Option<Kind<'a>>> {
        let Some(place) = place.of_kind(period) else { return Ok(None) };
        let total = if whole { total(tx, place.namespace, period).await? } else { Ok(None) };
        let (total, damage) = total.map_or_else(|error| (None, Some(error)), |total| (total, None));
        let mut kind = Kind::load(tx, place, partitions, wanted, total).await?;
        if let Some(error) = damage {
            kind.accounts.values_mut().for_each(|loaded| loaded.refuse(&error));
        }
        Ok(Some(kind))
    }
}

/// What all users together have, if that can be read.
async fn total(
    tx: &mut Transaction,
    namespace: &Namespace,
    period: &str,
) -> Result<Result<Option<Cell>, Error>> {
    let row = sqlx::query(TOTAL).bind(namespace.as_str()).bind(period);
    let row = row.fetch_optional(tx.conn()).await.map_err(failed("ledger"))?;
    let read = |row: &_| Read { row, table: "ledger_totals", operation: "ledger" }.total(namespace, period);
    Ok(row.as_ref().map(read).transpose())
}
