//! A naive approval store: requests in a list, and one bell for everybody who waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use loomflow_conformance::approvals::{Harness, Planted};
use loomflow_core::{
    Approval, ApprovalDecision, ApprovalGrant, ApprovalId, ApprovalPage, ApprovalRequest, ApprovalState,
    ApprovalStore, ArgumentPattern, Digest, Epoch, Erase, Erased, Error, ErrorKind, ExportItem, ExportStream,
    GrantId, Identity, Owned, Owner, Result, Scope, TenantData, Timestamp, UserId, export_from, rules,
};
use serde_json::json;
use tokio::sync::Notify;

use super::{Bug, key, newer};

#[derive(Clone, Debug)]
struct Row {
    /// The partition it is filed under; what `owner` says is what the row says.
    filed: String,
    owner: Owner,
    request: ApprovalRequest,
    state: ApprovalState,
}

#[derive(Clone, Debug)]
struct Grant {
    filed: String,
    owner: Owner,
    grant: ApprovalGrant,
}

#[derive(Debug, Default)]
struct State {
    rows: Vec<Row>,
    grants: Vec<Grant>,
    epochs: HashMap<String, Epoch>,
}

#[derive(Debug)]
pub(crate) struct Approvals {
    bug: Bug,
    state: Mutex<State>,
    bell: Notify,
}

pub(crate) fn harness(bug: Bug) -> Harness {
    let store = Arc::new(Approvals { bug, state: Mutex::default(), bell: Notify::new() });
    let raw = store.clone();
    Harness::new(store).with_plant(move |order| {
        let raw = raw.clone();
        async move {
            let filed = key(raw.bug, order.scope.owner());
            let (owner, mut state) = (order.foreign, raw.state.lock().unwrap());
            match order.record {
                Planted::Request(request) => {
                    state.rows.push(Row { filed, owner, request: *request, state: ApprovalState::Pending });
                }
                Planted::Grant(grant) => state.grants.push(Grant { filed, owner, grant: *grant }),
                other => panic!("the hook cannot plant {other:?}"),
            }
            Ok(())
        }
    })
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such request")
}

fn conflict() -> Error {
    Error::new(ErrorKind::Conflict, "the request cannot be decided or used")
}

impl Approvals {
    fn may_decide(&self, row: &Row, scope: &Scope) -> bool {
        let (request, decider) = (&row.request, scope.owner());
        match self.bug {
            Bug::StrangerDecides => true,
            Bug::LookAlikeDecides => {
                decider.user_id().is_some_and(|user| {
                    request
                        .approvers
                        .iter()
                        .any(|a| a.as_str().to_lowercase() == user.as_str().to_lowercase())
                }) || request.may_decide(&row.owner, decider)
            }
            Bug::OtherNamespaceDecides => {
                decider.user_id().is_some_and(|user| request.approvers.contains(user))
                    || request.may_decide(&row.owner, decider)
            }
            _ => request.may_decide(&row.owner, decider),
        }
    }

    fn own(&self, row: &Row, scope: &Scope) -> bool {
        row.filed == key(self.bug, scope.owner())
    }

    fn show(&self, row: &Row, scope: &Scope, now: Timestamp) -> Owned<Approval> {
        let mut state = row.state.clone();
        let over = now >= row.request.expires_at && self.bug != Bug::ExpiryIgnored;
        if over && !matches!(state, ApprovalState::Consumed { .. } | ApprovalState::Void { .. }) {
            state = ApprovalState::Expired;
        }
        let owner = match self.bug {
            Bug::OwnerFromArgument if self.own(row, scope) => scope.owner().clone(),
            _ => row.owner.clone(),
        };
        Owned::new(owner, Approval::new(row.request.clone(), state))
    }

    fn record(
        &self,
        scope: &Scope,
        id: ApprovalId,
        state: ApprovalState,
        now: Timestamp,
        handler: bool,
    ) -> Result<()> {
        let mut guard = self.state.lock().unwrap();
        let theirs = |row: &&mut Row| {
            row.request.id == id && (self.own(row, scope) || (!handler && self.may_decide(row, scope)))
        };
        let row = guard.rows.iter_mut().find(theirs).ok_or_else(not_found)?;
        if row.owner != *scope.owner() && self.own(row, scope) && self.bug != Bug::OwnerFromArgument {
            return Err(Error::new(ErrorKind::IsolationViolation, "a foreign row"));
        }
        if !handler && !self.may_decide(row, scope) && self.bug != Bug::RequesterDecides {
            return Err(Error::new(ErrorKind::Denied, "the requester may not decide"));
        }
        let late = now >= row.request.expires_at && self.bug != Bug::ExpiryIgnored;
        if late || (row.state != ApprovalState::Pending && self.bug != Bug::DecidedTwice) {
            return Err(conflict());
        }
        let decided = (row.owner.clone(), row.filed.clone(), row.request.clone());
        let made = match &state {
            ApprovalState::Decided { decision, by } => self.made(&decided, decision, by.as_ref(), now)?,
            _ => None,
        };
        row.state = state;
        if let Some(grant) = made {
            let own = |g: &Grant| g.filed == decided.1;
            guard.grants.retain(|g| !own(g) || now < g.grant.expires_at);
            if guard.grants.iter().filter(|g| own(g)).count() >= 20 && self.bug != Bug::GrantsUnbounded {
                if let Some(row) = guard.rows.iter_mut().find(|row| row.request.id == id) {
                    row.state = ApprovalState::Pending;
                }
                return Err(Error::new(ErrorKind::Capacity, "too many grants"));
            }
            guard.grants.push(Grant { filed: decided.1.clone(), owner: decided.0.clone(), grant });
        }
        drop(guard);
        self.bell.notify_waiters();
        Ok(())
    }
}

