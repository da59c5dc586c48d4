//! A naive ledger: a list of charges and a list of holds, added up for every question.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_conformance::doubles::ManualClock;
use loomflow_conformance::ledger::{Harness, Instance};
use loomflow_core::{
    BudgetConfig, Cap, CapUsage, Caps, Charge, Entity, Erase, Erased, Error, ErrorKind, EstimatedCharge,
    ExportItem, ExportStream, Granted, Hold, HoldId, HoldKey, Ledger, Limits, Owned, Owner, Refusal,
    RefusalReason, Reserve, Result, RunId, Scope, Settled, TenantData, Timestamp, Usage, UsageReport,
    Warning, Window, export_from,
};

use super::{Bug, key};

#[derive(Clone, Debug)]
struct Spent {
    at: Timestamp,
    user: String,
    namespace: String,
    run: Option<RunId>,
    hold: HoldId,
    usage: Usage,
    wall: Duration,
    estimated: bool,
}

#[derive(Clone, Debug)]
struct Open {
    id: HoldId,
    key: HoldKey,
    user: String,
    namespace: String,
    owner: Owner,
    hold: Hold,
    output: u64,
    wall: Duration,
    until: Timestamp,
    sent: bool,
}

#[derive(Debug, Default)]
struct State {
    spent: Vec<Spent>,
    open: Vec<Open>,
    closed: Vec<Open>,
    expired: HashSet<HoldId>,
    warned: HashSet<(String, &'static str, Option<Timestamp>)>,
    last_window: Option<Timestamp>,
}

#[derive(Debug)]
pub(crate) struct Books {
    bug: Bug,
    config: BudgetConfig,
    clock: Arc<ManualClock>,
    state: Mutex<State>,
}

pub(crate) fn open(bug: Bug, config: BudgetConfig) -> Instance {
    let clock = Arc::new(ManualClock::default());
    let books = Books { bug, config, clock: clock.clone(), state: Mutex::default() };
    Instance::new(Arc::new(books)).with_clock(clock)
}

pub(crate) fn harness(bug: Bug) -> Harness {
    Harness::new(move |config| async move { open(bug, config) })
}

const CAPS: [Cap; 5] = [Cap::Tokens, Cap::InputTokens, Cap::OutputTokens, Cap::Cost, Cap::WallClock];

fn limit(caps: &Caps, cap: Cap) -> Option<u64> {
    match cap {
        Cap::Tokens => caps.tokens,
        Cap::InputTokens => caps.input_tokens,
        Cap::OutputTokens => caps.output_tokens,
        Cap::Cost => caps.cost.map(|c| c.0),
        Cap::WallClock => caps.wall_clock.map(|d| d.as_micros() as u64),
        _ => None,
    }
}

fn amount(usage: &Usage, wall: Duration, cap: Cap) -> u64 {
    match cap {
        Cap::Tokens => usage.total_tokens(),
        Cap::InputTokens => usage.input_tokens,
        Cap::OutputTokens => usage.output_tokens,
        Cap::Cost => usage.cost_usd.0,
        Cap::WallClock => wall.as_micros() as u64,
        _ => 0,
    }
}

impl Open {
    fn reserved(&self) -> Usage {
        let cost =
            self.hold.price.map(|p| p.ceiling(self.hold.input_tokens, self.output)).unwrap_or_default();
        Usage::new(self.hold.input_tokens, self.output).with_cost(cost)
    }
}

/// One cap of one entity, as it stands.
struct Line {
    entity: Entity,
    cap: Cap,
    who: String,
    limit: u64,
    used: u64,
    held: u64,
    resets_at: Option<Timestamp>,
    window: Option<Timestamp>,
}

impl Books {
    fn now(&self) -> Timestamp {
        use loomflow_core::Clock as _;
        self.clock.now()
    }

    fn in_window(&self, at: Timestamp) -> bool {
        let now = self.now();
        match self.config.window {
            Window::Lifetime => true,
            Window::Rolling(d) => at.saturating_add(d) > now,
            window => window.bounds(now).is_none_or(|(start, end)| start <= at && at < end),
        }
    }

