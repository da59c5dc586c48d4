//! The tool door: deny > ask > allow, approvals that cannot be borrowed, and tools that cannot take the run down.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Action, Agent, AgentBuilder, ApprovalDecision, ApprovalHandler, ApprovalRequest, Decision, Effect, Error,
    ErrorKind, EventKind, HasModel, Notified, Permissions, PreToolHook, Result, RunContext, RunStatus,
    ToolCall, ToolOutcome, ToolStatus,
};
use loomflow_local::{
    InMemoryApprovalStore, InMemoryAuditLog, PerUserPermissions, Rule, StandardPermissions,
};
use loomflow_tests::double::{ModelDouble, Step, call, say};
use loomflow_tests::fixture::{FnTool, actions, assert_one_terminal_record_per_run, entries, user};

/// An agent whose model asks for `pay` once and then says goodbye; the counter counts executions.
fn paying() -> (AgentBuilder<HasModel>, Arc<AtomicU64>) {
    let executed = Arc::new(AtomicU64::new(0));
    let counter = executed.clone();
    let pay = FnTool::new("pay", Effect::External, move |_, arguments| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move { ToolOutcome::ok(format!("paid {}", arguments["cents"])) }
    });
    let model = ModelDouble::new(|request, _| {
        let answered = request.messages.last().is_some_and(|m| m.tool_call_id.is_some());
        Ok(if answered { say("bye") } else { call("pay", "{\"cents\": 5}") })
    });
    (Agent::builder("x").model(model).tool(pay).audit_log(InMemoryAuditLog::new()), executed)
}

/// A policy or hook that goes wrong in one of the ways things go wrong.
#[derive(Debug)]
enum Broken {
    Fails,
    Panics,
    Hangs,
}
impl Broken {
    async fn decide(&self) -> Result<Decision> {
        match self {
            Self::Fails => Err(Error::new(ErrorKind::Transport, "the policy server is down")),
            Self::Panics => panic!("the policy panics on purpose"),
            Self::Hangs => std::future::pending().await,
        }
    }
}
#[async_trait]
impl Permissions for Broken {
    async fn check(&self, _: &RunContext, _: &ToolCall, _: Effect) -> Result<Decision> {
        self.decide().await
    }
}
#[async_trait]
impl PreToolHook for Broken {
    async fn before_tool(&self, _: &RunContext, _: &ToolCall, _: Effect) -> Result<Decision> {
        self.decide().await
    }
}

/// What the handler does with a request.
type Reaction = dyn Fn(&ApprovalRequest) -> Result<Notified> + Send + Sync;
struct Handler(Box<Reaction>);
impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handler")
    }
}
#[async_trait]
impl ApprovalHandler for Handler {
    async fn notify(&self, _: &RunContext, ask: &ApprovalRequest) -> Result<Notified> {
        (self.0)(ask)
    }
}
fn handler(react: impl Fn(&ApprovalRequest) -> Result<Notified> + Send + Sync + 'static) -> Handler {
    Handler(Box::new(react))
}

async fn status_of_pay(agent: &Agent) -> ToolStatus {
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("pay bob").await.unwrap();
    assert_eq!(result.status, RunStatus::Completed);
    assert_one_terminal_record_per_run(&tenant).await;
    result.tool_calls[0].status
}

