//! Decodes a reply that came whole, as one JSON body.

use loomflow_core::{Delta, Error, ErrorKind, ModelRequest, Result};
use loomflow_support_model::{BoundedList, Decode, broke_protocol};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::blocks::{Block, Blocks, ToolNames};
use crate::errors::{error_of_body, not_understood};
use crate::usage::{Report, Reports};

/// The largest plain body of a reply: 8 MiB. The longest answer of any model is a fraction of it.
pub const MAX_PLAIN_BYTES: usize = 8 << 20;

/// The most blocks that a plain reply may have.
const MAX_BLOCKS: usize = 4_096;

/// Decodes a plain reply of the Messages API to the deltas that the same reply streamed would have.
#[derive(Debug)]
pub struct PlainDecoder {
    names: ToolNames,
    body: Vec<u8>,
}

impl PlainDecoder {
    /// A decoder for the reply to `request`, whose tools' names it restores.
    #[must_use]
    pub fn new(request: &ModelRequest) -> Self {
        Self { names: ToolNames::of(request), body: Vec::new() }
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: BoundedList<&'a RawValue, MAX_BLOCKS>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    usage: Option<Report>,
}

impl Decode for PlainDecoder {
    fn push(&mut self, bytes: &[u8], _: &mut Vec<Delta>) -> Result<()> {
        if self.body.len() + bytes.len() > MAX_PLAIN_BYTES {
            self.body = Vec::new();
            return Err(broke_protocol(format!("the reply is larger than {MAX_PLAIN_BYTES} bytes")));
        }
        self.body.extend_from_slice(bytes);
        Ok(())
    }

    fn ended(&self) -> bool {
        false
    }

    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<()> {
        let body = std::mem::take(&mut self.body);
        let message: Message<'_> = match serde_json::from_slice(&body) {
            Ok(message) => message,
            Err(why) => return Err(not_a_message(&body, &why)),
        };
        let mut blocks = Blocks::new(std::mem::take(&mut self.names));
        for (index, block) in (0..).zip(message.content.0) {
            blocks.start(Some(index), Block::read(block)?, out)?;
            blocks.stop(Some(index));
        }
        let mut reports = Reports::default();
        reports.add(&message.usage.unwrap_or_default(), true);
        blocks.finish(message.stop_reason.as_deref(), &reports, out);
        Ok(())
    }
}

fn not_a_message(body: &[u8], why: &serde_json::Error) -> Error {
    error_of_body(body).unwrap_or_else(|| match why.classify() {
        serde_json::error::Category::Eof => {
            Error::new(ErrorKind::Truncated, "the reply was cut off: its body ended too early")
        }
        _ => not_understood("the reply", why),
    })
}
