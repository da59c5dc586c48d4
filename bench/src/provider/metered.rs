//! The provider of the profile `full`: it bills what it received and what it handed over, fails on demand, and shows
//! every byte of every prompt to the watch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use loomflow_core::{
    AdmittedCall, Delta, Done, Error, ErrorKind, Message, Model, ModelRequest, ModelStream, Result, Role,
    RunContext, StopReason, ToolCall, Usage,
};

use crate::canary::Canaries;
use crate::plan::{Script, Trouble};
use crate::population::Population;
use crate::provider::Invoice;
use crate::watch::{Channel, Watch};

/// How long a provider that stalls stalls: far beyond every deadline of the load.
const STALL: Duration = Duration::from_secs(600);

/// A model double that bills by the word.
#[derive(Debug)]
pub struct MeteredModel(Arc<Desk>);

/// What the double and its open streams share.
#[derive(Debug)]
struct Desk {
    people: Arc<Population>,
    canaries: Arc<Canaries>,
    watch: Arc<Watch>,
    invoice: Arc<Invoice>,
    arrived: AtomicU64,
    answered: AtomicU64,
    longest_prompt: AtomicU64,
}

impl MeteredModel {
    /// A double that bills to `invoice`.
    #[must_use]
    pub fn new(
        people: Arc<Population>,
        canaries: Arc<Canaries>,
        watch: Arc<Watch>,
        invoice: Arc<Invoice>,
    ) -> Self {
        let (arrived, answered, longest_prompt) = Default::default();
        Self(Arc::new(Desk { people, canaries, watch, invoice, arrived, answered, longest_prompt }))
    }

    /// Calls that reached the provider. Each is on record, also where its caller went away in the middle.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.0.arrived.load(Ordering::Relaxed)
    }

    /// Calls that were answered in full.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.0.answered.load(Ordering::Relaxed)
    }

    /// The most messages any call got.
    #[must_use]
    pub fn longest_prompt(&self) -> u64 {
        self.0.longest_prompt.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Model for MeteredModel {
    fn name(&self) -> &str {
        "metered"
    }

    // What core is told. The invoice below counts with code of its own.
    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        let words = |text: &str| text.split_ascii_whitespace().count() as u64;
        let weigh = |m: &Message| words(&m.text) + m.calls().iter().map(|c| words(&c.arguments)).sum::<u64>();
        request.messages.iter().map(weigh).sum()
    }

    fn count_output(&self, text: &str) -> u64 {
        text.split_ascii_whitespace().count() as u64
    }

    async fn stream(&self, ctx: &RunContext, call: AdmittedCall) -> Result<ModelStream> {
        let desk = &self.0;
        let attempt = call.attempt();
        let request = call.into_request();
        let tenant = desk
            .people
            .place(ctx.user_id())
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a call for a tenant nobody knows"))?;
        let received = desk.receive(tenant, &request);
        desk.arrived.fetch_add(1, Ordering::Relaxed);
        // Billed on arrival: whoever hangs up while the order is looked at has ordered.
        desk.invoice.received(tenant, received);
        let script = Script::read(ctx.metadata());
        tokio::task::yield_now().await;
        if attempt == 1
            && let Some(error) = refusal(script.trouble)
        {
            if error.kind() != ErrorKind::Transport {
                desk.invoice.refused(tenant, received);
            }
            return Err(error);
        }
        let reply = desk.reply(&script, &request, attempt);
        let open = Open { desk: desk.clone(), tenant, received, generated: 0, reply, begun: false };
        Ok(Box::pin(stream::unfold(Some(open), Open::next)))
    }
}

/// What the provider says before it takes an order, if it takes none. A broken connection is the exception: it took one.
fn refusal(trouble: Trouble) -> Option<Error> {
    Some(match trouble {
        Trouble::Overloaded => Error::new(ErrorKind::Overloaded, "the provider is overloaded"),
        Trouble::RateLimited => {
            Error::new(ErrorKind::RateLimited, "too many requests").with_retry_after(Duration::from_millis(1))
        }
        Trouble::Transport => Error::new(ErrorKind::Transport, "the connection broke"),
        _ => return None,
    })
}

/// A reply that is being handed over.
struct Open {
    desk: Arc<Desk>,
    tenant: usize,
    received: u64,
    generated: u64,
    reply: Reply,
    begun: bool,
}

struct Reply {
    pieces: VecDeque<Delta>,
    ending: Ending,
    stall: bool,
}

enum Ending {
    Done { stop: StopReason, usage: bool },
    Broken,
    CutOff,
}

