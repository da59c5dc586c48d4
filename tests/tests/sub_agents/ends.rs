//! How children end: too deep, too many, too late, by a panic, or because the tool that began them is through.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use loomflow_core::{
    Action, Agent, ApprovalDecision, BudgetConfig, Decision, Effect, ErrorKind, Event, EventKind, Notified,
    RunContext, RunStatus, ToolOutcome, ToolStatus,
};
use loomflow_local::{
    CallbackApprovals, InMemoryApprovalStore, InMemoryAuditLog, InMemoryJournalStore, InProcRuntime,
    StandardBudget, StandardPermissions,
};
use loomflow_tests::double::{ModelDouble, Step, say};
use loomflow_tests::fixture::{FnTool, assert_one_terminal_record_per_run, entries, user};
use tokio::task::yield_now;
use tokio::time::Instant;

use super::{
    actions_of, asks, assert_children_are_bracketed, children, conducting, coordinator, coordinator_with,
    of_run, payload, research, worker,
};

const SECOND: Duration = Duration::from_secs(1);

fn budget() -> StandardBudget {
    StandardBudget::new(BudgetConfig::new().per_user_max_tokens(100_000)).unwrap()
}

/// An agent that delegates to itself, `times` in every run.
fn snake(
    times: usize,
    change: impl Fn(
        loomflow_core::AgentBuilder<loomflow_core::HasModel>,
    ) -> loomflow_core::AgentBuilder<loomflow_core::HasModel>,
) -> Agent {
    let itself: Arc<OnceLock<Agent>> = Arc::default();
    let tail = itself.clone();
    let bite = FnTool::new("research", Effect::Read, move |ctx: RunContext, _| {
        let agent = tail.get().expect("it was built").clone();
        async move {
            match ctx.delegate(&agent, "on").await {
                Ok(result) => ToolOutcome::ok(result.output),
                Err(error) => ToolOutcome::error(error.message()),
            }
        }
    });
    let agent = change(conducting(asks("research", "{}", times), bite)).build().unwrap();
    itself.get_or_init(|| agent.clone());
    agent
}

#[tokio::test]
async fn a_circle_of_agents_ends_at_the_depth_limit() {
    for (limit, deep) in [(None, 4), (Some(2), 2), (Some(0), 0)] {
        let agent = snake(1, |builder| match limit {
            None => builder,
            Some(limit) => builder.max_delegation_depth(limit),
        });
        let tenant = agent.for_user(user("alice"));
        let result = tenant.run("go").await.unwrap();
        assert_eq!(result.status, RunStatus::Completed);
        assert!(result.output.contains("deep"), "the deepest was told, and told it on: {}", result.output);
        let children = children(&tenant).await;
        assert_eq!(children.len(), deep);
        for pair in children.windows(2) {
            assert_eq!(pair[1].1, pair[0].0, "each is the child of the one before");
        }
        assert_children_are_bracketed(&tenant).await;
        assert_one_terminal_record_per_run(&tenant).await;
    }
}

/// A limit on the way down counts from where it was set, and a wider one below lifts nothing.
#[tokio::test]
async fn a_child_can_narrow_the_depth_and_not_widen_it() {
    for (inner, outer, deep) in [(1, 4, 2), (9, 1, 1), (9, 3, 3)] {
        let snake = snake(1, |builder| builder.max_delegation_depth(inner));
        let agent = coordinator(&snake).max_delegation_depth(outer).build().unwrap();
        let tenant = agent.for_user(user("alice"));
        tenant.run("go").await.unwrap();
        assert_eq!(children(&tenant).await.len(), deep, "{inner} within {outer}");
    }
}

#[tokio::test]
async fn the_runs_that_one_run_leads_to_are_bounded() {
    // Three calls in each run of a tree four deep would be 3 + 9 + 27 + 81.
    for (limit, begun) in [(None, 64), (Some(5), 5)] {
        let agent = snake(3, |builder| match limit {
            None => builder,
            Some(limit) => builder.max_delegations(limit),
        });
        let tenant = agent.for_user(user("alice"));
        let result = tenant.run("go").await.unwrap();
        assert_eq!(result.status, RunStatus::Completed);
        assert_eq!(children(&tenant).await.len(), begun);
        assert_children_are_bracketed(&tenant).await;
        // A run of its own has children of its own.
        tenant.run("go").await.unwrap();
        assert_eq!(children(&tenant).await.len(), 2 * begun);
    }
}

