//! The model door: rate limit → reserve → call (output clamped to the hold) → settle. Turns, structured-output retries and whatever
//! else talks to a model goes through here; an `AdmittedCall` is made nowhere else.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::audit::{Action, Actor};
use crate::closer::{Handoff, Slot, Work};
use crate::door::rate::{Pass, admit_call};
use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
use crate::ledger::{
    Charge, HearsWarnings as _, Held, Hold, HoldTicket, Ledger, Refusal, Reservation, Reserve, Sent, Settled,
    close,
};
use crate::r#loop::Reply;
use crate::message::ToolCall;
use crate::model::{AdmittedCall, Delta, Done, Model, ModelRequest, ModelStream, StopReason};
use crate::run::RunState;
use crate::scope::Scope;
use crate::usage::{Price, Usage};

/// The most bytes of text a reply may have: a provider that never ends must not fill the memory.
const MAX_REPLY_BYTES: usize = 8 << 20;
/// The most tool calls a reply may ask for.
const MAX_CALLS: usize = 128;
/// What a hold outlives its run by, so that a late settlement finds it.
const LEASE_MARGIN: Duration = Duration::from_secs(60);

/// A whole reply and what it used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) usage: Usage,
    /// A digest of the calls as the model made them, where a journal keeps them redacted.
    #[serde(default)]
    pub(crate) calls: Option<String>,
}

/// Calls the agent's model: every attempt is reserved, admitted, streamed and settled.
///
/// A refusal comes back as an error that carries it. Nothing is sent then.
pub(crate) async fn call_model(run: &Arc<RunState>, request: ModelRequest) -> Result<Answer> {
    let model = &run.agent.model;
    let mut failed = 0;
    loop {
        // A limit of ours ends the call here: whoever is to wait for it was made to wait inside.
        let input = model.count_tokens(&request);
        let pass = admit_call(run, input.saturating_add(request.max_output_tokens)).await?;
        let began = Instant::now();
        let attempt = attempt(run, &**model, request.clone(), failed + 1, input, pass).await;
        let took = began.elapsed();
        let status = attempt.as_ref().map_or_else(|f| f.error.kind().as_str(), |_| "ok");
        let telemetry = &run.ctx.services().telemetry;
        telemetry.duration(run.ctx.scope(), "loom.model.duration", took, &[("status", status)]);
        let failure = match attempt {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        failed += 1;
        // After the first piece was shown, a second attempt would show its text twice.
        let wait = if failure.shown { None } else { run.agent.settings.retry.wait(failed, &failure.error) };
        match wait {
            Some(wait) if wait < run.clock.remaining() => {
                run.ctx.count("loom.model.retries", 1, &[("error", failure.error.kind().as_str())]);
                tokio::time::sleep(wait).await;
            }
            _ => return Err(failure.error),
        }
    }
}

/// A failed attempt.
struct Failure {
    error: Error,
    /// Whether any of the reply was shown already.
    shown: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, shown: false }
    }
}

impl Failure {
    /// A store of our own failed after the provider was asked: asking again would pay again, and mend nothing.
    fn after_the_call(error: Error) -> Self {
        Self { error: error.with_retryable(false), shown: true }
    }
}

