//! The few loud ways around the types, for conformance suites, operators' tools and tests of backends.
//!
//! Everything here is public and always compiled, so that it can be searched for: `cargo xtask tidy` lists who uses it
//! and refuses everybody but conformance, serve, cli, bench and tests.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::audit::NoAudit;
use crate::cache::NoCache;
use crate::clock::SystemClock;
use crate::context::{ContextParts, RunContext, Services};
use crate::identity::{Identity, Namespace, SessionId};
use crate::ids::RunId;
use crate::ledger::HoldKey;
use crate::memory::NoMemory;
use crate::message::{Digest, ToolCall, canonical_json};
use crate::model::{AdmittedCall, AdmittedEmbed, EmbedPurpose, ModelRequest};
use crate::redact::{KeepAll, Redactor};
use crate::run::RunClock;
use crate::scope::{Epoch, Owned, Owner, Scope};
use crate::secret::NoSecrets;
use crate::telemetry::NoTelemetry;
use crate::tool::PermittedCall;

/// A scope for a partition that nobody authenticated. Whoever calls this takes the place of the edge.
#[must_use]
pub fn assume_scope(namespace: Namespace, identity: Identity, epoch: Epoch) -> Scope {
    Scope::mint(Owner::new(namespace, identity), epoch)
}

/// A run context with a scope of your choosing and nothing behind it: no memory, no audit, no secrets. Its deadline is an
/// hour away.
#[must_use]
pub fn detached_context(scope: Scope) -> RunContext {
    let services = Services {
        memory: Arc::new(NoMemory),
        audit: Arc::new(NoAudit),
        secrets: Arc::new(NoSecrets),
        cache: Arc::new(NoCache),
        telemetry: Arc::new(NoTelemetry),
        redactor: Redactor::new(Arc::new(KeepAll)),
        clock: Arc::new(SystemClock),
    };
    RunContext::new(ContextParts {
        services: Arc::new(services),
        scope,
        run: RunId::from_u128(rand::random()),
        session: SessionId::fresh(),
        clock: Arc::new(RunClock::new(Duration::from_secs(3_600))),
        metadata: Arc::default(),
    })
}

/// The value of what a store returned, without asking whose it is. The tripwire does not see it.
#[must_use]
pub fn take_unchecked<T>(owned: Owned<T>) -> T {
    owned.into_value()
}

/// A permit that no policy gave, to call a tool outside an agent.
#[must_use]
pub fn permit(call: ToolCall, arguments: Value) -> PermittedCall {
    let digest =
        Digest::of(&[call.id.as_bytes(), call.name.as_bytes(), canonical_json(&arguments).as_bytes()]);
    PermittedCall::seal(call, arguments, digest)
}

/// An admission that no ledger gave, to call a model outside an agent. Nothing is counted.
#[must_use]
pub fn admit(request: ModelRequest) -> AdmittedCall {
    AdmittedCall::seal(request, 1, HoldKey::new(RunId::from_u128(rand::random()), 0))
}

/// An admission that no ledger gave, to call an embedder outside an agent. Nothing is counted.
#[must_use]
pub fn admit_embed(texts: Vec<Arc<str>>, purpose: EmbedPurpose) -> AdmittedEmbed {
    AdmittedEmbed::seal(texts, purpose)
}
