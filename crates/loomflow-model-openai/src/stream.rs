//! The decoder of a streamed reply.

use std::sync::Arc;

use loomflow_core::{Delta, Error, ErrorKind, Result, ToolSpec};
use loomflow_support_model::sse::{Event, EventReader};
use loomflow_support_model::{Decode, MAX_EVENT_BYTES, broke_protocol};

use crate::errors::{not_understood, read_error, within_reply};
use crate::fold::Fold;
use crate::wire::Chunk;

/// Decodes a stream of `chat.completion.chunk` events.
///
/// Its end is `data: [DONE]`, or the end of the body after a `finish_reason`; a body that ends without either was cut off.
#[derive(Debug)]
pub struct StreamDecoder {
    events: EventReader,
    reply: Reply,
}

#[derive(Debug)]
struct Reply {
    fold: Fold,
    done: bool,
}

impl StreamDecoder {
    /// A decoder of the reply to a request with these tools, whose names it gives back as they are known here.
    #[must_use]
    pub fn new(tools: &[Arc<ToolSpec>]) -> Self {
        let reply = Reply { fold: Fold::new(tools), done: false };
        Self { events: EventReader::new(MAX_EVENT_BYTES), reply }
    }
}

impl Decode for StreamDecoder {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<()> {
        let read = self.events.push(bytes, &mut |event| self.reply.take(event, out));
        // What stands behind the reply's own end is no part of it, not even where it came in one piece with it.
        if self.reply.done { Ok(()) } else { read }
    }

    fn ended(&self) -> bool {
        self.reply.done
    }

    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<()> {
        if !self.reply.done {
            self.events.finish(&mut |event| self.reply.take(event, out))?;
        }
        if !self.reply.done && !self.reply.fold.is_finished() {
            return Err(Error::new(
                ErrorKind::Truncated,
                "the stream ended without a finish_reason and without [DONE]",
            ));
        }
        self.reply.fold.finish(out)
    }
}

impl Reply {
    fn take(&mut self, event: Event<'_>, out: &mut Vec<Delta>) -> Result<()> {
        let data = event.data.trim();
        if self.done || data.is_empty() {
            return Ok(());
        }
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        if event.name == "error" {
            return Err(event_error(data));
        }
        let chunk: Chunk =
            serde_json::from_str(data).map_err(|e| not_understood("an event of the reply", &e))?;
        if chunk.object.0 == "error" && chunk.error.is_none() {
            return Err(event_error(data));
        }
        self.fold.take(chunk, out).map(drop)
    }
}

/// An event that is an error as a whole.
fn event_error(data: &str) -> Error {
    match read_error(data.as_bytes()) {
        Some(report) => report.into_error(),
        None => serde_json::from_str(data)
            .map_or_else(|_| broke_protocol("the reply has an error event that is not JSON"), within_reply),
    }
}
