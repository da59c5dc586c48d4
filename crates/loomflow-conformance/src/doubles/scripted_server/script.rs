//! What a scripted server answers: a head, and then bytes, waits and ends in any order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// One thing the server does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Sends bytes of a head. They do not count as body.
    Head(Arc<[u8]>),
    /// Sends bytes as they are, and counts them as body.
    Send(Arc<[u8]>),
    /// Sends bytes as one chunk of a chunked body.
    Chunk(Arc<[u8]>),
    /// Sends the same bytes so many times, without ever holding them more than once.
    Repeat(Arc<[u8]>, u64),
    /// Sends the same bytes as one chunk, so many times.
    RepeatChunk(Arc<[u8]>, u64),
    /// Sends the end of a chunked body.
    EndChunks,
    /// Waits.
    Pause(Duration),
    /// Waits until somebody notifies.
    Wait(Arc<Notify>),
    /// Waits until the client has closed the connection.
    UntilClientCloses,
    /// Closes the connection in order (FIN).
    Close,
    /// Breaks the connection (RST). What the client has not read yet may be lost to it.
    Reset,
    /// Never goes on, until the client closes or the server is dropped.
    Hang,
}

/// What the server does for one request, step by step. At its end the connection is closed, unless
/// [`Script::keep_alive`] was called.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub(super) actions: Vec<Action>,
    pub(super) keep_alive: bool,
}

impl Script {
    /// Nothing: the connection is closed without an answer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A whole reply with its length.
    #[must_use]
    pub fn whole(head: Head, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        Self::new().head(&head.with_length(body.len() as u64)).send(body)
    }

    /// Adds an action.
    #[must_use]
    pub fn then(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }

    /// Sends a head.
    #[must_use]
    pub fn head(self, head: &Head) -> Self {
        self.then(Action::Head(head.to_string().as_bytes().into()))
    }

    /// Sends bytes as they are.
    #[must_use]
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Action::Send(bytes.as_ref().into()))
    }

    /// Sends one chunk; an empty one is left out, since it would end the body.
    #[must_use]
    pub fn chunk(self, bytes: impl AsRef<[u8]>) -> Self {
        if bytes.as_ref().is_empty() { self } else { self.then(Action::Chunk(bytes.as_ref().into())) }
    }

    /// Sends each piece as a chunk of its own.
    #[must_use]
    pub fn chunks<B: AsRef<[u8]>>(self, pieces: impl IntoIterator<Item = B>) -> Self {
        pieces.into_iter().fold(self, Self::chunk)
    }

    /// Ends a chunked body.
    #[must_use]
    pub fn end_chunks(self) -> Self {
        self.then(Action::EndChunks)
    }

    /// Waits.
    #[must_use]
    pub fn pause(self, time: Duration) -> Self {
        self.then(Action::Pause(time))
    }

    /// Waits until somebody notifies.
    #[must_use]
    pub fn wait(self, gate: Arc<Notify>) -> Self {
        self.then(Action::Wait(gate))
    }

    /// Waits for the client's next request on the same connection when the script is through, instead of closing it.
    #[must_use]
    pub fn keep_alive(mut self) -> Self {
        self.keep_alive = true;
        self
    }
}

/// The head of a reply. Without a length and without chunks the body ends when the connection does.
#[derive(Clone, Debug)]
pub struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// A head with this status and nothing else.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new() }
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Says what the body is.
    #[must_use]
    pub fn with_content_type(self, content_type: &str) -> Self {
        self.with_header("content-type", content_type)
    }

    /// Says that the body comes in chunks.
    #[must_use]
    pub fn chunked(self) -> Self {
        self.with_header("transfer-encoding", "chunked")
    }

    /// Says how long the body is, true or not.
    #[must_use]
    pub fn with_length(self, bytes: u64) -> Self {
        self.with_header("content-length", bytes.to_string())
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP/1.1 {} Scripted\r\n", self.status)?;
        self.headers.iter().try_for_each(|(name, value)| write!(f, "{name}: {value}\r\n"))?;
        f.write_str("\r\n")
    }
}
