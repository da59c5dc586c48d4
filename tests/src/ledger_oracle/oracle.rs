//! The oracle: holds and charges in lists, added up from the beginning whenever somebody asks.

use std::collections::HashMap;

use loomflow_core::{BudgetConfig, Caps, Entity, Hold, HoldId, HoldKey, RunId, Window};

use super::ops::USERS;
use super::stores::Leases;

pub(super) const SECOND: i64 = 1_000_000;

/// Input, output, cost, wall: in this order everywhere.
pub(super) type Sums = [u64; 4];

/// Where a hold stands; an estimated one with its charge.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum State {
    Held,
    Sent,
    Estimated { charge: usize, expired: bool },
    Closed,
}

#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) id: HoldId,
    pub(super) user: usize,
    pub(super) key: HoldKey,
    /// What was asked for, the lease aside.
    pub(super) asked: Hold,
    /// Which life of the run.
    pub(super) life: u32,
    pub(super) sums: Sums,
    pub(super) state: State,
    /// On the clock that ends leases, in microseconds.
    pub(super) expires: i64,
    pub(super) born: i64,
}

impl Held {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Held | State::Sent)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Charged {
    pub(super) user: usize,
    pub(super) run: RunId,
    pub(super) life: u32,
    pub(super) at: i64,
    pub(super) sums: Sums,
    pub(super) estimated: u64,
    /// What was used beyond what was set aside for it.
    pub(super) excess: Sums,
}

pub(super) struct Oracle {
    pub(super) config: BudgetConfig,
    pub(super) holds: Vec<Held>,
    pub(super) charges: Vec<Charged>,
    pub(super) lives: HashMap<(usize, RunId), u32>,
    leases: Leases,
    /// The time of windows, which never goes back.
    pub(super) wall: i64,
    /// The time of leases.
    pub(super) lease_now: i64,
    seen_mono: i64,
    /// The windows in which warnings were given.
    warned: HashMap<(Entity, usize, &'static str), i64>,
}

impl Oracle {
    pub(super) fn new(config: BudgetConfig, leases: Leases) -> Self {
        let (holds, charges, lives, warned) = (Vec::new(), Vec::new(), HashMap::new(), HashMap::new());
        Self { config, holds, charges, lives, leases, wall: i64::MIN / 2, lease_now: 0, seen_mono: 0, warned }
    }

    pub(super) fn window_of(&self, micros: i64) -> i64 {
        let day = micros.div_euclid(86_400 * SECOND);
        match self.config.window {
            Window::Lifetime => 0,
            Window::Hour => micros.div_euclid(3_600 * SECOND),
            Window::Day => day,
            Window::Month => month_of(day),
            Window::Rolling(d) => micros.div_euclid(i64::try_from(d.as_micros().div_ceil(60)).unwrap()),
            _ => unreachable!("the oracle draws no other window"),
        }
    }

    fn counts(&self, at: i64) -> bool {
        let now = self.window_of(self.wall);
        if matches!(self.config.window, Window::Rolling(_)) { now - at <= 60 } else { now == at }
    }

    /// The clocks say so; leases run out.
    pub(super) fn tick(&mut self, clock: i64, mono: i64) {
        match self.leases {
            Leases::Monotonic => {
                let since = mono - self.seen_mono;
                self.wall = if clock < self.wall { self.wall + since } else { clock };
                (self.lease_now, self.seen_mono) = (mono, mono);
            }
            Leases::Wall => {
                self.wall = self.wall.max(clock);
                self.lease_now = clock;
            }
        }
        for i in 0..self.holds.len() {
            let hold = self.holds[i].clone();
            if !hold.is_open() || hold.expires > self.lease_now {
                continue;
            }
            let moment = match self.leases {
                Leases::Monotonic => self.wall - (self.lease_now - hold.expires),
                Leases::Wall => hold.expires,
            };
            let at = self.window_of(moment).max(hold.born);
            let sums = if hold.state == State::Sent { hold.sums } else { [0; 4] };
            let charge = self.charge(&hold, at, sums, sums[0] + sums[1]);
            self.holds[i].state = State::Estimated { charge, expired: true };
        }
    }

    /// Counts `sums` for a hold.
    pub(super) fn charge(&mut self, hold: &Held, at: i64, sums: Sums, estimated: u64) -> usize {
        let (user, run, life) = (hold.user, hold.key.run, hold.life);
        let excess = beyond(sums, hold.sums);
        self.charges.push(Charged { user, run, life, at, sums, estimated, excess });
        self.charges.len() - 1
    }

    /// Puts `sums` in the place of what was charged.
    pub(super) fn correct(&mut self, charge: usize, sums: Sums, estimated: u64) {
        let charged = &mut self.charges[charge];
        // What was given back may have been given to somebody else.
        let more = beyond(sums, charged.sums);
        (0..4).for_each(|i| charged.excess[i] += more[i]);
        (charged.sums, charged.estimated) = (sums, estimated);
    }

