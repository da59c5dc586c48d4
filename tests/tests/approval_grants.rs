//! Approvals that are remembered, at the door: a grant answers for the calls it covers and for no others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_conformance::doubles::{ManualClock, RecordingTelemetry};
use loomflow_core::{
    Action, Agent, ApprovalDecision, ArgumentPattern, Decision, Effect, ErrorKind, GrantTerms, Notified,
    Permissions, Result, RunContext, Timestamp, ToolCall, ToolOutcome, ToolStatus, UserAgent, UserId,
};
use loomflow_local::{CallbackApprovals, InMemoryApprovalStore, InMemoryAuditLog};
use loomflow_tests::double::{ModelDouble, Step, say};
use loomflow_tests::fixture::{FnTool, entries, user};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Asks about everything, denies what has `forbidden` in it, and has the version it is told.
#[derive(Debug, Default)]
struct Policy {
    version: AtomicU64,
    forbids: Mutex<Option<&'static str>>,
}

#[async_trait]
impl Permissions for Policy {
    async fn check(&self, _: &RunContext, call: &ToolCall, _: Effect) -> Result<Decision> {
        let forbidden = self.forbids.lock().is_some_and(|word| call.arguments.contains(word));
        Ok(if forbidden { Decision::deny("forbidden") } else { Decision::ask("a shell") })
    }
    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }
}

/// An agent with one tool, `bash`, and everything that a test turns.
struct World {
    store: Arc<InMemoryApprovalStore>,
    policy: Arc<Policy>,
    clock: Arc<ManualClock>,
    telemetry: Arc<RecordingTelemetry>,
    /// What was executed.
    executed: Arc<Mutex<Vec<String>>>,
    /// How often somebody was asked; they never answer in time.
    asked: Arc<AtomicU64>,
    approvers: Vec<UserId>,
    self_approval: bool,
    effect: Effect,
    description: &'static str,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        Self {
            store: Arc::new(InMemoryApprovalStore::new().with_clock(clock.clone())),
            policy: Arc::default(),
            clock,
            telemetry: Arc::new(RecordingTelemetry::new()),
            executed: Arc::default(),
            asked: Arc::default(),
            approvers: vec![user("boss")],
            self_approval: false,
            effect: Effect::Destructive,
            description: "Runs a command.",
        }
    }

    /// An agent whose model calls `bash` with these arguments and then says goodbye. Whoever is asked does what `answer`
    /// says.
    fn agent(&self, arguments: &Value, answer: Option<ApprovalDecision>) -> Agent {
        let executed = self.executed.clone();
        let description = self.description;
        let bash = FnTool::new("bash", self.effect, move |_, arguments| {
            executed.lock().push(arguments["command"].as_str().unwrap().to_owned());
            async { ToolOutcome::ok("done") }
        })
        .with(|spec| {
            loomflow_core::ToolSpec::new("bash", description, spec.effect, json!({"type": "object"})).unwrap()
        });
        let arguments = arguments.to_string();
        let model = ModelDouble::new(move |request, _| {
            let answered = request.messages.last().is_some_and(|m| m.tool_call_id.is_some());
            Ok(if answered { say("bye") } else { vec![Step::Call("bash", arguments.clone())] })
        });
        let asked = self.asked.clone();
        let handler = CallbackApprovals::new(move |_, _| {
            asked.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            async move {
                let deny = ApprovalDecision::Deny { reason: "asked again".to_owned() };
                Ok(Notified::Decided { decision: answer.unwrap_or(deny), by: Some(user("boss")) })
            }
        });
        Agent::builder("x")
            .model(model)
            .tool(bash)
            .permissions(self.policy.clone())
            .approval_store(self.store.clone())
            .approval_handler(handler)
            .approvers(self.approvers.clone())
            .self_approval(self.self_approval)
            .audit_log(InMemoryAuditLog::new())
            .telemetry(self.telemetry.clone())
            .clock(self.clock.clone())
            .build()
            .unwrap()
    }

    /// Lets alice run `ls` once, remembered with `pattern` for an hour.
    async fn remember(&self, pattern: ArgumentPattern) {
        let until = self.clock.read().saturating_add(Duration::from_secs(3_600));
        let decision = ApprovalDecision::ApproveAndRemember { grant: GrantTerms::new(pattern, until) };
        let agent = self.agent(&ls(), Some(decision));
        assert_eq!(status(&agent.for_user(user("alice"))).await, ToolStatus::Ok);
        assert_eq!((self.executed.lock().drain(..).count(), self.asked.swap(0, Ordering::SeqCst)), (1, 1));
    }

    /// Whether the call ran, without anybody being asked; it runs so or not at all.
    async fn runs(&self, who: &str, arguments: &Value) -> bool {
        let agent = self.agent(arguments, None);
        let status = status(&agent.for_user(user(who))).await;
        let (ran, asked) = (self.executed.lock().drain(..).count(), self.asked.swap(0, Ordering::SeqCst));
        assert_eq!(status == ToolStatus::Ok, ran == 1);
        assert!(ran == 0 || asked == 0, "whoever is asked denies");
        ran == 1
    }
}

