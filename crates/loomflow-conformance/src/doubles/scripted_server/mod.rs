//! A double of a provider's server that does exactly what a script says: it can stop, stall, break or go on for ever at any byte.

mod request;
mod script;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::select;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use request::Peer;
pub use request::Recorded;
pub use script::{Action, Head, Script};

/// The most connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// The most requests that are kept to be looked at; what comes after is served and counted.
const MAX_KEPT: usize = 20_000;
/// The most bytes of bodies that are kept.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// Chooses the script of a request by its content and its number, from 0.
type Handler = dyn Fn(&Recorded, u64) -> Script + Send + Sync;

/// A small HTTP/1.1 server on the loopback interface, for tests of clients. Dropping it ends every connection.
pub struct ScriptedServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    handler: Box<Handler>,
    books: Mutex<Books>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Books {
    connections: u64,
    requests: u64,
    kept: Vec<Arc<Recorded>>,
    kept_bytes: usize,
    exchanges: Vec<Exchange>,
}

/// How far the answer to one request came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exchange {
    /// Bytes of body that were really written: framing and heads left out.
    pub body_bytes: u64,
    /// Whether the client closed the connection before the script was through, or while it waited for that.
    pub client_closed: bool,
    /// Whether the script is through, or was cut off by the client.
    pub over: bool,
}

impl ScriptedServer {
    /// Listens on a free port of the loopback interface and serves each request by the script that `handler` gives.
    ///
    /// # Errors
    ///
    /// Whatever the system fails to listen with.
    pub async fn start(
        handler: impl Fn(&Recorded, u64) -> Script + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            books: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its root, such as `http://127.0.0.1:4711`, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections were accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.books().connections
    }

    /// How many requests were read to their end.
    #[must_use]
    pub fn request_count(&self) -> u64 {
        self.shared.books().requests
    }

    /// The requests, in the order in which they were read; the first 20,000 of them.
    #[must_use]
    pub fn requests(&self) -> Vec<Arc<Recorded>> {
        self.shared.books().kept.clone()
    }

    /// How far the answer to request `n` came; `None` when there was no such request.
    #[must_use]
    pub fn exchange(&self, n: u64) -> Option<Exchange> {
        let n = usize::try_from(n).ok()?;
        self.shared.books().exchanges.get(n).copied()
    }

    /// Waits until the answer to request `n`, one of the first 20,000, is over. It may still be to come.
    pub async fn over(&self, n: u64) -> Exchange {
        let mut changed = self.shared.changed.subscribe();
        loop {
            if let Some(exchange) = self.exchange(n).filter(|exchange| exchange.over) {
                return exchange;
            }
            // The sender lives in `self`, so waiting cannot fail.
            let _changed = changed.changed().await;
        }
    }

    /// Waits until `n` requests were read.
    pub async fn received(&self, n: u64) {
        let mut changed = self.shared.changed.subscribe();
        while self.request_count() < n {
            let _changed = changed.changed().await;
        }
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        // The task owns the connections' tasks.
        self.accepting.abort();
    }
}

impl fmt::Debug for ScriptedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScriptedServer({}, {} requests)", self.address, self.request_count())
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request into the books and gives it its number.
    fn record(&self, request: &Arc<Recorded>) -> u64 {
        let mut books = self.books();
        let n = books.requests;
        books.requests += 1;
        if books.kept.len() < MAX_KEPT && books.kept_bytes + request.body.len() <= MAX_KEPT_BYTES {
            books.kept_bytes += request.body.len();
            books.kept.push(request.clone());
        }
        if books.exchanges.len() < MAX_KEPT {
            books.exchanges.push(Exchange::default());
        }
        drop(books);
        self.changed.send_modify(|changes| *changes += 1);
        n
    }

    fn wrote(&self, n: u64, bytes: u64) {
        self.note(n, |exchange| exchange.body_bytes += bytes);
    }

    fn note(&self, n: u64, change: impl FnOnce(&mut Exchange)) {
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        if let Some(exchange) = self.books().exchanges.get_mut(n) {
            change(exchange);
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        // A connection that was gone before it was accepted is not worth a failure.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let number = {
            let mut books = shared.books();
            books.connections += 1;
            books.connections - 1
        };
        let shared = shared.clone();
        connections.spawn(async move {
            let _place = place;
            serve(stream, number, &shared).await;
        });
    }
}

