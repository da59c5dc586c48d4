//! A double of the network between a client and a real server: it cuts, stalls, delays, refuses and half-closes connections.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// The most connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1_024;
/// The most bytes that one direction of one connection has in hand.
const CHUNK: usize = 16 << 10;

/// A TCP proxy on the loopback interface, for tests of clients of real servers: it passes bytes on until it is told to do harm.
///
/// A fault holds until it is lifted; [`cut`](Self::cut) and [`half_close`](Self::half_close) strike the connections of that
/// moment, [`cut_after`](Self::cut_after) strikes once. Dropping the proxy ends every connection.
pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Requests,
    /// From the server to the client.
    Replies,
}

struct Shared {
    upstream: String,
    faults: watch::Sender<Faults>,
    live: watch::Sender<Live>,
    refused: AtomicU64,
    flows: [Flow; 2],
}

/// What is wrong at the moment. Connections are numbered from 0; a fault with `_below` strikes those with a lesser number.
#[derive(Clone, Copy, Default)]
struct Faults {
    refuse: bool,
    stall_requests: bool,
    stall_replies: bool,
    delay: Duration,
    cut_below: u64,
    half_close_below: u64,
}

#[derive(Default)]
struct Live {
    /// The number of the next connection.
    next: u64,
    /// Those that are open, and whether their replies have ended.
    open: BTreeMap<u64, bool>,
}

/// One direction of all connections.
#[derive(Default)]
struct Flow {
    passed: AtomicU64,
    /// How many more bytes pass before the connection that brings the next one is reset.
    left: Mutex<Option<u64>>,
}

/// How a connection, or one direction of it, came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    Reset,
}

impl FaultyProxy {
    /// Listens on a free port of the loopback interface and passes each connection on to `upstream`: `host:port`, or a URL
    /// that has both. Whether anybody is there is seen when a client connects.
    ///
    /// # Errors
    ///
    /// Whatever the system fails to listen with.
    pub async fn start(upstream: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: upstream[host_and_port(upstream)].to_owned(),
            faults: watch::Sender::default(),
            live: watch::Sender::default(),
            refused: AtomicU64::new(0),
            flows: Default::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The same URL with the proxy's host and port: `postgres://me@db:5432/x` becomes `postgres://me@127.0.0.1:4711/x`.
    #[must_use]
    pub fn url_like(&self, url: &str) -> String {
        let place = host_and_port(url);
        format!("{}{}{}", &url[..place.start], self.address, &url[place.end..])
    }

    /// Resets every live connection, on both sides. Returns when they are gone; new ones are served.
    pub async fn cut(&self) {
        let next = self.shared.live.borrow().next;
        self.shared.faults.send_modify(|faults| faults.cut_below = next);
        let mut live = self.shared.live.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _gone = live.wait_for(|live| live.open.range(..next).next().is_none()).await;
    }

    /// Resets a connection in the middle of what it says: `bytes` more are passed on in `direction`, counted over all
    /// connections, and the connection that brings the one after is reset in its place. Once.
    ///
    /// `cut_after(Direction::Replies, 0)` lets the server do its work and loses its answer.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        *self.shared.flow(direction).left() = Some(bytes);
    }

    /// Whether new connections are accepted and closed at once, as by a server that is starting or full.
    pub fn refuse(&self, refuse: bool) {
        self.shared.faults.send_modify(|faults| faults.refuse = refuse);
    }

    /// How much later each chunk of at most 16 KiB is passed on, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.shared.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Whether bytes stop flowing in both directions while connections stay open, as behind a dead link. What was held back
    /// is passed on afterwards.
    pub fn stall(&self, stall: bool) {
        self.shared.faults.send_modify(|faults| {
            faults.stall_requests = stall;
            faults.stall_replies = stall;
        });
    }

    /// The same for what the server says alone: it gets its orders and does its work, and nobody hears of it.
    pub fn stall_replies(&self, stall: bool) {
        self.shared.faults.send_modify(|faults| faults.stall_replies = stall);
    }

