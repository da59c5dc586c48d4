//! Requests for approval, in memory: single use, bound to one call, visible to who made them and who may decide.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hashbrown::HashMap;
use loomflow_core::{
    Approval, ApprovalDecision, ApprovalId, ApprovalRequest, ApprovalState, ApprovalStore, Clock, Digest,
    Epoch, Erase, Erased, Error, ErrorKind, ExportItem, ExportStream, Namespace, Owned, Owner, Result, Scope,
    SystemClock, TenantData, Timestamp, UserId, export_from,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;

use crate::epochs::{EpochTable, MAX_ERASED};

/// A waiter looks at the clock again after this long, so that a clock that is set does not strand it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Keeps requests for approval in memory.
///
/// It holds 100,000 requests, and 1,000 of one tenant. Where it is full, requests that were used or have expired make
/// room, oldest first; what can still be decided or used is never given up, and a further request is refused with
/// [`ErrorKind::Capacity`].
pub struct InMemoryApprovalStore {
    clock: Arc<dyn Clock>,
    max_requests: usize,
    max_per_user: usize,
    table: Mutex<Table>,
}

struct Table {
    rows: HashMap<ApprovalId, Row>,
    /// Ordered by when they were asked.
    by_owner: HashMap<Owner, BTreeSet<(Timestamp, ApprovalId)>>,
    /// Whom a request names as an approver, within its namespace.
    by_approver: HashMap<(Namespace, UserId), BTreeSet<(Timestamp, ApprovalId)>>,
    epochs: EpochTable,
    /// Until when a sweep over everything is known to find nothing, so that a full store is not swept for each refusal.
    swept_until: Timestamp,
}

struct Row {
    owner: Owner,
    approval: Approval,
    changed: Arc<Notify>,
}

impl Row {
    fn pending(owner: Owner, request: ApprovalRequest) -> Self {
        let approval = Approval::new(request, ApprovalState::Pending);
        Self { owner, approval, changed: Arc::new(Notify::new()) }
    }

    /// Where the request stands at `now`: time ends what nobody ended.
    fn state(&self, now: Timestamp) -> ApprovalState {
        match &self.approval.state {
            ApprovalState::Consumed => ApprovalState::Consumed,
            _ if now >= self.approval.request.expires_at => ApprovalState::Expired,
            state => state.clone(),
        }
    }

    fn is_over(&self, now: Timestamp) -> bool {
        matches!(self.state(now), ApprovalState::Consumed | ApprovalState::Expired)
    }

    fn seen_at(&self, now: Timestamp) -> Owned<Approval> {
        Owned::new(self.owner.clone(), Approval::new(self.approval.request.clone(), self.state(now)))
    }

    fn place(&self) -> (Timestamp, ApprovalId) {
        (self.approval.request.requested_at, self.approval.request.id)
    }

    /// Records a decision on a request that is pending.
    fn decide(&mut self, decision: ApprovalDecision, by: Option<UserId>, now: Timestamp) -> Result<()> {
        if let ApprovalDecision::Edit { args } = &decision
            && !args.is_object()
        {
            return Err(Error::invalid_input("edited arguments are a JSON object"));
        }
        match self.state(now) {
            ApprovalState::Pending => {
                self.approval.state = ApprovalState::Decided { decision, by };
                self.changed.notify_waiters();
                Ok(())
            }
            ApprovalState::Expired => Err(conflict("the request has expired")),
            _ => Err(conflict("the request was decided already")),
        }
    }
}

impl InMemoryApprovalStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            max_requests: 100_000,
            max_per_user: 1_000,
            table: Mutex::new(Table {
                rows: HashMap::new(),
                by_owner: HashMap::new(),
                by_approver: HashMap::new(),
                epochs: EpochTable::new(MAX_ERASED),
                swept_until: Timestamp::MIN,
            }),
        }
    }

    /// Holds at most `requests`, and at most `per_user` of one tenant.
    #[must_use]
    pub fn with_capacity(mut self, requests: usize, per_user: usize) -> Self {
        self.max_requests = requests;
        self.max_per_user = per_user;
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
        let row = Row::pending(owner, request);
        let mut table = self.table.lock();
        table.by_owner.entry(filed_under.clone()).or_default().insert(row.place());
        table.rows.insert(row.approval.request.id, row);
    }
}

