//! Who may write a run's journal, and who may no longer.

use futures_util::future::join_all;
use loomflow_core::{ErrorKind, RunStatus};

use super::{Harness, LONG, SHORT, opening};
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, again, must_fail, new_run, open_one, session};

/// While a run of a session is open, no other run of it can be opened; another session's can.
pub async fn a_session_has_one_open_run(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let first = new_run();
    h.open(&alice, first, &session("s")).await;
    let second = h.runtime().open(&alice, opening(new_run(), &session("s"), LONG)).await;
    must_fail(second, ErrorKind::Conflict, "a second run of an open session");
    h.open(&alice, new_run(), &session("S")).await;
    h.open(&alice, new_run(), &session("s ession")).await;
    let found = open_one(&alice, h.runtime().load(&alice, first).await.must("load"), "load");
    assert_eq!((found.run, found.session, found.status), (first, session("s"), RunStatus::Running));
    Passed
}

/// Closing a run frees its session for the next, and it is no longer among the open ones.
pub async fn a_closed_run_frees_its_session(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    for status in [RunStatus::Completed, RunStatus::Failed, RunStatus::Cancelled] {
        let run = new_run();
        let lease = h.open(&alice, run, &session("s")).await;
        assert_eq!(h.open_runs(&alice).await.len(), 1, "the run is open");
        h.runtime().close(&alice, &lease, status).await.must("close");
        assert!(h.open_runs(&alice).await.is_empty(), "the run is closed");
        // Its steps may go, and its record with them; if it is there, it says how the run ended.
        match h.runtime().load(&alice, run).await {
            Ok(found) => assert_eq!(open_one(&alice, found, "load").status, status),
            Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound, "{e}"),
        }
    }
    Passed
}

/// Of runs that open one session at once, exactly one does.
pub async fn of_concurrent_openings_one_wins(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let tasks = (0..20).map(|_| {
        let (runtime, scope) = (h.shared(), again(&alice));
        tokio::spawn(async move { runtime.open(&scope, opening(new_run(), &session("s"), LONG)).await })
    });
    let mut won = 0;
    for done in join_all(tasks).await {
        match done.unwrap_or_else(|e| panic!("a concurrent opening panicked: {e}")) {
            Ok(_) => won += 1,
            Err(e) => assert_eq!(e.kind(), ErrorKind::Conflict, "{e}"),
        }
    }
    assert_eq!(won, 1, "exactly one run opens the session");
    Passed
}

/// A run whose lease ran out can be opened again, under a larger fence.
pub async fn an_expired_lease_can_be_taken_over(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let run = new_run();
    let mut fence = 0;
    for holder in 0..3 {
        let lease = h.runtime().open(&alice, opening(run, &session("s"), SHORT)).await.must("open");
        assert_eq!(lease.run, run);
        assert!(holder == 0 || lease.fence > fence, "the fence grows with every holder");
        fence = lease.fence;
        h.outlive().await;
    }
    Passed
}

/// After a takeover the former holder can neither renew nor write nor close.
pub async fn a_former_holder_is_fenced_off(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let run = new_run();
    let former = h.runtime().open(&alice, opening(run, &session("s"), SHORT)).await.must("open");
    h.outlive().await;
    let holder = h.runtime().open(&alice, opening(run, &session("s"), LONG)).await.must("take over");
    let conflict = ErrorKind::Conflict;
    must_fail(h.runtime().renew(&alice, &former, LONG).await, conflict, "renew by a former holder");
    if h.runtime().journals() {
        let step = super::journal::step(0, "a");
        must_fail(h.runtime().begin(&alice, &former, &step).await, conflict, "begin by a former holder");
        let outcome = super::journal::outcome("late");
        let commit = h.runtime().commit(&alice, &former, &step, outcome).await;
        must_fail(commit, conflict, "commit by a former holder");
    }
    // Whatever closing answers, the present holder keeps the run.
    let _answer = h.runtime().close(&alice, &former, RunStatus::Failed).await;
    h.runtime().renew(&alice, &holder, LONG).await.must("renew by the present holder");
    assert_eq!(h.open_runs(&alice).await.len(), 1, "a former holder's close ends nothing");
    Passed
}

/// An open run can be recorded as waiting for a person, and as running again; it ends by closing alone.
pub async fn a_waiting_run_says_so(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let run = new_run();
    let former = h.runtime().open(&alice, opening(run, &session("s"), SHORT)).await.must("open");
    let waits = RunStatus::WaitingApproval;
    for status in [waits, RunStatus::Running, waits] {
        h.runtime().set_status(&alice, &former, status).await.must("set_status");
        let open = h.open_runs(&alice).await;
        assert_eq!(open.iter().map(|run| run.status).collect::<Vec<_>>(), [status], "among the open runs");
        let found = open_one(&alice, h.runtime().load(&alice, run).await.must("load"), "load");
        assert_eq!(found.status, status, "the run by itself");
    }
    for status in [RunStatus::Completed, RunStatus::Cancelled, RunStatus::OutcomeUnknown] {
        let set = h.runtime().set_status(&alice, &former, status).await;
        must_fail(set, ErrorKind::InvalidInput, "an ending that is no close");
    }
    h.outlive().await;
    let holder = h.runtime().open(&alice, opening(run, &session("s"), LONG)).await.must("take over");
    assert_eq!(h.open_runs(&alice).await[0].status, RunStatus::Running, "whoever takes it over goes on");
    let late = h.runtime().set_status(&alice, &former, waits).await;
    must_fail(late, ErrorKind::Conflict, "set_status by a former holder");
    h.runtime().set_status(&alice, &holder, waits).await.must("set_status by the present holder");
    Passed
}

/// A lease that is renewed does not run out.
pub async fn a_renewed_lease_stays(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let lease = h.runtime().open(&alice, opening(new_run(), &session("s"), SHORT)).await.must("open");
    h.runtime().renew(&alice, &lease, LONG).await.must("renew");
    h.outlive().await;
    let other = h.runtime().open(&alice, opening(new_run(), &session("s"), LONG)).await;
    must_fail(other, ErrorKind::Conflict, "opening a session whose lease was renewed");
    h.runtime().renew(&alice, &lease, LONG).await.must("renew again");
    Passed
}

/// A session whose run went away can be used by another run once the lease has run out.
pub async fn another_run_takes_a_session_whose_lease_ran_out(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let lost = new_run();
    h.runtime().open(&alice, opening(lost, &session("s"), SHORT)).await.must("open");
    h.outlive().await;
    h.open(&alice, new_run(), &session("s")).await;
    Passed
}

/// The open runs of a tenant are listed, oldest first.
pub async fn open_runs_are_listed_oldest_first(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let mut opened = Vec::new();
    for i in 0..4 {
        let run = new_run();
        let mut new = opening(run, &session(&format!("s{i}")), LONG);
        new.at = crate::fixture::at(i);
        h.runtime().open(&alice, new).await.must("open");
        opened.push(run);
    }
    let found: Vec<_> = h.open_runs(&alice).await.iter().map(|r| r.run).collect();
    assert_eq!(found, opened);
    assert!(h.open_runs(&World::new().user("nobody")).await.is_empty(), "an unknown partition has none");
    Passed
}
