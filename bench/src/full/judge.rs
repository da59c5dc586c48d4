//! After the load: the invoice against the ledger, and the log against what was seen.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hashbrown::{HashMap, HashSet};
use loomflow_core::{Action, AuditEntry, AuditQuery, Result, RunId, RunStatus};
use serde_json::Value;

use crate::full::{Seen, World};
use crate::provider::MeteredModel;
use crate::report::{Audit, Budget, Report};
use crate::system::{Doubles, FullSystem};

/// The most defects that are told one by one.
const TOLD: usize = 8;

pub(super) async fn judge(
    report: &mut Report,
    world: &World,
    system: &FullSystem,
    doubles: &Doubles,
    model: &MeteredModel,
    seen: &Seen,
) -> Result<()> {
    let (isolation, blind) = world.watch.report();
    report.isolation = isolation;
    report.failures.extend(blind);
    report.failures.extend(seen.defects.iter().take(TOLD).cloned());
    if seen.defects.len() > TOLD {
        report.failures.push(format!("... and {} more", seen.defects.len() - TOLD));
    }
    report.budget = budget(world, doubles).await?;
    let expected = expected(world, doubles, model, seen);
    report.audit = audit(report, world, system, seen, &expected).await?;
    Ok(())
}

async fn budget(world: &World, doubles: &Doubles) -> Result<Budget> {
    let mut budget = Budget { exhausted_users: doubles.telemetry.exhausted(), ..Budget::default() };
    for tenant in 0..world.people.len() {
        let usage = world.people.enter(&world.agent, tenant).usage().await?;
        let (owed, charged) = (doubles.invoice.account(tenant), usage.used);
        budget.invoiced_tokens += owed.total();
        budget.ledger_tokens += charged.total_tokens();
        let same = owed.input == charged.input_tokens && owed.output == charged.output_tokens;
        budget.mismatches += u64::from(!same);
        budget.phantom_holds += usage.open_holds + u64::from(usage.open_holds == 0 && usage.held_tokens > 0);
        let beyond = |w: &loomflow_core::CapUsage| w.used.saturating_sub(w.limit);
        budget.overspend_tokens += usage.windows.iter().map(beyond).sum::<u64>();
    }
    budget.overspend_tokens += world.overspend.load(Ordering::Relaxed);
    Ok(budget)
}

/// How many entries of each action there must be, from what the driver saw outside the log.
///
/// Which of the five ends a dropped run comes to cannot be seen from outside (it may have ended just before it was
/// dropped), so ends are counted together here and looked at run by run below.
fn expected(
    world: &World,
    doubles: &Doubles,
    model: &MeteredModel,
    seen: &Seen,
) -> BTreeMap<&'static str, u64> {
    let tool_calls = doubles.tool_calls.load(Ordering::Relaxed);
    let policy = &doubles.policy;
    BTreeMap::from([
        ("run_started", seen.begun()),
        ("end", seen.begun()),
        ("model_call", model.arrived() + doubles.invoice.embeddings()),
        ("permission_decision", policy.checks()),
        // Nobody is there to ask, so an ask is a denial.
        ("approval_denied", policy.asked()),
        ("tool_intent", tool_calls),
        ("tool_result", tool_calls + policy.asked() + policy.denied()),
        ("budget_refused", doubles.telemetry.refused()),
        ("budget_warning", doubles.telemetry.warned()),
        ("memory_export", world.exports.load(Ordering::Relaxed)),
        ("memory_forget", world.forgets.load(Ordering::Relaxed)),
        ("isolation_violation", doubles.telemetry.violations()),
    ])
}

async fn audit(
    report: &mut Report,
    world: &World,
    system: &FullSystem,
    seen: &Seen,
    expected: &BTreeMap<&'static str, u64>,
) -> Result<Audit> {
    let known: HashMap<RunId, RunStatus> = seen.known.iter().copied().collect();
    let mut counted: BTreeMap<&'static str, u64> = expected.keys().map(|name| (*name, 0)).collect();
    let mut problems = 0;
    let mut recorded = 0;
    for tenant in 0..world.people.len() {
        let user = world.people.enter(&world.agent, tenant);
        let entries = user.audit(&AuditQuery::first(usize::MAX)).await?;
        for entry in &entries {
            let action = entry.event.action;
            let name = if action.is_terminal() { "end" } else { action.as_str() };
            *counted.entry(name).or_default() += 1;
        }
        let (bad, found) = runs(&entries, &known);
        problems += bad;
        recorded += found;
    }
    for (name, n) in &counted {
        let wanted = expected.get(name).copied().unwrap_or(0);
        if *n != wanted {
            report.failures.push(format!("the log has {n} entries {name} and must have {wanted}"));
        }
    }
    if recorded != known.len() as u64 {
        problems += 1;
        let told = format!("the log knows {recorded} of {} runs whose end was seen", known.len());
        report.failures.push(told);
    }
    let verification = system.audit.verify().await?;
    Ok(Audit {
        entries: verification.entries,
        expected: expected.values().sum(),
        verified: verification.is_valid(),
        problems,
    })
}

/// What the log says about one run.
#[derive(Default)]
struct Recorded {
    started: u32,
    ends: Vec<Action>,
    intents: HashSet<String>,
    results: HashSet<String>,
    after_end: bool,
}

/// Checks a tenant's runs one by one: a beginning, one end and nothing after it, a result for every intent, and the end
/// that was seen. Returns how many are not so, and how many of the known runs there are.
fn runs(entries: &[AuditEntry], known: &HashMap<RunId, RunStatus>) -> (u64, u64) {
    let mut all: HashMap<RunId, Recorded> = HashMap::new();
    for entry in entries {
        let Some(run) = entry.event.run else { continue };
        let recorded = all.entry(run).or_default();
        recorded.after_end |= !recorded.ends.is_empty();
        match entry.event.action {
            Action::RunStarted => recorded.started += 1,
            Action::ToolIntent => _ = recorded.intents.insert(call_of(entry)),
            Action::ToolResult => _ = recorded.results.insert(call_of(entry)),
            action if action.is_terminal() => recorded.ends.push(action),
            _ => {}
        }
    }
    let mut bad = 0;
    let mut found = 0;
    for (run, recorded) in &all {
        let status = known.get(run);
        found += u64::from(status.is_some());
        let ends_as_seen = status.is_none_or(|status| recorded.ends.first() == Some(&end_of(*status)));
        let whole = recorded.started == 1
            && recorded.ends.len() == 1
            && !recorded.after_end
            && recorded.intents.is_subset(&recorded.results)
            && ends_as_seen;
        bad += u64::from(!whole);
    }
    (bad, found)
}

fn call_of(entry: &AuditEntry) -> String {
    let payload: Value = serde_json::from_str(entry.event.payload.get()).unwrap_or_default();
    payload["call_id"].as_str().unwrap_or_default().to_owned()
}

fn end_of(status: RunStatus) -> Action {
    match status {
        RunStatus::Completed => Action::RunCompleted,
        RunStatus::Interrupted => Action::RunInterrupted,
        RunStatus::TimedOut => Action::RunTimedOut,
        RunStatus::Cancelled => Action::RunCancelled,
        _ => Action::RunFailed,
    }
}
