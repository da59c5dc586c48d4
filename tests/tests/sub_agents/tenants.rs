//! Many tenants in one tree of agents at once: each sees, spends and remembers its own.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use loomflow_core::{Agent, BudgetConfig, Effect, RunContext, ToolOutcome, UserAgent};
use loomflow_local::{InMemoryMemory, StandardBudget, StandardPermissions};
use loomflow_tests::double::{ModelDouble, Step, say};
use loomflow_tests::fixture::{FnTool, assert_one_terminal_record_per_run, entries, user};

use super::{assert_children_are_bracketed, children, conducting};

const TENANTS: usize = 24;
const RUNS: usize = 3;

fn canary(tenant: usize) -> String {
    format!("canary-{tenant}-of-somebody")
}

/// Which tenants' canaries a text holds.
fn canaries(text: &str) -> Vec<usize> {
    (0..TENANTS).filter(|n| text.contains(&canary(*n))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_of_agents_that_all_share_keeps_them_apart() {
    let memory = Arc::new(InMemoryMemory::new());
    // The child repeats all that it is shown of the past, and what it is asked.
    let child = ModelDouble::new(|request, _| {
        let text: Vec<&str> = request.messages.iter().map(|m| &*m.text).collect();
        Ok(say(&text.join(" ")))
    });
    let worker = Agent::builder("work").model(child.clone()).memory(memory.clone()).build().unwrap();
    let delegates =
        FnTool::new("research", Effect::Read, move |ctx: RunContext, arguments: serde_json::Value| {
            let worker = worker.clone();
            async move {
                let task = arguments["task"].as_str().unwrap_or_default().to_owned();
                let (a, b) = futures_util::join!(
                    IntoFuture::into_future(ctx.delegate(&worker, task.clone())),
                    IntoFuture::into_future(ctx.delegate(&worker, task)),
                );
                let (a, b) = (a.unwrap(), b.unwrap());
                assert_eq!((a.user_id.as_ref(), b.user_id.as_ref()), (ctx.user_id(), ctx.user_id()));
                ToolOutcome::ok(format!("{} {}", a.output, b.output))
            }
        });
    let boss = ModelDouble::new(|request, _| {
        let last = request.messages.last().unwrap();
        Ok(if last.tool_call_id.is_some() {
            say(&last.text)
        } else {
            vec![Step::Call("research", serde_json::json!({"task": &*last.text}).to_string())]
        })
    });
    let agent = conducting(boss.clone(), delegates)
        .permissions(StandardPermissions::bypass())
        .memory(memory)
        .budget(StandardBudget::new(BudgetConfig::new().per_user_max_tokens(10_000_000)).unwrap())
        .build()
        .unwrap();
    let tenant =
        |n: usize| if n == 0 { agent.anonymous() } else { agent.for_user(user(&format!("user {n}"))) };
    let runs = (0..TENANTS * RUNS).map(|n| {
        let tenant = tenant(n % TENANTS);
        async move {
            let result = tenant.run(format!("ask {n} for {}", canary(n % TENANTS))).await.unwrap();
            assert_eq!(canaries(&result.output), [n % TENANTS]);
            result.usage.total_tokens()
        }
    });
    let used: u64 = stream::iter(runs).buffer_unordered(12).collect::<Vec<_>>().await.into_iter().sum();
    agent.settled().await.unwrap();

    for request in child.requests().iter().chain(&boss.requests()) {
        let text: String = request.messages.iter().map(|m| &*m.text).collect();
        assert_eq!(canaries(&text).len(), 1, "one tenant's prompt holds one tenant's data");
    }
    let mut spent = 0;
    for n in 0..TENANTS {
        let tenant: UserAgent = tenant(n);
        let mine = children(&tenant).await;
        assert_eq!(mine.len(), 2 * RUNS);
        for entry in entries(&tenant).await {
            assert!(canaries(entry.event.payload.get()).iter().all(|other| *other == n));
        }
        let memory = tenant.memory().await.unwrap();
        assert_eq!(
            memory.profile().await.unwrap().episodes,
            3 * RUNS as u64,
            "each run's, and its children's"
        );
        let mut items = std::pin::pin!(tenant.export().await.unwrap());
        while let Some(item) = items.next().await {
            assert!(canaries(&format!("{:?}", item.unwrap())).iter().all(|other| *other == n));
        }
        assert_children_are_bracketed(&tenant).await;
        assert_one_terminal_record_per_run(&tenant).await;
        let usage = tenant.usage().await.unwrap();
        assert_eq!(usage.open_holds, 0);
        spent += usage.used.total_tokens();
    }
    let billed = [child.invoice(), boss.invoice()].iter().map(|(i, o)| i + o).sum::<u64>();
    assert_eq!((spent, used), (billed, billed), "the ledger, the results and the invoice are one number");
}
