//! Erasure, in steps that anybody can take up again.
//!
//! 1. The head gets the new epoch and what is to be erased. From here on it has happened: whoever reads or writes
//!    does the rest first.
//! 2. The tokens of all records are replaced, so that no write that was under way takes hold any more.
//! 3. What goes is counted, and the counts are put into the head.
//! 4. Facts that lose sources are rewritten, and what goes is deleted: facts first, since only the episodes that are still
//!    there tell which facts came from them.
//! 5. When a look finds nothing left to do, the head is cleared and keeps the receipt.

use std::collections::HashSet;

use loomflow_core::rules::facts::{Fate, fate};
use loomflow_core::rules::{erases, erases_unsourced_before};
use loomflow_core::{EpisodeId, Epoch, Erase, Error, ErrorKind, MemoryBlock, Result, Scope};

use crate::error::busy;
use crate::head::{Counts, Pending, TURNS};
use crate::keys::{Kind, Partition};
use crate::record::{self, Content, FactRow, Row, Sketch};
use crate::server::{Fields, Server};

/// What is left to do of an erasure.
#[derive(Debug, Default)]
struct Work {
    counts: Counts,
    /// Points that go, with the tokens they had.
    gone: Vec<(String, String)>,
    /// Episodes that go, likewise; last.
    episodes: Vec<(String, String)>,
    rewritten: Vec<(Row, Content)>,
}

impl Work {
    fn is_done(&self) -> bool {
        self.gone.is_empty() && self.episodes.is_empty() && self.rewritten.is_empty()
    }

    fn goes(&mut self, row: &Row) {
        self.gone.push((row.id.clone(), row.token.clone()));
    }
}

impl Server {
    /// Erases `what` and raises the epoch to the scope's. `None` for the counts when so many erasures followed before
    /// they were read that they are not kept any more.
    pub(crate) async fn erase(&self, scope: &Scope, what: &Erase) -> Result<Option<Counts>> {
        let partition = Partition::of(scope.owner(), false);
        let epoch = scope.epoch().get();
        for _ in 0..TURNS {
            let head = self.settled(&partition, "forget").await?;
            if scope.epoch() <= Epoch::new(head.state.epoch) {
                let message =
                    "the tenant's data was erased at the same time; mint a newer epoch and try again";
                return Err(Error::new(ErrorKind::Conflict, message).with_operation("forget"));
            }
            // Before anything is decided: what was decided is done by whoever comes next, and has to be possible.
            for kind in [Kind::Episode, Kind::Track, Kind::Block] {
                for row in self.scan(&partition, kind, None, Fields::Some(&[]), "forget").await? {
                    row.check_owner(scope, "forget")?;
                }
            }
            let state = head.state.with_pending(epoch, Pending::of(what));
            if self.update_head(&partition, &head, &state, "forget").await? {
                let after = self.settled(&partition, "forget").await?;
                return Ok(after.state.receipt(epoch));
            }
        }
        Err(busy("forget"))
    }

    /// Does the erasure that is under way, if one is.
    pub(crate) async fn complete(&self, partition: &Partition, operation: &'static str) -> Result<()> {
        for _ in 0..TURNS {
            let head = self.head(partition, operation).await?;
            let Some(pending) = &head.state.pending else { return Ok(()) };
            let what = pending.what()?;
            let Some(counts) = pending.counts else {
                self.fence(partition, operation).await?;
                let mut counted = pending.clone();
                counted.counts = Some(self.look(partition, &what, operation).await?.counts);
                let state = head.state.with_pending(head.state.epoch, counted);
                // Fails when somebody else was here first: then the count is theirs, or the erasure is done.
                self.update_head(partition, &head, &state, operation).await?;
                continue;
            };
            let work = self.look(partition, &what, operation).await?;
            if work.is_done() {
                let state = head.state.settled(counts, what.is_everything());
                self.update_head(partition, &head, &state, operation).await?;
            } else if self.head(partition, operation).await?.is(&head) {
                // Nothing was written since the tokens were replaced, so what was seen is what was there. Tokens see to it
                // that nothing else is touched, however late this comes.
                self.work(partition, work, operation).await?;
            }
        }
        Err(busy(operation))
    }

    async fn work(&self, partition: &Partition, work: Work, operation: &'static str) -> Result<()> {
        for (row, content) in work.rewritten {
            self.fill(partition, &row, content, operation).await?;
        }
        self.remove(partition, &work.gone, operation).await?;
        self.remove(partition, &work.episodes, operation).await
    }

    /// What is to do. Episodes are looked at before facts: a fact that is read later lacks no source that was read.
    async fn look(&self, partition: &Partition, what: &Erase, operation: &'static str) -> Result<Work> {
        let mut work = Work::default();
        let mut erased: HashSet<EpisodeId> = HashSet::new();
        let mut held: HashSet<EpisodeId> = HashSet::new();
        for row in self.scan(partition, Kind::Episode, None, Fields::Some(&Sketch::FIELDS), operation).await?
        {
            if !row.is_live() {
                work.goes(&row);
                continue;
            }
            let episode = Sketch::of(row, operation)?;
            if erases(what, &episode.session, episode.at) {
                erased.insert(episode.id);
                work.episodes.push((episode.point, episode.token));
            } else {
                held.insert(episode.id);
            }
        }
        work.counts.episodes = erased.len() as u64;
        for row in self.scan(partition, Kind::Track, None, Fields::All, operation).await? {
            look_at_track(&mut work, row, what, &erased, &held, operation)?;
        }
        for row in self.scan(partition, Kind::Block, None, Fields::All, operation).await? {
            let goes = match (row.is_live(), erases_unsourced_before(what)) {
                (false, _) => true,
                (true, None) => what.is_everything(),
                (true, Some(moment)) => row.record::<MemoryBlock>(operation)?.updated_at < moment,
            };
            if goes {
                work.counts.blocks += u64::from(row.is_live());
                work.goes(&row);
            }
        }
        Ok(work)
    }
}

fn look_at_track(
    work: &mut Work,
    row: Row,
    what: &Erase,
    erased: &HashSet<EpisodeId>,
    held: &HashSet<EpisodeId>,
    operation: &'static str,
) -> Result<()> {
    let mut facts: Vec<FactRow> = if row.is_live() { row.record(operation)? } else { Vec::new() };
    let before = facts.len();
    let mut changed = false;
    let old = erases_unsourced_before(what);
    facts.retain_mut(|FactRow { fact, .. }| {
        let is = |set: &HashSet<EpisodeId>, id| set.contains(&id);
        match fate(&fact.sources, fact.known_from, |id| is(erased, id), |id| is(held, id), old) {
            Fate::Goes => return false,
            Fate::Keeps(sources) => {
                fact.sources = sources;
                changed = true;
            }
            Fate::Stays => {}
        }
        !what.is_everything()
    });
    work.counts.facts += (before - facts.len()) as u64;
    if facts.is_empty() {
        work.goes(&row);
    } else if changed || facts.len() < before {
        work.rewritten.push((row, record::of_track(&facts)?));
    }
    Ok(())
}
