//! What cases are made of: random partitions, records, and expectations that fail with a sentence.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use loomflow_core::{
    Epoch, ErrorKind, ExportItem, Identity, Message, Namespace, NewEpisode, Owned, Owner, Redacted, Result,
    RunId, Scope, SessionId, TenantData, Timestamp, UserId, danger,
};
use serde_json::Value;

use crate::doubles::ManualClock;

/// A namespace of its own, drawn at random: what a case writes never meets anybody else's data.
pub(crate) struct World {
    namespace: Namespace,
}

impl World {
    pub(crate) fn new() -> Self {
        let name = format!("cf-{:016x}", rand::random::<u64>());
        Self { namespace: Namespace::new(name).expect("hex digits are a valid namespace") }
    }

    /// A namespace named after this one: `before`, this one's name, `after`.
    pub(crate) fn beside(&self, after: &str) -> Self {
        let name = format!("{}{after}", self.namespace);
        Self { namespace: Namespace::new(name).expect("a short suffix keeps a namespace valid") }
    }

    pub(crate) fn owner(&self, who: &Identity) -> Owner {
        Owner::new(self.namespace.clone(), who.clone())
    }

    pub(crate) fn scope(&self, who: &Identity) -> Scope {
        self.scope_at(who, 0)
    }

    pub(crate) fn scope_at(&self, who: &Identity, epoch: u64) -> Scope {
        danger::assume_scope(self.namespace.clone(), who.clone(), Epoch::new(epoch))
    }

    pub(crate) fn user(&self, name: &str) -> Scope {
        self.scope(&named(name))
    }

    pub(crate) fn user_at(&self, name: &str, epoch: u64) -> Scope {
        self.scope_at(&named(name), epoch)
    }
}

/// Another scope of the same partition and epoch.
pub(crate) fn again(scope: &Scope) -> Scope {
    danger::assume_scope(scope.namespace().clone(), scope.identity().clone(), scope.epoch())
}

pub(crate) fn named(name: &str) -> Identity {
    Identity::User(user_id(name))
}

pub(crate) fn user_id(name: &str) -> UserId {
    UserId::new(name).unwrap_or_else(|e| panic!("the suite's own user id {name:?} is invalid: {e}"))
}

pub(crate) fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap_or_else(|e| panic!("the suite's own session id {name:?} is invalid: {e}"))
}

pub(crate) fn new_run() -> RunId {
    RunId::from_u128(rand::random())
}

/// `seconds` after noon of the first of March 2021: long past, so that what holds since then holds now.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_614_600_000 + seconds) * 1_000_000)
}

/// One random word that nobody else says.
pub(crate) fn canary() -> String {
    format!("canary{:016x}", rand::random::<u64>())
}

/// A turn of two messages.
pub(crate) fn turn(run: RunId, session: &SessionId, at: Timestamp, said: &str, reply: &str) -> NewEpisode {
    NewEpisode::new(run, session.clone(), at, vec![Message::user(said), Message::assistant(reply)])
}

pub(crate) fn redacted(value: &Value) -> Redacted<String> {
    let keep: Arc<loomflow_core::KeepAll> = Arc::default();
    loomflow_core::Redactor::new(keep).json(value)
}

/// Unwraps, or fails with a sentence that says what was expected to work.
pub(crate) trait Must<T> {
    fn must(self, what: &str) -> T;
}

impl<T> Must<T> for Result<T> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Ok(value) => value,
            Err(e) => panic!("{what} must succeed, but failed ({}): {e}", e.kind().as_str()),
        }
    }
}

/// Fails unless `result` is an error of `kind`.
#[track_caller]
pub(crate) fn must_fail<T>(result: Result<T>, kind: ErrorKind, what: &str) {
    match result {
        Ok(_) => panic!("{what} must fail with {}, but succeeded", kind.as_str()),
        Err(e) if e.kind() == kind => {}
        Err(e) => {
            panic!("{what} must fail with {}, but failed with {}: {e}", kind.as_str(), e.kind().as_str());
        }
    }
}

/// Opens what a store returned; a record of another tenant fails the case.
#[track_caller]
pub(crate) fn open<T>(scope: &Scope, owned: Vec<Owned<T>>, what: &str) -> Vec<T> {
    owned.into_iter().map(|o| open_one(scope, o, what)).collect()
}

#[track_caller]
pub(crate) fn open_one<T>(scope: &Scope, owned: Owned<T>, what: &str) -> T {
    let owner = owned.owner().clone();
    owned
        .open(scope)
        .unwrap_or_else(|_| panic!("{what} of {:?} returned a record of {owner:?}", scope.owner()))
}

/// Fails unless reading met the tripwire: the store's own refusal, or a foreign owner that does not open.
#[track_caller]
pub(crate) fn must_trip<T>(scope: &Scope, read: Result<Vec<Owned<T>>>, what: &str) {
    let opened = read.and_then(|all| {
        let found = all.len();
        all.into_iter().map(|o| o.open(scope)).collect::<Result<Vec<T>>>().map(|_| found)
    });
    match opened {
        Err(e) if e.kind() == ErrorKind::IsolationViolation => {}
        Err(e) => panic!("{what} must fail with isolation_violation, but failed otherwise: {e}"),
        Ok(found) => panic!(
            "{what} must fail with isolation_violation: a foreign row is filed under this tenant's key. {found} records \
             came back and all claim to be the tenant's own: either the owner is filled in from the argument instead of \
             being decoded from the row, or the hook did not plant the row where the query finds it, or the store dropped \
             it in silence"
        ),
    }
}

/// Everything a store exports, opened.
pub(crate) async fn export(store: &(impl TenantData + ?Sized), scope: &Scope) -> Vec<ExportItem> {
    let mut stream = store.export(scope).await.must("export");
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        all.push(open_one(scope, item.must("an exported record"), "export"));
    }
    all
}

/// Everything a store exports, with its owners.
pub(crate) async fn export_owned(
    store: &(impl TenantData + ?Sized),
    scope: &Scope,
) -> Result<Vec<Owned<ExportItem>>> {
    let mut stream = store.export(scope).await?;
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        all.push(item?);
    }
    Ok(all)
}

/// All of an export as one text, to search for what must or must not be there.
pub(crate) fn export_text(items: &[ExportItem]) -> String {
    items.iter().map(|i| format!("{} {}\n", i.kind, i.data)).collect()
}

/// Polls a future at most `polls` times and drops it: a caller that goes away.
pub(crate) async fn abandon<F: Future + Send>(future: F, polls: u32) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Lets `d` pass on the settable clock and, since leases may follow a monotonic one, in real time.
pub(crate) async fn pass(clock: Option<&ManualClock>, d: Duration) {
    if let Some(clock) = clock {
        clock.advance(d);
    }
    tokio::time::sleep(d).await;
}
