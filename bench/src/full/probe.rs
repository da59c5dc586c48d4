//! Between the runs: planting facts and blocks, and looking at everything a tenant can ask for, others' names and words
//! included.

use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use loomflow_core::{
    AuditQuery, Clock as _, Erase, Error, ErrorKind, FactQuery, HistoryLimit, NewFact, PutBlock, RecallQuery,
    Result, ScopedMemory, SessionId, SystemClock, UserAgent,
};

use crate::full::turn::canary;
use crate::full::{Seen, World};
use crate::plan::Plan;
use crate::watch::Channel;

const FACT: usize = 2;
const BLOCK: usize = 5;
const MANY: usize = 50;

/// What the plan has after a run.
pub(super) async fn after(
    world: &World,
    tenant: usize,
    turn: usize,
    plan: &Plan,
    seen: &mut Seen,
) -> Result<()> {
    let user = world.people.enter(&world.agent, tenant);
    let visit = Visit { world, tenant, turn, user };
    if let Err(error) = visit.make(plan).await {
        if error.kind() != ErrorKind::IsolationViolation {
            return Err(error);
        }
        // The tripwire withheld it: nothing was seen, and the store is broken all the same.
        world.watch.withheld();
        seen.defects.push(error.to_string());
    }
    Ok(())
}

struct Visit<'w> {
    world: &'w World,
    tenant: usize,
    turn: usize,
    user: UserAgent,
}

impl Visit<'_> {
    async fn make(&self, plan: &Plan) -> Result<()> {
        let memory = self.user.memory().await?;
        self.plant(plan, &memory).await?;
        if plan.probe {
            self.look_at_memory(&memory).await?;
            self.look_at_records().await?;
        }
        if plan.export {
            self.export().await?;
        }
        if plan.forget {
            self.world.forgets.fetch_add(1, Ordering::Relaxed);
            self.user.forget(Erase::everything()).await?;
            self.world.canaries.erase(self.tenant);
        }
        Ok(())
    }

    async fn plant(&self, plan: &Plan, memory: &ScopedMemory) -> Result<()> {
        let (world, tenant, turn) = (self.world, self.tenant, self.turn);
        let now = SystemClock.now();
        if plan.fact {
            let word = canary(world, tenant, turn, FACT);
            memory.assert_fact(NewFact::new("user", "keeps", word, now)).await?;
        }
        if plan.block {
            let word = canary(world, tenant, turn, BLOCK);
            memory.put_block(PutBlock::new("notes", format!("keep {word} in mind"), now)).await?;
        }
        Ok(())
    }

    /// Asks for its own with its own words, and for others' with theirs.
    async fn look_at_memory(&self, memory: &ScopedMemory) -> Result<()> {
        let (world, tenant, watch) = (self.world, self.tenant, &self.world.watch);
        let other = (tenant + 1 + self.turn) % world.people.len();
        let neighbour = world.people.tenant(other);
        let theirs = world.canaries.plant(other, 0);
        for words in ["please remember the word", &theirs, ""] {
            for found in memory.recall(&RecallQuery::new(words, MANY)).await? {
                watch.look_at(tenant, Channel::Recall, &*found.episode);
            }
        }
        for session in [&world.people.tenant(tenant).session, &neighbour.session] {
            let session = SessionId::new(session)?;
            for message in memory.history(&session, HistoryLimit::messages(MANY)).await? {
                watch.look_at(tenant, Channel::History, &message);
            }
        }
        for query in [FactQuery::all(MANY), FactQuery::all(MANY).about(theirs, None)] {
            for fact in memory.facts(&query).await? {
                watch.look_at(tenant, Channel::Fact, &fact);
            }
        }
        for block in memory.blocks().await? {
            watch.look_at(tenant, Channel::Block, &block);
        }
        watch.look_at(tenant, Channel::Profile, &memory.profile().await?);
        Ok(())
    }

    /// Its audit entries and its quota.
    async fn look_at_records(&self) -> Result<()> {
        for entry in self.user.audit(&AuditQuery::first(MANY)).await? {
            self.world.watch.look(self.tenant, Channel::Audit, entry.event.payload.get().as_bytes());
        }
        let usage = self.user.usage().await?;
        let beyond =
            usage.windows.iter().map(|w| (w.used + w.held).saturating_sub(w.limit)).max().unwrap_or(0);
        self.world.overspend.fetch_max(beyond, Ordering::Relaxed);
        Ok(())
    }

    async fn export(&self) -> Result<()> {
        self.world.exports.fetch_add(1, Ordering::Relaxed);
        let mut items = std::pin::pin!(self.user.export().await?);
        while let Some(item) = items.next().await {
            self.world.watch.look_at(self.tenant, Channel::Export, &item?);
        }
        Ok::<_, Error>(())
    }
}
