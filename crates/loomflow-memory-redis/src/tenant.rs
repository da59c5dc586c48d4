//! One tenant's keys on the server: guarded commits, and reads in pages.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use loomflow_core::resilience::Repeat;
use loomflow_core::rules::{Space, rank};
use loomflow_core::{Embedding, Error, ErrorKind, Owner, Result, Scope, Timestamp, UserId};
use loomflow_support_redis::{Link, Script, TenantKeys};
use redis::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::codec::{Row, bytes, id_of, list, number, pairs, text, unreadable};
use crate::schema::Schema;
use crate::scripts;
use crate::search::Search;

/// A hash of at most this many entries is read whole.
const WHOLE: usize = 2_000;
/// How many entries a page of a larger one has.
const PAGE: usize = 1_000;
/// Vectors of at most this many bytes together come along with the entries.
const WITH_VECTORS: usize = 128 << 10;
/// How many rows are fetched at once, and how many with their vectors.
const ROWS: usize = 256;
const ROWS_WITH_VECTORS: usize = 64;
/// Of how many rows the owners are looked at in one exchange.
const OWNERS: usize = 500;
/// How often a read that is paged begins again because somebody wrote.
const STEADY_TRIES: usize = 8;
/// How often a plan is made again because somebody wrote.
pub(crate) const PLAN_TRIES: u32 = 64;

/// What every operation needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) link: Link,
    pub(crate) schema: Schema,
    pub(crate) search: Search,
    ttl: Vec<u8>,
    turns: Turns,
}

impl Shared {
    pub(crate) fn new(
        link: Link,
        schema: Schema,
        search: Search,
        ttl_millis: u64,
        patience: Duration,
    ) -> Self {
        let turns = Turns::new(patience);
        Self { link, schema, search, ttl: ttl_millis.to_string().into_bytes(), turns }
    }

    pub(crate) fn tenant(&self, owner: &Owner) -> Tenant<'_> {
        Tenant { shared: self, keys: self.schema.tenant(owner), owner: owner.clone() }
    }

    /// Waits until no one else of this process plans an assertion for the partition of `owner`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Overloaded`] when that takes longer than one operation may.
    pub(crate) async fn alone(&self, owner: &Owner, operation: &'static str) -> Result<SemaphorePermit<'_>> {
        self.turns.take(owner.partition()[0], operation).await
    }
}

/// One plan at a time for each of a fixed number of groups of partitions: callers of one process need not outrun one another.
///
/// It only saves work, because a commit is guarded by what it was planned on. So nobody waits for it for long: a partition
/// that is busy shares its turn with partitions that have nothing to do with it.
#[derive(Debug)]
struct Turns {
    groups: Vec<Semaphore>,
    patience: Duration,
}

impl Turns {
    fn new(patience: Duration) -> Self {
        Self { groups: (0..=u8::MAX).map(|_| Semaphore::new(1)).collect(), patience }
    }