async fn attempt(
    run: &Arc<RunState>,
    model: &dyn Model,
    mut request: ModelRequest,
    attempt: u32,
    input: u64,
    pass: Pass,
) -> Result<Answer, Failure> {
    let reserved = reserve(run, input, request.max_output_tokens, 1, model.price()).await;
    let reservation = match reserved {
        Ok(reservation) => reservation,
        Err(error) => {
            pass.unused(run).await;
            return Err(error.into());
        }
    };
    request.max_output_tokens = reservation.output_tokens();
    let slot = run.slot();
    let key = reservation.key();
    let mut reservation = reservation.sent().await?;
    let mut promise = RecordPromise::new(run.clone(), slot, Called::Turn { attempt }, input, model.price());
    if model.capabilities().hidden_reasoning {
        reservation.may_be_unseen();
        promise.unseen = reservation.output_tokens();
    }
    let opened = model.stream(&run.ctx, AdmittedCall::seal(request, attempt, key)).await;
    let stream = match opened {
        Ok(stream) => stream,
        Err(error) => {
            return Err(Box::pin(give_back(run, reservation, promise, error, pass)).await);
        }
    };
    let mut fold = Fold::new(model, reservation, promise);
    let read = fold.read(run, stream).await;
    let Fold { reservation, promise, text, calls, shown, provider_state, .. } = fold;
    let reported = read.as_ref().ok().and_then(|done| done.usage);
    let outcome = Outcome {
        status: read.as_ref().map_or_else(|error| error.kind().as_str(), |_| "ok"),
        estimated: reported.is_none(),
        excess_tokens: 0,
        request_id: match &read {
            Ok(done) => done.request_id.clone(),
            Err(error) => request_id(error),
        },
    };
    let (usage, closing) = reservation.settle_and_tell(reported);
    run.used(usage);
    let settled = promise.keep(closing, usage, outcome).await;
    pass.used(run, &usage).await;
    settled.map_err(Failure::after_the_call)?;
    match read {
        Ok(done) => {
            let reply = Reply { text: text.into(), calls, stop: done.stop, provider_state };
            Ok(Answer { reply, usage, calls: None })
        }
        Err(error) => Err(Failure { error, shown }),
    }
}

/// Sets tokens aside, or tells of the refusal: audit, event, metric, error.
pub(crate) async fn reserve(
    run: &Arc<RunState>,
    input: u64,
    output: u64,
    min_output: u64,
    price: Option<Price>,
) -> Result<Reservation<Held>> {
    let key = run.next_hold();
    let hold = Hold::tokens(key, input, output)
        .with_min_output(min_output.min(output))
        .with_price(price)
        .with_lease(run.clock.remaining() + LEASE_MARGIN);
    let SetAside { ledger, scope, slot, answer } = set_aside(run, hold).await?;
    match answer? {
        Reserve::Held(granted) => {
            let (hold, output_tokens) = (granted.id, granted.output_tokens);
            let hears = run.clone();
            let ticket = HoldTicket {
                ledger,
                scope,
                hold,
                key,
                input_tokens: input,
                output_tokens,
                price,
                hears,
                slot,
            };
            let reservation = Reservation::new(ticket);
            run.warn(granted.warnings).await?;
            Ok(reservation)
        }
        Reserve::Refused(refusal) => Err(Box::pin(refused(run, *refusal)).await),
    }
}

/// A ledger's answer to a reservation, with what is needed to close it.
pub(crate) struct SetAside {
    ledger: Arc<dyn Ledger>,
    scope: Scope,
    slot: Slot,
    pub(crate) answer: Result<Reserve>,
}

/// Asks the ledger to set something aside. A caller who goes away before the answer is there leaves no hold behind: the closer
/// waits for the answer and gives back what was granted.
pub(crate) async fn set_aside(run: &Arc<RunState>, hold: Hold) -> Result<SetAside> {
    let slot = run.slot();
    let (run, ledger, scope) = (run.clone(), run.agent.ledger.clone(), run.ctx.scope().dup());
    type Asked = (Arc<RunState>, Arc<dyn Ledger>, Scope, Result<Reserve>);
    let asking: Work<Asked> = Box::pin(async move {
        let answer = ledger.reserve(&scope, &hold).await;
        (run, ledger, scope, answer)
    });
    let asking = Handoff::new(slot, asking).or_undo(|(run, ledger, scope, answer)| {
        Box::pin(async move {
            if let Ok(Reserve::Held(granted)) = answer {
                // What cannot be given back is given back by the end of its lease.
                drop(close(ledger, scope, granted.id, Charge::Refund).await);
                // The line was reached, and will not be told of again.
                drop(run.hear(granted.warnings).await);
            }
        })
    });
    let ((_, ledger, scope, answer), slot) = asking.keeping_its_place().await;
    Ok(SetAside { ledger, scope, slot, answer })
}

