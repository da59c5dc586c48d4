//! A test double: a model that follows a script, one for each user.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use hashbrown::HashMap;
use loomflow_core::{
    AdmittedCall, Delta, Done, Error, ErrorKind, Model, ModelRequest, ModelStream, Owner, Price, Result,
    RunContext, StopReason, ToolCall, Usage, UserId,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::model::count_words;

/// How many requests are recorded; the oldest go first.
const MAX_REQUESTS: usize = 10_000;

/// What a [`ScriptedModel`] answers to one call.
#[derive(Clone, Debug, Default)]
pub struct ScriptStep {
    pieces: Vec<Piece>,
    usage: Option<Usage>,
    stop: Option<StopReason>,
    refused: Option<(ErrorKind, String)>,
    truncated: bool,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(Arc<str>),
    Call(ToolCall),
    Fail(ErrorKind, String),
    Delay(Duration),
    Gate(Arc<Semaphore>),
}

impl ScriptStep {
    /// An answer with nothing in it yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An answer of one piece of text.
    #[must_use]
    pub fn reply(text: impl Into<Arc<str>>) -> Self {
        Self::new().text(text)
    }

    /// A call that fails before the stream begins: the provider took no order.
    #[must_use]
    pub fn refuse(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { refused: Some((kind, message.into())), ..Self::new() }
    }

    /// Streams a piece of text.
    #[must_use]
    pub fn text(self, text: impl Into<Arc<str>>) -> Self {
        self.piece(Piece::Text(text.into()))
    }

    /// Asks for a tool.
    #[must_use]
    pub fn tool_call(
        self,
        id: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
        arguments: impl Into<Arc<str>>,
    ) -> Self {
        self.piece(Piece::Call(ToolCall::new(id, name, arguments)))
    }

    /// Waits before what follows.
    #[must_use]
    pub fn delay(self, lasting: Duration) -> Self {
        self.piece(Piece::Delay(lasting))
    }

    /// Waits before what follows until `gate` has a permit, and uses it up.
    #[must_use]
    pub fn gate(self, gate: Arc<Semaphore>) -> Self {
        self.piece(Piece::Gate(gate))
    }

    /// Fails within the stream; nothing follows.
    #[must_use]
    pub fn fail(self, kind: ErrorKind, message: impl Into<String>) -> Self {
        self.piece(Piece::Fail(kind, message.into()))
    }

    /// Ends the stream without its end.
    #[must_use]
    pub fn truncated(mut self) -> Self {
        self.truncated = true;
        self
    }

    /// Says what the call used. Otherwise words are counted.
    #[must_use]
    pub fn usage(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }

    /// Says why it stops. Otherwise `ToolUse` where it asks for a tool, `End` where it does not.
    #[must_use]
    pub fn stop(mut self, stop: StopReason) -> Self {
        self.stop = Some(stop);
        self
    }

    fn piece(mut self, piece: Piece) -> Self {
        self.pieces.push(piece);
        self
    }

    fn done(&self, input: u64) -> Done {
        let calls = self.pieces.iter().any(|piece| matches!(piece, Piece::Call(_)));
        let stop = self.stop.clone().unwrap_or(if calls { StopReason::ToolUse } else { StopReason::End });
        let words = self.pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.split_whitespace().count() as u64,
            Piece::Call(call) => 1 + call.arguments.split_whitespace().count() as u64,
            _ => 0,
        });
        Done::new(self.usage.unwrap_or_else(|| Usage::new(input, words.sum())), stop)
    }
}

/// A test double: answers from a script and records what it was asked.
///
/// Every user (and the anonymous bucket, in each namespace) follows its script from its own beginning: the one that
/// [`script_for`](Self::script_for) gave it, or else the common one. No position is shared, so what one user is told
/// never depends on how often another asked. A script that is exhausted is an error that names the user.
pub struct ScriptedModel {
    common: Vec<ScriptStep>,
    scripts: HashMap<UserId, Vec<ScriptStep>>,
    price: Option<Price>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    given: HashMap<Owner, usize>,
    requests: VecDeque<(Owner, ModelRequest)>,
}

