//! Operations of one namespace, done together in one transaction.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use loomflow_core::rules::quota::{Account, Cell};
use loomflow_core::{
    Charge, Error, ErrorKind, Hold, HoldId, Namespace, Owner, Reserve, Result, RunId, Scope, Settled,
    Timestamp, Usage, UsageReport,
};
use loomflow_support_sql::postgres::{Access, Several, Transaction, failed, is_undone};
use sqlx::Row as _;
use tokio::sync::oneshot;

use crate::accounts::{Accounts, Loaded, Place, Wanted};
use crate::schema::Partition;
use crate::store::Store;

/// The time of all of a group, read after its locks were granted.
const NOW: &str = "SELECT coalesce($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS now";

/// Beside it what all users together have, and whether somebody's lease ran out.
const NOW_AND_TOTAL: &str = "
WITH clock AS MATERIALIZED (
  SELECT coalesce($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS now
)
SELECT now, (SELECT cell FROM ledger_totals WHERE namespace = $2 AND period = $3) AS cell, ledger_due($2, $3, now) AS due
FROM clock";

const OUTCOME: &str = "SELECT pg_xact_status($1::text::xid8)";

/// How often a group is begun anew: because leases ran out, or because the server undid it.
const ROUNDS: u32 = 20;
const UNDONE: u32 = 6;
/// How long a server may take to end a transaction whose connection was lost.
const LOOKS: u32 = 40;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to do.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Reserve(Hold),
    Sent(HoldId),
    Extend(HoldId, Duration),
    Close(HoldId, Charge),
    Reconcile(HoldId, Usage),
    EndRun(RunId),
    /// What all users together have, leases that ran out taken off.
    Total,
}

impl Op {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Reserve(_) => "reserve",
            Self::Sent(_) => "sent",
            Self::Extend(..) => "extend",
            Self::Close(..) => "close",
            Self::Reconcile(..) => "reconcile",
            Self::EndRun(_) => "end_run",
            Self::Total => "namespace_usage",
        }
    }
}

/// What an operation is answered with.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Reserve(Reserve),
    Settled(Settled),
    Report(Box<UsageReport>),
}

/// An operation, and who waits for it.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) owner: Owner,
    partition: Partition,
    epoch: u64,
    pub(crate) op: Op,
    /// The id of the hold, if one is granted: the same, however often the operation is tried.
    id: HoldId,
    pub(crate) answer: oneshot::Sender<Result<Answer>>,
}

impl Item {
    pub(crate) fn new(store: &Store, scope: &Scope, op: Op, answer: oneshot::Sender<Result<Answer>>) -> Self {
        let owner = scope.owner().clone();
        let id = store.ids.draw(&owner);
        Self { partition: owner.partition(), owner, epoch: scope.epoch().get(), op, id, answer }
    }

    /// By which the lane is chosen.
    pub(crate) fn partition(&self) -> &Partition {
        &self.partition
    }
}

/// Operations of one namespace, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    namespace: Namespace,
    items: Vec<Item>,
    partitions: Vec<Partition>,
    /// What was answered by a transaction of which it is not known whether it was committed.
    unsure: Mutex<Option<Unsure>>,
}

#[derive(Debug)]
struct Unsure {
    transaction: Option<String>,
    answers: Vec<Result<Answer>>,
}

/// What came of working on a transaction.
enum Worked {
    Done(Unsure),
    /// Somebody's lease ran out, and all users together have caps.
    LeasesRanOut,
    /// A hold is counted among all users together, although they have no caps by now.
    CountedInTotal,
}

impl Batch {
    /// These operations, all of them of this namespace.
    pub(crate) fn new(namespace: Namespace, items: Vec<Item>) -> Self {
        let counted = items.iter().filter(|item| !matches!(item.op, Op::Total));
        let partitions: BTreeSet<Partition> = counted.map(|item| item.partition).collect();
        Self { namespace, items, partitions: Vec::from_iter(partitions), unsure: Mutex::default() }
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn into_items(self) -> Vec<Item> {
        self.items
    }

    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for item in &self.items {
            match &item.op {
                Op::Reserve(hold) => wanted.key(item.partition, hold.key),
                Op::Sent(id) | Op::Extend(id, _) | Op::Close(id, _) | Op::Reconcile(id, _) => {
                    wanted.hold(item.partition, *id);
                }
                Op::EndRun(run) => wanted.counter(item.partition, *run),
                Op::Total => {}
            }
        }
        wanted
    }