fn ls() -> Value {
    json!({"command": "ls", "cwd": "/home"})
}

async fn status(tenant: &UserAgent) -> ToolStatus {
    tenant.run("look").await.unwrap().tool_calls[0].status
}

/// W10 (c): a remembered approval ignored the arguments, so `ls` let `rm -rf /` through.
#[tokio::test]
async fn w10c_bash_ls_remembered_is_not_bash_rm() {
    for pattern in [ArgumentPattern::exactly(&ls()), ArgumentPattern::fixed(&ls(), ["/command"]).unwrap()] {
        let world = World::new();
        world.remember(pattern).await;
        assert!(world.runs("alice", &ls()).await, "the call it was given on");
        assert!(world.runs("alice", &json!({"cwd": "/home", "command": "ls"})).await, "in another order");
        for command in ["rm -rf /", "ls; rm -rf /", "LS", "ls ", " ls", "l\u{73}\u{0}", ""] {
            let arguments = json!({"command": command, "cwd": "/home"});
            assert!(!world.runs("alice", &arguments).await, "{command:?} was never approved");
        }
        assert!(!world.runs("alice", &json!({"cmd": "ls", "command": ["ls"], "cwd": "/home"})).await);
    }
}

#[tokio::test]
async fn what_a_pattern_leaves_free_is_free_and_any_has_to_be_said() {
    let world = World::new();
    world.remember(ArgumentPattern::fixed(&ls(), ["/command"]).unwrap()).await;
    assert!(world.runs("alice", &json!({"command": "ls", "cwd": "/etc"})).await);
    let world = World::new();
    world.remember(ArgumentPattern::exactly(&ls())).await;
    assert!(!world.runs("alice", &json!({"command": "ls", "cwd": "/etc"})).await);
    let world = World::new();
    world.remember(ArgumentPattern::Any).await;
    assert!(world.runs("alice", &json!({"command": "rm -rf /", "cwd": "/"})).await);
}

#[tokio::test]
async fn a_grant_is_void_for_anybody_and_anything_else() {
    let granted = async || {
        let world = World::new();
        world.remember(ArgumentPattern::exactly(&ls())).await;
        assert!(world.runs("alice", &ls()).await);
        world
    };
    let world = granted().await;
    for other in ["bob", "Alice", "alice2", "boss"] {
        assert!(!world.runs(other, &ls()).await, "{other} was given nothing");
    }
    world.policy.version.store(1, Ordering::SeqCst);
    assert!(!world.runs("alice", &ls()).await, "the policy is another");
    world.policy.version.store(0, Ordering::SeqCst);
    assert!(world.runs("alice", &ls()).await);
    world.clock.advance(Duration::from_secs(3_600));
    assert!(!world.runs("alice", &ls()).await, "its time is over");

    let mut world = granted().await;
    world.effect = Effect::External;
    assert!(!world.runs("alice", &ls()).await, "the effect is another");
    let mut world = granted().await;
    world.description = "Runs a command, as root.";
    assert!(!world.runs("alice", &ls()).await, "the tool is another");
    let mut world = granted().await;
    world.approvers = vec![user("ops")];
    assert!(!world.runs("alice", &ls()).await, "whoever gave it may no longer give it");
    world.approvers = Vec::new();
    world.self_approval = true;
    assert!(!world.runs("alice", &ls()).await, "self-approval makes nobody else's grant valid");
}

