//! What every transaction of the ledger needs: connections, caps, the ids of holds, the time.

use std::sync::Arc;
use std::time::Duration;

use loomflow_core::rules::quota::{Books, HoldIds};
use loomflow_core::{Clock, Error, ErrorKind, Namespace, Result, Timestamp};
use loomflow_support_sql::Damage;
use loomflow_support_sql::postgres::{Access, Pool, Several, failed};

use crate::PostgresLedgerConfig;
use crate::accounts::{Accounts, Place};
use crate::query::Reads;
use crate::schema::{LEDGER, period};

/// Connections, caps, the ids of holds, and the time.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) pool: Pool,
    pub(crate) books: Books,
    pub(crate) period: String,
    pub(crate) ids: HoldIds,
    pub(crate) reads: Reads,
    pub(crate) damage: Damage,
    /// How long the lock of one user is waited for.
    pub(crate) patience: Duration,
    /// In place of the server's.
    pub(crate) clock: Option<Arc<dyn Clock>>,
    /// For transactions of nobody's rows.
    default_namespace: Namespace,
}

impl Store {
    pub(crate) async fn connect(config: &PostgresLedgerConfig) -> Result<Self> {
        config.budget.validate()?;
        let pool = Pool::connect(&config.settings(), &LEDGER, config.migrate).await?;
        let default_namespace = Namespace::default();
        let mut tx =
            pool.begin_several(&Several::new(&default_namespace, &[]), Access::Read, "connect").await?;
        let secret: Vec<u8> = sqlx::query_scalar("SELECT secret FROM ledger_meta")
            .fetch_one(tx.conn())
            .await
            .map_err(failed("connect"))?;
        tx.commit().await?;
        let secret: [u8; 32] = secret.try_into().map_err(|_| {
            Error::new(ErrorKind::Config, "the secret in ledger_meta has not 32 bytes: restore that table")
                .with_operation("connect")
        })?;
        Ok(Self {
            pool,
            books: Books::new(&config.budget),
            period: period(config.budget.window),
            ids: HoldIds::new(&secret),
            reads: Reads::new(config),
            damage: Damage::default(),
            patience: (config.operation_timeout / 40)
                .clamp(Duration::from_millis(20), Duration::from_secs(1)),
            clock: config.clock.clone(),
            default_namespace,
        })
    }

    pub(crate) fn nobody(&self) -> Several<'_> {
        Several::new(&self.default_namespace, &[])
    }

    /// Notes which of these accounts are refused, and which are no more.
    pub(crate) fn note(&self, accounts: &Accounts) {
        for (partition, loaded) in accounts {
            match loaded.check() {
                Ok(()) => self.damage.sound(partition),
                Err(why) => self.damage.found(partition, why.message()),
            }
        }
    }

    pub(crate) fn place<'a>(
        &'a self,
        namespace: &'a Namespace,
        now: Timestamp,
        operation: &'static str,
    ) -> Place<'a> {
        let (books, period) = (self.books, self.period.clone());
        Place { books, namespace, period, reads: self.reads, now, operation }
    }
}
