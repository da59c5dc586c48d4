//! Rate limits at the doors: whether a run may begin, and whether a model may be called now.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::agent::AgentInner;
use crate::door::line::{Lines, Place, Who};
use crate::error::{Error, Result};
use crate::ledger::Entity;
use crate::rate_limit::{Amounts, LimitReason, Limited, OnLimit, RateLimiter, Resource, Taken};
use crate::run::RunState;
use crate::scope::{Epoch, Owner, Scope};
use crate::telemetry::Telemetry;
use crate::usage::Usage;

/// The shortest sleep in line, so that no rounding makes a loop of it.
const LEAST_SLEEP: Duration = Duration::from_millis(1);

/// A limiter, and the line before it.
///
/// A limiter answers at once, whatever it is built on; standing in line is the same before all of them, and is done here.
/// Of a user one waits at the limiter and the others behind, in the order they came; of the users that the common limit
/// holds back, one waits at the limiter and the others behind. What is waited for is taken when the turn has come and not
/// before, so whoever goes away takes nothing.
pub(crate) struct RateGate {
    limiter: Arc<dyn RateLimiter>,
    lines: Lines,
}

impl RateGate {
    pub(crate) fn new(limiter: Arc<dyn RateLimiter>) -> Self {
        Self { limiter, lines: Lines::default() }
    }

    pub(crate) fn limiter(&self) -> &dyn RateLimiter {
        &*self.limiter
    }

    /// Takes `ask`, now or when its turn has come, `patience` from now at the latest. Says whether it waited.
    pub(crate) async fn pass(&self, scope: &Scope, ask: &Amounts, patience: Duration) -> Result<bool> {
        let rules = self.limiter.rules();
        let Some((entity, resource, limit, _)) = rules.limits.asked(ask).next() else { return Ok(false) };
        let deadline = Instant::now() + rules.max_wait.min(patience);
        let who = Who::new(scope.owner(), resource == Resource::Runs);
        // Nobody overtakes: without a place in line, only who meets nobody in it tries.
        if rules.on_limit == OnLimit::Reject || !self.lines.is_anybody_before(&who) {
            let Taken::Limited(limited) = self.limiter.take(scope, ask).await? else { return Ok(false) };
            if rules.on_limit == OnLimit::Reject || !can_wait(&limited, deadline) {
                return Err(Error::over_limit(*limited));
            }
        }
        let turned_away = |reason| Limited::new(reason, entity, resource, limit.burst());
        let Some(place) = self.lines.stand(&who.own(), rules.max_waiting_per_user, rules.max_waiting) else {
            let limited = turned_away(LimitReason::Queue).with_retry_after(limit.interval());
            return Err(Error::over_limit(limited));
        };
        let late = || turned_away(LimitReason::Rate).with_retry_after(limit.interval());
        Box::pin(self.wait(scope, ask, &who, place, deadline)).await.map(|()| true).map_err(|failed| {
            match failed {
                Stopped::Failed(error) => error,
                Stopped::Late(told) => Error::over_limit(told.unwrap_or_else(late)),
            }
        })
    }

    async fn wait(
        &self,
        scope: &Scope,
        ask: &Amounts,
        who: &Who,
        mut own: Place<'_>,
        deadline: Instant,
    ) -> Result<(), Stopped> {
        own.turn(deadline).await?;
        let mut common: Option<Place<'_>> = None;
        loop {
            if common.is_none() && self.lines.is_anybody(&who.common()) {
                common = Some(self.stand_with_all(who, deadline).await?);
            }
            let Taken::Limited(limited) = self.limiter.take(scope, ask).await? else { return Ok(()) };
            let at_once = Instant::now();
            if !can_wait(&limited, deadline) {
                return Err(Stopped::Late(Some(*limited)));
            }
            let again = at_once + limited.retry_after.unwrap_or_default().max(LEAST_SLEEP);
            let by_all = limited.entity == Entity::Global;
            let line = if by_all { who.common() } else { who.own() };
            if by_all && common.is_none() {
                common = Some(self.stand_with_all(who, deadline).await?);
            } else if !by_all {
                // Held back by a limit of their own, they keep nobody else from the common one.
                common = None;
            }
            self.lines.say(&line, *limited);
            sleep_until(again).await;
        }
    }

