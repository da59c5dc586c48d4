//! Money: what is spent is counted, and what is capped is not overspent.

use super::*;

#[tokio::test]
async fn w01_an_exhausted_user_cannot_buy_an_answer_with_structured_output() {
    let model = ModelDouble::saying("{\"ok\": true}");
    let agent = Agent::builder("x")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(1)))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let tenant = agent.for_user(user("poor"));
    let schema = JsonSchema::new(serde_json::json!({"type": "object"})).unwrap();
    let error = tenant.run("give me JSON").output_schema(schema).output_retries(5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BudgetExceeded);
    assert_eq!(model.calls(), 0);
    assert_eq!(
        actions(&tenant).await,
        [Action::RunStarted, Action::BudgetRefused, Action::RunInterrupted],
        "it is an interruption, recorded once"
    );
}

#[tokio::test]
async fn w01_a_retry_of_structured_output_is_charged_and_can_be_refused() {
    let model = ModelDouble::new(|_, n| Ok(say(if n == 0 { "not json at all" } else { "{\"n\":1}" })));
    let agent = |cap| {
        Agent::builder("x")
            .model(model.clone())
            .budget(budget(BudgetConfig::new().per_user_max_tokens(cap)))
            .max_output_tokens(10)
            .build()
            .unwrap()
    };
    let schema = || JsonSchema::new(serde_json::json!({"type": "object", "required": ["n"]})).unwrap();
    let rich = agent(10_000).for_user(user("rich"));
    let result = rich.run("q").output_schema(schema()).await.unwrap();
    assert_eq!(result.parsed.unwrap()["n"], 1);
    assert_eq!(model.calls(), 2);
    let (input, output) = model.invoice();
    assert_eq!(rich.usage().await.unwrap().used.total_tokens(), input + output);

    let model = ModelDouble::new(|_, _| Ok(say("not json at all")));
    let poor =
        Agent::builder("x").model(model.clone()).budget(budget(BudgetConfig::new().per_user_max_tokens(40)));
    let poor = poor.max_output_tokens(10).build().unwrap();
    let result =
        poor.for_user(user("poor")).run("q").output_schema(schema()).output_retries(9).await.unwrap();
    assert_eq!(result.status, RunStatus::Interrupted);
    assert_eq!(result.reason.as_deref(), Some("budget:per_user_max_tokens"));
    assert_eq!(result.refusal.unwrap().cap, "per_user_max_tokens");
    let used = poor.for_user(user("poor")).usage().await.unwrap().used.total_tokens();
    assert!(used <= 40, "{used}");
}