impl Approvals {
    /// The grant that a decision makes. Everything here is written anew, so that it is not the rules that judge themselves.
    fn made(
        &self,
        (owner, _, request): &(Owner, String, ApprovalRequest),
        decision: &ApprovalDecision,
        by: Option<&UserId>,
        now: Timestamp,
    ) -> Result<Option<ApprovalGrant>> {
        let ApprovalDecision::ApproveAndRemember { grant } = decision else { return Ok(None) };
        let bad = |why: &str| Error::invalid_input(why.to_owned());
        if *owner.identity() == Identity::Anonymous && self.bug != Bug::AnonymousIsRemembered {
            return Err(bad("anonymous"));
        }
        let own = by == owner.user_id();
        let named =
            by.is_some_and(|by| if own { request.self_approval } else { request.approvers.contains(by) });
        if !named && self.bug != Bug::GrantByAnybody {
            return Err(Error::new(ErrorKind::Denied, "in nobody's name"));
        }
        let args = &*request.arguments;
        let fits = match &grant.arguments {
            ArgumentPattern::Exactly { .. } => grant.arguments == ArgumentPattern::exactly(args),
            ArgumentPattern::Fixed { values } => {
                (1..=64).contains(&values.len()) && values.iter().all(|(p, v)| args.pointer(p) == Some(v))
            }
            ArgumentPattern::Any => true,
            _ => false,
        };
        if (!fits && self.bug != Bug::GrantWider) || grant.expires_at <= now {
            return Err(bad("terms"));
        }
        let by = by.cloned().unwrap_or_else(|| UserId::new("nobody").unwrap());
        // The only way to a value of a type that others may extend.
        let text = json!({
            "id": GrantId::from(request.id), "tool": request.tool, "effect": request.effect,
            "tool_digest": request.tool_digest, "arguments": grant.arguments,
            "policy_version": request.policy_version, "by": by, "approvers": request.approvers,
            "requested_at": request.requested_at, "granted_at": now, "expires_at": grant.expires_at,
        });
        Ok(Some(serde_json::from_value(text).unwrap()))
    }

    fn own_grant(&self, grant: &Grant, scope: &Scope) -> bool {
        grant.filed == key(self.bug, scope.owner()) || self.bug == Bug::GrantsOfEverybody
    }

    fn show_grant(&self, grant: &Grant, scope: &Scope) -> Owned<ApprovalGrant> {
        let argument = matches!(self.bug, Bug::OwnerFromArgument | Bug::GrantsOfEverybody);
        let owner = if argument && self.own_grant(grant, scope) { scope.owner() } else { &grant.owner };
        Owned::new(owner.clone(), grant.grant.clone())
    }

    fn live(&self, grant: &Grant, now: Timestamp) -> bool {
        now < grant.grant.expires_at || self.bug == Bug::GrantNeverEnds
    }
}

