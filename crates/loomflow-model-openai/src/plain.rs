//! The decoder of a reply in one body.

use std::sync::Arc;

use loomflow_core::{Delta, Error, ErrorKind, Result, ToolSpec};
use loomflow_support_model::{Decode, broke_protocol};

use crate::errors::{not_understood, read_error};
use crate::fold::Fold;
use crate::wire::Chunk;

/// The largest body: more than any model says in one reply.
const MAX_BYTES: usize = 8 << 20;

/// Decodes a `chat.completion` body, to the same reply as its stream would give.
#[derive(Debug)]
pub struct PlainDecoder {
    body: Vec<u8>,
    fold: Fold,
}

impl PlainDecoder {
    /// A decoder of the reply to a request with these tools, whose names it gives back as they are known here.
    #[must_use]
    pub fn new(tools: &[Arc<ToolSpec>]) -> Self {
        Self { body: Vec::new(), fold: Fold::new(tools) }
    }
}

impl Decode for PlainDecoder {
    fn push(&mut self, bytes: &[u8], _out: &mut Vec<Delta>) -> Result<()> {
        if self.body.len() + bytes.len() > MAX_BYTES {
            return Err(broke_protocol(format!("the reply is larger than {MAX_BYTES} bytes")));
        }
        self.body.extend_from_slice(bytes);
        Ok(())
    }

    /// Never: only the body's end is this reply's end.
    fn ended(&self) -> bool {
        false
    }

    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<()> {
        let body = std::mem::take(&mut self.body);
        let chunk: Chunk = serde_json::from_slice(&body).map_err(|e| unreadable(&body, &e))?;
        if chunk.error.is_none() && chunk.choices.0.is_empty() {
            return Err(match read_error(&body) {
                Some(report) => report.into_error(),
                None => broke_protocol("the reply is JSON without a choice, which is no chat completion"),
            });
        }
        if !self.fold.take(chunk, out)? {
            return Err(broke_protocol("the reply has no choice of index 0"));
        }
        self.fold.finish(out)
    }
}

fn unreadable(body: &[u8], error: &serde_json::Error) -> Error {
    if body.trim_ascii().is_empty() || error.is_eof() {
        return Error::new(ErrorKind::Truncated, "the reply's body ended before its JSON did");
    }
    if body.trim_ascii_start().starts_with(b"<") {
        return broke_protocol("the server answered with a page instead of JSON; check the base URL");
    }
    not_understood("the reply", error)
}
