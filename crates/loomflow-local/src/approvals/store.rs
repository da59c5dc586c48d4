//! Requests for approval and remembered approvals, in memory: single use, bound to one call, visible to who made them and
//! who may decide.

mod shelf;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::rules::approvals::{self as rules, Decider, Recorded};
use loomflow_core::{
    Approval, ApprovalDecision, ApprovalGrant, ApprovalId, ApprovalPage, ApprovalRequest, ApprovalState,
    ApprovalStore, Clock, Digest, Epoch, Erase, Erased, Error, ErrorKind, ExportStream, GrantId, Owned,
    Owner, Result, Scope, SystemClock, TenantData, Timestamp, UserId, export_from,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::shelf::{Filed, Full, Shelf};
use crate::epochs::{EpochTable, MAX_ERASED};

/// A waiter looks at the clock again after this long, so that a clock that is set does not strand it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Keeps requests for approval, and approvals that are remembered, in memory.
///
/// It holds 100,000 requests, and 1,000 of one tenant; and 100,000 grants, 100 of one tenant. Where it is full, requests that
/// were used or have expired and grants that are over make room; what can still be decided or used is never given up, and a
/// further one is refused with [`ErrorKind::Capacity`].
pub struct InMemoryApprovalStore {
    clock: Arc<dyn Clock>,
    /// The most, and the most of one tenant.
    requests: (usize, usize),
    grants: (usize, usize),
    table: Mutex<Table>,
}

struct Table {
    requests: Shelf<ApprovalId, Row>,
    grants: Shelf<GrantId, ApprovalGrant>,
    epochs: EpochTable,
}

struct Row {
    approval: Approval,
    changed: Arc<Notify>,
}

impl Row {
    fn pending(owner: Owner, request: ApprovalRequest) -> Filed<Self> {
        let (at, approvers) = (request.requested_at, request.approvers.clone());
        let approval = Approval::new(request, ApprovalState::Pending);
        Filed { owner, at, approvers, record: Self { approval, changed: Arc::new(Notify::new()) } }
    }

    fn state(&self, now: Timestamp) -> ApprovalState {
        rules::state_at(&self.approval.state, self.approval.request.expires_at, now)
    }
}

fn seen_at(filed: &Filed<Row>, now: Timestamp) -> Owned<Approval> {
    let seen = Approval::new(filed.record.approval.request.clone(), filed.record.state(now));
    Owned::new(filed.owner.clone(), seen)
}

impl InMemoryApprovalStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            requests: (100_000, rules::MAX_REQUESTS_PER_USER),
            grants: (100_000, rules::MAX_GRANTS_PER_USER),
            table: Mutex::new(Table {
                requests: Shelf::new(),
                grants: Shelf::new(),
                epochs: EpochTable::new(MAX_ERASED),
            }),
        }
    }

    /// Holds at most `requests`, and at most `per_user` of one tenant.
    #[must_use]
    pub fn with_capacity(mut self, requests: usize, per_user: usize) -> Self {
        self.requests = (requests, per_user);
        self
    }

    /// Holds at most `grants` that are live, and at most `per_user` of one tenant.
    #[must_use]
    pub fn with_grants(mut self, grants: usize, per_user: usize) -> Self {
        self.grants = (grants, per_user);
        self
    }

    /// Reads the time from `clock` where no caller gives it: when making room, and while waiting for an expiry.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Files a row of `owner` under the key of `filed_under`, by raw means. For the conformance suite only, which checks
    /// that such a row is noticed; nothing else may call it.
    #[doc(hidden)]
    pub fn plant_for_conformance(&self, filed_under: &Owner, owner: Owner, request: ApprovalRequest) {
        let id = request.id;
        self.table.lock().requests.misfile(filed_under, id, Row::pending(owner, request));
    }

    /// As [`InMemoryApprovalStore::plant_for_conformance`], for a grant.
    #[doc(hidden)]
    pub fn plant_grant_for_conformance(&self, filed_under: &Owner, owner: Owner, grant: ApprovalGrant) {
        self.table.lock().grants.misfile(filed_under, grant.id, filed(owner, grant));
    }

    fn record(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decider: Decider<'_>,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        let mut table = self.table.lock();
        let found = match decider {
            Decider::Person(_) => table.visible(scope, id)?,
            Decider::Handler(_) => table.own(scope, id)?,
        };
        let owner = found.owner.clone();
        if scope.owns(&owner) {
            table.epochs.check(scope, "decide approval")?;
        }
        let grant =
            rules::decide(&table.own_of(&owner, id)?.record.approval, &owner, decider, &decision, now)?;
        if let Some(grant) = grant {
            table.remember(owner.clone(), grant, self.grants, now)?;
        }
        let by = decider.user_id().cloned();
        let row = &mut table.own_of(&owner, id)?.record;
        row.approval.state = ApprovalState::Decided { decision, by };
        row.changed.notify_waiters();
        Ok(())
    }
}