/// Fifty runs of one capped user are in flight together: the double holds every call until each of the fifty either
/// reached it or was refused. What was granted is then spent to the last token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w02_fifty_runs_in_flight_on_one_capped_user_never_overspend() {
    const RUNS: u64 = 50;
    const CAP: u64 = 1_000;
    let settled = Arc::new(AtomicU64::new(0));
    let gate = Arc::new(Notify::new());
    let (at_the_double, opened) = (settled.clone(), gate.clone());
    let model = ModelDouble::new(move |request: &ModelRequest, _| {
        at_the_double.fetch_add(1, Ordering::SeqCst);
        let mut steps = vec![Step::Wait(opened.clone())];
        steps.extend((0..request.max_output_tokens).map(|_| Step::Say("word ".into())));
        Ok(steps)
    });
    let agent = Agent::builder("three word prompt")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(CAP).window(Window::Day)))
        .audit_log(InMemoryAuditLog::new())
        .max_output_tokens(100)
        .build()
        .unwrap();
    let runs: Vec<_> = (0..RUNS)
        .map(|_| {
            let (tenant, settled) = (agent.for_user(user("capped")), settled.clone());
            tokio::spawn(async move {
                let ended = tenant.run("and two").await;
                if ended.is_err() {
                    settled.fetch_add(1, Ordering::SeqCst);
                }
                ended
            })
        })
        .collect();
    while settled.load(Ordering::SeqCst) < RUNS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let in_flight = model.calls();
    assert!(in_flight >= 9, "{in_flight} calls were held in flight together");
    // Every call that got through is at its gate, or about to be: keep opening it until all have passed.
    let mut answered = 0;
    let mut refused = 0;
    let opener = {
        let gate = gate.clone();
        tokio::spawn(async move {
            loop {
                gate.notify_waiters();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    for run in runs {
        match run.await.unwrap() {
            Ok(_) => answered += 1,
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::BudgetExceeded);
                let refusal = error.refusal().expect("a refusal says whose cap it was");
                assert_eq!(refusal.entity, Entity::User);
                assert_eq!(refusal.cap, "per_user_max_tokens");
                assert_eq!(refusal.window, "day");
                assert_eq!(refusal.limit, CAP);
                assert!(refusal.resets_at.is_some());
                assert!(error.to_string().contains("resets at"), "{error}");
            }
        }
    }
    opener.abort();
    assert_eq!(answered + refused, RUNS);
    let (input, output) = model.invoice();
    let usage = agent.for_user(user("capped")).usage().await.unwrap();
    assert_eq!(usage.used.total_tokens(), input + output, "the ledger is the invoice, to the token");
    assert!(input + output <= CAP, "{} spent of {CAP}", input + output);
    assert!(input + output > CAP - 110, "what was granted was used");
    assert_eq!((usage.held_tokens, usage.open_holds), (0, 0));
    assert_one_terminal_record_per_run(&agent.for_user(user("capped"))).await;
}

/// One call overshot freely: the cap was compared with the past, and the request said nothing about it.
#[tokio::test]
async fn w02_one_call_is_clamped_to_what_is_left() {
    let model = ModelDouble::new(|request: &ModelRequest, _| {
        Ok((0..request.max_output_tokens).map(|_| Step::Say("word ".into())).collect())
    });
    let builder = Agent::builder("one").model(model.clone()).max_output_tokens(1_000_000);
    let agent = builder.budget(budget(BudgetConfig::new().per_user_max_tokens(50))).build().unwrap();
    let tenant = agent.for_user(user("a"));
    tenant.run("two").await.unwrap();
    assert_eq!(model.requests()[0].max_output_tokens, 48);
    assert_eq!(tenant.usage().await.unwrap().used.total_tokens(), 50);
}

#[tokio::test]
async fn w03_a_stream_dropped_after_six_words_is_charged_for_what_was_counted() {
    // The seventh word is a long time coming, so the reader leaves in the middle of the reply and not after it.
    let model = ModelDouble::new(|_, _| {
        let mut steps = say("one two three four five six ");
        steps.push(Step::Hang);
        Ok(steps)
    });
    let agent = Agent::builder("two words")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(10_000)))
        .audit_log(InMemoryAuditLog::new())
        .build()
        .unwrap();
    let tenant = agent.for_user(user("impatient"));
    let mut events = tenant.stream("hello there you").await.unwrap();
    let mut words = 0;
    while let Some(event) = events.next().await {
        words += usize::from(matches!(event.kind, EventKind::TextDelta { .. }));
        if words == 6 {
            break;
        }
    }
    drop(events);
    agent.settled().await.unwrap();
    let usage = tenant.usage().await.unwrap();
    let (input, output) = model.invoice();
    assert_eq!(usage.used.input_tokens, 5);
    assert_eq!(usage.used.output_tokens, 6);
    assert_eq!((usage.used.input_tokens, usage.used.output_tokens), (input, output));
    assert_eq!((usage.held_tokens, usage.open_holds), (0, 0), "the hold is gone");
    assert_eq!(usage.estimated_tokens, input + output, "and marked as estimated");
    assert_eq!(actions(&tenant).await.last(), Some(&Action::RunCancelled));
    assert_one_terminal_record_per_run(&tenant).await;
}

#[tokio::test(start_paused = true)]
async fn w03_a_deadline_charges_what_was_counted_and_ends_as_timed_out() {
    let model = ModelDouble::new(|_, _| Ok(vec![Step::Say("one two ".into()), Step::Hang]));
    let agent = Agent::builder("two words")
        .model(model.clone())
        .budget(budget(BudgetConfig::new().per_user_max_tokens(10_000)))
        .audit_log(InMemoryAuditLog::new())
        .run_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let tenant = agent.for_user(user("slow"));
    let error = tenant.run("hello").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    agent.settled().await.unwrap();
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.used.input_tokens, usage.used.output_tokens), (3, 2));
    assert_eq!(usage.open_holds, 0);
    assert_eq!(actions(&tenant).await.last(), Some(&Action::RunTimedOut));
    assert_one_terminal_record_per_run(&tenant).await;
}

