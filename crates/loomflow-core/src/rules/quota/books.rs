//! A budget's caps, ready to judge: the global ones, a user's and a run's.

use super::amounts::Amounts;
use super::bounds::{Ask, Bounds};
use super::cell::Cell;
use super::period::Periods;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ledger::{BudgetConfig, Cap, Entity, Hold, Refusal, RefusalReason};

/// The caps of a [`BudgetConfig`], and its windows.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Books {
    /// Of all users of a namespace together.
    pub global: Bounds,
    /// Of each user.
    pub user: Bounds,
    /// Of each run. Runs have no window.
    pub run: Bounds,
    /// The windows of the global and the users' caps.
    pub periods: Periods,
}

impl Books {
    /// The caps of `config`, which was [validated](BudgetConfig::validate).
    #[must_use]
    pub fn new(config: &BudgetConfig) -> Self {
        let bounds = |entity, caps| Bounds::new(entity, caps, config.soft_warning_at);
        Self {
            global: bounds(Entity::Global, &config.global),
            user: bounds(Entity::User, &config.per_user),
            run: bounds(Entity::Run, &config.per_run),
            periods: Periods::new(config.window),
        }
    }

    /// What `hold` asks for.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for more prompt tokens than can be counted.
    pub fn ask(&self, hold: &Hold) -> Result<Ask> {
        if hold.input_tokens > Ask::MAX_TOKENS {
            return Err(Error::invalid_input(format!(
                "a hold of {} prompt tokens is beyond what can be counted",
                hold.input_tokens
            )));
        }
        Ok(Ask::new(hold))
    }

    /// What every cap leaves of what is asked for, or who refuses: first all users together, then the user, then the run.
    /// The counters stand in the present window; `None` is one that nothing was counted in yet.
    ///
    /// # Errors
    ///
    /// The refusal, with the numbers of the cap that refuses.
    pub fn judge(
        &self,
        wall: Timestamp,
        ask: &Ask,
        global: Option<&Cell>,
        user: &Cell,
        run: Option<&Cell>,
    ) -> Result<Amounts, Box<Refusal>> {
        let blank = Cell::default();
        let levels = [
            (&self.global, global.unwrap_or(&blank)),
            (&self.user, user),
            (&self.run, run.unwrap_or(&blank)),
        ];
        let refuse = |bounds: &Bounds, cell: &Cell, reason, cap: Cap, limit, needed| {
            let (used, held) = cell.numbers(cap);
            let is_run = bounds.entity == Entity::Run;
            let resets = if is_run { None } else { cell.resets_at(&self.periods, wall) };
            let refusal = Refusal::new(reason, bounds.entity, cap, self.periods.window())
                .with_numbers(limit, used, held, needed)
                .with_reset(resets);
            Err(Box::new(refusal))
        };
        if ask.needs_price {
            for (bounds, cell) in levels {
                if let Some(limit) = bounds.caps_cost() {
                    return refuse(bounds, cell, RefusalReason::UnknownPrice, Cap::Cost, limit, 0);
                }
            }
        }
        let (mut output, mut wall) = (ask.output, ask.wall);
        for (bounds, cell) in levels {
            if let Some((cap, limit, needed)) = bounds.shortfall(cell, ask) {
                return refuse(bounds, cell, RefusalReason::Exhausted, cap, limit, needed);
            }
            bounds.shrink(cell, ask, &mut output, &mut wall);
        }
        Ok(ask.amounts(output, wall))
    }
}