    async fn take(&self, group: u8, operation: &'static str) -> Result<SemaphorePermit<'_>> {
        let turn = self.groups[usize::from(group)].acquire();
        match tokio::time::timeout(self.patience, turn).await {
            Ok(turn) => Ok(turn.expect("it is never closed")),
            Err(_) => {
                let message =
                    "others of this program were writing for too long; nothing was written, try again";
                Err(Error::new(ErrorKind::Overloaded, message).with_operation(operation))
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tenant<'s> {
    pub(crate) shared: &'s Shared,
    pub(crate) keys: TenantKeys,
    owner: Owner,
}

/// What is known of a partition as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Meta {
    pub(crate) space: Option<Space>,
    /// Changes with every write.
    pub(crate) version: String,
    /// Changes with every write that concerns facts.
    pub(crate) facts_version: String,
    /// The largest `known_from`.
    pub(crate) newest: Option<Timestamp>,
}

impl Meta {
    pub(crate) fn read(value: Value) -> Result<Self> {
        let mut parts = list(value)?.into_iter().map(text);
        let mut next = || parts.next().flatten();
        let (model, dim) = (next(), next().and_then(|d| d.parse().ok()));
        let space = model.zip(dim).map(|(model, dimensions)| Space { model: model.into(), dimensions });
        let (version, facts_version) = (next().unwrap_or_default(), next().unwrap_or_default());
        let newest = next().and_then(|n| n.parse().ok()).map(Timestamp::from_micros);
        Ok(Self { space, version, facts_version, newest })
    }
}

/// A hash as it was read, each entry once.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) meta: Meta,
    pub(crate) generation: String,
    pub(crate) entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// The vectors, when they are few.
    pub(crate) vectors: Option<HashMap<u128, Vec<f32>>>,
}

/// A row that was asked for by its id.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) id: u128,
    pub(crate) row: Option<Vec<u8>>,
    pub(crate) vector: Option<Embedding>,
}

/// A write: what must hold, and what changes then.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    operation: &'static str,
    mode: &'static str,
    repeat: Repeat,
    known: Option<(&'static str, u128)>,
    given: Option<&'a Embedding>,
    expect: Option<(&'static str, String)>,
    newest: Option<Timestamp>,
    ops: Vec<Vec<u8>>,
}

/// What became of a commit that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// It was done.
    Done,
    /// It had been done before.
    Known,
    /// Somebody wrote since what it was planned on was read; nothing was done.
    Moved,
}

impl<'a> Commit<'a> {
    pub(crate) fn new(operation: &'static str) -> Self {
        Self {
            operation,
            mode: "write",
            repeat: Repeat::Safe,
            known: None,
            given: None,
            expect: None,
            newest: None,
            ops: Vec::new(),
        }
    }

    /// Done at most once, because doing it again would undo what somebody else did in between.
    pub(crate) fn once(mut self) -> Self {
        self.repeat = Repeat::Unsafe;
        self
    }

    /// Changes what is erased, and raises the epoch to the scope's.
    ///
    /// Done twice, it would find its own epoch and call that a conflict.
    pub(crate) fn erasing(mut self) -> Self {
        self.mode = "erase";
        self.once()
    }

    /// Nothing happens when there is such a row.
    pub(crate) fn unless_known(mut self, kind: &'static str, id: u128) -> Self {
        self.known = Some((kind, id));
        self
    }

    /// The partition's vectors must be comparable with this one, and are from now on.
    pub(crate) fn with_vector(mut self, given: Option<&'a Embedding>) -> Self {
        self.given = given;
        self
    }

    pub(crate) fn expecting(mut self, field: &'static str, version: &str) -> Self {
        self.expect = Some((field, version.to_owned()));
        self
    }

    /// Facts change, and this is the largest `known_from` afterwards.
    pub(crate) fn with_newest(mut self, newest: Option<Timestamp>) -> Self {
        self.newest = newest;
        self
    }

    pub(crate) fn op(&mut self, op: &str, kind: &str, field: &[u8], value: Vec<u8>) {
        self.ops.extend([op.into(), kind.into(), field.to_vec(), value]);
    }