impl Open {
    async fn next(open: Option<Self>) -> Option<(Result<Delta>, Option<Self>)> {
        let mut open = open?;
        tokio::task::yield_now().await;
        if open.reply.stall && open.begun {
            tokio::time::sleep(STALL).await;
        }
        open.begun = true;
        if let Some(piece) = open.reply.pieces.pop_front() {
            let words = match &piece {
                Delta::Text(text) | Delta::Reasoning(text) => words(text.as_bytes()),
                Delta::ToolCall(call) => words(call.arguments.as_bytes()),
                _ => 0,
            };
            // Nothing is awaited between here and the caller, so what is billed was received.
            open.generated += words;
            open.desk.invoice.generated(open.tenant, words);
            return Some((Ok(piece), Some(open)));
        }
        match open.reply.ending {
            Ending::Done { stop, usage } => {
                open.desk.answered.fetch_add(1, Ordering::Relaxed);
                let done = if usage {
                    Done::new(Usage::new(open.received, open.generated), stop)
                } else {
                    Done::without_usage(stop)
                };
                Some((Ok(Delta::Done(done)), None))
            }
            Ending::Broken => {
                Some((Err(Error::new(ErrorKind::Overloaded, "the provider failed in the middle")), None))
            }
            Ending::CutOff => None,
        }
    }
}

impl Desk {
    /// Counts what arrived, and shows it to the watch.
    fn receive(&self, tenant: usize, request: &ModelRequest) -> u64 {
        self.longest_prompt.fetch_max(request.messages.len() as u64, Ordering::Relaxed);
        let mut received = 0;
        for message in request.messages.iter() {
            received += words(message.text.as_bytes());
            self.watch.look(tenant, Channel::Prompt, message.text.as_bytes());
            for call in message.calls() {
                received += words(call.arguments.as_bytes());
                self.watch.look(tenant, Channel::Prompt, call.arguments.as_bytes());
            }
        }
        received
    }

    fn reply(&self, script: &Script, request: &ModelRequest, attempt: u32) -> Reply {
        let allowed = usize::try_from(request.max_output_tokens).unwrap_or(usize::MAX);
        let canary = self.asked_about(&request.messages);
        let answered = request.messages.last().is_some_and(|message| message.role == Role::Tool);
        let mut ending = Ending::Done { stop: StopReason::End, usage: !script.silent };
        let mut pieces: VecDeque<Delta> = if script.tools > 0 && !answered {
            ending = Ending::Done { stop: StopReason::ToolUse, usage: !script.silent };
            (0..script.tools).map(|n| Delta::ToolCall(tool_call(n, canary))).collect()
        } else if request.output_schema.is_some() {
            structured(&request.messages, canary)
        } else {
            let text = format!("noted {canary} and will keep it between the two of us from now on");
            text.split_inclusive(' ').map(|word| Delta::Text(word.into())).collect()
        };
        if pieces.len() > allowed {
            pieces.truncate(allowed);
            ending = Ending::Done { stop: StopReason::MaxTokens, usage: !script.silent };
        }
        if attempt == 1 {
            match script.trouble {
                Trouble::BrokenAtOnce => (pieces.clear(), ending = Ending::Broken).1,
                Trouble::BrokenLater => (pieces.truncate(2), ending = Ending::Broken).1,
                Trouble::CutOff => (pieces.truncate(3), ending = Ending::CutOff).1,
                _ => {}
            }
        }
        Reply { pieces, ending, stall: script.stall }
    }

    /// The canary of the newest message that has one: the tenant's own words, which come after all that is remembered.
    fn asked_about<'m>(&self, messages: &'m [Message]) -> &'m str {
        let said = messages.iter().rev().filter(|m| m.role == Role::User);
        said.filter_map(|m| self.canaries.first_in(&m.text)).next().unwrap_or("nothing")
    }
}

fn tool_call(n: usize, canary: &str) -> ToolCall {
    let name = if n == 0 { "lookup" } else { "keep" };
    ToolCall::new(format!("call_{n}"), name, format!("{{\"key\":\"{canary}\"}}"))
}

/// Misses the schema the first time and meets it when it is told so.
fn structured(messages: &[Message], canary: &str) -> VecDeque<Delta> {
    let told = messages.last().is_some_and(|m| m.text.starts_with("The answer does not meet"));
    let text = if told { format!("{{\"kept\":\"{canary}\"}}") } else { "certainly, here it is".to_owned() };
    text.split_inclusive(' ').map(|word| Delta::Text(word.into())).collect()
}

/// Words: beginnings of runs of bytes that are not blank. The provider's own way of counting.
pub(crate) fn words(bytes: &[u8]) -> u64 {
    let mut inside = false;
    let mut count = 0;
    for byte in bytes {
        let blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c);
        count += u64::from(!inside && !blank);
        inside = !blank;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_after_blanks() {
        for (text, n) in [("", 0), ("  ", 0), ("a", 1), (" a  b\nc\t", 3), ("\u{a0}x y", 2), ("{\"a\":1}", 1)]
        {
            assert_eq!(words(text.as_bytes()), n, "{text:?}");
        }
    }
}
