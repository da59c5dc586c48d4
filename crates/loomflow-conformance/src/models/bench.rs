//! Where a case is carried out: a real agent with the adapter, a scripted server before it, and books that are looked into.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::{
    Action as Audited, Agent, Charge, Effect, ErrorKind, Namespace, Owner, PermittedCall, Result,
    RetryPolicy, RunContext, RunResult, SecretRef, Tool, ToolOutcome, ToolSpec, Usage, UserAgent,
};

use super::{Harness, Setup};
use crate::doubles::{
    FixedClock, HoldRecord, Recorded, RecordingAudit, RecordingLedger, Script, ScriptedServer, TenantSecrets,
};
use crate::fixture::{at, user_id};

/// The longest that anything with short timeouts may take before it counts as hanging.
pub(super) const HANGS: Duration = Duration::from_secs(20);
/// What the operator says: the words of it are the least that a prompt is counted as.
const INSTRUCTIONS: &str = "You answer what you are asked and nothing else";
/// Everybody's key, where a case is not about keys.
pub(super) const KEY: &str = "sk-conformance-9f8e7d6c5b4a";

/// How a bench differs from the usual one.
#[derive(Clone)]
pub(super) struct Options {
    pub(super) plain: bool,
    pub(super) headers_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) run_timeout: Duration,
    pub(super) retry: RetryPolicy,
    pub(super) grant: Option<u64>,
    /// Where the adapter sends to instead of the scripted server.
    pub(super) base_url: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain: false,
            // Longer than anything may take, so that what ends a call is not a timeout.
            headers_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(120),
            run_timeout: Duration::from_secs(120),
            retry: RetryPolicy::none(),
            grant: None,
            base_url: None,
        }
    }
}

impl Options {
    pub(super) fn plain() -> Self {
        Self { plain: true, ..Self::default() }
    }

    /// A time for the head that a stalled server runs into at once.
    pub(super) fn impatient() -> Self {
        Self { headers_timeout: Duration::from_millis(300), ..Self::default() }
    }
}

/// An agent, its provider and its books.
pub(super) struct Bench {
    pub(super) server: ScriptedServer,
    pub(super) agent: Agent,
    pub(super) ledger: Arc<RecordingLedger>,
    pub(super) audit: Arc<RecordingAudit>,
    pub(super) secrets: Arc<TenantSecrets>,
    pub(super) key: SecretRef,
    pub(super) note: Arc<Note>,
    namespace: Namespace,
}

impl Bench {
    /// The usual bench.
    pub(super) async fn open(
        h: &Harness,
        script: impl Fn(&Recorded, u64) -> Script + Send + Sync + 'static,
    ) -> Self {
        Self::with(h, Options::default(), script).await
    }

    pub(super) async fn with(
        h: &Harness,
        options: Options,
        script: impl Fn(&Recorded, u64) -> Script + Send + Sync + 'static,
    ) -> Self {
        let server = ScriptedServer::start(script).await;
        let server = server.unwrap_or_else(|e| panic!("the suite's server cannot listen: {e}"));
        let key = SecretRef::new("MODEL_KEY").expect("a plain name is the name of a secret");
        let model = h.wire().model(&Setup {
            base_url: options.base_url.clone().unwrap_or_else(|| server.url()),
            key: key.clone(),
            headers_timeout: options.headers_timeout,
            idle_timeout: options.idle_timeout,
            plain: options.plain,
        });
        let ledger = match options.grant {
            None => RecordingLedger::new(),
            Some(most) => RecordingLedger::new().granting_at_most(most),
        };
        let (ledger, audit) = (Arc::new(ledger), Arc::new(RecordingAudit::new()));
        let (secrets, note) = (Arc::new(TenantSecrets::new()), Arc::new(Note::default()));
        secrets.set_shared(&key, KEY);
        let namespace = Namespace::new(format!("cf-{:016x}", rand::random::<u64>()));
        let namespace = namespace.expect("hex digits are a valid namespace");
        let agent = Agent::builder(INSTRUCTIONS)
            .namespace(namespace.clone())
            .model(model)
            .budget(ledger.clone())
            .audit_log(audit.clone())
            .secrets(secrets.clone())
            .clock(FixedClock::new(at(0)))
            .tool(NoteTool::new("wire.note", note.clone()))
            .tool(NoteTool::new("add", note.clone()))
            .run_timeout(options.run_timeout)
            .retry(options.retry)
            .build()
            .unwrap_or_else(|e| panic!("the suite's agent cannot be built: {e}"));
        Self { server, agent, ledger, audit, secrets, key, note, namespace }
    }

