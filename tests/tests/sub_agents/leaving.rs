//! A parent whose caller leaves at any moment: everything below has ended, is paid and on record before the parent is.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::poll;
use loomflow_core::{
    Action, Agent, AuditEntry, AuditEvent, AuditLog, AuditQuery, AuditReceipt, AuditVerification,
    BudgetConfig, Effect, Erase, Erased, Error, ErrorKind, ExportStream, Owned, Result, RunContext, Scope,
    TenantData, ToolOutcome, UserAgent,
};
use loomflow_local::{InMemoryAuditLog, StandardBudget, StandardPermissions};
use loomflow_tests::double::{ModelDouble, Step};
use loomflow_tests::fixture::{FnTool, actions, assert_one_terminal_record_per_run, user};
use tokio::task::yield_now;

use super::{asks, assert_children_are_bracketed, children, conducting, research};

/// An audit log behind a network: an entry is on its way for a while, and written some time before its receipt is there. One
/// action may fail to arrive.
#[derive(Debug, Default)]
struct FarAudit(InMemoryAuditLog, Option<Action>);

#[async_trait]
impl TenantData for FarAudit {
    fn store_name(&self) -> &str {
        "audit:far"
    }
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.0.export(scope).await
    }
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.0.forget(scope, what).await
    }
}
#[async_trait]
impl AuditLog for FarAudit {
    async fn append(&self, scope: &Scope, event: AuditEvent) -> Result<AuditReceipt> {
        yield_now().await;
        if self.1 == Some(event.action) {
            return Err(Error::new(ErrorKind::Transport, "the entry did not arrive"));
        }
        let receipt = self.0.append(scope, event).await;
        yield_now().await;
        receipt
    }
    async fn query(&self, scope: &Scope, query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>> {
        self.0.query(scope, query).await
    }
    async fn verify(&self) -> Result<AuditVerification> {
        self.0.verify().await
    }
}

struct Tree {
    agent: Agent,
    models: [Arc<ModelDouble>; 3],
}

/// Three levels; the first has two children at once, each of which has one. With `detached`, the lowest level is left to a task
/// by the tool that begins it.
fn tree(detached: bool) -> Tree {
    let low = ModelDouble::saying("one two three");
    let lowest = Agent::builder("low").model(low.clone()).build().unwrap();
    let (mid, top) = (asks("research", "{\"task\": \"t\"}", 1), asks("research", "{\"task\": \"u v\"}", 2));
    let by_hand = FnTool::new("research", Effect::Write, move |ctx: RunContext, _| {
        let lowest = lowest.clone();
        async move {
            let child = IntoFuture::into_future(async move { ctx.delegate(&lowest, "w").await });
            yield_now().await;
            if detached {
                let left = tokio::spawn(child);
                for _ in 0..12 {
                    yield_now().await;
                }
                drop(left);
                return ToolOutcome::ok("left it");
            }
            match child.await {
                Ok(result) => ToolOutcome::ok(result.output),
                Err(error) => error.into(),
            }
        }
    });
    let middle =
        Agent::builder("mid").model(mid.clone()).tool(by_hand).permissions(StandardPermissions::bypass());
    let limits = BudgetConfig::new().per_user_max_tokens(9_999).per_run_max_tokens(9_999);
    let agent = conducting(top.clone(), research(&middle.build().unwrap()))
        .audit_log(FarAudit::default())
        .budget(StandardBudget::new(limits).unwrap())
        .build()
        .unwrap();
    Tree { agent, models: [low, mid, top] }
}

/// Drops a run after `polls` polls and waits for what it left. Whether it ended before.
async fn leaves_after(polls: usize, agent: &Agent, tenant: &UserAgent) -> bool {
    let mut run = Box::pin(IntoFuture::into_future(tenant.run("hi")));
    let mut ended = false;
    for _ in 0..polls {
        if poll!(&mut run).is_ready() {
            ended = true;
            break;
        }
        // Whatever was left to a task goes on in between.
        yield_now().await;
    }
    drop(run);
    for _ in 0..60 {
        yield_now().await;
    }
    agent.settled().await.unwrap();
    ended
}

async fn check(tree: &Tree, tenant: &UserAgent, what: &str) {
    assert_one_terminal_record_per_run(tenant).await;
    assert_children_are_bracketed(tenant).await;
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.open_holds, usage.held_tokens), (0, 0), "{what}");
    let billed = tree.models.iter().map(|m| m.invoice()).fold((0, 0), |(i, o), (a, b)| (i + a, o + b));
    assert_eq!(
        (usage.used.input_tokens, usage.used.output_tokens),
        billed,
        "{what}: the ledger is the invoice"
    );
    let log = super::entries(tenant).await;
    if let Some(root) = log.iter().rev().find(|e| e.event.action.is_terminal()) {
        let said = super::payload(root);
        assert_eq!(
            (said["input_tokens"].as_u64(), said["output_tokens"].as_u64()),
            (Some(billed.0), Some(billed.1)),
            "{what}: the last record is the root's, and it knows of everything"
        );
    }
}

