//! The in-process budget against a naive oracle: lists, recomputed from the beginning at every step.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use loomflow_core::{
    BudgetConfig, Caps, Charge, Clock, Entity, Epoch, ErrorKind, Hold, HoldId, HoldKey, Identity, Ledger,
    Namespace, NanoUsd, Price, RefusalReason, Reserve, RunId, Scope, Timestamp, Usage, UserId, Warning,
    Window, danger,
};
use loomflow_local::StandardBudget;
use proptest::prelude::*;

/// Of two namespaces, whose users together have counters of their own.
const USERS: [(&str, &str); 6] = [
    ("app", "user_1"),
    ("app", "user_10"),
    ("app", "User_1"),
    ("app", "us\u{435}r_1"),
    ("ap", "puser_1"),
    ("ap", "user_1"),
];
const SECOND: i64 = 1_000_000;
/// 10:59:50 UTC of some day, so that short jumps cross an hour.
const START: i64 = 1_700_000_000 * SECOND / (86_400 * SECOND) * (86_400 * SECOND) + 39_590 * SECOND;

#[derive(Debug)]
struct Hand(AtomicI64);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

fn scope(user: usize) -> Scope {
    let (namespace, name) = USERS[user];
    let identity = Identity::User(UserId::new(name).unwrap());
    danger::assume_scope(Namespace::new(namespace).unwrap(), identity, Epoch::ZERO)
}

#[derive(Clone, Debug)]
enum Op {
    Reserve { user: usize, run: u128, seq: u32, ask: [u64; 3], price: u8, wall: u64, lease: u64 },
    Sent(usize),
    Extend(usize, u64),
    Close { which: usize, kind: u8, used: [u64; 2] },
    Foreign { which: usize, by: usize },
    Wait(u64),
    Jump(i64),
    EndRun { user: usize, run: u128 },
}

fn op() -> impl Strategy<Value = Op> {
    let ask = (0_u64..40, 0_u64..60, 0_u64..10).prop_map(|(a, b, c)| [a, b, c]);
    prop_oneof![
        8 => (0..USERS.len(), 0_u128..3, 0_u32..4, ask, 0_u8..4, prop_oneof![4 => Just(0), 1 => 1_u64..40], 0_u64..60)
            .prop_map(|(user, run, seq, ask, price, wall, lease)| Op::Reserve { user, run, seq, ask, price, wall, lease }),
        3 => any::<usize>().prop_map(Op::Sent),
        1 => (any::<usize>(), 0_u64..60).prop_map(|(which, lease)| Op::Extend(which, lease)),
        7 => (any::<usize>(), 0_u8..8, 0_u64..40, 0_u64..60)
            .prop_map(|(which, kind, a, b)| Op::Close { which, kind, used: [a, b] }),
        1 => (any::<usize>(), 0..USERS.len()).prop_map(|(which, by)| Op::Foreign { which, by }),
        3 => prop_oneof![0_u64..30, Just(60), 0_u64..4_000].prop_map(Op::Wait),
        1 => prop_oneof![-5_000_i64..5_000, -60_i64..60].prop_map(Op::Jump),
        1 => (0..USERS.len(), 0_u128..3).prop_map(|(user, run)| Op::EndRun { user, run }),
    ]
}

fn caps() -> impl Strategy<Value = Caps> {
    let cap = || prop::option::weighted(0.4, 0_u64..250);
    (cap(), cap(), cap(), cap(), prop::option::weighted(0.3, 0_u64..100)).prop_map(|(a, b, c, d, e)| {
        let mut caps = Caps::default();
        (caps.tokens, caps.input_tokens, caps.output_tokens) = (a, b, c);
        caps.cost = d.map(|n| NanoUsd(n * 10));
        caps.wall_clock = e.map(Duration::from_secs);
        caps
    })
}

fn window() -> impl Strategy<Value = Window> {
    prop_oneof![
        Just(Window::Lifetime),
        Just(Window::Hour),
        Just(Window::Day),
        Just(Window::Month),
        Just(Window::Rolling(Duration::from_secs(60))),
        Just(Window::Rolling(Duration::from_secs(3_601))),
    ]
}

