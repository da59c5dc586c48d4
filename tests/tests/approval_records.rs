//! What an approval leaves behind, wherever things stop: each decision is on record once, a request whose run is gone is shown
//! to nobody, and what a crash cut off between using a decision and saying so goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "approval_records/doubles.rs"]
mod doubles;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use doubles::{Refusing, Slow};
use loomflow_conformance::doubles::RecordingTelemetry;
use loomflow_core::{
    Action, Agent, AgentBuilder, ApprovalDecision, ApprovalGrant, ApprovalId, ArgumentPattern, Effect, Error,
    ErrorKind, GrantTerms, HasModel, Notified, Timestamp, ToolOutcome, ToolStatus, UserAgent,
};
use loomflow_local::{CallbackApprovals, InMemoryApprovalStore, InMemoryJournalStore, InProcRuntime};
use loomflow_tests::double::{ModelDouble, Step, say};
use loomflow_tests::fixture::{FnTool, entries, user};
use serde_json::{Value, json};

struct World {
    store: Arc<Slow>,
    log: Arc<Refusing>,
    runtime: Arc<InProcRuntime>,
    telemetry: Arc<RecordingTelemetry>,
    paid: Arc<AtomicU64>,
}

fn remember() -> ApprovalDecision {
    ApprovalDecision::ApproveAndRemember { grant: GrantTerms::new(ArgumentPattern::Any, Timestamp::MAX) }
}

fn deny() -> ApprovalDecision {
    ApprovalDecision::Deny { reason: "not today".into() }
}

impl World {
    fn new() -> Self {
        Self {
            store: Arc::default(),
            log: Refusing::new(),
            runtime: Arc::new(InProcRuntime::with_journal(InMemoryJournalStore::new())),
            telemetry: Arc::new(RecordingTelemetry::new()),
            paid: Arc::default(),
        }
    }

    fn with(store: InMemoryApprovalStore) -> Self {
        let store = Arc::new(Slow { store: Arc::new(store), ..Slow::default() });
        Self { store, ..Self::new() }
    }