#[async_trait]
impl TenantData for Approvals {
    fn store_name(&self) -> &str {
        "approvals:reference"
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        let state = self.state.lock().unwrap();
        Ok(state.epochs.get(&key(self.bug, scope.owner())).copied().unwrap_or_default())
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let state = self.state.lock().unwrap();
        let mut items = Vec::new();
        for row in &state.rows {
            if self.own(row, scope) || self.bug == Bug::ExportEverybody {
                let data = json!({ "id": row.request.id, "arguments": *row.request.arguments });
                let owner =
                    if self.bug == Bug::ExportEverybody { scope.owner().clone() } else { row.owner.clone() };
                items.push(Owned::new(owner, ExportItem::new("approval", data)));
            }
        }
        for grant in state.grants.iter().filter(|g| g.filed == key(self.bug, scope.owner())) {
            items.push(Owned::new(grant.owner.clone(), rules::approvals::export_grant(&grant.grant)));
        }
        Ok(export_from(items))
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let mut state = self.state.lock().unwrap();
        newer(self.bug, scope, state.epochs.get(&key(self.bug, scope.owner())))?;
        let before = state.rows.len() + state.grants.len();
        let goes = |asked: Timestamp| what.before.is_none_or(|before| asked < before);
        state.rows.retain(|row| {
            let approver = self.bug == Bug::ForgetTakesApprovers && self.may_decide(row, scope);
            let own = self.own(row, scope) || approver || self.bug == Bug::ForgetEverybody;
            !(own && goes(row.request.requested_at))
        });
        if self.bug != Bug::ForgetKeepsGrants {
            let mine = key(self.bug, scope.owner());
            state.grants.retain(|g| g.filed != mine || !goes(g.grant.requested_at));
        }
        let gone = before - state.rows.len() - state.grants.len();
        let stored = state.epochs.entry(key(self.bug, scope.owner())).or_default();
        *stored = scope.epoch().max(*stored);
        Ok(Erased::new(self.store_name()).with_count("approval", gone as u64))
    }
}

#[async_trait]
impl ApprovalStore for Approvals {
    async fn create(&self, scope: &Scope, request: ApprovalRequest) -> Result<()> {
        let stored = self.epoch(scope).await?;
        if self.bug != Bug::EpochIgnored {
            scope.check_epoch(stored, "create")?;
        }
        let mut state = self.state.lock().unwrap();
        if self.bug == Bug::IdTakenOver {
            state.rows.retain(|row| row.request.id != request.id);
        } else if state.rows.iter().any(|row| row.request.id == request.id) {
            return Err(conflict());
        }
        let filed = key(self.bug, scope.owner());
        let open = |row: &&Row| {
            row.filed == filed
                && !matches!(row.state, ApprovalState::Consumed { .. } | ApprovalState::Void { .. })
        };
        if self.bug != Bug::RequestsUnbounded && state.rows.iter().filter(open).count() >= 200 {
            return Err(Error::new(ErrorKind::Capacity, "too many requests"));
        }
        state.rows.push(Row { filed, owner: scope.owner().clone(), request, state: ApprovalState::Pending });
        Ok(())
    }

    async fn get(&self, scope: &Scope, id: ApprovalId, now: Timestamp) -> Result<Owned<Approval>> {
        let state = self.state.lock().unwrap();
        let seen = |row: &&Row| row.request.id == id && (self.own(row, scope) || self.may_decide(row, scope));
        state.rows.iter().find(seen).map(|row| self.show(row, scope, now)).ok_or_else(not_found)
    }

    async fn list(&self, scope: &Scope, now: Timestamp, page: ApprovalPage) -> Result<Vec<Owned<Approval>>> {
        let state = self.state.lock().unwrap();
        let all = self.bug == Bug::ListsEverybody;
        let mut rows: Vec<&Row> = state
            .rows
            .iter()
            .filter(|row| all || self.own(row, scope) || self.may_decide(row, scope))
            .filter(|row| row.state == ApprovalState::Pending)
            .filter(|row| now < row.request.expires_at || self.bug == Bug::ExpiryIgnored)
            .collect();
        let place = |row: &Row| (row.request.requested_at, row.request.id);
        rows.sort_by_key(|row| place(row));
        if self.bug != Bug::PlaceIgnored {
            rows.retain(|row| page.place().is_none_or(|after| place(row) > after));
        }
        let most = if self.bug == Bug::PagesUnbounded { usize::MAX } else { page.limit() };
        Ok(rows.into_iter().take(most).map(|row| self.show(row, scope, now)).collect())
    }

