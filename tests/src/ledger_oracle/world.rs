//! A ledger and the oracle, side by side: each step is done to both, and what they answer must agree.

use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::{
    BudgetConfig, Charge, Entity, Epoch, Error, ErrorKind, Hold, HoldKey, Identity, Ledger, Namespace,
    NanoUsd, Price, RefusalReason, Reserve, RunId, Scope, Timestamp, Usage, UserId, Warning, Window, danger,
};

use super::ops::{Op, USERS};
use super::oracle::{Held, Oracle, SECOND, State, Sums};
use super::stores::{Leases, Manner, open};

/// Ten seconds before an hour ends, an hour before a day and a month do.
const START: &str = "2024-02-29T22:59:50Z";

/// A charge, what it counts, and how much of it is estimated.
type Bill = (Charge, Sums, u64);

pub(super) struct World {
    pub(super) ledger: Arc<dyn Ledger>,
    clock: Arc<ManualClock>,
    began: tokio::time::Instant,
    pub(super) oracle: Oracle,
    url: String,
    pub(super) manner: Manner,
    /// Users that may be hot; estimates of evicted users are not kept, so they are left out.
    pub(super) hot_users: Option<usize>,
    prefix: String,
    steps: usize,
    /// Whom the step was about.
    pub(super) about: usize,
}

impl World {
    pub(super) async fn begin(
        url: &str,
        manner: Manner,
        config: BudgetConfig,
        hot_users: Option<usize>,
    ) -> Self {
        let clock = Arc::new(ManualClock::new(START.parse::<Timestamp>().unwrap()));
        let began = tokio::time::Instant::now();
        let ledger = open(url, config.clone(), clock.clone()).await.unwrap();
        let oracle = Oracle::new(config, manner.leases);
        let prefix = format!("oracle-{:016x}-", rand::random::<u64>());
        let url = url.to_owned();
        Self { ledger, clock, began, oracle, url, manner, hot_users, prefix, steps: 0, about: 0 }
    }

    pub(super) fn scope(&self, user: usize) -> Scope {
        let (namespace, name) = USERS[user];
        let namespace = Namespace::new(format!("{}{namespace}", self.prefix)).unwrap();
        danger::assume_scope(namespace, Identity::User(UserId::new(name).unwrap()), Epoch::ZERO)
    }

    pub(super) fn tick(&mut self) {
        let mono = i64::try_from(self.began.elapsed().as_micros()).unwrap();
        self.oracle.tick(self.clock.read().as_micros(), mono);
    }

    pub(super) async fn step(&mut self, op: Op) {
        match op {
            Op::Twice(op) => {
                self.one(&op).await;
                self.one(&op).await;
            }
            op => self.one(&op).await,
        }
        self.steps += 1;
        let everybody = self.steps.is_multiple_of(self.manner.every);
        self.compare(everybody).await;
    }

    pub(super) async fn end(&mut self) {
        self.compare(true).await;
    }

