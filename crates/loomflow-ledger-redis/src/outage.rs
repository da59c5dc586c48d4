//! What this process grants by itself while the server cannot be reached, until it is booked.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loomflow_core::rules::quota::{Account, Books, Cell, HoldState, Totals};
use loomflow_core::{
    BudgetConfig, Charge, Error, ErrorKind, EstimatedCharge, Hold, HoldId, HoldKey, Owner, Reserve, Result,
    RunId, Scope, Settled, Timestamp,
};
use tokio::sync::Semaphore;

use crate::config::Allowance;

/// Whether the server was not there, rather than refused.
pub(crate) fn is_outage(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unreachable | ErrorKind::Transport | ErrorKind::Timeout | ErrorKind::Overloaded
    )
}

/// What is to be told to the server when it is back.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) owner: Owner,
    pub(crate) epoch: u64,
    pub(crate) hold: HoldId,
    pub(crate) used: Totals,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A hold of this process was closed.
    Charge {
        key: HoldKey,
        /// Tokens that were granted.
        granted: u64,
        closed: Timestamp,
        /// The window in which it was taken from the allowance.
        window: i64,
        /// Of an estimate: whether the lease ran out.
        estimated: Option<bool>,
    },
    /// A hold that the server keeps was closed.
    Close { estimated: bool },
}

/// The allowance, and what was spent of it.
pub(crate) struct Outage {
    books: Books,
    max_pending: usize,
    state: Mutex<State>,
    /// Whether anything is open or pending: one look for every operation while all is well.
    active: AtomicBool,
    /// Whoever books takes the one permit.
    pub(crate) turn: Semaphore,
    /// Whether a task waits for the server to come back.
    pub(crate) waiting: AtomicBool,
}

#[derive(Default)]
struct State {
    accounts: HashMap<Owner, Account>,
    all: Cell,
    epochs: HashMap<Owner, u64>,
    pending: VecDeque<Pending>,
}

impl Outage {
    pub(crate) fn new(allowance: &Allowance, budget: &BudgetConfig) -> Self {
        let mut bounds = BudgetConfig::new().window(budget.window);
        (bounds.global, bounds.per_user, bounds.per_run) =
            (allowance.in_all, allowance.per_user, budget.per_run);
        Self {
            books: Books::new(&bounds),
            max_pending: allowance.max_pending,
            state: Mutex::default(),
            active: AtomicBool::new(false),
            turn: Semaphore::new(1),
            waiting: AtomicBool::new(false),
        }
    }

    /// Whether this process granted something that is not booked yet.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Whether an open hold of this process has this key.
    pub(crate) fn has_key(&self, owner: &Owner, key: HoldKey, now: Timestamp) -> bool {
        let mut state = self.lock(now);
        let account = state.accounts.get_mut(owner);
        account.is_some_and(|account| account.holds.values().any(|hold| hold.key == key))
    }

    /// Grants out of the allowance.
    pub(crate) fn reserve(&self, scope: &Scope, id: HoldId, hold: &Hold, now: Timestamp) -> Result<Reserve> {
        let mut guard = self.lock(now);
        let state = &mut *guard;
        self.tidy(state, now);
        let open: usize = state.accounts.values().map(|account| account.holds.len()).sum();
        if open + state.pending.len() >= self.max_pending || state.accounts.len() >= self.max_pending {
            return Err(Error::new(
                ErrorKind::Capacity,
                "Redis cannot be reached, and as many holds and charges as this process may keep wait to be booked",
            )
            .with_operation("reserve"));
        }
        let owner = scope.owner().clone();
        let account = state.accounts.entry(owner.clone()).or_insert_with(|| Account::new(&self.books, now));
        let answer = account.reserve(&self.books, now, &mut state.all, id, hold);
        state.epochs.insert(owner, scope.epoch().get());
        self.tidy(state, now);
        answer
    }

    /// Does `act` on a hold of this process, if it is one.
    pub(crate) fn with_hold<T>(
        &self,
        scope: &Scope,
        id: HoldId,
        now: Timestamp,
        act: impl FnOnce(&mut Account, &Books, &mut Cell) -> Result<T>,
    ) -> Option<Result<T>> {
        let mut guard = self.lock(now);
        let state = &mut *guard;
        let account =
            state.accounts.get_mut(scope.owner()).filter(|account| account.holds.contains_key(&id))?;
        Some(act(account, &self.books, &mut state.all))
    }

    /// Closes a hold of this process, if it is one, and queues the charge.
    pub(crate) fn close(
        &self,
        scope: &Scope,
        id: HoldId,
        charge: &Charge,
        now: Timestamp,
    ) -> Option<Result<Settled>> {
        let mut guard = self.lock(now);
        let state = &mut *guard;
        let account = state.accounts.get_mut(scope.owner())?;
        let record = account.holds.get(&id)?.clone();
        let settled = account.close(&self.books, now, &mut state.all, id, charge, true);
        account.holds.remove(&id);
        let used = Totals::charged(charge);
        // A refund is told as well: the server would take a late charge of a hold it does not know for one that it lost.
        if settled.is_ok() {
            let estimated = matches!(charge, Charge::Used { estimated: true, .. }).then_some(false);
            let (key, granted, window) = (record.key, record.granted.tokens(), account.user.window);
            let what = What::Charge { key, granted, closed: now, window, estimated };
            let (owner, epoch) = (scope.owner().clone(), scope.epoch().get());
            state.pending.push_back(Pending { owner, epoch, hold: id, used, what });
        }
        self.tidy(state, now);
        Some(settled)
    }

