//! Replies as bytes, and scripts that send them.

use std::sync::Arc;

use loomflow_core::Usage;

use super::{Wire, WireCall, WireEvent, WireReply};
use crate::doubles::{Head, Script};

/// The provider's id of every request.
pub(super) const REQUEST_ID: &str = "req-conformance-1";

/// The head of a streamed reply.
pub(super) fn streamed_head(wire: &dyn Wire) -> Head {
    head(wire, 200, wire.streamed_type())
}

/// A head with a media type and a request id. Nothing follows on the connection.
pub(super) fn head(wire: &dyn Wire, status: u16, media: &str) -> Head {
    Head::new(status)
        .with_content_type(media)
        .with_header(wire.request_id_header(), REQUEST_ID)
        .with_header("connection", "close")
}

/// The bytes of a streamed body.
pub(super) fn joined(events: &[WireEvent]) -> Vec<u8> {
    events.iter().flat_map(|event| event.bytes.iter().copied()).collect()
}

/// A whole reply, in one piece or streamed with a chunk for each event.
pub(super) fn answer(wire: &dyn Wire, reply: &WireReply, plain: bool) -> Script {
    if plain {
        return plain_answer(wire, reply);
    }
    let events = wire.streamed(reply);
    assert!(
        events.iter().any(|event| event.ends),
        "the harness marks no event that ends the reply: {events:?}"
    );
    Script::new()
        .head(&streamed_head(wire).chunked())
        .chunks(events.iter().map(|event| &event.bytes))
        .end_chunks()
}

fn plain_answer(wire: &dyn Wire, reply: &WireReply) -> Script {
    let body =
        wire.plain(reply).unwrap_or_else(|| panic!("a harness with plain replies has all of them plain"));
    Script::whole(head(wire, 200, wire.plain_type()), body)
}

/// An answer with an error status.
pub(super) fn refusal(wire: &dyn Wire, status: u16, message: &str) -> Script {
    Script::whole(head(wire, status, "application/json"), wire.error_body(status, message))
}

/// Whether the harness has replies in one piece.
pub(super) fn has_plain(wire: &dyn Wire) -> bool {
    wire.plain(&short()).is_some()
}

/// A short reply: four words in three pieces, one of them beyond ASCII.
pub(super) fn short() -> WireReply {
    WireReply::saying(["Falcons ", "über ", "the roof"])
}

/// A reply with text that every layer could trip over, and two calls.
pub(super) fn long() -> WireReply {
    WireReply::saying([
        "Two things: ",
        "a \"quoted\" back\\slash, ",
        "line\nbreaks\r\nand\ttabs, ",
        "data: [DONE]\n\n, ",
        "日本語 und \u{1f600}\u{1f469}\u{1f3fd} ",
        "and the end.",
    ])
    .with_call(WireCall::new("call_a", "wire__note", [r#"{"wh"#, r#"at":"fal"#, r#"con","n":1}"#]))
    .with_call(WireCall::new("call_b", "add", [r#"{"what":"#, r#""a\"b\u00e9日","n""#, ":22}"]))
    .with_usage(Some(Usage::new(120, 64).with_cache(20, 0)))
}

/// Bytes to be shared between many scripts.
pub(super) fn shared(bytes: Vec<u8>) -> Arc<[u8]> {
    bytes.into()
}