impl ScriptedModel {
    /// A model without a script.
    #[must_use]
    pub fn new() -> Self {
        Self {
            common: Vec::new(),
            scripts: HashMap::new(),
            price: Some(Price::default()),
            state: Mutex::default(),
        }
    }

    /// Adds a text answer to the common script.
    #[must_use]
    pub fn reply(self, text: impl Into<Arc<str>>) -> Self {
        self.step(ScriptStep::reply(text))
    }

    /// Adds an answer that asks for one tool to the common script.
    #[must_use]
    pub fn tool_call(
        self,
        id: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
        arguments: impl Into<Arc<str>>,
    ) -> Self {
        self.step(ScriptStep::new().tool_call(id, name, arguments))
    }

    /// Adds an answer to the common script.
    #[must_use]
    pub fn step(mut self, step: ScriptStep) -> Self {
        self.common.push(step);
        self
    }

    /// Gives `user` a script of its own.
    #[must_use]
    pub fn script_for(mut self, user: UserId, steps: Vec<ScriptStep>) -> Self {
        self.scripts.insert(user, steps);
        self
    }

    /// Sets the price; it is free otherwise. `None` is a price nobody knows.
    #[must_use]
    pub fn with_price(mut self, price: Option<Price>) -> Self {
        self.price = price;
        self
    }

    /// What it was asked, oldest first, by whom: at most the last 10,000 requests.
    #[must_use]
    pub fn requests(&self) -> Vec<(Owner, ModelRequest)> {
        self.state.lock().requests.iter().cloned().collect()
    }

    /// What it was asked by `user`, in any namespace, oldest first.
    #[must_use]
    pub fn requests_of(&self, user: &UserId) -> Vec<ModelRequest> {
        let state = self.state.lock();
        let own = state.requests.iter().filter(|(owner, _)| owner.user_id() == Some(user));
        own.map(|(_, request)| request.clone()).collect()
    }

    fn next_step(&self, owner: &Owner, request: &ModelRequest) -> Result<ScriptStep> {
        let script = owner.user_id().and_then(|user| self.scripts.get(user)).unwrap_or(&self.common);
        let mut state = self.state.lock();
        if state.requests.len() == MAX_REQUESTS {
            state.requests.pop_front();
        }
        state.requests.push_back((owner.clone(), request.clone()));
        let given = state.given.entry(owner.clone()).or_default();
        match script.get(*given) {
            Some(step) => {
                *given += 1;
                Ok(step.clone())
            }
            None => Err(Error::new(
                ErrorKind::BadRequest,
                format!("the script for {owner:?} is exhausted: all of its {given} steps were given"),
            )),
        }
    }
}