#[tokio::test]
async fn a_deny_stands_whatever_was_remembered() {
    let world = World::new();
    world.remember(ArgumentPattern::Any).await;
    *world.policy.forbids.lock() = Some("rm");
    assert!(world.runs("alice", &ls()).await);
    assert!(!world.runs("alice", &json!({"command": "rm -rf /"})).await);
}

#[tokio::test]
async fn a_user_sees_and_revokes_what_was_given_and_so_does_who_gave_it() {
    let world = World::new();
    world.remember(ArgumentPattern::Any).await;
    let agent = world.agent(&ls(), None);
    let (alice, boss, bob) =
        (agent.for_user(user("alice")), agent.for_user(user("boss")), agent.for_user(user("bob")));
    let seen = alice.grants().await.unwrap();
    assert_eq!((seen.len(), &seen, bob.grants().await.unwrap().len()), (1, &boss.grants().await.unwrap(), 0));
    assert_eq!(bob.revoke(seen[0].id).await.unwrap_err().kind(), ErrorKind::NotFound);
    boss.revoke(seen[0].id).await.unwrap();
    assert!(alice.grants().await.unwrap().is_empty());
    assert!(!world.runs("alice", &ls()).await);
    assert_eq!(alice.revoke(seen[0].id).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_log_says_who_gave_what_counted_and_the_metrics_count_it() {
    let world = World::new();
    world.remember(ArgumentPattern::exactly(&ls())).await;
    assert_eq!(world.telemetry.total("loom.approval.escalations"), 1);
    let agent = world.agent(&ls(), None);
    let alice = agent.for_user(user("alice"));
    let grant = alice.grants().await.unwrap().remove(0);
    assert_eq!(status(&alice).await, ToolStatus::Ok);
    let log = entries(&alice).await;
    assert!(!log.iter().any(|e| e.event.action == Action::ApprovalRequested), "nobody was asked");
    let granted = log.iter().find(|e| e.event.action == Action::ApprovalGranted).unwrap();
    let payload: Value = serde_json::from_str(granted.event.payload.get()).unwrap();
    assert_eq!((&payload["grant_id"], &payload["approver"]), (&json!(grant.id), &json!("boss")));
    assert_eq!(world.telemetry.total("loom.approval.escalations"), 1, "a grant asks nobody");
    assert_eq!(world.telemetry.total("loom.approvals"), 2);
}

#[tokio::test]
async fn nobody_grants_themselves_without_self_approval() {
    let mut world = World::new();
    world.approvers = vec![user("alice"), user("boss")];
    let until = Timestamp::MAX;
    let terms = GrantTerms::new(ArgumentPattern::Any, until);
    // The handler names the requester.
    let handler = CallbackApprovals::new(move |_, _| {
        let decision = ApprovalDecision::ApproveAndRemember { grant: terms.clone() };
        async { Ok(Notified::Decided { decision, by: Some(user("alice")) }) }
    });
    let model = ModelDouble::new(|request, _| {
        let answered = request.messages.last().is_some_and(|m| m.tool_call_id.is_some());
        Ok(if answered { say("bye") } else { vec![Step::Call("bash", ls().to_string())] })
    });
    let executed = Arc::new(AtomicU64::new(0));
    let counter = executed.clone();
    let bash = FnTool::new("bash", Effect::Destructive, move |_, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { ToolOutcome::ok("done") }
    });
    let agent = Agent::builder("x")
        .model(model)
        .tool(bash)
        .permissions(world.policy.clone())
        .approval_store(world.store.clone())
        .approval_handler(handler)
        .approvers(world.approvers.clone())
        .build()
        .unwrap();
    let alice = agent.for_user(user("alice"));
    assert_eq!(status(&alice).await, ToolStatus::Denied, "what a handler must not decide is a deny");
    assert!(alice.grants().await.unwrap().is_empty());
    assert!(alice.approvals().await.unwrap().is_empty(), "the request is not offered any more");
    assert_eq!(executed.load(Ordering::SeqCst), 0);
}
