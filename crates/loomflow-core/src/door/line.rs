//! Lines of those who wait: first come, first served, bounded, and left by whoever goes away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::door::rate::Stopped;
use crate::identity::Namespace;
use crate::rate_limit::Limited;
use crate::scope::Owner;

/// Whose line it is, and for what: runs do not wait behind model calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LineKey {
    Of(bool, Owner),
    OfAll(bool, Namespace),
}

/// Who wants something, and in which lines they stand for it.
pub(crate) struct Who {
    own: LineKey,
    common: LineKey,
}

impl Who {
    pub(crate) fn new(owner: &Owner, for_runs: bool) -> Self {
        Self {
            own: LineKey::Of(for_runs, owner.clone()),
            common: LineKey::OfAll(for_runs, owner.namespace().clone()),
        }
    }

    /// The line of the user.
    pub(crate) fn own(&self) -> LineKey {
        self.own.clone()
    }

    /// The line of those whom the limit of all users together holds back.
    pub(crate) fn common(&self) -> LineKey {
        self.common.clone()
    }
}

/// Every line that somebody stands in.
#[derive(Debug, Default)]
pub(crate) struct Lines(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    lines: HashMap<LineKey, Line>,
    /// In the lines of users, together.
    waiting: usize,
}

#[derive(Debug)]
struct Line {
    /// One permit, handed on in the order it was asked for.
    turn: Arc<Semaphore>,
    waiting: usize,
    /// What the limiter told the first in line, and when.
    told: Option<(Limited, Instant)>,
}

impl Default for Line {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), waiting: 0, told: None }
    }
}

impl Lines {
    /// Whether anybody stands in a line that `who` would have to join.
    pub(crate) fn is_anybody_before(&self, who: &Who) -> bool {
        let inner = self.inner();
        !inner.lines.is_empty()
            && (inner.lines.contains_key(&who.own) || inner.lines.contains_key(&who.common))
    }

    pub(crate) fn is_anybody(&self, line: &LineKey) -> bool {
        self.inner().lines.contains_key(line)
    }

    /// The last place in a line; `None` when as many stand there, or in the lines of all users together, as may.
    pub(crate) fn stand(&self, key: &LineKey, most: usize, most_in_all: usize) -> Option<Place<'_>> {
        let mut inner = self.inner();
        let of_user = matches!(key, LineKey::Of(..));
        let standing = inner.lines.get(key).map_or(0, |line| line.waiting);
        if standing >= most || (of_user && inner.waiting >= most_in_all) {
            return None;
        }
        inner.waiting += usize::from(of_user);
        let line = inner.lines.entry(key.clone()).or_default();
        line.waiting += 1;
        let turn = line.turn.clone();
        Some(Place { lines: self, key: key.clone(), turn, permit: None })
    }

    /// Keeps what the limiter said for those who never come to ask it.
    pub(crate) fn say(&self, key: &LineKey, limited: Limited) {
        if let Some(line) = self.inner().lines.get_mut(key) {
            line.told = Some((limited, Instant::now()));
        }
    }

    /// What was said last in a line, as of now.
    fn told(&self, key: &LineKey) -> Option<Limited> {
        let (mut limited, at) = self.inner().lines.get(key)?.told.clone()?;
        let left = limited.retry_after?.saturating_sub(at.elapsed());
        limited.retry_after = Some(left.max(Duration::from_millis(1)));
        Some(limited)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a line, left when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    lines: &'a Lines,
    key: LineKey,
    turn: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Place<'_> {
    /// Waits until all who came before have gone.
    pub(crate) async fn turn(&mut self, deadline: Instant) -> Result<(), Stopped> {
        match timeout_at(deadline, self.turn.clone().acquire_owned()).await {
            Ok(permit) => {
                self.permit = Some(permit.expect("a line's turn is never closed"));
                Ok(())
            }
            Err(_) => Err(Stopped::Late(self.lines.told(&self.key))),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut inner = self.lines.inner();
        inner.waiting -= usize::from(matches!(self.key, LineKey::Of(..)));
        if let Some(line) = inner.lines.get_mut(&self.key) {
            line.waiting -= 1;
            if line.waiting == 0 {
                inner.lines.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
impl Lines {
    /// How many wait in lines of users, and how many lines there are.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.waiting, inner.lines.len())
    }
}