    async fn stand_with_all(&self, who: &Who, deadline: Instant) -> Result<Place<'_>, Stopped> {
        // Each user sends one, so this line is no longer than there are lines of users.
        let place = self.lines.stand(&who.common(), usize::MAX, usize::MAX);
        let mut place = place.expect("a line without a bound has room");
        place.turn(deadline).await?;
        Ok(place)
    }

    async fn settle(&self, scope: &Scope, taken: &Amounts, used: &Amounts, telemetry: &dyn Telemetry) {
        if taken == used || self.limiter.rules().limits.asked(taken).next().is_none() {
            return;
        }
        // What is not given back comes back with time, and the answer that was paid for is not lost over it.
        if let Err(error) = self.limiter.settle(scope, taken, used).await {
            telemetry.count(scope, "loom.rate_limit.errors", 1, &[("error", error.kind().as_str())]);
        }
    }
}

impl fmt::Debug for RateGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RateGate({:?})", self.limiter)
    }
}

/// Why nobody waits on.
pub(crate) enum Stopped {
    Failed(Error),
    /// The time is over, or would be before it fits; what the limiter said last.
    Late(Option<Limited>),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Whether what was told can come true before the deadline.
fn can_wait(limited: &Limited, deadline: Instant) -> bool {
    limited.reason == LimitReason::Rate
        && limited
            .retry_after
            .is_some_and(|after| Instant::now().checked_add(after).is_some_and(|again| again <= deadline))
}

/// Lets a run begin, or tells why not. Nothing was asked of any store before.
pub(crate) async fn admit_run(agent: &AgentInner, owner: &Owner) -> Result<()> {
    // A limiter knows no epochs: it holds nothing that an erased run could bring back.
    let scope = Scope::mint(owner.clone(), Epoch::ZERO);
    let deadline = Instant::now() + agent.settings.run_timeout;
    admit(&agent.rate, &scope, &Amounts::run(), deadline, &*agent.services.telemetry).await
}

/// Lets a model be called for so many tokens, or tells why not.
pub(crate) async fn admit_call(run: &RunState, tokens: u64) -> Result<Pass> {
    let pass = Pass(Amounts::model_call(tokens));
    let telemetry = &*run.ctx.services().telemetry;
    admit(&run.agent.rate, run.ctx.scope(), &pass.0, run.ctx.deadline(), telemetry).await?;
    Ok(pass)
}

/// Passes every gate, or none: an outer agent's limits come before those a child adds.
async fn admit(
    gates: &[Arc<RateGate>],
    scope: &Scope,
    ask: &Amounts,
    deadline: Instant,
    telemetry: &dyn Telemetry,
) -> Result<()> {
    for (passed, gate) in gates.iter().enumerate() {
        if let Err(error) = admit_at(gate, scope, ask, deadline, telemetry).await {
            settle(&gates[..passed], scope, ask, &Amounts::default(), telemetry).await;
            return Err(error.with_operation("rate_limit"));
        }
    }
    Ok(())
}

async fn admit_at(
    gate: &RateGate,
    scope: &Scope,
    ask: &Amounts,
    deadline: Instant,
    telemetry: &dyn Telemetry,
) -> Result<()> {
    let began = Instant::now();
    let passed = gate.pass(scope, ask, deadline.saturating_duration_since(began)).await;
    match &passed {
        Ok(false) => {}
        Ok(true) => telemetry.duration(scope, "loom.rate_limit.waited", began.elapsed(), &[]),
        Err(error) => match error.limited() {
            Some(limited) => {
                telemetry.count(scope, "loom.rate_limit.limited", 1, &[("limit", limited.limit)])
            }
            None => {
                telemetry.count(scope, "loom.rate_limit.errors", 1, &[("error", error.kind().as_str())]);
            }
        },
    }
    passed.map(drop)
}

async fn settle(
    gates: &[Arc<RateGate>],
    scope: &Scope,
    taken: &Amounts,
    used: &Amounts,
    telemetry: &dyn Telemetry,
) {
    for gate in gates {
        gate.settle(scope, taken, used, telemetry).await;
    }
}

/// What was taken for a call. Dropped, it stays taken: the call may have been made, and its part comes back with time.
pub(crate) struct Pass(Amounts);

impl Pass {
    /// The call was made and used this.
    pub(crate) async fn used(self, run: &RunState, usage: &Usage) {
        let used = self.0.with_tokens(usage.total_tokens());
        self.settle(run, &used).await;
    }

    /// The call was not made at all.
    pub(crate) async fn unused(self, run: &RunState) {
        self.settle(run, &Amounts::default()).await;
    }

    async fn settle(self, run: &RunState, used: &Amounts) {
        let telemetry = &*run.ctx.services().telemetry;
        settle(&run.agent.rate, run.ctx.scope(), &self.0, used, telemetry).await;
    }
}

#[cfg(test)]
mod tests;