    pub(super) fn tenant(&self, name: &str) -> UserAgent {
        self.agent.for_user(user_id(name))
    }

    pub(super) fn owner(&self, name: &str) -> Owner {
        Owner::new(self.namespace.clone(), loomflow_core::Identity::User(user_id(name)))
    }

    /// Runs the agent as `name`, who asks for case `n`; whoever hangs fails.
    pub(super) async fn run(&self, name: &str, n: usize) -> Result<RunResult> {
        self.ends(async { self.tenant(name).run(asking(n)).await }).await
    }

    /// What a run ends with, if it ends within bounds.
    pub(super) async fn ends<T>(&self, run: impl Future<Output = T> + Send) -> T {
        let ended = tokio::time::timeout(HANGS, run).await;
        ended.unwrap_or_else(|_| panic!("the call did not end within {HANGS:?}: it hangs"))
    }

    /// The holds of one tenant, all of them closed, every one that was sent seen by the server.
    pub(super) fn holds(&self, name: &str) -> Vec<HoldRecord> {
        let owner = self.owner(name);
        let holds: Vec<_> = self.ledger.holds().into_iter().filter(|hold| hold.owner == owner).collect();
        for hold in &holds {
            assert!(hold.charge.is_some(), "a hold of {name} was left open: {hold:?}");
            let words = INSTRUCTIONS.split(' ').count() as u64 + 3;
            assert!(
                hold.hold.input_tokens >= words,
                "the prompt of {words} words was counted as {} tokens: never fewer than the provider will bill",
                hold.hold.input_tokens
            );
        }
        holds
    }

    /// The one hold of a tenant who made one call.
    pub(super) fn hold(&self, name: &str) -> HoldRecord {
        let mut holds = self.holds(name);
        assert_eq!(holds.len(), 1, "one call is one hold, but {name} has {holds:?}");
        holds.remove(0)
    }

    /// Fails unless the one call of `name` was charged exactly what the provider reported.
    #[track_caller]
    pub(super) fn must_have_paid(&self, name: &str, reported: Usage, what: &str) {
        let hold = self.hold(name);
        must_be_reported(&hold, reported, what);
    }

    /// Fails unless the one call of `name` was charged its prompt and at least what was delivered, as an estimate.
    #[track_caller]
    pub(super) fn must_have_paid_for(&self, name: &str, delivered: &str, what: &str) {
        must_be_estimated(&self.hold(name), delivered, what);
    }

    /// Fails unless the one call of `name` was given back.
    #[track_caller]
    pub(super) fn must_have_paid_nothing(&self, name: &str, what: &str) {
        let hold = self.hold(name);
        assert_eq!(
            hold.charge,
            Some(Charge::Refund),
            "{what}: the provider took no order, so nothing is charged"
        );
    }

    /// Fails unless the charge agrees with what the contract of `Model::stream` says about an error of this kind.
    #[track_caller]
    pub(super) fn must_have_paid_by_kind(&self, name: &str, kind: ErrorKind, what: &str) {
        if unknown_order(kind) {
            self.must_have_paid_for(name, "", what);
        } else {
            self.must_have_paid_nothing(name, what);
        }
    }

    /// The payloads of the model calls that one tenant has on record.
    pub(super) fn calls_on_record(&self, name: &str) -> Vec<serde_json::Value> {
        let owner = self.owner(name);
        let entries = self.audit.entries().into_iter();
        let calls = entries.filter(|(of, entry)| *of == owner && entry.event.action == Audited::ModelCall);
        let payload = |text: &String| serde_json::from_str(text).unwrap_or(serde_json::Value::Null);
        calls.map(|(_, entry)| payload(entry.event.payload.get())).collect()
    }