    fn lines(&self, state: &State, scope: &Scope, run: RunId) -> Vec<Line> {
        let user = key(self.bug, scope.owner());
        let namespace = scope.namespace().to_string();
        let window = self.config.window.bounds(self.now());
        let mut lines = Vec::new();
        for (entity, caps) in [
            (Entity::Global, &self.config.global),
            (Entity::User, &self.config.per_user),
            (Entity::Run, &self.config.per_run),
        ] {
            let is = |ns: &str, u: &str, r: Option<RunId>, at: Option<Timestamp>| match entity {
                Entity::Global => {
                    let same = self.bug == Bug::NoNamespace || ns == namespace;
                    same && at.is_none_or(|at| self.in_window(at)) && self.bug != Bug::GlobalNotCounted
                }
                Entity::User => u == user && at.is_none_or(|at| self.in_window(at)),
                _ => (self.bug == Bug::RunsAreShared || u == user) && r == Some(run),
            };
            for cap in CAPS {
                let Some(limit) = limit(caps, cap) else { continue };
                let used = state
                    .spent
                    .iter()
                    .filter(|s| is(&s.namespace, &s.user, s.run, Some(s.at)))
                    .map(|s| amount(&s.usage, s.wall, cap))
                    .sum();
                let held = state
                    .open
                    .iter()
                    .filter(|o| is(&o.namespace, &o.user, Some(o.key.run), None))
                    .map(|o| amount(&o.reserved(), o.wall, cap))
                    .sum();
                let window = window.filter(|_| entity != Entity::Run);
                lines.push(Line {
                    entity,
                    cap,
                    who: match entity {
                        Entity::Global => namespace.clone(),
                        Entity::User => user.clone(),
                        _ => format!("{user}\n{run}"),
                    },
                    limit,
                    used,
                    held,
                    resets_at: window.map(|w| w.1),
                    window: window.map(|w| w.0),
                });
            }
        }
        lines
    }

    fn warnings(&self, state: &mut State, scope: &Scope, run: RunId) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for line in self.lines(state, scope, run) {
            let total = line.used + line.held;
            if total as f64 >= line.limit as f64 * self.config.soft_warning_at {
                let name = line.cap.config_key(line.entity);
                let new = state.warned.insert((line.who.clone(), name, line.window));
                if new || self.bug == Bug::WarnsAlways {
                    warnings.push(Warning::new(line.entity, line.cap, line.limit, total));
                }
            }
        }
        warnings
    }

    fn charge(&self, state: &mut State, open: &Open, usage: Usage, wall: Duration, estimated: bool) {
        state.spent.push(Spent {
            at: self.now(),
            user: open.user.clone(),
            namespace: open.namespace.clone(),
            run: Some(open.key.run),
            hold: open.id,
            usage,
            wall,
            estimated,
        });
    }

    fn sweep(&self, state: &mut State) {
        let now = self.now();
        if self.bug == Bug::ResetOnClockChange {
            let window = self.config.window.bounds(now).map(|w| w.0);
            if state.last_window != window {
                state.spent.clear();
                state.last_window = window;
            }
        }
        if self.bug == Bug::LeaseNeverEnds {
            return;
        }
        let (ended, open) = std::mem::take(&mut state.open).into_iter().partition(|o: &Open| o.until <= now);
        state.open = open;
        let ended: Vec<Open> = ended;
        for hold in ended {
            let sent = hold.sent && self.bug != Bug::SentLeaseRefunds;
            let estimate = if sent { hold.reserved() } else { Usage::default() };
            self.charge(state, &hold, estimate, Duration::ZERO, true);
            state.expired.insert(hold.id);
            state.closed.push(hold);
        }
    }

