//! Every limit at once, judged as one: nothing is taken of one resource when another refuses.

use std::time::Duration;

use crate::ledger::Entity;
use crate::rate_limit::{Amounts, LimitReason, Limited, Resource};
use crate::rules::gcra::{Gcra, Wait};

/// The limits of each user and of all users together, by resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimits {
    user: [Option<Gcra>; 3],
    global: [Option<Gcra>; 3],
}

/// The theoretical arrival times of one user, or of all users together, by [`Resource`]: nanoseconds on the clock of
/// whoever keeps them. Zero was never used.
pub type Tats = [u64; 3];

impl RateLimits {
    /// Sets a limit.
    #[must_use]
    pub fn with(mut self, entity: Entity, resource: Resource, limit: Option<Gcra>) -> Self {
        let place = resource as usize;
        if entity == Entity::Global {
            self.global[place] = limit
        } else {
            self.user[place] = limit
        }
        self
    }

    /// The limit of `entity` on `resource`, if there is one.
    #[must_use]
    pub fn get(&self, entity: Entity, resource: Resource) -> Option<Gcra> {
        if entity == Entity::Global { self.global[resource as usize] } else { self.user[resource as usize] }
    }

    /// Whether any limit of `entity` is set.
    #[must_use]
    pub fn binds(&self, entity: Entity) -> bool {
        Resource::ALL.into_iter().any(|resource| self.get(entity, resource).is_some())
    }

    /// The limits that something of `ask` falls under, with how much of it.
    pub fn asked(&self, ask: &Amounts) -> impl Iterator<Item = (Entity, Resource, Gcra, u64)> + use<> {
        let (limits, ask) = (*self, *ask);
        [Entity::User, Entity::Global].into_iter().flat_map(move |entity| {
            let asked = Resource::ALL.into_iter().map(move |resource| (resource, ask.of(resource)));
            asked.filter(|(_, n)| *n > 0).filter_map(move |(resource, n)| {
                limits.get(entity, resource).map(|limit| (entity, resource, limit, n))
            })
        })
    }

    /// The limit of which more is asked than ever fits, if there is one.
    #[must_use]
    pub fn too_large(&self, ask: &Amounts) -> Option<Limited> {
        let mut large = self.asked(ask).filter(|(_, _, limit, n)| *n > limit.burst());
        large.next().map(|(entity, resource, limit, _)| Self::limited(entity, resource, limit, Wait::Never).1)
    }

    /// What a correction changes: each limit that it is about, and by how many nanoseconds its level grows (or, below zero,
    /// shrinks). No change is larger than a level can be.
    pub fn corrections(
        &self,
        taken: &Amounts,
        used: &Amounts,
    ) -> impl Iterator<Item = (Entity, Resource, Gcra, i128)> + use<> {
        let (limits, taken, used) = (*self, *taken, *used);
        [Entity::User, Entity::Global].into_iter().flat_map(move |entity| {
            Resource::ALL.into_iter().filter_map(move |resource| {
                let limit = limits.get(entity, resource)?;
                let change = i128::from(used.of(resource)) - i128::from(taken.of(resource));
                let most = 2 * i128::from(limit.capacity());
                let nanos = (change * limit.interval().as_nanos() as i128).clamp(-most, most);
                (change != 0).then_some((entity, resource, limit, nanos))
            })
        })
    }

    /// Takes all of `ask` at `now`, or nothing: then the answer names the limit that takes longest.
    ///
    /// # Errors
    ///
    /// The limit that refuses; the times are as they were.
    pub fn take(
        &self,
        user: &mut Tats,
        global: &mut Tats,
        now: u64,
        ask: &Amounts,
    ) -> Result<(), Box<Limited>> {
        let (mut after, mut longest) = ((*user, *global), None::<(u64, Limited)>);
        for (entity, resource, limit, n) in self.asked(ask) {
            let tats = if entity == Entity::Global { &mut after.1 } else { &mut after.0 };
            let tat = &mut tats[resource as usize];
            match limit.take(*tat, now, n) {
                Ok(taken) => *tat = taken,
                Err(wait) => {
                    let found = Self::limited(entity, resource, limit, wait);
                    longest = longest.filter(|(other, _)| *other >= found.0).or(Some(found));
                }
            }
        }
        match longest {
            Some((_, limited)) => Err(Box::new(limited)),
            None => {
                (*user, *global) = after;
                Ok(())
            }
        }
    }

    /// Corrects what was taken by what was used.
    pub fn settle(&self, user: &mut Tats, global: &mut Tats, now: u64, taken: &Amounts, used: &Amounts) {
        for resource in Resource::ALL {
            let (taken, used) = (taken.of(resource), used.of(resource));
            if taken == used {
                continue;
            }
            for (entity, tats) in [(Entity::User, &mut *user), (Entity::Global, &mut *global)] {
                if let Some(limit) = self.get(entity, resource) {
                    let tat = &mut tats[resource as usize];
                    *tat = limit.settle(*tat, now, taken, used);
                }
            }
        }
    }

    /// The answer of one limit, and by how many nanoseconds it is longer than another's.
    #[must_use]
    pub fn limited(entity: Entity, resource: Resource, limit: Gcra, wait: Wait) -> (u64, Limited) {
        let of = |reason| Limited::new(reason, entity, resource, limit.burst());
        match wait {
            Wait::Never => (u64::MAX, of(LimitReason::TooLarge)),
            Wait::Nanos(n) => (n, of(LimitReason::Rate).with_retry_after(Duration::from_nanos(n))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(millis: u64, burst: u64) -> Option<Gcra> {
        Gcra::new(Duration::from_millis(millis), burst)
    }

    #[test]
    fn all_or_nothing_is_taken() {
        let limits = RateLimits::default()
            .with(Entity::User, Resource::ModelCalls, limit(10, 5))
            .with(Entity::User, Resource::Tokens, limit(1, 100))
            .with(Entity::Global, Resource::ModelCalls, limit(20, 2));
        let (mut user, mut global) = (Tats::default(), Tats::default());
        let mut take = |now: u64, tokens| {
            let before = (user, global);
            let answer = limits.take(&mut user, &mut global, now, &Amounts::model_call(tokens));
            if answer.is_err() {
                assert_eq!((user, global), before, "a refusal takes nothing");
            }
            answer.map_err(|limited| (limited.limit, limited.retry_after))
        };
        assert_eq!(take(0, 60), Ok(()));
        let wait = |millis| Some(Duration::from_millis(millis));
        assert_eq!(take(0, 60), Err(("per_user_tokens_per_minute", wait(20))));
        assert_eq!(take(0, 101), Err(("per_user_tokens_per_minute", None)));
        assert_eq!(take(0, 10), Ok(()));
        // Of two that refuse, the one that takes longer is named.
        assert_eq!(take(0, 40), Err(("global_model_calls_per_minute", wait(20))));
        assert_eq!(take(0, 80), Err(("per_user_tokens_per_minute", wait(50))));
        assert_eq!(take(20_000_000, 1), Ok(()));
    }
}
