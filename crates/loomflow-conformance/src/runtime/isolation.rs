//! One tenant's runs and another's. No capability switches these cases off.

use loomflow_core::{Erase, ErrorKind, Identity, Recorded, RunStatus, Scope};

use super::journal::{outcome, step};
use super::{Harness, LONG, opening};
use crate::Outcome::{self, Passed};
use crate::fixture::{
    Must as _, World, again, export, export_text, must_fail, named, new_run, open_one, session,
};
use crate::naughty;

/// One session id of every hostile tenant is as many sessions: each can have its own open run.
pub async fn the_same_session_of_two_tenants_is_two_sessions(h: &Harness) -> Outcome {
    let world = World::new();
    let all: Vec<Scope> = naughty::identities().iter().map(|who| world.scope(who)).collect();
    let mut runs = Vec::new();
    for scope in &all {
        let run = new_run();
        h.open(scope, run, &session("conv")).await;
        runs.push(run);
    }
    for (scope, run) in all.iter().zip(&runs) {
        let found: Vec<_> = h.open_runs(scope).await.iter().map(|r| r.run).collect();
        assert_eq!(found, [*run], "the open runs of {:?}", scope.owner());
    }
    for namespace in [world.beside("-1"), world.beside("-a")] {
        h.open(&namespace.user("alice"), new_run(), &session("conv")).await;
    }
    Passed
}

/// The border between namespace and user cannot be moved: `a` + `b:c` is nobody of `a:b` + `c`.
pub async fn a_border_between_namespace_and_user_cannot_be_shifted(h: &Harness) -> Outcome {
    for (separator, name) in
        [("", "bc"), (":", "b:c"), ("/", "b/c"), ("|", "b|c"), ("_", "b_c"), ("u", "buc")]
    {
        let world = World::new();
        let (long, short) = (world.beside(&format!("{separator}b")).user("c"), world.user(name));
        let run = new_run();
        h.open(&short, run, &session("conv")).await;
        must_fail(h.runtime().load(&long, run).await, ErrorKind::NotFound, "load of a foreign run");
        h.open(&long, run, &session("conv")).await;
    }
    Passed
}

/// One run id of two tenants is two runs, with journals of their own.
pub async fn the_same_run_of_two_tenants_is_two_runs(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let (alice, bob) = (world.scope(&a), world.scope(&b));
        let run = new_run();
        let hers = h.open(&alice, run, &session("s")).await;
        let his = h.open(&bob, run, &session("s")).await;
        if h.runtime().journals() {
            h.runtime().begin(&alice, &hers, &step(0, "a")).await.must("begin");
            h.runtime().commit(&alice, &hers, &step(0, "a"), outcome("secret")).await.must("commit");
            let known = h.runtime().begin(&bob, &his, &step(0, "a")).await.must("begin");
            assert_eq!(known, Recorded::Fresh, "{b:?} was given a step of {a:?}");
        }
        h.runtime().close(&bob, &his, RunStatus::Completed).await.must("close");
        assert_eq!(h.open_runs(&alice).await.len(), 1, "{b:?} closed the run of {a:?}");
    }
    Passed
}

/// Another tenant's run is not found, and not among the open ones.
pub async fn a_foreign_run_is_not_found(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let run = new_run();
        h.open(&world.scope(&a), run, &session("s")).await;
        for stranger in [world.scope(&b), World::new().scope(&a)] {
            must_fail(h.runtime().load(&stranger, run).await, ErrorKind::NotFound, "load of a foreign run");
            assert!(h.open_runs(&stranger).await.is_empty(), "{stranger:?} is shown a foreign run");
        }
    }
    Passed
}

/// Whoever presents another tenant's lease gets nothing from it and changes nothing.
pub async fn a_foreign_lease_opens_nothing(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let alice = world.scope(&a);
        let run = new_run();
        let lease = h.open(&alice, run, &session("s")).await;
        let r = h.runtime();
        let journals = r.journals();
        if journals {
            r.begin(&alice, &lease, &step(0, "a")).await.must("begin");
            r.commit(&alice, &lease, &step(0, "a"), outcome("secret")).await.must("commit");
        }
        for thief in [world.scope(&b), World::new().scope(&a)] {
            assert!(r.renew(&thief, &lease, LONG).await.is_err(), "{thief:?} renewed a foreign lease");
            if journals {
                assert!(
                    r.begin(&thief, &lease, &step(0, "a")).await.is_err(),
                    "{thief:?} read a foreign step"
                );
                assert!(
                    r.begin(&thief, &lease, &step(1, "b")).await.is_err(),
                    "{thief:?} began a foreign step"
                );
                let commit = r.commit(&thief, &lease, &step(1, "b"), outcome("forged")).await;
                assert!(commit.is_err(), "{thief:?} wrote a foreign step");
            }
            // Closing what is not there may succeed; it may not close the other's.
            let _answer = r.close(&thief, &lease, RunStatus::Failed).await;
        }
        let found = open_one(&alice, r.load(&alice, run).await.must("load"), "load");
        assert_eq!(found.status, RunStatus::Running, "the run of {a:?} goes on");
        r.renew(&alice, &lease, LONG).await.must("renew by the holder");
        if journals {
            let known = r.begin(&alice, &lease, &step(1, "b")).await.must("begin");
            assert_eq!(known, Recorded::Fresh, "no thief began a step");
        }
    }
    Passed
}

