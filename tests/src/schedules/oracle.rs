//! Reads what happened and says what must not have.
//!
//! - **Nothing runs without a live matching approval.** Before a payment, in the same life, the policy was asked about these
//!   very arguments and did not deny. Where it asked, somebody who may had decided on a request for this call before that:
//!   approved these arguments, or edited them to these. The request was made under the version that the policy had when it was asked
//!   last, and was used once, before it expired.
//! - **Nothing runs twice.**
//! - **Nothing approved is lost.** A decision to pay that nothing made void (another policy in force at any moment since the
//!   request, expiry, a policy that denies what was edited, a handler that failed) was carried out, or the run is parked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use loomflow_core::{ApprovalId, Timestamp};

use super::history::{Answer, Fact, History, Said};

/// What happened in schedules that were well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Processes.
    pub lives: u64,
    /// Requests for approval.
    pub requests: u64,
    /// Decisions to pay.
    pub grants: u64,
    /// Of these, such that nothing made void.
    pub live_grants: u64,
    /// Payments.
    pub executions: u64,
    /// Of these, in another process than the approval was used in.
    pub executed_after_a_crash: u64,
    /// Runs that were left for a person.
    pub parked: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { lives, requests, grants, live_grants, executions, executed_after_a_crash, parked } = other;
        self.lives += lives;
        self.requests += requests;
        self.grants += grants;
        self.live_grants += live_grants;
        self.executions += executions;
        self.executed_after_a_crash += executed_after_a_crash;
        self.parked += parked;
    }
}

struct Request {
    made: usize,
    call: u64,
    cents: u64,
    version: u64,
    expires: Timestamp,
    decided: Option<(usize, Said)>,
    used: Option<(usize, u32, Timestamp)>,
    /// Whether that was no use: it was made void instead.
    taken_back: bool,
    untold: bool,
}

impl Request {
    /// What may be paid by it.
    fn pays(&self) -> Option<u64> {
        match self.decided?.1 {
            Said::Approve => Some(self.cents),
            Said::Edit(cents) => Some(cents),
            Said::Deny => None,
        }
    }
}

pub(super) fn judge(history: &History) -> Result<Tally, String> {
    let facts = history.facts();
    let mut tally = Tally::default();
    let lives = lives_of(&facts, &mut tally);
    versions_are_labels(&facts)?;
    let requests = requests(&facts, &lives)?;
    let mut paid: BTreeMap<u64, u64> = BTreeMap::new();
    for (at, fact) in facts.iter().enumerate() {
        let Fact::Executed { call, cents } = *fact else { continue };
        if paid.insert(call, cents).is_some() {
            return Err(format!("call {call} ran twice"));
        }
        tally.executions += 1;
        let after_a_crash = may_run(&facts, &lives, &requests, at, call, cents)?;
        tally.executed_after_a_crash += u64::from(after_a_crash);
    }
    let parked = facts.iter().any(|fact| matches!(fact, Fact::Parked));
    tally.parked = u64::from(parked);
    tally.requests = requests.len() as u64;
    for (id, request) in &requests {
        let Some(cents) = request.pays() else { continue };
        tally.grants += 1;
        if void(&facts, request, cents) {
            continue;
        }
        tally.live_grants += 1;
        if paid.get(&request.call) != Some(&cents) && !parked {
            return Err(format!("{id} approved {cents} for call {}, and it was lost", request.call));
        }
    }
    Ok(tally)
}

/// The life each fact belongs to.
fn lives_of(facts: &[Fact], tally: &mut Tally) -> Vec<u32> {
    let mut now = 0;
    let mut lives = Vec::with_capacity(facts.len());
    for fact in facts {
        if let Fact::Life(life) = fact {
            now = *life;
            tally.lives += 1;
        }
        lives.push(now);
    }
    lives
}

/// Two policies have one version exactly when they have one label.
fn versions_are_labels(facts: &[Fact]) -> Result<(), String> {
    let in_force = || {
        facts.iter().filter_map(|fact| match fact {
            Fact::Policy { label, version } => Some((*label, *version)),
            _ => None,
        })
    };
    let pairs: BTreeSet<_> = in_force().collect();
    let labels: BTreeSet<_> = in_force().map(|(label, _)| label).collect();
    let versions: BTreeSet<_> = in_force().map(|(_, version)| version).collect();
    if pairs.len() != labels.len() || pairs.len() != versions.len() {
        return Err(format!("versions do not tell policies apart: {pairs:?}"));
    }
    Ok(())
}

