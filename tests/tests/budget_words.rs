//! What a cap says when it is near and when it is reached: every cap of every entity, in events, audit and metrics.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Action, AdmittedCall, Agent, BudgetConfig, Cap, Caps, Delta, Done, Effect, Entity, EventKind, Model,
    ModelRequest, ModelStream, NanoUsd, Price, Refusal, Result, RunContext, StopReason, ToolCall,
    ToolOutcome, Usage, UserAgent, Window,
};
use loomflow_local::{InMemoryAuditLog, StandardBudget};
use loomflow_tests::double::{ModelDouble, Step};
use loomflow_tests::fixture::{Counts, FnTool, RuntimeClock, entries, user};
use tokio::sync::Notify;

const ENTITIES: [Entity; 3] = [Entity::Global, Entity::User, Entity::Run];
const CAPS: [Cap; 5] = [Cap::Tokens, Cap::InputTokens, Cap::OutputTokens, Cap::Cost, Cap::WallClock];

/// Asks for `look` for ever; each turn is ten tokens in, ten out, at a nano-dollar each.
#[derive(Debug)]
struct Looks;
#[async_trait]
impl Model for Looks {
    fn name(&self) -> &str {
        "looks"
    }
    fn price(&self) -> Option<Price> {
        Some(Price::per_token(1_000, 1_000))
    }
    fn count_tokens(&self, _: &ModelRequest) -> u64 {
        10
    }
    async fn stream(&self, _: &RunContext, _: AdmittedCall) -> Result<ModelStream> {
        let call = Delta::ToolCall(ToolCall::new("c", "look", "{}"));
        let done = Delta::Done(Done::new(Usage::new(10, 10), StopReason::ToolUse));
        Ok(Box::pin(futures_util::stream::iter([Ok(call), Ok(done)])))
    }
}

/// A cap that is five turns' worth, or a hundred seconds.
fn capped(entity: Entity, cap: Cap) -> (BudgetConfig, u64) {
    let mut caps = Caps::default();
    let limit = match cap {
        Cap::Tokens => *caps.tokens.insert(100),
        Cap::InputTokens => *caps.input_tokens.insert(50),
        Cap::OutputTokens => *caps.output_tokens.insert(50),
        Cap::Cost => caps.cost.insert(NanoUsd(100)).0,
        Cap::WallClock => {
            u64::try_from(caps.wall_clock.insert(Duration::from_secs(100)).as_micros()).unwrap()
        }
        _ => unreachable!("there are five"),
    };
    let mut config = BudgetConfig::new().window(Window::Day);
    *match entity {
        Entity::Global => &mut config.global,
        Entity::User => &mut config.per_user,
        _ => &mut config.per_run,
    } = caps;
    (config, limit)
}

fn agent(config: BudgetConfig, counts: &Arc<Counts>, run_timeout: u64) -> UserAgent {
    let clock = RuntimeClock::start();
    let look = FnTool::new("look", Effect::Read, |_, _| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        ToolOutcome::ok("seen")
    });
    let agent = Agent::builder("x")
        .model(Looks)
        .tool(look)
        .clock(clock)
        .budget(StandardBudget::new(config).unwrap().with_clock(Arc::new(clock)))
        .audit_log(InMemoryAuditLog::new())
        .telemetry(counts.clone())
        .max_output_tokens(10)
        .max_turns(20)
        .run_timeout(Duration::from_secs(run_timeout))
        .build()
        .unwrap();
    agent.for_user(user("alice"))
}