    /// Ends the replies of every live connection in order and keeps its requests open: the client reads an end, can still
    /// write, the server gets what it writes, and is never heard again. Returns when it is so.
    pub async fn half_close(&self) {
        let next = self.shared.live.borrow().next;
        self.shared.faults.send_modify(|faults| faults.half_close_below = next);
        let mut live = self.shared.live.subscribe();
        let _done = live.wait_for(|live| live.open.range(..next).all(|(_, half)| *half)).await;
    }

    /// How many connections were accepted and passed on, or were tried to.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.live.borrow().next
    }

    /// How many of them are open.
    #[must_use]
    pub fn live(&self) -> usize {
        self.shared.live.borrow().open.len()
    }

    /// How many connections were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// How many bytes were passed on in `direction`, over all connections.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.flow(direction).passed.load(Ordering::SeqCst)
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        // The task owns the connections' tasks.
        self.accepting.abort();
    }
}

impl fmt::Debug for FaultyProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyProxy({}, {} connections, {} live)", self.address, self.connections(), self.live())
    }
}

impl Shared {
    fn flow(&self, direction: Direction) -> &Flow {
        &self.flows[direction as usize]
    }
}

impl Flow {
    fn left(&self) -> std::sync::MutexGuard<'_, Option<u64>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `n` bytes may pass before the connection is reset; `None` when all may and it is not.
    fn cut_at(&self, n: usize) -> Option<usize> {
        let mut left = self.left();
        let more = (*left)?;
        match u64::try_from(n).unwrap_or(u64::MAX).checked_sub(more) {
            None | Some(0) => {
                *left = Some(more - n as u64);
                None
            }
            Some(over) => {
                *left = None;
                Some(n - usize::try_from(over).unwrap_or(n))
            }
        }
    }
}

/// Where the host and the port stand in a URL; all of it when it is no URL.
fn host_and_port(url: &str) -> Range<usize> {
    let Some(scheme) = url.find("://") else { return 0..url.len() };
    let start = scheme + 3;
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    let host = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
    host..end
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        // A connection that was gone before it was accepted is not worth a failure.
        let Ok((client, _)) = listener.accept().await else { continue };
        if shared.faults.borrow().refuse {
            shared.refused.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let mut number = 0;
        shared.live.send_modify(|live| {
            number = live.next;
            live.next += 1;
            live.open.insert(number, false);
        });
        let shared = shared.clone();
        connections.spawn(async move {
            let _place = place;
            serve(client, number, &shared).await;
            shared.live.send_modify(|live| {
                live.open.remove(&number);
            });
        });
    }
}

async fn serve(mut client: TcpStream, number: u64, shared: &Shared) {
    let mut faults = shared.faults.subscribe();
    let mut cut = pin!(faults.wait_for(|faults| number < faults.cut_below));
    let upstream = match select(cut.as_mut(), pin!(TcpStream::connect(&shared.upstream))).await {
        Either::Right((Ok(upstream), _)) => Some(upstream),
        Either::Right((Err(_), _)) | Either::Left(_) => None,
    };
    let Some(mut upstream) = upstream else {
        let _already_gone = client.set_zero_linger();
        return;
    };
    // Each chunk is to leave when it is passed on, not when the next one comes.
    let _slower = (client.set_nodelay(true), upstream.set_nodelay(true));
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = upstream.split();
        let requests = pump(from_client, to_server, Direction::Requests, shared);
        let replies = replies(from_server, to_client, number, shared);
        match select(cut, pin!(both(requests, replies))).await {
            Either::Left(_) => End::Reset,
            Either::Right((end, _)) => end,
        }
    };
    if end == End::Reset {
        // Without lingering, dropping the streams sends resets.
        let _already_gone = (client.set_zero_linger(), upstream.set_zero_linger());
    }
}