/// Input, output, cost, wall: in this order everywhere.
type Sums = [u64; 4];

#[derive(Clone, Debug, PartialEq)]
enum State {
    Held,
    Sent,
    /// Charged this (index into the charges, if anything).
    Expired(usize),
    Closed,
}

#[derive(Clone, Debug)]
struct Held {
    id: HoldId,
    user: usize,
    key: HoldKey,
    /// What was asked for, the lease aside.
    asked: Hold,
    /// Which life of the run.
    life: u32,
    sums: Sums,
    state: State,
    expires: u64,
    born: i64,
}

#[derive(Clone, Debug)]
struct Charged {
    user: usize,
    run: RunId,
    life: u32,
    at: i64,
    sums: Sums,
    estimated: u64,
}

struct Oracle {
    config: BudgetConfig,
    holds: Vec<Held>,
    charges: Vec<Charged>,
    lives: HashMap<(usize, RunId), u32>,
    wall: i64,
    mono: u64,
    seen_mono: u64,
    /// Warnings given, with the window they were given in.
    warned: HashMap<(Entity, usize, &'static str), i64>,
    overran: bool,
}

impl Oracle {
    fn window_of(&self, micros: i64) -> i64 {
        let day = micros.div_euclid(86_400 * SECOND);
        match self.config.window {
            Window::Lifetime => 0,
            Window::Hour => micros.div_euclid(3_600 * SECOND),
            Window::Day => day,
            Window::Month => {
                // Count the months by walking the calendar from 1970.
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
            Window::Rolling(d) => micros.div_euclid(i64::try_from(d.as_micros().div_ceil(60)).unwrap()),
            _ => unreachable!(),
        }
    }

    fn counts(&self, at: i64) -> bool {
        let now = self.window_of(self.wall);
        if matches!(self.config.window, Window::Rolling(_)) { now - at <= 60 } else { now == at }
    }

    fn tick(&mut self, clock: i64, mono: u64) {
        let since = i64::try_from((mono - self.seen_mono) / 1_000).unwrap();
        self.wall = if clock < self.wall { self.wall + since } else { clock };
        (self.mono, self.seen_mono) = (mono, mono);
        for i in 0..self.holds.len() {
            let hold = self.holds[i].clone();
            if matches!(hold.state, State::Held | State::Sent) && hold.expires <= mono {
                let ago = i64::try_from((mono - hold.expires) / 1_000).unwrap();
                let at = self.window_of(self.wall - ago).max(hold.born);
                let sent = hold.state == State::Sent;
                let sums = if sent { hold.sums } else { [0; 4] };
                self.charges.push(Charged {
                    user: hold.user,
                    run: hold.key.run,
                    life: hold.life,
                    at,
                    sums,
                    estimated: sums[0] + sums[1],
                });
                self.holds[i].state = State::Expired(self.charges.len() - 1);
            }
        }
    }

    fn is_in(&self, entity: Entity, user: usize, run: RunId, of: (usize, RunId, u32)) -> bool {
        match entity {
            Entity::Global => USERS[of.0].0 == USERS[user].0,
            Entity::User => of.0 == user,
            _ => of.0 == user && of.1 == run && of.2 == self.life(user, run),
        }
    }

    fn life(&self, user: usize, run: RunId) -> u32 {
        self.lives.get(&(user, run)).copied().unwrap_or(0)
    }

    fn used(&self, entity: Entity, user: usize, run: RunId) -> (Sums, u64) {
        let mut sums = [0; 4];
        let mut estimated = 0;
        for c in &self.charges {
            let here = self.is_in(entity, user, run, (c.user, c.run, c.life));
            if here && (entity == Entity::Run || self.counts(c.at)) {
                (0..4).for_each(|i| sums[i] += c.sums[i]);
                estimated += c.estimated;
            }
        }
        (sums, estimated)
    }

    fn open(&self) -> impl Iterator<Item = &Held> {
        self.holds.iter().filter(|h| matches!(h.state, State::Held | State::Sent))
    }

    fn held(&self, entity: Entity, user: usize, run: RunId) -> Sums {
        let mut sums = [0; 4];
        for h in self.open().filter(|h| self.is_in(entity, user, run, (h.user, h.key.run, h.life))) {
            (0..4).for_each(|i| sums[i] += h.sums[i]);
        }
        sums
    }

    fn limits(caps: &Caps) -> [Option<u64>; 5] {
        let wall = caps.wall_clock.map(|d| u64::try_from(d.as_micros()).unwrap());
        [caps.tokens, caps.input_tokens, caps.output_tokens, caps.cost.map(|c| c.0), wall]
    }

    fn five(sums: Sums) -> [u64; 5] {
        [sums[0] + sums[1], sums[0], sums[1], sums[2], sums[3]]
    }

    fn entities(&self) -> [(Entity, Caps); 3] {
        [
            (Entity::Global, self.config.global),
            (Entity::User, self.config.per_user),
            (Entity::Run, self.config.per_run),
        ]
    }

    /// The first cap that `add` does not fit into.
    fn blocked(&self, user: usize, run: RunId, add: Sums) -> Option<(Entity, usize)> {
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

    /// The warnings a change of `user` and `run` gives.
    fn warnings(&mut self, user: usize, run: RunId) -> Vec<(Entity, &'static str, u64)> {
        let now = self.window_of(self.wall);
        let mut out = Vec::new();
        let keys = ["tokens", "input_tokens", "output_tokens", "cost_usd", "wall_clock"];
        for (entity, caps) in self.entities() {
            if entity == Entity::Run {
                continue;
            }
            let used = Self::five(self.used(entity, user, run).0);
            let held = Self::five(self.held(entity, user, run));
            for (i, limit) in Self::limits(&caps).into_iter().enumerate() {
                let Some(limit) = limit else { continue };
                let level = used[i] + held[i];
                // A namespace goes by its first user.
                let first = USERS.iter().position(|(namespace, _)| *namespace == USERS[user].0).unwrap();
                let who = if entity == Entity::User { user } else { first };
                let before = self.warned.get(&(entity, who, keys[i]));
                if level >= 1 && level * 10 >= limit * 8 && before != Some(&now) {
                    self.warned.insert((entity, who, keys[i]), now);
                    out.push((entity, keys[i], level));
                }
            }
        }
        out
    }
}

fn agree(given: &[Warning], expected: &[(Entity, &'static str, u64)]) -> bool {
    let given: Vec<_> = given.iter().filter(|w| w.entity == Entity::Global).collect();
    let expected: Vec<_> = expected.iter().filter(|w| w.0 == Entity::Global).collect();
    given.len() == expected.len()
        && given.iter().zip(expected).all(|(g, e)| g.cap == format!("max_{}", e.1) && g.used == e.2)
}

struct World {
    ledger: Arc<dyn Ledger>,
    clock: Arc<Hand>,
    began: tokio::time::Instant,
    oracle: Oracle,
    /// Users that may be hot; late closes of evicted users are not corrected, so they are left out.
    small: Option<usize>,
    check_warnings: bool,
}

impl World {
    fn tick(&mut self) {
        let mono = u64::try_from(self.began.elapsed().as_nanos()).unwrap();
        self.oracle.tick(self.clock.now().as_micros(), mono);
    }

    async fn step(&mut self, op: Op) {
        let count = self.oracle.holds.len();
        let pick = |which: usize| (count > 0).then(|| which % count.max(1));
        match op {
            Op::Wait(seconds) => {
                tokio::time::advance(Duration::from_secs(seconds)).await;
                self.clock.0.fetch_add(i64::try_from(seconds).unwrap() * SECOND, Ordering::SeqCst);
            }
            Op::Jump(seconds) => {
                self.clock.0.fetch_add(seconds * SECOND, Ordering::SeqCst);
            }
            Op::EndRun { user, run } => {
                self.tick();
                let run = RunId::from_u128(run);
                self.ledger.end_run(&scope(user), run).await.unwrap();
                *self.oracle.lives.entry((user, run)).or_default() += 1;
            }
            Op::Reserve { user, run, seq, ask, price, wall, lease } => {
                let key = HoldKey::new(RunId::from_u128(run), seq);
                self.reserve(user, key, ask, price, wall, lease).await;
            }
            Op::Sent(which) => {
                let Some(i) = pick(which) else { return };
                self.tick();
                let Held { user, id, state, .. } = self.oracle.holds[i].clone();
                let answer = self.ledger.sent(&scope(user), id).await;
                if matches!(state, State::Held | State::Sent) {
                    answer.unwrap();
                    self.oracle.holds[i].state = State::Sent;
                } else {
                    assert_eq!(answer.unwrap_err().kind(), ErrorKind::NotFound);
                }
            }
            Op::Extend(which, lease) => {
                let Some(i) = pick(which) else { return };
                self.tick();
                let Held { user, id, state, .. } = self.oracle.holds[i].clone();
                let answer = self.ledger.extend(&scope(user), id, Duration::from_secs(lease)).await;
                if matches!(state, State::Held | State::Sent) {
                    answer.unwrap();
                    self.oracle.holds[i].expires = self.oracle.mono + lease * 1_000_000_000;
                } else {
                    assert_eq!(answer.unwrap_err().kind(), ErrorKind::NotFound);
                }
            }
            Op::Foreign { which, by } => {
                let Some(i) = pick(which) else { return };
                let Held { user, id, .. } = self.oracle.holds[i];
                if user != by {
                    let scope = scope(by);
                    let kind = |e: loomflow_core::Error| e.kind();
                    let lease = Duration::from_secs(1);
                    assert_eq!(self.ledger.sent(&scope, id).await.map_err(kind), Err(ErrorKind::NotFound));
                    assert_eq!(
                        self.ledger.extend(&scope, id, lease).await.map_err(kind),
                        Err(ErrorKind::NotFound)
                    );
                    let closed = self.ledger.close(&scope, id, Charge::Refund).await.map_err(kind);
                    assert_eq!(closed, Err(ErrorKind::NotFound));
                }
            }
            Op::Close { which, kind, used } => {
                let Some(i) = pick(which) else { return };
                self.tick();
                self.close(i, kind, used).await;
            }
        }
        self.compare().await;
    }

    async fn reserve(&mut self, user: usize, key: HoldKey, ask: [u64; 3], price: u8, wall: u64, lease: u64) {
        self.tick();
        let oracle = &mut self.oracle;
        let [input, output, min] = ask;
        let rates = [None, Some((0, 0)), Some((7_000, 3_000)), Some((999, 12_345))][usize::from(price)];
        let price = rates.map(|(i, o)| Price::per_token(i, o));
        let mut hold = if wall > 0 {
            Hold::wall_clock(key, Duration::from_secs(wall))
        } else {
            Hold::tokens(key, input, output).with_min_output(min).with_price(price)
        };
        hold.lease = Duration::from_secs(lease);
        let answer = self.ledger.reserve(&scope(user), &hold).await;
        let mut asked = hold;
        asked.min_output_tokens = asked.min_output_tokens.min(asked.output_tokens);
        asked.lease = Duration::ZERO;

        if let Some(open) = oracle.open().find(|h| h.user == user && h.key == key) {
            if open.asked != asked {
                assert_eq!(
                    answer.unwrap_err().kind(),
                    ErrorKind::Conflict,
                    "other amounts under a known key"
                );
                return;
            }
            let answer = answer.unwrap();
            let Reserve::Held(granted) = answer else { panic!("an open hold was refused") };
            assert_eq!((granted.id, granted.output_tokens), (open.id, open.sums[1]));
            assert!(granted.warnings.is_empty());
            return;
        }
        let answer = answer.unwrap();
        let mut busy: Vec<_> = oracle.open().map(|h| h.user).collect();
        busy.sort_unstable();
        busy.dedup();
        if self.small.is_some_and(|max| busy.len() >= max) && !busy.contains(&user) {
            assert!(matches!(answer, Reserve::Refused(_)), "more users are pinned than fit");
            return;
        }
        let costed = oracle.entities().into_iter().find(|(_, caps)| caps.cost.is_some());
        if let (Some((entity, _)), None, 0) = (costed, price, wall) {
            let Reserve::Refused(refusal) = answer else { panic!("an unknown price was granted") };
            assert_eq!((refusal.reason, refusal.entity), (RefusalReason::UnknownPrice, entity));
            return;
        }
        let cost = |out: u64| {
            let (i, o) = rates.unwrap_or((0, 0));
            (input * i + out * o).div_ceil(1_000)
        };
        let fits = |sums| oracle.blocked(user, key.run, sums).is_none();
        let best = if wall > 0 {
            let all: Vec<Sums> = (0..=wall * 1_000).rev().map(|ms| [0, 0, 0, ms * 1_000]).collect();
            all.into_iter().take_while(|s| s[3] >= 1_000).find(|s| fits(*s))
        } else {
            (min.min(output)..=output).rev().map(|out| [input, out, cost(out), 0]).find(|s| fits(*s))
        };
        match (answer, best) {
            (Reserve::Held(granted), Some(sums)) => {
                assert_eq!(granted.output_tokens, sums[1]);
                assert_eq!(granted.wall_clock, Duration::from_micros(sums[3]));
                let born = oracle.window_of(oracle.wall);
                let life = oracle.life(user, key.run);
                let expires = oracle.mono + lease * 1_000_000_000;
                let state = State::Held;
                oracle.holds.push(Held {
                    id: granted.id,
                    user,
                    key,
                    asked,
                    life,
                    sums,
                    state,
                    expires,
                    born,
                });
                let expected = oracle.warnings(user, key.run);
                assert!(
                    !self.check_warnings || agree(&granted.warnings, &expected),
                    "{granted:?} {expected:?}"
                );
            }
            (Reserve::Refused(refusal), None) => {
                let least = if wall > 0 {
                    [0, 0, 0, 1_000]
                } else {
                    let out = min.min(output);
                    [input, out, cost(out), 0]
                };
                let (entity, cap) = oracle.blocked(user, key.run, least).unwrap();
                assert_eq!((refusal.reason, refusal.entity), (RefusalReason::Exhausted, entity));
                let used = Oracle::five(oracle.used(entity, user, key.run).0)[cap];
                let held = Oracle::five(oracle.held(entity, user, key.run))[cap];
                assert_eq!(
                    (refusal.used, refusal.held, refusal.needed),
                    (used, held, Oracle::five(least)[cap])
                );
            }
            (answer, best) => panic!("answer {answer:?}, oracle {best:?}"),
        }
    }

    async fn close(&mut self, i: usize, kind: u8, used: [u64; 2]) {
        let hold = self.oracle.holds[i].clone();
        if self.small.is_some() && matches!(hold.state, State::Expired(_)) {
            return;
        }
        // Mostly within the hold, sometimes beyond it.
        let (input, output) = if kind == 0 {
            (used[0], used[1])
        } else {
            (used[0].min(hold.sums[0]), used[1].min(hold.sums[1]))
        };
        let cost = if kind == 0 { 11 } else { hold.sums[2].min(7) };
        let (charge, sums, estimated) = match kind {
            1 => (Charge::Refund, [0; 4], 0),
            2 => {
                let wall = hold.sums[3] / 2;
                (Charge::WallClock(Duration::from_micros(wall)), [0, 0, 0, wall], 0)
            }
            _ => {
                let usage = Usage::new(input, output).with_cost(NanoUsd(cost));
                let estimated = kind == 3;
                (
                    Charge::Used { usage, estimated },
                    [input, output, cost, 0],
                    if estimated { input + output } else { 0 },
                )
            }
        };
        let answer = self.ledger.close(&scope(hold.user), hold.id, charge).await.unwrap();
        let oracle = &mut self.oracle;
        let open = matches!(hold.state, State::Held | State::Sent);
        assert_eq!(answer.duplicate, !open);
        if hold.state == State::Closed {
            assert_eq!(answer.excess_tokens, 0);
            return;
        }
        assert_eq!(answer.excess_tokens, (sums[0] + sums[1]).saturating_sub(hold.sums[0] + hold.sums[1]));
        oracle.overran |= (0..4).any(|i| sums[i] > hold.sums[i]);
        if let State::Expired(charge) = hold.state {
            let before = oracle.charges[charge].sums;
            oracle.overran |= (0..4).any(|i| sums[i] > before[i]);
            (oracle.charges[charge].sums, oracle.charges[charge].estimated) = (sums, estimated);
        } else {
            let at = oracle.window_of(oracle.wall);
            let (user, run, life) = (hold.user, hold.key.run, hold.life);
            oracle.charges.push(Charged { user, run, life, at, sums, estimated });
        }
        oracle.holds[i].state = State::Closed;
        let expected = oracle.warnings(hold.user, hold.key.run);
        assert!(!self.check_warnings || agree(&answer.warnings, &expected), "{answer:?} {expected:?}");
    }

    async fn compare(&mut self) {
        self.tick();
        let none = RunId::from_u128(0);
        for user in 0..USERS.len() {
            let report = self.ledger.usage(&scope(user)).await.unwrap();
            let oracle = &self.oracle;
            let (used, estimated) = oracle.used(Entity::User, user, none);
            let held = oracle.held(Entity::User, user, none);
            assert_eq!(report.used, Usage::new(used[0], used[1]).with_cost(NanoUsd(used[2])), "{user}");
            assert_eq!(report.wall_clock, Duration::from_micros(used[3]));
            assert_eq!(report.estimated_tokens, estimated);
            assert_eq!(report.held_tokens, held[0] + held[1]);
            assert_eq!(report.open_holds, oracle.open().filter(|h| h.user == user).count() as u64);
            let limits: Vec<_> = Oracle::limits(&oracle.config.per_user).into_iter().enumerate().collect();
            let capped = limits.iter().filter(|(_, limit)| limit.is_some());
            assert_eq!(report.windows.len(), capped.clone().count());
            for (line, (i, limit)) in report.windows.iter().zip(capped) {
                assert_eq!(Some(line.limit), *limit);
                assert_eq!((line.used, line.held), (Oracle::five(used)[*i], Oracle::five(held)[*i]));
                assert!(oracle.overran || line.used + line.held <= line.limit, "{line:?}");
            }
        }
    }
}

fn run(config: BudgetConfig, small: Option<usize>, ops: Vec<Op>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let clock = Arc::new(Hand(AtomicI64::new(START)));
        let rolling = matches!(config.window, Window::Rolling(_));
        let ledger = StandardBudget::new(config.clone()).unwrap().with_clock(clock.clone());
        let oracle = Oracle {
            config,
            holds: Vec::new(),
            charges: Vec::new(),
            lives: HashMap::new(),
            wall: i64::MIN / 2,
            mono: 0,
            seen_mono: 0,
            warned: HashMap::new(),
            overran: false,
        };
        let began = tokio::time::Instant::now();
        // A rolling window arms its warnings by what leaves it: tests/ledger_warnings.rs.
        let check_warnings = !rolling;
        let mut world = World { ledger: Arc::new(ledger), clock, began, oracle, small, check_warnings };
        for op in ops {
            world.step(op).await;
        }
    });
}

fn config() -> impl Strategy<Value = BudgetConfig> {
    (caps(), caps(), caps(), window()).prop_map(|(global, per_user, per_run, window)| {
        let mut config = BudgetConfig::new().window(window);
        (config.global, config.per_user, config.per_run) = (global, per_user, per_run);
        config.global.tokens = config.global.tokens.map(|n| n * 3);
        config
    })
}

/// Few enough for the inner loop; `PROPTEST_CASES` asks for more.
#[allow(clippy::disallowed_methods, reason = "how long tests run is chosen by whoever runs them")]
fn cases() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 64;
    }
    config
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn answers_are_the_oracles(config in config(), ops in prop::collection::vec(op(), 1..60)) {
        run(config, None, ops);
    }

    /// Two hot users of six, evicted at any moment and by idleness: nothing that is answered changes.
    #[test]
    fn eviction_changes_no_answer(
        config in config(),
        idle in 1_u64..100,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let config = config.max_users(2).user_idle_ttl(Duration::from_secs(idle));
        run(config, Some(2), ops);
    }
}
