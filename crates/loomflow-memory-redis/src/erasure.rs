//! Erasure: of everything, in one step and with the rest cleared away after it; of a part, planned here and committed there.

use std::collections::HashSet;

use loomflow_core::resilience::Repeat;
use loomflow_core::rules::erases_unsourced_before;
use loomflow_core::rules::facts::{Fate, fate};
use loomflow_core::{EpisodeId, Erase, Error, ErrorKind, Result, Scope};
use redis::Value;

use crate::codec::{
    self, BlockRow, Entry, Row, believed_key, id_of, number, order_key, session_key, session_order,
    split_place, text,
};
use crate::facts::{key, read_rows};
use crate::scripts;
use crate::tenant::{
    Commit, Committed, PLAN_TRIES, Shared, Tenant, check_own, conflict, epoch_digits, outrun, pause,
};

/// How many entries of the search index one step clears away.
const STEP: usize = 500;
/// How many tenants' unfinished erasures are finished when a program connects.
const FINISH: usize = 64;

/// How many records went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gone {
    pub(crate) episodes: u64,
    pub(crate) facts: u64,
    pub(crate) blocks: u64,
}

impl Tenant<'_> {
    pub(crate) async fn erase_everything(&self, scope: &Scope) -> Result<Gone> {
        // Said before it is begun: whoever connects after a crash finds it, and nothing to do if it never began.
        let mut note = redis::cmd("SADD");
        note.arg(self.shared.schema.unfinished()).arg(self.keys.partition());
        // A server that is full takes no note, and erases all the same; the tenant's next write clears away then.
        let noted = self.shared.link.command::<Value>("forget", Repeat::Safe, &note).await;
        if let Err(e) = noted
            && e.kind() != ErrorKind::Capacity
        {
            return Err(e);
        }
        let args = vec![b"0".to_vec(), epoch_digits(scope)];
        let reply = self.script("forget", Repeat::Unsafe, &scripts::WIPE, args).await?;
        match (reply.first().cloned().and_then(text).as_deref(), &reply[..]) {
            (Some("ok"), [_, episodes, facts, blocks]) => {
                let [episodes, facts, blocks] = [episodes, facts, blocks].map(number);
                self.finish().await?;
                Ok(Gone { episodes, facts, blocks })
            }
            (Some("conflict"), _) => Err(conflict()),
            _ => Err(codec::unreadable().with_operation("forget")),
        }
    }

    /// Clears away what an erasure left in the search index, step by step.
    async fn finish(&self) -> Result<()> {
        finish(self.shared, self.keys.base(), self.keys.partition()).await
    }

    pub(crate) async fn erase_part(&self, scope: &Scope, what: &Erase) -> Result<Gone> {
        for tries in 1..=PLAN_TRIES {
            if let Some((commit, gone)) = self.plan_erasure(scope, what).await?
                && self.commit(scope, commit).await? == Committed::Done
            {
                return Ok(gone);
            }
            pause(tries).await;
        }
        Err(outrun("forget"))
    }

    /// What erasing `what` changes; `None` when somebody wrote while it was looked at.
    async fn plan_erasure(&self, scope: &Scope, what: &Erase) -> Result<Option<(Commit<'static>, Gone)>> {
        let episodes = self.scan("forget", "ix", "", true).await?;
        let facts = self.scan("forget", "fa", "", true).await?;
        let blocks = self.scan("forget", "bl", "", true).await?;
        let version = &episodes.meta.version;
        if facts.meta.version != *version || blocks.meta.version != *version {
            return Ok(None);
        }
        let mut commit = Commit::new("forget").erasing().expecting("ver", version);
        let mut gone = Gone::default();
        let session = what.session.as_ref().map(session_key);
        let (mut erased, mut held) = (HashSet::new(), HashSet::new());
        for (id, entry) in &episodes.entries {
            let (id, entry) = (id_of(id)?, Entry::read(entry)?);
            let goes = session.is_none_or(|s| s == entry.session) && what.before.is_none_or(|t| entry.at < t);
            if !goes {
                held.insert(id);
                continue;
            }
            erased.insert(id);
            for kind in ["ep", "ix", "ev"] {
                commit.op("del", kind, &id.to_be_bytes(), Vec::new());
            }
            commit.op("rem", "or", &order_key(entry.at, id), Vec::new());
            commit.op("rem", "os", &session_order(&entry.session, entry.at, id), Vec::new());
            if entry.vector {
                commit.op("unindex", "e", &id.to_be_bytes(), Vec::new());
            }
        }
        let ids: Vec<u128> = erased.iter().copied().collect();
        let owners = self.owners("forget", "ep", Some(&ids)).await?;
        owners.iter().try_for_each(|owner| check_own(scope, owner, "forget"))?;
        gone.episodes = erased.len() as u64;
        let by_time = erases_unsourced_before(what);
        let mut newest = None;
        for row in read_rows(&facts.entries)? {
            let erased = |id: EpisodeId| erased.contains(&id.as_u128());
            let held = |id: EpisodeId| held.contains(&id.as_u128());
            let mut fact = row.fact;
            let fate = fate(&fact.sources, fact.known_from, erased, held, by_time);
            if !matches!(fate, Fate::Stays) {
                check_own(scope, &row.owner, "forget")?;
            }
            match fate {
                Fate::Goes => {
                    gone.facts += 1;
                    for kind in ["fa", "fv"] {
                        commit.op("del", kind, &key(fact.id), Vec::new());
                    }
                    commit.op("rem", "fb", &believed_key(&fact), Vec::new());
                    commit.op("unindex", "f", &key(fact.id), Vec::new());
                    continue;
                }
                Fate::Keeps(sources) => {
                    fact.sources = sources;
                    commit.op("set", "fa", &key(fact.id), codec::fact_row(&row.owner, &fact, row.vector)?);
                }
                Fate::Stays => {}
            }
            newest = newest.max(Some(fact.known_from));
        }
        for (name, block) in blocks.entries.iter().filter(|_| by_time.is_some()) {
            let block = Row::<BlockRow>::read(split_place(block)?.1)?;
            if by_time.is_some_and(|moment| block.v.at < moment) {
                check_own(scope, &block.owner(None)?, "forget")?;
                gone.blocks += 1;
                commit.op("del", "bl", name, Vec::new());
            }
        }
        Ok(Some((commit.with_newest(newest), gone)))
    }
}

