//! What is done for one user outside of a group: reading usage, estimates and an export, and taking the name off.

use loomflow_core::rules::quota::Cell;
use loomflow_core::{
    Erase, Erased, Error, ErrorKind, EstimatedCharge, ExportItem, ExportStream, Owned, Owner, Result, Scope,
    Timestamp, UsageReport, export_from,
};
use loomflow_support_sql::postgres::{Access, Several, Transaction, failed};

use crate::accounts::{Accounts, ESTIMATES, Loaded, Place, Wanted};
use crate::ledger::STORE;
use crate::schema::Partition;
use crate::store::Store;

/// The epoch of an erasure stays, so that a scope from before does not write the name again.
const RAISE: &str = "
INSERT INTO ledger_users (namespace, period, partition, named, epoch, open_holds, cell, until)
VALUES ($1, $2, $3, false, $4, 0, $5, $6)
ON CONFLICT (partition, period) DO NOTHING";

const UNNAME: &str = "
WITH runs AS (UPDATE ledger_runs SET named = false, user_id = NULL WHERE partition = $1 AND named),
  holds AS (UPDATE ledger_holds SET named = false, user_id = NULL WHERE partition = $1 AND named),
  users AS (UPDATE ledger_users SET named = false, user_id = NULL, epoch = greatest(epoch, $2),
    until = CASE WHEN until IS NOT NULL THEN greatest(until, $3) END WHERE partition = $1)
SELECT count(*) FROM ledger_users WHERE partition = $1 AND named";

const HAS_HOLDS: &str = "SELECT EXISTS (SELECT FROM ledger_holds WHERE partition = $1)";

