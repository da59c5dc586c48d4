//! Runs that wait for a person: they say so, the wait is measured, nobody is waited for who does not exist, and what a run
//! asked for is neither lost by a crash nor left behind by a run that went away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loomflow_conformance::doubles::RecordingTelemetry;
use loomflow_core::{
    Action, Agent, AgentBuilder, ApprovalDecision, Effect, ErrorKind, HasModel, Notified, RunStatus,
    ToolOutcome, ToolStatus, UserAgent,
};
use loomflow_local::{
    CallbackApprovals, InMemoryApprovalStore, InMemoryAuditLog, InMemoryJournalStore, InProcRuntime,
};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::{FnTool, actions, user};

struct World {
    store: Arc<InMemoryApprovalStore>,
    runtime: Arc<InProcRuntime>,
    telemetry: Arc<RecordingTelemetry>,
    executed: Arc<AtomicU64>,
}

impl World {
    fn new() -> Self {
        Self {
            store: Arc::new(InMemoryApprovalStore::new()),
            runtime: Arc::new(InProcRuntime::with_journal(InMemoryJournalStore::new())),
            telemetry: Arc::new(RecordingTelemetry::new()),
            executed: Arc::default(),
        }
    }

    /// An agent whose model pays `calls` times at once and then says goodbye; approvals are on their way for ever.
    fn builder(&self, calls: usize) -> AgentBuilder<HasModel> {
        let executed = self.executed.clone();
        let pay = FnTool::new("pay", Effect::External, move |_, _| {
            executed.fetch_add(1, Ordering::SeqCst);
            async { ToolOutcome::ok("paid") }
        });
        let model = ModelDouble::new(move |request, _| {
            let answered = request.messages.last().is_some_and(|m| m.tool_call_id.is_some());
            Ok(if answered {
                say("bye")
            } else {
                (0..calls).map(|n| Step::Call("pay", format!("{{\"n\":{n}}}"))).collect()
            })
        });
        Agent::builder("x")
            .model(model)
            .tool(pay)
            .approval_store(self.store.clone())
            .approval_handler(CallbackApprovals::new(|_, _| async { Ok(Notified::Pending) }))
            .approvals_expire_after(Duration::from_secs(3_600))
            .runtime(self.runtime.clone())
            .telemetry(self.telemetry.clone())
            .audit_log(InMemoryAuditLog::new())
    }

    /// The outcomes of the waits that ended.
    fn waits(&self) -> Vec<&'static str> {
        let waited = self.telemetry.recorded().into_iter().filter(|m| m.name == "loom.approval.waited");
        waited.map(|m| m.labels[0].1).collect()
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..5_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it did not come to be that {what}");
}

async fn status(tenant: &UserAgent) -> Option<RunStatus> {
    tenant.open_runs().await.unwrap().first().map(|run| run.status)
}

#[tokio::test]
async fn a_run_says_that_it_waits_until_the_last_call_was_answered() {
    let world = World::new();
    let agent = world.builder(2).approvers([user("boss")]).build().unwrap();
    let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
    let running = tokio::spawn({
        let alice = alice.clone();
        async move { alice.run("pay").await }
    });
    until("both ask", async || boss.approvals().await.unwrap().len() == 2).await;
    until("it waits", async || status(&alice).await == Some(RunStatus::WaitingApproval)).await;
    assert_eq!(world.telemetry.total("loom.approval.escalations"), 2);
    let asked = boss.approvals().await.unwrap();
    boss.decide(asked[0].request.id, ApprovalDecision::Approve).await.unwrap();
    until("one was paid", async || world.executed.load(Ordering::SeqCst) == 1).await;
    assert_eq!(status(&alice).await, Some(RunStatus::WaitingApproval), "the other call still waits");
    boss.decide(asked[1].request.id, ApprovalDecision::Approve).await.unwrap();
    assert_eq!(running.await.unwrap().unwrap().status, RunStatus::Completed);
    assert_eq!((status(&alice).await, world.waits()), (None, vec!["answered", "answered"]));
}

#[tokio::test]
async fn a_run_goes_on_running_after_a_wait() {
    let world = World::new();
    let (entered, leave) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (inside, outside) = (entered.clone(), leave.clone());
    let slow = FnTool::new("slow", Effect::External, move |_, _| {
        let (inside, outside) = (inside.clone(), outside.clone());
        async move {
            inside.notify_one();
            outside.notified().await;
            ToolOutcome::ok("done")
        }
    });
    let model = ModelDouble::new(|_, n| Ok(if n == 0 { call("slow", "{}") } else { say("bye") }));
    let agent = Agent::builder("x")
        .model(model)
        .tool(slow)
        .approval_store(world.store.clone())
        .approval_handler(CallbackApprovals::new(|_, _| async { Ok(Notified::Pending) }))
        .approvers([user("boss")])
        .runtime(InProcRuntime::new())
        .build()
        .unwrap();
    let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
    let running = tokio::spawn({
        let alice = alice.clone();
        async move { alice.run("go").await }
    });
    until("it waits", async || status(&alice).await == Some(RunStatus::WaitingApproval)).await;
    let asked = boss.approvals().await.unwrap().remove(0);
    boss.decide(asked.request.id, ApprovalDecision::Approve).await.unwrap();
    entered.notified().await;
    assert_eq!(status(&alice).await, Some(RunStatus::Running), "the tool is at work");
    leave.notify_one();
    running.await.unwrap().unwrap();
}