    fn args(self, tenant: &Tenant<'_>, scope: &Scope, looking: bool) -> Vec<Vec<u8>> {
        let (kind, id) = self.known.map_or(("", Vec::new()), |(k, id)| (k, id.to_be_bytes().to_vec()));
        let space = self.given.map(Space::of);
        let (field, expected) = self.expect.unwrap_or_default();
        let owner = &tenant.owner;
        let user = owner.user_id().map_or_else(String::new, |id| format!("u{}", UserId::as_str(id)));
        let text = |text: &str| text.as_bytes().to_vec();
        let seed = rand_seed();
        let mut args = vec![
            tenant.shared.ttl.clone(),
            text(if looking { "look" } else { self.mode }),
            epoch_digits(scope),
            text(kind),
            id,
            space.as_ref().map_or_else(Vec::new, |s| text(&s.model)),
            space.as_ref().map_or_else(Vec::new, |s| s.dimensions.to_string().into_bytes()),
            text(field),
            text(&expected),
            text(owner.namespace().as_str()),
            text(&user),
            self.newest.map_or_else(Vec::new, |n| n.as_micros().to_string().into_bytes()),
            seed.to_string().into_bytes(),
            text(&tenant.shared.schema.search_prefix()),
            text(tenant.keys.partition()),
        ];
        args.extend(self.ops);
        args
    }
}

/// Where the versions of a new partition begin: not where those of one that expired did.
fn rand_seed() -> u128 {
    loomflow_core::FactId::fresh().as_u128() >> 80
}

pub(crate) fn epoch_digits(scope: &Scope) -> Vec<u8> {
    format!("{:020}", scope.epoch().get()).into_bytes()
}

/// A pause before a plan is made again, longer each time and never the same.
pub(crate) async fn pause(tries: u32) {
    let spread = u64::try_from(rand_seed() % 1_000).unwrap_or(0);
    tokio::time::sleep(Duration::from_micros(spread * u64::from(tries.min(20)))).await;
}

/// Writers of other processes were always faster.
pub(crate) fn outrun(operation: &'static str) -> Error {
    let message = "this user's memory is written to so much that the change found no gap; try again";
    Error::new(ErrorKind::Overloaded, message).with_operation(operation)
}

impl Tenant<'_> {
    /// Runs a script on the tenant's keys; its first argument is the time to live.
    pub(crate) async fn script(
        &self,
        operation: &'static str,
        repeat: Repeat,
        script: &Script,
        args: Vec<Vec<u8>>,
    ) -> Result<Vec<Value>> {
        let reply: Value =
            self.shared.link.script(operation, repeat, script, self.keys.base(), &args).await?;
        list(reply)
    }

    async fn read(&self, operation: &'static str, script: &Script, args: &[&[u8]]) -> Result<Vec<Value>> {
        let mut all = vec![self.shared.ttl.clone()];
        all.extend(args.iter().map(|arg| arg.to_vec()));
        self.script(operation, Repeat::Safe, script, all).await
    }

    /// Whether `commit` would be done, without doing it.
    pub(crate) async fn look(&self, scope: &Scope, commit: Commit<'_>) -> Result<Committed> {
        self.run(scope, commit, true).await
    }

    pub(crate) async fn commit(&self, scope: &Scope, commit: Commit<'_>) -> Result<Committed> {
        self.run(scope, commit, false).await
    }

    async fn run(&self, scope: &Scope, commit: Commit<'_>, looking: bool) -> Result<Committed> {
        let (operation, repeat, given) = (commit.operation, commit.repeat, commit.given.cloned());
        let args = commit.args(self, scope, looking);
        let mut answer = self.script(operation, repeat, &scripts::COMMIT, args).await?.into_iter().map(text);
        let mut next = || answer.next().flatten().unwrap_or_default();
        match next().as_str() {
            "ok" => Ok(Committed::Done),
            "known" => Ok(Committed::Known),
            "moved" => Ok(Committed::Moved),
            "erased" => Err(Error::erased(operation)),
            "conflict" => Err(conflict()),
            "full" => Err(Error::new(
                ErrorKind::Capacity,
                "the user has as many blocks as the memory keeps; nothing was written",
            )
            .with_operation(operation)),
            "space" => {
                let stored = Space { model: next().into(), dimensions: next().parse().unwrap_or(0) };
                Space::check(Some(&stored), given.as_ref(), operation)?;
                Err(unreadable().with_operation(operation))
            }
            _ => Err(unreadable().with_operation(operation)),
        }
    }

    /// All of a hash. With `steady`, as it was at one moment (facts are not moved by writes of anything else); without, entries that come or go meanwhile may be in it or not.
    pub(crate) async fn scan(
        &self,
        operation: &'static str,
        kind: &str,
        vectors: &str,
        steady: bool,
    ) -> Result<Scan> {
        let version =
            |meta: &Meta| if kind == "fa" { meta.facts_version.clone() } else { meta.version.clone() };
        for _ in 0..STEADY_TRIES {
            let mut scan = self.page(operation, kind, vectors, b"").await?;
            let mut cursor = std::mem::take(&mut scan.1);
            let mut moved = false;
            while cursor != b"0" && !moved {
                let (page, next) = self.page(operation, kind, "", &cursor).await?;
                moved = steady && version(&page.meta) != version(&scan.0.meta);
                scan.0.entries.extend(page.entries);
                cursor = next;
            }
            if !moved {
                let mut scan = scan.0;
                // A page may repeat what another had.
                scan.entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
                scan.entries.dedup_by(|a, b| a.0 == b.0);
                return Ok(scan);
            }
        }
        Err(outrun(operation))
    }

