//! Processes that use a store: orders go in and answers come out, a line of JSON each, one after the other.
//!
//! What an order writes can be told from its number alone, so that whoever looks later knows whether it is whole.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use futures_util::TryStreamExt as _;
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Cardinality, Embedding, EpisodeId, Epoch, Erase, Error, FactQuery, HistoryLimit, Identity, MemoryStore,
    Message, Namespace, NewEpisode, NewFact, Owned, PutBlock, RecallQuery, Result, RunId, Scope, SessionId,
    Timestamp, UserId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The word that every remembered turn has.
pub const COMMON: &str = "parcel";
/// Where turns are said.
pub const SESSION: &str = "s";

/// Whose data an order is about, and what to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Order {
    /// The namespace.
    pub namespace: String,
    /// The user.
    pub user: String,
    /// The epoch of the scope.
    pub epoch: u64,
    /// What to do.
    pub act: Act,
}

impl Order {
    /// An order with a scope that was minted before any erasure.
    pub fn new(namespace: &str, user: &str, act: Act) -> Self {
        Self { namespace: namespace.to_owned(), user: user.to_owned(), epoch: 0, act }
    }

    /// Sets the epoch of the scope.
    #[must_use]
    pub fn at_epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }
}

/// What can be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Act {
    /// Remembers turn `n`, which has two messages and a vector. Answers nothing.
    Remember {
        /// Which.
        n: u64,
    },
    /// Writes `content` to a block. Answers nothing.
    Block {
        /// Its name.
        name: String,
        /// Its text.
        content: String,
    },
    /// Asserts the only value that `subject` has from second `at` on. Answers nothing.
    Supersede {
        /// Whose.
        subject: String,
        /// The value.
        object: String,
        /// Since when it holds, in seconds.
        at: i64,
    },
    /// Asserts a fact that came from turn `n`. Answers nothing.
    Like {
        /// Which turn.
        n: u64,
    },
    /// Recalls by words. Answers the numbers of the turns, the best first.
    Words {
        /// The words.
        text: String,
    },
    /// Recalls by a vector that every turn's has a part of. Answers the numbers of the turns.
    Vectors,
    /// Replays the session. Answers the texts.
    History,
    /// The facts that hold at second `at` and are believed. Answers their values.
    Current {
        /// Whose.
        subject: String,
        /// When.
        at: i64,
    },
    /// Counts. Answers how many episodes and how many blocks there are.
    Counts,
    /// Answers every record, as exported.
    Export,
    /// Answers the stored epoch.
    Epoch,
    /// Erases everything. The order's epoch is the new one. Answers nothing.
    Forget,
}

/// What came of an order: what it answers, or the kind of the error and its words.
pub type Answer = std::result::Result<Value, (String, String)>;

/// The text of turn `n`.
pub fn said(n: u64) -> String {
    format!("{COMMON} number{n}")
}

/// The reply of turn `n`.
pub fn reply(n: u64) -> String {
    format!("noted {n}, {}", "as long as a reply is ".repeat(20))
}

/// The vector of turn `n`. All have a cosine above zero with one another.
pub fn vector(n: u64) -> Embedding {
    let part = |of: u64| if n.is_multiple_of(of) { 1.0 } else { 0.0 };
    Embedding::new("worker", [1.0, part(2), part(3), part(5)])
}

/// The run of turn `n`.
pub fn run(n: u64) -> RunId {
    RunId::from_u128(u128::from(n) + 1)
}

/// A moment in whole seconds.
pub fn second(at: i64) -> Timestamp {
    Timestamp::from_micros(at * 1_000_000)
}

/// Does what a line says, and answers with a line.
pub async fn obey(store: &dyn MemoryStore, line: &str) -> String {
    let answer: Answer = match serde_json::from_str::<Order>(line) {
        Ok(order) => act(store, &order).await.map_err(|e| (e.kind().as_str().to_owned(), format!("{e:?}"))),
        Err(e) => Err(("order".to_owned(), e.to_string())),
    };
    serde_json::to_string(&answer).expect("an answer is plain data")
}

