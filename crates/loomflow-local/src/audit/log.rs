//! A bounded ring of sealed audit lines, with an index by tenant.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use hashbrown::HashMap;
use loomflow_core::{
    AuditChain, AuditEntry, AuditEvent, AuditKey, AuditLine, AuditLog, AuditQuery, AuditReceipt,
    AuditVerification, AuditVerifier, Erase, Erased, Error, ErrorKind, ExportItem, ExportStream, Owned,
    Owner, Result, Scope, Secret, TenantData, export_from, parse_line,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

const DEFAULT_CAPACITY: usize = 100_000;

/// An audit log in memory: chained and MACed like the one on disk, and gone with the process.
///
/// It keeps the last [`with_capacity`](Self::with_capacity) entries (100,000 by default). Dropping the oldest keeps the
/// rest verifiable: the MAC of the last dropped entry is remembered. Without a key of your own it draws a random one, so
/// that nothing outside this process can forge an entry.
///
/// Entries are kept as the lines that were MACed, and the owner of what a query returns is decoded from the line.
///
/// Erasing a tenant does not change the log: an entry cannot be taken out of a chain of MACs without breaking it for
/// everybody. Its (redacted) entries go when they are dropped from the ring, and with the process; the receipt says so.
pub struct InMemoryAuditLog {
    key: Arc<AuditKey>,
    capacity: usize,
    ring: Mutex<Ring>,
}

struct Ring {
    chain: AuditChain,
    kept: VecDeque<Kept>,
    /// The place of the first entry that is kept.
    first: u64,
    /// The MAC of the entry before it.
    before: [u8; 32],
    by_owner: HashMap<Owner, VecDeque<u64>>,
    line_bytes: usize,
}

struct Kept {
    line: Box<str>,
    /// Which index list it stands in; never what a query answers with.
    indexed_under: Owner,
    mac: [u8; 32],
}

impl InMemoryAuditLog {
    /// An empty log with a random key that keeps 100,000 entries.
    #[must_use]
    pub fn new() -> Self {
        let bytes: [u8; 32] = rand::random();
        let key = AuditKey::new("process", Secret::new(bytes.to_vec())).expect("32 bytes are a key");
        Self::with_key(Arc::new(key))
    }

    /// An empty log under a key of yours.
    #[must_use]
    pub fn with_key(key: Arc<AuditKey>) -> Self {
        let ring = Ring {
            chain: AuditChain::new(),
            kept: VecDeque::new(),
            first: 1,
            before: [0; 32],
            by_owner: HashMap::new(),
            line_bytes: 0,
        };
        Self { key, capacity: DEFAULT_CAPACITY, ring: Mutex::new(ring) }
    }

    /// Keeps at most `entries` entries, at least one.
    #[must_use]
    pub fn with_capacity(mut self, entries: usize) -> Self {
        self.capacity = entries.max(1);
        self
    }

    /// How many entries are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ring.lock().kept.len()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// About how many bytes of memory the log takes.
    #[must_use]
    pub fn approx_bytes(&self) -> usize {
        let ring = self.ring.lock();
        let index: usize = ring.by_owner.values().map(|places| places.capacity() * size_of::<u64>()).sum();
        let row = size_of::<Owner>() + size_of::<VecDeque<u64>>();
        ring.line_bytes + ring.kept.capacity() * size_of::<Kept>() + index + ring.by_owner.capacity() * row
    }

    /// A copy of every line that is kept, oldest first and without newlines, as an operator would archive them.
    #[must_use]
    pub fn lines(&self) -> Vec<Box<str>> {
        self.ring.lock().kept.iter().map(|kept| kept.line.clone()).collect()
    }

    /// Files a row of `owner` under the key of `filed_under`, by raw means. For the conformance suite only, which checks
    /// that such a row is noticed; nothing else may call it.
    #[doc(hidden)]
    pub fn plant_for_conformance(&self, filed_under: &Owner, owner: &Owner, event: &AuditEvent) {
        self.ring.lock().append(&self.key, filed_under, owner, event, self.capacity);
    }
}

impl Ring {
    /// Seals an event of `owner` into the chain and lists it under `filed_under`, which is the same tenant but for a row
    /// that the conformance suite plants.
    fn append(
        &mut self,
        key: &AuditKey,
        filed_under: &Owner,
        owner: &Owner,
        event: &AuditEvent,
        capacity: usize,
    ) -> u64 {
        let sealed = self.chain.seal(key, owner, event);
        self.line_bytes += sealed.line.len();
        // One allocation of an owner serves all of a tenant's entries.
        let indexed_under = match self.by_owner.get_key_value_mut(filed_under) {
            Some((known, places)) => {
                places.push_back(sealed.seq);
                known.clone()
            }
            None => {
                self.by_owner.insert(filed_under.clone(), VecDeque::from([sealed.seq]));
                filed_under.clone()
            }
        };
        self.kept.push_back(Kept { line: sealed.line, indexed_under, mac: sealed.mac });
        while self.kept.len() > capacity {
            self.drop_oldest();
        }
        sealed.seq
    }

    fn drop_oldest(&mut self) {
        let Some(gone) = self.kept.pop_front() else { return };
        self.first += 1;
        self.before = gone.mac;
        self.line_bytes -= gone.line.len();
        if let Some(places) = self.by_owner.get_mut(&gone.indexed_under) {
            places.pop_front();
            if places.is_empty() {
                self.by_owner.remove(&gone.indexed_under);
            }
        }
    }

    /// The tenant's lines after the place `after`, oldest first.
    fn lines_of(&self, owner: &Owner, after: u64) -> impl Iterator<Item = &str> {
        let places = self.by_owner.get(owner);
        let skip = places.map_or(0, |places| places.partition_point(|seq| *seq <= after));
        let rest = places.into_iter().flat_map(move |places| places.range(skip..));
        rest.filter_map(|seq| self.kept.get(usize::try_from(seq - self.first).ok()?)).map(|kept| &*kept.line)
    }
}

impl Default for InMemoryAuditLog {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InMemoryAuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryAuditLog")
            .field("key", &self.key)
            .field("capacity", &self.capacity)
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl AuditLog for InMemoryAuditLog {
    async fn append(&self, scope: &Scope, event: AuditEvent) -> Result<AuditReceipt> {
        let owner = scope.owner();
        let seq = self.ring.lock().append(&self.key, owner, owner, &event, self.capacity);
        Ok(AuditReceipt::new(seq))
    }

    async fn query(&self, scope: &Scope, query: &AuditQuery) -> Result<Vec<Owned<AuditEntry>>> {
        let ring = self.ring.lock();
        let mut found = Vec::new();
        for line in ring.lines_of(scope.owner(), query.after) {
            if found.len() >= query.limit {
                break;
            }
            let (owner, entry) = parse_line(line)?;
            let fits = query.action.is_none_or(|action| entry.event.action == action)
                && query.run.is_none_or(|run| entry.event.run == Some(run));
            if fits {
                found.push(Owned::new(owner, entry));
            }
        }
        Ok(found)
    }

    async fn verify(&self) -> Result<AuditVerification> {
        // The lines are copied, so that checking a long log does not hold up the tenants who write to it.
        let (lines, log, first, before) = {
            let ring = self.ring.lock();
            let lines: Vec<Box<str>> = ring.kept.iter().map(|kept| kept.line.clone()).collect();
            (lines, ring.chain.log_id().to_owned(), ring.first, ring.before)
        };
        let mut verifier =
            AuditVerifier::new([self.key.clone()]).with_log(log).starting_after(first - 1, before);
        for (n, line) in lines.iter().enumerate() {
            verifier.push(line.as_bytes());
            if n % 1_024 == 1_023 {
                tokio::task::yield_now().await;
            }
        }
        Ok(verifier.finish())
    }
}

#[async_trait]
impl TenantData for InMemoryAuditLog {
    fn store_name(&self) -> &str {
        "audit:inmemory"
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let lines: Vec<Box<str>> =
            self.ring.lock().lines_of(scope.owner(), 0).map(Box::<str>::from).collect();
        lines.iter().map(|line| exported(line)).collect::<Result<Vec<_>>>().map(export_from)
    }

    async fn forget(&self, scope: &Scope, _what: &Erase) -> Result<Erased> {
        let entries = self.ring.lock().by_owner.get(scope.owner()).map_or(0, VecDeque::len);
        let receipt = Erased::new(self.store_name()).with_count("audit_entry", 0);
        Ok(if entries == 0 {
            receipt
        } else {
            receipt.with_retained(format!(
                "{entries} audit entries: user id, action and redacted payload stay readable, because taking an \
                 entry out would break the chain; they are gone with the process"
            ))
        })
    }
}

fn exported(line: &str) -> Result<Owned<ExportItem>> {
    let line = AuditLine::parse(line)?;
    let owner = line.owner.ok_or_else(|| Error::new(ErrorKind::Internal, "an indexed entry has no owner"))?;
    let event = &line.entry.event;
    let payload: Value = serde_json::from_str(event.payload.get()).map_err(|e| {
        Error::new(ErrorKind::Internal, "a stored audit payload cannot be read").with_source(e)
    })?;
    let data = json!({
        "seq": line.entry.seq,
        "at": event.at,
        "session_id": event.session,
        "run_id": event.run,
        "actor": event.actor,
        "action": event.action,
        "payload": payload,
    });
    Ok(Owned::new(owner, ExportItem::new("audit_entry", data)))
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt};
    use loomflow_core::danger::assume_scope;
    use loomflow_core::{
        Action, Actor, Epoch, Identity, KeepAll, Namespace, Redactor, RunId, SessionId, Timestamp, UserId,
    };

    use super::*;

    fn scope(user: Option<&str>) -> Scope {
        let identity = user.map_or(Identity::Anonymous, |u| Identity::User(UserId::new(u).unwrap()));
        assume_scope(Namespace::default(), identity, Epoch::ZERO)
    }

    fn event(run: u128, action: Action) -> AuditEvent {
        let payload = Redactor::new(Arc::new(KeepAll)).object().num("n", run as u64).finish();
        AuditEvent::new(Timestamp::from_micros(run as i64), Actor::User, action, payload)
            .in_run(SessionId::new("s").unwrap(), RunId::from_u128(run))
    }

    #[tokio::test]
    async fn tenants_see_their_own_and_the_ring_stays_whole() {
        let log = InMemoryAuditLog::new().with_capacity(10);
        let users = [Some("user_1"), Some("user_10"), Some("User_1"), None];
        for n in 0..40_u128 {
            let scope = scope(users[n as usize % 4]);
            let receipt = log
                .append(&scope, event(n, Action::ModelCall))
                .now_or_never()
                .expect("an append never waits")
                .unwrap();
            assert_eq!(receipt.seq, n as u64 + 1);
            let done = log.verify().await.unwrap();
            assert!(done.is_valid(), "{:?}", done.problems);
            assert_eq!(done.entries, (n as u64 + 1).min(10));
        }
        let done = log.verify().await.unwrap();
        assert_eq!((done.first_seq, done.last_seq, log.len()), (31, 40, 10));
        let mut seen = 0;
        for user in users {
            let scope = scope(user);
            let found = log.query(&scope, &AuditQuery::first(100)).await.unwrap();
            assert!(found.iter().all(|owned| scope.owns(owned.owner())));
            seen += found.len();
            let exported = log.export(&scope).await.unwrap().count().await;
            assert_eq!(exported, found.len());
        }
        assert_eq!(seen, 10);
        assert!(log.query(&scope(Some("user_2")), &AuditQuery::first(9)).await.unwrap().is_empty());
        assert!(log.approx_bytes() > 10 * 300 && log.approx_bytes() < 10 * 2_000);
    }

    #[tokio::test]
    async fn a_query_filters() {
        let log = InMemoryAuditLog::new();
        let alice = scope(Some("alice"));
        for n in 0..20 {
            let action = if n % 2 == 0 { Action::ToolIntent } else { Action::ToolResult };
            log.append(&alice, event(n / 4, action)).await.unwrap();
            log.append(&scope(Some("bob")), event(n / 4, action)).await.unwrap();
        }
        let seqs = |query: AuditQuery| {
            let (log, alice) = (&log, &alice);
            async move {
                let found = log.query(alice, &query).await.unwrap();
                found.into_iter().map(|o| o.open(alice).unwrap().seq).collect::<Vec<_>>()
            }
        };
        assert_eq!(seqs(AuditQuery::first(3)).await, [1, 3, 5]);
        assert_eq!(seqs(AuditQuery::first(3).after(5)).await, [7, 9, 11]);
        assert_eq!(seqs(AuditQuery::first(9).run(RunId::from_u128(1))).await, [9, 11, 13, 15]);
        let both = AuditQuery::first(9).run(RunId::from_u128(1)).action(Action::ToolResult);
        assert_eq!(seqs(both).await, [11, 15]);
        assert!(seqs(AuditQuery::first(0)).await.is_empty());
    }

    #[tokio::test]
    async fn a_changed_line_is_noticed_and_a_misfiled_one_carries_its_owner() {
        let log = InMemoryAuditLog::new();
        log.append(&scope(Some("alice")), event(1, Action::RunStarted)).await.unwrap();
        log.append(&scope(Some("bob")), event(2, Action::RunStarted)).await.unwrap();
        let bobs = log.ring.lock().by_owner.remove(scope(Some("bob")).owner()).unwrap();
        log.ring.lock().by_owner.insert(scope(Some("alice")).owner().clone(), bobs);
        let found = log.query(&scope(Some("alice")), &AuditQuery::first(9)).await.unwrap();
        assert!(found.into_iter().all(|owned| owned.open(&scope(Some("alice"))).is_err()));
        {
            let mut ring = log.ring.lock();
            ring.kept[0].line = ring.kept[0].line.replace("alice", "mallo").into();
        }
        assert_eq!(log.verify().await.unwrap().problems[0].kind, "bad_mac");
    }

    #[tokio::test]
    async fn erasure_says_what_it_keeps() {
        let log = InMemoryAuditLog::new();
        let alice = scope(Some("alice"));
        assert!(log.forget(&alice, &Erase::everything()).await.unwrap().retained.is_empty());
        log.append(&alice, event(1, Action::RunStarted)).await.unwrap();
        let receipt = log.forget(&alice, &Erase::everything()).await.unwrap();
        assert!(receipt.total() == 0 && receipt.retained[0].starts_with("1 audit entries"));
        assert!(log.verify().await.unwrap().is_valid());
    }
}