    async fn page(
        &self,
        operation: &'static str,
        kind: &str,
        vectors: &str,
        cursor: &[u8],
    ) -> Result<(Scan, Vec<u8>)> {
        let size = if cursor.is_empty() { WHOLE } else { PAGE }.to_string();
        let room = WITH_VECTORS.to_string();
        let args = [kind.as_bytes(), cursor, size.as_bytes(), vectors.as_bytes(), room.as_bytes()];
        let reply = self.read(operation, &scripts::SCAN, &args).await?;
        let [meta, generation, next, entries, with]: [Value; 5] =
            reply.try_into().map_err(|_| unreadable())?;
        let vectors = match with {
            Value::Array(_) => {
                let read = |(id, v): (Vec<u8>, Vec<u8>)| Ok((id_of(&id)?, rank::vector_from_bytes(&v)));
                Some(pairs(with)?.into_iter().map(read).collect::<Result<_>>()?)
            }
            _ => None,
        };
        let generation = text(generation).unwrap_or_default();
        let scan = Scan { meta: Meta::read(meta)?, generation, entries: pairs(entries)?, vectors };
        Ok((scan, bytes(next).unwrap_or_default()))
    }

    /// The rows of `ids`, in their order; `kind` or `vectors` may be empty, and is not fetched then.
    pub(crate) async fn fetch(
        &self,
        operation: &'static str,
        kind: &str,
        vectors: &str,
        ids: &[u128],
    ) -> Result<Vec<Fetched>> {
        let mut out = Vec::with_capacity(ids.len());
        for ids in ids.chunks(if vectors.is_empty() { ROWS } else { ROWS_WITH_VECTORS }) {
            let keys: Vec<[u8; 16]> = ids.iter().map(|id| id.to_be_bytes()).collect();
            let mut args = vec![kind.as_bytes(), vectors.as_bytes()];
            args.extend(keys.iter().map(|key| &key[..]));
            let reply = self.read(operation, &scripts::FETCH, &args).await?;
            let [rows, with, model]: [Value; 3] = reply.try_into().map_err(|_| unreadable())?;
            let model: Arc<str> = text(model).unwrap_or_default().into();
            let mut columns = [rows, with].map(|column| list(column).unwrap_or_default().into_iter());
            for id in ids {
                let [row, vector] = [0, 1].map(|n: usize| columns[n].next().and_then(bytes));
                let vector = vector.map(|v| Embedding::new(model.clone(), rank::vector_from_bytes(&v)));
                out.push(Fetched { id: *id, row, vector });
            }
        }
        Ok(out)
    }

    /// A page of an order, newest first: members below `max` that begin with `prefix`, each with the head of its entry.
    pub(crate) async fn latest(
        &self,
        operation: &'static str,
        order: &str,
        prefix: &[u8],
        below: Option<&[u8]>,
        count: usize,
    ) -> Result<(Meta, Vec<(Vec<u8>, Vec<u8>)>)> {
        let max =
            below.map_or_else(|| [b"[", prefix, &[0xff; 25]].concat(), |member| [b"(", member].concat());
        let min = [b"[", prefix].concat();
        let args = [order.as_bytes(), &max, &min, count.to_string().as_bytes()].map(<[u8]>::to_vec);
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let reply = self.read(operation, &scripts::LATEST, &args).await?;
        let [meta, found]: [Value; 2] = reply.try_into().map_err(|_| unreadable())?;
        Ok((Meta::read(meta)?, pairs(found)?))
    }

