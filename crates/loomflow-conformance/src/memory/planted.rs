//! A foreign row under the tenant's own key: the tripwire must see it in every read.

use loomflow_core::{HistoryLimit, Identity, NewFact, PutBlock, RecallQuery, Scope};

use super::{Harness, Planted};
use crate::Outcome::{self, Passed};
use crate::fixture::{World, again, at, export_owned, must_trip, named, new_run, session, turn};

/// Whose row is planted: another user, the same user of another namespace, and the anonymous bucket.
fn foreigners(world: &World) -> [loomflow_core::Owner; 3] {
    [world.owner(&named("user_10")), World::new().owner(&named("user_1")), world.owner(&Identity::Anonymous)]
}

/// For each foreigner: a fresh tenant with one record of its own, and a planted record.
async fn planted(h: &Harness, record: impl Fn() -> Planted) -> Vec<Scope> {
    let mut tenants = Vec::new();
    for i in 0..3 {
        let world = World::new();
        let foreign = foreigners(&world)[i].clone();
        let tenant = world.user("user_1");
        h.remember(&tenant, turn(new_run(), &session("s"), at(1), "falcon", "own")).await;
        h.plant.plant(again(&tenant), foreign, record()).await;
        tenants.push(tenant);
    }
    tenants
}

fn episode() -> Planted {
    Planted::Episode(turn(new_run(), &session("s"), at(2), "falcon", "foreign"))
}

/// A foreign episode that is filed under the tenant's key makes recall fail with `isolation_violation`.
pub async fn a_foreign_episode_trips_recall(h: &Harness) -> Outcome {
    for tenant in planted(h, episode).await {
        must_trip(
            &tenant,
            h.store().recall(&tenant, &RecallQuery::new("", 10)).await,
            "recall of the newest",
        );
        if h.store().capabilities().lexical {
            let read = h.store().recall(&tenant, &RecallQuery::new("falcon", 10)).await;
            must_trip(&tenant, read, "recall by words");
        }
    }
    Passed
}

/// A foreign episode that is filed under the tenant's key makes history fail with `isolation_violation`.
pub async fn a_foreign_episode_trips_history(h: &Harness) -> Outcome {
    for tenant in planted(h, episode).await {
        let read = h.store().history(&tenant, &session("s"), HistoryLimit::messages(20)).await;
        must_trip(&tenant, read, "history");
    }
    Passed
}

/// A foreign block that is filed under the tenant's key makes blocks fail with `isolation_violation`.
pub async fn a_foreign_block_trips_blocks(h: &Harness) -> Outcome {
    let block = || Planted::Block(PutBlock::new("planted", "foreign", at(2)));
    for tenant in planted(h, block).await {
        must_trip(&tenant, h.store().blocks(&tenant).await, "blocks");
    }
    Passed
}

/// A foreign fact that is filed under the tenant's key makes a query fail with `isolation_violation`.
pub async fn a_foreign_fact_trips_facts(h: &Harness) -> Outcome {
    let Some(facts) = h.facts() else {
        return Passed; // There is nothing to plant it in.
    };
    let fact = || Planted::Fact(NewFact::new("me", "likes", "foreign", at(2)));
    for tenant in planted(h, fact).await {
        must_trip(&tenant, facts.query(&tenant, &loomflow_core::FactQuery::all(10)).await, "query of facts");
    }
    Passed
}

/// Foreign records that are filed under the tenant's key make an export fail with `isolation_violation`.
pub async fn a_foreign_record_trips_export(h: &Harness) -> Outcome {
    let block = || Planted::Block(PutBlock::new("planted", "foreign", at(2)));
    for tenant in planted(h, episode).await.into_iter().chain(planted(h, block).await) {
        must_trip(&tenant, export_owned(h.store(), &tenant).await, "export");
    }
    Passed
}

/// Foreign records that are filed under the tenant's key make a profile fail with `isolation_violation`: it counts them.
pub async fn a_foreign_record_trips_profile(h: &Harness) -> Outcome {
    let block = || Planted::Block(PutBlock::new("planted", "foreign", at(2)));
    let fact = || Planted::Fact(NewFact::new("me", "likes", "foreign", at(2)));
    let mut tenants = planted(h, episode).await;
    tenants.extend(planted(h, block).await);
    if h.facts().is_some() {
        tenants.extend(planted(h, fact).await);
    }
    for tenant in tenants {
        must_trip(&tenant, h.store().profile(&tenant).await.map(|profile| vec![profile]), "profile");
    }
    Passed
}
