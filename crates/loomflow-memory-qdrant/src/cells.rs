//! How a point is written: whole or not at all, and never after an erasure that the writer does not know of.
//!
//! Qdrant has no transactions, but one conditional update of one point is atomic. Each point has a token that every
//! write replaces, and a write takes hold only where the token is still the one it read. An erasure first raises the
//! epoch in the head, then replaces the tokens of all records, and only then looks what there is to erase. So a writer
//! that reads *the record, then the head, then writes* is safe: if the head it saw had the old epoch, it read the record
//! before the erasure took the token away. A record that is not there yet is made empty first, to have a token.

use std::time::Duration;

use loomflow_core::rules::Space;
use loomflow_core::{Embedding, Epoch, FactId, Result, Scope, Timestamp};

use crate::error::busy;
use crate::head::TURNS;
use crate::keys::{Kind, Partition};
use crate::record::{self, Content, Row};
use crate::server::{Fields, Server};

/// What a plan is made from.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    /// The record, if it has content.
    pub(crate) row: Option<&'a Row>,
    /// The partition's vector space.
    pub(crate) space: Option<&'a Space>,
    /// The largest `known_from` of the partition; only for tracks.
    pub(crate) newest: Option<Timestamp>,
}

/// What a plan comes to, with the answer to give when it is done.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// There is nothing to do.
    Done(T),
    /// The record gets this content.
    Fill(Content, T),
    /// The record goes.
    Remove(T),
    /// The vector, which fits, is the first: its space becomes the partition's, and the plan is made again.
    Claim(Embedding),
}

impl Server {
    /// Writes one record as `plan` says, which is asked again whenever somebody else was faster.
    pub(crate) async fn write<T: Send>(
        &self,
        scope: &Scope,
        kind: Kind,
        name: &[&[u8]],
        operation: &'static str,
        mut plan: impl FnMut(&Seen<'_>) -> Result<Step<T>> + Send,
    ) -> Result<T> {
        let partition = Partition::of(scope.owner(), self.loses_partition_filter);
        let id = partition.id(kind, name);
        for turn in 0..TURNS {
            pause(turn).await;
            let newest = self.newest(&partition, kind, operation).await?;
            // The record before the head: see the module.
            let row = self.get(&partition, &id, Fields::All, operation).await?;
            let head = self.head(&partition, operation).await?;
            if head.state.pending.is_some() {
                self.complete(&partition, operation).await?;
                continue;
            }
            scope.check_epoch(Epoch::new(head.state.epoch), operation)?;
            if let Some(row) = &row {
                row.check_owner(scope, operation)?;
            }
            let space = head.state.space();
            let live = row.as_ref().filter(|row| row.is_live());
            let took_hold = match (plan(&Seen { row: live, space: space.as_ref(), newest })?, &row) {
                (Step::Done(answer), _) | (Step::Remove(answer), None) => return Ok(answer),
                (Step::Claim(embedding), _) => {
                    let claimed = head.state.with_space(&embedding);
                    self.update_head(&partition, &head, &claimed, operation).await?;
                    None
                }
                (Step::Fill(..), None) => {
                    self.mark(&partition, kind, &id, operation).await?;
                    None
                }
                (Step::Fill(content, answer), Some(row)) => {
                    self.fill(&partition, row, content, operation).await?.then_some(answer)
                }
                (Step::Remove(answer), Some(row)) => {
                    let points = [(row.id.clone(), row.token.clone())];
                    self.remove(&partition, &points, operation).await?;
                    let after = self.get(&partition, &id, Fields::Some(&[]), operation).await?;
                    after.is_none().then_some(answer)
                }
            };
            if let Some(answer) = took_hold {
                return Ok(answer);
            }
        }
        Err(busy(operation))
    }

    async fn newest(
        &self,
        partition: &Partition,
        kind: Kind,
        operation: &'static str,
    ) -> Result<Option<Timestamp>> {
        if kind != Kind::Track {
            return Ok(None);
        }
        let tracks = self.scan(partition, kind, None, Fields::Some(&[record::NEWEST]), operation).await?;
        Ok(tracks.iter().filter_map(record::newest_of).max())
    }
}

/// Lets others finish: the first turns go at once, the later ones wait a little, each for another while.
async fn pause(turn: u32) {
    if turn < 3 {
        return;
    }
    let most = 1_u128 << turn.min(6);
    let millis = FactId::fresh().as_u128() % most;
    tokio::time::sleep(Duration::from_millis(u64::try_from(millis).unwrap_or(1))).await;
}
