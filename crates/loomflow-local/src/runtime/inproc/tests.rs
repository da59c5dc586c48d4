//! Leases, fences, steps and erasure of the in-process runtime.

use futures_util::StreamExt;
use loomflow_core::danger::assume_scope;
use loomflow_core::{Digest, Identity, KeepAll, Namespace, Redactor, SessionId, Timestamp, UserId};

use super::*;

fn scope_at(user: &str, epoch: u64) -> Scope {
    let identity =
        if user.is_empty() { Identity::Anonymous } else { Identity::User(UserId::new(user).unwrap()) };
    assume_scope(Namespace::default(), identity, Epoch::new(epoch))
}

fn scope(user: &str) -> Scope {
    scope_at(user, 0)
}

fn redacted(text: &str) -> Redacted<String> {
    Redactor::new(Arc::new(KeepAll)).text(text)
}

fn opening(run: u128, session: &str) -> RunOpening {
    let session = SessionId::new(session).unwrap();
    let at = Timestamp::from_micros(run as i64);
    RunOpening::new(
        RunId::from_u128(run),
        session,
        redacted("{\"input\":\"hi\"}"),
        Duration::from_secs(30),
        at,
    )
}

fn step(seq: u32) -> StepKey {
    StepKey::new(seq, Digest::of(&[&seq.to_be_bytes()]), false)
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

async fn wait(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

fn both() -> [InProcRuntime; 2] {
    [InProcRuntime::new(), InProcRuntime::with_journal(InMemoryJournalStore::new())]
}

#[tokio::test(start_paused = true)]
async fn one_run_of_a_session_is_open_at_a_time() {
    for runtime in both() {
        let alice = scope("alice");
        let first = runtime.open(&alice, opening(1, "s")).await.unwrap();
        assert_eq!(kind(runtime.open(&alice, opening(2, "s")).await), ErrorKind::Conflict);
        assert_eq!(
            kind(runtime.open(&alice, opening(1, "s")).await),
            ErrorKind::Conflict,
            "its lease is alive"
        );
        // Others, with the same session and even the same run id, do not meet it.
        for other in ["bob", "Alice", "alice2", ""] {
            let theirs = runtime.open(&scope(other), opening(1, "s")).await.unwrap();
            assert_eq!(
                kind(runtime.renew(&alice, &theirs, Duration::from_secs(1)).await),
                ErrorKind::Conflict
            );
            runtime.close(&scope(other), &theirs, RunStatus::Completed).await.unwrap();
        }
        runtime.open(&alice, opening(3, "other")).await.unwrap();
        wait(20).await;
        runtime.renew(&alice, &first, Duration::from_secs(30)).await.unwrap();
        wait(20).await;
        assert_eq!(kind(runtime.open(&alice, opening(2, "s")).await), ErrorKind::Conflict, "it was renewed");
        wait(11).await;
        let second = runtime.open(&alice, opening(2, "s")).await.unwrap();
        assert!(second.fence > first.fence);
        assert_eq!(kind(runtime.renew(&alice, &first, Duration::from_secs(1)).await), ErrorKind::Conflict);
        assert_eq!(kind(runtime.begin(&alice, &first, &step(0)).await), ErrorKind::Conflict);
        assert_eq!(kind(runtime.commit(&alice, &first, &step(0), redacted("x")).await), ErrorKind::Conflict);
        runtime.close(&alice, &first, RunStatus::Failed).await.unwrap();
        assert_eq!(
            kind(runtime.open(&alice, opening(4, "s")).await),
            ErrorKind::Conflict,
            "the second holds it"
        );
        runtime.close(&alice, &second, RunStatus::Completed).await.unwrap();
        runtime.open(&alice, opening(4, "s")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_replays_and_says_what_is_in_doubt() {
    let journal = InMemoryJournalStore::new();
    let runtime = InProcRuntime::with_journal(journal.clone());
    let alice = scope("alice");
    let lease = runtime.open(&alice, opening(1, "s")).await.unwrap();
    assert_eq!(runtime.begin(&alice, &lease, &step(0)).await.unwrap(), Recorded::Fresh);
    runtime.commit(&alice, &lease, &step(0), redacted("zero")).await.unwrap();
    runtime.commit(&alice, &lease, &step(0), redacted("other")).await.unwrap();
    assert_eq!(runtime.begin(&alice, &lease, &step(1)).await.unwrap(), Recorded::Fresh);
    assert_eq!(kind(runtime.commit(&alice, &lease, &step(2), redacted("x")).await), ErrorKind::Conflict);

    wait(31).await;
    let runtime = InProcRuntime::with_journal(journal);
    let open = runtime.open_runs(&alice).await.unwrap();
    assert_eq!((open.len(), open[0].owner()), (1, alice.owner()));
    let record = runtime.load(&alice, RunId::from_u128(1)).await.unwrap().open(&alice).unwrap();
    assert_eq!(
        (record.steps, record.status, record.input.as_str()),
        (2, RunStatus::Running, "{\"input\":\"hi\"}")
    );
    assert_eq!(kind(runtime.load(&scope("bob"), RunId::from_u128(1)).await), ErrorKind::NotFound);
    assert!(runtime.open_runs(&scope("bob")).await.unwrap().is_empty());
    assert_eq!(kind(runtime.open(&alice, opening(1, "elsewhere")).await), ErrorKind::Conflict);
    let again = runtime.open(&alice, opening(1, "s")).await.unwrap();
    assert!(again.fence > lease.fence);
    assert_eq!(kind(runtime.begin(&alice, &lease, &step(0)).await), ErrorKind::Conflict);
    assert_eq!(runtime.begin(&alice, &again, &step(0)).await.unwrap(), Recorded::Done("zero".into()));
    assert_eq!(runtime.begin(&alice, &again, &step(1)).await.unwrap(), Recorded::InDoubt);
    let other = StepKey::new(1, Digest::of(&[b"other"]), true);
    assert_eq!(kind(runtime.begin(&alice, &again, &other).await), ErrorKind::Conflict);
    assert_eq!(kind(runtime.commit(&alice, &again, &other, redacted("x")).await), ErrorKind::Conflict);
    runtime.commit(&alice, &again, &step(1), redacted("one")).await.unwrap();
    runtime.close(&alice, &again, RunStatus::Completed).await.unwrap();
    let ended = runtime.load(&alice, RunId::from_u128(1)).await.unwrap().open(&alice).unwrap();
    assert_eq!((ended.status, ended.steps), (RunStatus::Completed, 0));
    assert!(runtime.open_runs(&alice).await.unwrap().is_empty());
    assert_eq!(kind(runtime.open(&alice, opening(1, "s")).await), ErrorKind::Conflict, "it has ended");
}

#[tokio::test(start_paused = true)]
async fn everything_is_bounded() {
    let runtime = InProcRuntime::with_max_open_runs(2);
    runtime.open(&scope("a"), opening(1, "s")).await.unwrap();
    runtime.open(&scope("b"), opening(1, "s")).await.unwrap();
    assert_eq!(kind(runtime.open(&scope("c"), opening(1, "s")).await), ErrorKind::Capacity);
    wait(31).await;
    let lease = runtime.open(&scope("c"), opening(1, "s")).await.unwrap();
    runtime.close(&scope("c"), &lease, RunStatus::Completed).await.unwrap();
    assert!(runtime.open_runs(&scope("a")).await.unwrap().is_empty());

    let runtime = InProcRuntime::with_journal(InMemoryJournalStore::with_limits(2, 3, 2));
    let alice = scope("alice");
    for run in 0..6 {
        let lease = runtime.open(&alice, opening(run, "s")).await.unwrap();
        for seq in 0..3 {
            runtime.begin(&alice, &lease, &step(seq)).await.unwrap();
        }
        assert_eq!(kind(runtime.begin(&alice, &lease, &step(3)).await), ErrorKind::Capacity);
        runtime.close(&alice, &lease, RunStatus::Completed).await.unwrap();
    }
    assert_eq!(kind(runtime.load(&alice, RunId::from_u128(3)).await), ErrorKind::NotFound);
    assert!(runtime.load(&alice, RunId::from_u128(4)).await.is_ok());
    assert_eq!(runtime.export(&alice).await.unwrap().count().await, 2);
    runtime.open(&alice, opening(10, "s")).await.unwrap();
    runtime.open(&alice, opening(11, "t")).await.unwrap();
    wait(31).await;
    // A journaled run can still go on: it is not given up, but it may be taken up.
    assert_eq!(kind(runtime.open(&alice, opening(12, "u")).await), ErrorKind::Capacity);
    runtime.open(&alice, opening(10, "s")).await.unwrap();
}

#[tokio::test]
async fn a_parked_run_keeps_its_steps_and_can_be_opened_again() {
    let runtime = InProcRuntime::with_journal(InMemoryJournalStore::new());
    let alice = scope("alice");
    let lease = runtime.open(&alice, opening(1, "s")).await.unwrap();
    runtime.begin(&alice, &lease, &step(0)).await.unwrap();
    runtime.close(&alice, &lease, RunStatus::OutcomeUnknown).await.unwrap();
    assert_eq!(
        kind(runtime.begin(&alice, &lease, &step(0)).await),
        ErrorKind::Conflict,
        "its lease is given back"
    );
    let parked = runtime.open_runs(&alice).await.unwrap().remove(0).open(&alice).unwrap();
    assert_eq!((parked.status, parked.steps), (RunStatus::OutcomeUnknown, 1));
    let other = runtime.open(&alice, opening(2, "s")).await.unwrap();
    assert_eq!(kind(runtime.open(&alice, opening(1, "s")).await), ErrorKind::Conflict);
    runtime.close(&alice, &other, RunStatus::Completed).await.unwrap();
    let again = runtime.open(&alice, opening(1, "s")).await.unwrap();
    assert_eq!(runtime.begin(&alice, &again, &step(0)).await.unwrap(), Recorded::InDoubt);
}

#[tokio::test(start_paused = true)]
async fn an_erased_run_writes_nothing_more() {
    for runtime in both() {
        let lease = runtime.open(&scope("alice"), opening(1, "s")).await.unwrap();
        runtime.open(&scope("alice"), opening(2, "t")).await.unwrap();
        let bobs = runtime.open(&scope("bob"), opening(1, "s")).await.unwrap();
        runtime.begin(&scope("alice"), &lease, &step(0)).await.unwrap();
        let session = Erase::session(SessionId::new("t").unwrap());
        assert_eq!(runtime.forget(&scope_at("alice", 1), &session).await.unwrap().total(), 1);
        let receipt = runtime.forget(&scope_at("alice", 2), &Erase::everything()).await.unwrap();
        assert_eq!(receipt.counts[0], ("run".to_owned(), 1));
        let old = scope("alice");
        assert_eq!(kind(runtime.begin(&old, &lease, &step(1)).await), ErrorKind::Erased);
        assert_eq!(kind(runtime.commit(&old, &lease, &step(0), redacted("x")).await), ErrorKind::Erased);
        assert_eq!(kind(runtime.renew(&old, &lease, Duration::from_secs(1)).await), ErrorKind::Erased);
        assert_eq!(kind(runtime.open(&old, opening(9, "s")).await), ErrorKind::Erased);
        runtime.close(&old, &lease, RunStatus::Failed).await.unwrap();
        assert_eq!(runtime.export(&old).await.unwrap().count().await, 0);
        assert_eq!(runtime.epoch(&old).await.unwrap(), Epoch::new(2));
        let new = runtime.open(&scope_at("alice", 2), opening(3, "s")).await.unwrap();
        runtime.close(&old, &lease, RunStatus::Failed).await.unwrap();
        runtime.renew(&scope_at("alice", 2), &new, Duration::from_secs(1)).await.unwrap();
        runtime.renew(&scope("bob"), &bobs, Duration::from_secs(1)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_lost_its_session_to_another_run_still_ends() {
    for runtime in both() {
        let alice = scope("alice");
        let first = runtime.open(&alice, opening(1, "s")).await.unwrap();
        wait(31).await;
        let second = runtime.open(&alice, opening(2, "s")).await.unwrap();
        runtime.close(&alice, &first, RunStatus::Cancelled).await.unwrap();
        let open = runtime.open_runs(&alice).await.unwrap();
        assert_eq!(open.len(), 1, "only the run that holds the session is open");
        assert_eq!(open[0].clone().open(&alice).unwrap().run, second.run);
        runtime.renew(&alice, &second, Duration::from_secs(30)).await.unwrap();
        assert_eq!(
            kind(runtime.open(&alice, opening(3, "s")).await),
            ErrorKind::Conflict,
            "the session is still the second run's"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_former_holder_of_a_run_ends_nothing() {
    let runtime = InProcRuntime::with_journal(InMemoryJournalStore::new());
    let alice = scope("alice");
    let former = runtime.open(&alice, opening(1, "s")).await.unwrap();
    wait(31).await;
    let holder = runtime.open(&alice, opening(1, "s")).await.unwrap();
    assert_eq!(kind(runtime.close(&alice, &former, RunStatus::Failed).await), ErrorKind::Conflict);
    runtime.renew(&alice, &holder, Duration::from_secs(1)).await.unwrap();
    assert_eq!(runtime.open_runs(&alice).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_ends_after_an_erasure_that_left_it_standing() {
    for runtime in both() {
        let old = scope("alice");
        let lease = runtime.open(&old, opening(1, "s1")).await.unwrap();
        let other = Erase::session(SessionId::new("s2").unwrap());
        assert_eq!(runtime.forget(&scope_at("alice", 1), &other).await.unwrap().total(), 0);
        runtime.close(&old, &lease, RunStatus::Completed).await.unwrap();
        let new = scope_at("alice", 1);
        assert!(runtime.open_runs(&new).await.unwrap().is_empty(), "the run has ended");
        runtime.open(&new, opening(2, "s1")).await.unwrap();
    }
}
