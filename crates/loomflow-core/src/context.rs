//! What a run's code is given: who is asking, and handles that are already theirs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use crate::audit::{Action, Actor, AuditEvent, AuditLog};
use crate::cache::ToolCache;
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::{SessionId, UserId};
use crate::ids::RunId;
use crate::memory::{MemoryStore, ScopedMemory};
use crate::redact::{Redacted, Redactor};
use crate::run::{CallFrame, RunClock};
use crate::scope::{Owned, Scope};
use crate::secret::{Secret, SecretRef, Secrets};
use crate::telemetry::{Label, Telemetry};

/// The parts a run's code can reach, always through a scope.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) memory: Arc<dyn MemoryStore>,
    pub(crate) audit: Arc<dyn AuditLog>,
    pub(crate) secrets: Arc<dyn Secrets>,
    pub(crate) cache: Arc<dyn ToolCache>,
    pub(crate) telemetry: Arc<dyn Telemetry>,
    pub(crate) redactor: Redactor,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The context of one run: an explicit argument, never a task-local, so it cannot be lost across a spawn.
///
/// Cheap to clone. Every handle it gives is scoped to the run's tenant, and no other scope can be made from it.
#[derive(Clone)]
pub struct RunContext {
    inner: Arc<Inner>,
    /// The tool call it was given to, if it was given to one.
    call: Option<Arc<CallFrame>>,
}

struct Inner {
    services: Arc<Services>,
    scope: Scope,
    run: RunId,
    session: SessionId,
    clock: Arc<RunClock>,
    metadata: Arc<BTreeMap<String, String>>,
}

/// What a context is made of.
pub(crate) struct ContextParts {
    pub(crate) services: Arc<Services>,
    pub(crate) scope: Scope,
    pub(crate) run: RunId,
    pub(crate) session: SessionId,
    pub(crate) clock: Arc<RunClock>,
    pub(crate) metadata: Arc<BTreeMap<String, String>>,
}

impl RunContext {
    pub(crate) fn new(parts: ContextParts) -> Self {
        let ContextParts { services, scope, run, session, clock, metadata } = parts;
        Self { inner: Arc::new(Inner { services, scope, run, session, clock, metadata }), call: None }
    }

    /// The context as one tool call is given it.
    pub(crate) fn in_call(&self, call: Arc<CallFrame>) -> Self {
        Self { inner: self.inner.clone(), call: Some(call) }
    }

    pub(crate) fn call(&self) -> Option<&Arc<CallFrame>> {
        self.call.as_ref()
    }

    pub(crate) fn shared_metadata(&self) -> Arc<BTreeMap<String, String>> {
        self.inner.metadata.clone()
    }