/// What runs only because somebody switched the gates off says so in the log, with the reason they gave.
#[tokio::test]
async fn a_call_that_bypass_alone_let_through_is_recorded_with_its_reason() {
    let because = || StandardPermissions::bypass().with_reason("on call");
    let by_rule = StandardPermissions::bypass().rule(Rule::allow("pay").because("small change")).unwrap();
    let staff = PerUserPermissions::new(StandardPermissions::default()).policy(user("alice"), because());
    let versions: [(_, &dyn Permissions, _, _); 4] = [
        ("plain", &because(), Some("bypass"), "on call"),
        ("by user", &staff, Some("bypass"), "on call"),
        ("by rule", &by_rule, Some("rule"), "small change"),
        ("silent", &StandardPermissions::bypass(), Some("bypass"), "no reason was given"),
    ];
    let expected: Vec<_> =
        versions.iter().map(|(_, policy, ..)| format!("{:016x}", policy.version())).collect();
    for (at, (name, _, mode, why)) in versions.into_iter().enumerate() {
        let (builder, executed) = paying();
        let builder = match name {
            "plain" => builder.permissions(because()),
            "by user" => builder.permissions(
                PerUserPermissions::new(StandardPermissions::default()).policy(user("alice"), because()),
            ),
            "by rule" => builder.permissions(by_rule.clone()),
            _ => builder.permissions(StandardPermissions::bypass()),
        };
        let agent = builder.build().unwrap();
        assert_eq!(status_of_pay(&agent).await, ToolStatus::Ok);
        assert_eq!(executed.load(Ordering::SeqCst), 1);
        let log = entries(&agent.for_user(user("alice"))).await;
        let decided: Vec<_> = log.iter().filter(|e| e.event.action == Action::PermissionDecision).collect();
        assert_eq!(decided.len(), 1);
        let payload: serde_json::Value = serde_json::from_str(decided[0].event.payload.get()).unwrap();
        assert_eq!(payload["mode"].as_str(), mode, "{name}");
        assert_eq!(payload["why"].as_str(), Some(why), "{name}");
        assert_eq!(payload["policy_version"].as_str(), Some(&*expected[at]), "{name}");
    }
    // What would have run anyhow did not need the bypass.
    let look = FnTool::new("look", Effect::Read, |_, _| async { ToolOutcome::ok("seen") });
    let model = ModelDouble::new(|_, n| Ok(if n == 0 { call("look", "{}") } else { say("bye") }));
    let agent =
        Agent::builder("x").model(model).tool(look).permissions(because()).audit_log(InMemoryAuditLog::new());
    let tenant = agent.build().unwrap().for_user(user("alice"));
    tenant.run("look").await.unwrap();
    let log = entries(&tenant).await;
    let decided = log.iter().find(|e| e.event.action == Action::PermissionDecision).unwrap();
    assert!(!decided.event.payload.get().contains("bypass"), "{}", decided.event.payload.get());
}