impl Default for ScriptedModel {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ScriptedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedModel")
            .field("common", &self.common.len())
            .field("scripts", &self.scripts.len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Model for ScriptedModel {
    fn name(&self) -> &str {
        "scripted"
    }

    fn price(&self) -> Option<Price> {
        self.price
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        count_words(request)
    }

    fn count_output(&self, text: &str) -> u64 {
        text.split_whitespace().count() as u64
    }

    async fn stream(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        let step = self.next_step(ctx.scope().owner(), call.request())?;
        if let Some((kind, message)) = step.refused {
            return Err(Error::new(kind, message));
        }
        let done = (!step.truncated).then(|| step.done(count_words(call.request())));
        Ok(Box::pin(stream::unfold((step.pieces.into_iter(), done), play)))
    }
}

type Playing = (std::vec::IntoIter<Piece>, Option<Done>);

/// The next thing a stream delivers; waiting happens in here.
async fn play((mut pieces, mut done): Playing) -> Option<(Result<Delta>, Playing)> {
    loop {
        let delta = match pieces.next() {
            Some(Piece::Delay(lasting)) => {
                tokio::time::sleep(lasting).await;
                continue;
            }
            Some(Piece::Gate(gate)) => {
                if let Ok(permit) = gate.acquire().await {
                    permit.forget();
                }
                continue;
            }
            Some(Piece::Text(text)) => Ok(Delta::Text(text)),
            Some(Piece::Call(call)) => Ok(Delta::ToolCall(call)),
            Some(Piece::Fail(kind, message)) => {
                return Some((Err(Error::new(kind, message)), (Vec::new().into_iter(), None)));
            }
            None => Ok(Delta::Done(done.take()?)),
        };
        return Some((delta, (pieces, done)));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use loomflow_core::danger::{admit, assume_scope, detached_context};
    use loomflow_core::{Epoch, Identity, Message, Namespace};

    use super::*;

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    fn context(id: &str) -> RunContext {
        detached_context(assume_scope(Namespace::default(), Identity::User(user(id)), Epoch::ZERO))
    }

    async fn ask(model: &ScriptedModel, id: &str) -> Result<Vec<Result<Delta>>> {
        let request = ModelRequest::new(vec![Message::user(format!("I am {id}"))], 100);
        Ok(model.stream(&context(id), admit(request)).await?.collect().await)
    }

    async fn text(model: &ScriptedModel, id: &str) -> String {
        let deltas = ask(model, id).await.unwrap();
        deltas
            .into_iter()
            .filter_map(|d| if let Ok(Delta::Text(t)) = d { Some(t.to_string()) } else { None })
            .collect()
    }

    #[tokio::test]
    async fn everybody_follows_its_own_script() {
        let model = ScriptedModel::new()
            .reply("one")
            .reply("two")
            .script_for(user("user_1"), vec![ScriptStep::new().text("own ").text("words")]);
        assert_eq!(text(&model, "user_10").await, "one");
        assert_eq!(text(&model, "User_1").await, "one");
        assert_eq!(text(&model, "user_1").await, "own words");
        assert_eq!(text(&model, "user_10").await, "two");
        let error = ask(&model, "user_10").await.unwrap_err().to_string();
        assert!(error.contains("user_10") && error.contains("2 steps"), "{error}");
        assert_eq!(text(&model, "User_1").await, "two");
        assert_eq!(model.requests().len(), 6);
        assert_eq!(&*model.requests_of(&user("user_1"))[0].messages[0].text, "I am user_1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_can_fail_wait_and_break_off() {
        let gate = Arc::new(Semaphore::new(0));
        let model = ScriptedModel::new()
            .step(ScriptStep::refuse(ErrorKind::Overloaded, "busy"))
            .step(ScriptStep::reply("a").fail(ErrorKind::Transport, "cut").text("never"))
            .step(ScriptStep::reply("a").truncated())
            .step(ScriptStep::new().delay(Duration::from_secs(5)).text("late").usage(Usage::new(7, 9)))
            .step(ScriptStep::new().gate(gate.clone()).tool_call("c1", "pay", "{}"));
        assert_eq!(ask(&model, "a").await.unwrap_err().kind(), ErrorKind::Overloaded);
        let failed = ask(&model, "a").await.unwrap();
        assert!(failed.len() == 2 && failed[1].is_err());
        assert_eq!(ask(&model, "a").await.unwrap().len(), 1);
        let started = tokio::time::Instant::now();
        let late = ask(&model, "a").await.unwrap();
        assert_eq!(started.elapsed().as_secs(), 5);
        assert!(matches!(&late[1], Ok(Delta::Done(done)) if done.usage == Some(Usage::new(7, 9))));
        assert!(tokio::time::timeout(Duration::from_secs(60), ask(&model, "a")).await.is_err());
        gate.add_permits(1);
        let model = ScriptedModel::new().step(ScriptStep::new().gate(gate).tool_call("c1", "pay", "{}"));
        let called = ask(&model, "a").await.unwrap();
        assert!(matches!(&called[1], Ok(Delta::Done(done)) if done.stop == StopReason::ToolUse));
    }
}