    pub(super) fn life(&self, user: usize, run: RunId) -> u32 {
        self.lives.get(&(user, run)).copied().unwrap_or(0)
    }

    fn is_in(&self, entity: Entity, user: usize, run: RunId, of: (usize, RunId, u32)) -> bool {
        match entity {
            Entity::Global => USERS[of.0].0 == USERS[user].0,
            Entity::User => of.0 == user,
            _ => of.0 == user && of.1 == run && of.2 == self.life(user, run),
        }
    }

    /// What was used, how many tokens of it by estimate, and what of it was excess.
    pub(super) fn used(&self, entity: Entity, user: usize, run: RunId) -> (Sums, u64, Sums) {
        let (mut sums, mut estimated, mut excess) = ([0; 4], 0, [0; 4]);
        for c in &self.charges {
            let here = self.is_in(entity, user, run, (c.user, c.run, c.life));
            if here && (entity == Entity::Run || self.counts(c.at)) {
                (0..4).for_each(|i| sums[i] += c.sums[i]);
                (0..4).for_each(|i| excess[i] += c.excess[i]);
                estimated += c.estimated;
            }
        }
        (sums, estimated, excess)
    }

    pub(super) fn open(&self) -> impl Iterator<Item = &Held> {
        self.holds.iter().filter(|h| h.is_open())
    }

    pub(super) fn held(&self, entity: Entity, user: usize, run: RunId) -> Sums {
        let mut sums = [0; 4];
        for h in self.open().filter(|h| self.is_in(entity, user, run, (h.user, h.key.run, h.life))) {
            (0..4).for_each(|i| sums[i] += h.sums[i]);
        }
        sums
    }

    pub(super) fn limits(caps: &Caps) -> [Option<u64>; 5] {
        let wall = caps.wall_clock.map(|d| u64::try_from(d.as_micros()).unwrap());
        [caps.tokens, caps.input_tokens, caps.output_tokens, caps.cost.map(|c| c.0), wall]
    }

    pub(super) fn five(sums: Sums) -> [u64; 5] {
        [sums[0] + sums[1], sums[0], sums[1], sums[2], sums[3]]
    }

    pub(super) fn entities(&self) -> [(Entity, Caps); 3] {
        [
            (Entity::Global, self.config.global),
            (Entity::User, self.config.per_user),
            (Entity::Run, self.config.per_run),
        ]
    }

    /// The first cap that `add` does not fit into.
    pub(super) fn blocked(&self, user: usize, run: RunId, add: Sums) -> Option<(Entity, usize)> {
        for (entity, caps) in self.entities() {
            let used = Self::five(self.used(entity, user, run).0);
            let held = Self::five(self.held(entity, user, run));
            for (i, limit) in Self::limits(&caps).into_iter().enumerate() {
                let need = Self::five(add)[i];
                if limit.is_some_and(|limit| need > 0 && used[i] + held[i] + need > limit) {
                    return Some((entity, i));
                }
            }
        }
        None
    }

    /// The warnings that a change of `user` gives, for all users together and for the user.
    pub(super) fn warnings(&mut self, user: usize) -> Vec<(Entity, &'static str, u64)> {
        let now = self.window_of(self.wall);
        let none = RunId::from_u128(0);
        let mut out = Vec::new();
        let keys = ["tokens", "input_tokens", "output_tokens", "cost_usd", "wall_clock"];
        for (entity, caps) in &self.entities()[..2] {
            let used = Self::five(self.used(*entity, user, none).0);
            let held = Self::five(self.held(*entity, user, none));
            for (i, limit) in Self::limits(caps).into_iter().enumerate() {
                let Some(limit) = limit else { continue };
                let level = used[i] + held[i];
                // A namespace goes by its first user.
                let first = USERS.iter().position(|(namespace, _)| *namespace == USERS[user].0).unwrap();
                let who = if *entity == Entity::User { user } else { first };
                let before = self.warned.get(&(*entity, who, keys[i]));
                if level >= 1 && level * 10 >= limit * 8 && before != Some(&now) {
                    self.warned.insert((*entity, who, keys[i]), now);
                    out.push((*entity, keys[i], level));
                }
            }
        }
        out
    }
}

fn beyond(sums: Sums, held: Sums) -> Sums {
    std::array::from_fn(|i| sums[i].saturating_sub(held[i]))
}

/// Counts the months by walking the calendar from 1970.
fn month_of(day: i64) -> i64 {
    let (mut left, mut month) = (day, 0);
    loop {
        let year = 1970 + month / 12;
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month % 12 {
            1 if leap => 29,
            1 => 28,
            3 | 5 | 8 | 10 => 30,
            _ => 31,
        };
        if left < days {
            return month;
        }
        (left, month) = (left - days, month + 1);
    }
}