/// Tells of a refusal: audit, event, metric. Returns the error that carries it.
pub(crate) async fn refused(run: &RunState, refusal: Refusal) -> Error {
    run.ctx.count("loom.budget.refused", 1, &[("cap", refusal.cap)]);
    let mut payload = run
        .ctx
        .redactor()
        .object()
        .name("entity", refusal.entity.as_str())
        .name("cap", refusal.cap)
        .name("window", &refusal.window)
        .num("limit", refusal.limit)
        .num("used", refusal.used)
        .num("held", refusal.held)
        .num("needed", refusal.needed);
    if let Some(at) = refusal.resets_at {
        payload = payload.show("resets_at", at);
    }
    let recorded = run.audit(Actor::System, Action::BudgetRefused, payload.finish()).await;
    let event = Box::new(refusal.clone());
    run.emit(|| EventKind::BudgetExceeded(event)).await;
    let error = Error::refused(refusal);
    match recorded {
        Ok(()) => error,
        Err(cause) => error.with_source(cause),
    }
}

/// The call failed before a stream began: refunded where the provider is known to have taken no order.
async fn give_back(
    run: &Arc<RunState>,
    reservation: Reservation<Sent>,
    promise: RecordPromise,
    error: Error,
    pass: Pass,
) -> Failure {
    let unknown = !took_no_order(&error);
    let (usage, closing) =
        if unknown { reservation.settle_and_tell(None) } else { (Usage::default(), reservation.refund()) };
    run.used(usage);
    let mut outcome = Outcome { status: error.kind().as_str(), estimated: unknown, ..Outcome::default() };
    outcome.request_id = request_id(&error);
    let settled = promise.keep(closing, usage, outcome).await;
    pass.used(run, &usage).await;
    match settled {
        Ok(()) => error.into(),
        // The store's failure is the graver one: it must not be retried away.
        Err(graver) => graver.with_source(error).with_retryable(false).into(),
    }
}

/// Closes the hold, records the call, and tells of the caps that it brought to their warning line. A call is recorded also
/// when the ledger fails: it was made.
async fn settle(
    run: Arc<RunState>,
    called: Called,
    closing: Handoff<Result<Settled>>,
    usage: Usage,
    mut outcome: Outcome,
) -> Result<()> {
    let settled = closing.await;
    outcome.excess_tokens = settled.as_ref().map_or(0, |settled| settled.excess_tokens);
    if outcome.excess_tokens > 0 {
        run.ctx.count("loom.budget.excess_tokens", outcome.excess_tokens, &[]);
    }
    let recorded = record(&run, called, &usage, &outcome).await;
    let settled = settled?;
    recorded?;
    run.hear(settled.warnings).await
}

fn count_usage(run: &RunState, usage: &Usage) {
    run.ctx.count("loom.tokens.input", usage.input_tokens, &[]);
    run.ctx.count("loom.tokens.output", usage.output_tokens, &[]);
    if usage.cost_usd.0 > 0 {
        run.ctx.count("loom.cost.nano_usd", usage.cost_usd.0, &[]);
    }
}

/// Whether a call that failed before it answered is known to have cost nothing.
pub(crate) fn took_no_order(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Transport | ErrorKind::Internal)
}

/// The provider's id of a request that failed, where the adapter tells it.
pub(crate) fn request_id(error: &Error) -> Option<String> {
    error.context().iter().find(|(key, _)| *key == "request_id").map(|(_, id)| id.clone())
}

/// How a call ended, as its record says it.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) status: &'static str,
    pub(crate) estimated: bool,
    pub(crate) excess_tokens: u64,
    pub(crate) request_id: Option<String>,
}

