//! Rows as records: everything is decoded from what the row itself holds, its owner first.

use loomflow_core::rules::quota::{Cell, HoldRecord, RunCell};
use loomflow_core::{Digest, Error, ErrorKind, HoldId, HoldKey, Namespace, Owner, Result, RunId, Timestamp};
use loomflow_support_sql::postgres::failed;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row as _, Type};

use crate::schema::Partition;

/// A row that an operation read.
#[derive(Clone, Copy)]
pub(crate) struct Read<'r> {
    pub(crate) row: &'r PgRow,
    pub(crate) operation: &'static str,
}

impl<'r> Read<'r> {
    pub(crate) fn get<T: Decode<'r, Postgres> + Type<Postgres>>(self, column: &'static str) -> Result<T> {
        self.row.try_get(column).map_err(failed(self.operation))
    }

    pub(crate) fn partition(self) -> Result<Partition> {
        self.get::<&[u8]>("partition")?.try_into().map_err(|_| self.wrong("a partition has not 32 bytes"))
    }

    /// Whose the row says it is; nobody, where the name was taken off.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IsolationViolation`] when it is filed under a partition that is not its owner's.
    pub(crate) fn owner(self, namespace: &Namespace) -> Result<Option<Owner>> {
        let stored: &str = self.get("namespace")?;
        let named: bool = self.get("named")?;
        let owner = if named {
            let owner = Owner::from_columns(stored, self.get("user_id")?)
                .map_err(|e| e.with_operation(self.operation))?;
            Some(owner)
        } else {
            None
        };
        let partition = self.partition()?;
        if stored != namespace.as_str() || owner.as_ref().is_some_and(|owner| owner.partition() != partition)
        {
            return Err(foreign(self.operation));
        }
        Ok(owner)
    }

    pub(crate) fn cell(self) -> Result<Cell> {
        self.json("cell")
    }

    pub(crate) fn run(self) -> Result<RunCell> {
        Ok(RunCell::new(HoldId::from_u128(self.id("life")?), self.cell()?))
    }

    pub(crate) fn hold(self) -> Result<HoldRecord> {
        let seq = u32::try_from(self.get::<i64>("seq")?)
            .map_err(|_| self.wrong("the number of a hold is out of range"))?;
        let terms =
            self.get::<&[u8]>("terms")?.try_into().map_err(|_| self.wrong("a digest has not 32 bytes"))?;
        let record = HoldRecord::new(
            HoldKey::new(RunId::from_u128(self.id("run")?), seq),
            self.json("state")?,
            Digest::from_bytes(terms),
            self.json("granted")?,
            Timestamp::from_micros(self.get("expires")?),
            self.get("number")?,
        );
        let life = self.get::<Option<&[u8]>>("life")?.map(|life| self.bytes_of_id(life)).transpose()?;
        Ok(record.with_counters(self.get("global")?, life.map(HoldId::from_u128)))
    }

    pub(crate) fn id(self, column: &'static str) -> Result<u128> {
        self.bytes_of_id(self.get(column)?)
    }

    fn bytes_of_id(self, id: &[u8]) -> Result<u128> {
        id.try_into().map(u128::from_be_bytes).map_err(|_| self.wrong("an id has not 16 bytes"))
    }

    fn json<T: DeserializeOwned>(self, column: &'static str) -> Result<T> {
        serde_json::from_str(self.get(column)?)
            .map_err(|e| self.wrong("a counter is no JSON of one").with_source(e))
    }

    fn wrong(self, what: &str) -> Error {
        let message = format!("{what}: the row was not written by this program");
        Error::new(ErrorKind::Internal, message).with_operation(self.operation)
    }
}

pub(crate) fn foreign(operation: &'static str) -> Error {
    let message = "a stored row of another tenant was read; it was withheld";
    Error::new(ErrorKind::IsolationViolation, message).with_operation(operation)
}