    /// The run's partition, to pass to a store of your own.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.inner.scope
    }

    /// The tenant; `None` for the anonymous bucket.
    #[must_use]
    pub fn user_id(&self) -> Option<&UserId> {
        self.inner.scope.user_id()
    }

    /// The run.
    #[must_use]
    pub fn run_id(&self) -> RunId {
        self.inner.run
    }

    /// The conversation.
    #[must_use]
    pub fn session_id(&self) -> &SessionId {
        &self.inner.session
    }

    /// When the run must be over. It moves while the run waits for a person.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.inner.clock.deadline()
    }

    /// What the caller attached to the run. Informative only: it names nobody and grants nothing.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.inner.metadata
    }

    /// Now, in UTC.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.services.clock.now()
    }

    /// The tenant's memory.
    #[must_use]
    pub fn memory(&self) -> ScopedMemory {
        ScopedMemory::within(self.inner.services.clone(), self.inner.scope.dup())
    }

    /// Resolves a secret for this tenant, records that (by name) in the audit log, and teaches the redactor to find it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] when nobody has it; whatever the store or the audit log fails with.
    pub async fn secret(&self, name: &SecretRef) -> Result<Arc<Secret<String>>> {
        let services = &self.inner.services;
        let secret = services.secrets.resolve(&self.inner.scope, name).await?;
        services.redactor.register(&secret);
        let payload = services.redactor.object().name("name", name.as_str()).finish();
        self.audit(Actor::System, Action::SecretResolved, payload).await?;
        Ok(secret)
    }

    /// The value of `make`, from this tenant's cache when it is there. The key carries the scope, so two tenants that
    /// use one key never see each other's value.
    ///
    /// Errors of the cache are counted and the value is made anew; a value is cached only when `make` succeeds.
    ///
    /// # Errors
    ///
    /// Whatever `make` fails with, and [`ErrorKind::IsolationViolation`] when the cache hands out another tenant's value.
    pub async fn cached<F>(&self, key: &str, make: F) -> Result<String>
    where
        F: Future<Output = Result<String>> + Send,
    {
        let services = &self.inner.services;
        match services.cache.get(&self.inner.scope, key).await {
            Ok(Some(hit)) => return open_owned(services, &self.inner.scope, "tool_cache", hit).await,
            Ok(None) => {}
            Err(_) => self.count("loom.tool_cache.errors", 1, &[("operation", "get")]),
        }
        let value = make.await?;
        if services.cache.put(&self.inner.scope, key, &value).await.is_err() {
            self.count("loom.tool_cache.errors", 1, &[("operation", "put")]);
        }
        Ok(value)
    }

    /// The redactor, to make a payload that a sink accepts.
    #[must_use]
    pub fn redactor(&self) -> &Redactor {
        &self.inner.services.redactor
    }

    pub(crate) fn services(&self) -> &Arc<Services> {
        &self.inner.services
    }

    pub(crate) fn count(&self, metric: &'static str, by: u64, labels: &[Label]) {
        self.inner.services.telemetry.count(&self.inner.scope, metric, by, labels);
    }

    pub(crate) async fn audit(&self, actor: Actor, action: Action, payload: Redacted<String>) -> Result<()> {
        let event = AuditEvent::new(self.now(), actor, action, payload)
            .in_run(self.inner.session.clone(), self.inner.run);
        self.inner.services.audit.append(&self.inner.scope, event).await.map(drop)
    }
}

impl fmt::Debug for RunContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunContext({:?} {} {})", self.inner.scope, self.inner.run, self.inner.session)
    }
}

/// The tripwire: opens a value that a store returned, or withholds it, records the violation and counts it.
pub(crate) async fn open_owned<T: Send>(
    services: &Services,
    scope: &Scope,
    store: &'static str,
    owned: Owned<T>,
) -> Result<T> {
    if scope.owns(owned.owner()) {
        return Ok(owned.into_value());
    }
    drop(owned);
    report_violation(services, scope, store).await
}

/// The tripwire over a list: everything is the scope's own, or nothing is handed on.
pub(crate) async fn open_all<T: Send>(
    services: &Services,
    scope: &Scope,
    store: &'static str,
    mut all: Vec<Owned<T>>,
) -> Result<Vec<T>> {
    if all.iter().all(|owned| scope.owns(owned.owner())) {
        return Ok(all.into_iter().map(Owned::into_value).collect());
    }
    all.clear();
    report_violation(services, scope, store).await
}

async fn report_violation<T>(services: &Services, scope: &Scope, store: &'static str) -> Result<T> {
    services.telemetry.count(scope, "loom.isolation.violations", 1, &[("store", store)]);
    let payload = services.redactor.object().name("store", store).finish();
    let event = AuditEvent::new(services.clock.now(), Actor::System, Action::IsolationViolation, payload);
    // The value is withheld whether or not the record could be written; the caller fails either way.
    let recorded = services.audit.append(scope, event).await;
    let error = Error::new(
        ErrorKind::IsolationViolation,
        "a store returned a record of another tenant; it was withheld and recorded",
    )
    .with_context("store", store);
    Err(match recorded {
        Ok(_) => error,
        Err(cause) => error.with_source(cause),
    })
}
