//! The profiles `bare`, `text` and `tool`: the work that other frameworks are measured on, and nothing else inside the
//! timed part.
//!
//! A closed loop: worker `w` of `C` owns the tenants `w`, `w + C`, ..., so that one tenant's runs never overlap; every
//! tenant's first run comes before anybody's second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loomflow_core::{Agent, Error, ErrorKind, RecallQuery, Result, RunStatus, UserId};

use crate::config::{Config, Profile};
use crate::meter::Meter;
use crate::progress::Progress;
use crate::provider::FixedModel;
use crate::report::{Audit, Budget, Endings, Isolation, Report};
use crate::stats::Latency;
use crate::system::{self, Dump, FixedSystem};

/// How many tenants are looked at after the timed part, at most.
const LOOKED_AT: usize = 100;

/// Runs one of the three profiles and reports.
///
/// # Errors
///
/// Whatever a run fails with: none may.
pub async fn run(config: &Config, progress: &Progress) -> Result<(Report, Dump)> {
    let uses_tool = config.profile == Profile::Tool;
    let model = Arc::new(FixedModel::new(config.users, uses_tool));
    let system = system::fixed(config, model.clone()).await?;
    one(&system.agent, "warm", 0).await?;
    let warm_calls = model.calls();

    let meter = Arc::new(Meter::begin(config.users, system::audit_bytes(system.audit.as_ref())));
    let latencies = closed_loop(&system.agent, config, &meter, progress).await?;
    let measured = meter.end();

    let runs = (config.users * config.turns) as u64;
    let turns = model.calls() - warm_calls;
    let mut report =
        Report::new(config.clone(), system.stores.clone(), runs, turns, measured, Latency::of(&latencies));
    report.longest_prompt_messages = model.longest_prompt() as u64;
    report.endings = Endings { completed: runs, ..Endings::default() };
    report.isolation = look(&system.agent, config).await?;
    if config.profile == Profile::Bare {
        report.audit.verified = true;
    } else {
        system.agent.settled().await?;
        report.budget = compare(&system.agent, config, &model).await?;
        report.audit = count(&system, config).await?;
    }
    let calls = if uses_tool { 2 * runs } else { runs };
    if turns != calls {
        report.failures.push(format!("{turns} model calls were made and must be {calls}"));
    }
    report.judge();
    system
        .leftovers
        .erase(config.users, |agent, user| Ok(agent.for_user(UserId::new(format!("user_{user}"))?)))
        .await?;
    Ok((report, system.dump()))
}

async fn closed_loop(
    agent: &Agent,
    config: &Config,
    meter: &Arc<Meter>,
    progress: &Progress,
) -> Result<Vec<Duration>> {
    let _drawing = progress.draw();
    let mut workers = Vec::with_capacity(config.concurrency);
    for worker in 0..config.concurrency {
        let (agent, meter, progress) = (agent.clone(), meter.clone(), progress.clone());
        let (users, turns, step) = (config.users, config.turns, config.concurrency);
        workers.push(tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(turns * (users / step + 1));
            for turn in 0..turns {
                for user in (worker..users).step_by(step) {
                    let began = Instant::now();
                    one(&agent, &format!("user_{user}"), turn).await?;
                    latencies.push(began.elapsed());
                    if turn == 0 {
                        meter.user_created();
                    }
                    progress.tick();
                }
            }
            Ok::<_, Error>(latencies)
        }));
    }
    let mut all = Vec::with_capacity(config.users * config.turns);
    for worker in workers {
        let ended =
            worker.await.map_err(|e| Error::new(ErrorKind::Internal, format!("a worker died: {e}")))?;
        all.extend(ended?);
    }
    all.sort_unstable();
    Ok(all)
}

/// One run of the peers' work.
async fn one(agent: &Agent, user: &str, turn: usize) -> Result<()> {
    let tenant = agent.for_user(UserId::new(user)?);
    let result = tenant.run(format!("prompt {turn} for {user}")).session(&format!("{user}-s")).await?;
    if result.status == RunStatus::Completed && &*result.output == "ack" {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Internal,
        format!("a run ended as {:?} with {:?}", result.status, result.output),
    ))
}

/// After the timed part: what tenants recall is their own.
async fn look(agent: &Agent, config: &Config) -> Result<Isolation> {
    let mut isolation = Isolation::default();
    for user in (0..config.users).step_by((config.users / LOOKED_AT).max(1)) {
        let id = format!("user_{user}");
        let memory = agent.for_user(UserId::new(&id)?).memory().await?;
        let own = format!("for {id}");
        for found in memory.recall(&RecallQuery::new("prompt", 50)).await? {
            isolation.probes += 1;
            let is_own = found.episode.input().ends_with(&own);
            isolation.violations += u64::from(!is_own);
        }
    }
    Ok(isolation)
}

async fn compare(agent: &Agent, config: &Config, model: &FixedModel) -> Result<Budget> {
    let mut budget = Budget::default();
    for user in 0..config.users {
        let usage = agent.for_user(UserId::new(format!("user_{user}"))?).usage().await?;
        let (owed, charged) = (model.invoice().account(user), usage.used);
        budget.invoiced_tokens += owed.total();
        budget.ledger_tokens += charged.total_tokens();
        let same = owed.input == charged.input_tokens && owed.output == charged.output_tokens;
        budget.mismatches += u64::from(!same);
        budget.phantom_holds += usage.open_holds;
        let beyond = |w: &loomflow_core::CapUsage| w.used.saturating_sub(w.limit);
        budget.overspend_tokens += usage.windows.iter().map(beyond).sum::<u64>();
    }
    Ok(budget)
}

async fn count(system: &FixedSystem, config: &Config) -> Result<Audit> {
    let Some(log) = &system.audit else { return Ok(Audit::default()) };
    let verification = loomflow_core::AuditLog::verify(&**log).await?;
    // Begin, model call, end; with a tool also decision, intent, result and a second model call.
    let per_run = if config.profile == Profile::Tool { 7 } else { 3 };
    let warm = 1;
    Ok(Audit {
        entries: verification.entries,
        expected: per_run * ((config.users * config.turns) as u64 + warm),
        verified: verification.is_valid(),
        problems: 0,
    })
}
