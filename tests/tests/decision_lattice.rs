//! The tool door over every combination of what two hooks, the policy and the approver may do, against one sentence: deny > ask >
//! allow; an error, a timeout, a panic or a missing handler anywhere is a deny.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Action, Agent, ApprovalDecision, ApprovalHandler, ApprovalRequest, AuditEntry, Decision, Effect, Error,
    ErrorKind, Notified, Permissions, PreToolHook, Result, RunContext, RunStatus, ToolCall, ToolOutcome,
    ToolStatus, UserAgent,
};
use loomflow_local::{InMemoryApprovalStore, InMemoryAuditLog};
use loomflow_tests::double::{ModelDouble, call, say};
use loomflow_tests::fixture::{
    FnTool, RuntimeClock, assert_one_terminal_record_per_run, entries, quiet_on_purpose, user,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// What a layer that decides may do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layer {
    Allow,
    Ask,
    Deny,
    Error,
    Panic,
    Hang,
}
const LAYERS: [Layer; 6] = [Layer::Allow, Layer::Ask, Layer::Deny, Layer::Error, Layer::Panic, Layer::Hang];

/// The amount that every layer denies, however kind it is otherwise: what an approver must not be able to edit to.
const NEVER: u64 = 666;

impl Layer {
    async fn decide(self, call: &ToolCall) -> Result<Decision> {
        if call.parse_arguments()?["cents"] == NEVER {
            return Ok(Decision::deny("never that"));
        }
        match self {
            Self::Allow => Ok(Decision::Allow),
            Self::Ask => Ok(Decision::ask("a layer asks")),
            Self::Deny => Ok(Decision::deny("a layer denies")),
            Self::Error => Err(Error::new(ErrorKind::Transport, "a layer fails")),
            Self::Panic => panic!("a layer panics on purpose"),
            Self::Hang => std::future::pending().await,
        }
    }
}
#[async_trait]
impl Permissions for Layer {
    async fn check(&self, _: &RunContext, call: &ToolCall, _: Effect) -> Result<Decision> {
        self.decide(call).await
    }
}
#[async_trait]
impl PreToolHook for Layer {
    async fn before_tool(&self, _: &RunContext, call: &ToolCall, _: Effect) -> Result<Decision> {
        self.decide(call).await
    }
}

/// What the approving side may do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Approver {
    Approves,
    Denies,
    EditsToAllowed,
    EditsToDenied,
    EditsToNonsense,
    ApprovesLater,
    ApprovesWhileTheHandlerDecides,
    Missing,
    NobodyEligible,
    OnlyStrangersDecide,
    Expires,
    Error,
    Panic,
    Hang,
}
const APPROVERS: [Approver; 14] = [
    Approver::Approves,
    Approver::Denies,
    Approver::EditsToAllowed,
    Approver::EditsToDenied,
    Approver::EditsToNonsense,
    Approver::ApprovesLater,
    Approver::ApprovesWhileTheHandlerDecides,
    Approver::Missing,
    Approver::NobodyEligible,
    Approver::OnlyStrangersDecide,
    Approver::Expires,
    Approver::Error,
    Approver::Panic,
    Approver::Hang,
];

/// The approving side, with the agent that people decide through.
struct Side {
    does: Approver,
    agent: Arc<Mutex<Option<Agent>>>,
}
impl std::fmt::Debug for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.does)
    }
}
impl Side {
    fn people(&self, names: &[&str]) -> Vec<UserAgent> {
        let agent = self.agent.lock().clone().unwrap();
        names.iter().map(|name| agent.for_user(user(name))).collect()
    }
}
#[async_trait]
impl ApprovalHandler for Side {
    async fn notify(&self, _: &RunContext, ask: &ApprovalRequest) -> Result<Notified> {
        let id = ask.id;
        let decided = |decision| Ok(Notified::Decided { decision, by: Some(user("boss")) });
        let edit = |args: Value| decided(ApprovalDecision::Edit { args });
        match self.does {
            Approver::Approves => decided(ApprovalDecision::Approve),
            Approver::Denies => decided(ApprovalDecision::Deny { reason: "no".into() }),
            Approver::EditsToAllowed => edit(json!({"cents": 3})),
            Approver::EditsToDenied => edit(json!({"cents": NEVER})),
            Approver::EditsToNonsense => edit(json!([3])),
            Approver::ApprovesLater => {
                let [boss] = &self.people(&["boss"])[..] else { unreachable!("one name, one person") };
                let boss = boss.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    boss.decide(id, ApprovalDecision::Approve).await.unwrap();
                });
                Ok(Notified::Pending)
            }
            Approver::ApprovesWhileTheHandlerDecides => {
                self.people(&["boss"])[0].decide(id, ApprovalDecision::Approve).await.unwrap();
                decided(ApprovalDecision::Deny { reason: "too late".into() })
            }
            Approver::OnlyStrangersDecide => {
                for (n, stranger) in self.people(&["mallory", "alice"]).iter().enumerate() {
                    let error = stranger.decide(id, ApprovalDecision::Approve).await.unwrap_err();
                    assert_eq!(error.kind(), [ErrorKind::NotFound, ErrorKind::Denied][n]);
                }
                Ok(Notified::Pending)
            }
            Approver::NobodyEligible | Approver::Expires => Ok(Notified::Pending),
            Approver::Error => Err(Error::new(ErrorKind::Transport, "the chat is down")),
            Approver::Panic => panic!("the handler panics on purpose"),
            Approver::Hang => std::future::pending().await,
            Approver::Missing => unreachable!("no handler is set"),
        }
    }
}