    fn grant(
        &self,
        state: &State,
        scope: &Scope,
        hold: &Hold,
    ) -> std::result::Result<(u64, Duration), Refusal> {
        let (mut output, mut wall) = (hold.output_tokens, hold.wall_clock);
        let minimum = if self.bug == Bug::BelowMinimum { 0 } else { hold.min_output_tokens };
        for line in self.lines(state, scope, hold.key.run) {
            let left = line.limit.saturating_sub(line.used).saturating_sub(line.held);
            let refuse = |reason, needed| {
                Refusal::new(reason, line.entity, line.cap, self.config.window)
                    .with_numbers(line.limit, line.used, line.held, needed)
                    .with_reset(line.resets_at)
            };
            let exhausted = |needed| Err(refuse(RefusalReason::Exhausted, needed));
            let tokens = hold.is_for_tokens();
            match line.cap {
                Cap::Tokens if tokens => {
                    let need = hold.input_tokens + minimum;
                    if need > left {
                        return exhausted(need);
                    }
                    output = output.min(left - hold.input_tokens);
                }
                Cap::InputTokens if tokens && hold.input_tokens > left => {
                    return exhausted(hold.input_tokens);
                }
                Cap::OutputTokens if tokens => {
                    if minimum > left {
                        return exhausted(minimum);
                    }
                    output = output.min(left);
                }
                Cap::Cost if tokens => {
                    let Some(price) = hold.price else {
                        if self.bug == Bug::UnknownPriceIsFree {
                            continue;
                        }
                        return Err(refuse(RefusalReason::UnknownPrice, 0));
                    };
                    let need = price.ceiling(hold.input_tokens, minimum).0;
                    if need > left {
                        return exhausted(need);
                    }
                    while output > minimum && price.ceiling(hold.input_tokens, output).0 > left {
                        output -= 1;
                    }
                }
                Cap::WallClock if !tokens => {
                    let least = hold.min_wall_clock.as_micros() as u64;
                    if least > left {
                        return exhausted(least);
                    }
                    wall = wall.min(Duration::from_micros(left));
                }
                _ => {}
            }
        }
        Ok((output, wall))
    }

    fn find<'s>(&self, state: &'s mut State, scope: &Scope, id: HoldId, any: bool) -> Result<&'s mut Open> {
        let user = key(self.bug, scope.owner());
        let found = state.open.iter_mut().find(|o| o.id == id && (any || o.user == user));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such hold"))
    }
}

#[async_trait]
impl TenantData for Books {
    fn store_name(&self) -> &str {
        "ledger:reference"
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let report = self.usage(scope).await?;
        if report == self.usage_of_nobody(scope) {
            return Ok(export_from(Vec::new()));
        }
        let state = self.state.lock().unwrap();
        let mut text = serde_json::to_value(&report).unwrap();
        if self.bug == Bug::ExportEverybody {
            text = serde_json::json!(format!("{:?}", state.spent));
        }
        Ok(export_from(vec![Owned::new(scope.owner().clone(), ExportItem::new("counter", text))]))
    }

    async fn forget(&self, scope: &Scope, _what: &Erase) -> Result<Erased> {
        let mut state = self.state.lock().unwrap();
        let user = key(self.bug, scope.owner());
        match self.bug {
            Bug::ForgetResetsQuota => state.spent.retain(|s| s.user != user),
            Bug::ForgetEverybody => {
                state.spent.retain(|s| s.user == user);
                state.open.retain(|o| o.user == user);
            }
            _ => {}
        }
        Ok(Erased::new(self.store_name()).with_retained("counters are kept until their window ends"))
    }
}

impl Books {
    fn usage_of_nobody(&self, scope: &Scope) -> UsageReport {
        let empty = Books {
            bug: self.bug,
            config: self.config.clone(),
            clock: self.clock.clone(),
            state: Mutex::default(),
        };
        let state = empty.state.lock().unwrap();
        empty.report(&state, scope)
    }

    fn report(&self, state: &State, scope: &Scope) -> UsageReport {
        let user = key(self.bug, scope.owner());
        let mut report = UsageReport::default();
        for spent in state.spent.iter().filter(|s| s.user == user && self.in_window(s.at)) {
            report.used += spent.usage;
            report.wall_clock += spent.wall;
            if spent.estimated {
                report.estimated_tokens += spent.usage.total_tokens();
            }
        }
        for open in state.open.iter().filter(|o| o.user == user) {
            report.held_tokens += open.reserved().total_tokens();
            report.open_holds += 1;
        }
        let lines = self.lines(state, scope, RunId::from_u128(0));
        report.windows = lines
            .into_iter()
            .filter(|l| l.entity == Entity::User)
            .map(|l| {
                CapUsage::new(l.entity, l.cap, self.config.window, l.limit).with_numbers(
                    l.used,
                    l.held,
                    l.resets_at,
                )
            })
            .collect();
        report
    }
}

