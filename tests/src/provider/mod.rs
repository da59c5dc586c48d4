//! A provider double at the other end of a real connection: it reads request bytes, answers on OpenAI's or Anthropic's
//! wire with seeded whims, and keeps an invoice of its own.
//!
//! Nothing here is shared with the adapters, the door or the ledger: requests are read as plain JSON, replies are
//! written by hand, and a token is a word.

mod anthropic;
mod books;
mod openai;
mod whim;

use std::sync::Arc;

use loomflow_conformance::doubles::{Action, Head, Recorded, Script, ScriptedServer};
use parking_lot::Mutex;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;

pub use books::{Account, Bill, Books, RATES};
pub use whim::{Call, End, Reply, Whims};

/// Whose wire is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Chat completions.
    OpenAi,
    /// Messages.
    Anthropic,
}

/// What goes back over the connection.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Headers besides those of the framing.
    pub headers: Vec<(&'static str, String)>,
    /// The body, in the pieces it is sent in.
    pub pieces: Vec<Vec<u8>>,
    /// How the body ends.
    pub end: End,
}

/// The double.
#[derive(Debug)]
pub struct ProviderDouble {
    wire: Wire,
    whims: Whims,
    luck: Mutex<StdRng>,
    books: Books,
}

impl ProviderDouble {
    /// A provider on `wire` whose moods follow from `seed`.
    pub fn new(wire: Wire, whims: Whims, seed: u64) -> Self {
        Self { wire, whims, luck: Mutex::new(StdRng::seed_from_u64(seed)), books: Books::default() }
    }

    /// What each customer owes.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// Puts the double behind a real connection.
    ///
    /// # Panics
    ///
    /// When the system has no port left.
    pub async fn serve(self: &Arc<Self>) -> ScriptedServer {
        let double = self.clone();
        let handler = move |request: &Recorded, _| script(double.answer(&request.headers, &request.body));
        ScriptedServer::start(handler).await.expect("there is a free port")
    }

    /// Answers one request of the customer whose key it carries.
    ///
    /// # Panics
    ///
    /// When the request is not what the wire prescribes: the adapter is wrong.
    pub fn answer(&self, headers: &[(String, String)], body: &[u8]) -> Answer {
        let customer = customer(self.wire, headers);
        self.books.welcome(&customer);
        let request: Value = serde_json::from_slice(body).expect("a request is JSON");
        let asked = match self.wire {
            Wire::OpenAi => openai::read(&request),
            Wire::Anthropic => anthropic::read(&request),
        };
        let mood = self.whims.mood(&mut self.luck.lock(), &asked);
        let Some(reply) = mood else {
            return self.refuse();
        };
        self.books.bill(&customer, &reply.bill);
        let pieces = match (self.wire, asked.streamed) {
            (Wire::OpenAi, true) => openai::stream(&reply),
            (Wire::OpenAi, false) => vec![openai::plain(&reply)],
            (Wire::Anthropic, true) => anthropic::stream(&reply),
            (Wire::Anthropic, false) => vec![anthropic::plain(&reply)],
        };
        let kind = if asked.streamed { "text/event-stream" } else { "application/json" };
        let headers = vec![("content-type", kind.to_owned()), ("x-request-id", "req_double".to_owned())];
        Answer { status: 200, headers, pieces, end: reply.end }
    }

    /// No order is taken.
    fn refuse(&self) -> Answer {
        let body = match self.wire {
            Wire::OpenAi => {
                r#"{"error":{"message":"later","type":"rate_limit_error","code":"rate_limit_exceeded"}}"#
            }
            Wire::Anthropic => r#"{"type":"error","error":{"type":"rate_limit_error","message":"later"}}"#,
        };
        Answer {
            status: 429,
            headers: vec![
                ("content-type", "application/json".to_owned()),
                ("retry-after-ms", "1".to_owned()),
            ],
            pieces: vec![body.into()],
            end: End::Clean,
        }
    }
}

/// The answer as a server's script. What is cut off ends without the end of its chunks.
fn script(answer: Answer) -> Script {
    let head =
        answer.headers.iter().fold(Head::new(answer.status), |h, (name, value)| h.with_header(*name, value));
    if answer.status != 200 {
        return Script::whole(head, answer.pieces.concat()).keep_alive();
    }
    let script = Script::new().head(&head.chunked()).chunks(answer.pieces);
    match answer.end {
        End::Clean => script.end_chunks().keep_alive(),
        End::Cut => script.then(Action::Close),
        End::Hang => script.then(Action::UntilClientCloses),
    }
}

/// What a request asks for.
#[derive(Debug, Default)]
pub struct Asked {
    /// Words of the prompt.
    pub prompt: u64,
    /// The most words of the reply.
    pub most: u64,
    /// The tools on offer, by their names on the wire.
    pub tools: Vec<String>,
    /// Outcomes of tools that the prompt ends with.
    pub outcomes: usize,
    /// Whether the reply is to be streamed.
    pub streamed: bool,
    /// Whether the reply is to meet a schema.
    pub schema: bool,
    /// After how many words the user wants it to hang: the last user message says `hang:N`.
    pub hang_after: Option<usize>,
}

/// How long a user who writes `hang:N` wants to be answered.
fn hang_after(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("hang:")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Words in a text.
pub fn words(text: &str) -> u64 {
    text.split_whitespace().fold(0, |count, _| count + 1)
}

/// Words in all strings of a value, names of members left out.
pub fn words_within(value: &Value) -> u64 {
    match value {
        Value::String(text) => words(text),
        Value::Array(items) => items.iter().map(words_within).sum(),
        Value::Object(members) => members.values().map(words_within).sum(),
        _ => 0,
    }
}

fn customer(wire: Wire, headers: &[(String, String)]) -> String {
    let header = |name: &str| {
        let mut found = headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.clone());
        assert!(found.next().is_none(), "{name} is sent once");
        value
    };
    match wire {
        Wire::OpenAi => {
            let bearer = header("authorization").expect("a key is sent");
            bearer.strip_prefix("Bearer ").expect("as a bearer token").to_owned()
        }
        Wire::Anthropic => {
            assert_eq!(header("anthropic-version").as_deref(), Some("2023-06-01"));
            header("x-api-key").expect("a key is sent")
        }
    }
}