/// Finishes erasures that a program began and did not live to finish. What fails is left to the next.
pub(crate) async fn finish_others(shared: &Shared) {
    let mut sample = redis::cmd("SRANDMEMBER");
    sample.arg(shared.schema.unfinished()).arg(FINISH);
    let Ok(found) = shared.link.command::<Vec<String>>("connect", Repeat::Safe, &sample).await else {
        return;
    };
    for partition in found {
        let base = shared.schema.base_of(&partition);
        if finish(shared, &base, &partition).await.is_err() {
            return;
        }
    }
}

async fn finish(shared: &Shared, base: &str, partition: &str) -> Result<()> {
    let step = || async {
        let args = [b"0".to_vec(), shared.schema.search_prefix().into_bytes(), STEP.to_string().into_bytes()];
        let more: i64 = shared.link.script("forget", Repeat::Safe, &scripts::SWEEP, base, &args).await?;
        Ok::<bool, Error>(more == 1)
    };
    let note = |command: &str| {
        let mut note = redis::cmd(command);
        note.arg(shared.schema.unfinished()).arg(partition);
        note
    };
    loop {
        while step().await? {}
        shared.link.command::<Value>("forget", Repeat::Safe, &note("SREM")).await?;
        // Another erasure may have begun between the last look and the note that was taken away.
        if !step().await? {
            return Ok(());
        }
        shared.link.command::<Value>("forget", Repeat::Safe, &note("SADD")).await?;
    }
}