/// A child that hangs: by its own time limit, by the call's, and by the parent's. Whichever is first ends it and says so.
#[tokio::test(start_paused = true)]
async fn the_first_of_all_deadlines_ends_a_child_and_what_it_used_is_counted() {
    for (own, call, whole, ended) in [(3, 9, 20, 3), (9, 3, 20, 3), (9, 20, 3, 3)] {
        let hanging = ModelDouble::new(|_, _| Ok(vec![Step::Say("one two ".into()), Step::Hang]));
        let child = Agent::builder("work").model(hanging.clone()).run_timeout(own * SECOND).build().unwrap();
        let boss = asks("research", "{\"task\": \"t\"}", 1);
        let agent = conducting(boss.clone(), research(&child).with_timeout(call * SECOND))
            .run_timeout(whole * SECOND)
            .budget(budget())
            .build()
            .unwrap();
        let tenant = agent.for_user(user("alice"));
        let began = Instant::now();
        let result = tenant.run("go").await;
        assert_eq!(began.elapsed().as_secs(), ended, "{own} {call} {whole}");
        let [(child, parent)] = children(&tenant).await[..] else { panic!("one child") };
        let log = of_run(&tenant, child).await;
        assert_eq!(actions_of(&log), [Action::RunStarted, Action::ModelCall, Action::RunTimedOut]);
        let used = tenant.usage().await.unwrap();
        let billed = (hanging.invoice().0 + boss.invoice().0, hanging.invoice().1 + boss.invoice().1);
        assert_eq!(
            (used.used.input_tokens, used.used.output_tokens, used.open_holds),
            (billed.0, billed.1, 0)
        );
        let end = of_run(&tenant, parent).await.pop().unwrap();
        assert_eq!(payload(&end)["input_tokens"], billed.0, "the parent's record has it, too");
        assert_eq!(payload(&end)["output_tokens"], billed.1);
        match result {
            Ok(result) => {
                assert!(whole > 3);
                assert_eq!((result.usage.input_tokens, result.usage.output_tokens), billed);
            }
            Err(error) => assert_eq!((error.kind(), whole), (ErrorKind::Timeout, 3)),
        }
        assert_children_are_bracketed(&tenant).await;
        assert_one_terminal_record_per_run(&tenant).await;
    }
}

/// Whether a task that was not finished may have done anything is for the child's tools to say.
#[tokio::test]
async fn a_child_that_fails_leaves_its_task_undone_or_in_doubt() {
    for (effect, status) in [(Effect::Read, ToolStatus::Error), (Effect::Write, ToolStatus::Unknown)] {
        let touch = FnTool::new("work", effect, |_, _| async { ToolOutcome::ok("touched") });
        let breaks = ModelDouble::new(|_, n| {
            Ok(if n == 0 {
                vec![Step::Call("work", "{}".into())]
            } else {
                vec![Step::Say("half ".into()), Step::Cut]
            })
        });
        let child = Agent::builder("w").model(breaks).tool(touch).permissions(StandardPermissions::bypass());
        // A run in between that only looks by its own account hides nothing.
        let middle = conducting(
            asks("research", "{\"task\": \"t\"}", 1),
            research(&child.build().unwrap()).with_effect(Effect::Read),
        );
        for agent in [coordinator(&middle.max_turns(1).build().unwrap())] {
            let tenant = agent.build().unwrap().for_user(user("alice"));
            let result = tenant.run("go").await.unwrap();
            assert_eq!(result.tool_calls[0].status, status, "{}", result.output);
            assert!(result.output.contains("max_turns"), "{}", result.output);
            assert_one_terminal_record_per_run(&tenant).await;
        }
    }
}

#[tokio::test]
async fn a_child_that_panics_ends_on_record_and_its_parent_goes_on() {
    let child =
        Agent::builder("w").model(ModelDouble::new(|_, _| Ok(vec![Step::Say("one ".into()), Step::Panic])));
    let agent = coordinator(&child.build().unwrap()).budget(budget()).build().unwrap();
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("go").await.unwrap();
    assert_eq!(result.tool_calls[0].status, ToolStatus::Unknown);
    let [(child, _)] = children(&tenant).await[..] else { panic!("one child") };
    let end = of_run(&tenant, child).await.pop().unwrap();
    assert_eq!((end.event.action, &payload(&end)["reason"]), (Action::RunFailed, &"panic".into()));
    assert_eq!(tenant.usage().await.unwrap().used.total_tokens(), result.usage.total_tokens());
    assert_children_are_bracketed(&tenant).await;
}