/// Both to their ends, or one to a reset.
async fn both(requests: impl Future<Output = End>, replies: impl Future<Output = End>) -> End {
    match select(pin!(requests), pin!(replies)).await {
        Either::Left((End::Reset, _)) | Either::Right((End::Reset, _)) => End::Reset,
        Either::Left((End::Orderly, replies)) => replies.await,
        Either::Right((End::Orderly, requests)) => requests.await,
    }
}

/// Passes on what the server says, until the direction is shut by fault; what it says then is lost.
async fn replies(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: u64,
    shared: &Shared,
) -> End {
    let mut faults = shared.faults.subscribe();
    let shut = faults.wait_for(|faults| number < faults.half_close_below);
    let passing = pump(&mut from, &mut to, Direction::Replies, shared);
    let mute = || {
        shared.live.send_modify(|live| {
            live.open.insert(number, true);
        });
    };
    if let Either::Right((end, _)) = select(pin!(shut), pin!(passing)).await {
        mute();
        return end;
    }
    let closed = to.shutdown().await;
    mute();
    let mut lost = vec![0; CHUNK];
    while closed.is_ok() {
        match from.read(&mut lost).await {
            Ok(0) => return End::Orderly,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    End::Reset
}

/// Passes one direction on to its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    shared: &Shared,
) -> End {
    let mut faults = shared.faults.subscribe();
    let mut chunk = vec![0; CHUNK];
    let stalled = |faults: &Faults| match direction {
        Direction::Requests => faults.stall_requests,
        Direction::Replies => faults.stall_replies,
    };
    loop {
        let Ok(n) = from.read(&mut chunk).await else { return End::Reset };
        let delay = faults.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let _flowing = faults.wait_for(|faults| !stalled(faults)).await.map(drop);
        if n == 0 {
            return if to.shutdown().await.is_ok() { End::Orderly } else { End::Reset };
        }
        let flow = shared.flow(direction);
        let cut_at = flow.cut_at(n);
        let passing = &chunk[..cut_at.unwrap_or(n)];
        // Counted before they are gone: whoever has read them finds them counted.
        flow.passed.fetch_add(passing.len() as u64, Ordering::SeqCst);
        if to.write_all(passing).await.is_err() || cut_at.is_some() {
            return End::Reset;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A server that says back what it hears, to its end, and counts what it heard.
    struct Echo {
        address: SocketAddr,
        heard: Arc<AtomicU64>,
        serving: JoinHandle<()>,
    }

    impl Echo {
        async fn start() -> Self {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let (address, heard) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
            let counter = heard.clone();
            let serving = tokio::spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let counter = counter.clone();
                    connections.spawn(async move {
                        let mut chunk = [0; 64];
                        while let Ok(n @ 1..) = stream.read(&mut chunk).await {
                            counter.fetch_add(n as u64, Ordering::SeqCst);
                            if stream.write_all(&chunk[..n]).await.is_err() {
                                break;
                            }
                        }
                    });
                }
            });
            Self { address, heard, serving }
        }

        async fn heard(&self, bytes: u64) {
            while self.heard.load(Ordering::SeqCst) < bytes {
                tokio::task::yield_now().await;
            }
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            self.serving.abort();
        }
    }

    async fn bench() -> (Echo, FaultyProxy) {
        let echo = Echo::start().await;
        let proxy = FaultyProxy::start(&echo.address.to_string()).await.unwrap();
        (echo, proxy)
    }

    async fn connect(proxy: &FaultyProxy) -> TcpStream {
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(say(&mut stream, b"hello").await.unwrap(), b"hello");
        stream
    }

    async fn say(stream: &mut TcpStream, words: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(words).await?;
        let mut back = vec![0; words.len()];
        stream.read_exact(&mut back).await?;
        Ok(back)
    }

    /// Everything until the end, and how that came.
    async fn rest(stream: &mut TcpStream) -> (Vec<u8>, Option<io::ErrorKind>) {
        let mut text = Vec::new();
        let end = stream.read_to_end(&mut text).await;
        (text, end.err().map(|error| error.kind()))
    }

    async fn gone(proxy: &FaultyProxy) {
        while proxy.live() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn without_a_fault_bytes_and_ends_are_passed_on() {
        let (echo, proxy) = bench().await;
        let mut stream = connect(&proxy).await;
        let much: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut from, mut to) = stream.split();
        let mut back = vec![0; much.len()];
        let (wrote, read) = tokio::join!(to.write_all(&much), from.read_exact(&mut back));
        wrote.unwrap();
        read.unwrap();
        assert_eq!(back, much);
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await, (Vec::new(), None), "the end went there and back");
        gone(&proxy).await;
        assert_eq!((proxy.connections(), proxy.refused()), (1, 0));
        assert_eq!(
            [proxy.passed(Direction::Requests), proxy.passed(Direction::Replies)],
            [much.len() as u64 + 5; 2]
        );
        echo.heard(200_005).await;
    }

    #[tokio::test]
    async fn a_cut_resets_what_lives_and_nothing_else() {
        let (_echo, proxy) = bench().await;
        let mut streams = [connect(&proxy).await, connect(&proxy).await];
        proxy.cut().await;
        assert_eq!(proxy.live(), 0);
        for stream in &mut streams {
            assert_eq!(rest(stream).await, (Vec::new(), Some(io::ErrorKind::ConnectionReset)));
        }
        connect(&proxy).await;
        assert_eq!(proxy.connections(), 3);
    }

    #[tokio::test]
    async fn a_cut_reaches_what_is_stalled() {
        let (_echo, proxy) = bench().await;
        let mut stream = connect(&proxy).await;
        proxy.stall(true);
        stream.write_all(b"held").await.unwrap();
        proxy.cut().await;
        assert_eq!(rest(&mut stream).await.1, Some(io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn a_refused_connection_is_closed_and_counted_until_that_is_lifted() {
        let (_echo, proxy) = bench().await;
        let mut old = connect(&proxy).await;
        proxy.refuse(true);
        let mut new = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(rest(&mut new).await.0, b"");
        assert_eq!((proxy.connections(), proxy.refused()), (1, 1));
        assert_eq!(say(&mut old, b"still").await.unwrap(), b"still");
        proxy.refuse(false);
        connect(&proxy).await;
    }

    #[tokio::test]
    async fn each_chunk_is_as_late_as_was_asked_for_both_ways() {
        let (_echo, proxy) = bench().await;
        let mut stream = connect(&proxy).await;
        let each = Duration::from_millis(40);
        proxy.delay(each);
        let began = Instant::now();
        say(&mut stream, b"late").await.unwrap();
        assert!(began.elapsed() >= each * 2, "at least; a busy machine only adds to it");
    }

    #[tokio::test]
    async fn a_stall_holds_bytes_back_and_loses_none() {
        let (echo, proxy) = bench().await;
        let mut stream = connect(&proxy).await;
        proxy.stall(true);
        stream.write_all(b"held").await.unwrap();
        let mut back = [0; 4];
        let early = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut back)).await;
        assert!(early.is_err() && echo.heard.load(Ordering::SeqCst) == 5);
        proxy.stall(false);
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"held");
    }

    #[tokio::test]
    async fn stalled_replies_let_requests_through() {
        let (echo, proxy) = bench().await;
        let mut stream = connect(&proxy).await;
        proxy.stall_replies(true);
        stream.write_all(b"done").await.unwrap();
        echo.heard(9).await;
        let early = tokio::time::timeout(Duration::from_millis(100), stream.read_u8()).await;
        assert!(early.is_err() && proxy.live() == 1);
        assert_eq!(proxy.passed(Direction::Replies), 5);
        proxy.stall_replies(false);
        assert_eq!(stream.read_u8().await.unwrap(), b'd');
    }

    #[tokio::test]
    async fn a_half_closed_connection_takes_words_and_gives_none() {
        let (echo, proxy) = bench().await;
        let mut stream = connect(&proxy).await;
        proxy.half_close().await;
        assert_eq!(rest(&mut stream).await, (Vec::new(), None), "an end, in order");
        for heard in 6..10 {
            stream.write_all(b"x").await.unwrap();
            echo.heard(heard).await;
        }
        assert_eq!((proxy.live(), proxy.passed(Direction::Replies)), (1, 5));
        drop(stream);
        gone(&proxy).await;
        connect(&proxy).await;
    }

    #[tokio::test]
    async fn a_server_that_has_ended_its_replies_is_half_closed_already() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = FaultyProxy::start(&listener.local_addr().unwrap().to_string()).await.unwrap();
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await, (Vec::new(), None));
        proxy.half_close().await;
        stream.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_request_is_cut_at_the_very_byte() {
        for n in 0..4 {
            let (echo, proxy) = bench().await;
            let mut stream = connect(&proxy).await;
            proxy.cut_after(Direction::Requests, n);
            stream.write_all(b"four").await.unwrap();
            let (_, end) = rest(&mut stream).await;
            assert_eq!(end, Some(io::ErrorKind::ConnectionReset));
            echo.heard(5 + n).await;
            assert_eq!(proxy.passed(Direction::Requests), 5 + n);
            connect(&proxy).await;
        }
    }

    #[tokio::test]
    async fn a_reply_is_cut_at_the_very_byte_and_the_request_was_heard() {
        for n in 0..4 {
            let (echo, proxy) = bench().await;
            let mut stream = connect(&proxy).await;
            proxy.cut_after(Direction::Replies, n);
            stream.write_all(b"four").await.unwrap();
            let (text, end) = rest(&mut stream).await;
            assert_eq!(
                (text.as_slice(), end),
                (&b"four"[..n as usize], Some(io::ErrorKind::ConnectionReset))
            );
            echo.heard(9).await;
            connect(&proxy).await;
        }
    }

    #[tokio::test]
    async fn the_last_byte_that_may_pass_is_no_cut() {
        let (_echo, proxy) = bench().await;
        let mut stream = connect(&proxy).await;
        proxy.cut_after(Direction::Replies, 4);
        assert_eq!(say(&mut stream, b"four").await.unwrap(), b"four");
        let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(say(&mut other, b"x").await.is_err(), "the next byte is this one's, and so is the cut");
        assert_eq!(say(&mut stream, b"x").await.unwrap(), b"x");
        assert_eq!(proxy.passed(Direction::Replies), 10);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_resets_the_client() {
        let (echo, proxy) = bench().await;
        let held = connect(&proxy).await;
        drop((echo, held));
        // The system may take a moment to close the port after its listener's task is ended.
        let end = loop {
            let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
            let (text, end) = rest(&mut stream).await;
            assert_eq!(text, b"");
            if end.is_some() {
                break end;
            }
        };
        assert_eq!(end, Some(io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn a_dropped_proxy_ends_its_connections_and_its_port() {
        let (_echo, proxy) = bench().await;
        let mut stream = connect(&proxy).await;
        let (address, live) = (proxy.addr(), proxy.shared.live.subscribe());
        drop(proxy);
        let end = stream.read(&mut [0; 1]).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        // Every task held the sender; it is gone when they all are.
        let mut live = live;
        while live.changed().await.is_ok() {}
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn only_the_host_and_the_port_of_a_url_are_another() {
        let proxy = FaultyProxy::start("redis://:p%40ss@10.0.0.1:6379/0").await.unwrap();
        assert_eq!(proxy.shared.upstream, "10.0.0.1:6379");
        let at = proxy.addr();
        for (url, expected) in [
            ("postgres://me@db:5432/x?a=b@c", format!("postgres://me@{at}/x?a=b@c")),
            ("redis://127.0.0.1:6379", format!("redis://{at}")),
            ("http://[::1]:80?q", format!("http://{at}?q")),
            ("127.0.0.1:1", at.to_string()),
        ] {
            assert_eq!(proxy.url_like(url), expected);
        }
    }
}
