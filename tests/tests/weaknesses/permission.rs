//! Identity and permission: nobody acts in another's name, and nothing runs that was not allowed.

use super::*;

/// `{"user_id": 1}` and `{"user_id": 2}` both became the anonymous tenant, and the second was shown what the first had said.
#[tokio::test]
async fn w04_what_is_no_user_id_is_refused_and_never_anonymous() {
    let sentinel = format!("__{}_anon_user__", "jeeves");
    for not_an_id in
        ["1", "2", "null", "true", "[]", "{}", "1.5", "\"\"", "\" \"", "\"a\\u0000\"", "[\"alice\"]"]
    {
        assert!(serde_json::from_str::<UserId>(not_an_id).is_err(), "{not_an_id}");
        let identity = format!("{{\"user\":{not_an_id}}}");
        assert!(serde_json::from_str::<Identity>(&identity).is_err(), "{identity}");
        assert!(serde_json::from_str::<Identity>(not_an_id).is_err(), "{not_an_id}");
    }
    for bad in ["", " ", " alice", "alice\n", &sentinel, &"x".repeat(257)] {
        assert_eq!(UserId::new(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
    }
    // Numbers as text are users of their own, and one session name between them is two conversations.
    let model = ModelDouble::saying("noted");
    let agent = Agent::builder("x").model(model.clone()).memory(InMemoryMemory::new()).build().unwrap();
    for (tenant, said) in [("1", "my PIN is 4711"), ("2", "what is my PIN?"), ("nobody", "and mine?")] {
        let tenant = if tenant == "nobody" { agent.anonymous() } else { agent.for_user(user(tenant)) };
        tenant.run(said).session("s").await.unwrap();
    }
    for request in &model.requests()[1..] {
        assert!(request.messages.iter().all(|m| !m.text.contains("4711")), "{request:?}");
    }
}

/// Alice and Bob were both in session "chat", and the approval for Bob released Alice's payment.
#[tokio::test]
async fn w08_an_approval_in_one_session_name_releases_nobody_elses_call() {
    let (builder, paid) = paying();
    let agent = builder
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(CallbackApprovals::new(|_, _| async { Ok(Notified::Pending) }))
        .approvers([user("boss")])
        .build()
        .unwrap();
    let boss = agent.for_user(user("boss"));
    let start = |name: &str| {
        let run = IntoFuture::into_future(agent.for_user(user(name)).run("pay").session("chat"));
        tokio::spawn(run)
    };
    let (alice, bob) = (start("alice"), start("bob"));
    let asked = loop {
        let asked = boss.approvals().await.unwrap();
        if asked.len() == 2 {
            break asked;
        }
        tokio::task::yield_now().await;
    };
    let mut of_bob = None;
    let mut of_alice = None;
    for approval in asked {
        let id = approval.request.id;
        let bobs = agent.for_user(user("bob")).approvals().await.unwrap().iter().any(|a| a.request.id == id);
        *(if bobs { &mut of_bob } else { &mut of_alice }) = Some(id);
    }
    let (of_bob, of_alice) = (of_bob.unwrap(), of_alice.unwrap());
    // Nobody decides by guessing, and nobody decides their own.
    for (who, id, kind) in [
        ("bob", of_alice, ErrorKind::NotFound),
        ("alice", of_bob, ErrorKind::NotFound),
        ("alice", of_alice, ErrorKind::Denied),
        ("mallory", of_alice, ErrorKind::NotFound),
    ] {
        let error = agent.for_user(user(who)).decide(id, ApprovalDecision::Approve).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{who}");
    }
    boss.decide(of_bob, ApprovalDecision::Approve).await.unwrap();
    assert_eq!(bob.await.unwrap().unwrap().tool_calls[0].status, ToolStatus::Ok);
    assert!(!alice.is_finished());
    assert_eq!(*paid.lock(), ["bob 5"]);
    boss.decide(of_alice, ApprovalDecision::Deny { reason: "no".into() }).await.unwrap();
    assert_eq!(alice.await.unwrap().unwrap().tool_calls[0].status, ToolStatus::Denied);
    assert_eq!(*paid.lock(), ["bob 5"]);
}

/// A hook that asked was taken for one that allowed.
#[tokio::test]
async fn w10a_a_hook_that_asks_is_asked_about() {
    #[derive(Debug)]
    struct Asks;
    #[async_trait]
    impl PreToolHook for Asks {
        async fn before_tool(&self, _: &RunContext, _: &ToolCall, _: Effect) -> Result<Decision> {
            Ok(Decision::ask("mail goes out"))
        }
    }
    let (builder, paid) = paying();
    let agent = builder.permissions(StandardPermissions::bypass()).before_tool(Asks).build().unwrap();
    let result = agent.for_user(user("alice")).run("pay").await.unwrap();
    assert_eq!(result.tool_calls[0].status, ToolStatus::Denied);
    assert!(paid.lock().is_empty());
}

/// A policy and a budget that were built on the permissive ones were skipped by their type.
#[tokio::test]
async fn w10b_a_part_built_on_a_permissive_one_is_still_asked() {
    #[derive(Debug)]
    struct AllButPay(StandardPermissions);
    #[async_trait]
    impl Permissions for AllButPay {
        async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision> {
            if &*call.name == "pay" {
                Ok(Decision::deny("not pay"))
            } else {
                self.0.check(ctx, call, effect).await
            }
        }
    }
    for by_user in [false, true] {
        let (builder, paid) = paying();
        let policy = AllButPay(StandardPermissions::bypass());
        let agent = if by_user {
            builder.permissions(
                PerUserPermissions::new(StandardPermissions::bypass()).policy(user("alice"), policy),
            )
        } else {
            builder.permissions(policy)
        };
        let result = agent.build().unwrap().for_user(user("alice")).run("pay").await.unwrap();
        assert_eq!(result.tool_calls[0].status, ToolStatus::Denied);
        assert!(paid.lock().is_empty());
    }
}

/// Approving `ls` approved `rm -rf /`, because what was remembered was the tool's name.
#[tokio::test]
async fn w10c_an_approval_is_for_its_arguments_alone() {
    let ran = Arc::new(Mutex::new(Vec::new()));
    let log = ran.clone();
    let bash = FnTool::new("bash", Effect::Destructive, move |_, arguments| {
        log.lock().push(arguments["cmd"].as_str().unwrap().to_owned());
        async { ToolOutcome::ok("done") }
    });
    let commands = ["ls", "rm -rf /", "ls -a", "ls"];
    let model = ModelDouble::new(move |_, n| {
        Ok(commands
            .get(n as usize)
            .map_or_else(|| say("bye"), |cmd| call("bash", &serde_json::json!({ "cmd": cmd }).to_string())))
    });
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let agent = Agent::builder("x")
        .model(model)
        .tool(bash)
        .approval_store(InMemoryApprovalStore::new())
        .approval_handler(deciding(move |ask| {
            let cmd = ask.arguments["cmd"].as_str().unwrap().to_owned();
            seen.lock().push(cmd.clone());
            if cmd == "ls" {
                ApprovalDecision::Approve
            } else {
                ApprovalDecision::Deny { reason: String::new() }
            }
        }))
        .build()
        .unwrap();
    agent.for_user(user("a")).run("tidy up").await.unwrap();
    assert_eq!(*asked.lock(), commands, "each is asked about");
    assert_eq!(*ran.lock(), ["ls", "ls"]);
}

#[tokio::test]
async fn w10d_edited_arguments_go_back_through_policy() {
    #[derive(Debug)]
    struct NeverMoreThanTen;
    #[async_trait]
    impl Permissions for NeverMoreThanTen {
        async fn check(&self, _: &RunContext, call: &ToolCall, _: Effect) -> Result<Decision> {
            let cents = call.parse_arguments()?["cents"].as_u64().unwrap_or(u64::MAX);
            Ok(if cents > 10 { Decision::deny("too much") } else { Decision::ask("money") })
        }
    }
    for (cents, status, executions) in [(7, ToolStatus::Ok, 1), (11, ToolStatus::Denied, 0)] {
        let (builder, paid) = paying();
        let agent = builder
            .permissions(NeverMoreThanTen)
            .approval_store(InMemoryApprovalStore::new())
            .approval_handler(deciding(move |_| ApprovalDecision::Edit {
                args: serde_json::json!({"cents": cents}),
            }))
            .build()
            .unwrap();
        let alice = agent.for_user(user("alice"));
        let result = alice.run("pay").await.unwrap();
        assert_eq!(result.tool_calls[0].status, status, "{cents}");
        assert_eq!(paid.lock().len(), executions);
        let log = entries(&alice).await;
        assert!(log.iter().any(|e| e.event.action == Action::ApprovalEdited));
    }
}

/// A handler had no time limit, and waiting for it was charged as the user's wall clock.
#[tokio::test(start_paused = true)]
async fn w10e_a_handler_that_hangs_is_a_deny_and_waiting_is_not_run_time() {
    let clock = RuntimeClock::start();
    let config = BudgetConfig::new().per_user_max_wall_clock(Duration::from_secs(20));
    for hangs in [true, false] {
        let (builder, paid) = paying();
        let agent = builder
            .clock(clock)
            .budget(StandardBudget::new(config.clone()).unwrap().with_clock(Arc::new(clock)))
            .run_timeout(Duration::from_secs(10))
            .approvers([user("boss")])
            .approvals_expire_after(Duration::from_secs(3_600))
            .approval_store(InMemoryApprovalStore::new().with_clock(Arc::new(clock)))
            .approval_handler(CallbackApprovals::new(move |_, _| async move {
                if hangs { std::future::pending().await } else { Ok(Notified::Pending) }
            }))
            .build()
            .unwrap();
        let tenant = agent.for_user(user("alice"));
        let began = tokio::time::Instant::now();
        let result = tenant.run("pay").await.unwrap();
        assert_eq!(result.tool_calls[0].status, ToolStatus::Denied);
        assert!(began.elapsed() >= Duration::from_secs(if hangs { 30 } else { 3_600 }));
        assert!(paid.lock().is_empty());
        agent.settled().await.unwrap();
        let used = tenant.usage().await.unwrap().wall_clock;
        assert!(used < Duration::from_secs(1), "{used:?} of wall clock for a wait");
    }
}
