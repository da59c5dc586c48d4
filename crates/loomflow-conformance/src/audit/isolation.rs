//! One tenant's entries and another's. No capability switches these cases off.

use loomflow_core::{Action, AuditQuery, Erase, Identity, RunId, Scope};

use super::{Harness, event};
use crate::Outcome::{self, Passed};
use crate::fixture::{
    Must as _, World, again, canary, export, export_owned, export_text, must_trip, named, new_run,
};
use crate::naughty;

async fn fill(h: &Harness, all: &[(Scope, String)]) {
    for (scope, word) in all {
        h.append(scope, event(RunId::from_u128(7), Action::ModelCall, 1, word)).await;
    }
}

async fn must_read_their_own(h: &Harness, all: &[(Scope, String)], query: &AuditQuery) {
    for (scope, word) in all {
        let found = h.query(scope, query).await;
        assert_eq!(found.len(), 1, "{:?} has one entry", scope.owner());
        assert!(
            found[0].event.payload.get().contains(word.as_str()),
            "{:?} reads a foreign entry",
            scope.owner()
        );
    }
}

/// Every hostile identity reads its own entries and nobody else's, also where run and session are the same.
pub async fn hostile_tenants_read_their_own(h: &Harness) -> Outcome {
    let world = World::new();
    let all: Vec<_> = naughty::identities().iter().map(|who| (world.scope(who), canary())).collect();
    fill(h, &all).await;
    must_read_their_own(h, &all, &AuditQuery::first(1_000)).await;
    must_read_their_own(h, &all, &AuditQuery::first(1_000).run(RunId::from_u128(7))).await;
    must_read_their_own(h, &all, &AuditQuery::first(1_000).action(Action::ModelCall)).await;
    Passed
}

/// Asking for another tenant's run finds nothing.
pub async fn another_tenants_run_is_not_found(h: &Harness) -> Outcome {
    let world = World::new();
    let run = new_run();
    h.append(&world.user("alice"), event(run, Action::ModelCall, 1, "secret")).await;
    for stranger in [world.user("bob"), world.scope(&Identity::Anonymous), World::new().user("alice")] {
        assert!(h.query(&stranger, &AuditQuery::first(10).run(run)).await.is_empty());
    }
    Passed
}

/// One user in two namespaces is two tenants.
pub async fn namespaces_are_apart(h: &Harness) -> Outcome {
    let world = World::new();
    let worlds = [world.beside("-1"), world.beside("-10"), world.beside("-A"), world.beside("-a"), world];
    let all: Vec<_> = worlds.iter().map(|w| (w.user("alice"), canary())).collect();
    fill(h, &all).await;
    must_read_their_own(h, &all, &AuditQuery::first(1_000)).await;
    Passed
}

/// The border between namespace and user cannot be moved: `a` + `b:c` is nobody of `a:b` + `c`.
pub async fn a_border_between_namespace_and_user_cannot_be_shifted(h: &Harness) -> Outcome {
    for (separator, name) in
        [("", "bc"), (":", "b:c"), ("/", "b/c"), ("|", "b|c"), ("_", "b_c"), ("u", "buc")]
    {
        let world = World::new();
        let (long, short) = (world.beside(&format!("{separator}b")).user("c"), world.user(name));
        let all = [(short, canary()), (long, canary())];
        fill(h, &all).await;
        must_read_their_own(h, &all, &AuditQuery::first(10)).await;
    }
    Passed
}

/// Erasing one tenant leaves the other's entries, payloads included, under every hostile pair.
pub async fn forgetting_one_leaves_the_other(h: &Harness) -> Outcome {
    for (a, b) in naughty::pairs() {
        let world = World::new();
        let all = [(world.scope(&a), canary()), (world.scope(&b), canary())];
        fill(h, &all).await;
        h.log().forget(&world.scope_at(&a, 1), &Erase::everything()).await.must("forget");
        must_read_their_own(h, &all[1..], &AuditQuery::first(10)).await;
    }
    Passed
}

/// An export has the tenant's own entries alone.
pub async fn exports_hold_their_own(h: &Harness) -> Outcome {
    let world = World::new();
    let all: Vec<_> = naughty::identities().iter().map(|who| (world.scope(who), canary())).collect();
    fill(h, &all).await;
    for (i, (scope, word)) in all.iter().enumerate() {
        let text = export_text(&export(h.log(), scope).await);
        assert!(text.contains(word.as_str()), "{:?} exports its own", scope.owner());
        let foreign = all.iter().enumerate().any(|(j, (_, w))| j != i && text.contains(w.as_str()));
        assert!(!foreign, "{:?} exports a foreign entry", scope.owner());
    }
    Passed
}

/// For three foreigners: a fresh tenant with one entry of its own and one that is planted.
async fn planted(h: &Harness) -> Vec<Scope> {
    let mut tenants = Vec::new();
    for i in 0..3 {
        let world = World::new();
        let foreign = match i {
            0 => world.owner(&named("user_10")),
            1 => World::new().owner(&named("user_1")),
            _ => world.owner(&Identity::Anonymous),
        };
        let tenant = world.user("user_1");
        h.append(&tenant, event(new_run(), Action::ModelCall, 1, "own")).await;
        h.plant.plant(again(&tenant), foreign, event(new_run(), Action::ModelCall, 2, "foreign")).await;
        tenants.push(tenant);
    }
    tenants
}

/// A foreign entry that is filed under the tenant's key makes a query fail with `isolation_violation`.
pub async fn a_foreign_entry_trips_a_query(h: &Harness) -> Outcome {
    for tenant in planted(h).await {
        must_trip(&tenant, h.log().query(&tenant, &AuditQuery::first(10)).await, "query");
    }
    Passed
}

/// A foreign entry that is filed under the tenant's key makes an export fail with `isolation_violation`.
pub async fn a_foreign_entry_trips_an_export(h: &Harness) -> Outcome {
    for tenant in planted(h).await {
        must_trip(&tenant, export_owned(h.log(), &tenant).await, "export");
    }
    Passed
}
