//! The sans-I/O contract of a reply: bytes in, deltas out, and the bounds of both.

use loomflow_core::{Delta, Error, ErrorKind, Result};

/// The largest event of a stream: 1 MiB.
pub const MAX_EVENT_BYTES: usize = 1 << 20;
/// The largest body of a reply, streamed or not: 64 MiB of stream, and what a plain body may buffer is its adapter's
/// to bound below that.
pub const MAX_BODY_BYTES: usize = 64 << 20;
/// The most tool calls one reply may hold open.
pub const MAX_TOOL_SLOTS: usize = 128;
/// The most bytes of one call's arguments: 1 MiB.
pub const MAX_ARGUMENT_BYTES: usize = 1 << 20;

/// Decodes the body of one reply. No I/O: fed with bytes as they arrive, split anywhere, it gives the same deltas.
///
/// Adjacent [`Delta::Text`]s (and [`Delta::Reasoning`]s, and [`Delta::Arguments`]) may be split differently; their
/// concatenation may not differ.
pub trait Decode: Send + 'static {
    /// The next bytes of the body.
    ///
    /// # Errors
    ///
    /// The provider's own error within the stream, typed; [`broke_protocol`] for what cannot be understood or passes a
    /// bound. Nothing may be pushed afterwards.
    fn push(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<()>;

    /// Whether the reply's own end was seen. What still comes is not needed.
    fn ended(&self) -> bool;

    /// The body is over: the last deltas, [`Delta::Done`] the very last of them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Truncated`] when the reply's own end was never seen.
    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<()>;
}

/// The server sent something that its protocol does not know, or that passes a bound. Trying again is not expected to help.
#[must_use]
pub fn broke_protocol(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Transport, what).with_retryable(false)
}