/// Erasing one tenant leaves the runs and sessions of the other.
pub async fn forgetting_one_leaves_the_other(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let kept = world.scope(&b);
        let run = new_run();
        let lease = h.open(&kept, run, &session("s")).await;
        h.open(&world.scope(&a), new_run(), &session("s")).await;
        h.runtime().forget(&world.scope_at(&a, 1), &Erase::everything()).await.must("forget");
        assert_eq!(h.open_runs(&kept).await.len(), 1, "erasing {a:?} took a run of {b:?}");
        h.runtime().renew(&kept, &lease, LONG).await.must("renew");
        let second = h.runtime().open(&kept, opening(new_run(), &session("s"), LONG)).await;
        must_fail(second, ErrorKind::Conflict, "the session of the other tenant is still taken");
        h.open(&kept, new_run(), &session("t")).await;
    }
    Passed
}

/// A run from before an erasure can neither begin anew nor write its journal, also for a user never seen.
pub async fn stale_runs_cannot_write_back(h: &Harness) -> Outcome {
    let world = World::new();
    for seen in [true, false] {
        let name = format!("seen {seen}");
        let stale = world.user(&name);
        let mut lease = None;
        if seen {
            lease = Some(h.open(&stale, new_run(), &session("s")).await);
        }
        let later = world.user_at(&name, 1);
        h.runtime().forget(&later, &Erase::everything()).await.must("forget");
        assert_eq!(h.runtime().epoch(&stale).await.must("epoch").get(), 1, "the stored epoch");
        let late = h.runtime().open(&stale, opening(new_run(), &session("s"), LONG)).await;
        must_fail(late, ErrorKind::Erased, "open by a scope from before the erasure");
        if let (Some(lease), true) = (lease, h.runtime().journals()) {
            let begun = h.runtime().begin(&stale, &lease, &step(0, "a")).await;
            assert!(begun.is_err(), "an erased run began a step: {begun:?}");
            let written = h.runtime().commit(&stale, &lease, &step(0, "a"), outcome("late")).await;
            assert!(written.is_err(), "an erased run wrote a step");
        }
        assert!(h.open_runs(&later).await.is_empty(), "nothing was written back");
        h.open(&later, new_run(), &session("s")).await;
    }
    Passed
}

/// An export has the tenant's own runs alone.
pub async fn exports_hold_their_own(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let run = new_run();
        h.open(&world.scope(&a), run, &session("s")).await;
        let text = export_text(&export(h.runtime(), &world.scope(&b)).await);
        assert!(!text.contains(&run.to_string()), "{b:?} exports a run of {a:?}");
    }
    Passed
}

/// A foreign run that is filed under the tenant's key is never the tenant's: it trips the owner check or is not found.
pub async fn a_foreign_run_is_withheld(h: &Harness) -> Outcome {
    for i in 0..3 {
        let world = World::new();
        let foreign = match i {
            0 => world.owner(&named("user_10")),
            1 => World::new().owner(&named("user_1")),
            _ => world.owner(&Identity::Anonymous),
        };
        let tenant = world.user("user_1");
        let run = new_run();
        h.plant.plant(again(&tenant), foreign, opening(run, &session("s"), LONG)).await;
        match h.runtime().load(&tenant, run).await.and_then(|found| found.open(&tenant)) {
            Err(e) if matches!(e.kind(), ErrorKind::IsolationViolation | ErrorKind::NotFound) => {}
            Err(e) => panic!("load of a foreign run failed otherwise: {e}"),
            Ok(found) => panic!("load passed a foreign run off as the tenant's own: {found:?}"),
        }
        match h.runtime().open_runs(&tenant).await {
            Err(e) => assert_eq!(e.kind(), ErrorKind::IsolationViolation, "open_runs: {e}"),
            Ok(found) => assert!(
                !found.iter().any(|owned| tenant.owns(owned.owner())),
                "open_runs passed a foreign run off as the tenant's own"
            ),
        }
    }
    Passed
}

/// Two erasures that overlap do not share an epoch: the second is refused before it touches anything.
pub async fn two_erasures_never_share_an_epoch(h: &Harness) -> Outcome {
    let world = World::new();
    let between = world.user_at("alice", 1);
    h.runtime().forget(&between, &Erase::everything()).await.must("forget");
    h.open(&between, new_run(), &session("s")).await;
    for epoch in [0, 1] {
        let again = h.runtime().forget(&world.user_at("alice", epoch), &Erase::everything()).await;
        must_fail(again, ErrorKind::Conflict, "an erasure of an epoch that is not newer");
    }
    assert_eq!(h.open_runs(&between).await.len(), 1, "a refused erasure touches nothing");
    h.runtime().forget(&world.user_at("alice", 2), &Erase::everything()).await.must("forget again");
    let late = h.runtime().open(&between, opening(new_run(), &session("s"), LONG)).await;
    must_fail(late, ErrorKind::Erased, "open by a scope from before the second erasure");
    Passed
}
