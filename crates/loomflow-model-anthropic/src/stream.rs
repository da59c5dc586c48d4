//! Decodes a streamed reply.
//!
//! The API's events: `message_start`, then for each block `content_block_start`, `content_block_delta`s and
//! `content_block_stop`, then `message_delta` and `message_stop`; `ping` and `error` at any time. What an event is stands in
//! its data, so servers that leave the event's name out are understood; events and blocks to come are skipped.

use std::borrow::Cow;

use loomflow_core::{Delta, Error, ErrorKind, ModelRequest, Result};
use loomflow_support_model::sse::EventReader;
use loomflow_support_model::{Decode, MAX_EVENT_BYTES, broke_protocol};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::blocks::{Block, Blocks, ToolNames};
use crate::errors::{error_of_body, not_understood};
use crate::usage::{Report, Reports};

/// Decodes a streamed reply of the Messages API.
///
/// The reply's end is `message_stop`, or the body's end after the reason why the model stopped was told. A body that ends
/// before is [`ErrorKind::Truncated`].
#[derive(Debug)]
pub struct StreamDecoder {
    reader: EventReader,
    reply: Reply,
}

#[derive(Debug)]
struct Reply {
    blocks: Option<Blocks>,
    reports: Reports,
    stop: Option<String>,
    ended: bool,
}

impl StreamDecoder {
    /// A decoder for the reply to `request`, whose tools' names it restores.
    #[must_use]
    pub fn new(request: &ModelRequest) -> Self {
        let reply = Reply {
            blocks: Some(Blocks::new(ToolNames::of(request))),
            reports: Reports::default(),
            stop: None,
            ended: false,
        };
        Self { reader: EventReader::new(MAX_EVENT_BYTES), reply }
    }
}

impl Decode for StreamDecoder {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<()> {
        let Self { reader, reply } = self;
        if reply.ended {
            return Ok(());
        }
        match reader.push(bytes, &mut |event| reply.take(event.data, out)) {
            // Whatever is wrong with bytes behind the end, they are not part of the reply.
            Err(_) if reply.ended => Ok(()),
            read => read,
        }
    }

    fn ended(&self) -> bool {
        self.reply.ended
    }

    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<()> {
        let Self { reader, reply } = self;
        if !reply.ended {
            reader.finish(&mut |event| reply.take(event.data, out))?;
        }
        if !reply.ended && reply.stop.is_none() {
            return Err(Error::new(
                ErrorKind::Truncated,
                "the reply was cut off: its stream ended before the model said why it stopped",
            ));
        }
        let blocks = reply.blocks.take().ok_or_else(|| broke_protocol("the reply was finished before"))?;
        blocks.finish(reply.stop.as_deref(), &reply.reports, out);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct MessageStart {
    #[serde(default)]
    message: Option<StartedMessage>,
}

#[derive(Deserialize)]
struct StartedMessage {
    #[serde(default)]
    usage: Option<Report>,
}

#[derive(Deserialize)]
struct BlockStart<'a> {
    #[serde(default)]
    index: Option<u64>,
    #[serde(borrow)]
    content_block: &'a RawValue,
}

#[derive(Deserialize)]
struct BlockStop {
    #[serde(default)]
    index: Option<u64>,
}

#[derive(Deserialize)]
struct BlockDelta<'a> {
    #[serde(default)]
    index: Option<u64>,
    #[serde(borrow)]
    delta: Piece<'a>,
}

#[derive(Deserialize)]
struct Piece<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    thinking: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    signature: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    partial_json: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct MessageDelta {
    #[serde(default)]
    delta: Option<Stopped>,
    #[serde(default)]
    usage: Option<Report>,
}

#[derive(Deserialize)]
struct Stopped {
    #[serde(default)]
    stop_reason: Option<String>,
}

impl Reply {
    fn take(&mut self, data: &str, out: &mut Vec<Delta>) -> Result<()> {
        // Some gateways end every stream as OpenAI's do.
        if self.ended || data.is_empty() || data == "[DONE]" {
            return Ok(());
        }
        let Some(blocks) = &mut self.blocks else {
            return Err(broke_protocol("the reply was finished before"));
        };
        let head: Head<'_> = parse(data)?;
        match &*head.kind {
            "message_start" => {
                let start: MessageStart = parse(data)?;
                if let Some(report) = start.message.and_then(|message| message.usage) {
                    self.reports.add(&report, false);
                }
            }
            "content_block_start" => {
                let BlockStart { index, content_block } = parse(data)?;
                blocks.start(index, Block::read(content_block)?, out)?;
            }
            "content_block_delta" => take_piece(blocks, data, out)?,
            "content_block_stop" => match parse::<BlockStop>(data)?.index {
                None => blocks.stop_last(),
                index => blocks.stop(index),
            },
            "message_delta" => {
                let delta: MessageDelta = parse(data)?;
                if let Some(report) = &delta.usage {
                    self.reports.add(report, true);
                }
                self.stop = delta.delta.and_then(|delta| delta.stop_reason).or(self.stop.take());
            }
            "message_stop" => self.ended = true,
            "error" => return Err(failed(data)),
            // Gateways put an error that is not theirs into an event without a type.
            "" => return error_of_body(data.as_bytes()).map_or(Ok(()), Err),
            _ => {}
        }
        Ok(())
    }
}

fn failed(data: &str) -> Error {
    let untold =
        || Error::new(ErrorKind::Transport, "the provider ended the reply with an error it does not name");
    error_of_body(data.as_bytes()).unwrap_or_else(untold)
}

fn take_piece(blocks: &mut Blocks, data: &str, out: &mut Vec<Delta>) -> Result<()> {
    let BlockDelta { index, delta } = match parse(data) {
        Ok(delta) => delta,
        // A piece of a kind to come may have members of any type.
        Err(why) => return if parse::<AnyDelta<'_>>(data)?.is_known() { Err(why) } else { Ok(()) },
    };
    match &*delta.kind {
        TEXT => blocks.text(&delta.text.unwrap_or_default(), out),
        THINKING => blocks.thinking(index, &delta.thinking.unwrap_or_default(), out)?,
        SIGNATURE => blocks.signature(index, &delta.signature.unwrap_or_default())?,
        ARGUMENTS => blocks.arguments(index, &delta.partial_json.unwrap_or_default(), out)?,
        _ => {}
    }
    Ok(())
}

const TEXT: &str = "text_delta";
const THINKING: &str = "thinking_delta";
const SIGNATURE: &str = "signature_delta";
const ARGUMENTS: &str = "input_json_delta";

#[derive(Deserialize)]
struct AnyDelta<'a> {
    #[serde(borrow)]
    delta: Head<'a>,
}

impl AnyDelta<'_> {
    fn is_known(&self) -> bool {
        [TEXT, THINKING, SIGNATURE, ARGUMENTS].contains(&&*self.delta.kind)
    }
}

fn parse<'a, T: Deserialize<'a>>(data: &'a str) -> Result<T> {
    serde_json::from_str(data).map_err(|why| not_understood("an event of the reply", &why))
}