fn filed(owner: Owner, grant: ApprovalGrant) -> Filed<ApprovalGrant> {
    Filed { owner, at: grant.granted_at, approvers: grant.approvers.clone(), record: grant }
}

fn shown(filed: &Filed<ApprovalGrant>) -> Owned<ApprovalGrant> {
    Owned::new(filed.owner.clone(), filed.record.clone())
}

impl Table {
    fn own_of(&mut self, owner: &Owner, id: ApprovalId) -> Result<&mut Filed<Row>> {
        self.requests.get_mut(id).filter(|row| row.owner == *owner).ok_or_else(rules::not_found)
    }

    fn own(&mut self, scope: &Scope, id: ApprovalId) -> Result<&mut Filed<Row>> {
        self.own_of(scope.owner(), id)
    }

    fn visible(&self, scope: &Scope, id: ApprovalId) -> Result<&Filed<Row>> {
        self.requests.get(id).filter(|row| is_visible(row, scope)).ok_or_else(rules::not_found)
    }

    fn remember(
        &mut self,
        owner: Owner,
        grant: ApprovalGrant,
        most: (usize, usize),
        now: Timestamp,
    ) -> Result<()> {
        let is_over = |grant: &ApprovalGrant| grant.expires_at <= now;
        let (_, room) = self.grants.make_room(&owner, most, now, is_over, |grant| grant.expires_at);
        room.map_err(|full| match full {
            Full::OfUser => rules::too_many_grants("this user has", most.1),
            Full::Altogether => rules::too_many_grants("there are", most.0),
        })?;
        self.grants.insert(grant.id, filed(owner, grant));
        Ok(())
    }
}

fn is_visible(filed: &Filed<Row>, scope: &Scope) -> bool {
    scope.owns(&filed.owner) || filed.record.approval.request.may_decide(&filed.owner, scope.owner())
}

