//! What fails, fails closed: nothing is done again with less.

use super::*;

/// A policy that failed for mallory was asked again without a user, and allowed.
#[tokio::test]
async fn w13_a_security_decision_is_never_asked_again_with_less() {
    #[derive(Debug, Default)]
    struct FailsForMallory(Mutex<Vec<Option<UserId>>>);
    #[async_trait]
    impl Permissions for FailsForMallory {
        async fn check(&self, ctx: &RunContext, _: &ToolCall, _: Effect) -> Result<Decision> {
            let who = ctx.user_id().cloned();
            self.0.lock().push(who.clone());
            match who {
                Some(who) if who == user("mallory") => Err(Error::new(ErrorKind::Internal, "TypeError")),
                Some(who) if who == user("crash") => panic!("TypeError on purpose"),
                _ => Ok(Decision::Allow),
            }
        }
    }
    quiet_on_purpose();
    let policy = Arc::new(FailsForMallory::default());
    for name in ["mallory", "crash"] {
        let (builder, paid) = paying();
        let agent = builder.permissions(policy.clone()).build().unwrap();
        let result = agent.for_user(user(name)).run("pay").await.unwrap();
        assert_eq!(result.tool_calls[0].status, ToolStatus::Denied, "{name}");
        assert!(paid.lock().is_empty());
    }
    assert_eq!(*policy.0.lock(), [Some(user("mallory")), Some(user("crash"))], "asked once each, by name");
}

/// An audit sink that failed after writing was called again without a user.
#[tokio::test]
async fn w13_a_failed_audit_entry_is_not_written_again_without_its_user() {
    #[derive(Debug)]
    struct WritesAndFails(InMemoryAuditLog);
    #[async_trait]
    impl TenantData for WritesAndFails {
        fn store_name(&self) -> &str {
            "audit:writes-and-fails"
        }
        async fn export(&self, scope: &Scope) -> Result<ExportStream> {
            self.0.export(scope).await
        }
        async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
            self.0.forget(scope, what).await
        }
    }
    #[async_trait]
    impl AuditLog for WritesAndFails {
        async fn append(&self, scope: &Scope, event: AuditEvent) -> Result<AuditReceipt> {
            let fails = event.action == Action::ToolIntent;
            let receipt = self.0.append(scope, event).await?;
            if fails { Err(Error::new(ErrorKind::Internal, "TypeError")) } else { Ok(receipt) }
        }
        async fn query(&self, scope: &Scope, query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>> {
            self.0.query(scope, query).await
        }
        async fn verify(&self) -> Result<AuditVerification> {
            self.0.verify().await
        }
    }
    let (builder, paid) = paying();
    let builder = builder.permissions(StandardPermissions::bypass());
    let agent = builder.audit_log(WritesAndFails(InMemoryAuditLog::new())).build().unwrap();
    let alice = agent.for_user(user("alice"));
    alice.run("pay").await.unwrap_err();
    assert!(paid.lock().is_empty(), "no effect without its intent");
    let intents = actions(&alice).await.iter().filter(|action| **action == Action::ToolIntent).count();
    assert_eq!(intents, 1);
    assert!(entries(&agent.anonymous()).await.is_empty());
}

/// A memory that failed for alice was asked again without a user, and she was shown what the anonymous bucket remembers.
#[tokio::test]
async fn w13_a_memory_that_fails_for_a_user_is_not_asked_for_anonymous() {
    #[derive(Debug)]
    struct FailsForUsers(InMemoryMemory, Mutex<Vec<bool>>);
    impl FailsForUsers {
        fn pass(&self, scope: &Scope) -> Result<()> {
            self.1.lock().push(scope.user_id().is_some());
            match scope.user_id() {
                Some(_) => Err(Error::new(ErrorKind::Internal, "TypeError")),
                None => Ok(()),
            }
        }
    }
    #[async_trait]
    impl TenantData for FailsForUsers {
        fn store_name(&self) -> &str {
            "memory:fails-for-users"
        }
        async fn export(&self, scope: &Scope) -> Result<ExportStream> {
            self.0.export(scope).await
        }
        async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
            self.0.forget(scope, what).await
        }
    }
    #[async_trait]
    impl MemoryStore for FailsForUsers {
        async fn remember(&self, scope: &Scope, episode: NewEpisode) -> Result<EpisodeId> {
            self.0.remember(scope, episode).await
        }
        async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
            self.pass(scope)?;
            self.0.recall(scope, query).await
        }
        async fn history(
            &self,
            scope: &Scope,
            session: &SessionId,
            limit: HistoryLimit,
        ) -> Result<Vec<Owned<Message>>> {
            self.pass(scope)?;
            self.0.history(scope, session, limit).await
        }
        async fn blocks(&self, scope: &Scope) -> Result<Vec<Owned<MemoryBlock>>> {
            self.pass(scope)?;
            self.0.blocks(scope).await
        }
        async fn put_block(&self, scope: &Scope, block: PutBlock) -> Result<()> {
            self.0.put_block(scope, block).await
        }
        async fn profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
            self.0.profile(scope).await
        }
        fn facts(&self) -> Option<&dyn FactStore> {
            self.0.facts()
        }
        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }
    }
    let memory = Arc::new(FailsForUsers(InMemoryMemory::new(), Mutex::default()));
    let model = ModelDouble::saying("noted");
    let agent = Agent::builder("x").model(model.clone()).memory(memory.clone()).build().unwrap();
    agent
        .anonymous()
        .memory()
        .await
        .unwrap()
        .put_block(PutBlock::new("prefs", "PIN 4711", Timestamp::default()))
        .await
        .unwrap();
    agent.anonymous().run("the PIN is 4711").session("s").await.unwrap();
    memory.1.lock().clear();
    // Whether the run fails or goes on without memory: nobody else's is in its prompt.
    let _either = agent.for_user(user("alice")).run("what is the PIN?").session("s").await;
    assert!(!memory.1.lock().is_empty());
    assert!(memory.1.lock().iter().all(|asked_by_name| *asked_by_name), "asked for alice alone");
    for request in &model.requests()[1..] {
        assert!(request.messages.iter().all(|m| !m.text.contains("4711")), "{request:?}");
    }
}
