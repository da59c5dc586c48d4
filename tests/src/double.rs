//! A model double: answers by script, and keeps an invoice of its own from what it received and what it sent.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::stream;
use loomflow_core::{
    AdmittedCall, Delta, Done, Error, Model, ModelCapabilities, ModelRequest, ModelStream, Price, Result,
    RunContext, StopReason, ToolCall, Usage,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// One thing the double does within a stream.
#[derive(Debug)]
pub enum Step {
    /// Sends one piece of text.
    Say(String),
    /// Asks for a tool.
    Call(&'static str, String),
    /// Streams a piece of a call's arguments, which is what the provider bills for; the call follows.
    Piece(String),
    /// Asks for a tool whose arguments were streamed in pieces before.
    CallOfPieces(&'static str, String),
    /// Hands over what it wants back.
    State(&'static str),
    /// Stops for this reason.
    Stop(StopReason),
    /// Waits until somebody notifies.
    Wait(Arc<Notify>),
    /// Never goes on.
    Hang,
    /// Panics inside the stream.
    Panic,
    /// Fails inside the stream.
    Fail(Error),
    /// Ends the stream without its end.
    Cut,
    /// Ends without saying what was used.
    DoneWithoutUsage,
}

/// Says `text` word by word.
pub fn say(text: &str) -> Vec<Step> {
    text.split_inclusive(' ').map(|word| Step::Say(word.to_owned())).collect()
}

/// Asks for one tool.
pub fn call(tool: &'static str, arguments: &str) -> Vec<Step> {
    vec![Step::Call(tool, arguments.to_owned())]
}

type Script = dyn Fn(&ModelRequest, u64) -> Result<Vec<Step>> + Send + Sync;

/// The double. The script is asked for every call, with the request and the call's number from 0; its error is what
/// opening the stream fails with (and is not invoiced).
pub struct ModelDouble {
    script: Box<Script>,
    calls: AtomicU64,
    requests: Mutex<Vec<ModelRequest>>,
    books: Arc<Books>,
    price: Option<Price>,
    hidden_reasoning: bool,
}

#[derive(Default)]
struct Books {
    input: AtomicU64,
    output: AtomicU64,
}

impl ModelDouble {
    /// A double that does what `script` says.
    pub fn new(
        script: impl Fn(&ModelRequest, u64) -> Result<Vec<Step>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            script: Box::new(script),
            calls: AtomicU64::new(0),
            requests: Mutex::default(),
            books: Arc::default(),
            price: Some(Price::default()),
            hidden_reasoning: false,
        })
    }

    /// A double that does what `script` says, and may reason without a word.
    pub fn reasoning_in_silence(
        script: impl Fn(&ModelRequest, u64) -> Result<Vec<Step>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let mut double = Arc::into_inner(Self::new(script)).expect("nobody else has it yet");
        double.hidden_reasoning = true;
        Arc::new(double)
    }

    /// A double that always says `text`, word by word.
    pub fn saying(text: &'static str) -> Arc<Self> {
        Self::new(move |_, _| Ok(say(text)))
    }

    /// How many calls reached it, failed ones included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Everything it was asked.
    pub fn requests(&self) -> Vec<ModelRequest> {
        self.requests.lock().clone()
    }

    /// What it would bill: prompt and generated tokens.
    pub fn invoice(&self) -> (u64, u64) {
        (self.books.input.load(Ordering::SeqCst), self.books.output.load(Ordering::SeqCst))
    }
}

impl fmt::Debug for ModelDouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ModelDouble")
    }
}

/// The provider's own count: blanks separate tokens.
fn billed(text: &str) -> u64 {
    let mut tokens = 0;
    let mut inside = false;
    for byte in text.bytes() {
        let blank = byte.is_ascii_whitespace();
        tokens += u64::from(!blank && !inside);
        inside = !blank;
    }
    tokens
}

#[async_trait]
impl Model for ModelDouble {
    fn name(&self) -> &str {
        "double"
    }

    fn capabilities(&self) -> ModelCapabilities {
        ModelCapabilities::default().with_hidden_reasoning(self.hidden_reasoning)
    }

    fn price(&self) -> Option<Price> {
        self.price
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        request.messages.iter().map(|m| m.text.split_ascii_whitespace().count() as u64).sum()
    }

    fn count_output(&self, text: &str) -> u64 {
        text.split_ascii_whitespace().count() as u64
    }

    async fn stream(&self, _ctx: &RunContext, admitted: AdmittedCall) -> Result<ModelStream> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let request = admitted.into_request();
        let steps = (self.script)(&request, number)?;
        let input: u64 = request.messages.iter().map(|m| billed(&m.text)).sum();
        self.books.input.fetch_add(input, Ordering::SeqCst);
        self.requests.lock().push(request);
        let state = Streaming {
            steps: steps.into(),
            books: self.books.clone(),
            input,
            output: 0,
            asked: 0,
            over: false,
        };
        Ok(Box::pin(stream::unfold(state, Streaming::next)))
    }
}

struct Streaming {
    steps: VecDeque<Step>,
    books: Arc<Books>,
    input: u64,
    output: u64,
    asked: usize,
    over: bool,
}

impl Streaming {
    fn bill(&mut self, text: &str) {
        let tokens = billed(text);
        self.output += tokens;
        self.books.output.fetch_add(tokens, Ordering::SeqCst);
    }

    async fn next(mut self) -> Option<(Result<Delta>, Self)> {
        loop {
            if self.over {
                return None;
            }
            let delta = match self.steps.pop_front() {
                Some(Step::Say(text)) => {
                    self.bill(&text);
                    Ok(Delta::Text(text.into()))
                }
                Some(Step::Call(tool, arguments)) => {
                    self.bill(&arguments);
                    self.asked += 1;
                    Ok(Delta::ToolCall(ToolCall::new(format!("call_{}", self.asked), tool, arguments)))
                }
                Some(Step::Piece(piece)) => {
                    self.bill(&piece);
                    Ok(Delta::Arguments(piece.into()))
                }
                Some(Step::CallOfPieces(tool, arguments)) => {
                    self.asked += 1;
                    Ok(Delta::ToolCall(ToolCall::new(format!("call_{}", self.asked), tool, arguments)))
                }
                Some(Step::State(state)) => Ok(Delta::ProviderState(state.into())),
                Some(Step::Stop(stop)) => {
                    self.over = true;
                    Ok(Delta::Done(Done::new(Usage::new(self.input, self.output), stop)))
                }
                Some(Step::Wait(gate)) => {
                    gate.notified().await;
                    continue;
                }
                Some(Step::Hang) => std::future::pending().await,
                Some(Step::Panic) => panic!("the double panics on purpose"),
                Some(Step::Fail(error)) => {
                    self.over = true;
                    Err(error)
                }
                Some(Step::Cut) => {
                    self.over = true;
                    continue;
                }
                end @ (Some(Step::DoneWithoutUsage) | None) => {
                    self.over = true;
                    let stop = if self.asked > 0 { StopReason::ToolUse } else { StopReason::End };
                    Ok(Delta::Done(match end {
                        None => Done::new(Usage::new(self.input, self.output), stop),
                        Some(_) => Done::without_usage(stop),
                    }))
                }
            };
            return Some((delta, self));
        }
    }
}