impl Default for InMemoryApprovalStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InMemoryApprovalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.lock();
        f.debug_struct("InMemoryApprovalStore")
            .field("requests", &table.requests.len())
            .field("grants", &table.grants.len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ApprovalStore for InMemoryApprovalStore {
    async fn create(&self, scope: &Scope, request: ApprovalRequest) -> Result<()> {
        let now = self.clock.now();
        let mut table = self.table.lock();
        table.epochs.check(scope, "create approval")?;
        if table.requests.get(request.id).is_some() {
            return Err(Error::new(ErrorKind::Conflict, "a request of that id exists already"));
        }
        let is_over = |row: &Row| rules::is_over(&row.state(now));
        let ends = |row: &Row| row.approval.request.expires_at;
        let (gone, room) = table.requests.make_room(scope.owner(), self.requests, now, is_over, ends);
        gone.iter().for_each(|row| row.record.changed.notify_waiters());
        room.map_err(|full| match full {
            Full::OfUser => rules::too_many_requests("this user has", self.requests.1),
            Full::Altogether => rules::too_many_requests("there are", self.requests.0),
        })?;
        table.requests.insert(request.id, Row::pending(scope.owner().clone(), request));
        Ok(())
    }

    async fn get(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<Owned<Approval>> {
        self.table.lock().visible(scope, id).map(|row| seen_at(row, now))
    }

    async fn list(&self, scope: &Scope, now: Timestamp, page: ApprovalPage) -> Result<Vec<Owned<Approval>>> {
        let table = self.table.lock();
        let pending = |row: &&Filed<Row>| row.record.state(now) == ApprovalState::Pending;
        let known = table.requests.known_to(scope, page.place()).map(|(_, row)| row);
        let known = known.filter(|row| is_visible(row, scope)).filter(pending);
        Ok(known.take(page.limit()).map(|row| seen_at(row, now)).collect())
    }

    async fn lapsed(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<Approval>>> {
        let mut table = self.table.lock();
        let expired = |row: &&Filed<Row>| row.record.state(now) == ApprovalState::Expired;
        let own = table.requests.own(scope.owner()).filter(|(_, row)| expired(row));
        let ids: Vec<_> = own.map(|(id, _)| id).take(rules::LAPSED_AT_ONCE).collect();
        let mut lapsed = Vec::with_capacity(ids.len());
        for id in ids {
            let filed = table.own(scope, id)?;
            lapsed.push(seen_at(filed, now));
            let Recorded { decision, by } = match &filed.record.approval.state {
                ApprovalState::Decided { decision, by } => {
                    Recorded { decision: decision.clone(), by: by.clone() }
                }
                _ => rules::lapsed(),
            };
            filed.record.approval.state = ApprovalState::Void { decision, by };
            filed.record.changed.notify_waiters();
        }
        table.requests.sweep_again();
        Ok(lapsed)
    }

    async fn decide(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        self.record(scope, id, Decider::Person(scope.owner()), decision, now)
    }

    async fn decide_by_handler(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        by: Option<UserId>,
        now: Timestamp,
    ) -> Result<()> {
        self.record(scope, id, Decider::Handler(by.as_ref()), decision, now)
    }

    async fn consume(
        &self,
        scope: &Scope,
        id: ApprovalId,
        binding: Digest,
        policy_version: u64,
        now: Timestamp,
    ) -> Result<(ApprovalDecision, Option<UserId>)> {
        let mut table = self.table.lock();
        let row = &mut table.own(scope, id)?.record;
        let taken = rules::consume(&row.approval, binding, policy_version, now)?;
        let (decision, by) = taken.clone();
        row.approval.state = ApprovalState::Consumed { decision, by };
        row.changed.notify_waiters();
        table.requests.sweep_again();
        Ok(taken)
    }

    async fn void(&self, scope: &Scope, id: ApprovalId, _now: Timestamp) -> Result<bool> {
        let mut table = self.table.lock();
        let row = &mut table.own(scope, id)?.record;
        let Some(void) = rules::void(&row.approval.state)? else { return Ok(false) };
        row.approval.state = void;
        row.changed.notify_waiters();
        table.requests.sweep_again();
        Ok(true)
    }

    async fn remembered(
        &self,
        scope: &Scope,
        tool: &str,
        now: Timestamp,
    ) -> Result<Vec<Owned<ApprovalGrant>>> {
        let table = self.table.lock();
        let live = |grant: &ApprovalGrant| *grant.tool == *tool && now < grant.expires_at;
        let own = table.grants.own(scope.owner()).map(|(_, grant)| grant);
        Ok(own.filter(|grant| live(&grant.record)).map(shown).collect())
    }

    async fn grants(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<ApprovalGrant>>> {
        let table = self.table.lock();
        let known = table.grants.known_to(scope, None).map(|(_, grant)| grant);
        Ok(known.filter(|grant| now < grant.record.expires_at).map(shown).collect())
    }

    async fn revoke(&self, scope: &Scope, id: GrantId) -> Result<Owned<ApprovalGrant>> {
        let mut table = self.table.lock();
        let known = |grant: &&Filed<ApprovalGrant>| grant.record.is_known_to(&grant.owner, scope.owner());
        table.grants.get(id).filter(known).ok_or_else(rules::not_found)?;
        table.grants.remove(id).map(|gone| Owned::new(gone.owner, gone.record)).ok_or_else(rules::not_found)
    }

    async fn changed(&self, scope: &Scope, id: ApprovalId) -> Result<()> {
        let changed = self.table.lock().own(scope, id)?.record.changed.clone();
        let mut change = std::pin::pin!(changed.notified());
        // Registered before the look, so that a decision between the look and the wait is not missed.
        change.as_mut().enable();
        let now = self.clock.now();
        let left = {
            let mut table = self.table.lock();
            // Gone since the first look: the caller looks again and is told so.
            let Ok(row) = table.own(scope, id) else { return Ok(()) };
            if row.record.state(now) != ApprovalState::Pending {
                return Ok(());
            }
            row.record.approval.request.expires_at.saturating_since(now)
        };
        // Changed or not: the caller looks again either way.
        let _either = tokio::time::timeout(left.min(LONGEST_WAIT), change).await;
        Ok(())
    }
}

#[async_trait]
impl TenantData for InMemoryApprovalStore {
    fn store_name(&self) -> &str {
        "approvals:inmemory"
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        Ok(self.table.lock().epochs.get(scope.owner()))
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let now = self.clock.now();
        let table = self.table.lock();
        let requests = table.requests.own(scope.owner()).map(|(_, row)| {
            let item = rules::export_approval(&row.record.approval.request, &row.record.state(now));
            Owned::new(row.owner.clone(), item)
        });
        let grants = table.grants.own(scope.owner());
        let grants = grants.map(|(_, g)| Owned::new(g.owner.clone(), rules::export_grant(&g.record)));
        Ok(export_from(requests.chain(grants).collect()))
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let mut table = self.table.lock();
        table.epochs.advance(scope)?;
        let receipt = Erased::new(self.store_name());
        let owner = scope.owner();
        if what.session.is_some() {
            let held = table.requests.own(owner).next().is_some() || table.grants.own(owner).next().is_some();
            let receipt = receipt.with_count("approval", 0).with_count("grant", 0);
            return Ok(if held { receipt.with_retained(rules::NOT_OF_A_SESSION) } else { receipt });
        }
        let goes = |asked: Timestamp| what.before.is_none_or(|before| asked < before);
        let requests: Vec<_> =
            table.requests.own(owner).filter(|(_, row)| goes(row.at)).map(|(id, _)| id).collect();
        let grants: Vec<_> = table
            .grants
            .own(owner)
            .filter(|(_, grant)| goes(grant.record.requested_at))
            .map(|(id, _)| id)
            .collect();
        for row in requests.iter().filter_map(|id| table.requests.remove(*id)).collect::<Vec<_>>() {
            row.record.changed.notify_waiters();
        }
        for id in &grants {
            table.grants.remove(*id);
        }
        Ok(receipt.with_count("approval", requests.len() as u64).with_count("grant", grants.len() as u64))
    }
}

#[cfg(test)]
mod tests;