fn requests(facts: &[Fact], lives: &[u32]) -> Result<BTreeMap<ApprovalId, Request>, String> {
    let mut requests = BTreeMap::new();
    for (at, fact) in facts.iter().enumerate() {
        match *fact {
            Fact::Created { id, call, cents, version, expires } => {
                let (decided, used, untold, taken_back) = (None, None, false, false);
                let made = at;
                let request =
                    Request { made, call, cents, version, expires, decided, used, untold, taken_back };
                if requests.values().any(|known: &Request| known.call == call) {
                    return Err(format!("call {call} was asked about twice"));
                }
                requests.insert(id, request);
            }
            Fact::NobodyTold(id) => known(&mut requests, id)?.untold = true,
            Fact::Decided { id, said } => {
                let earlier = known(&mut requests, id)?.decided.replace((at, said));
                if earlier.is_some() {
                    return Err(format!("{id} was decided twice"));
                }
            }
            Fact::Consumed { id, at: when } | Fact::Void { id, at: when } => {
                known(&mut requests, id)?.taken_back = matches!(fact, Fact::Void { .. });
                let earlier = known(&mut requests, id)?.used.replace((at, lives[at], when));
                if earlier.is_some() {
                    return Err(format!("{id} was used twice"));
                }
            }
            _ => {}
        }
    }
    Ok(requests)
}

fn known(requests: &mut BTreeMap<ApprovalId, Request>, id: ApprovalId) -> Result<&mut Request, String> {
    requests.get_mut(&id).ok_or_else(|| format!("{id} was never made"))
}

/// Whether a payment at `at` was one that may be; if so, whether its approval was used in an earlier process.
fn may_run(
    facts: &[Fact],
    lives: &[u32],
    requests: &BTreeMap<ApprovalId, Request>,
    at: usize,
    call: u64,
    cents: u64,
) -> Result<bool, String> {
    let judged = facts[..at].iter().enumerate().rev().find_map(|(when, fact)| match *fact {
        Fact::Judged { call: c, cents: n, answer, version, at } if (c, n) == (call, cents) => {
            Some((when, answer, version, at))
        }
        _ => None,
    });
    let Some((when, answer, version, wall)) = judged.filter(|(when, ..)| lives[*when] == lives[at]) else {
        return Err(format!("call {call} paid {cents} and the policy was not asked in that life"));
    };
    match answer {
        Answer::Allow => return Ok(false),
        Answer::Deny => return Err(format!("call {call} paid {cents} against the policy")),
        Answer::Ask => {}
    }
    let matching = requests.iter().find(|(_, request)| request.call == call && request.pays() == Some(cents));
    let Some((id, request)) = matching else {
        return Err(format!("call {call} paid {cents} and nobody had approved that"));
    };
    let wrong = |why: &str| Err(format!("call {call} paid {cents} by {id}, {why}"));
    let Some((used, life, used_at)) = request.used.filter(|(used, ..)| *used < at) else {
        return wrong("which was not used for it");
    };
    if request.taken_back {
        return wrong("which was taken back");
    }
    let decided = request.decided.is_some_and(|(decided, _)| decided < used && used < when);
    if !decided {
        return wrong("and the policy was not asked again after that");
    }
    if request.version != version {
        return wrong("which was asked for under another policy");
    }
    let live_until = if life == lives[at] { used_at } else { wall };
    if live_until >= request.expires {
        return wrong("which had expired");
    }
    Ok(life != lives[at])
}

/// Whether something made a decision to pay void.
fn void(facts: &[Fact], request: &Request, cents: u64) -> bool {
    let since = |from: usize| facts[from..].iter();
    let decided = request.decided.map_or(request.made, |(at, _)| at);
    let other_policy = since(request.made)
        .any(|fact| matches!(fact, Fact::Policy { version, .. } if *version != request.version));
    let stale = facts[..request.made].iter().rev().find_map(|fact| match fact {
        Fact::Policy { version, .. } => Some(*version != request.version),
        _ => None,
    });
    let denied = since(decided).any(|fact| {
        matches!(*fact, Fact::Judged { call, cents: n, answer: Answer::Deny, .. } if (call, n) == (request.call, cents))
    });
    let over = facts.iter().any(|fact| match fact {
        Fact::Ended { at, .. } => *at >= request.expires,
        _ => false,
    });
    let used_late = request.used.is_some_and(|(_, _, at)| at >= request.expires);
    let never_resumed = !facts.iter().any(|fact| matches!(fact, Fact::Ended { .. } | Fact::Parked));
    // A request that was expired while its payment was still to come counts as over; one that was paid does not matter.
    let paid = facts
        .iter()
        .any(|fact| matches!(*fact, Fact::Executed { call, cents: n } if (call, n) == (request.call, cents)));
    other_policy
        || stale == Some(true)
        || denied
        || request.untold
        || used_late
        || (over && !paid)
        || never_resumed
}