async fn serve(stream: TcpStream, number: u64, shared: &Shared) {
    // Each action is to leave when it is done, not when the next one comes.
    let _slower = stream.set_nodelay(true);
    let mut peer = Peer { stream, ahead: Vec::new(), number };
    while let Some(request) = peer.request().await {
        let request = Arc::new(request);
        let n = shared.record(&request);
        let script = (shared.handler)(&request, n);
        let mut end = End::Through;
        for action in script.actions {
            end = act(&mut peer, action, n, shared).await;
            if end != End::Through {
                break;
            }
        }
        let over = |exchange: &mut Exchange| {
            exchange.over = true;
            exchange.client_closed |= end == End::ClientGone;
        };
        if end == End::Through && script.keep_alive {
            shared.note(n, over);
            shared.changed.send_modify(|changes| *changes += 1);
            continue;
        }
        if matches!(end, End::Through | End::Closed) {
            let _already_gone = peer.stream.shutdown().await;
        }
        drop(peer);
        shared.note(n, over);
        shared.changed.send_modify(|changes| *changes += 1);
        return;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The next action may follow.
    Through,
    /// The script closed the connection.
    Closed,
    /// The script broke it: dropping it, and nothing before that, is what sends the reset.
    Broken,
    /// The client did.
    ClientGone,
}

async fn act(peer: &mut Peer, action: Action, n: u64, shared: &Shared) -> End {
    let wrote = match action {
        Action::Head(bytes) => peer.stream.write_all(&bytes).await,
        Action::Send(bytes) => send(peer, &bytes, 1, n, shared).await,
        Action::Repeat(bytes, times) => send(peer, &bytes, times, n, shared).await,
        Action::Chunk(bytes) => chunk(peer, &bytes, 1, n, shared).await,
        Action::RepeatChunk(bytes, times) => chunk(peer, &bytes, times, n, shared).await,
        Action::EndChunks => peer.stream.write_all(b"0\r\n\r\n").await,
        Action::Pause(time) => return unless_gone(peer, tokio::time::sleep(time)).await,
        Action::Wait(gate) => return unless_gone(peer, gate.notified()).await,
        Action::Hang => return unless_gone(peer, std::future::pending()).await,
        Action::UntilClientCloses => {
            peer.closed().await;
            return End::ClientGone;
        }
        Action::Close => return End::Closed,
        Action::Reset => {
            let _already_gone = peer.stream.set_zero_linger();
            return End::Broken;
        }
    };
    if wrote.is_ok() { End::Through } else { End::ClientGone }
}

async fn send(peer: &mut Peer, bytes: &[u8], times: u64, n: u64, shared: &Shared) -> io::Result<()> {
    for _ in 0..times {
        let mut left = bytes;
        while !left.is_empty() {
            let wrote = peer.stream.write(left).await?;
            if wrote == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            shared.wrote(n, wrote as u64);
            left = &left[wrote..];
        }
    }
    Ok(())
}

async fn chunk(peer: &mut Peer, bytes: &[u8], times: u64, n: u64, shared: &Shared) -> io::Result<()> {
    let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
    framed.extend_from_slice(bytes);
    framed.extend_from_slice(b"\r\n");
    for _ in 0..times {
        peer.stream.write_all(&framed).await?;
        shared.wrote(n, bytes.len() as u64);
    }
    Ok(())
}

/// Waits for `waiting`, or until the client is gone.
async fn unless_gone(peer: &mut Peer, waiting: impl Future<Output = ()> + Send) -> End {
    match select(pin!(waiting), pin!(peer.closed())).await {
        futures_util::future::Either::Left(_) => End::Through,
        futures_util::future::Either::Right(_) => End::ClientGone,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    const ASK: &[u8] = b"POST /a?b=1 HTTP/1.1\r\nHost: x\r\nX-Key:  k \r\nContent-Length: 4\r\n\r\nbody";

    async fn ask(server: &ScriptedServer) -> TcpStream {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(ASK).await.unwrap();
        stream
    }

    async fn answer(server: &ScriptedServer) -> io::Result<String> {
        let mut text = Vec::new();
        ask(server).await.read_to_end(&mut text).await?;
        Ok(String::from_utf8(text).unwrap())
    }

    #[tokio::test]
    async fn a_request_is_recorded_and_answered_to_the_byte() {
        let server = ScriptedServer::start(|request, n| {
            assert_eq!(request.text(), "body");
            match n {
                0 => Script::whole(Head::new(200).with_content_type("text/plain"), "four"),
                1 => Script::new().head(&Head::new(200).chunked()).chunks(["a", "", "bc"]).end_chunks(),
                _ => {
                    Script::new().then(Action::Repeat(b"xy"[..].into(), 3)).then(Action::Close).send("never")
                }
            }
        })
        .await
        .unwrap();
        let whole = "HTTP/1.1 200 Scripted\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\nfour";
        assert_eq!(answer(&server).await.unwrap(), whole);
        let chunked =
            "HTTP/1.1 200 Scripted\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n";
        assert_eq!(answer(&server).await.unwrap(), chunked);
        assert_eq!(answer(&server).await.unwrap(), "xyxyxy");
        let requests = server.requests();
        assert_eq!((requests[0].method.as_str(), requests[0].path.as_str()), ("POST", "/a?b=1"));
        assert_eq!((requests[0].header("x-key"), requests.len()), (Some("k"), 3));
        assert_eq!((server.connections(), server.request_count()), (3, 3));
        let bytes = [server.over(0).await, server.over(1).await, server.over(2).await].map(|e| e.body_bytes);
        assert_eq!(bytes, [4, 3, 6], "framing is no body");
    }

    #[tokio::test]
    async fn a_connection_is_kept_where_the_script_says_so() {
        let server =
            ScriptedServer::start(|_, _| Script::whole(Head::new(200), "").keep_alive()).await.unwrap();
        let mut stream = ask(&server).await;
        let head = Head::new(200).with_length(0).to_string();
        for _ in 0..2 {
            let mut reply = vec![0; head.len()];
            stream.read_exact(&mut reply).await.unwrap();
            assert_eq!(reply, head.as_bytes());
            stream.write_all(ASK).await.unwrap();
        }
        server.received(3).await;
        assert_eq!((server.connections(), server.requests()[2].connection), (1, 0));
    }

    #[tokio::test]
    async fn it_breaks_stalls_and_sees_the_client_go() {
        let server = ScriptedServer::start(|_, n| match n {
            0 => Script::new().send("half").pause(Duration::from_millis(50)).then(Action::Reset),
            1 => Script::new().then(Action::Hang),
            2 => Script::new().then(Action::Repeat(vec![b'x'; 1 << 16].into(), u64::MAX)),
            _ => Script::new().then(Action::UntilClientCloses),
        })
        .await
        .unwrap();
        assert_eq!(answer(&server).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!((server.over(0).await.body_bytes, server.over(0).await.client_closed), (4, false));
        for n in 1..4 {
            let mut stream = ask(&server).await;
            server.received(n + 1).await;
            if n == 2 {
                stream.read_exact(&mut [0; 100_000]).await.unwrap();
            }
            assert!(!server.exchange(n).unwrap().over, "{n} waits");
            drop(stream);
            assert!(server.over(n).await.client_closed, "{n}");
        }
        assert!(server.exchange(2).unwrap().body_bytes >= 100_000);
    }

    #[tokio::test]
    async fn a_dropped_server_ends_its_connections() {
        let server = ScriptedServer::start(|_, _| Script::new().then(Action::Hang)).await.unwrap();
        let mut stream = ask(&server).await;
        server.received(1).await;
        drop(server);
        // Closed in order or broken: either way it is over.
        let end = stream.read(&mut [0; 1]).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}
