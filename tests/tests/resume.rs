//! A run that was cut off goes on from its journal: nothing is done twice, nothing is billed twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loomflow_core::{Agent, BudgetConfig, Effect, ErrorKind, ToolOutcome, ToolStatus};
use loomflow_local::{
    InMemoryJournalStore, InMemoryMemory, InProcRuntime, StandardBudget, StandardPermissions,
};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::{FnTool, user};

/// What outlives the process in this test: stores that two agents, one after the other, are put together from.
struct World {
    runtime: Arc<InProcRuntime>,
    ledger: Arc<StandardBudget>,
    memory: Arc<InMemoryMemory>,
    executed: Arc<AtomicU64>,
}

impl World {
    fn new() -> Self {
        Self {
            runtime: Arc::new(InProcRuntime::with_journal(InMemoryJournalStore::new())),
            ledger: Arc::new(StandardBudget::new(BudgetConfig::new().per_user_max_tokens(100_000)).unwrap()),
            memory: Arc::new(InMemoryMemory::new()),
            executed: Arc::default(),
        }
    }

    fn agent(&self, model: Arc<ModelDouble>, hangs: bool) -> Agent {
        let executed = self.executed.clone();
        let pay = FnTool::new("pay", Effect::External, move |_, _| {
            executed.fetch_add(1, Ordering::SeqCst);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                ToolOutcome::ok("paid")
            }
        });
        Agent::builder("x")
            .model(model)
            .tool(pay)
            .permissions(StandardPermissions::bypass())
            .runtime(self.runtime.clone())
            .budget(self.ledger.clone())
            .memory(self.memory.clone())
            .build()
            .unwrap()
    }
}

/// Runs `prompt` in a runtime of its own and ends that runtime in the middle, so that neither the run nor its closer gets
/// to finish anything: the nearest thing to a crash that one process can do to itself.
fn crash(world: &World, model: Arc<ModelDouble>, hangs: bool, when: impl Fn() -> bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let agent = world.agent(model, hangs);
    let run = IntoFuture::into_future(agent.for_user(user("a")).run("pay").session("s"));
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

#[test]
fn recorded_steps_are_replayed_and_not_billed_again() {
    let world = World::new();
    // The first life: the tool was paid and recorded, the second model call hangs.
    let first = ModelDouble::new(|_, n| Ok(if n == 0 { call("pay", "{}") } else { vec![Step::Hang] }));
    let calls = first.clone();
    crash(&world, first.clone(), false, move || calls.calls() == 2);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let second = ModelDouble::new(|_, _| Ok(say("all paid")));
        let agent = world.agent(second.clone(), false);
        let tenant = agent.for_user(user("a"));
        let open = tenant.open_runs().await.unwrap();
        assert_eq!(open.len(), 1);
        let stranger = agent.for_user(user("b"));
        assert_eq!(stranger.resume(open[0].run).await.unwrap_err().kind(), ErrorKind::NotFound);
        expire_leases().await;
        let result = tenant.resume(open[0].run).await.unwrap().await.unwrap();
        assert_eq!(&*result.output, "all paid");
        assert_eq!(result.run_id, open[0].run);
        assert_eq!(result.tool_calls[0].status, ToolStatus::Ok);
        assert_eq!(world.executed.load(Ordering::SeqCst), 1, "paid once");
        assert_eq!(second.calls(), 1, "the first turn was replayed");
        assert!(tenant.open_runs().await.unwrap().is_empty());
        assert_eq!(tenant.memory().await.unwrap().profile().await.unwrap().episodes, 1);
    });
}

#[test]
fn a_step_in_doubt_that_must_not_be_repeated_is_left_for_a_person() {
    let world = World::new();
    let first = ModelDouble::new(|_, _| Ok(call("pay", "{}")));
    let executed = world.executed.clone();
    crash(&world, first, true, move || executed.load(Ordering::SeqCst) == 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let agent = world.agent(ModelDouble::saying("never asked"), false);
        let tenant = agent.for_user(user("a"));
        let open = tenant.open_runs().await.unwrap();
        expire_leases().await;
        let error = tenant.resume(open[0].run).await.unwrap().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("nobody knows"), "{error}");
        assert_eq!(world.executed.load(Ordering::SeqCst), 1, "not paid again");
        assert_eq!(tenant.open_runs().await.unwrap().len(), 1, "it stays open for somebody to decide");
    });
}

/// The crashed holder's lease runs out by itself; the test turns the clock instead of waiting.
async fn expire_leases() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(600)).await;
}