impl Table {
    fn own(&mut self, scope: &Scope, id: ApprovalId) -> Result<&mut Row> {
        self.rows.get_mut(&id).filter(|row| scope.owns(&row.owner)).ok_or_else(not_found)
    }

    fn visible(&mut self, scope: &Scope, id: ApprovalId) -> Result<&mut Row> {
        let may_see =
            |row: &Row| scope.owns(&row.owner) || row.approval.request.may_decide(&row.owner, scope.owner());
        self.rows.get_mut(&id).filter(|row| may_see(row)).ok_or_else(not_found)
    }

    fn insert(&mut self, row: Row) {
        let place = row.place();
        self.by_owner.entry(row.owner.clone()).or_default().insert(place);
        for approver in row.approval.request.approvers.iter() {
            let key = (row.owner.namespace().clone(), approver.clone());
            self.by_approver.entry(key).or_default().insert(place);
        }
        self.rows.insert(place.1, row);
    }

    fn remove(&mut self, id: ApprovalId) {
        let Some(row) = self.rows.remove(&id) else { return };
        let place = row.place();
        if let Some(places) = self.by_owner.get_mut(&row.owner) {
            places.remove(&place);
            if places.is_empty() {
                self.by_owner.remove(&row.owner);
            }
        }
        for approver in row.approval.request.approvers.iter() {
            let key = (row.owner.namespace().clone(), approver.clone());
            if let Some(places) = self.by_approver.get_mut(&key) {
                places.remove(&place);
                if places.is_empty() {
                    self.by_approver.remove(&key);
                }
            }
        }
        row.changed.notify_waiters();
    }

    /// Makes room for one more request of `owner` out of what is over. A sweep frees everything it can, so that its
    /// cost is shared by the requests that follow.
    fn make_room(&mut self, owner: &Owner, max: usize, max_per_user: usize, now: Timestamp) -> Result<()> {
        if self.by_owner.get(owner).is_some_and(|own| own.len() >= max_per_user) {
            let own: Vec<_> = self.by_owner.get(owner).into_iter().flatten().map(|(_, id)| *id).collect();
            self.sweep(own, now);
            if self.by_owner.get(owner).is_some_and(|own| own.len() >= max_per_user) {
                return Err(full("this user has", max_per_user));
            }
        }
        if self.rows.len() >= max && now >= self.swept_until {
            let all: Vec<_> = self.rows.keys().copied().collect();
            self.sweep(all, now);
            self.swept_until =
                self.rows.values().map(|row| row.approval.request.expires_at).min().unwrap_or_default();
        }
        if self.rows.len() >= max {
            return Err(full("there are", max));
        }
        Ok(())
    }

    fn sweep(&mut self, ids: Vec<ApprovalId>, now: Timestamp) {
        for id in ids {
            if self.rows.get(&id).is_some_and(|row| row.is_over(now)) {
                self.remove(id);
            }
        }
    }

    fn places(&self, scope: &Scope) -> BTreeSet<(Timestamp, ApprovalId)> {
        let mut places = self.by_owner.get(scope.owner()).cloned().unwrap_or_default();
        if let Some(user) = scope.user_id()
            && let Some(asked) = self.by_approver.get(&(scope.namespace().clone(), user.clone()))
        {
            places.extend(asked);
        }
        places
    }
}

