//! What the provider feels like answering.

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};

use super::{Asked, Bill, words};

/// How the body of a reply ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Clean,
    /// The connection is closed.
    Cut,
    /// Nothing more comes, until the client goes away.
    Hang,
}

/// A tool call of a reply: the name on the wire, and the arguments in the pieces they are streamed in.
#[derive(Clone, Debug)]
pub struct Call {
    /// The call's id.
    pub id: String,
    /// The tool's name on the wire.
    pub name: String,
    /// The arguments.
    pub pieces: Vec<String>,
}

/// A reply, what of it is sent, and what it costs.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What is said, word by word.
    pub text: Vec<String>,
    /// What is asked for.
    pub calls: Vec<Call>,
    /// How many pieces (of text, then of arguments) are sent; all of them where the end is clean.
    pub sent: usize,
    /// Whether the usage is told.
    pub tells_usage: bool,
    /// What is billed.
    pub bill: Bill,
    /// How it ends.
    pub end: End,
}

/// How often the provider does what, in a hundred.
#[derive(Clone, Copy, Debug)]
pub struct Whims {
    /// Refuses the order.
    pub refuses: u32,
    /// Cuts a streamed reply off.
    pub cuts: u32,
    /// Does not tell the usage.
    pub silent: u32,
    /// Asks for tools.
    pub asks: u32,
}

impl Whims {
    /// A provider that always answers, in full.
    pub const KIND: Self = Self { refuses: 0, cuts: 0, silent: 0, asks: 50 };

    pub(super) fn mood(&self, luck: &mut StdRng, asked: &Asked) -> Option<Reply> {
        if let Some(count) = asked.hang_after {
            let text = (0..count).map(|word| format!("h{word} ")).collect();
            let bill = Bill { input: asked.prompt, cached: 0, output: count as u64 };
            return Some(Reply {
                text,
                calls: vec![],
                sent: count,
                tells_usage: false,
                bill,
                end: End::Hang,
            });
        }
        let mut chance = |percent: u32| luck.random_range(0..100) < percent;
        if chance(self.refuses) {
            return None;
        }
        let (asks, tells_usage) = (chance(self.asks), !chance(self.silent));
        // Drawn in any case, so that one seed means the same replies on every wire, streamed or plain.
        let (cuts, obeys) = (chance(self.cuts), chance(70));
        let end = if asked.streamed && cuts { End::Cut } else { End::Clean };
        let mut left = asked.most;
        let mut text = said(luck, &mut left);
        if asked.schema && obeys {
            text = ["{\"answer\":\"", "yes ", "indeed\"}"].map(str::to_owned).into();
        }
        let calls =
            if asks && asked.outcomes < 6 { calls(luck, &asked.tools, &mut left) } else { Vec::new() };
        let all = text.len() + calls.iter().map(|call| call.pieces.len()).sum::<usize>();
        let sent = if end == End::Clean { all } else { luck.random_range(1..=all) };
        let cached = if tells_usage && end == End::Clean { luck.random_range(0..=asked.prompt) } else { 0 };
        let pieces = text.iter().chain(calls.iter().flat_map(|call| &call.pieces));
        let output = if asked.streamed && (end == End::Cut || !tells_usage) {
            // What can be counted without being told: the pieces as they came.
            pieces.take(sent).map(|piece| words(piece)).sum()
        } else {
            words(&text.concat()) + calls.iter().map(|call| words(&call.pieces.concat())).sum::<u64>()
        };
        let bill = Bill { input: asked.prompt, cached, output };
        Some(Reply { text, calls, sent, tells_usage, bill, end })
    }
}

/// Some words, at least one.
fn said(luck: &mut StdRng, left: &mut u64) -> Vec<String> {
    let count = luck.random_range(1..=6).min((*left).max(1));
    *left = left.saturating_sub(count);
    (0..count).map(|_| format!("w{} ", luck.next_u32() % 100)).collect()
}

/// Up to three calls of the tools on offer, as far as the words last.
fn calls(luck: &mut StdRng, tools: &[String], left: &mut u64) -> Vec<Call> {
    if tools.is_empty() {
        return Vec::new();
    }
    let mut calls = Vec::new();
    for _ in 0..luck.random_range(1..=3) {
        if *left < 5 {
            break;
        }
        *left -= 5;
        let name = tools[luck.random_range(0..tools.len())].clone();
        let id = format!("call_{:08x}", luck.next_u32());
        let pieces = vec!["{\"q\":\"".to_owned(), format!("é{} ", luck.next_u32() % 10), "two\"}".to_owned()];
        calls.push(Call { id, name, pieces });
    }
    calls
}