/// What one run says about caps: how often each was warned of, and who refused.
async fn said(tenant: &UserAgent) -> (Vec<(Entity, &'static str, u64)>, Option<Refusal>) {
    let (mut warned, mut refused) = (Vec::new(), None);
    let Ok(mut events) = tenant.stream("go").await else { return (warned, None) };
    while let Some(event) = events.next().await {
        match event.kind {
            EventKind::BudgetWarning(warning) => warned.push((warning.entity, warning.cap, warning.used)),
            EventKind::BudgetExceeded(refusal) => refused = Some(*refusal),
            _ => {}
        }
    }
    (warned, refused)
}

#[tokio::test(start_paused = true)]
async fn every_cap_of_every_entity_warns_once_and_refuses_in_full() {
    for entity in ENTITIES {
        for cap in CAPS {
            let (config, limit) = capped(entity, cap);
            let key = cap.config_key(entity);
            let counts = Arc::new(Counts::default());
            let tenant = agent(config, &counts, if cap == Cap::WallClock { 20 } else { 3_600 });
            let (mut warned, mut refused) = (Vec::new(), None);
            // Wall clock is used up by several runs; a run's own is cut off and never refused, unless there is none.
            let mut runs = 0;
            while refused.is_none() && runs < if entity == Entity::Run { 1 } else { 10 } {
                let (more, refusal) = said(&tenant).await;
                warned.extend(more);
                refused = refusal;
                runs += 1;
            }
            if (entity, cap) == (Entity::Run, Cap::WallClock) {
                let mut config = BudgetConfig::new();
                config.per_run.wall_clock = Some(Duration::ZERO);
                refused = said(&agent(config, &counts, 20)).await.1;
                assert_eq!(refused.as_ref().unwrap().limit, 0);
                let mut config = BudgetConfig::new();
                config.per_run.wall_clock = Some(Duration::from_secs(100));
                let tenant = agent(config, &counts, 90);
                warned = said(&tenant).await.0;
            }
            assert_eq!(warned.len(), 1, "{key} warned {warned:?}");
            let (whose, named, used) = warned[0];
            assert_eq!((whose, named), (entity, key));
            assert!(used * 10 >= limit * 8, "{key}: {used} of {limit}");
            assert_eq!(counts.with("loom.budget.warnings", ("cap", key)), 1, "{key}");

            let refusal = refused.unwrap_or_else(|| panic!("{key} never refused"));
            assert_eq!((refusal.entity, refusal.cap), (entity, key));
            assert_eq!(counts.with("loom.budget.refused", ("cap", key)), 1, "{key}");
            let text = refusal.to_string();
            let who = match entity {
                Entity::Global => "all users together",
                Entity::User => "this user",
                _ => "this run",
            };
            let window = if entity == Entity::Run { "window run" } else { "window day" };
            let reset = if entity == Entity::Run { "does not reset" } else { "resets at 2026-" };
            let numbers = format!(
                "limit {}, used {}, held by calls in flight {}",
                refusal.limit, refusal.used, refusal.held
            );
            for part in [key, who, window, reset, &numbers] {
                assert!(text.contains(part), "{key}: {text:?} does not say {part:?}");
            }
            if (entity, cap) == (Entity::Run, Cap::WallClock) {
                continue;
            }
            assert_eq!((refusal.limit, refusal.used), (limit, limit), "{key} was used in full");
            let log = entries(&tenant).await;
            let of =
                |action| log.iter().filter(move |entry| entry.event.action == action).collect::<Vec<_>>();
            let warnings = of(Action::BudgetWarning);
            assert_eq!(warnings.len(), 1, "{key}");
            let refusals = of(Action::BudgetRefused);
            assert_eq!(refusals.len(), 1, "{key}");
            for entry in [warnings[0], refusals[0]] {
                let payload: serde_json::Value = serde_json::from_str(entry.event.payload.get()).unwrap();
                assert_eq!(payload["cap"], key);
                assert_eq!(payload["entity"], entity.as_str());
                assert_eq!(payload["limit"], limit);
            }
            let payload = refusals[0].event.payload.get();
            assert_eq!(payload.contains("\"resets_at\":\"2026-"), entity != Entity::Run, "{payload}");
        }
    }
}

#[tokio::test]
async fn a_refusal_says_what_calls_in_flight_hold() {
    let gate = Arc::new(Notify::new());
    let opened = gate.clone();
    let model = ModelDouble::new(move |_, _| Ok(vec![Step::Wait(opened.clone()), Step::Say("ok".into())]));
    let ledger = StandardBudget::new(BudgetConfig::new().per_user_max_tokens(20)).unwrap();
    let agent =
        Agent::builder("x").model(model.clone()).budget(ledger).max_output_tokens(18).build().unwrap();
    let tenant = agent.for_user(user("a"));
    let first = tokio::spawn(IntoFuture::into_future(tenant.run("go")));
    while model.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let error = tenant.run("go").await.unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!((refusal.used, refusal.held, refusal.limit, refusal.needed), (0, 20, 20, 3));
    assert!(error.to_string().contains("held by calls in flight 20"), "{error}");
    gate.notify_waiters();
    first.await.unwrap().unwrap();
}