impl Default for InMemoryApprovalStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InMemoryApprovalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryApprovalStore")
            .field("requests", &self.table.lock().rows.len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ApprovalStore for InMemoryApprovalStore {
    async fn create(&self, scope: &Scope, request: ApprovalRequest) -> Result<()> {
        let now = self.clock.now();
        let mut table = self.table.lock();
        table.epochs.check(scope, "create approval")?;
        if table.rows.contains_key(&request.id) {
            return Err(conflict("a request of that id exists already"));
        }
        table.make_room(scope.owner(), self.max_requests, self.max_per_user, now)?;
        table.insert(Row::pending(scope.owner().clone(), request));
        Ok(())
    }

    async fn get(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<Owned<Approval>> {
        self.table.lock().visible(scope, id).map(|row| row.seen_at(now))
    }

    async fn list(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<Approval>>> {
        let mut table = self.table.lock();
        let places = table.places(scope);
        Ok(places
            .into_iter()
            .filter_map(|(_, id)| {
                let row = table.visible(scope, id).ok()?;
                (row.state(now) == ApprovalState::Pending).then(|| row.seen_at(now))
            })
            .collect())
    }

    async fn decide(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        let mut table = self.table.lock();
        let row = table.visible(scope, id)?;
        if !row.approval.request.may_decide(&row.owner, scope.owner()) {
            return Err(Error::new(ErrorKind::Denied, "who asked for an approval may not give it"));
        }
        row.decide(decision, scope.user_id().cloned(), now)
    }

    async fn decide_by_handler(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        by: Option<UserId>,
        now: Timestamp,
    ) -> Result<()> {
        self.table.lock().own(scope, id)?.decide(decision, by, now)
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
        let row = table.own(scope, id)?;
        let taken = match row.state(now) {
            ApprovalState::Decided { decision, by } => (decision, by),
            ApprovalState::Pending => return Err(conflict("nobody has decided the request")),
            ApprovalState::Expired => return Err(conflict("the request has expired")),
            _ => return Err(conflict("the approval was used already")),
        };
        let request = &row.approval.request;
        if request.digest != binding {
            return Err(conflict("the approval was given for another call"));
        }
        if request.policy_version != policy_version {
            return Err(conflict("the policy changed since the approval was asked for"));
        }
        row.approval.state = ApprovalState::Consumed;
        row.changed.notify_waiters();
        table.swept_until = Timestamp::MIN;
        Ok(taken)
    }

    async fn changed(&self, scope: &Scope, id: ApprovalId) -> Result<()> {
        let changed = self.table.lock().own(scope, id)?.changed.clone();
        let mut change = std::pin::pin!(changed.notified());
        // Registered before the look, so that a decision between the look and the wait is not missed.
        change.as_mut().enable();
        let now = self.clock.now();
        let left = {
            let mut table = self.table.lock();
            // Gone since the first look: the caller looks again and is told so.
            let Ok(row) = table.own(scope, id) else { return Ok(()) };
            if row.state(now) != ApprovalState::Pending {
                return Ok(());
            }
            row.approval.request.expires_at.saturating_since(now)
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
        let own = table.by_owner.get(scope.owner()).into_iter().flatten();
        Ok(export_from(
            own.filter_map(|(_, id)| table.rows.get(id))
                .map(|row| Owned::new(row.owner.clone(), exported(&row.approval.request, &row.state(now))))
                .collect(),
        ))
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let mut table = self.table.lock();
        table.epochs.advance(scope)?;
        let receipt = Erased::new(self.store_name());
        let own: Vec<_> = table.by_owner.get(scope.owner()).into_iter().flatten().copied().collect();
        if what.session.is_some() {
            let receipt = receipt.with_count("approval", 0);
            return Ok(if own.is_empty() {
                receipt
            } else {
                receipt.with_retained(
                    "approvals: they belong to a run and not to a session, and go with everything",
                )
            });
        }
        let gone = own.into_iter().filter(|(at, _)| what.before.is_none_or(|before| *at < before));
        let mut count = 0;
        for (_, id) in gone.collect::<Vec<_>>() {
            table.remove(id);
            count += 1;
        }
        Ok(receipt.with_count("approval", count))
    }
}

fn exported(request: &ApprovalRequest, state: &ApprovalState) -> ExportItem {
    let (state, decision, by) = match state {
        ApprovalState::Pending => ("pending", None, None),
        ApprovalState::Decided { decision, by } => ("decided", Some(decision), by.as_ref()),
        ApprovalState::Consumed => ("consumed", None, None),
        _ => ("expired", None, None),
    };
    let data = json!({
        "id": request.id,
        "run_id": request.run,
        "call_id": request.call_id,
        "tool": request.tool,
        "effect": request.effect,
        "arguments": request.arguments,
        "why": request.why,
        "requested_at": request.requested_at,
        "expires_at": request.expires_at,
        "state": state,
        "decision": decision,
        "by": by,
    });
    ExportItem::new("approval", data)
}

fn conflict(why: &'static str) -> Error {
    Error::new(ErrorKind::Conflict, why)
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such approval, or it is not yours")
}

fn full(who: &str, max: usize) -> Error {
    Error::new(
        ErrorKind::Capacity,
        format!("{who} {max} requests for approval that are not over, the most allowed"),
    )
}

#[cfg(test)]
mod tests;
