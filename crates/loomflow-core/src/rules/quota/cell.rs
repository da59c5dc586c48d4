//! One counter: what an entity used in its window and holds now.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Periods;
use super::amounts::{Amounts, Totals};
use super::bounds::Bounds;
use crate::clock::Timestamp;
use crate::ledger::{Cap, CapUsage, Warning, Window};

/// What one entity used in its window, and holds.
///
/// What is held has no window: an open hold counts against whichever window is running, and its charge falls into the
/// window in which it is closed. So `used + held` never leaves the cap when a window ends.
///
/// Its serialised form is what a store keeps of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Cell {
    /// The window (or the slice) it stands in.
    pub window: i64,
    /// Which caps were warned about in this window, one bit each.
    pub warned: u8,
    /// What was used in the window.
    pub used: Totals,
    /// What open holds keep aside.
    pub held: Amounts,
    /// Rolling windows only: the slices that have usage, oldest first; `used` is their sum.
    #[allow(clippy::box_collection, reason = "a third of the size in every entry, and most have none")]
    #[serde(skip_serializing_if = "Option::is_none")]
    slices: Option<Box<VecDeque<(i64, Totals)>>>,
}

impl Cell {
    /// An empty counter in `window`.
    #[must_use]
    pub fn new(window: i64) -> Self {
        Self { window, ..Self::default() }
    }

    /// A counter as it was: each window (or slice) with what was used in it, oldest first.
    #[must_use]
    pub fn restored(window: i64, warned: u8, parts: Vec<(i64, Totals)>, periods: &Periods) -> Self {
        let mut cell = Self { window, warned, ..Self::default() };
        for (at, used) in parts {
            cell.charge(periods, at, &used);
        }
        cell
    }

    /// What [`Cell::restored`] makes the counter from again.
    #[must_use]
    pub fn parts(&self) -> Vec<(i64, Totals)> {
        match &self.slices {
            Some(slices) => slices.iter().copied().collect(),
            None if self.used.is_zero() => Vec::new(),
            None => vec![(self.window, self.used)],
        }
    }

    /// Moves on to the present window, never back. What was used in windows that ended is let go.
    ///
    /// A calendar window that begins arms the warnings again; a rolling one does when what left it brought the use of the
    /// cap below the line.
    pub fn roll(&mut self, periods: &Periods, bounds: &Bounds, now: i64) {
        if now <= self.window {
            return;
        }
        self.window = now;
        if !periods.rolls() {
            if periods.window() != Window::Lifetime {
                self.used = Totals::default();
                self.warned = 0;
            }
            return;
        }
        let Some(slices) = &mut self.slices else { return };
        let before = slices.len();
        while slices.front().is_some_and(|(slice, _)| periods.ended(*slice, now)) {
            slices.pop_front();
        }
        if slices.len() == before {
            return;
        }
        let mut sum = Totals::default();
        for (_, used) in slices.iter() {
            sum.add(used);
        }
        self.used = sum;
        for (i, cap, _) in bounds.each() {
            if self.level(cap) < bounds.lines[i] {
                self.warned &= !(1 << i);
            }
        }
    }

    /// Counts `used` in the window (or slice) `at`; in one that ended it counts no more.
    pub fn charge(&mut self, periods: &Periods, at: i64, used: &Totals) {
        if used.is_zero() || periods.ended(at, self.window) {
            return;
        }
        self.used.add(used);
        if periods.rolls() {
            let slices = self.slices.get_or_insert_default();
            let place = slices.partition_point(|(slice, _)| *slice < at);
            match slices.get_mut(place) {
                Some((slice, sum)) if *slice == at => sum.add(used),
                _ => slices.insert(place, (at, *used)),
            }
        }
    }

    /// Takes back what [`Cell::charge`] counted with the same arguments.
    pub fn uncharge(&mut self, periods: &Periods, at: i64, used: &Totals) {
        if periods.ended(at, self.window) {
            return;
        }
        self.used.sub(used);
        if let Some((_, sum)) =
            self.slices.as_mut().and_then(|s| s.iter_mut().find(|(slice, _)| *slice == at))
        {
            sum.sub(used);
        }
    }

    /// Keeps `amounts` aside.
    pub fn hold(&mut self, amounts: &Amounts) {
        self.held.add(amounts);
    }

    /// Gives back what [`Cell::hold`] kept aside.
    pub fn release(&mut self, amounts: &Amounts) {
        self.held.sub(amounts);
    }

    /// What of `cap` is used and what is held.
    #[must_use]
    pub fn numbers(&self, cap: Cap) -> (u64, u64) {
        (self.used.of(cap), self.held.of(cap))
    }

    /// Adds a warning for every cap whose use, held included, reached its line for the first time in this window.
    pub fn warn(&mut self, bounds: &Bounds, out: &mut Vec<Warning>) {
        for (i, cap, limit) in bounds.each() {
            let level = self.level(cap);
            if level >= bounds.lines[i] && self.warned & (1 << i) == 0 {
                self.warned |= 1 << i;
                out.push(Warning::new(bounds.entity, cap, limit, level));
            }
        }
    }

    /// When the present window ends, or when a rolling one begins to let go. The present one is that of `wall`, unless the
    /// counter stands in a later one because the clock was set back.
    #[must_use]
    pub fn resets_at(&self, periods: &Periods, wall: Timestamp) -> Option<Timestamp> {
        match &self.slices {
            Some(slices) => slices.front().map(|(slice, _)| periods.leaves_at(*slice)),
            None => periods.window().bounds(wall.max(periods.starts_at(self.window))).map(|(_, end)| end),
        }
    }

    /// One line for each cap.
    #[must_use]
    pub fn lines(&self, bounds: &Bounds, periods: &Periods, wall: Timestamp) -> Vec<CapUsage> {
        bounds
            .each()
            .map(|(_, cap, limit)| {
                let (used, held) = self.numbers(cap);
                CapUsage::new(bounds.entity, cap, periods.window(), limit).with_numbers(
                    used,
                    held,
                    self.resets_at(periods, wall),
                )
            })
            .collect()
    }

    fn level(&self, cap: Cap) -> u64 {
        let (used, held) = self.numbers(cap);
        used.saturating_add(held)
    }

    /// From when on nothing that was used counts any more, as far as windows end: `None` for a lifetime.
    #[must_use]
    pub fn ends_at(&self, periods: &Periods) -> Option<Timestamp> {
        match (periods.window(), &self.slices) {
            (Window::Lifetime, _) => None,
            (Window::Rolling(_), slices) => {
                let last = slices.iter().filter_map(|s| s.back()).map(|(slice, _)| *slice).max();
                Some(periods.leaves_at(last.unwrap_or(self.window)))
            }
            _ => Some(periods.starts_at(self.window.saturating_add(1))),
        }
    }

    pub(super) fn room(&self, cap: Cap, limit: u64) -> u64 {
        limit.saturating_sub(self.level(cap))
    }
}