    /// A pause that differs from batch to batch, before it is begun for the next time.
    async fn pause(&self, undone: u32) -> u32 {
        let drawn = self.items.first().map_or(0, |item| item.id.as_u128() % (4 << undone));
        tokio::time::sleep(Duration::from_millis(u64::try_from(drawn).unwrap_or(1))).await;
        undone + 1
    }

    fn set_unsure(&self, unsure: Option<Unsure>) -> Option<Unsure> {
        std::mem::replace(&mut self.unsure.lock().unwrap_or_else(PoisonError::into_inner), unsure)
    }
}

impl Store {
    /// Does all operations of a batch, or none; answers each. May be called again after it failed.
    ///
    /// # Errors
    ///
    /// What the server fails with. That it undid the transaction because of another is tried again here.
    pub(crate) async fn perform(&self, batch: &Batch) -> Result<Vec<Result<Answer>>> {
        if let Some(unsure) = batch.set_unsure(None)
            && self.was_committed(unsure.transaction.as_deref()).await?
        {
            return Ok(unsure.answers);
        }
        let mut whole = !self.books.global.is_empty();
        let (mut rounds, mut undone) = (0, 0);
        loop {
            let several = Several::new(&batch.namespace, &batch.partitions).with_whole(whole);
            let mut tx = self.pool.begin_several(&several, Access::Exclusive, "ledger").await?;
            match self.work(&mut tx, batch, whole, rounds < ROUNDS).await {
                Ok(Worked::Done(done)) => {
                    batch.set_unsure(Some(done));
                    tx.commit().await?;
                    let done = batch.set_unsure(None);
                    return Ok(done.map(|done| done.answers).unwrap_or_default());
                }
                Ok(Worked::CountedInTotal) => {
                    whole = true;
                    tx.undo().await;
                }
                Ok(Worked::LeasesRanOut) => {
                    rounds += 1;
                    tx.undo().await;
                    match self.sweep(&batch.namespace, false).await {
                        Err(error) if is_undone(&error) && undone < UNDONE => {
                            undone = batch.pause(undone).await
                        }
                        swept => drop(swept?),
                    }
                }
                Err(error) if is_undone(&error) && undone < UNDONE => {
                    tx.undo().await;
                    undone = batch.pause(undone).await;
                }
                Err(error) => return Err(tx.refuse(error).await),
            }
        }
    }

    /// Reads, judges and writes.
    async fn work(&self, tx: &mut Transaction, batch: &Batch, whole: bool, sweeps: bool) -> Result<Worked> {
        let (now, mut total) = if whole {
            let (now, total, due) = self.now_and_total(tx, &batch.namespace).await?;
            if due && sweeps && !self.books.global.is_empty() {
                return Ok(Worked::LeasesRanOut);
            }
            (now, total)
        } else {
            (self.now(tx).await?, None)
        };
        let place = self.place(&batch.namespace, now, "ledger");
        let mut accounts = place.load(tx, &batch.partitions, &batch.wanted()).await?;
        let is_counted = |loaded: &Loaded| loaded.account.holds.values().any(|hold| hold.global);
        if !whole && accounts.values().any(is_counted) {
            return Ok(Worked::CountedInTotal);
        }
        let before = total.clone();
        let mut cell = total.take().unwrap_or_else(|| Cell::new(self.books.periods.number(now)));
        let answers =
            batch.items.iter().map(|item| self.apply(item, &place, &mut accounts, &mut cell)).collect();
        let changed = whole && before.as_ref() != Some(&cell);
        let transaction = place.write(tx, &accounts, changed.then_some(&cell)).await?;
        Ok(Worked::Done(Unsure { transaction, answers }))
    }