    async fn one(&mut self, op: &Op) {
        let count = self.oracle.holds.len();
        let pick = |which: usize| (count > 0).then(|| which % count.max(1));
        self.tick();
        match *op {
            Op::Twice(_) => {}
            Op::Wait(seconds) => {
                if self.manner.leases == Leases::Monotonic {
                    tokio::time::advance(Duration::from_secs(seconds)).await;
                }
                self.clock.advance(Duration::from_secs(seconds));
            }
            Op::Jump(seconds) => self.jump(seconds).await,
            Op::EndRun { user, run } => {
                self.about = user;
                let run = RunId::from_u128(run);
                self.ledger.end_run(&self.scope(user), run).await.unwrap();
                *self.oracle.lives.entry((user, run)).or_default() += 1;
            }
            Op::Reopen if self.manner.durable => {
                self.ledger = open(&self.url, self.oracle.config.clone(), self.clock.clone()).await.unwrap();
            }
            Op::Reopen => {}
            Op::Reserve { user, run, seq, ask, price, wall, lease } => {
                self.about = user;
                let key = HoldKey::new(RunId::from_u128(run), seq);
                let rates =
                    [None, Some((0, 0)), Some((7_000, 3_000)), Some((999, 12_345))][usize::from(price)];
                let [input, output, min] = ask;
                let hold = if wall > 0 {
                    Hold::wall_clock(key, Duration::from_secs(wall))
                } else {
                    let price = rates.map(|(i, o)| Price::per_token(i, o));
                    Hold::tokens(key, input, output).with_min_output(min).with_price(price)
                };
                self.reserve(user, hold.with_lease(Duration::from_secs(lease)), rates).await;
            }
            Op::Sent(which) | Op::Extend(which, _) => {
                let Some(i) = pick(which) else { return };
                self.touch(i, op).await;
            }
            Op::Foreign { which, by } => {
                let Some(i) = pick(which) else { return };
                self.foreign(i, by).await;
            }
            Op::Close { which, kind, used } => {
                let Some(i) = pick(which) else { return };
                let hold = self.oracle.holds[i].clone();
                self.about = hold.user;
                let late = matches!(hold.state, State::Estimated { .. });
                if self.hot_users.is_none() || !late {
                    self.close(i, bill(&hold, kind, used)).await;
                }
            }
            Op::Reconcile { which, used } => {
                let Some(i) = pick(which) else { return };
                if self.hot_users.is_none() {
                    self.reconcile(i, used).await;
                }
            }
        }
    }

    /// Sets the clock. Before it is set back everybody spends a token, so that every counter has seen the present: a counter
    /// that nobody touched could not know of it.
    async fn jump(&mut self, seconds: i64) {
        if seconds < 0 && self.manner.leases == Leases::Wall {
            for user in 0..USERS.len() {
                let key = HoldKey::new(RunId::from_u128(99), 0);
                let hold = Hold::tokens(key, 0, 0).with_price(Some(Price::per_token(0, 0)));
                let i = self.reserve(user, hold, Some((0, 0))).await.expect("nothing is asked for");
                let usage = Usage::new(1, 0);
                self.close(i, (Charge::Used { usage, estimated: false }, [1, 0, 0, 0], 0)).await;
            }
        }
        self.clock.set(Timestamp::from_micros(self.clock.read().as_micros() + seconds * SECOND));
    }