    /// The believed rows whose key begins with `prefix`, by id.
    pub(crate) async fn believed(
        &self,
        operation: &'static str,
        prefix: &[u8],
    ) -> Result<(Meta, Vec<(Vec<u8>, Vec<u8>)>)> {
        let (min, max) = ([b"[", prefix].concat(), [b"[", prefix, &[0xff; 25]].concat());
        let reply = self.read(operation, &scripts::BELIEVED, &[&min, &max]).await?;
        let [meta, rows]: [Value; 2] = reply.try_into().map_err(|_| unreadable())?;
        Ok((Meta::read(meta)?, pairs(rows)?))
    }

    /// Whose the rows of `kind` say that they are, each owner at least once; with `ids` only those of the named rows.
    pub(crate) async fn owners(
        &self,
        operation: &'static str,
        kind: &str,
        ids: Option<&[u128]>,
    ) -> Result<Vec<Owner>> {
        let mut owners = Vec::new();
        let page = OWNERS.to_string();
        for ids in ids.unwrap_or_default().chunks(OWNERS) {
            let ids: Vec<[u8; 16]> = ids.iter().map(|id| id.to_be_bytes()).collect();
            let mut args = vec![kind.as_bytes(), b"0", page.as_bytes()];
            args.extend(ids.iter().map(|id| &id[..]));
            self.owners_of(operation, &args, &mut owners).await?;
        }
        let mut cursor = b"0".to_vec();
        while ids.is_none() {
            let args = [kind.as_bytes(), &cursor, page.as_bytes()];
            cursor = self.owners_of(operation, &args, &mut owners).await?;
            if cursor == b"0" {
                break;
            }
        }
        Ok(owners)
    }

    /// One exchange of [`Tenant::owners`]; the answer is the next cursor.
    async fn owners_of(
        &self,
        operation: &'static str,
        args: &[&[u8]],
        owners: &mut Vec<Owner>,
    ) -> Result<Vec<u8>> {
        let reply = self.read(operation, &scripts::OWNERS, args).await?;
        let [next, found]: [Value; 2] = reply.try_into().map_err(|_| unreadable())?;
        for row in list(found)?.into_iter().filter_map(bytes) {
            let owner = Row::<()>::read(&row)?.owner(None)?;
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        }
        bytes(next).ok_or_else(unreadable)
    }

    /// Whose the partition is as it is written there, and how many episodes, facts and blocks it has, and its newest episode.
    pub(crate) async fn stat(
        &self,
        operation: &'static str,
    ) -> Result<(Option<Owner>, [u64; 3], Option<Vec<u8>>)> {
        let reply = self.read(operation, &scripts::STAT, &[]).await?;
        let [whose, episodes, facts, blocks, last]: [Value; 5] =
            reply.try_into().map_err(|_| unreadable())?;
        let mut whose = list(whose)?.into_iter().map(text);
        let (namespace, user) = (whose.next().flatten(), whose.next().flatten());
        let owner =
            namespace.map(|namespace| Owner::from_columns(&namespace, user.as_deref())).transpose()?;
        let last = list(last)?.into_iter().next().and_then(bytes);
        Ok((owner, [episodes, facts, blocks].map(|n| number(&n)), last))
    }
}

/// Refuses to build on, to change or to erase a row that says it is another tenant's.
pub(crate) fn check_own(scope: &Scope, owner: &Owner, operation: &'static str) -> Result<()> {
    if scope.owns(owner) {
        return Ok(());
    }
    let message = "a row of another tenant was found in this partition; nothing was written";
    Err(Error::new(ErrorKind::IsolationViolation, message).with_operation(operation))
}

/// The refusal of an erasure that another overtook.
pub(crate) fn conflict() -> Error {
    let message = "another erasure of this tenant came first; mint a newer epoch and try again";
    Error::new(ErrorKind::Conflict, message).with_operation("forget")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_turn_without_end() {
        let turns = Turns::new(Duration::from_millis(1));
        let first = turns.take(7, "assert").await.unwrap();
        let error = turns.take(7, "assert").await.unwrap_err();
        assert!(error.kind() == ErrorKind::Overloaded && error.is_retryable(), "{error:?}");
        drop(turns.take(8, "assert").await.unwrap());
        drop(first);
        drop(turns.take(7, "assert").await.unwrap());
    }
}