    async fn lapsed(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<Approval>>> {
        let mut state = self.state.lock().unwrap();
        let mut lapsed = Vec::new();
        for row in &mut state.rows {
            let theirs = self.own(row, scope) || self.bug == Bug::LapsesForEverybody;
            let live = now < row.request.expires_at
                || matches!(row.state, ApprovalState::Consumed { .. } | ApprovalState::Void { .. });
            if !theirs || live {
                continue;
            }
            let found = self.show(row, scope, now);
            lapsed.push(found);
            if self.bug != Bug::LapsedAgain {
                let decision = ApprovalDecision::Deny { reason: "late".into() };
                row.state = ApprovalState::Void { decision, by: None };
            }
        }
        Ok(lapsed)
    }

    async fn decide(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        now: Timestamp,
    ) -> Result<()> {
        if self.bug == Bug::RaceOnDecide {
            let theirs = |row: &&Row| row.request.id == id && self.may_decide(row, scope);
            let open = |row: &Row| row.state == ApprovalState::Pending && now < row.request.expires_at;
            if !self.state.lock().unwrap().rows.iter().find(theirs).map(open).ok_or_else(not_found)? {
                return Err(conflict());
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            let mut state = self.state.lock().unwrap();
            let by = scope.user_id().cloned();
            if let Some(row) = state.rows.iter_mut().find(|row| row.request.id == id) {
                row.state = ApprovalState::Decided { decision, by };
            }
            return Ok(());
        }
        let by = scope.user_id().cloned();
        self.record(scope, id, ApprovalState::Decided { decision, by }, now, false)
    }

    async fn decide_by_handler(
        &self,
        scope: &Scope,
        id: ApprovalId,
        decision: ApprovalDecision,
        by: Option<UserId>,
        now: Timestamp,
    ) -> Result<()> {
        self.record(scope, id, ApprovalState::Decided { decision, by }, now, true)
    }

    async fn consume(
        &self,
        scope: &Scope,
        id: ApprovalId,
        binding: Digest,
        policy_version: u64,
        now: Timestamp,
    ) -> Result<(ApprovalDecision, Option<UserId>)> {
        let mut state = self.state.lock().unwrap();
        let theirs = |row: &&mut Row| {
            let approver = self.bug == Bug::ApproverUses && self.may_decide(row, scope);
            row.request.id == id && (self.own(row, scope) || approver)
        };
        let row = state.rows.iter_mut().find(theirs).ok_or_else(not_found)?;
        let request = &row.request;
        let other_call = request.digest != binding && self.bug != Bug::BindingIgnored;
        let other_policy = request.policy_version != policy_version && self.bug != Bug::VersionIgnored;
        let late = now >= request.expires_at && self.bug != Bug::ExpiryIgnored;
        let ApprovalState::Decided { decision, by } = &row.state else { return Err(conflict()) };
        if other_call || other_policy || late {
            return Err(conflict());
        }
        let answer = (decision.clone(), by.clone());
        if self.bug != Bug::UsedTwice {
            let (decision, by) = answer.clone();
            row.state = ApprovalState::Consumed { decision, by };
        }
        Ok(answer)
    }

    async fn void(&self, scope: &Scope, id: ApprovalId, _now: Timestamp) -> Result<bool> {
        let mut state = self.state.lock().unwrap();
        let row = state.rows.iter_mut().find(|row| row.request.id == id && self.own(row, scope));
        let row = row.ok_or_else(not_found)?;
        match row.state.clone() {
            ApprovalState::Pending => Err(conflict()),
            ApprovalState::Decided { decision, by } => {
                row.state = match self.bug {
                    Bug::VoidIsUsed => ApprovalState::Consumed { decision, by },
                    Bug::VoidForgotten => return Ok(true),
                    _ => ApprovalState::Void { decision, by },
                };
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn remembered(
        &self,
        scope: &Scope,
        tool: &str,
        now: Timestamp,
    ) -> Result<Vec<Owned<ApprovalGrant>>> {
        let state = self.state.lock().unwrap();
        let fits = |g: &&Grant| self.own_grant(g, scope) && *g.grant.tool == *tool && self.live(g, now);
        Ok(state.grants.iter().filter(fits).map(|g| self.show_grant(g, scope)).collect())
    }

    async fn grants(&self, scope: &Scope, now: Timestamp) -> Result<Vec<Owned<ApprovalGrant>>> {
        let state = self.state.lock().unwrap();
        let mut known: Vec<&Grant> = state
            .grants
            .iter()
            .filter(|g| {
                let listed = self.own_grant(g, scope) || g.grant.is_known_to(&g.owner, scope.owner());
                listed && self.live(g, now)
            })
            .collect();
        known.sort_by_key(|g| g.grant.granted_at);
        Ok(known.into_iter().map(|g| self.show_grant(g, scope)).collect())
    }

    async fn revoke(&self, scope: &Scope, id: GrantId) -> Result<Owned<ApprovalGrant>> {
        let mut state = self.state.lock().unwrap();
        let may =
            |g: &Grant| g.grant.is_known_to(&g.owner, scope.owner()) || self.bug == Bug::StrangerRevokes;
        let at = state.grants.iter().position(|g| g.grant.id == id && may(g)).ok_or_else(not_found)?;
        let gone = self.show_grant(&state.grants[at], scope);
        if self.bug != Bug::RevokeKeeps {
            state.grants.remove(at);
        }
        Ok(gone)
    }

    async fn changed(&self, scope: &Scope, id: ApprovalId) -> Result<()> {
        let bell = self.bell.notified();
        tokio::pin!(bell);
        bell.as_mut().enable();
        let pending = {
            let state = self.state.lock().unwrap();
            let mine = |row: &&Row| row.request.id == id && self.own(row, scope);
            let row = state.rows.iter().find(mine).ok_or_else(not_found)?;
            row.state == ApprovalState::Pending
        };
        if pending {
            bell.await;
        }
        Ok(())
    }
}