    async fn touch(&mut self, i: usize, op: &Op) {
        let hold = self.oracle.holds[i].clone();
        self.about = hold.user;
        let scope = self.scope(hold.user);
        let answer = match op {
            Op::Extend(_, lease) => self.ledger.extend(&scope, hold.id, Duration::from_secs(*lease)).await,
            _ => self.ledger.sent(&scope, hold.id).await,
        };
        if !hold.is_open() {
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::NotFound, "{op:?}");
            return;
        }
        answer.unwrap();
        match op {
            Op::Extend(_, lease) => {
                self.oracle.holds[i].expires =
                    self.oracle.lease_now + i64::try_from(*lease).unwrap() * SECOND;
            }
            _ => self.oracle.holds[i].state = State::Sent,
        }
    }

    async fn foreign(&mut self, i: usize, by: usize) {
        let (user, id) = (self.oracle.holds[i].user, self.oracle.holds[i].id);
        if user == by {
            return;
        }
        self.about = user;
        let (scope, kind) = (self.scope(by), |e: Error| e.kind());
        let lease = Duration::from_secs(1);
        let no = ErrorKind::NotFound;
        assert_eq!(self.ledger.sent(&scope, id).await.map_err(kind), Err(no));
        assert_eq!(self.ledger.extend(&scope, id, lease).await.map_err(kind), Err(no));
        assert_eq!(self.ledger.close(&scope, id, Charge::Refund).await.map_err(kind), Err(no));
        assert_eq!(self.ledger.reconcile(&scope, id, Usage::new(1, 1)).await.map_err(kind), Err(no));
    }

    /// Reserves, and answers which hold of the oracle's it is, if one is granted.
    async fn reserve(&mut self, user: usize, hold: Hold, rates: Option<(u64, u64)>) -> Option<usize> {
        let answer = self.ledger.reserve(&self.scope(user), &hold).await;
        let key = hold.key;
        let mut asked = hold;
        asked.min_output_tokens = asked.min_output_tokens.min(asked.output_tokens);
        asked.lease = Duration::ZERO;
        if let Some(i) = self.oracle.holds.iter().position(|h| h.is_open() && h.user == user && h.key == key)
        {
            let known = &self.oracle.holds[i];
            if known.asked != asked {
                assert_eq!(
                    answer.unwrap_err().kind(),
                    ErrorKind::Conflict,
                    "other amounts under a known key"
                );
                return None;
            }
            let Reserve::Held(granted) = answer.unwrap() else { panic!("an open hold was refused") };
            assert_eq!((granted.id, granted.output_tokens), (known.id, known.sums[1]));
            assert!(granted.warnings.is_empty());
            return Some(i);
        }
        let answer = answer.unwrap();
        let mut busy: Vec<_> = self.oracle.open().map(|h| h.user).collect();
        busy.sort_unstable();
        busy.dedup();
        if self.hot_users.is_some_and(|max| busy.len() >= max) && !busy.contains(&user) {
            assert!(matches!(answer, Reserve::Refused(_)), "more users are pinned than fit");
            return None;
        }
        let costed = self.oracle.entities().into_iter().find(|(_, caps)| caps.cost.is_some());
        if let (Some((entity, _)), None, true) = (costed, hold.price, hold.is_for_tokens()) {
            let Reserve::Refused(refusal) = answer else { panic!("an unknown price was granted") };
            assert_eq!((refusal.reason, refusal.entity), (RefusalReason::UnknownPrice, entity));
            return None;
        }
        let options = options(&asked, rates);
        let best = options.iter().copied().find(|sums| self.oracle.blocked(user, key.run, *sums).is_none());
        match (answer, best) {
            (Reserve::Held(granted), Some(sums)) => {
                assert_eq!(granted.output_tokens, sums[1], "the most that fits");
                assert_eq!(granted.wall_clock, Duration::from_micros(sums[3]));
                let oracle = &mut self.oracle;
                let (born, life) = (oracle.window_of(oracle.wall), oracle.life(user, key.run));
                let expires = oracle.lease_now + i64::try_from(hold.lease.as_micros()).unwrap();
                let (id, state) = (granted.id, State::Held);
                oracle.holds.push(Held { id, user, key, asked, life, sums, state, expires, born });
                self.warned(user, &granted.warnings);
                Some(self.oracle.holds.len() - 1)
            }
            (Reserve::Refused(refusal), None) => {
                let least = *options.last().expect("there is a least that is asked for");
                let (entity, cap) = self.oracle.blocked(user, key.run, least).expect("it does not fit");
                assert_eq!((refusal.reason, refusal.entity), (RefusalReason::Exhausted, entity));
                let used = Oracle::five(self.oracle.used(entity, user, key.run).0)[cap];
                let held = Oracle::five(self.oracle.held(entity, user, key.run))[cap];
                let needed = Oracle::five(least)[cap];
                assert_eq!((refusal.used, refusal.held, refusal.needed), (used, held, needed));
                None
            }
            (answer, best) => panic!("the ledger answers {answer:?}, the oracle {best:?}"),
        }
    }

    async fn close(&mut self, i: usize, (charge, sums, estimated): Bill) {
        let hold = self.oracle.holds[i].clone();
        let answer = self.ledger.close(&self.scope(hold.user), hold.id, charge).await.unwrap();
        assert_eq!(answer.duplicate, !hold.is_open());
        let is_estimate = matches!(charge, Charge::Used { estimated: true, .. });
        let charge = match hold.state {
            State::Closed | State::Estimated { expired: false, .. } => {
                assert_eq!((answer.excess_tokens, answer.warnings), (0, Vec::new()), "nothing was counted");
                return;
            }
            State::Estimated { charge, expired: true } => {
                self.oracle.correct(charge, sums, estimated);
                charge
            }
            State::Held | State::Sent => {
                let at = self.oracle.window_of(self.oracle.wall);
                self.oracle.charge(&hold, at, sums, estimated)
            }
        };
        assert_eq!(answer.excess_tokens, (sums[0] + sums[1]).saturating_sub(hold.sums[0] + hold.sums[1]));
        self.oracle.holds[i].state =
            if is_estimate { State::Estimated { charge, expired: false } } else { State::Closed };
        self.warned(hold.user, &answer.warnings);
    }

    async fn reconcile(&mut self, i: usize, used: [u64; 2]) {
        let hold = self.oracle.holds[i].clone();
        self.about = hold.user;
        let usage = Usage::new(used[0], used[1]).with_cost(NanoUsd(7));
        let answer = self.ledger.reconcile(&self.scope(hold.user), hold.id, usage).await;
        match hold.state {
            State::Held | State::Sent => assert_eq!(answer.unwrap_err().kind(), ErrorKind::Conflict),
            State::Closed => assert!(answer.unwrap().duplicate, "it is no estimate any more"),
            State::Estimated { charge, .. } => {
                let answer = answer.unwrap();
                assert!(!answer.duplicate);
                let excess = (used[0] + used[1]).saturating_sub(hold.sums[0] + hold.sums[1]);
                assert_eq!(answer.excess_tokens, excess);
                // An invoice says nothing of time.
                let wall = self.oracle.charges[charge].sums[3];
                self.oracle.correct(charge, [used[0], used[1], 7, wall], 0);
                self.oracle.holds[i].state = State::Closed;
                self.warned(hold.user, &answer.warnings);
            }
        }
    }

    /// Compares the warnings that a change gave.
    fn warned(&mut self, user: usize, given: &[Warning]) {
        let expected = self.oracle.warnings(user);
        // A rolling window arms its warnings by what leaves it, which is a matter of one ledger's own tests.
        if matches!(self.oracle.config.window, Window::Rolling(_)) {
            return;
        }
        let judged = |entity: Entity| match entity {
            Entity::Global => true,
            Entity::User => self.manner.remembers_warnings,
            _ => false,
        };
        let prefix = |entity| if entity == Entity::Global { "max" } else { "per_user_max" };
        let given: Vec<_> =
            given.iter().filter(|w| judged(w.entity)).map(|w| (w.cap.to_owned(), w.used)).collect();
        let expected: Vec<_> = expected
            .iter()
            .filter(|w| judged(w.0))
            .map(|w| (format!("{}_{}", prefix(w.0), w.1), w.2))
            .collect();
        assert_eq!(given, expected, "a cap warns once in its window");
    }
}

