//! A journaled parent: a child is one step of it, done once or left in doubt, and what it used is not forgotten.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loomflow_core::{Agent, BudgetConfig, Effect, ErrorKind, RunResult, UserAgent};
use loomflow_local::{InMemoryJournalStore, InProcRuntime, StandardBudget};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::user;

use super::{conducting, research, worker};

/// What outlives the process in these tests.
struct World {
    runtime: Arc<InProcRuntime>,
    ledger: Arc<StandardBudget>,
}

impl World {
    fn new() -> Self {
        let caps = BudgetConfig::new().per_user_max_tokens(100_000).per_run_max_tokens(90_000);
        Self {
            runtime: Arc::new(InProcRuntime::with_journal(InMemoryJournalStore::new())),
            ledger: Arc::new(StandardBudget::new(caps).unwrap()),
        }
    }

    fn agent(&self, boss: &Arc<ModelDouble>, child: &Agent, effect: Effect) -> Agent {
        conducting(boss.clone(), research(child).with_effect(effect))
            .runtime(self.runtime.clone())
            .budget(self.ledger.clone())
            .build()
            .unwrap()
    }
}

/// Runs until `when`, in a runtime that then ends: nothing of the run gets to finish anything.
fn crash(agent: Agent, when: impl Fn() -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let run = IntoFuture::into_future(agent.for_user(user("a")).run("go").session("s"));
    runtime.block_on(async {
        let task = tokio::spawn(run);
        while !when() {
            tokio::task::yield_now().await;
        }
        std::mem::forget(task);
    });
    runtime.shutdown_background();
    std::mem::forget(agent);
}

fn later<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(600)).await;
        work.await
    })
}

async fn resume(tenant: &UserAgent) -> loomflow_core::Result<RunResult> {
    let open = tenant.open_runs().await.unwrap();
    assert_eq!(open.len(), 1, "a child is no run of the journal");
    tenant.resume(open[0].run).await?.await
}

fn delegates_then(rest: fn() -> Vec<Step>) -> Arc<ModelDouble> {
    ModelDouble::new(move |_, n| Ok(if n == 0 { call("research", "{\"task\": \"t\"}") } else { rest() }))
}

#[test]
fn a_child_that_ended_before_the_crash_is_not_run_again_and_its_usage_is_kept() {
    let world = World::new();
    let (child, executed) = worker();
    let child = child.build().unwrap();
    let first = delegates_then(|| vec![Step::Hang]);
    let calls = first.clone();
    crash(world.agent(&first, &child, Effect::External), move || calls.calls() == 2);
    assert_eq!(executed.load(Ordering::SeqCst), 1);
    let second = ModelDouble::saying("all done");
    let agent = world.agent(&second, &child, Effect::External);
    later(async {
        let tenant = agent.for_user(user("a"));
        let result = resume(&tenant).await.unwrap();
        assert_eq!(&*result.output, "all done");
        assert_eq!(
            (executed.load(Ordering::SeqCst), second.calls()),
            (1, 1),
            "neither child nor first turn again"
        );
        let ledger = tenant.usage().await.unwrap();
        // The call that the crash cut off was sent: its prompt is charged by estimate, and the result does not know it.
        let cut_off = ledger.estimated_tokens;
        assert!(cut_off > 0);
        assert_eq!(ledger.used.total_tokens(), result.usage.total_tokens() + cut_off);
        assert_eq!(ledger.open_holds, 0);
    });
}

#[test]
fn a_child_in_the_middle_of_a_crash_is_left_in_doubt() {
    let world = World::new();
    let hanging = ModelDouble::new(|_, _| Ok(vec![Step::Say("one ".into()), Step::Hang]));
    let child = Agent::builder("w").model(hanging.clone()).build().unwrap();
    let (first, calls) = (delegates_then(|| say("never")), hanging.clone());
    crash(world.agent(&first, &child, Effect::External), move || calls.calls() == 1);
    let agent = world.agent(&ModelDouble::saying("never"), &child, Effect::External);
    later(async {
        let error = resume(&agent.for_user(user("a"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("nobody knows"), "{error}");
        assert_eq!(hanging.calls(), 1);
    });
}

/// One that only reads is run again, in a life whose holds are not those of the life before: the crashed child's hold is open
/// still, under a key of its own.
#[test]
fn a_child_that_only_reads_is_run_again_with_holds_of_its_own() {
    let world = World::new();
    let child = ModelDouble::new(|_, n| Ok(if n == 0 { vec![Step::Hang] } else { say("found it again") }));
    let reader = Agent::builder("w").model(child.clone()).build().unwrap();
    let (first, calls) = (delegates_then(|| say("never")), child.clone());
    crash(world.agent(&first, &reader, Effect::Read), move || calls.calls() == 1);
    let second = ModelDouble::saying("all done");
    let agent = world.agent(&second, &reader, Effect::Read);
    // Not much later: the hold is open.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let tenant = agent.for_user(user("a"));
        assert_eq!(tenant.usage().await.unwrap().open_holds, 1);
        tokio::time::pause();
        // Past the session's lease and short of the hold's.
        tokio::time::advance(Duration::from_secs(155)).await;
        let result = resume(&tenant).await.unwrap();
        assert_eq!((&*result.output, child.calls()), ("all done", 2));
        assert_eq!(result.tool_calls[0].status, loomflow_core::ToolStatus::Ok);
        let ledger = tenant.usage().await.unwrap();
        assert_eq!(ledger.used.total_tokens(), result.usage.total_tokens(), "the rest is held still");
        assert_eq!(ledger.open_holds, 1, "the crashed call's, until its lease runs out");
    });
}
