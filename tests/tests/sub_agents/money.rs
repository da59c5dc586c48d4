//! What a tree of runs spends is counted once: in the parent's ledger, under the root's name, and in the parent's result.

use std::sync::Arc;
use std::time::Duration;

use loomflow_core::{
    Agent, BudgetConfig, Effect, ErrorKind, EventKind, RunContext, RunStatus, ToolOutcome, ToolStatus,
    UserAgent, Window,
};
use loomflow_local::StandardBudget;
use loomflow_tests::double::{ModelDouble, Step, say};
use loomflow_tests::fixture::{FnTool, assert_one_terminal_record_per_run, entries, user};

use super::{
    asks, assert_children_are_bracketed, children, conducting, coordinator, coordinator_with, payload,
    research, speaker,
};

fn budget(config: BudgetConfig) -> Arc<StandardBudget> {
    Arc::new(StandardBudget::new(config).unwrap())
}

/// A model that says as many words as it is allowed.
fn talks() -> Arc<ModelDouble> {
    ModelDouble::new(|request, _| {
        Ok((0..request.max_output_tokens).map(|_| Step::Say("word ".into())).collect())
    })
}

/// What all the doubles would bill.
fn invoice(models: &[&Arc<ModelDouble>]) -> (u64, u64) {
    models.iter().map(|m| m.invoice()).fold((0, 0), |(i, o), (a, b)| (i + a, o + b))
}

async fn ledger(tenant: &UserAgent) -> (u64, u64) {
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.held_tokens, usage.open_holds), (0, 0), "nothing is held any more");
    (usage.used.input_tokens, usage.used.output_tokens)
}

/// The predecessor spent 10,000,002 tokens against a cap of 100 through ten delegations at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w05_ten_delegations_at_once_never_overspend_the_cap() {
    for cap in ["user", "run", "global"] {
        let (boss, workers) = (asks("research", "{\"task\": \"t\"}", 10), talks());
        let worker = Agent::builder("w").model(workers.clone()).max_output_tokens(1_000_000).build().unwrap();
        let config = BudgetConfig::new();
        let config = match cap {
            "user" => config.per_user_max_tokens(100).window(Window::Day),
            "run" => config.per_run_max_tokens(100),
            _ => config.max_tokens(100),
        };
        let agent = conducting(boss.clone(), research(&worker))
            .budget(budget(config))
            .max_output_tokens(40)
            .build()
            .unwrap();
        let tenant = agent.for_user(user("alice"));
        let result = tenant.run("go").await.unwrap();
        assert_eq!(result.tool_calls.len(), 10);
        assert_eq!(
            result.status,
            RunStatus::Interrupted,
            "the parent's next call is refused by the same cap"
        );
        assert!(result.reason.unwrap().starts_with("budget:"), "{cap}");
        let (input, output) = invoice(&[&boss, &workers]);
        assert!(input + output <= 100, "{} spent of 100 per {cap}", input + output);
        assert!(input + output > 90, "and what there was, was spent: {}", input + output);
        assert_eq!(ledger(&tenant).await, (input, output), "the ledger is the invoice, to the token");
        assert_eq!((result.usage.input_tokens, result.usage.output_tokens), (input, output));
        assert!(workers.calls() < 10, "the others were refused");
        assert_eq!(children(&tenant).await.len(), 10, "and are on record all the same");
        assert_children_are_bracketed(&tenant).await;
        assert_one_terminal_record_per_run(&tenant).await;
    }
}

/// Two levels, three models: each level's result and terminal record say what it and everything below it used, and the
/// leaves sum up to the invoice.
#[tokio::test]
async fn usage_adds_up_once_on_every_level() {
    let (top, mid, low) = (
        asks("research", "{\"task\": \"a b c\"}", 3),
        asks("research", "{\"task\": \"d e\"}", 2),
        ModelDouble::saying("found"),
    );
    let lowest = Agent::builder("low").model(low.clone()).build().unwrap();
    let middle = conducting(mid.clone(), research(&lowest)).build().unwrap();
    let agent = conducting(top.clone(), research(&middle))
        .budget(budget(BudgetConfig::new().per_user_max_tokens(10_000).per_run_max_tokens(9_000)))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("go").await.unwrap();
    let (input, output) = invoice(&[&top, &mid, &low]);
    assert_eq!(ledger(&tenant).await, (input, output));
    assert_eq!((result.usage.input_tokens, result.usage.output_tokens), (input, output));
    assert_eq!(result.turns, 2, "turns are the run's own");
    let log = entries(&tenant).await;
    let sum = |action: &str| -> u64 {
        let of = log.iter().filter(|e| e.event.action.as_str() == action).map(payload);
        of.map(|p| p["input_tokens"].as_u64().unwrap() + p["output_tokens"].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("model_call"), input + output, "each call is on record once");
    let of_middle = invoice(&[&mid, &low]);
    let of_low = invoice(&[&low]);
    let levels = (input + output) + (of_middle.0 + of_middle.1) + (of_low.0 + of_low.1);
    assert_eq!(sum("run_completed"), levels, "each level says what it and those below used");
}

/// A cap per run counts the whole tree against the root, and a child is not a run of its own to it.
#[tokio::test]
async fn a_cap_per_run_counts_the_tree_as_one_run() {
    let workers = talks();
    let worker = Agent::builder("w").model(workers.clone()).max_output_tokens(30).build().unwrap();
    let boss = ModelDouble::new(|request, _| {
        let told = request.messages.iter().filter(|m| m.tool_call_id.is_some()).count();
        Ok(if told < 5 { vec![Step::Call("research", "{\"task\": \"t\"}".into())] } else { say("done") })
    });
    let agent = conducting(boss.clone(), research(&worker));
    let agent =
        agent.max_output_tokens(30).budget(budget(BudgetConfig::new().per_run_max_tokens(100))).build();
    let agent = agent.unwrap();
    let tenant = agent.for_user(user("alice"));
    for _ in 0..3 {
        let before = invoice(&[&boss, &workers]);
        let result = tenant.run("go").await.unwrap();
        assert_eq!(result.reason.as_deref(), Some("budget:per_run_max_tokens"));
        let after = invoice(&[&boss, &workers]);
        let spent = after.0 + after.1 - before.0 - before.1;
        assert!(spent <= 100 && spent > 60, "{spent} of 100 in one tree");
        assert_eq!(result.usage.total_tokens(), spent);
    }
    assert_eq!(ledger(&tenant).await, invoice(&[&boss, &workers]));
}

/// Time is held once, by the root: four children at once neither hold nor charge it again.
#[tokio::test(start_paused = true)]
async fn wall_clock_is_held_and_charged_once() {
    let slow = FnTool::new("work", Effect::Read, |_, _| async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        ToolOutcome::ok("slept")
    });
    let worker = Agent::builder("w").model(asks("work", "{}", 1)).tool(slow).build().unwrap();
    let agent = conducting(asks("research", "{\"task\": \"t\"}", 4), research(&worker))
        .budget(budget(BudgetConfig::new().per_user_max_wall_clock(Duration::from_secs(100))))
        .run_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("alice"));
    tenant.run("go").await.unwrap();
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.wall_clock, usage.open_holds), (Duration::from_secs(10), 0));
}