/// All that would do for a hold, the most first.
fn options(asked: &Hold, rates: Option<(u64, u64)>) -> Vec<Sums> {
    if !asked.is_for_tokens() {
        let most = u64::try_from(asked.wall_clock.as_millis()).unwrap();
        return (1..=most).rev().map(|ms| [0, 0, 0, ms * 1_000]).collect();
    }
    let (input, output) = (asked.input_tokens, asked.output_tokens);
    let (i, o) = rates.unwrap_or((0, 0));
    let cost = |out: u64| (input * i + out * o).div_ceil(1_000);
    (asked.min_output_tokens..=output).rev().map(|out| [input, out, cost(out), 0]).collect()
}

/// A bill for a hold: mostly within it, sometimes beyond it.
fn bill(hold: &Held, kind: u8, used: [u64; 2]) -> Bill {
    let within = |i: usize| if kind == 0 { used[i] } else { used[i].min(hold.sums[i]) };
    let (input, output) = (within(0), within(1));
    let cost = if kind == 0 { 11 } else { hold.sums[2].min(7) };
    match kind {
        1 => (Charge::Refund, [0; 4], 0),
        2 => {
            let wall = hold.sums[3] / 2;
            (Charge::WallClock(Duration::from_micros(wall)), [0, 0, 0, wall], 0)
        }
        _ => {
            let usage = Usage::new(input, output).with_cost(NanoUsd(cost));
            let estimated = kind == 3;
            let tokens = if estimated { input + output } else { 0 };
            (Charge::Used { usage, estimated }, [input, output, cost, 0], tokens)
        }
    }
}