    /// Waits until everything that dropped runs left behind is in the books.
    pub(super) async fn settled(&self) {
        let settled = self.ends(self.agent.settled()).await;
        settled.unwrap_or_else(|e| panic!("what dropped runs left behind was not settled: {e}"));
    }
}

/// Whether nobody knows, after an error of this kind before the stream began, what the provider bills.
pub(super) fn unknown_order(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Timeout | ErrorKind::Transport | ErrorKind::Internal | ErrorKind::Truncated)
}

#[track_caller]
pub(super) fn must_be_reported(hold: &HoldRecord, reported: Usage, what: &str) {
    match hold.charge {
        Some(Charge::Used { usage, estimated }) => {
            let charged = usage.with_cost(reported.cost_usd);
            assert_eq!(
                charged, reported,
                "{what}: what the provider reported is charged, no more and no less"
            );
            assert!(!estimated, "{what}: the provider reported it, so it is no estimate");
        }
        other => panic!("{what}: the provider reported {reported:?}, but the charge was {other:?}"),
    }
}

/// Words are the suite's own count: no tokenizer needs less than a token for each, nor more than one for each byte.
#[track_caller]
pub(super) fn must_be_estimated(hold: &HoldRecord, delivered: &str, what: &str) {
    let words = delivered.split_whitespace().count() as u64;
    match hold.charge {
        Some(Charge::Used { usage, estimated }) => {
            assert!(
                estimated,
                "{what}: nobody reported the usage, so the charge must be marked as estimated"
            );
            assert_eq!(
                usage.input_tokens, hold.hold.input_tokens,
                "{what}: the prompt was sent, so it is charged"
            );
            assert!(
                usage.output_tokens >= words,
                "{what}: {words} words were delivered, but {} generated tokens charged",
                usage.output_tokens
            );
        }
        other => panic!("{what}: the call is not free, but the charge was {other:?}"),
    }
}

/// The words with which a tenant asks for case `n`.
pub(super) fn asking(n: usize) -> String {
    format!("please answer case-{n:06}!")
}

/// The case that a request asks for.
pub(super) fn asked(request: &Recorded) -> usize {
    let text = request.text();
    let number = text.rsplit("case-").next().and_then(|rest| rest.get(..6)).and_then(|n| n.parse().ok());
    number.unwrap_or_else(|| panic!("the prompt did not reach the wire as it was said: {text}"))
}

/// What the suite's tools were called with, in order of arrival.
#[derive(Debug, Default)]
pub(super) struct Note(Mutex<Vec<(String, String, String)>>);

impl Note {
    /// Every call: the tool, the call's id and the arguments.
    pub(super) fn calls(&self) -> Vec<(String, String, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A tool that notes its calls, and says what it was told.
struct NoteTool {
    spec: ToolSpec,
    note: Arc<Note>,
}

impl NoteTool {
    fn new(name: &str, note: Arc<Note>) -> Self {
        let schema = serde_json::json!({
            "type": "object",
            "properties": {"what": {"type": "string"}, "n": {"type": "integer"}},
        });
        let spec = ToolSpec::new(name, "Notes what it is told.", Effect::Read, schema);
        Self { spec: spec.expect("the suite names good tools"), note }
    }
}

impl fmt::Debug for NoteTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteTool({})", self.spec.name)
    }
}

#[async_trait]
impl Tool for NoteTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, _ctx: &RunContext, call: PermittedCall) -> ToolOutcome {
        let arguments = call.arguments().to_string();
        let told = format!(
            "noted by {}: {}",
            call.name(),
            call.arguments().get("what").cloned().unwrap_or_default()
        );
        let noted = (call.name().to_owned(), call.id().to_owned(), arguments);
        self.note.0.lock().unwrap_or_else(PoisonError::into_inner).push(noted);
        ToolOutcome::ok(told)
    }
}