/// What must come of a call, written from the sentence and from nothing else.
struct Expected {
    /// The amount that is paid, if any.
    paid: Option<u64>,
    /// The decisions that are recorded, in order.
    decisions: Vec<&'static str>,
}

fn oracle(layers: [Layer; 3], approver: Approver) -> Expected {
    let nothing = |decisions: &[&'static str]| Expected { paid: None, decisions: decisions.to_vec() };
    if layers.iter().any(|layer| !matches!(layer, Layer::Allow | Layer::Ask)) {
        return nothing(&["deny"]);
    }
    if layers.iter().all(|layer| *layer == Layer::Allow) {
        return Expected { paid: Some(5), decisions: vec!["allow"] };
    }
    match approver {
        // Asked, approved, and decided once more at dispatch.
        Approver::Approves | Approver::ApprovesLater | Approver::ApprovesWhileTheHandlerDecides => {
            Expected { paid: Some(5), decisions: vec!["ask", "ask"] }
        }
        Approver::EditsToAllowed => Expected { paid: Some(3), decisions: vec!["ask", "ask"] },
        Approver::EditsToDenied => nothing(&["ask", "deny"]),
        Approver::Denies
        | Approver::EditsToNonsense
        | Approver::Missing
        | Approver::NobodyEligible
        | Approver::OnlyStrangersDecide
        | Approver::Expires
        | Approver::Error
        | Approver::Panic
        | Approver::Hang => nothing(&["ask"]),
    }
}

fn payload(entry: &AuditEntry) -> Value {
    serde_json::from_str(entry.event.payload.get()).unwrap()
}

async fn check(layers: [Layer; 3], approver: Approver) {
    let paid = Arc::new(Mutex::new(Vec::new()));
    let till = paid.clone();
    let pay = FnTool::new("pay", Effect::External, move |_, arguments| {
        till.lock().push(arguments["cents"].as_u64());
        async { ToolOutcome::ok("paid") }
    });
    let model = ModelDouble::new(|_, n| Ok(if n == 0 { call("pay", "{\"cents\":5}") } else { say("bye") }));
    let clock = RuntimeClock::start();
    let agent_of_people = Arc::new(Mutex::new(None));
    let mut builder = Agent::builder("x")
        .model(model.clone())
        .tool(pay)
        .clock(clock)
        .audit_log(InMemoryAuditLog::new())
        .before_tool(layers[0])
        .before_tool(layers[1])
        .permissions(layers[2]);
    if approver != Approver::Missing {
        let side = Side { does: approver, agent: agent_of_people.clone() };
        let store = InMemoryApprovalStore::new().with_clock(Arc::new(clock));
        builder = builder.approval_store(store).approval_handler(side);
    }
    if approver != Approver::NobodyEligible {
        builder = builder.approvers([user("boss")]);
    }
    let agent = builder.build().unwrap();
    *agent_of_people.lock() = Some(agent.clone());
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("pay bob").await.unwrap();

    let what = format!("{layers:?} {approver:?}");
    let expected = oracle(layers, approver);
    assert_eq!(result.status, RunStatus::Completed, "{what}");
    let status = if expected.paid.is_some() { ToolStatus::Ok } else { ToolStatus::Denied };
    assert_eq!(result.tool_calls[0].status, status, "{what}");
    let executed: Vec<_> = expected.paid.into_iter().map(Some).collect();
    assert_eq!(*paid.lock(), executed, "{what}");
    let requests = model.requests();
    let told = &requests[1].messages.last().unwrap().text;
    if expected.paid.is_some() {
        assert_eq!(&**told, "paid", "{what}");
    } else {
        assert!(told.starts_with("denied: "), "{what}: the model was told {told:?}");
    }
    let log = entries(&tenant).await;
    let of = |action| log.iter().filter(move |entry| entry.event.action == action);
    let decisions: Vec<_> = of(Action::PermissionDecision)
        .map(|entry| payload(entry)["decision"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(decisions, expected.decisions, "{what}");
    assert_eq!(of(Action::ToolIntent).count(), executed.len(), "{what}");
    assert_eq!(of(Action::ToolResult).count(), 1, "{what}");
    assert_one_terminal_record_per_run(&tenant).await;
    // Nobody is left with a card that does nothing.
    for name in ["boss", "alice"] {
        assert!(
            approver == Approver::Missing || agent.for_user(user(name)).approvals().await.unwrap().is_empty(),
            "{what}"
        );
    }
    *agent_of_people.lock() = None;
}

#[tokio::test(start_paused = true)]
async fn every_combination_of_two_hooks_a_policy_and_an_approver() {
    quiet_on_purpose();
    let mut combinations = 0;
    for first in LAYERS {
        for second in LAYERS {
            for policy in LAYERS {
                for approver in APPROVERS {
                    check([first, second, policy], approver).await;
                    combinations += 1;
                }
            }
        }
    }
    assert_eq!(combinations, 6 * 6 * 6 * 14);
}