#[async_trait]
impl Ledger for Books {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        if self.bug == Bug::RaceOnReserve {
            let granted = self.grant(&self.state.lock().unwrap(), scope, hold);
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Err(refusal) = granted {
                return Ok(Reserve::Refused(Box::new(refusal)));
            }
        }
        let mut guard = self.state.lock().unwrap();
        let state = &mut *guard;
        self.sweep(state);
        let user = key(self.bug, scope.owner());
        let same = |o: &&Open| o.key == hold.key && (o.user == user || self.bug == Bug::KeysAreShared);
        if let Some(open) = state.open.iter().find(same)
            && self.bug != Bug::KeyIgnored
        {
            let amounts = |h: &Hold| (h.input_tokens, h.output_tokens, h.price, h.wall_clock);
            if amounts(&open.hold) != amounts(hold) && self.bug != Bug::KeyHidesAmounts {
                return Err(Error::new(ErrorKind::Conflict, "the key is of another hold"));
            }
            return Ok(Reserve::Held(Granted::new(open.id, open.output, open.wall)));
        }
        let (output, wall) = match self.grant(state, scope, hold) {
            Ok(granted) => granted,
            Err(_) if self.bug == Bug::RaceOnReserve => (hold.output_tokens, hold.wall_clock),
            Err(refusal) => return Ok(Reserve::Refused(Box::new(refusal))),
        };
        let id = HoldId::fresh();
        state.open.push(Open {
            id,
            key: hold.key,
            user,
            namespace: scope.namespace().to_string(),
            owner: scope.owner().clone(),
            hold: *hold,
            output,
            wall,
            until: self.now().saturating_add(hold.lease),
            sent: false,
        });
        let warnings = self.warnings(state, scope, hold.key.run);
        Ok(Reserve::Held(Granted::new(id, output, wall).with_warnings(warnings)))
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        self.sweep(&mut state);
        self.find(&mut state, scope, hold, self.bug == Bug::ForeignSent)?.sent = true;
        Ok(())
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        self.sweep(&mut state);
        self.find(&mut state, scope, hold, false)?.until = self.now().saturating_add(lease);
        Ok(())
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        let mut guard = self.state.lock().unwrap();
        let state = &mut *guard;
        self.sweep(state);
        let user = key(self.bug, scope.owner());
        let mine = |o: &Open| o.id == hold && (o.user == user || self.bug == Bug::ForeignClose);
        let mut settled = Settled::default();
        let open = match state.open.iter().position(mine) {
            Some(at) => state.open.remove(at),
            None => {
                let closed = state.closed.iter().find(|o| mine(o)).cloned();
                let closed =
                    closed.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such hold"))?;
                settled.duplicate = true;
                if let Charge::Used { usage, estimated: false } = charge
                    && self.bug != Bug::EstimateStays
                    && state.expired.contains(&hold)
                    && let Some(spent) = state.spent.iter_mut().find(|s| s.hold == hold && s.estimated)
                {
                    (spent.usage, spent.estimated) = (usage, false);
                } else if self.bug == Bug::DoubleSettle
                    && let Charge::Used { usage, estimated } = charge
                {
                    self.charge(state, &closed, usage, Duration::ZERO, estimated);
                }
                return Ok(settled);
            }
        };
        match charge {
            Charge::Used { usage, estimated } => {
                let reserved = open.reserved().total_tokens();
                settled.excess_tokens = usage.total_tokens().saturating_sub(reserved);
                let mut counted = usage;
                if self.bug == Bug::ExcessIsLost {
                    counted.output_tokens = counted.output_tokens.min(open.output);
                }
                self.charge(state, &open, counted, Duration::ZERO, estimated);
            }
            Charge::WallClock(d) => self.charge(state, &open, Usage::default(), d, false),
            _ if self.bug == Bug::RefundIsCounted => {
                self.charge(state, &open, open.reserved(), Duration::ZERO, false);
            }
            _ => {}
        }
        let run = open.key.run;
        state.closed.push(open);
        settled.warnings = self.warnings(state, scope, run);
        Ok(settled)
    }

    async fn estimates(&self, scope: &Scope) -> Result<Vec<Owned<EstimatedCharge>>> {
        let mut state = self.state.lock().unwrap();
        self.sweep(&mut state);
        let user = key(self.bug, scope.owner());
        let everybody = self.bug == Bug::EstimatesOfEverybody;
        let of_expired = |s: &Spent| state.expired.contains(&s.hold);
        let estimated = |s: &&Spent| {
            s.estimated
                && s.usage != Usage::default()
                && (s.user == user || everybody)
                && !(self.bug == Bug::EstimatesHideExpired && of_expired(s))
        };
        let listed = state.spent.iter().filter(estimated).map(|s| {
            let key = state.closed.iter().find(|o| o.id == s.hold).unwrap().key;
            let estimate = EstimatedCharge::new(s.hold, key, s.usage, of_expired(s));
            Owned::new(scope.owner().clone(), estimate)
        });
        Ok(listed.collect())
    }

    async fn reconcile(&self, scope: &Scope, hold: HoldId, actual: Usage) -> Result<Settled> {
        let mut guard = self.state.lock().unwrap();
        let state = &mut *guard;
        self.sweep(state);
        let user = key(self.bug, scope.owner());
        let mine = |o: &&Open| o.id == hold && (o.user == user || self.bug == Bug::ForeignClose);
        if state.open.iter().any(|o| mine(&o)) {
            return Err(Error::new(ErrorKind::Conflict, "the hold is open"));
        }
        let closed = state.closed.iter().find(mine).cloned();
        let closed = closed.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such hold"))?;
        let mut settled = Settled::default();
        let reported = self.bug == Bug::InvoiceReplacesReports;
        match state.spent.iter_mut().find(|s| s.hold == hold && (s.estimated || reported)) {
            Some(spent) if self.bug != Bug::InvoiceIsAdded => {
                (spent.usage, spent.estimated) = (actual, false);
            }
            Some(_) => self.charge(state, &closed, actual, Duration::ZERO, false),
            None => settled.duplicate = true,
        }
        Ok(settled)
    }

    async fn namespace_usage(&self, scope: &Scope) -> Result<UsageReport> {
        let mut state = self.state.lock().unwrap();
        self.sweep(&mut state);
        let namespace = scope.namespace().to_string();
        let mut report = UsageReport::default();
        for spent in state.spent.iter().filter(|s| s.namespace == namespace && self.in_window(s.at)) {
            report.used += spent.usage;
        }
        for open in state.open.iter().filter(|o| o.namespace == namespace) {
            report.held_tokens += open.reserved().total_tokens();
        }
        let lines = self.lines(&state, scope, RunId::from_u128(0));
        let global = lines.into_iter().filter(|line| line.entity == Entity::Global);
        report.windows = global
            .map(|l| {
                let line = CapUsage::new(l.entity, l.cap, self.config.window, l.limit);
                line.with_numbers(l.used, l.held, l.resets_at)
            })
            .collect();
        Ok(report)
    }

    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        let mut state = self.state.lock().unwrap();
        self.sweep(&mut state);
        Ok(self.report(&state, scope))
    }

    async fn end_run(&self, scope: &Scope, run: RunId) -> Result<()> {
        let user = key(self.bug, scope.owner());
        let mut state = self.state.lock().unwrap();
        for spent in state.spent.iter_mut().filter(|s| s.user == user && s.run == Some(run)) {
            spent.run = None;
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        let all = [&self.config.global, &self.config.per_user, &self.config.per_run];
        Limits::new(all.iter().any(|c| c.wall_clock.is_some()), !self.config.per_run.is_empty())
    }
}
