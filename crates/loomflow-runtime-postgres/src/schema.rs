//! Where a scope becomes a key, a row and a policy: nowhere else.

use loomflow_core::rules::approvals::{self as rules, Recorded};
use loomflow_core::{
    Approval, ApprovalRequest, ApprovalState, Error, ErrorKind, Identity, Owned, Owner, Result, Scope,
    Timestamp, UserId,
};
use loomflow_support_sql::postgres::{Component, Policy, Table};
use loomflow_support_sql::{Migration, own_partition};
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row as _, Type};

pub(crate) const STORE: &str = "approvals:postgres";

const MIGRATIONS: [Migration; 1] =
    [Migration::new(1, "requests and grants", include_str!("../migrations/0001_approvals.sql"))];

/// Whether the session's partition is among those that may decide.
macro_rules! decides {
    () => {
        concat!("(deciders @> ARRAY[", own_partition!(), "])")
    };
}

/// Who may decide a request sees it, and may decide it while it is pending, in their own name.
const OF_REQUESTS: [Policy; 2] = [
    Policy::select("loomflow_decider_sees", decides!()),
    Policy::update(
        "loomflow_decider_decides",
        concat!("(", decides!(), " AND (state = 0))"),
        concat!("(", decides!(), " AND (state = 1) AND (decider = ", own_partition!(), "))"),
    ),
];
/// They see the grant that was given on it, and may take it back.
const OF_GRANTS: [Policy; 2] = [
    Policy::select("loomflow_decider_sees", decides!()),
    Policy::delete("loomflow_decider_revokes", decides!()),
];

/// Nothing of a request can be changed but where it stands.
const TABLES: [Table; 3] = [
    Table::new("approvals_partitions", "SELECT, INSERT, UPDATE"),
    Table::new("approvals_requests", "SELECT, INSERT, DELETE, UPDATE (state, decision, decider)")
        .with_policies(&OF_REQUESTS),
    Table::new("approvals_grants", "SELECT, INSERT, DELETE").with_policies(&OF_GRANTS),
];

/// The tables of this crate.
pub(crate) const APPROVALS: Component = Component::new("approvals", &MIGRATIONS, &TABLES);

/// The columns that a scope becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'o> {
    pub(crate) partition: [u8; 32],
    pub(crate) namespace: &'o str,
    pub(crate) user_id: Option<&'o str>,
}

impl<'o> Key<'o> {
    pub(crate) fn of(owner: &'o Owner) -> Self {
        Self {
            partition: owner.partition(),
            namespace: owner.namespace().as_str(),
            user_id: owner.user_id().map(UserId::as_str),
        }
    }
}

/// The partitions of a request's approvers.
pub(crate) fn deciders(requester: &Owner, approvers: &[UserId]) -> Vec<Vec<u8>> {
    let partition = |user: &UserId| {
        Owner::new(requester.namespace().clone(), Identity::User(user.clone())).partition().to_vec()
    };
    approvers.iter().map(partition).collect()
}

pub(crate) fn id_column(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

/// A record as JSON.
pub(crate) fn json(record: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(record)
        .map_err(|e| Error::new(ErrorKind::Internal, "a record cannot be written as JSON").with_source(e))
}

/// Refuses a row that is filed under the scope's partition and says that it is somebody else's.
pub(crate) fn check(scope: &Scope, owner: &Owner, operation: &'static str) -> Result<()> {
    if scope.owns(owner) {
        return Ok(());
    }
    let message = "a row is filed in a partition that is not its owner's; it was withheld";
    Err(Error::new(ErrorKind::IsolationViolation, message).with_operation(operation))
}

/// A row as it is read.
#[derive(Clone, Copy)]
pub(crate) struct Read<'r>(pub(crate) &'r PgRow);

impl<'r> Read<'r> {
    pub(crate) fn get<T: Decode<'r, Postgres> + Type<Postgres>>(self, name: &'static str) -> Result<T> {
        self.0.try_get(name).map_err(|e| damaged(name).with_source(e))
    }

    /// Whose it says it is.
    pub(crate) fn owner(self) -> Result<Owner> {
        Owner::from_columns(self.get("namespace")?, self.get("user_id")?)
    }

    pub(crate) fn body<T: DeserializeOwned>(self, name: &'static str) -> Result<T> {
        serde_json::from_str(self.get(name)?).map_err(|e| damaged(name).with_source(e))
    }

    /// A request with what is recorded of it, whatever the time is.
    pub(crate) fn approval(self) -> Result<Approval> {
        let request: ApprovalRequest = self.body("body")?;
        let state = match self.get::<i16>("state")? {
            0 => ApprovalState::Pending,
            1 => {
                let Recorded { decision, by } = self.body("decision")?;
                ApprovalState::Decided { decision, by }
            }
            2 => {
                let Recorded { decision, by } = self.body("decision")?;
                ApprovalState::Consumed { decision, by }
            }
            _ => {
                let Recorded { decision, by } = self.body("decision")?;
                ApprovalState::Void { decision, by }
            }
        };
        Ok(Approval::new(request, state))
    }

    /// A request as it stands at `now`.
    pub(crate) fn shown(self, now: Timestamp) -> Result<Owned<Approval>> {
        let Approval { request, state, .. } = self.approval()?;
        let state = rules::state_at(&state, request.expires_at, now);
        Ok(Owned::new(self.owner()?, Approval::new(request, state)))
    }
}

/// An error for a row that this program did not write.
fn damaged(column: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "a stored row cannot be read")
        .with_operation("read")
        .with_context("column", column)
}
