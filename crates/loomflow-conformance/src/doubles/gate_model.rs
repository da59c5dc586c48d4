//! A double of a model that holds its calls back, and of the provider that bills them.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use loomflow_core::{
    AdmittedCall, Delta, Done, Message, Model, ModelRequest, ModelStream, Price, Result, RunContext,
    StopReason, Usage, UserId,
};
use tokio::sync::watch;

/// A double of [`Model`] that holds each call until a number of calls are in flight at once, or until it is released,
/// and then answers with a fixed text, word by word.
///
/// Tokens are words. It keeps an invoice of its own, computed from the bytes it received and the words it handed out, so
/// that a ledger's count can be compared with a provider's: a call that is dropped while it is held is billed its
/// prompt, a stream that is dropped is billed what it had delivered.
#[derive(Clone, Debug)]
pub struct GateModel {
    provider: Arc<Provider>,
    reply: Arc<str>,
    price: Option<Price>,
}

/// One call on the provider's invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvoiceLine {
    /// Who called; `None` for the anonymous bucket.
    pub user: Option<UserId>,
    /// The words that were received.
    pub input_tokens: u64,
    /// The words that were handed out.
    pub output_tokens: u64,
}

#[derive(Debug)]
struct Provider {
    opens_at: usize,
    in_flight: watch::Sender<Gate>,
    invoice: Mutex<Vec<InvoiceLine>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Gate {
    in_flight: usize,
    most: usize,
    open: bool,
}

impl GateModel {
    /// A model that holds its calls until `calls` of them are in flight at once; then, and ever after, it answers.
    #[must_use]
    pub fn new(calls: usize) -> Self {
        let gate = Gate { open: calls <= 1, ..Gate::default() };
        let provider =
            Provider { opens_at: calls, in_flight: watch::Sender::new(gate), invoice: Mutex::default() };
        Self { provider: Arc::new(provider), reply: "this is the reply".into(), price: None }
    }

    /// Sets what it answers.
    #[must_use]
    pub fn with_reply(mut self, reply: impl Into<Arc<str>>) -> Self {
        self.reply = reply.into();
        self
    }

    /// Sets its price. Without one, a cost cap refuses it.
    #[must_use]
    pub fn with_price(mut self, price: Price) -> Self {
        self.price = Some(price);
        self
    }

    /// Lets every call through, those that wait and those to come.
    pub fn release(&self) {
        self.provider.in_flight.send_modify(|gate| gate.open = true);
    }

    /// How many calls are in flight: held, or streaming.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.provider.in_flight.borrow().in_flight
    }

