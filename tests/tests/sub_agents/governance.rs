//! Permission, approval, audit and redaction of a child are those of every run around it, or stricter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Action, Agent, ApprovalDecision, ApprovalHandler, ApprovalRequest, Decision, Effect, ErrorKind,
    EventKind, Namespace, Notified, Permissions, PostToolHook, PreToolHook, Result, RunContext, RunStatus,
    ToolCall, ToolOutcome, ToolStatus,
};
use loomflow_local::{InMemoryApprovalStore, InMemoryAuditLog, PatternScrub, StandardPermissions};
use loomflow_tests::double::ModelDouble;
use loomflow_tests::fixture::{Counts, FnTool, assert_one_terminal_record_per_run, entries, shared, user};

use super::{
    actions_of, asks, assert_children_are_bracketed, children, coordinator, coordinator_with, of_run,
    payload, speaker, worker,
};

/// Decides about one tool and allows every other.
#[derive(Clone, Debug)]
struct About(&'static str, Decision);
impl About {
    fn decide(&self, call: &ToolCall) -> Decision {
        if *call.name == *self.0 { self.1.clone() } else { Decision::Allow }
    }
}
#[async_trait]
impl Permissions for About {
    async fn check(&self, _: &RunContext, call: &ToolCall, _: Effect) -> Result<Decision> {
        Ok(self.decide(call))
    }
}
#[async_trait]
impl PreToolHook for About {
    async fn before_tool(&self, _: &RunContext, call: &ToolCall, _: Effect) -> Result<Decision> {
        Ok(self.decide(call))
    }
}

/// Decides every request at once, and keeps what it was asked.
#[derive(Debug)]
struct Boss {
    approves: bool,
    asked: parking_lot::Mutex<Vec<ApprovalRequest>>,
}
impl Boss {
    fn who(approves: bool) -> Arc<Self> {
        Arc::new(Self { approves, asked: parking_lot::Mutex::default() })
    }
}
#[async_trait]
impl ApprovalHandler for Boss {
    async fn notify(&self, _: &RunContext, ask: &ApprovalRequest) -> Result<Notified> {
        self.asked.lock().push(ask.clone());
        let decision = if self.approves {
            ApprovalDecision::Approve
        } else {
            ApprovalDecision::Deny { reason: "no".into() }
        };
        Ok(Notified::Decided { decision, by: Some(user("boss")) })
    }
}

/// The predecessor's workers ran outside of it all: a tool that the coordinator's policy denies ran, and the log knew only
/// that something was delegated.
#[tokio::test]
async fn w05_a_sub_agent_is_inside_the_governance_perimeter() {
    let (worker, executed) = worker();
    let own_log = Arc::new(InMemoryAuditLog::new());
    let worker = worker.audit_log(own_log.clone()).build().unwrap();
    let policy = StandardPermissions::bypass().denied_tools(["work"]).unwrap();
    let agent = coordinator(&worker).permissions(policy).build().unwrap();
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("go").await.unwrap();
    assert_eq!(
        executed.load(Ordering::SeqCst),
        0,
        "the coordinator's policy denies it to everybody below, too"
    );
    assert!(
        result.output.contains("denied"),
        "the worker's model was told, and told it on: {}",
        result.output
    );

    let [(child, parent)] = children(&tenant).await[..] else { panic!("one child is on record") };
    assert_eq!(parent, result.run_id);
    let log = of_run(&tenant, child).await;
    assert_eq!(
        actions_of(&log),
        [
            Action::RunStarted,
            Action::ModelCall,
            Action::PermissionDecision,
            Action::ToolResult,
            Action::ModelCall,
            Action::RunCompleted
        ]
    );
    assert_eq!(payload(&log[2])["decision"], "deny");
    assert_eq!(payload(&log[2])["tool"], "work");
    assert_eq!(payload(&log[3])["status"], "denied");
    assert!(
        own_log.is_empty(),
        "nothing of it went into a log that the coordinator's operator does not read"
    );
    assert_children_are_bracketed(&tenant).await;
    assert_one_terminal_record_per_run(&tenant).await;
}

/// Every combination of what the parent's policy, the parent's hook, the child's policy and the child's hook decide about the
/// child's call, and of who is asked: it runs when the strictest of the four lets it.
#[tokio::test]
async fn a_childs_call_runs_only_when_the_strictest_of_all_lets_it() {
    let all = [Decision::Allow, Decision::ask("somebody asks"), Decision::deny("somebody denies")];
    let mut combinations = 0;
    for strictness in 0..81_usize {
        let at = |layer: u32| strictness / 3_usize.pow(layer) % 3;
        for approves in [None, Some(true), Some(false)] {
            let (worker, executed) = worker();
            let worker = worker
                .permissions(About("work", all[at(0)].clone()))
                .before_tool(About("work", all[at(1)].clone()))
                // What the child was built with to ask does not count: nobody but the parent's people answer.
                .approval_store(InMemoryApprovalStore::new())
                .approval_handler(Boss::who(true))
                .self_approval(true)
                .build()
                .unwrap();
            let mut builder = coordinator(&worker)
                .permissions(About("work", all[at(2)].clone()))
                .before_tool(About("work", all[at(3)].clone()));
            let boss = approves.map(Boss::who);
            if let Some(boss) = &boss {
                builder = builder.approval_store(InMemoryApprovalStore::new()).approval_handler(boss.clone());
            }
            let tenant = builder.build().unwrap().for_user(user("alice"));
            let result = tenant.run("go").await.unwrap();
            assert_eq!(result.status, RunStatus::Completed);
            assert_eq!(result.tool_calls[0].status, ToolStatus::Ok, "delegating itself is allowed");
            let strictest = (0..4).map(at).max().unwrap();
            let runs = strictest == 0 || strictest == 1 && approves == Some(true);
            let what = (at(0), at(1), at(2), at(3), approves);
            assert_eq!(executed.load(Ordering::SeqCst), u64::from(runs), "{what:?}");
            let asked = boss.map_or(0, |boss| boss.asked.lock().len());
            assert_eq!(asked, usize::from(strictest == 1 && approves.is_some()), "{what:?}");
            let (child, _) = children(&tenant).await[0];
            let decided = of_run(&tenant, child).await;
            let decided = decided.iter().find(|e| e.event.action == Action::PermissionDecision).unwrap();
            assert_eq!(payload(decided)["decision"], ["allow", "ask", "deny"][strictest], "{what:?}");
            combinations += 1;
        }
    }
    assert_eq!(combinations, 243);
}

/// A policy two runs up counts like the next one's: nothing in between lifts it.
#[tokio::test]
async fn a_grandchild_is_judged_by_everybody_above() {
    for (denier, runs) in [(0, 0), (1, 0), (2, 0), (3, 1)] {
        let policy = |layer: usize| {
            About("work", if layer == denier { Decision::deny("no") } else { Decision::Allow })
        };
        let (worker, executed) = worker();
        let worker = worker.permissions(policy(2)).build().unwrap();
        let middle = coordinator(&worker).permissions(policy(1)).build().unwrap();
        let agent = coordinator(&middle).permissions(policy(0)).build().unwrap();
        let tenant = agent.for_user(user("alice"));
        let result = tenant.run("go").await.unwrap();
        assert_eq!(executed.load(Ordering::SeqCst), runs, "layer {denier} denies");
        let [(first, root), (second, between)] = children(&tenant).await[..] else { panic!("two children") };
        assert_eq!((root, between), (result.run_id, first));
        assert_eq!(of_run(&tenant, second).await.iter().filter(|e| e.event.action.is_terminal()).count(), 1);
        assert_children_are_bracketed(&tenant).await;
    }
}

#[tokio::test]
async fn a_policy_that_goes_wrong_anywhere_above_is_a_deny() {
    #[derive(Debug)]
    struct Broken;
    #[async_trait]
    impl Permissions for Broken {
        async fn check(&self, _: &RunContext, call: &ToolCall, _: Effect) -> Result<Decision> {
            assert!(*call.name == *"research", "the policy panics on purpose");
            Ok(Decision::Allow)
        }
    }
    let (worker, executed) = worker();
    let agent = coordinator(&worker.build().unwrap()).permissions(Broken).build().unwrap();
    agent.for_user(user("alice")).run("go").await.unwrap();
    assert_eq!(executed.load(Ordering::SeqCst), 0);
}

/// The hooks of everybody see a child's call: those before it and those after it, and one that both share sees it once.
#[tokio::test]
async fn hooks_of_the_parent_see_what_a_child_does_and_a_shared_one_sees_it_once() {
    #[derive(Debug, Default)]
    struct Counting(AtomicU64);
    #[async_trait]
    impl PreToolHook for Counting {
        async fn before_tool(&self, _: &RunContext, call: &ToolCall, _: Effect) -> Result<Decision> {
            self.0.fetch_add(u64::from(*call.name == *"work"), Ordering::SeqCst);
            Ok(Decision::Allow)
        }
    }
    #[async_trait]
    impl PostToolHook for Counting {
        async fn after_tool(&self, _: &RunContext, call: &ToolCall, _: &ToolOutcome) -> Result<()> {
            self.0.fetch_add(u64::from(*call.name == *"work"), Ordering::SeqCst);
            Ok(())
        }
    }
    let (parents, both) = (shared(Counting::default()), shared(Counting::default()));
    let (worker, _) = worker();
    let worker = worker.before_tool(both.clone()).after_tool(both.clone()).build().unwrap();
    let agent = coordinator(&worker).before_tool(parents.clone()).after_tool(parents.clone());
    let agent = agent.before_tool(both.clone()).after_tool(both.clone()).build().unwrap();
    agent.for_user(user("alice")).run("go").await.unwrap();
    assert_eq!((parents.0.load(Ordering::SeqCst), both.0.load(Ordering::SeqCst)), (2, 2));
}

/// A person is asked once about a child's call, under the child's run; the parent's stream shows it; only the parent's
/// approvers may decide; the approval is used up by that call.
#[tokio::test]
async fn an_approval_inside_a_child_is_asked_once_bound_to_it_and_seen_from_above() {
    let (worker, executed) = worker();
    let worker = worker
        .permissions(About("work", Decision::ask("it destroys")))
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(Boss::who(true))
        .build()
        .unwrap();
    let pending = loomflow_local::CallbackApprovals::new(|_, _| async { Ok(Notified::Pending) });
    let agent = coordinator(&worker)
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(pending)
        .approvers([user("boss")])
        .build()
        .unwrap();
    let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
    let mut events = alice.stream("go").await.unwrap();
    let (mut seen, mut requested) = (Vec::new(), None);
    while let Some(event) = events.next().await {
        assert_eq!(event.seq, seen.len() as u64 + 1);
        if let EventKind::ApprovalRequested { approval_id, name, .. } = &event.kind {
            assert_eq!(&**name, "work");
            assert!(requested.replace((*approval_id, event.child_run_id.unwrap())).is_none(), "asked once");
            let asked = boss.approvals().await.unwrap();
            assert_eq!(asked.len(), 1);
            assert_eq!(Some(asked[0].request.run), event.child_run_id, "bound to the child's run");
            assert_ne!(asked[0].request.run, event.run_id, "the stream is the root's");
            let own = worker.for_user(user("boss")).approvals().await.unwrap();
            assert!(own.is_empty(), "the child's own store is not asked");
            boss.decide(*approval_id, ApprovalDecision::Approve).await.unwrap();
        }
        seen.push(event);
    }
    let (approval, child) = requested.expect("somebody was asked");
    let names: Vec<_> = seen.iter().map(|e| (e.kind.name(), e.child_run_id.is_some())).collect();
    assert_eq!(
        names,
        [
            ("started", false),
            ("tool_call", false),
            ("approval_requested", true),
            ("approval_resolved", true),
            ("tool_result", false),
            ("text_delta", false),
            ("completed", false)
        ]
    );
    assert_eq!(executed.load(Ordering::SeqCst), 1);
    assert_eq!(
        boss.decide(approval, ApprovalDecision::Approve).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    let log = of_run(&alice, child).await;
    assert!(actions_of(&log).contains(&Action::ApprovalGranted), "{log:?}");
    // The next child's call is another call, and is asked about anew.
    let again = tokio::spawn(async move { alice.run("again").await });
    let next = loop {
        if let Some(found) = boss.approvals().await.unwrap().pop() {
            break found.request;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    assert_ne!((next.id, next.run), (approval, child));
    boss.decide(next.id, ApprovalDecision::Deny { reason: "enough".into() }).await.unwrap();
    again.await.unwrap().unwrap();
    assert_eq!(executed.load(Ordering::SeqCst), 1);
}

/// A child that names approvers of its own accepts only those whom the parent names, too.
#[tokio::test]
async fn a_child_can_narrow_who_may_approve_and_not_widen_it() {
    for (own, approved) in [(&["boss", "cfo"][..], true), (&["cfo"], false), (&["alice"], false)] {
        let (worker, executed) = worker();
        let worker = worker
            .permissions(About("work", Decision::ask("it destroys")))
            .approvers(own.iter().map(|name| user(name)))
            .self_approval(true)
            .build()
            .unwrap();
        let pending = loomflow_local::CallbackApprovals::new(|_, _| async { Ok(Notified::Pending) });
        let agent = coordinator(&worker)
            .approval_store(InMemoryApprovalStore::new())
            .approval_handler(pending)
            .approvers([user("boss")])
            .build()
            .unwrap();
        let (alice, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
        let mut events = alice.stream("go").await.unwrap();
        while let Some(event) = events.next().await {
            if let EventKind::ApprovalRequested { approval_id, .. } = event.kind {
                let decide = |who: &loomflow_core::UserAgent| {
                    let who = who.clone();
                    async move { who.decide(approval_id, ApprovalDecision::Approve).await.is_ok() }
                };
                assert!(!decide(&alice).await && !decide(&agent.for_user(user("cfo"))).await);
                assert_eq!(decide(&boss).await, approved, "{own:?}");
            }
        }
        assert_eq!(executed.load(Ordering::SeqCst), u64::from(approved), "{own:?}");
    }
}

/// Ids that look like somebody else's, in every place where a model can write: the child is the caller's.
#[tokio::test]
async fn nothing_the_model_says_changes_whose_the_child_is() {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let sink = seen.clone();
    let look = FnTool::new("work", Effect::Read, move |ctx, _| {
        sink.lock().push(ctx.scope().owner().clone());
        async { ToolOutcome::ok("seen") }
    });
    let worker = Agent::builder("user_id: bob").model(asks("work", "{\"user_id\": \"bob\"}", 1)).tool(look);
    let worker = worker.permissions(StandardPermissions::bypass()).build().unwrap();
    for (arguments, runs) in [
        ("{\"task\": \"as user bob: look. user_id=bob\"}", true),
        ("{\"task\": \"look\", \"user_id\": \"bob\"}", false),
        ("{\"user_id\": \"bob\"}", false),
        ("{\"task\": {\"user_id\": \"bob\"}}", false),
        ("{}", false),
    ] {
        seen.lock().clear();
        let agent = Agent::builder("c").model(asks("research", arguments, 1));
        let agent = agent.tool(worker.as_tool("research", "Looks.").unwrap());
        let agent = agent.permissions(StandardPermissions::bypass()).build().unwrap();
        let result = agent.for_user(user("alice")).run("go").await.unwrap();
        assert_eq!(result.tool_calls[0].status == ToolStatus::Ok, runs, "{arguments}");
        assert_eq!(seen.lock().len(), usize::from(runs), "{arguments}");
        assert!(seen.lock().iter().all(|owner| owner.user_id() == Some(&user("alice"))));
        let anonymous = agent.anonymous().run("go").await.unwrap();
        assert_eq!(anonymous.user_id, None);
        assert!(seen.lock().iter().skip(usize::from(runs)).all(|owner| owner.user_id().is_none()));
    }
}

#[tokio::test]
async fn an_agent_of_another_namespace_cannot_be_a_child() {
    let other = Agent::builder("speak").model(ModelDouble::saying("hello"));
    let other = other.namespace(Namespace::new("billing").unwrap()).build().unwrap();
    let result = coordinator(&other).build().unwrap().for_user(user("alice")).run("go").await.unwrap();
    assert_eq!(result.tool_calls[0].status, ToolStatus::Error);
    assert!(result.output.contains("namespace"), "{}", result.output);
}

/// A child has no telemetry and no audit log of its own, and its log entries pass the parent's redactor and its own.
#[tokio::test]
async fn what_a_child_records_is_redacted_by_both_and_counted_by_the_parent() {
    #[derive(Debug)]
    struct Hides(&'static str);
    impl loomflow_core::Scrub for Hides {
        fn scrub<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
            text.replace(self.0, "[hidden]").into()
        }
    }
    let note = FnTool::new("work", Effect::Write, |_, _| async { ToolOutcome::ok("noted") });
    let arguments = "{\"note\": \"parents-secret childs-secret open sk-abcdefghijklmnopqrstuvwx\"}";
    let (own, counts) = (shared(Counts::default()), shared(Counts::default()));
    let worker = Agent::builder("w").model(asks("work", arguments, 1)).tool(note).telemetry(own.clone());
    let worker = worker.permissions(StandardPermissions::bypass()).redaction(Hides("childs-secret"));
    let middle = coordinator(&worker.build().unwrap()).redaction(PatternScrub::new()).build().unwrap();
    let agent = coordinator(&middle).redaction(Hides("parents-secret")).telemetry(counts.clone());
    let tenant = agent.build().unwrap().for_user(user("alice"));
    tenant.run("go").await.unwrap();
    let log = entries(&tenant).await;
    let noted = log.iter().map(payload).find(|payload| payload["args"]["note"].is_string()).unwrap();
    let noted = noted["args"]["note"].as_str().unwrap();
    assert!(noted.contains("open") && noted.contains("[hidden] [hidden]"), "{noted}");
    assert!(!noted.contains("secret") && !noted.contains("sk-abc"), "{noted}");
    assert_eq!(own.total("loom.permission.decisions"), 0);
    assert_eq!(counts.total("loom.permission.decisions"), 3, "one of each run");
}

/// A hook, a policy and a handler have a context, too, but no call that a child could belong to.
#[tokio::test]
async fn only_a_tool_call_can_delegate_and_only_while_it_lasts() {
    #[derive(Debug)]
    struct Delegates(Agent, parking_lot::Mutex<Option<ErrorKind>>);
    #[async_trait]
    impl PreToolHook for Delegates {
        async fn before_tool(&self, ctx: &RunContext, _: &ToolCall, _: Effect) -> Result<Decision> {
            *self.1.lock() = ctx.delegate(&self.0, "look").await.err().map(|error| error.kind());
            Ok(Decision::Allow)
        }
    }
    let kept = Arc::new(parking_lot::Mutex::new(None::<RunContext>));
    let keeper = kept.clone();
    let keep = FnTool::new("research", Effect::Read, move |ctx, _| {
        *keeper.lock() = Some(ctx);
        async { ToolOutcome::ok("kept") }
    });
    let child = speaker("hello");
    let hook = shared(Delegates(child.clone(), parking_lot::Mutex::default()));
    let agent = coordinator_with(keep).before_tool(hook.clone()).build().unwrap();
    let tenant = agent.for_user(user("alice"));
    tenant.run("go").await.unwrap();
    assert_eq!(*hook.1.lock(), Some(ErrorKind::Unsupported));
    let ctx = kept.lock().take().unwrap();
    let error = ctx.delegate(&child, "look").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(children(&tenant).await, []);
    let stopped = speaker("hello");
    stopped.shutdown().await.unwrap();
    let result = coordinator(&stopped).build().unwrap().for_user(user("alice")).run("go").await.unwrap();
    assert!(result.output.contains("shutting down"), "{}", result.output);
}

/// Delegating asks under the strictest effect unless the caller says what the agent can do at the worst.
#[tokio::test]
async fn delegating_is_external_unless_it_is_said_to_be_less() {
    let child = speaker("hello");
    let tool = || child.as_tool("research", "Looks.").unwrap();
    for (tool, status) in [(tool(), ToolStatus::Denied), (tool().with_effect(Effect::Read), ToolStatus::Ok)] {
        let agent = Agent::builder("c").model(asks("research", "{\"task\": \"look\"}", 1)).tool(tool);
        let result = agent.build().unwrap().for_user(user("alice")).run("go").await.unwrap();
        assert_eq!(result.tool_calls[0].status, status);
    }
    assert_eq!(child.as_tool("not a name", "Looks.").unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// Where nobody may decide for both, nobody may: a handler that decides at once approves nothing, whomever it names.
#[tokio::test]
async fn approvers_that_have_nobody_in_common_are_nobody() {
    for (above, own, by_requester) in [
        (&["boss"][..], &["cfo"][..], false),
        (&[], &["cfo"], false),
        (&["boss"], &["cfo"], true),
        (&[], &["boss"], true),
    ] {
        for by in [None, Some("boss"), Some("cfo"), Some("mallory")] {
            let (worker, executed) = worker();
            let worker = worker
                .permissions(About("work", Decision::ask("it destroys")))
                .approvers(own.iter().map(|name| user(name)))
                .self_approval(by_requester)
                .build()
                .unwrap();
            let decides = loomflow_local::CallbackApprovals::new(move |_, _| async move {
                Ok(Notified::Decided { decision: ApprovalDecision::Approve, by: by.map(user) })
            });
            let agent = coordinator(&worker)
                .approval_store(InMemoryApprovalStore::new())
                .approval_handler(decides)
                .approvers(above.iter().map(|name| user(name)))
                .self_approval(by_requester)
                .build()
                .unwrap();
            agent.for_user(user("alice")).run("go").await.unwrap();
            assert_eq!(executed.load(Ordering::SeqCst), 0, "{above:?} and {own:?}, by {by:?}");
        }
    }
}
