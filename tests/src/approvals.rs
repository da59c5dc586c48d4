//! Processes that use a store of approvals: orders go in and answers come out, a line of JSON each, one after the other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use loomflow_core::danger::assume_scope;
use loomflow_core::{
    ApprovalDecision, ApprovalId, ApprovalRequest, ApprovalState, ApprovalStore, ArgumentPattern, Digest,
    Effect, Epoch, GrantTerms, Identity, Namespace, Result, RunId, Scope, Timestamp, UserId,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Who may decide what the workers ask for.
pub const DECIDERS: [&str; 2] = ["ops", "lead"];

/// As whom, in which namespace, and what to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Order {
    namespace: String,
    user: String,
    act: Act,
}

impl Order {
    /// An order of one user.
    pub fn new(namespace: &str, user: &str, act: Act) -> Self {
        Self { namespace: namespace.to_owned(), user: user.to_owned(), act }
    }
}

/// What can be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Act {
    /// Asks for an approval. Answers its id.
    Ask,
    /// Approves, and remembers it if it says so. Answers nothing.
    Approve {
        /// Which.
        id: ApprovalId,
        /// Whether it is remembered.
        remember: bool,
    },
    /// Uses an approval. Answers who gave it.
    Use {
        /// Which.
        id: ApprovalId,
    },
    /// Waits until it is decided.
    Await {
        /// Which.
        id: ApprovalId,
    },
    /// Answers where it stands: `pending`, `decided` or `consumed`.
    State {
        /// Which.
        id: ApprovalId,
    },
    /// Answers how many live grants the user has.
    Grants,
}

/// What came of an order: what it answers, or the kind of the error and its words.
pub type Answer = std::result::Result<Value, (String, String)>;

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros((1_614_600_000 + second) * 1_000_000)
}

/// Does what a line says, and answers with a line.
pub async fn obey(store: &dyn ApprovalStore, line: &str) -> String {
    let answer: Answer = match serde_json::from_str::<Order>(line) {
        Ok(order) => act(store, &order).await.map_err(|e| (e.kind().as_str().to_owned(), format!("{e:?}"))),
        Err(e) => Err(("order".to_owned(), e.to_string())),
    };
    serde_json::to_string(&answer).expect("an answer is plain data")
}

async fn act(store: &dyn ApprovalStore, order: &Order) -> Result<Value> {
    let user = Identity::User(UserId::new(order.user.as_str())?);
    let scope = &assume_scope(Namespace::new(order.namespace.as_str())?, user, Epoch::ZERO);
    let binding = Digest::of(&[b"call"]);
    match &order.act {
        Act::Ask => {
            let run = RunId::from_u128(rand::random());
            let mut request = ApprovalRequest::new(run, "c1", "pay", Effect::External, binding);
            request.requested_at = at(0);
            request.expires_at = at(1_000);
            request.approvers = DECIDERS.into_iter().map(UserId::new).collect::<Result<_>>()?;
            let id = request.id;
            store.create(scope, request).await?;
            Ok(json!(id))
        }
        Act::Approve { id, remember } => {
            let grant = GrantTerms::new(ArgumentPattern::Any, at(5_000));
            let decision = match remember {
                true => ApprovalDecision::ApproveAndRemember { grant },
                false => ApprovalDecision::Approve,
            };
            store.decide(scope, *id, decision, at(1)).await.map(|()| Value::Null)
        }
        Act::Use { id } => {
            let (_, by) = store.consume(scope, *id, binding, 0, at(2)).await?;
            Ok(json!(by))
        }
        Act::Await { id } => {
            while state(store, scope, *id).await? == "pending" {
                store.changed(scope, *id).await?;
            }
            Ok(Value::Null)
        }
        Act::State { id } => Ok(json!(state(store, scope, *id).await?)),
        Act::Grants => Ok(json!(store.remembered(scope, "pay", at(3)).await?.len())),
    }
}

async fn state(store: &dyn ApprovalStore, scope: &Scope, id: ApprovalId) -> Result<&'static str> {
    Ok(match store.get(scope, id, at(3)).await?.open(scope)?.state {
        ApprovalState::Pending => "pending",
        ApprovalState::Decided { .. } => "decided",
        ApprovalState::Consumed { .. } => "consumed",
        ApprovalState::Void { .. } => "void",
        _ => "expired",
    })
}

/// A worker process. It goes, without a farewell, when this is dropped.
#[derive(Debug)]
pub struct ApprovalWorker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl ApprovalWorker {
    /// Starts `program`, the binary `approval_worker`, on the store behind `url`.
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
        Self { child, orders, answers }
    }

    /// Gives an order without waiting for its answer.
    ///
    /// # Panics
    ///
    /// When the worker is gone.
    pub fn tell(&mut self, order: &Order) {
        let line = serde_json::to_string(order).expect("an order is plain data");
        writeln!(self.orders, "{line}").expect("the worker is there");
    }

    /// The next answer; `None` when the worker is gone.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut line = String::new();
        // What a killed process had begun to write is no answer.
        self.answers.read_line(&mut line).ok().filter(|_| line.ends_with('\n'))?;
        Some(serde_json::from_str(&line).expect("an answer is a line of JSON"))
    }

    /// Gives an order and waits for its answer.
    ///
    /// # Errors
    ///
    /// What the store refused it with.
    ///
    /// # Panics
    ///
    /// When the worker is gone.
    pub fn ask(&mut self, order: &Order) -> Answer {
        self.tell(order);
        self.answer().expect("the worker answers every order")
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
}

impl Drop for ApprovalWorker {
    fn drop(&mut self) {
        let _gone = (self.child.kill(), self.child.wait());
    }
}
