//! A server that answers by script, a decoder that understands it, and a context to call from.

use loomflow_core::danger::{assume_scope, detached_context};
use loomflow_core::{
    Delta, Done, Epoch, Error, ErrorKind, Identity, Namespace, Result, RunContext, Secret, StopReason,
};
use loomflow_support_model::{Auth, Decode, Post, Reported};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const KEY: &str = "sk-test-1234567890";

pub(crate) fn context() -> RunContext {
    detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO))
}

pub(crate) fn post() -> Post {
    let key = std::sync::Arc::new(Secret::new(KEY.to_owned()));
    Post::new("/chat", Auth::bearer(Some(key)), b"{}".to_vec())
}

/// Reads `{"error":{"code","message"}}`.
pub(crate) fn read_error(body: &[u8]) -> Option<Reported> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = body.get("error")?;
    let text =
        |name: &str| error.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    Some(Reported::new([text("code")], text("message")))
}

/// What the server does after it has read a request.
#[derive(Clone)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Says nothing and keeps the connection, until the client gives up.
    Hang,
    /// Says a little again and again, until the client gives up.
    Drip(Vec<u8>),
}

pub(crate) fn send(bytes: impl Into<Vec<u8>>) -> Step {
    Step::Send(bytes.into())
}

/// An answer with these header lines and a body of known length.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(crate) fn chunked(headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{headers}transfer-encoding: chunked\r\n\r\n").into_bytes()
}

pub(crate) fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

/// Serves every connection by `script`, then closes it. Gives the address, and the requests as they come, each with the number of its
/// connection.
pub(crate) async fn serve(
    script: Vec<Step>,
) -> (String, tokio::sync::mpsc::UnboundedReceiver<(usize, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (seen, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(play(stream, number, script.clone(), seen.clone()));
        }
    });
    (url, requests)
}

async fn play(
    mut stream: TcpStream,
    number: usize,
    script: Vec<Step>,
    seen: tokio::sync::mpsc::UnboundedSender<(usize, String)>,
) {
    while let Some(request) = read_request(&mut stream).await {
        let _ = seen.send((number, request));
        let mut lasting = false;
        for step in &script {
            match step {
                Step::Send(bytes) => {
                    if stream.write_all(bytes).await.is_err() {
                        return;
                    }
                    lasting |= bytes.ends_with(b"0\r\n\r\n");
                }
                Step::Drip(bytes) => {
                    while stream.write_all(bytes).await.is_ok() {
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    }
                    return;
                }
                Step::Hang => {
                    // Whichever way the client goes, it is gone.
                    let _ = stream.read(&mut [0; 1]).await;
                    let _ = seen.send((number, "gone".to_owned()));
                    return;
                }
            }
        }
        if !lasting {
            return;
        }
    }
}

/// One request with its body, as text.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(text);
        }
    }
}

/// Everything is text, up to `END`; a body may also be over after `STOP`.
#[derive(Default)]
pub(crate) struct UntilEnd {
    pub(crate) name: &'static str,
    seen: String,
}

impl UntilEnd {
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, seen: String::new() }
    }
}

impl Decode for UntilEnd {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<Delta>) -> Result<()> {
        let text = String::from_utf8_lossy(bytes);
        if text.contains("BAD") {
            out.push(Delta::Text("before".into()));
            return Err(Error::new(ErrorKind::Overloaded, format!("it said {text} with {KEY}")));
        }
        self.seen = format!("{}{}", &self.seen[self.seen.len().saturating_sub(3)..], text);
        out.push(Delta::Text(text.as_ref().into()));
        Ok(())
    }

    fn ended(&self) -> bool {
        self.seen.contains("END")
    }

    fn finish(&mut self, out: &mut Vec<Delta>) -> Result<()> {
        // Like a reason to stop: more may follow, and need not.
        if !self.ended() && !self.seen.contains("STOP") {
            return Err(Error::new(ErrorKind::Truncated, "no end"));
        }
        out.push(Delta::Done(Done::without_usage(StopReason::Other(self.name.to_owned()))));
        Ok(())
    }
}