    /// The most calls that were in flight at once.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.provider.in_flight.borrow().most
    }

    /// Every call that was received, in order, with what it is billed so far.
    #[must_use]
    pub fn invoice(&self) -> Vec<InvoiceLine> {
        self.provider.invoice.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A call on the provider's side: its line of the invoice, and its place among those in flight.
#[derive(Debug)]
struct Call {
    provider: Arc<Provider>,
    line: usize,
}

impl Call {
    /// Takes a call in: bills its prompt, and counts it among those in flight.
    fn receive(provider: &Arc<Provider>, user: Option<UserId>, received: &[u8]) -> Self {
        let line = InvoiceLine { user, input_tokens: words_of(received), output_tokens: 0 };
        let line = {
            let mut invoice = provider.invoice.lock().unwrap_or_else(PoisonError::into_inner);
            invoice.push(line);
            invoice.len() - 1
        };
        provider.in_flight.send_modify(|gate| {
            gate.in_flight += 1;
            gate.most = gate.most.max(gate.in_flight);
            gate.open |= gate.in_flight >= provider.opens_at;
        });
        Self { provider: provider.clone(), line }
    }

    /// Bills one word, and says what the call is billed now.
    fn deliver(&self, words: u64) -> Usage {
        let mut invoice = self.provider.invoice.lock().unwrap_or_else(PoisonError::into_inner);
        let line = &mut invoice[self.line];
        line.output_tokens += words;
        Usage::new(line.input_tokens, line.output_tokens)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.provider.in_flight.send_modify(|gate| gate.in_flight -= 1);
    }
}

/// The provider's own count: runs of bytes between ASCII blanks, over everything that came in.
fn words_of(bytes: &[u8]) -> u64 {
    let mut words = 0;
    let mut inside = false;
    for byte in bytes {
        let blank = byte.is_ascii_whitespace();
        words += u64::from(!blank && !inside);
        inside = !blank;
    }
    words
}

/// What goes over the wire: every message's text, and what it calls, one after the other.
fn wire(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        bytes.extend_from_slice(message.text.as_bytes());
        bytes.push(b'\n');
        for call in message.calls() {
            bytes.extend_from_slice(call.name.as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(call.arguments.as_bytes());
            bytes.push(b'\n');
        }
    }
    bytes
}

#[async_trait]
impl Model for GateModel {
    fn name(&self) -> &str {
        "gate-double"
    }

    fn price(&self) -> Option<Price> {
        self.price
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        let said = |m: &Message| {
            let calls: usize = m
                .calls()
                .iter()
                .map(|c| {
                    c.name.split_ascii_whitespace().count() + c.arguments.split_ascii_whitespace().count()
                })
                .sum();
            (m.text.split_ascii_whitespace().count() + calls) as u64
        };
        request.messages.iter().map(said).sum()
    }

    fn count_output(&self, text: &str) -> u64 {
        text.split_ascii_whitespace().count() as u64
    }

    async fn stream(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        let request = call.into_request();
        let call = Call::receive(&self.provider, ctx.user_id().cloned(), &wire(&request.messages));
        let mut gate = self.provider.in_flight.subscribe();
        // The sender lives in the provider that this call holds, so waiting cannot fail.
        let _open = gate.wait_for(|gate| gate.open).await;
        let words: Vec<Arc<str>> =
            self.reply.split_ascii_whitespace().map(|word| Arc::from(format!("{word} "))).collect();
        let allowed = usize::try_from(request.max_output_tokens).unwrap_or(usize::MAX);
        let cut = words.len() > allowed;
        let mut words = words.into_iter().take(allowed);
        let mut call = Some(call);
        Ok(Box::pin(futures_util::stream::poll_fn(move |_| {
            let Some(current) = &call else { return std::task::Poll::Ready(None) };
            let delta = match words.next() {
                Some(word) => {
                    current.deliver(1);
                    Delta::Text(word)
                }
                None => {
                    let stop = if cut { StopReason::MaxTokens } else { StopReason::End };
                    let done = Delta::Done(Done::new(current.deliver(0), stop));
                    call = None;
                    done
                }
            };
            std::task::Poll::Ready(Some(Ok(delta)))
        })))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt as _;
    use loomflow_core::danger;

    use super::*;
    use crate::fixture::World;

    async fn ask(model: GateModel, name: &'static str, words: &'static str, most: u64) -> Vec<Delta> {
        let ctx = danger::detached_context(World::new().user(name));
        let request = ModelRequest::new(vec![Message::user(words)], most);
        assert_eq!(
            model.count_tokens(&request),
            words_of(&wire(&request.messages)),
            "two counts, one number"
        );
        let stream = model.stream(&ctx, danger::admit(request)).await.unwrap();
        stream.map(|delta| delta.unwrap()).collect().await
    }

    #[tokio::test]
    async fn calls_are_held_until_enough_are_in_flight() {
        let model = GateModel::new(3);
        let first = tokio::spawn(ask(model.clone(), "a", "one", 9));
        let second = tokio::spawn(ask(model.clone(), "b", "one two", 9));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!first.is_finished() && !second.is_finished());
        assert_eq!((model.in_flight(), model.invoice().len()), (2, 2));
        let third = ask(model.clone(), "c", " one  two\tthree ", 2).await;
        let Some(Delta::Done(done)) = third.last() else { panic!("no end: {third:?}") };
        assert_eq!((done.usage, &done.stop), (Some(Usage::new(3, 2)), &StopReason::MaxTokens));
        first.await.unwrap();
        second.await.unwrap();
        assert_eq!((model.in_flight(), model.most_in_flight()), (0, 3));
        let output: Vec<_> = model.invoice().iter().map(|line| line.output_tokens).collect();
        assert_eq!(output, [4, 4, 2]);
    }

    #[tokio::test]
    async fn an_aborted_stream_is_billed_what_it_delivered() {
        let model = GateModel::new(2);
        let held = tokio::spawn(ask(model.clone(), "a", "one two", 9));
        tokio::time::sleep(Duration::from_millis(50)).await;
        held.abort();
        assert!(held.await.unwrap_err().is_cancelled());
        model.release();
        let ctx = danger::detached_context(World::new().user("b"));
        let request = ModelRequest::new(vec![Message::user("one")], 9);
        let mut stream = model.stream(&ctx, danger::admit(request)).await.unwrap();
        stream.next().await;
        drop(stream);
        let billed: Vec<_> = model.invoice().iter().map(|l| (l.input_tokens, l.output_tokens)).collect();
        assert_eq!((billed, model.in_flight()), (vec![(2, 0), (1, 1)], 0));
    }
}