/// A tool that loses patience drops its child: that is settled and on record before the call's result is.
#[tokio::test(start_paused = true)]
async fn a_child_that_its_tool_gives_up_is_cancelled_before_the_call_ends() {
    let child =
        Agent::builder("w").model(ModelDouble::new(|_, _| Ok(vec![Step::Say("one ".into()), Step::Hang])));
    let child = child.build().unwrap();
    let impatient = FnTool::new("research", Effect::Read, move |ctx: RunContext, _| {
        let child = child.clone();
        async move {
            let waited =
                tokio::time::timeout(SECOND, IntoFuture::into_future(ctx.delegate(&child, "t"))).await;
            ToolOutcome::ok(if waited.is_err() { "gave up" } else { "got through" })
        }
    });
    let agent = coordinator_with(impatient).budget(budget()).build().unwrap();
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("go").await.unwrap();
    assert_eq!(&*result.output, "gave up");
    let [(child, _)] = children(&tenant).await[..] else { panic!("one child") };
    assert_eq!(
        actions_of(&of_run(&tenant, child).await),
        [Action::RunStarted, Action::ModelCall, Action::RunCancelled]
    );
    assert_eq!(tenant.usage().await.unwrap().used.total_tokens(), result.usage.total_tokens());
    assert_children_are_bracketed(&tenant).await;
}

/// A tool that leaves its child to a task and answers at once: the child ends with the call.
#[tokio::test]
async fn a_child_that_is_left_to_a_task_is_recalled_with_its_call() {
    let hanging = ModelDouble::new(|_, _| Ok(vec![Step::Say("one ".into()), Step::Hang]));
    let child = Agent::builder("w").model(hanging.clone()).build().unwrap();
    let (told, model) = (Arc::new(AtomicBool::new(false)), hanging.clone());
    let teller = told.clone();
    let leaves = FnTool::new("research", Effect::Read, move |ctx: RunContext, _| {
        let (child, told, model) = (child.clone(), teller.clone(), model.clone());
        async move {
            tokio::spawn(async move {
                let error = ctx.delegate(&child, "t").await.unwrap_err();
                told.store(error.kind() == ErrorKind::Conflict, Ordering::SeqCst);
            });
            while model.calls() == 0 {
                yield_now().await;
            }
            ToolOutcome::ok("left it")
        }
    });
    let agent = coordinator_with(leaves).budget(budget()).build().unwrap();
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("go").await.unwrap();
    assert_eq!(&*result.output, "left it");
    assert_eq!(tenant.usage().await.unwrap().used.total_tokens(), result.usage.total_tokens());
    assert_eq!(tenant.usage().await.unwrap().open_holds, 0);
    assert_eq!(children(&tenant).await.len(), 1);
    assert_children_are_bracketed(&tenant).await;
    assert_one_terminal_record_per_run(&tenant).await;
    while !told.load(Ordering::SeqCst) {
        yield_now().await;
    }
}

