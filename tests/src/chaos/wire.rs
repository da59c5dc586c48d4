//! The customer's end of the provider's wire: a [`Model`] with one connection for all calls of a process.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::stream;
use loomflow_core::{
    AdmittedCall, Delta, Done, Error, ErrorKind, HoldKey, Model, ModelRequest, ModelStream, Price, Result,
    RunContext, StopReason, Usage,
};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// More lines than a reply has, so that a slow reader never holds up the others.
const REPLY: usize = 64;
/// Orders that may wait for the socket.
const ORDERS: usize = 1_024;

/// The calls that wait for lines; none once the connection is gone.
type Calls = Arc<Mutex<Option<HashMap<u64, mpsc::Sender<Line>>>>>;

/// The model.
pub(super) struct WireModel {
    orders: mpsc::Sender<String>,
    calls: Calls,
    next: AtomicU64,
}

impl WireModel {
    /// Connects to the provider at `address`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(super) async fn connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (from, to) = stream.into_split();
        let (orders, outbox) = mpsc::channel(ORDERS);
        let calls: Calls = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(write(outbox, to));
        tokio::spawn(read(from, calls.clone()));
        Ok(Self { orders, calls, next: AtomicU64::new(0) })
    }
}

impl fmt::Debug for WireModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WireModel")
    }
}

/// How a key is written on an invoice.
pub(super) fn written(key: HoldKey) -> String {
    format!("{:032x}.{}", key.run.as_u128(), key.seq)
}

fn words(text: &str) -> u64 {
    text.split_ascii_whitespace().count() as u64
}

#[async_trait]
impl Model for WireModel {
    fn name(&self) -> &str {
        "chaos"
    }

    fn price(&self) -> Option<Price> {
        Some(Price::default())
    }

    fn count_tokens(&self, request: &ModelRequest) -> u64 {
        request.messages.iter().map(|message| words(&message.text)).sum()
    }

    fn count_output(&self, text: &str) -> u64 {
        words(text)
    }

    async fn stream(&self, ctx: &RunContext, admitted: AdmittedCall) -> Result<ModelStream> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, lines) = mpsc::channel(REPLY);
        self.calls.lock().as_mut().ok_or_else(gone)?.insert(number, sender);
        let call = Call { number, lines, calls: self.calls.clone(), over: false };
        let user = ctx.user_id().map_or("", |user| user.as_str());
        let request = admitted.request();
        let prompt: Vec<&str> = request.messages.iter().map(|message| &*message.text).collect();
        let order = format!(
            "ask\t{number}\t{}\t{user}\t{}\t{}\n",
            written(admitted.key()),
            request.max_output_tokens,
            prompt.join(" ").replace(['\n', '\t'], " "),
        );
        self.orders.send(order).await.map_err(|_| gone())?;
        call.begin().await
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Transport, "the provider is gone")
}

/// A line of a reply.
#[derive(Clone, Debug)]
enum Line {
    Word(Arc<str>),
    Done(Usage),
    Busy,
    Lost,
    Cut,
}

impl Line {
    fn read(line: &str) -> Option<(u64, Self)> {
        let fields: Vec<&str> = line.split('\t').collect();
        let number = fields.get(1)?.parse().ok()?;
        let line = match fields[0] {
            "word" => Self::Word(Arc::from(format!("{} ", fields.get(2)?))),
            "done" => Self::Done(Usage::new(fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)),
            "busy" => Self::Busy,
            "lost" => Self::Lost,
            "cut" => Self::Cut,
            _ => return None,
        };
        Some((number, line))
    }
}

async fn write(mut outbox: mpsc::Receiver<String>, mut to: OwnedWriteHalf) {
    while let Some(order) = outbox.recv().await {
        if to.write_all(order.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(from: OwnedReadHalf, calls: Calls) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Some((number, line)) = Line::read(&line) else { continue };
        if let Some(call) = calls.lock().as_ref().and_then(|calls| calls.get(&number)) {
            // Whoever went away does not read it, and nobody has so many lines.
            let _unread = call.try_send(line);
        }
    }
    *calls.lock() = None;
}

/// One call, until it is dropped.
struct Call {
    number: u64,
    lines: mpsc::Receiver<Line>,
    calls: Calls,
    over: bool,
}

impl Call {
    /// The stream begins with its first word; what comes before one is an error of the call itself.
    async fn begin(mut self) -> Result<ModelStream> {
        match self.lines.recv().await {
            Some(Line::Busy) => Err(Error::new(ErrorKind::Overloaded, "the provider is busy")),
            Some(Line::Lost) | None => Err(gone()),
            Some(first) => {
                let call = stream::unfold((self, Some(first)), async |(mut call, ahead)| {
                    if call.over {
                        return None;
                    }
                    let line = match ahead {
                        Some(line) => Some(line),
                        None => call.lines.recv().await,
                    };
                    call.over = !matches!(line, Some(Line::Word(_)));
                    Some((delta(line), (call, None)))
                });
                Ok(Box::pin(call))
            }
        }
    }
}

fn delta(line: Option<Line>) -> Result<Delta> {
    match line {
        Some(Line::Word(word)) => Ok(Delta::Text(word)),
        Some(Line::Done(usage)) => Ok(Delta::Done(Done::new(usage, StopReason::End))),
        Some(Line::Cut) => Err(Error::new(ErrorKind::Truncated, "the reply broke off")),
        Some(Line::Busy | Line::Lost) | None => Err(gone()),
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(calls) = self.calls.lock().as_mut() {
            calls.remove(&self.number);
        }
    }
}