async fn act(store: &dyn MemoryStore, order: &Order) -> Result<Value> {
    let user = Identity::User(UserId::new(order.user.as_str())?);
    let scope = &assume_scope(Namespace::new(order.namespace.as_str())?, user, Epoch::new(order.epoch));
    match &order.act {
        Act::Remember { n } => {
            let messages = vec![Message::user(said(*n)), Message::assistant(reply(*n))];
            let at = second(i64::try_from(*n).unwrap_or(i64::MAX));
            let episode = NewEpisode::new(run(*n), session()?, at, messages).with_embedding(vector(*n));
            store.remember(scope, episode).await.map(|_| Value::Null)
        }
        Act::Block { name, content } => {
            store.put_block(scope, PutBlock::new(name.as_str(), content.as_str(), second(0))).await?;
            Ok(Value::Null)
        }
        Act::Supersede { subject, object, at } => {
            let fact = NewFact::new(subject.as_str(), "lives in", object.as_str(), second(*at))
                .with_cardinality(Cardinality::One);
            facts(store)?.assert(scope, fact).await.map(|_| Value::Null)
        }
        Act::Like { n } => {
            let fact = NewFact::new("me", "likes", format!("thing {n}"), second(0))
                .with_sources(vec![EpisodeId::from(run(*n))]);
            facts(store)?.assert(scope, fact).await.map(|_| Value::Null)
        }
        Act::Words { text } => {
            recalled(store, scope, RecallQuery::new(text.as_str(), usize::MAX >> 33)).await
        }
        Act::Vectors => {
            let query = RecallQuery::new("", usize::MAX >> 33);
            recalled(store, scope, query.with_embedding(vector(30))).await
        }
        Act::History => {
            let found = store.history(scope, &session()?, HistoryLimit::messages(1_000_000)).await?;
            let texts: Vec<_> = open(scope, found)?.into_iter().map(|m| m.text).collect();
            Ok(json!(texts))
        }
        Act::Current { subject, at } => {
            let query = FactQuery::current(second(*at), 1_000).subject(subject.as_str());
            let found = open(scope, facts(store)?.query(scope, &query).await?)?;
            Ok(json!(found.into_iter().map(|f| f.object).collect::<Vec<_>>()))
        }
        Act::Counts => {
            let profile = store.profile(scope).await?.open(scope)?;
            Ok(json!([profile.episodes, profile.blocks]))
        }
        Act::Export => {
            let items: Vec<_> = store.export(scope).await?.try_collect().await?;
            Ok(json!(open(scope, items)?))
        }
        Act::Epoch => Ok(json!(store.epoch(scope).await?.get())),
        Act::Forget => store.forget(scope, &Erase::everything()).await.map(|_| Value::Null),
    }
}

fn facts(store: &dyn MemoryStore) -> Result<&dyn loomflow_core::FactStore> {
    store.facts().ok_or_else(|| Error::unsupported(store.store_name(), "facts"))
}

fn session() -> Result<SessionId> {
    SessionId::new(SESSION)
}

fn open<T>(scope: &Scope, found: Vec<Owned<T>>) -> Result<Vec<T>> {
    found.into_iter().map(|owned| owned.open(scope)).collect()
}

async fn recalled(store: &dyn MemoryStore, scope: &Scope, query: RecallQuery) -> Result<Value> {
    let found = open(scope, store.recall(scope, &query).await?)?;
    let number = |id: EpisodeId| u64::try_from(id.as_u128() - 1).unwrap_or(u64::MAX);
    Ok(json!(found.into_iter().map(|m| number(m.episode.id)).collect::<Vec<_>>()))
}

/// A worker process. It goes, without a farewell, when this is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts `program`, the binary `memory_worker`, on the store behind `url`.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn start(program: &Path, url: &str) -> Self {
        let mut command = Command::new(program);
        // The URL is a secret, and arguments can be read by everybody.
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the worker is built with the tests");
        let mut orders = child.stdin.take().expect("it was asked for");
        writeln!(orders, "{url}").expect("a process that just began reads");
        let answers = BufReader::new(child.stdout.take().expect("it was asked for"));
        Self { child, orders: Some(orders), answers }
    }

    /// Gives many orders at once, from a thread of its own that ends with the worker.
    pub fn order_all(&mut self, orders: Vec<Order>) {
        let Some(mut pipe) = self.orders.take() else { return };
        std::thread::spawn(move || {
            for order in orders {
                if write(&mut pipe, &order).is_err() {
                    return;
                }
            }
        });
    }

    /// Gives an order and waits for its answer.
    ///
    /// # Errors
    ///
    /// What the store refused it with.
    ///
    /// # Panics
    ///
    /// When the worker is gone, or was given all its orders at once.
    pub fn ask(&mut self, order: &Order) -> Answer {
        let pipe = self.orders.as_mut().expect("it takes orders one by one");
        write(pipe, order).expect("the worker is there");
        self.answer().expect("the worker answers every order")
    }

    /// As [`Worker::ask`], for what cannot be refused.
    ///
    /// # Panics
    ///
    /// When it is refused.
    #[track_caller]
    pub fn must(&mut self, order: &Order) -> Value {
        match self.ask(order) {
            Ok(value) => value,
            Err((kind, why)) => panic!("{order:?}: {kind}: {why}"),
        }
    }

    /// The next answer; `None` when the worker is gone.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut line = String::new();
        // What a killed process had begun to write is no answer.
        self.answers.read_line(&mut line).ok().filter(|_| line.ends_with('\n'))?;
        Some(serde_json::from_str(&line).expect("an answer is a line of JSON"))
    }

    /// Kills it with SIGKILL. What it had answered can still be read.
    ///
    /// # Panics
    ///
    /// Never: the process is ours until it was waited for.
    pub fn kill9(&mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = (self.child.kill(), self.child.wait());
    }
}

fn write(pipe: &mut ChildStdin, order: &Order) -> io::Result<()> {
    let line = serde_json::to_string(order)?;
    writeln!(pipe, "{line}")
}