async fn record(run: &RunState, called: Called, usage: &Usage, outcome: &Outcome) -> Result<()> {
    count_usage(run, usage);
    let mut payload = run
        .ctx
        .redactor()
        .object()
        .name("model", called.name(run))
        .name("status", outcome.status)
        .num("input_tokens", usage.input_tokens)
        .num("output_tokens", usage.output_tokens)
        .num("cost_nano_usd", usage.cost_usd.0);
    if usage.cached_input_tokens > 0 || usage.cache_write_tokens > 0 {
        payload = payload.num("cached_input_tokens", usage.cached_input_tokens);
        payload = payload.num("cache_write_tokens", usage.cache_write_tokens);
    }
    match called {
        Called::Embedding => payload = payload.name("operation", "embed"),
        Called::Turn { attempt } if attempt > 1 => payload = payload.num("attempt", attempt.into()),
        Called::Turn { .. } => {}
    }
    if outcome.estimated {
        payload = payload.bool("estimated", true);
    }
    if outcome.excess_tokens > 0 {
        payload = payload.num("excess_tokens", outcome.excess_tokens);
    }
    if let Some(id) = &outcome.request_id {
        payload = payload.str("request_id", id);
    }
    run.audit(Actor::Model, Action::ModelCall, payload.finish()).await
}

/// Which call a record is about.
#[derive(Clone, Copy)]
pub(crate) enum Called {
    /// A turn of the model; attempts count from 1.
    Turn { attempt: u32 },
    /// An order for vectors.
    Embedding,
}

impl Called {
    /// The name of what was called.
    fn name(self, run: &RunState) -> &str {
        match self {
            Self::Turn { .. } => run.agent.model.name(),
            Self::Embedding => run.agent.embedder.as_ref().map_or("", |embedder| embedder.name()),
        }
    }
}

/// The promise that a call which left is recorded: kept by the call's end, and by the closer when the run goes away in the
/// middle. What was streamed until then counts into the run's totals at once.
pub(crate) struct RecordPromise {
    open: Option<(Arc<RunState>, Slot, Called)>,
    input: u64,
    streamed: u64,
    /// What was generated at least, for all that anybody can know.
    unseen: u64,
    price: Option<Price>,
}

impl RecordPromise {
    pub(crate) fn new(
        run: Arc<RunState>,
        slot: Slot,
        called: Called,
        input: u64,
        price: Option<Price>,
    ) -> Self {
        Self { open: Some((run, slot, called)), input, streamed: 0, unseen: 0, price }
    }

    /// Keeps it: closes the hold and records how the call ended, also when nobody waits for that any more.
    pub(crate) fn keep(
        mut self,
        closing: Handoff<Result<Settled>>,
        usage: Usage,
        outcome: Outcome,
    ) -> Handoff<Result<()>> {
        let (run, slot, called) =
            self.open.take().expect("a promise is open until it is kept, and keeping consumes it");
        Handoff::new(slot, Box::pin(settle(run, called, closing, usage, outcome)))
    }
}

impl Drop for RecordPromise {
    fn drop(&mut self) {
        let Some((run, slot, called)) = self.open.take() else { return };
        let usage = Usage::new(self.input, self.streamed.max(self.unseen));
        let usage = usage.with_cost(self.price.map(|price| price.cost(&usage)).unwrap_or_default());
        run.used(usage);
        drop(Handoff::new(
            slot,
            Box::pin(async move {
                let outcome = Outcome { status: "cut_off", estimated: true, ..Outcome::default() };
                record(&run, called, &usage, &outcome).await
            }),
        ));
    }
}

/// Folds a stream into a reply, charging each piece as it arrives.
struct Fold<'m> {
    model: &'m dyn Model,
    reservation: Reservation<Sent>,
    promise: RecordPromise,
    text: String,
    calls: Vec<ToolCall>,
    /// Tokens of arguments that were counted piece by piece, and whose calls are still to come.
    counted_ahead: u64,
    provider_state: Option<Arc<str>>,
    bytes: usize,
    shown: bool,
}

