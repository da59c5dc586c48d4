//! From an answer's body to a reply's pieces.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream;
use loomflow_core::{Delta, Error, ErrorKind, ModelStream, Result};

use crate::decode::{Decode, MAX_BODY_BYTES, broke_protocol};
use crate::response::Response;
use crate::status::{shown, what_it_is};
use crate::text::provider_text;

/// How long a connection is waited for after the reply's own end, so that it can be used again.
const LINGER: Duration = Duration::from_millis(5);

/// Which form of reply was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a reply comes in pieces or in one")]
pub enum Asked {
    /// A stream of events.
    Streamed,
    /// One body.
    Plain,
}

/// The pieces of a successful answer.
///
/// The answer's media type decides which decoder reads it, and what was asked for decides where it says nothing: some
/// servers answer in one body whatever they are asked. Errors carry the provider and the request's id, [`Delta::Done`] the
/// latter. Dropping the stream gives up the connection.
///
/// # Errors
///
/// [`broke_protocol`] for an answer that is a page, or compressed. It is not known what such a server did, so the call is charged.
pub async fn reply_stream(
    mut response: Response,
    asked: Asked,
    streamed: impl Decode,
    plain: impl Decode,
) -> Result<ModelStream> {
    let media = response.media_type();
    let is_json = media == "application/json" || media.ends_with("+json");
    if let Some(encoding) = response.header("content-encoding").filter(|encoding| *encoding != "identity") {
        let message = format!(
            "the server answered in the encoding {:?}, which it was not offered",
            provider_text(encoding)
        );
        return Err(response.tell(broke_protocol(message)));
    }
    match (media.as_str(), asked) {
        ("text/html" | "application/xhtml+xml", _) => Err(page(&mut response).await),
        _ if is_json => Ok(drive(response, plain)),
        ("text/event-stream", _) | (_, Asked::Streamed) => Ok(drive(response, streamed)),
        (_, Asked::Plain) => Ok(drive(response, plain)),
    }
}

async fn page(response: &mut Response) -> Error {
    let body = response.explanation(8 << 10).await;
    let text = String::from_utf8_lossy(&body);
    let message = format!(
        "the server answered with {}: {}; check the base URL",
        what_it_is(text.trim_start()),
        shown(&text)
    );
    response.tell(broke_protocol(message).with_context("http_status", response.status()))
}

fn drive(response: Response, decoder: impl Decode) -> ModelStream {
    let reply = Reply { response: Some(response), decoder, bytes: 0, ready: VecDeque::new(), error: None };
    Box::pin(stream::unfold(reply, |mut reply| async move { reply.next().await.map(|item| (item, reply)) }))
}

struct Reply<D> {
    /// `None` once the reply is over, whichever way.
    response: Option<Response>,
    decoder: D,
    bytes: usize,
    ready: VecDeque<Delta>,
    /// What comes after the pieces that are ready.
    error: Option<Error>,
}

impl<D: Decode> Reply<D> {
    async fn next(&mut self) -> Option<Result<Delta>> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                return Some(Ok(delta));
            }
            if let Some(error) = self.error.take() {
                return Some(Err(error));
            }
            self.advance().await?;
        }
    }

    /// Reads one piece of the body, or ends the reply; `None` when it has ended before.
    async fn advance(&mut self) -> Option<()> {
        // Taken out, so that whatever ends the reply ends the connection, too.
        let mut response = self.response.take()?;
        let mut out = Vec::new();
        let failure = match response.chunk().await {
            Ok(Some(chunk)) => match self.push(chunk.as_ref(), &mut out) {
                Ok(()) if self.decoder.ended() => {
                    linger(&mut response).await;
                    self.decoder.finish(&mut out).err()
                }
                Ok(()) => {
                    self.keep(&response, out);
                    self.response = Some(response);
                    return Some(());
                }
                Err(error) => Some(error),
            },
            Ok(None) => self.decoder.finish(&mut out).err(),
            // A reply whose end was seen is good, even where the connection's end was not.
            Err(error) => self.decoder.finish(&mut out).err().map(|finish| graver(finish, error)),
        };
        self.error = failure.map(|error| response.tell(error));
        self.keep(&response, out);
        Some(())
    }

    fn push(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > MAX_BODY_BYTES {
            return Err(broke_protocol(format!("the reply is larger than {MAX_BODY_BYTES} bytes")));
        }
        self.decoder.push(bytes, out)
    }

    fn keep(&mut self, response: &Response, out: Vec<Delta>) {
        self.ready.extend(out.into_iter().map(|delta| match (delta, response.told().request_id()) {
            (Delta::Done(done), Some(id)) if done.request_id.is_none() => {
                Delta::Done(done.with_request_id(id.as_ref()))
            }
            (delta, _) => delta,
        }));
    }
}

/// The decoder only misses the end; the connection knows why there is none.
fn graver(finish: Error, connection: Error) -> Error {
    if finish.kind() == ErrorKind::Truncated { connection } else { finish }
}

/// Reads to the body's end where that is at hand: only then can the connection be used again.
async fn linger(response: &mut Response) {
    let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
    // Whatever still came, or did not, the reply is whole.
    let _ = tokio::time::timeout(LINGER, rest).await;
}
