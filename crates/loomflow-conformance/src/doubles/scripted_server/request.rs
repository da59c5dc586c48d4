//! Reads one request off a connection, within bounds.

use std::borrow::Cow;
use std::fmt;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// The largest head of a request.
const MAX_HEAD: usize = 64 << 10;
/// The largest body of a request.
const MAX_BODY: usize = 16 << 20;

/// A request as it came in.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recorded {
    /// The method, such as `POST`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The headers in order, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// On which connection it came, from 0.
    pub connection: u64,
}

impl Recorded {
    /// The first header of that name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// The body as JSON, if it is.
    #[must_use]
    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Whether `text` stands anywhere in it: path, headers or body.
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        self.path.contains(text)
            || self.headers.iter().any(|(_, value)| value.contains(text))
            || self.text().contains(text)
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?} {}", self.method, self.path, self.headers, self.text())
    }
}

/// A connection, and what of the next request was read ahead.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    pub(super) ahead: Vec<u8>,
    pub(super) number: u64,
}

impl Peer {
    /// The next request; `None` when the client is gone, or sent what cannot be read within bounds.
    pub(super) async fn request(&mut self) -> Option<Recorded> {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            self.read_more(MAX_HEAD).await?;
        };
        let head = String::from_utf8_lossy(&self.ahead[..end]).into_owned();
        self.ahead.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length: usize = length.map_or(Some(0), |(_, value)| value.parse().ok())?;
        if length > MAX_BODY {
            return None;
        }
        while self.ahead.len() < length {
            self.read_more(MAX_BODY).await?;
        }
        let body = self.ahead.drain(..length).collect();
        Some(Recorded { method, path, headers, body, connection: self.number })
    }

    async fn read_more(&mut self, most: usize) -> Option<()> {
        if self.ahead.len() >= most {
            return None;
        }
        match self.stream.read_buf(&mut self.ahead).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }

    /// Waits until the client has closed its side, keeping what it may send before.
    pub(super) async fn closed(&mut self) {
        while self.read_more(MAX_HEAD).await.is_some() {}
    }
}