/// The child was built with a ledger of its own, and a small one: as a child it spends from its parent's, in which alone
/// everything is counted once.
#[tokio::test]
async fn a_childs_own_ledger_is_not_asked() {
    let own = budget(BudgetConfig::new().per_user_max_tokens(1));
    let spoken = ModelDouble::saying("hello there");
    let child = Agent::builder("speak").model(spoken.clone()).budget(own.clone()).build().unwrap();
    let agent =
        coordinator(&child).budget(budget(BudgetConfig::new().per_user_max_tokens(1_000))).build().unwrap();
    let tenant = agent.for_user(user("alice"));
    assert_eq!(tenant.run("go").await.unwrap().tool_calls[0].status, ToolStatus::Ok);
    assert_eq!(spoken.calls(), 1);
    let nothing = child.for_user(user("alice")).usage().await.unwrap();
    assert_eq!(nothing.used.total_tokens(), 0);
    // A run of its own is a different thing, inside a tool, too.
    let error = child.for_user(user("alice")).run("go").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BudgetExceeded);
}

/// A child's refusals and warnings are seen on the parent's stream, and its model's output is no longer than the parent allows.
#[tokio::test]
async fn a_refused_child_is_told_to_the_parents_model_and_seen_on_its_stream() {
    let workers = talks();
    let worker = Agent::builder("w").model(workers.clone()).max_output_tokens(1_000).build().unwrap();
    let boss = asks("research", "{\"task\": \"t\"}", 3);
    let agent = conducting(boss.clone(), research(&worker))
        .max_parallel_tools(1)
        .max_output_tokens(25)
        .budget(budget(BudgetConfig::new().per_user_max_tokens(60).soft_warning_at(0.5)))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("alice"));
    let mut events = tenant.stream("go").await.unwrap();
    let (mut warned, mut exceeded) = (Vec::new(), Vec::new());
    while let Some(event) = events.next().await {
        match event.kind {
            EventKind::BudgetWarning(_) => warned.push(event.child_run_id),
            EventKind::BudgetExceeded(_) => exceeded.push(event.child_run_id),
            _ => {}
        }
    }
    let children: Vec<_> = children(&tenant).await.into_iter().map(|(child, _)| Some(child)).collect();
    assert_eq!(children.len(), 3);
    assert!(
        !warned.is_empty() && warned.iter().all(|run| run.is_none() || children.contains(run)),
        "{warned:?}"
    );
    assert_eq!(exceeded, [children[2], None], "the third child's first call, then the parent's next");
    assert!(workers.requests().iter().all(|request| request.max_output_tokens <= 25));
    let result = events.result().await.unwrap();
    assert_eq!(result.tool_calls[2].status, ToolStatus::Error, "nothing was done, and that is known");
    assert_eq!(ledger(&tenant).await, invoice(&[&boss, &workers]));
}

/// A tool of somebody's own that delegates, several times and in its own way, with nothing but the context.
#[tokio::test]
async fn a_tool_can_delegate_by_hand() {
    let (one, other) = (speaker("one"), speaker("two three"));
    let by_hand = FnTool::new("research", Effect::Read, move |ctx: RunContext, _| {
        let (one, other) = (one.clone(), other.clone());
        async move {
            let (a, b) = futures_util::join!(
                IntoFuture::into_future(ctx.delegate(&one, "a")),
                IntoFuture::into_future(ctx.delegate(&other, "b"))
            );
            let (a, b) = (a.unwrap(), b.unwrap());
            assert_eq!(a.user_id.as_ref(), ctx.user_id());
            assert_ne!(a.session_id, b.session_id, "each has a conversation of its own");
            assert_ne!(&a.session_id, ctx.session_id());
            assert_eq!(a.usage.output_tokens + b.usage.output_tokens, 3);
            ToolOutcome::ok(format!("{} {}", a.output, b.output))
        }
    });
    let agent = coordinator_with(by_hand)
        .budget(budget(BudgetConfig::new().per_user_max_tokens(999)))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("alice"));
    let result = tenant.run("go").await.unwrap();
    assert_eq!(&*result.output, "one two three");
    assert_eq!(ledger(&tenant).await, (result.usage.input_tokens, result.usage.output_tokens));
    assert_children_are_bracketed(&tenant).await;
}
