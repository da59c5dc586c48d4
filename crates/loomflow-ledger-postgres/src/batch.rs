//! Operations of one namespace, done together in one transaction.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use loomflow_core::rules::quota::{Account, Cell};
use loomflow_core::{
    Charge, Error, ErrorKind, Hold, HoldId, Namespace, Owner, Reserve, Result, RunId, Scope, Settled,
    Timestamp, Usage, UsageReport,
};
use loomflow_support_sql::postgres::{Access, Several, Transaction, failed, is_locked, is_undone};
use sqlx::postgres::PgRow;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::accounts::{Place, Wanted};
use crate::kind::Kind;
use crate::rows::Read;
use crate::schema::Partition;
use crate::store::Store;

/// The time of all of a group, read after its locks were granted.
const NOW: &str = "SELECT coalesce($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS now";

/// The namespace that a transaction named.
const NAMED: &str = "convert_from(decode(current_setting('loomflow.namespace'), 'hex'), 'UTF8')";

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

    /// The hold that it is about, if that is there already.
    fn hold(&self) -> Option<HoldId> {
        match self {
            Self::Sent(id) | Self::Extend(id, _) | Self::Close(id, _) | Self::Reconcile(id, _) => Some(*id),
            Self::Reserve(_) | Self::EndRun(_) | Self::Total => None,
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
    /// Since when it waits.
    pub(crate) since: Instant,
    /// Its places in the queue, until it is answered.
    pub(crate) places: Vec<OwnedSemaphorePermit>,
}

impl Item {
    pub(crate) fn new(store: &Store, scope: &Scope, op: Op, answer: oneshot::Sender<Result<Answer>>) -> Self {
        let owner = scope.owner().clone();
        let id = store.ids.draw(&owner);
        let (partition, epoch) = (owner.partition(), scope.epoch().get());
        Self { owner, partition, epoch, op, id, answer, since: Instant::now(), places: Vec::new() }
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

/// What came of a batch.
#[derive(Debug)]
pub(crate) enum Performed {
    Done(Vec<Result<Answer>>),
    /// A user's lock was not granted in time: nothing was done, and the batch may be performed again.
    Locked,
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

    /// In two, each with half of the users and all that these asked for, in order. Itself again where there is one user.
    pub(crate) fn split(self) -> Result<(Self, Self), Self> {
        let users = Vec::from_iter(self.items.iter().map(|item| item.partition).collect::<BTreeSet<_>>());
        if users.len() < 2 {
            return Err(self);
        }
        let middle = users[users.len() / 2];
        let (left, right) = self.items.into_iter().partition(|item| item.partition < middle);
        Ok((Self::new(self.namespace.clone(), left), Self::new(self.namespace, right)))
    }

    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for item in &self.items {
            match &item.op {
                Op::Reserve(hold) => wanted.key(item.partition, hold.key),
                Op::EndRun(run) => wanted.counter(item.partition, *run),
                op => op.hold().into_iter().for_each(|id| wanted.hold(item.partition, id)),
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
    pub(crate) async fn perform(&self, batch: &Batch) -> Result<Performed> {
        if let Some(unsure) = batch.set_unsure(None)
            && self.was_committed(unsure.transaction.as_deref()).await?
        {
            return Ok(Performed::Done(unsure.answers));
        }
        let mut whole = !self.books.global.is_empty();
        let (mut rounds, mut undone) = (0, 0);
        loop {
            let several = Several::new(&batch.namespace, &batch.partitions).with_whole(whole);
            let several = several.with_patience(self.patience);
            let (question, access) = (self.question(whole), Access::Exclusive);
            let begun = self.pool.begin_several_asking(&several, access, &question, "ledger").await;
            let (mut tx, answer) = match begun {
                Err(error) if is_locked(&error) => return Ok(Performed::Locked),
                begun => begun?,
            };
            match self.work(&mut tx, &answer, batch, whole, rounds < ROUNDS).await {
                Ok(Worked::Done(done)) => {
                    batch.set_unsure(Some(done));
                    tx.commit().await?;
                    let done = batch.set_unsure(None);
                    return Ok(Performed::Done(done.map(|done| done.answers).unwrap_or_default()));
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
                        Err(error) if is_locked(&error) => rounds = ROUNDS,
                        // Whoever is due is locked: what they hold stays held for now.
                        swept => {
                            if !swept?.found {
                                rounds = ROUNDS;
                            }
                        }
                    }
                }
                Err(error) if is_undone(&error) && undone < UNDONE => {
                    tx.undo().await;
                    undone = batch.pause(undone).await;
                }
                Err(error) if is_locked(&error) => {
                    tx.undo().await;
                    return Ok(Performed::Locked);
                }
                Err(error) => return Err(tx.refuse(error).await),
            }
        }
    }

    /// Reads, judges and writes.
    async fn work(
        &self,
        tx: &mut Transaction,
        answer: &PgRow,
        batch: &Batch,
        whole: bool,
        sweeps: bool,
    ) -> Result<Worked> {
        let (now, total) = if whole {
            let (now, total, due) = self.answer(answer, &batch.namespace)?;
            if due && sweeps && !self.books.global.is_empty() {
                return Ok(Worked::LeasesRanOut);
            }
            (now, total)
        } else {
            let read = Read { row: answer, table: "clock", operation: "ledger" };
            (Timestamp::from_micros(read.get("now")?), None)
        };
        let place = self.place(&batch.namespace, now, "ledger");
        let mut kinds = self.kinds(tx, place, batch, total, whole).await?;
        if !whole && kinds.iter().any(Kind::is_counted) {
            return Ok(Worked::CountedInTotal);
        }
        let answers = batch.items.iter().map(|item| self.apply(item, &mut kinds)).collect();
        let mut transaction = None;
        for (n, kind) in kinds.iter().enumerate() {
            let written = kind.write(tx, whole && n == 0).await?;
            transaction = transaction.or(written);
        }
        Ok(Worked::Done(Unsure { transaction, answers }))
    }

    /// The accounts that a batch is about: of the present kind of window first, and of those that a hold was reserved in that
    /// is asked about.
    async fn kinds<'a>(
        &self,
        tx: &mut Transaction,
        place: Place<'a>,
        batch: &Batch,
        total: Option<Cell>,
        whole: bool,
    ) -> Result<Vec<Kind<'a>>> {
        let wanted = batch.wanted();
        let present = Kind::load(tx, place, &batch.partitions, &wanted, total).await?;
        self.note(&present.accounts);
        let elsewhere = present.elsewhere(tx, &wanted).await?;
        let mut kinds = vec![present];
        for (period, wanted) in elsewhere {
            let of = (&*wanted.partitions(), &wanted);
            let place = kinds[0].place.clone();
            let other = self.other_kind(tx, &place, &period, of, whole).await?;
            kinds[0].refuse_with(of.0, other.as_ref());
            kinds.extend(other);
        }
        Ok(kinds)
    }

    fn apply(&self, item: &Item, kinds: &mut [Kind<'_>]) -> Result<Answer> {
        let of = |error: Error| error.with_operation(item.op.name());
        let holds = |kind: &Kind<'_>, id| {
            kind.accounts.get(&item.partition).is_some_and(|loaded| loaded.account.holds.contains_key(&id))
        };
        // A hold is settled in the kind of window it was reserved in.
        let at = item.op.hold().and_then(|id| kinds.iter().position(|kind| holds(kind, id))).unwrap_or(0);
        let Kind { place, accounts, total, .. } = &mut kinds[at];
        let (books, now) = (&place.books, place.now);
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

    /// Asks, as a transaction of `whole` begins, for the time after its locks were granted, what all users together have, and
    /// whether somebody's lease ran out; otherwise for the time alone.
    pub(crate) fn question(&self, whole: bool) -> String {
        let clock = || "(extract(epoch FROM clock_timestamp()) * 1000000)".to_owned();
        let now = self.told_now().map_or_else(clock, |now| format!("({now})"));
        if !whole {
            return format!("SELECT {now}::bigint AS now");
        }
        // The program's own word for a window.
        let period = self.period.replace('\'', "");
        format!(
            "WITH clock AS MATERIALIZED (SELECT {now}::bigint AS now)
             SELECT now, (SELECT cell FROM ledger_totals WHERE namespace = {NAMED} AND period = '{period}') AS cell,
               ledger_due({NAMED}, '{period}', now) AS due FROM clock"
        )
    }

    /// The answer to the [`question`](Self::question) about the whole: the time, what all users together have, and whether
    /// somebody's lease ran out.
    pub(crate) fn answer(
        &self,
        row: &PgRow,
        namespace: &Namespace,
    ) -> Result<(Timestamp, Option<Cell>, bool)> {
        let read = Read { row, table: "ledger_totals", operation: "ledger" };
        let is_there = read.get::<Option<&str>>("cell")?.is_some();
        let total = is_there.then(|| read.total(namespace, &self.period)).transpose()?;
        Ok((Timestamp::from_micros(read.get("now")?), total, read.get("due")?))
    }

    fn told_now(&self) -> Option<i64> {
        self.clock.as_ref().map(|clock| clock.now().as_micros())
    }
}
