//! A provider of models as a process of its own, with an invoice that survives every customer.
//!
//! It has nothing in common with the ledger or the door: it reads bytes from a socket, a token is a word that it received or
//! that it handed over, and what it bills is in a file before the customer has it. No type of the project is used here.
//!
//! One connection carries many calls, a line each way at a time, fields between tabs:
//!
//! ```text
//! ask  CALL KEY USER MOST PROMPT     the customer asks; MOST words may be generated
//! word CALL WORD                     a word of the reply; `halt` is one after which nothing comes until the customer goes
//! done CALL INPUT OUTPUT             the reply's end, and what was used
//! busy CALL                          no order was taken, nothing is billed
//! lost CALL                          the order was taken, and the connection to it broke off before a word
//! cut  CALL                          the reply broke off
//! ```
//!
//! The invoice is lines of `KEY USER INPUT OUTPUT`, added up by key: one when the order is taken, one for each word.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// The most words of a reply.
const LONGEST: u64 = 8;
/// Lines that may wait for a customer who reads slowly.
const AHEAD: usize = 4_096;
/// The word that tells the customer to go away.
pub(super) const HALT: &str = "halt";

/// How the provider behaves.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "the two ends of one pipe")]
pub(super) struct Manners {
    /// Which moods.
    pub(super) seed: u64,
    /// Nobody is answered before so many calls are there at once...
    pub(super) gather: u64,
    /// ...or this much time has passed since the first.
    pub(super) patience: Duration,
    /// The longest pause before a word.
    pub(super) pause: Duration,
}

/// What the provider has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "the two ends of one pipe")]
pub(super) struct Seen {
    /// Orders.
    pub(super) asked: u64,
    /// Calls that are being answered.
    pub(super) in_flight: u64,
    /// The most of them that there were at once.
    pub(super) most: u64,
    /// Whether answering has begun.
    pub(super) open: bool,
}

/// The provider.
#[derive(Debug)]
pub(super) struct Provider {
    invoice: Mutex<File>,
    luck: Mutex<StdRng>,
    manners: Manners,
    asked: AtomicU64,
    in_flight: AtomicU64,
    most: AtomicU64,
    open: watch::Sender<bool>,
}

impl Provider {
    /// A provider that writes its invoice to `invoice`.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub(super) fn new(invoice: &Path, manners: Manners) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            invoice: Mutex::new(File::create(invoice)?),
            luck: Mutex::new(StdRng::seed_from_u64(manners.seed)),
            manners,
            asked: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            most: AtomicU64::new(0),
            open: watch::Sender::new(manners.gather == 0),
        }))
    }

    /// What it has seen.
    pub(super) fn seen(&self) -> Seen {
        Seen {
            asked: self.asked.load(Ordering::SeqCst),
            in_flight: self.in_flight.load(Ordering::SeqCst),
            most: self.most.load(Ordering::SeqCst),
            open: *self.open.borrow(),
        }
    }

    /// Answers whoever connects, for ever.
    ///
    /// # Errors
    ///
    /// When connections can no longer be accepted.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(self.clone().customer(stream));
        }
    }

    /// One customer, until it goes. Replies that are on their way then end at once.
    async fn customer(self: Arc<Self>, stream: TcpStream) {
        // A failure to switch coalescing off costs time only.
        let _slow = stream.set_nodelay(true);
        let (from, mut to) = stream.into_split();
        let (replies, mut outbox) = mpsc::channel::<String>(AHEAD);
        let writing = tokio::spawn(async move {
            while let Some(line) = outbox.recv().await {
                if to.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Some(order) = Order::read(&line) else { continue };
            tokio::spawn(self.clone().answer(order, replies.clone()));
        }
        writing.abort();
    }

    async fn answer(self: Arc<Self>, order: Order, replies: mpsc::Sender<String>) {
        let call = order.call.clone();
        let mood = Mood::draw(&mut self.luck.lock(), order.most);
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Mood::Busy = mood {
            let _gone = replies.send(format!("busy\t{call}\n")).await;
            return;
        }
        let _counted = InFlight::enter(&self);
        self.bill(&order, order.input, 0);
        self.gathered().await;
        let (words, end) = match mood {
            Mood::Busy => return,
            Mood::Lost => (0, format!("lost\t{call}\n")),
            Mood::Cut(words) => (words, format!("cut\t{call}\n")),
            Mood::Whole(words) => (words, format!("done\t{call}\t{}\t{words}\n", order.input)),
            Mood::Halt(words) => (words, String::new()),
        };
        for n in 0..words {
            let part = self.luck.lock().random_range(0.0..=1.0);
            tokio::time::sleep(self.manners.pause.mul_f64(part)).await;
            let last = n + 1 == words;
            let word = if last && matches!(mood, Mood::Halt(_)) { HALT } else { "word" };
            if replies.is_closed() {
                return;
            }
            self.bill(&order, 0, 1);
            if replies.send(format!("word\t{call}\t{word}\n")).await.is_err() {
                return;
            }
        }
        if !end.is_empty() {
            let _gone = replies.send(end).await;
        }
    }

    /// Written before it is sent: what a customer has, it is billed for.
    fn bill(&self, order: &Order, input: u64, output: u64) {
        let line = format!("{}\t{}\t{input}\t{output}\n", order.key, order.user);
        self.invoice.lock().write_all(line.as_bytes()).expect("the invoice can be written");
    }

    /// Waits until as many are there as were to be gathered.
    async fn gathered(&self) {
        let mut open = self.open.subscribe();
        let enough = self.in_flight.load(Ordering::SeqCst) >= self.manners.gather;
        if enough {
            self.open.send_if_modified(|open| !std::mem::replace(open, true));
        }
        // The sender lives as long as this.
        let waited = tokio::time::timeout(self.manners.patience, open.wait_for(|open| *open)).await;
        if waited.is_err() {
            self.open.send_if_modified(|open| !std::mem::replace(open, true));
        }
    }
}

/// One of the calls that are being answered, as long as it lives.
struct InFlight<'p>(&'p Provider);

impl<'p> InFlight<'p> {
    fn enter(provider: &'p Provider) -> Self {
        let now = provider.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        provider.most.fetch_max(now, Ordering::SeqCst);
        Self(provider)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Order {
    call: String,
    key: String,
    user: String,
    most: u64,
    input: u64,
}

impl Order {
    fn read(line: &str) -> Option<Self> {
        let mut fields = line.splitn(6, '\t');
        let mut next = || fields.next();
        if next()? != "ask" {
            return None;
        }
        let (call, key, user) = (next()?.to_owned(), next()?.to_owned(), next()?.to_owned());
        let most = next()?.parse().ok()?;
        let input = next()?.split(' ').filter(|word| !word.is_empty()).count() as u64;
        Some(Self { call, key, user, most, input })
    }
}

/// What becomes of a call, with how many words.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Busy,
    Lost,
    Cut(u64),
    Halt(u64),
    Whole(u64),
}

impl Mood {
    fn draw(luck: &mut StdRng, most: u64) -> Self {
        let words = luck.random_range(1..=LONGEST).min(most);
        match luck.random_range(0..100) {
            0..3 => Self::Busy,
            3..5 => Self::Lost,
            5..10 => Self::Cut(words),
            10..18 if words > 0 => Self::Halt(words),
            _ => Self::Whole(words),
        }
    }
}