impl Store {
    pub(crate) async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        let (loaded, now) = self.look(scope, false, "usage").await?;
        Ok(loaded.account.report(&self.books, now))
    }

    pub(crate) async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let (loaded, now) = self.look(scope, false, "export").await?;
        if !loaded.is_stored {
            return Ok(export_from(Vec::new()));
        }
        let data = serde_json::to_value(loaded.account.report(&self.books, now)).map_err(|e| {
            Error::new(ErrorKind::Internal, "a counter could not be written as JSON").with_source(e)
        })?;
        Ok(export_from(vec![Owned::new(owner(&loaded, scope), ExportItem::new("counter", data))]))
    }

    /// The newest, oldest first. A lease that ran out is an estimate although nobody settled it yet.
    pub(crate) async fn estimates(&self, scope: &Scope) -> Result<Vec<Owned<EstimatedCharge>>> {
        let (mut loaded, now) = self.look(scope, true, "estimates").await?;
        loaded.account.expire(&self.books, now, &mut Cell::new(i64::MIN));
        let mut estimates = loaded.account.estimates();
        estimates.sort_by_key(|charge| (loaded.made.get(&charge.hold).copied(), charge.hold.as_u128()));
        let most = usize::try_from(ESTIMATES).unwrap_or(usize::MAX);
        let newest = estimates.split_off(estimates.len().saturating_sub(most));
        let owner = owner(&loaded, scope);
        Ok(newest.into_iter().map(|charge| Owned::new(owner.clone(), charge)).collect())
    }

    /// Looks at a user's account, with the estimates of windows of every kind if they are wanted.
    async fn look(
        &self,
        scope: &Scope,
        estimates: bool,
        operation: &'static str,
    ) -> Result<(Loaded, Timestamp)> {
        let partitions = [scope.owner().partition()];
        let several = Several::new(scope.namespace(), &partitions);
        let mut tx = self.pool.begin_several(&several, Access::Read, operation).await?;
        let now = self.now(&mut tx).await?;
        let place = self.place(scope.namespace(), now, operation);
        let mut accounts = place.load(&mut tx, &partitions, &Wanted::default()).await?;
        if estimates {
            place.load_estimates(&mut tx, &partitions, &mut accounts).await?;
            self.add_lapsed(&mut tx, &place, &partitions, &mut accounts).await?;
        }
        tx.commit().await?;
        self.note(&accounts);
        let missing = || Error::new(ErrorKind::Internal, "the account was not loaded");
        let loaded = accounts.remove(&partitions[0]).ok_or_else(missing)?;
        loaded.check().map_err(|e| e.with_operation(operation))?;
        Ok((loaded, now))
    }

    /// Adds what became an estimate in windows of other kinds because its lease ran out, although nobody settled it yet.
    async fn add_lapsed(
        &self,
        tx: &mut Transaction,
        place: &Place<'_>,
        partitions: &[Partition],
        accounts: &mut Accounts,
    ) -> Result<()> {
        for (partition, loaded) in accounts.iter_mut().filter(|(partition, _)| partitions.contains(partition))
        {
            for period in std::mem::take(&mut loaded.periods) {
                let of = (&[*partition][..], &Wanted::default());
                let Some(mut kind) = self.other_kind(tx, place, &period, of, false).await? else { continue };
                kind.expire();
                let Some(other) = kind.accounts.remove(partition) else { continue };
                if let Err(error) = other.check() {
                    loaded.refuse(&error);
                }
                loaded.account.holds.extend(other.account.holds);
                loaded.made.extend(other.made);
            }
        }
        Ok(())
    }

    pub(crate) async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let partitions = [scope.owner().partition()];
        let several = Several::new(scope.namespace(), &partitions);
        let mut tx = self.pool.begin_several(&several, Access::Exclusive, "forget").await?;
        match self.forget_alone(&mut tx, scope, what).await {
            Ok(erased) => {
                tx.commit().await?;
                Ok(erased)
            }
            Err(error) => Err(tx.refuse(error).await),
        }
    }

    async fn forget_alone(&self, tx: &mut Transaction, scope: &Scope, what: &Erase) -> Result<Erased> {
        let partition = scope.owner().partition();
        let now = self.now(tx).await?;
        let place = self.place(scope.namespace(), now, "forget");
        let accounts = place.load(tx, &[partition], &Wanted::default()).await?;
        let holds: bool = sqlx::query_scalar(HAS_HOLDS)
            .bind(partition)
            .fetch_one(tx.conn())
            .await
            .map_err(failed("forget"))?;
        let counted = |loaded: &Loaded| !loaded.is_blank() || !loaded.periods.is_empty();
        let kept = holds || accounts.get(&partition).is_some_and(counted);
        let names = if what.is_everything() { self.unname(tx, scope, now).await? } else { 0 };
        let line = Erased::new(STORE).with_count("counter_name", names);
        Ok(if !kept {
            line
        } else if what.is_everything() {
            line.with_retained(
                "the usage counters, without the name and under a hash, until their window ends: erasing them would \
                 give a fresh quota",
            )
        } else {
            line.with_retained("the usage counters: they belong to no session and hold no content")
        })
    }

    /// Takes the name off every row of the user, and keeps it off for scopes from before. Answers how many counters had it.
    async fn unname(&self, tx: &mut Transaction, scope: &Scope, now: Timestamp) -> Result<u64> {
        let partition = scope.owner().partition();
        let place = self.place(scope.namespace(), now, "forget");
        let epoch = i64::try_from(scope.epoch().get()).unwrap_or(i64::MAX);
        let names: i64 = sqlx::query_scalar(UNNAME)
            .bind(partition)
            .bind(epoch)
            .bind(place.retained())
            .fetch_one(tx.conn())
            .await
            .map_err(failed("forget"))?;
        sqlx::query(RAISE)
            .bind(scope.namespace().as_str())
            .bind(&self.period)
            .bind(partition)
            .bind(epoch)
            .bind(crate::write::json(&Cell::new(self.books.periods.number(now)))?)
            .bind(place.retained())
            .execute(tx.conn())
            .await
            .map_err(failed("forget"))?;
        Ok(names.unsigned_abs())
    }
}

/// Whose the counter says it is. One without a name was found by the hash of this very owner.
fn owner(loaded: &Loaded, scope: &Scope) -> Owner {
    loaded.name.clone().unwrap_or_else(|| scope.owner().clone())
}