/// A person who takes longer than every time limit of the tree: no clock in it goes on while nothing is at work.
#[tokio::test(start_paused = true)]
async fn a_person_whom_a_child_waits_for_costs_nobody_time() {
    for working in [0, 4] {
        let (worker, executed) = worker();
        let pending = CallbackApprovals::new(|_, _| async { Ok(Notified::Pending) });
        let asking = StandardPermissions::default();
        let worker = worker.permissions(asking).run_timeout(5 * SECOND).build().unwrap();
        let middle = coordinator(&worker).run_timeout(6 * SECOND).tool_timeout(6 * SECOND).build().unwrap();
        let busy = FnTool::new("busy", Effect::Read, move |_, _| async move {
            tokio::time::sleep(working * SECOND).await;
            ToolOutcome::ok("was busy")
        });
        let boss = ModelDouble::new(|request, _| {
            let answered = request.messages.iter().any(|m| m.tool_call_id.is_some());
            Ok(if answered {
                say("done")
            } else {
                vec![Step::Call("research", "{\"task\": \"t\"}".into()), Step::Call("busy", "{}".into())]
            })
        });
        let limit = Duration::from_secs(7);
        let ledger = BudgetConfig::new().per_user_max_wall_clock(100 * SECOND);
        let agent = conducting(boss, research(&middle).with_timeout(limit))
            .tool(busy)
            .run_timeout(limit)
            .budget(StandardBudget::new(ledger).unwrap())
            .approval_store(InMemoryApprovalStore::new())
            .approval_handler(pending)
            .approvers([user("boss")])
            .runtime(InProcRuntime::with_journal(InMemoryJournalStore::new()))
            .build()
            .unwrap();
        let (tenant, boss) = (agent.for_user(user("alice")), agent.for_user(user("boss")));
        let run = tokio::spawn({
            let tenant = tenant.clone();
            async move { tenant.run("go").session("s").await }
        });
        tokio::time::sleep(300 * SECOND).await;
        assert_eq!(tenant.usage().await.unwrap().open_holds, 1, "the root's time is still set aside");
        let second = tenant.run("too").session("s").await.unwrap_err();
        assert_eq!(second.kind(), ErrorKind::Conflict, "and its conversation still its own");
        let request = boss.approvals().await.unwrap().pop().expect("it still waits").request;
        let open = tenant.open_runs().await.unwrap();
        assert_eq!(open.len(), 1, "the root's, which waits with its child");
        assert_eq!((open[0].status, open[0].run == request.run), (RunStatus::WaitingApproval, false));
        boss.decide(request.id, ApprovalDecision::Approve).await.unwrap();
        let result = run.await.unwrap().unwrap();
        assert_eq!((result.status, executed.load(Ordering::SeqCst)), (RunStatus::Completed, 1));
        let clock = tenant.usage().await.unwrap().wall_clock;
        assert!(
            (working.into()..=u64::from(working) + 1).contains(&clock.as_secs()),
            "{clock:?} with {working}"
        );
        assert_children_are_bracketed(&tenant).await;
    }
}

/// Who reads the stream slowly, or not to its end, sees whole events of one numbering.
#[tokio::test]
async fn events_of_many_children_share_the_roots_numbering() {
    #[derive(Debug)]
    struct Asks;
    #[async_trait::async_trait]
    impl loomflow_core::Permissions for Asks {
        async fn check(
            &self,
            _: &RunContext,
            call: &loomflow_core::ToolCall,
            _: Effect,
        ) -> loomflow_core::Result<Decision> {
            Ok(if *call.name == *"work" { Decision::ask("work") } else { Decision::Allow })
        }
    }
    let (worker, executed) = worker();
    let decides = CallbackApprovals::new(|_, _| async {
        Ok(Notified::Decided { decision: ApprovalDecision::Approve, by: Some(user("boss")) })
    });
    let agent = conducting(asks("research", "{\"task\": \"t\"}", 16), research(&worker.build().unwrap()))
        .permissions(Asks)
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(decides)
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let tenant = agent.for_user(user("alice"));
    let mut stream = tenant.stream("go").await.unwrap();
    let mut events: Vec<Event> = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event);
    }
    assert_eq!(executed.load(Ordering::SeqCst), 16);
    assert!(events.iter().zip(1..).all(|(event, seq)| event.seq == seq));
    assert!(events.iter().all(|event| event.run_id == events[0].run_id));
    let of = |name: &str| events.iter().filter(|e| e.kind.name() == name).count();
    assert_eq!(
        (of("approval_requested"), of("approval_resolved"), of("completed"), of("started")),
        (16, 16, 1, 1)
    );
    let told: std::collections::BTreeSet<_> = events.iter().filter_map(|e| e.child_run_id).collect();
    let known: std::collections::BTreeSet<_> =
        children(&tenant).await.into_iter().map(|(child, _)| child).collect();
    assert_eq!(told, known);
    let json =
        serde_json::to_value(events.iter().find(|e| matches!(e.kind, EventKind::ApprovalRequested { .. })))
            .unwrap();
    assert!(json["child_run_id"].as_str().is_some_and(|id| id.starts_with("run_")), "{json}");
    assert!(serde_json::to_value(&events[0]).unwrap().get("child_run_id").is_none());
    assert!(entries(&tenant).await.len() > 16);
}