    fn apply(
        &self,
        item: &Item,
        place: &Place<'_>,
        accounts: &mut Accounts,
        total: &mut Cell,
    ) -> Result<Answer> {
        let (books, now) = (&self.books, place.now);
        let of = |error: Error| error.with_operation(item.op.name());
        if let Op::Total = item.op {
            return Ok(Answer::Report(Box::new(Account::report_global(books, now, total))));
        }
        let Some(loaded) = accounts.get_mut(&item.partition) else {
            return Err(of(Error::new(ErrorKind::Internal, "the account was not loaded")));
        };
        loaded.check().map_err(of)?;
        loaded.name(&item.owner, item.epoch);
        let account = &mut loaded.account;
        let drawn = |id| self.ids.granted(&item.owner, id);
        match &item.op {
            Op::Reserve(hold) => account.reserve(books, now, total, item.id, hold).map(Answer::Reserve),
            Op::Sent(id) => account.sent(books, now, total, *id).map(|()| Answer::Done),
            Op::Extend(id, lease) => account.extend(books, now, total, *id, *lease).map(|()| Answer::Done),
            Op::Close(id, charge) => {
                account.close(books, now, total, *id, charge, drawn(*id)).map(Answer::Settled)
            }
            Op::Reconcile(id, usage) => {
                account.reconcile(books, now, total, *id, *usage, drawn(*id)).map(Answer::Settled)
            }
            Op::EndRun(run) => {
                account.runs.remove(run);
                Ok(Answer::Done)
            }
            Op::Total => Ok(Answer::Done),
        }
        .map_err(of)
    }

    /// Whether a transaction whose connection was lost was committed. The server knows; where it is asked too late or was
    /// replaced by another, the answer is no, and the operations are done again: they are idempotent.
    async fn was_committed(&self, transaction: Option<&str>) -> Result<bool> {
        let Some(transaction) = transaction else { return Ok(false) };
        for _ in 0..LOOKS {
            let mut tx = self.pool.begin_several(&self.nobody(), Access::Read, "ledger").await?;
            let status =
                sqlx::query_scalar::<_, Option<String>>(OUTCOME).bind(transaction).fetch_one(tx.conn());
            let status = match status.await.map_err(failed("ledger")) {
                Ok(status) => status,
                // Not a transaction of this server.
                Err(error) if error.kind() == ErrorKind::Internal => None,
                Err(error) => return Err(tx.refuse(error).await),
            };
            tx.undo().await;
            match status.as_deref() {
                Some("committed") => return Ok(true),
                Some("in progress") => tokio::time::sleep(LOOK_EVERY).await,
                _ => return Ok(false),
            }
        }
        let message = "the connection was lost, and its transaction has not ended yet";
        Err(Error::new(ErrorKind::Transport, message).with_operation("ledger"))
    }

    pub(crate) async fn now(&self, tx: &mut Transaction) -> Result<Timestamp> {
        let micros: i64 = sqlx::query_scalar(NOW)
            .bind(self.told_now())
            .fetch_one(tx.conn())
            .await
            .map_err(failed("ledger"))?;
        Ok(Timestamp::from_micros(micros))
    }

    pub(crate) async fn now_and_total(
        &self,
        tx: &mut Transaction,
        namespace: &Namespace,
    ) -> Result<(Timestamp, Option<Cell>, bool)> {
        let row = sqlx::query(NOW_AND_TOTAL)
            .bind(self.told_now())
            .bind(namespace.as_str())
            .bind(&self.period)
            .fetch_one(tx.conn())
            .await
            .map_err(failed("ledger"))?;
        let read = crate::rows::Read { row: &row, operation: "ledger" };
        let is_there = row.try_get::<Option<&str>, _>("cell").map_err(failed("ledger"))?.is_some();
        let total = is_there.then(|| read.cell()).transpose()?;
        Ok((Timestamp::from_micros(read.get("now")?), total, read.get("due")?))
    }

    fn told_now(&self) -> Option<i64> {
        self.clock.as_ref().map(|clock| clock.now().as_micros())
    }
}