impl<'m> Fold<'m> {
    fn new(model: &'m dyn Model, reservation: Reservation<Sent>, promise: RecordPromise) -> Self {
        Self {
            model,
            reservation,
            promise,
            text: String::new(),
            calls: Vec::new(),
            counted_ahead: 0,
            provider_state: None,
            bytes: 0,
            shown: false,
        }
    }

    async fn read(&mut self, run: &RunState, mut stream: ModelStream) -> Result<Done> {
        while let Some(delta) = stream.next().await {
            match delta? {
                Delta::Text(piece) => {
                    self.count(&piece)?;
                    self.text.push_str(&piece);
                    self.shown = true;
                    run.emit(|| EventKind::TextDelta { text: piece }).await;
                }
                Delta::Reasoning(piece) => {
                    self.count(&piece)?;
                }
                Delta::Arguments(piece) => {
                    self.counted_ahead = self.counted_ahead.saturating_add(self.count(&piece)?);
                }
                Delta::ToolCall(call) => {
                    self.count_call(&call)?;
                    self.add_call(call)?;
                }
                Delta::ProviderState(state) => {
                    self.weigh(state.len())?;
                    self.provider_state = Some(state);
                }
                Delta::Done(done) => return Ok(self.sound(done)),
            }
        }
        Err(Error::new(
            ErrorKind::Truncated,
            "the model's stream ended without its end; what was streamed is charged",
        ))
    }

    /// Counts a piece at once, so that a caller who goes away here has paid for it.
    fn count(&mut self, piece: &str) -> Result<u64> {
        let tokens = self.model.count_output(piece);
        self.charge(tokens);
        self.weigh(piece.len())?;
        Ok(tokens)
    }

    /// Counts what of a call was not counted while its arguments arrived.
    fn count_call(&mut self, call: &ToolCall) -> Result<()> {
        let tokens = self.model.count_output(&call.arguments);
        let ahead = self.counted_ahead.min(tokens);
        self.counted_ahead -= ahead;
        self.charge(tokens - ahead);
        self.weigh(call.arguments.len())
    }

    fn charge(&mut self, tokens: u64) {
        self.reservation.streamed(tokens);
        self.promise.streamed = self.promise.streamed.saturating_add(tokens);
    }

    fn weigh(&mut self, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_REPLY_BYTES {
            return Err(Error::new(
                ErrorKind::Truncated,
                format!("the model's reply is longer than {MAX_REPLY_BYTES} bytes"),
            ));
        }
        Ok(())
    }

    /// Adds a call under an id that is unique within the reply, whatever the provider sent.
    fn add_call(&mut self, mut call: ToolCall) -> Result<()> {
        if self.calls.len() >= MAX_CALLS {
            return Err(Error::new(
                ErrorKind::Truncated,
                format!("the model asked for more than {MAX_CALLS} tool calls"),
            ));
        }
        let mut number = self.calls.len();
        while call.id.is_empty() || self.calls.iter().any(|other| other.id == call.id) {
            call.id = Arc::from(format!("{}#{number}", call.id));
            number += 1;
        }
        self.calls.push(call);
        Ok(())
    }

    /// A stop reason that agrees with what was said, and calls that were said to their end: where the tokens ran out, one
    /// without arguments may be one whose arguments were still to come, and acting on it would be another call.
    fn sound(&mut self, mut done: Done) -> Done {
        if done.stop == StopReason::MaxTokens {
            self.calls.retain(|call| !call.arguments.trim().is_empty() && call.parse_arguments().is_ok());
        }
        if done.stop == StopReason::ToolUse && self.calls.is_empty() {
            done.stop = StopReason::End;
        }
        done
    }
}