    /// An agent that pays once and says goodbye. Who is asked is on it for ever.
    fn builder(&self) -> AgentBuilder<HasModel> {
        let paid = self.paid.clone();
        let pay = FnTool::new("pay", Effect::External, move |_, _| {
            paid.fetch_add(1, Ordering::SeqCst);
            async { ToolOutcome::ok("paid") }
        });
        let model = ModelDouble::new(|request, _| {
            let answered = request.messages.last().is_some_and(|m| m.tool_call_id.is_some());
            Ok(if answered { say("bye") } else { vec![Step::Call("pay", r#"{"cents":5}"#.to_owned())] })
        });
        Agent::builder("x")
            .model(model)
            .tool(pay)
            .approval_store(self.store.clone())
            .approval_handler(CallbackApprovals::new(|_, _| async { Ok(Notified::Pending) }))
            .approvals_expire_after(Duration::from_secs(3_600))
            .approvers([user("boss")])
            .runtime(self.runtime.clone())
            .telemetry(self.telemetry.clone())
            .audit_log(self.log.clone())
    }

    fn agent(&self) -> Agent {
        self.builder().build().unwrap()
    }

    fn paid(&self) -> u64 {
        self.paid.load(Ordering::SeqCst)
    }
}

async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..5_000 {
        if let Some(found) = found().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it did not come to be: {what}");
}

async fn asked(boss: &UserAgent) -> ApprovalId {
    until("somebody is asked", async || boss.approvals().await.unwrap().pop()).await.request.id
}

/// Begins a run and lets its process die as soon as it has asked: nothing of it is polled or dropped any more.
async fn asks_and_dies(world: &World) -> (Agent, ApprovalId) {
    let agent = world.agent();
    let boss = agent.for_user(user("boss"));
    let mut run = Box::pin(IntoFuture::into_future(agent.for_user(user("alice")).run("pay").session("s")));
    let id = until("somebody is asked", async || {
        assert!(futures_util::poll!(run.as_mut()).is_pending());
        boss.approvals().await.unwrap().pop()
    })
    .await
    .request
    .id;
    std::mem::forget(run);
    (agent, id)
}

/// What the log of alice says about approvals, in order: the action and its payload.
async fn said(agent: &Agent) -> Vec<(Action, Value)> {
    let of_approvals =
        [Action::ApprovalGranted, Action::ApprovalDenied, Action::ApprovalEdited, Action::ApprovalExpired];
    let log = entries(&agent.for_user(user("alice"))).await;
    let log = log.into_iter().filter(|entry| of_approvals.contains(&entry.event.action));
    log.map(|e| (e.event.action, serde_json::from_str(e.event.payload.get()).unwrap())).collect()
}

async fn grants(tenant: &UserAgent) -> Vec<ApprovalGrant> {
    tenant.grants().await.unwrap()
}

#[tokio::test]
async fn a_decision_that_no_run_waits_for_is_on_record_once() {
    for (decision, action) in [
        (ApprovalDecision::Approve, Action::ApprovalGranted),
        (remember(), Action::ApprovalGranted),
        (deny(), Action::ApprovalDenied),
        (ApprovalDecision::Edit { args: json!({"cents": 4}) }, Action::ApprovalEdited),
    ] {
        let world = World::new();
        let (agent, id) = asks_and_dies(&world).await;
        let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
        boss.decide(id, decision.clone()).await.unwrap();
        let late = boss.decide(id, decision.clone()).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Conflict);
        assert!(alice.decide(id, decision.clone()).await.is_err());
        let log = said(&agent).await;
        assert_eq!(log.iter().map(|(action, _)| *action).collect::<Vec<_>>(), [action], "{log:?}");
        let payload = &log[0].1;
        assert_eq!((&payload["approver"], &payload["approval_id"]), (&json!("boss"), &json!(id)));
        assert_eq!(
            (&payload["tool"], payload["grant_id"].is_string()),
            (&json!("pay"), decision == remember())
        );
        assert!(entries(&boss).await.is_empty(), "it is the requester's log");
        if decision == ApprovalDecision::Approve {
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(1_200)).await;
            let run = alice.open_runs().await.unwrap()[0].run;
            alice.resume(run).await.unwrap().await.unwrap();
            assert_eq!((world.paid(), said(&agent).await.len()), (1, 1), "using it is no second decision");
        }
    }
}

#[tokio::test]
async fn a_decision_that_a_run_waits_for_is_on_record_once() {
    for (decision, action) in
        [(ApprovalDecision::Approve, Action::ApprovalGranted), (deny(), Action::ApprovalDenied)]
    {
        let world = World::new();
        let agent = world.agent();
        let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
        let running = tokio::spawn(async move { alice.run("pay").await });
        let id = asked(&boss).await;
        let twice =
            futures_util::join!(boss.decide(id, decision.clone()), boss.decide(id, decision.clone()),);
        assert!(twice.0.is_ok() != twice.1.is_ok(), "{twice:?}");
        running.await.unwrap().unwrap();
        let log = said(&agent).await;
        assert_eq!(log.iter().map(|(action, _)| *action).collect::<Vec<_>>(), [action], "{log:?}");
        assert_eq!(log[0].1["approver"], json!("boss"));
        assert_eq!(world.telemetry.total("loom.approvals"), 1);
    }
}

/// A decision of a handler is its run's to write down, also once.
#[tokio::test]
async fn a_handlers_decision_is_on_record_once_and_before_it_counts() {
    let decides = || {
        CallbackApprovals::new(|_, _| async {
            Ok(Notified::Decided { decision: ApprovalDecision::Approve, by: Some(user("boss")) })
        })
    };
    let world = World::new();
    let agent = world.builder().approval_handler(decides()).build().unwrap();
    agent.for_user(user("alice")).run("pay").await.unwrap();
    let log = said(&agent).await;
    assert_eq!((world.paid(), log.len(), &log[0].1["approver"]), (1, 1, &json!("boss")), "{log:?}");
    *world.log.refuses.lock() = Some(Action::ApprovalGranted);
    assert!(agent.for_user(user("alice")).run("pay").await.is_err());
    agent.settled().await.unwrap();
    assert_eq!(world.paid(), 1);
    assert!(agent.for_user(user("boss")).approvals().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_approval_that_cannot_be_recorded_is_none() {
    for decision in [ApprovalDecision::Approve, remember()] {
        let world = World::new();
        let agent = world.agent();
        let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
        let running = tokio::spawn({
            let alice = alice.clone();
            async move { alice.run("pay").await }
        });
        let id = asked(&boss).await;
        *world.log.refuses.lock() = Some(Action::ApprovalGranted);
        assert!(boss.decide(id, decision.clone()).await.is_err());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!((world.paid(), running.is_finished()), (0, false), "nothing ran unrecorded");
        assert!(grants(&alice).await.is_empty());
        *world.log.refuses.lock() = None;
        boss.decide(id, decision).await.unwrap();
        running.await.unwrap().unwrap();
        assert_eq!((world.paid(), said(&agent).await.len()), (1, 1));
    }
}

#[tokio::test]
async fn a_revocation_is_on_record_once() {
    for approver in [true, false] {
        let world = World::new();
        let (agent, id) = asks_and_dies(&world).await;
        let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
        boss.decide(id, remember()).await.unwrap();
        let grant = grants(&alice).await[0].id;
        let revoker = if approver { &boss } else { &alice };
        assert!(agent.for_user(user("mallory")).revoke(grant).await.is_err());
        revoker.revoke(grant).await.unwrap();
        assert_eq!(revoker.revoke(grant).await.unwrap_err().kind(), ErrorKind::NotFound);
        let log = said(&agent).await;
        assert_eq!(log.len(), 2, "{log:?}");
        let (action, payload) = &log[1];
        assert_eq!((*action, &payload["grant_id"]), (Action::ApprovalDenied, &json!(grant)));
        assert_eq!(payload["by"], json!(if approver { "boss" } else { "alice" }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_expired_with_nobody_waiting_is_on_record_once() {
    let clock = Arc::new(loomflow_tests::fixture::RuntimeClock::start());
    let world = World::with(InMemoryApprovalStore::new().with_clock(clock.clone()));
    let dying = World { store: world.store.clone(), log: world.log.clone(), ..World::new() };
    let agent = dying.builder().clock(clock.clone()).build().unwrap();
    let boss = agent.for_user(user("boss"));
    let mut run = Box::pin(IntoFuture::into_future(agent.for_user(user("alice")).run("pay").session("s")));
    let id = until("somebody is asked", async || {
        assert!(futures_util::poll!(run.as_mut()).is_pending());
        boss.approvals().await.unwrap().pop()
    })
    .await
    .request
    .id;
    std::mem::forget(run);
    tokio::time::advance(Duration::from_secs(3_600)).await;
    let agent = world.builder().clock(clock).build().unwrap();
    let alice = agent.for_user(user("alice"));
    for _ in 0..2 {
        assert!(alice.approvals().await.unwrap().is_empty());
        let log = said(&agent).await;
        assert_eq!((log.len(), log[0].0), (1, Action::ApprovalExpired), "{log:?}");
        assert_eq!(log[0].1["approval_id"], json!(id));
    }
}

/// Drops the run after each number of polls there is. What it asked for is taken back, and on record as that.
#[tokio::test]
async fn wherever_a_run_is_dropped_nobody_is_shown_its_request() {
    for answers in [true, false] {
        let mut asked_in_all = 0;
        for polls in 0.. {
            let world = World::new();
            let handler = CallbackApprovals::new(move |_, _| async move {
                tokio::task::yield_now().await;
                if answers { Err(Error::new(ErrorKind::Transport, "down")) } else { Ok(Notified::Pending) }
            });
            let agent = world.builder().approval_handler(handler).build().unwrap();
            let boss = agent.for_user(user("boss"));
            let (mut over, mut seen) = (false, false);
            {
                let mut run = pin!(IntoFuture::into_future(agent.for_user(user("alice")).run("pay")));
                for _ in 0..polls {
                    over = over || futures_util::poll!(run.as_mut()).is_ready();
                    seen = seen || !boss.approvals().await.unwrap().is_empty();
                    if over {
                        break;
                    }
                }
            }
            agent.settled().await.unwrap();
            let left = boss.approvals().await.unwrap();
            assert!(left.is_empty(), "dropped after {polls} polls: {left:?}");
            asked_in_all += u64::from(seen);
            if seen && !over {
                let log = said(&agent).await;
                assert_eq!(log.len(), 1, "dropped after {polls} polls: {log:?}");
            }
            if over || polls > 400 {
                break;
            }
        }
        assert!(asked_in_all > 3, "no run was dropped while somebody was asked");
    }
}

/// A person approves and remembers while the run goes away, wherever it is: the approval is used, or it is void and says so, and
/// what was remembered with it is void, too.
#[tokio::test(start_paused = true)]
async fn an_approval_as_the_run_goes_away_is_used_or_void_with_its_grant() {
    let (mut used, mut void) = (0, 0);
    for polls in 0..120 {
        let world = World::new();
        let agent = world.agent();
        let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
        let mut decided = false;
        {
            let mut run = Box::pin(IntoFuture::into_future(alice.run("pay")));
            let id = until("somebody is asked", async || {
                assert!(futures_util::poll!(run.as_mut()).is_pending());
                boss.approvals().await.unwrap().pop()
            })
            .await
            .request
            .id;
            let mut decide = pin!(boss.decide(id, remember()));
            for poll in 0..polls {
                if !decided && poll % 2 == 0 {
                    decided = futures_util::poll!(decide.as_mut()).is_ready();
                } else if futures_util::poll!(run.as_mut()).is_ready() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(6)).await;
            }
            drop(run);
            if !decided {
                decided = decide.await.is_ok();
            }
        }
        agent.settled().await.unwrap();
        let log = said(&agent).await;
        let granted = log.iter().any(|(action, _)| *action == Action::ApprovalGranted);
        let voided = log.iter().any(|(action, _)| *action == Action::ApprovalExpired);
        assert!(boss.approvals().await.unwrap().is_empty());
        if !grants(&alice).await.is_empty() {
            assert!(granted && !voided, "after {polls} polls: {log:?}");
            used += 1;
        } else {
            assert!(voided, "after {polls} polls, decided {decided}: {log:?}");
            assert_eq!(world.paid(), 0);
            void += 1;
        }
    }
    assert!(used > 3 && void > 3, "used {used}, void {void}");
}

/// A handler that fails while a person approves: the person's word is used.
#[tokio::test]
async fn a_persons_approval_beats_a_handler_that_fails() {
    let world = World::new();
    let told = Arc::new(tokio::sync::Notify::new());
    let go_on = told.clone();
    let handler = CallbackApprovals::new(move |_, _| {
        let go_on = go_on.clone();
        async move {
            go_on.notified().await;
            Err(Error::new(ErrorKind::Transport, "the chat is down"))
        }
    });
    let agent = world.builder().approval_handler(handler).build().unwrap();
    let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
    let running = tokio::spawn({
        let alice = alice.clone();
        async move { alice.run("pay").await }
    });
    let id = asked(&boss).await;
    boss.decide(id, remember()).await.unwrap();
    told.notify_one();
    let status = running.await.unwrap().unwrap().tool_calls[0].status;
    assert_eq!((status, world.paid(), grants(&alice).await.len()), (ToolStatus::Ok, 1, 1));
}

/// Who is asked too often is denied, and the approvers are spared.
#[tokio::test]
async fn a_flood_of_requests_is_denied_and_counted() {
    let world = World::with(InMemoryApprovalStore::new().with_capacity(100, 2));
    let agent = world.agent();
    let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
    let running: Vec<_> = (0..2)
        .map(|_| {
            let alice = alice.clone();
            tokio::spawn(async move { alice.run("pay").await })
        })
        .collect();
    until("two ask", async || (boss.approvals().await.unwrap().len() == 2).then_some(())).await;
    let third = alice.run("pay").await.unwrap();
    assert_eq!(third.tool_calls[0].status, ToolStatus::Denied);
    let log = said(&agent).await;
    assert!(log[0].1["why"].as_str().unwrap().contains("2 requests"), "{log:?}");
    assert_eq!(world.telemetry.total("loom.approval.errors"), 1);
    assert_eq!(boss.approvals().await.unwrap().len(), 2);
    running.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A process dies between using a decision and saying so: the next finds what was decided, and nothing is done twice.
#[test]
fn a_crash_after_a_decision_was_used_parks_nothing() {
    for (decision, status, paid) in [
        (ApprovalDecision::Approve, ToolStatus::Ok, 1),
        (deny(), ToolStatus::Denied, 0),
        (ApprovalDecision::Edit { args: json!({"cents": 4}) }, ToolStatus::Ok, 1),
    ] {
        let world = World::new();
        world.store.dies_after_a_use.store(true, Ordering::SeqCst);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let agent = world.agent();
            let boss = agent.for_user(user("boss"));
            let run = IntoFuture::into_future(agent.for_user(user("alice")).run("pay").session("s"));
            std::mem::forget(tokio::spawn(run));
            let id = asked(&boss).await;
            boss.decide(id, decision).await.unwrap();
            let used = async || (!world.store.dies_after_a_use.load(Ordering::SeqCst)).then_some(());
            until("it is used", used).await;
            std::mem::forget(agent);
        });
        std::mem::forget(runtime);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let agent = world.agent();
            let alice = agent.for_user(user("alice"));
            let open = alice.open_runs().await.unwrap();
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(1_200)).await;
            let result = alice.resume(open[0].run).await.unwrap().await.unwrap();
            assert_eq!((result.tool_calls[0].status, world.paid()), (status, paid));
            assert_eq!(said(&agent).await.len(), 1, "decided once");
        });
    }
}