    /// Queues the close of a hold that the server keeps; false when the queue is full.
    pub(crate) fn defer(&self, scope: &Scope, id: HoldId, charge: &Charge, now: Timestamp) -> bool {
        let mut guard = self.lock(now);
        let state = &mut *guard;
        let open: usize = state.accounts.values().map(|account| account.holds.len()).sum();
        if open + state.pending.len() >= self.max_pending {
            return false;
        }
        let what = What::Close { estimated: matches!(charge, Charge::Used { estimated: true, .. }) };
        let (owner, epoch) = (scope.owner().clone(), scope.epoch().get());
        state.pending.push_back(Pending { owner, epoch, hold: id, used: Totals::charged(charge), what });
        self.tidy(state, now);
        true
    }

    /// Forgets the counter of a run that ended.
    pub(crate) fn end_run(&self, owner: &Owner, run: RunId, now: Timestamp) {
        if let Some(account) = self.lock(now).accounts.get_mut(owner) {
            account.runs.remove(&run);
        }
    }

    /// Charges of a user that are not booked yet: estimates, as long as the server does not know of them.
    pub(crate) fn unbooked(&self, owner: &Owner, now: Timestamp) -> Vec<EstimatedCharge> {
        let of = |pending: &Pending| match pending.what {
            What::Charge { key, estimated, .. } if pending.owner == *owner && !pending.used.is_zero() => {
                Some(EstimatedCharge::new(pending.hold, key, pending.used.usage, estimated == Some(true)))
            }
            _ => None,
        };
        self.lock(now).pending.iter().filter_map(of).collect()
    }

    /// What is to be booked next.
    pub(crate) fn next(&self, now: Timestamp) -> Option<Pending> {
        self.lock(now).pending.front().cloned()
    }

    /// Whether a charge or a close of this hold waits to be booked.
    pub(crate) fn is_pending(&self, hold: HoldId, now: Timestamp) -> bool {
        self.lock(now).pending.iter().any(|pending| pending.hold == hold)
    }

    /// The next was booked. What fitted into the caps is replenished; what did not stays spent until its window ends, or a
    /// server that comes and goes would give each time what is beyond the caps.
    pub(crate) fn booked(&self, booked: &Pending, fits: bool, now: Timestamp) {
        let mut guard = self.lock(now);
        let state = &mut *guard;
        if state.pending.front().is_some_and(|pending| pending.hold == booked.hold) {
            state.pending.pop_front();
            if let (What::Charge { window, .. }, true) = (&booked.what, fits) {
                let periods = &self.books.periods;
                state.all.uncharge(periods, *window, &booked.used);
                if let Some(account) = state.accounts.get_mut(&booked.owner) {
                    account.user.uncharge(periods, *window, &booked.used);
                }
            }
        }
        self.tidy(state, now);
    }

    /// The state, after the leases of this process's own holds that ran out were closed.
    fn lock(&self, now: Timestamp) -> MutexGuard<'_, State> {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        for (owner, account) in &mut state.accounts {
            account.expire(&self.books, now, &mut state.all);
            let ended: Vec<HoldId> =
                account.holds.iter().filter(|(_, hold)| !hold.is_open()).map(|(id, _)| *id).collect();
            for id in ended {
                let Some(hold) = account.holds.remove(&id) else { continue };
                let HoldState::Estimated { charged, expired } = hold.state else { continue };
                let (granted, epoch) = (hold.granted.tokens(), state.epochs.get(owner).copied().unwrap_or(0));
                let (closed, window) = (hold.expires, hold.window);
                let what = What::Charge { key: hold.key, granted, closed, window, estimated: Some(expired) };
                let owner = owner.clone();
                state.pending.push_back(Pending { owner, epoch, hold: id, used: charged, what });
            }
        }
        guard
    }

    /// Lets go of what nothing hangs on.
    fn tidy(&self, state: &mut State, now: Timestamp) {
        let open = state.accounts.values().any(|account| !account.holds.is_empty());
        let Books { periods, global, user, .. } = &self.books;
        let window = periods.number(now);
        let blank = |cell: &Cell| cell.used.is_zero() && cell.held == Default::default();
        state.all.roll(periods, global, window);
        state.accounts.retain(|_, account| {
            account.user.roll(periods, user, window);
            account.runs.retain(|_, run| !blank(&run.cell));
            !(account.holds.is_empty() && blank(&account.user))
        });
        let State { epochs, accounts, .. } = state;
        epochs.retain(|owner, _| accounts.contains_key(owner));
        self.active.store(open || !state.pending.is_empty(), Ordering::Release);
    }
}

impl fmt::Debug for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outage").field("active", &self.is_active()).finish_non_exhaustive()
    }
}

/// How long until the server is tried again.
pub(crate) const TRY_AGAIN: Duration = Duration::from_secs(1);
