//! The head of a partition: its epoch, its vector space, and the erasure that is under way.

use loomflow_core::rules::Space;
use loomflow_core::{Embedding, Erase, Result, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{busy, unreadable};
use crate::keys::{Kind, Partition};
use crate::record::{self, Row};
use crate::server::{Fields, Server};

/// How many receipts of erasures are kept, for those who asked for them and have not read them yet.
const RECEIPTS: usize = 8;
/// How often something is tried that others can get in the way of.
pub(crate) const TURNS: u32 = 64;

/// What a head holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(default)]
    dimensions: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pending: Option<Pending>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    receipts: Vec<(u64, Counts)>,
}

/// An erasure that was decided and is not done yet. Whoever finds it does it, before anything else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    session: Option<String>,
    before: Option<i64>,
    /// What it takes; known once nobody can write any more, and before anything is deleted.
    pub(crate) counts: Option<Counts>,
}

/// How many records an erasure takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) episodes: u64,
    pub(crate) facts: u64,
    pub(crate) blocks: u64,
}

impl Pending {
    pub(crate) fn of(what: &Erase) -> Self {
        Self {
            session: what.session.as_ref().map(|s| s.as_str().to_owned()),
            before: what.before.map(Timestamp::as_micros),
            counts: None,
        }
    }

    pub(crate) fn what(&self) -> Result<Erase> {
        let session = self.session.as_deref().map(SessionId::new).transpose();
        let mut what = Erase::everything();
        what.session = session.map_err(|_| unreadable("forget"))?;
        what.before = self.before.map(Timestamp::from_micros);
        Ok(what)
    }
}

impl State {
    pub(crate) fn space(&self) -> Option<Space> {
        let model = self.model.as_deref()?;
        Some(Space { model: model.into(), dimensions: self.dimensions })
    }

    pub(crate) fn with_space(&self, embedding: &Embedding) -> Self {
        let model = Some((*embedding.model).to_owned());
        Self { model, dimensions: embedding.vector.len(), ..self.clone() }
    }

    pub(crate) fn with_pending(&self, epoch: u64, pending: Pending) -> Self {
        Self { epoch, pending: Some(pending), ..self.clone() }
    }

    /// The state after the pending erasure, which took `counts`.
    pub(crate) fn settled(&self, counts: Counts, everything: bool) -> Self {
        let mut after = Self { pending: None, ..self.clone() };
        if everything {
            (after.model, after.dimensions) = (None, 0);
        }
        after.receipts.push((self.epoch, counts));
        let kept = after.receipts.len().saturating_sub(RECEIPTS);
        after.receipts.drain(..kept);
        after
    }

    pub(crate) fn receipt(&self, epoch: u64) -> Option<Counts> {
        self.receipts.iter().find(|(of, _)| *of == epoch).map(|(_, counts)| *counts)
    }
}

/// A head as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    row: Option<Row>,
    pub(crate) state: State,
}

impl Head {
    /// Whether `other` is of the same moment.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let token = |head: &Self| head.row.as_ref().map(|row| row.token.clone());
        // A head without content is none.
        token(self) == token(other) || self.state == other.state && other.state == State::default()
    }
}

impl Server {
    pub(crate) async fn head(&self, partition: &Partition, operation: &'static str) -> Result<Head> {
        let id = partition.id(Kind::Head, &[]);
        let row = self.get(partition, &id, Fields::All, operation).await?;
        let state = match &row {
            Some(row) if row.is_live() => row.record(operation)?,
            _ => State::default(),
        };
        Ok(Head { row, state })
    }

    /// The head of a partition without an erasure under way; does the one it finds first.
    pub(crate) async fn settled(&self, partition: &Partition, operation: &'static str) -> Result<Head> {
        for _ in 0..TURNS {
            let head = self.head(partition, operation).await?;
            if head.state.pending.is_none() {
                return Ok(head);
            }
            self.complete(partition, operation).await?;
        }
        Err(busy(operation))
    }

    /// Replaces the head, if it still is `head`. Says whether it did.
    pub(crate) async fn update_head(
        &self,
        partition: &Partition,
        head: &Head,
        state: &State,
        operation: &'static str,
    ) -> Result<bool> {
        let id = partition.id(Kind::Head, &[]);
        let row = match &head.row {
            Some(row) => row.clone(),
            None => {
                self.mark(partition, Kind::Head, &id, operation).await?;
                match self.get(partition, &id, Fields::Some(&[]), operation).await? {
                    Some(row) if row.writes.is_empty() => row,
                    _ => return Ok(false),
                }
            }
        };
        self.fill(partition, &row, record::content(state)?, operation).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_and_keeps_the_last_receipts() {
        let what = Erase::session(SessionId::new("s").unwrap()).with_before(Timestamp::from_micros(-7));
        let mut state = State::default().with_space(&Embedding::new("m", [1.0, 2.0]));
        for epoch in 1..=20 {
            let counts = Counts { episodes: epoch, ..Counts::default() };
            state = state.with_pending(epoch, Pending::of(&what)).settled(counts, false);
        }
        let state = state.with_pending(21, Pending::of(&what));
        let again: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!(again, state);
        assert_eq!(again.pending.as_ref().unwrap().what().unwrap(), what);
        assert_eq!((again.receipt(20).unwrap().episodes, again.receipt(12)), (20, None));
        assert_eq!(again.space().unwrap().dimensions, 2);
        assert_eq!(again.settled(Counts::default(), true).space(), None);
    }
}