#[tokio::test(start_paused = true)]
async fn an_error_a_panic_or_a_hang_in_policy_or_hook_is_an_audited_deny() {
    for broken in [|| Broken::Fails, || Broken::Panics, || Broken::Hangs] {
        let (builder, executed) = paying();
        let agent = builder.permissions(broken()).build().unwrap();
        assert_eq!(status_of_pay(&agent).await, ToolStatus::Denied);
        let (builder, executed_by_hook) = paying();
        let agent = builder.permissions(StandardPermissions::bypass()).before_tool(broken()).build().unwrap();
        assert_eq!(status_of_pay(&agent).await, ToolStatus::Denied);
        let log = entries(&agent.for_user(user("alice"))).await;
        let decision = log.iter().find(|e| e.event.action == Action::PermissionDecision).unwrap();
        assert!(decision.event.payload.get().contains("\"decision\":\"deny\""));
        assert_eq!(executed.load(Ordering::SeqCst) + executed_by_hook.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn an_ask_without_anybody_to_ask_is_a_denial_the_model_is_told_about() {
    let (builder, executed) = paying();
    let agent = builder.build().unwrap();
    assert_eq!(status_of_pay(&agent).await, ToolStatus::Denied);
    assert_eq!(executed.load(Ordering::SeqCst), 0);
    // Pending without anybody who may decide is the same.
    let (builder, executed) = paying();
    let agent = builder
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(handler(|_| Ok(Notified::Pending)))
        .build()
        .unwrap();
    assert_eq!(status_of_pay(&agent).await, ToolStatus::Denied);
    assert_eq!(executed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_pending_request_is_decided_by_an_eligible_approver_and_by_nobody_else() {
    let (builder, executed) = paying();
    let agent = builder
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(handler(|_| Ok(Notified::Pending)))
        .approvers([user("boss")])
        .build()
        .unwrap();
    let (alice, boss, mallory) =
        (agent.for_user(user("alice")), agent.for_user(user("boss")), agent.for_user(user("mallory")));
    let running = tokio::spawn({
        let alice = alice.clone();
        async move { alice.run("pay bob").await }
    });
    let request = loop {
        if let Some(found) = boss.approvals().await.unwrap().pop() {
            break found.request;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert_eq!(*request.arguments, serde_json::json!({"cents": 5}));
    assert!(mallory.approvals().await.unwrap().is_empty());
    assert!(agent.anonymous().approvals().await.unwrap().is_empty());
    let approve = || ApprovalDecision::Approve;
    assert_eq!(mallory.decide(request.id, approve()).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        agent.anonymous().decide(request.id, approve()).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(alice.decide(request.id, approve()).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(executed.load(Ordering::SeqCst), 0);
    boss.decide(request.id, approve()).await.unwrap();
    let result = running.await.unwrap().unwrap();
    assert_eq!(result.tool_calls[0].status, ToolStatus::Ok);
    assert_eq!(executed.load(Ordering::SeqCst), 1);
    assert_eq!(
        boss.decide(request.id, approve()).await.unwrap_err().kind(),
        ErrorKind::Conflict,
        "single use"
    );
    let log = entries(&alice).await;
    let granted = log.iter().find(|e| e.event.action == Action::ApprovalGranted).unwrap();
    assert!(granted.event.payload.get().contains("\"approver\":\"boss\""));
}

#[tokio::test]
async fn a_policy_that_changes_while_somebody_thinks_is_checked_again_at_dispatch() {
    #[derive(Debug, Default)]
    struct Reloading(AtomicBool);
    #[async_trait]
    impl Permissions for Reloading {
        async fn check(&self, _: &RunContext, _: &ToolCall, _: Effect) -> Result<Decision> {
            Ok(if self.0.load(Ordering::SeqCst) {
                Decision::deny("new policy")
            } else {
                Decision::ask("old policy")
            })
        }
    }
    for bumps_version in [false, true] {
        #[derive(Debug)]
        struct Versioned(Arc<Reloading>, bool);
        #[async_trait]
        impl Permissions for Versioned {
            async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision> {
                self.0.check(ctx, call, effect).await
            }
            fn version(&self) -> u64 {
                u64::from(self.1 && self.0.0.load(Ordering::SeqCst))
            }
        }
        let policy = Arc::new(Reloading::default());
        let (builder, executed) = paying();
        let reload = policy.clone();
        let agent = builder
            .permissions(Versioned(policy, bumps_version))
            .approval_store(InMemoryApprovalStore::new())
            .approval_handler(handler(move |_| {
                reload.0.store(true, Ordering::SeqCst);
                Ok(Notified::Decided { decision: ApprovalDecision::Approve, by: Some(user("boss")) })
            }))
            .build()
            .unwrap();
        assert_eq!(status_of_pay(&agent).await, ToolStatus::Denied);
        assert_eq!(executed.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_approval_that_nobody_gives_expires_and_the_wait_is_not_run_time() {
    let (builder, executed) = paying();
    let agent = builder
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(handler(|_| Ok(Notified::Pending)))
        .approvers([user("boss")])
        .approvals_expire_after(Duration::from_millis(300))
        .run_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    assert_eq!(status_of_pay(&agent).await, ToolStatus::Denied, "the run outlived the wait: its clock stood");
    assert_eq!(executed.load(Ordering::SeqCst), 0);
    assert!(actions(&agent.for_user(user("alice"))).await.contains(&Action::ApprovalExpired));
}

#[tokio::test]
async fn parallel_calls_are_limited_and_answered_in_call_order() {
    const CALLS: usize = 40;
    const LIMIT: usize = 4;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (r, m) = (running.clone(), most.clone());
    let slow = FnTool::new("slow", Effect::Read, move |_, arguments| {
        let (running, most) = (r.clone(), m.clone());
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let n = arguments["n"].as_u64().unwrap();
            tokio::time::sleep(Duration::from_millis(5 + (n * 7) % 11)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            ToolOutcome::ok(format!("done {n}"))
        }
    });
    let model = ModelDouble::new(|_, n| {
        Ok(if n > 0 {
            say("bye")
        } else {
            (0..CALLS).map(|n| Step::Call("slow", format!("{{\"n\":{n}}}"))).collect()
        })
    });
    let agent =
        Agent::builder("x").model(model.clone()).tool(slow).max_parallel_tools(LIMIT).build().unwrap();
    let mut events = agent.for_user(user("a")).stream("go").await.unwrap();
    let mut seqs = Vec::new();
    while let Some(event) = events.next().await {
        seqs.push(event.seq);
    }
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "numbered from 1 without gaps");
    assert_eq!(most.load(Ordering::SeqCst), LIMIT);
    let told: Vec<_> = model.requests()[1]
        .messages
        .iter()
        .filter(|m| m.tool_call_id.is_some())
        .map(|m| m.text.clone())
        .collect();
    assert_eq!(told.len(), CALLS);
    for (n, text) in told.iter().enumerate() {
        assert_eq!(&**text, format!("done {n}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_is_cut_off_is_unknown_unless_it_only_reads() {
    for (effect, status) in [(Effect::Read, ToolStatus::Error), (Effect::Write, ToolStatus::Unknown)] {
        let hang = FnTool::new("hang", effect, |_, _| async { std::future::pending().await })
            .with(|spec| spec.with_timeout(Duration::from_secs(1)));
        let model = ModelDouble::new(|_, n| Ok(if n == 0 { call("hang", "{}") } else { say("bye") }));
        let agent = Agent::builder("x")
            .model(model)
            .tool(hang)
            .permissions(StandardPermissions::bypass())
            .build()
            .unwrap();
        let result = agent.for_user(user("a")).run("go").await.unwrap();
        assert_eq!(result.tool_calls[0].status, status);
    }
}

#[tokio::test]
async fn a_run_that_goes_away_inside_a_tool_records_that_the_outcome_is_unknown() {
    let started = Arc::new(tokio::sync::Notify::new());
    let begun = started.clone();
    let hang = FnTool::new("hang", Effect::Write, move |_, _| {
        begun.notify_one();
        std::future::pending()
    });
    let model = ModelDouble::new(|_, _| Ok(call("hang", "{}")));
    let agent = Agent::builder("x")
        .model(model)
        .tool(hang)
        .permissions(StandardPermissions::bypass())
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let other = agent.for_user(user("b"));
    let task = tokio::spawn({
        let other = other.clone();
        async move { other.run("go").await }
    });
    started.notified().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    agent.settled().await.unwrap();
    let log = entries(&other).await;
    let result = log.iter().find(|e| e.event.action == Action::ToolResult).unwrap();
    assert!(result.event.payload.get().contains("\"status\":\"unknown\""), "{}", result.event.payload.get());
    assert_eq!(log.last().unwrap().event.action, Action::RunCancelled);
    assert_one_terminal_record_per_run(&other).await;
}

#[tokio::test]
async fn bad_calls_are_explained_to_the_model_and_nothing_runs() {
    let executed = Arc::new(AtomicU64::new(0));
    let counter = executed.clone();
    let look = FnTool::new("look", Effect::Read, move |_, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { ToolOutcome::ok("seen") }
    });
    let model = ModelDouble::new(|_, n| {
        Ok(if n > 0 {
            say("bye")
        } else {
            vec![
                Step::Call("nope", "{}".into()),
                Step::Call("look", "{not json".into()),
                Step::Call("look", "[1]".into()),
            ]
        })
    });
    let agent = Agent::builder("x").model(model.clone()).tool(look).build().unwrap();
    let result = agent.for_user(user("a")).run("go").await.unwrap();
    assert!(result.tool_calls.iter().all(|c| c.status == ToolStatus::Error));
    assert_eq!(executed.load(Ordering::SeqCst), 0);
    let requests = model.requests();
    let told: Vec<_> =
        requests[1].messages.iter().filter(|m| m.tool_call_id.is_some()).map(|m| &*m.text).collect();
    assert!(told[0].contains("there is no tool \"nope\"") && told[0].contains("look"), "{told:?}");
    assert!(told[1].contains("not valid JSON") && told[2].contains("not a JSON object"), "{told:?}");
}

#[tokio::test]
async fn a_tool_cannot_be_told_who_the_user_is() {
    let whoami = FnTool::new("whoami", Effect::Read, |ctx, _| async move {
        ToolOutcome::ok(ctx.user_id().map_or("nobody".to_owned(), |id| id.to_string()))
    });
    let model = ModelDouble::new(|_, n| {
        Ok(if n % 2 == 0 { call("whoami", "{\"user_id\":\"bob\"}") } else { say("bye") })
    });
    let agent = Agent::builder("x").model(model.clone()).tool(whoami).build().unwrap();
    agent.for_user(user("alice")).run("I am bob").metadata("user_id", "bob").await.unwrap();
    assert_eq!(&*model.requests()[1].messages.last().unwrap().text, "alice");
}

#[tokio::test]
async fn events_name_what_happens_in_order_and_end_once() {
    let (builder, _) = paying();
    let agent = builder.permissions(StandardPermissions::bypass()).build().unwrap();
    let mut stream = agent.for_user(user("a")).stream("go").await.unwrap();
    let mut names = Vec::new();
    while let Some(event) = stream.next().await {
        names.push(event.kind.name());
        if let EventKind::Completed(result) = &event.kind {
            assert_eq!(&*result.output, "bye");
        }
    }
    assert_eq!(names, ["started", "tool_call", "tool_result", "text_delta", "completed"]);
    assert!(stream.next().await.is_none());
}