/// The run's limit is a tenth of a second and its requests are open for an hour: a run that waited would not end.
#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_who_does_not_exist() {
    for approvers in [vec![], vec![user("alice")]] {
        let world = World::new();
        let began = tokio::time::Instant::now();
        let agent = world.builder(1).approvers(approvers).build().unwrap();
        let alice = agent.for_user(user("alice"));
        let result = alice.run("pay").await.unwrap();
        assert_eq!(result.tool_calls[0].status, ToolStatus::Denied);
        assert!(began.elapsed() < Duration::from_secs(60), "it waited for nobody");
        assert!(
            alice.approvals().await.unwrap().is_empty(),
            "a request that nobody can decide is not offered"
        );
        assert_eq!(world.executed.load(Ordering::SeqCst), 0);
        assert_eq!(world.waits(), ["unanswered"]);
    }
}

/// A request whose run went away is no dead card: nobody is shown it, and approving it comes too late.
#[tokio::test]
async fn a_run_that_goes_away_takes_its_request_back() {
    let world = World::new();
    let agent = world.builder(1).approvers([user("boss")]).build().unwrap();
    let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
    let running = tokio::spawn({
        let alice = alice.clone();
        async move { alice.run("pay").await }
    });
    until("it waits", async || status(&alice).await == Some(RunStatus::WaitingApproval)).await;
    let asked = boss.approvals().await.unwrap().remove(0);
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    agent.settled().await.unwrap();
    assert!(boss.approvals().await.unwrap().is_empty() && alice.approvals().await.unwrap().is_empty());
    let late = boss.decide(asked.request.id, ApprovalDecision::Approve).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict);
    assert_eq!((world.waits(), status(&alice).await), (vec!["abandoned"], None));
    assert_eq!(world.telemetry.total("loom.approvals"), 1, "and counted");
    assert_eq!(world.executed.load(Ordering::SeqCst), 0);
}

/// A handler that fails is a deny, and leaves nothing behind that somebody could still approve.
#[tokio::test]
async fn a_request_that_reached_nobody_is_taken_back() {
    let world = World::new();
    let fails = CallbackApprovals::new(|_, _| async {
        Err(loomflow_core::Error::new(ErrorKind::Transport, "the messenger is down"))
    });
    let agent = world.builder(1).approval_handler(fails).approvers([user("boss")]).build().unwrap();
    let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
    assert_eq!(alice.run("pay").await.unwrap().tool_calls[0].status, ToolStatus::Denied);
    assert!(boss.approvals().await.unwrap().is_empty());
    assert_eq!(world.executed.load(Ordering::SeqCst), 0);
    assert!(actions(&alice).await.contains(&Action::ApprovalDenied));
}

/// Somebody decides while the process that asked is down: the run that goes on uses that decision and asks nobody again.
#[test]
fn a_decision_made_while_the_process_was_down_is_not_lost() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let asked = runtime.block_on(async {
        let agent = world.builder(1).approvers([user("boss")]).build().unwrap();
        let boss = agent.for_user(user("boss"));
        let run = IntoFuture::into_future(agent.for_user(user("alice")).run("pay").session("s"));
        std::mem::forget(tokio::spawn(run));
        until("it asks", async || !boss.approvals().await.unwrap().is_empty()).await;
        let asked = boss.approvals().await.unwrap().remove(0).request.id;
        std::mem::forget(agent);
        asked
    });
    // The process is gone: nothing of it is polled again, and nothing is dropped in good order.
    std::mem::forget(runtime);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let agent = world.builder(1).approvers([user("boss")]).build().unwrap();
        let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
        boss.decide(asked, ApprovalDecision::Approve).await.unwrap();
        let open = alice.open_runs().await.unwrap();
        assert_eq!(open[0].status, RunStatus::WaitingApproval, "it was waiting when the process ended");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(7_200)).await;
        let result = alice.resume(open[0].run).await.unwrap().await.unwrap();
        assert_eq!(result.tool_calls[0].status, ToolStatus::Ok);
        assert_eq!(world.executed.load(Ordering::SeqCst), 1, "approved and run once");
        assert!(boss.approvals().await.unwrap().is_empty(), "nobody was asked again");
    });
}