#[tokio::test]
async fn a_tree_dropped_at_any_poll_ends_from_below() {
    let (mut in_the_middle, mut seen) = (0, std::collections::BTreeSet::new());
    for polls in 0.. {
        let tree = tree(false);
        let tenant = tree.agent.for_user(user("a"));
        let ended = leaves_after(polls, &tree.agent, &tenant).await;
        check(&tree, &tenant, &format!("after {polls} polls")).await;
        let begun = children(&tenant).await.len();
        seen.insert(begun);
        in_the_middle += usize::from(begun > 0);
        if ended {
            assert_eq!(begun, 4, "two children, and one of each");
            assert!(in_the_middle > 20, "{in_the_middle} runs were dropped in the middle of a child");
            assert!(seen.len() >= 3, "{seen:?}");
            return;
        }
    }
}

#[tokio::test]
async fn a_tree_with_children_left_to_tasks_ends_from_below_all_the_same() {
    for polls in 0.. {
        let tree = tree(true);
        let tenant = tree.agent.for_user(user("a"));
        let ended = leaves_after(polls, &tree.agent, &tenant).await;
        check(&tree, &tenant, &format!("after {polls} polls")).await;
        if ended {
            assert_eq!(children(&tenant).await.len(), 4);
            return;
        }
    }
}

/// A run that is given up while its beginning is on its way to the log has both records, or neither.
#[tokio::test]
async fn a_run_given_up_while_its_beginning_is_recorded_has_both_records_or_none() {
    let (mut none, mut both) = (0, 0);
    for polls in 0.. {
        let agent = Agent::builder("x").model(ModelDouble::new(|_, _| Ok(vec![Step::Hang])));
        let agent = agent.audit_log(FarAudit::default()).build().unwrap();
        let tenant = agent.for_user(user("a"));
        leaves_after(polls, &agent, &tenant).await;
        let log = actions(&tenant).await;
        assert_one_terminal_record_per_run(&tenant).await;
        if log.is_empty() {
            none += 1;
        } else {
            assert_eq!(log[0], Action::RunStarted, "after {polls} polls: {log:?}");
            both += 1;
        }
        if both == 8 {
            assert!(none > 0);
            return;
        }
    }
}

/// What could not be begun on record is not ended on record: neither a run nor a call.
#[tokio::test]
async fn a_beginning_that_does_not_arrive_has_no_end() {
    for (lost, left) in [(Action::RunStarted, 0), (Action::ToolIntent, 1)] {
        let look = FnTool::new("look", Effect::Write, |_, _| async { ToolOutcome::ok("seen") });
        let agent = Agent::builder("x").model(asks("look", "{}", 1)).tool(look);
        let agent = agent.permissions(StandardPermissions::bypass());
        let agent = agent.audit_log(FarAudit(InMemoryAuditLog::new(), Some(lost))).build().unwrap();
        let tenant = agent.for_user(user("a"));
        assert_eq!(tenant.run("hi").await.unwrap_err().kind(), ErrorKind::Transport);
        agent.settled().await.unwrap();
        let log = actions(&tenant).await;
        assert!(!log.contains(&Action::ToolResult), "{log:?}");
        assert_eq!(log.iter().filter(|action| action.is_terminal()).count(), left, "{log:?}");
    }
}