/// Ten times as many throw-away users as the table holds: a capped user is still capped, and a full spill refuses a new
/// user with a clear error instead of giving somebody's quota away.
#[tokio::test]
async fn w06_flooding_with_throw_away_users_resets_nobodys_quota() {
    const MAX: usize = 200;
    let model = ModelDouble::saying("ok");
    let config = BudgetConfig::new().per_user_max_tokens(6).window(Window::Day).max_users(MAX);
    let ledger = budget(config.max_spilled_users(20 * MAX));
    let agent = Agent::builder("x").model(model.clone()).budget(ledger).memory(InMemoryMemory::new());
    let agent = agent.max_output_tokens(2).session_history(0).build().unwrap();
    let capped = agent.for_user(user("capped"));
    while capped.run("go").await.is_ok() {}
    let spent = capped.usage().await.unwrap().used.total_tokens();
    for n in 0..10 * MAX {
        agent.for_user(user(&format!("throwaway_{n}"))).run("go").await.unwrap();
    }
    let error = capped.run("go").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BudgetExceeded);
    assert_eq!(capped.usage().await.unwrap().used.total_tokens(), spent);

    let config =
        BudgetConfig::new().per_user_max_tokens(6).window(Window::Day).max_users(64).max_spilled_users(64);
    let agent = Agent::builder("x").model(model).budget(budget(config)).max_output_tokens(2).build().unwrap();
    let mut refused = None;
    for n in 0..10_000 {
        if let Err(error) = agent.for_user(user(&format!("u{n}"))).run("go").await {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("a table that is full refuses somebody new");
    assert_eq!(error.kind(), ErrorKind::Capacity);
    assert!(error.to_string().contains("max_spilled_users"), "{error}");
    let first = agent.for_user(user("u0"));
    assert!(first.usage().await.unwrap().used.total_tokens() > 0, "nobody's count was given away");
}

/// A cap had no window, so who hit it was blocked until silent for a day, and every attempt prolonged that.
#[tokio::test(start_paused = true)]
async fn w06_a_window_ends_by_itself_and_attempts_do_not_prolong_it() {
    let clock = RuntimeClock::start();
    let config = BudgetConfig::new().per_user_max_tokens(4).window(Window::Hour);
    let ledger = StandardBudget::new(config).unwrap().with_clock(Arc::new(clock));
    let agent = Agent::builder("x").model(ModelDouble::saying("ok")).budget(ledger).clock(clock);
    let agent = agent.max_output_tokens(2).build().unwrap();
    let tenant = agent.for_user(user("a"));
    tenant.run("go").await.unwrap();
    let refusal = tenant.run("go").await.unwrap_err().refusal().cloned().unwrap();
    let resets_at = refusal.resets_at.unwrap();
    while clock.now() < resets_at {
        let refused = tenant.run("again").await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().resets_at, Some(resets_at));
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    tenant.run("go").await.unwrap();
}

/// Five blocked requests made five model calls and left five empty episodes behind.
#[tokio::test]
async fn w07_a_refused_run_stores_no_episode_and_makes_no_model_call() {
    let model = ModelDouble::new(|_, n| Ok(if n == 0 { call("look", "{}") } else { say("never") }));
    let look = FnTool::new("look", Effect::Read, |_, _| async { ToolOutcome::ok("seen") });
    let ledger = budget(BudgetConfig::new().per_user_max_tokens(8));
    let agent = Agent::builder("x").model(model.clone()).tool(look).memory(InMemoryMemory::new());
    let agent = agent.budget(ledger).max_output_tokens(5).audit_log(InMemoryAuditLog::new()).build().unwrap();
    let tenant = agent.for_user(user("poor"));
    // The first is refused between its turns; the others before anything.
    let first = tenant.run("one two three").session("s").await.unwrap();
    assert_eq!(
        (first.status, first.reason.as_deref()),
        (RunStatus::Interrupted, Some("budget:per_user_max_tokens"))
    );
    for _ in 0..5 {
        let error = tenant.run("one two three four five").session("s").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BudgetExceeded);
    }
    agent.settled().await.unwrap();
    assert_eq!(model.calls(), 1, "the one that was granted");
    let memory = tenant.memory().await.unwrap();
    assert_eq!(memory.profile().await.unwrap().episodes, 0);
    assert!(
        memory.history(&SessionId::new("s").unwrap(), HistoryLimit::messages(10)).await.unwrap().is_empty()
    );
    assert_one_terminal_record_per_run(&tenant).await;
}

/// A model that reports what the test says it used.
#[derive(Debug)]
struct Reports {
    usage: Usage,
    price: Option<Price>,
    fails: AtomicU64,
    calls: AtomicU64,
}
impl Reports {
    fn new(usage: Usage, price: Option<Price>) -> Self {
        Self { usage, price, fails: AtomicU64::new(0), calls: AtomicU64::new(0) }
    }
}
#[async_trait]
impl Model for Reports {
    fn name(&self) -> &str {
        "reports"
    }
    fn price(&self) -> Option<Price> {
        self.price
    }
    fn count_tokens(&self, _: &ModelRequest) -> u64 {
        self.usage.input_tokens
    }
    async fn stream(&self, _: &RunContext, _: AdmittedCall) -> Result<ModelStream> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Error::new(ErrorKind::Transport, "the connection broke"));
        }
        let deltas = [Delta::Text("ok".into()), Delta::Done(Done::new(self.usage, StopReason::End))];
        Ok(Box::pin(futures_util::stream::iter(deltas.map(Ok))))
    }
}

