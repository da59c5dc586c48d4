//! Who may decide, when, and how often.

use loomflow_core::danger::assume_scope;
use loomflow_core::{Effect, Identity, Namespace, RunId};

use serde_json::json;

use loomflow_core::ApprovalPage;

use super::*;

fn scope_at(user: &str, epoch: u64) -> Scope {
    let identity =
        if user.is_empty() { Identity::Anonymous } else { Identity::User(UserId::new(user).unwrap()) };
    assume_scope(Namespace::default(), identity, Epoch::new(epoch))
}

fn scope(user: &str) -> Scope {
    scope_at(user, 0)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn binding() -> Digest {
    Digest::of(&[b"call"])
}

fn request(asked: i64) -> ApprovalRequest {
    let mut request = ApprovalRequest::new(RunId::from_u128(1), "c1", "pay", Effect::External, binding());
    request.requested_at = at(asked);
    request.expires_at = at(asked + 100);
    request.policy_version = 7;
    request.approvers = [UserId::new("ops").unwrap()].into();
    request
}

#[derive(Debug)]
struct Frozen(i64);
impl Clock for Frozen {
    fn now(&self) -> Timestamp {
        at(self.0)
    }
}

fn store(now: i64) -> InMemoryApprovalStore {
    InMemoryApprovalStore::new().with_clock(Arc::new(Frozen(now)))
}

fn kind<T: fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

const APPROVE: ApprovalDecision = ApprovalDecision::Approve;

#[tokio::test]
async fn a_stranger_learns_nothing_and_the_eligible_decide_once() {
    let store = store(0);
    let ask = request(0);
    let id = ask.id;
    store.create(&scope("user_1"), ask).await.unwrap();
    let other_namespace = assume_scope(
        Namespace::new("other").unwrap(),
        Identity::User(UserId::new("ops").unwrap()),
        Epoch::ZERO,
    );
    for stranger in [scope("user_10"), scope("User_1"), scope("Ops"), scope(""), other_namespace] {
        assert_eq!(kind(store.get(&stranger, id, at(1)).await), ErrorKind::NotFound);
        assert_eq!(kind(store.decide(&stranger, id, APPROVE, at(1)).await), ErrorKind::NotFound);
        assert_eq!(
            kind(store.decide_by_handler(&stranger, id, APPROVE, None, at(1)).await),
            ErrorKind::NotFound
        );
        assert_eq!(kind(store.consume(&stranger, id, binding(), 7, at(1)).await), ErrorKind::NotFound);
        assert_eq!(kind(store.changed(&stranger, id).await), ErrorKind::NotFound);
        assert!(store.list(&stranger, at(1), ApprovalPage::default()).await.unwrap().is_empty());
    }
    assert_eq!(kind(store.decide(&scope("user_1"), id, APPROVE, at(1)).await), ErrorKind::Denied);
    let listed = store.list(&scope("ops"), at(1), ApprovalPage::default()).await.unwrap();
    assert_eq!(listed[0].owner(), scope("user_1").owner());
    // The approver may decide but neither use it nor decide in the place of the handler.
    assert_eq!(kind(store.consume(&scope("ops"), id, binding(), 7, at(1)).await), ErrorKind::NotFound);
    assert_eq!(
        kind(store.decide_by_handler(&scope("ops"), id, APPROVE, None, at(1)).await),
        ErrorKind::NotFound
    );
    let edit = ApprovalDecision::Edit { args: json!([]) };
    assert_eq!(kind(store.decide(&scope("ops"), id, edit, at(1)).await), ErrorKind::InvalidInput);
    store.decide(&scope("ops"), id, APPROVE, at(1)).await.unwrap();
    assert_eq!(kind(store.decide(&scope("ops"), id, APPROVE, at(1)).await), ErrorKind::Conflict);
    assert!(store.list(&scope("ops"), at(1), ApprovalPage::default()).await.unwrap().is_empty());

    let own = scope("user_1");
    assert_eq!(kind(store.consume(&own, id, Digest::of(&[b"other"]), 7, at(1)).await), ErrorKind::Conflict);
    assert_eq!(kind(store.consume(&own, id, binding(), 8, at(1)).await), ErrorKind::Conflict);
    assert_eq!(kind(store.consume(&own, id, binding(), 7, at(100)).await), ErrorKind::Conflict);
    let (decision, by) = store.consume(&own, id, binding(), 7, at(99)).await.unwrap();
    assert_eq!((decision, by), (APPROVE, Some(UserId::new("ops").unwrap())));
    assert_eq!(kind(store.consume(&own, id, binding(), 7, at(99)).await), ErrorKind::Conflict);
}

#[tokio::test]
async fn self_approval_is_for_whom_it_is_switched_on() {
    let store = store(0);
    for user in ["alice", ""] {
        let mut ask = request(0);
        ask.self_approval = true;
        let id = ask.id;
        store.create(&scope(user), ask).await.unwrap();
        store.decide(&scope(user), id, APPROVE, at(1)).await.unwrap();
    }
    // Who asks and is an approver, too, does not thereby approve what it asked for.
    let ask = request(0);
    let id = ask.id;
    store.create(&scope("ops"), ask).await.unwrap();
    assert_eq!(kind(store.decide(&scope("ops"), id, APPROVE, at(1)).await), ErrorKind::Denied);
}

#[tokio::test]
async fn time_ends_a_request() {
    let store = store(0);
    let ask = request(0);
    let id = ask.id;
    store.create(&scope("alice"), ask).await.unwrap();
    assert_eq!(kind(store.decide(&scope("ops"), id, APPROVE, at(100)).await), ErrorKind::Conflict);
    let seen = store.get(&scope("alice"), id, at(100)).await.unwrap().open(&scope("alice")).unwrap();
    assert_eq!(seen.state, ApprovalState::Expired);
    assert!(store.list(&scope("alice"), at(100), ApprovalPage::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_full_store_gives_up_only_what_is_over() {
    let store = store(150).with_capacity(4, 2);
    let create = |user: &'static str, asked| {
        let store = &store;
        async move {
            let ask = request(asked);
            let id = ask.id;
            store.create(&scope(user), ask).await.map(|()| id)
        }
    };
    let old = create("alice", 0).await.unwrap();
    let live = create("alice", 100).await.unwrap();
    create("alice", 101).await.unwrap();
    assert_eq!(kind(store.get(&scope("alice"), old, at(150)).await), ErrorKind::NotFound);
    assert_eq!(kind(create("alice", 102).await), ErrorKind::Capacity);
    create("bob", 100).await.unwrap();
    create("carol", 100).await.unwrap();
    assert_eq!(kind(create("dave", 100).await), ErrorKind::Capacity);
    assert!(store.get(&scope("alice"), live, at(150)).await.is_ok());
    store.decide_by_handler(&scope("alice"), live, APPROVE, None, at(150)).await.unwrap();
    assert_eq!(kind(create("dave", 100).await), ErrorKind::Capacity, "decided, and still to be used");
    store.consume(&scope("alice"), live, binding(), 7, at(150)).await.unwrap();
    create("dave", 100).await.unwrap();
    assert_eq!(store.table.lock().requests.len(), 4);
}

#[tokio::test]
async fn erasure_takes_one_tenants_requests_and_refuses_late_ones() {
    let store = store(0);
    for (user, asked) in [("alice", 1), ("alice", 5), ("bob", 1)] {
        store.create(&scope(user), request(asked)).await.unwrap();
    }
    let erased = store.forget(&scope_at("alice", 1), &Erase::before(at(5))).await.unwrap();
    assert_eq!(erased.total(), 1);
    assert_eq!(kind(store.create(&scope("alice"), request(6)).await), ErrorKind::Erased);
    assert_eq!(store.forget(&scope_at("alice", 2), &Erase::everything()).await.unwrap().total(), 1);
    assert_eq!(store.epoch(&scope("alice")).await.unwrap(), Epoch::new(2));
    assert!(store.list(&scope("alice"), at(7), ApprovalPage::default()).await.unwrap().is_empty());
    assert_eq!(
        store.list(&scope("ops"), at(7), ApprovalPage::default()).await.unwrap().len(),
        1,
        "bob's is left"
    );
    let exported: Vec<_> = futures_util::StreamExt::collect(store.export(&scope("bob")).await.unwrap()).await;
    assert_eq!(exported.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_and_of_two_decisions_one_wins() {
    let store = Arc::new(store(0));
    for round in 0..300 {
        let ask = request(0);
        let id = ask.id;
        store.create(&scope("alice"), ask).await.unwrap();
        let decide = |scope_of: &'static str| {
            let store = store.clone();
            tokio::spawn(async move {
                match scope_of {
                    "ops" => store.decide(&scope("ops"), id, APPROVE, at(1)).await,
                    _ => store.decide_by_handler(&scope("alice"), id, APPROVE, None, at(1)).await,
                }
            })
        };
        let deciders = [decide("ops"), decide("alice")];
        let alice = scope("alice");
        let wait = tokio::time::timeout(Duration::from_secs(10), store.changed(&alice, id));
        wait.await.expect("the waiter is woken").unwrap();
        let mut won = 0;
        for decider in deciders {
            won += usize::from(decider.await.unwrap().is_ok());
        }
        assert_eq!(won, 1, "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_ends_when_the_request_expires_or_is_erased() {
    let store = Arc::new(store(90));
    let ask = request(0);
    let id = ask.id;
    store.create(&scope("alice"), ask).await.unwrap();
    let started = tokio::time::Instant::now();
    store.changed(&scope("alice"), id).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 10);
    let (waiting, mine) = (store.clone(), scope("alice"));
    let waiter = tokio::spawn(async move { waiting.changed(&mine, id).await });
    tokio::task::yield_now().await;
    store.forget(&scope_at("alice", 1), &Erase::everything()).await.unwrap();
    waiter.await.unwrap().unwrap();
    assert_eq!(started.elapsed().as_secs(), 10, "erasure wakes at once");
}