/// 150,000 tokens from the provider's cache counted as none.
#[tokio::test]
async fn w28_cached_tokens_count_as_what_they_are() {
    let model = Reports::new(Usage::new(150_000, 1).with_cache(149_000, 900), None);
    let ledger = budget(BudgetConfig::new().per_user_max_input_tokens(200_000));
    let agent = Agent::builder("x").model(model).budget(ledger).max_output_tokens(1).build().unwrap();
    let tenant = agent.for_user(user("a"));
    tenant.run("go").await.unwrap();
    let used = tenant.usage().await.unwrap().used;
    assert_eq!(
        (used.input_tokens, used.cached_input_tokens, used.cache_write_tokens),
        (150_000, 149_000, 900)
    );
    let error = tenant.run("go").await.unwrap_err();
    assert_eq!(error.refusal().unwrap().cap, "per_user_max_input_tokens");
}

/// Dollars were floats: ten times ten cents were not one dollar.
#[tokio::test]
async fn w28_money_is_exact() {
    // A token is a tenth of a cent, so a call of 99 and 1 is ten cents.
    let model = Reports::new(Usage::new(99, 1), Some(Price::per_token(1_000_000_000, 1_000_000_000)));
    let ledger = budget(BudgetConfig::new().per_user_max_cost(NanoUsd::from_dollars(1)));
    let agent = Agent::builder("x").model(model).budget(ledger).max_output_tokens(1).build().unwrap();
    let tenant = agent.for_user(user("a"));
    for n in 1..=10_u64 {
        tenant.run("go").await.unwrap();
        assert_eq!(tenant.usage().await.unwrap().used.cost_usd, NanoUsd(n * 100_000_000));
    }
    let refusal = tenant.run("go").await.unwrap_err().refusal().cloned().unwrap();
    assert_eq!(
        (refusal.cap, refusal.used, refusal.limit),
        ("per_user_max_cost_usd", 1_000_000_000, 1_000_000_000)
    );
}

/// Attempts that failed were not charged.
#[tokio::test(start_paused = true)]
async fn w28_a_failed_attempt_that_may_have_been_billed_is_charged() {
    let model = Reports::new(Usage::new(7, 1), None);
    model.fails.store(2, Ordering::SeqCst);
    let ledger = budget(BudgetConfig::new().per_user_max_tokens(1_000));
    let retry = RetryPolicy::new(3, Duration::from_secs(1), Duration::from_secs(9));
    let agent = Agent::builder("x").model(model).budget(ledger).retry(retry).build().unwrap();
    let tenant = agent.for_user(user("a"));
    tenant.run("go").await.unwrap();
    let usage = tenant.usage().await.unwrap();
    assert_eq!((usage.used.input_tokens, usage.estimated_tokens), (21, 14), "each attempt sent the prompt");
}

/// Wall clock was measured by the clock on the wall, which can be set.
#[tokio::test(start_paused = true)]
async fn w28_wall_clock_is_monotonic() {
    #[derive(Debug)]
    struct SetBack(Mutex<i64>);
    impl Clock for SetBack {
        fn now(&self) -> Timestamp {
            let mut now = self.0.lock();
            *now -= 3_600_000_000;
            Timestamp::from_micros(*now)
        }
    }
    let slow = FnTool::new("look", Effect::Read, |_, _| async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        ToolOutcome::ok("seen")
    });
    let model = ModelDouble::new(|_, n| Ok(if n == 0 { call("look", "{}") } else { say("bye") }));
    let ledger = budget(BudgetConfig::new().per_user_max_wall_clock(Duration::from_secs(3_600)));
    let clock = SetBack(Mutex::new(1_795_000_000_000_000));
    let agent = Agent::builder("x").model(model).tool(slow).budget(ledger).clock(clock).build().unwrap();
    let tenant = agent.for_user(user("a"));
    tenant.run("go").await.unwrap();
    agent.settled().await.unwrap();
    let used = tenant.usage().await.unwrap().wall_clock;
    assert!((Duration::from_secs(7)..Duration::from_secs(8)).contains(&used), "{used:?}");
}

/// A model without a price cost nothing, so that a cost cap never fired.
#[tokio::test]
async fn w28_an_unknown_price_under_a_cost_cap_is_refused_not_free() {
    let model = Arc::new(Reports::new(Usage::new(1, 1), None));
    let ledger = budget(BudgetConfig::new().per_user_max_cost(NanoUsd::from_dollars(1)));
    let agent = Agent::builder("x").model(model.clone()).budget(ledger).build().unwrap();
    let error = agent.for_user(user("a")).run("go").await.unwrap_err();
    assert!(error.to_string().contains("price"), "{error}");
    assert_eq!(model.calls.load(Ordering::SeqCst), 0);
}
