//! The scripts against the rules in core, on random histories: every answer is the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use loomflow_conformance::doubles::ManualClock;
use loomflow_core::rules::quota::{Account, Books, Cell};
use loomflow_core::{
    BudgetConfig, Caps, Charge, Clock as _, ErrorKind, EstimatedCharge, Granted, Hold, HoldId, HoldKey,
    Ledger, NanoUsd, Price, Refusal, Reserve, Result, RunId, Scope, Timestamp, Usage, Window,
};
use loomflow_ledger_redis::RedisLedger;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::common::{fresh_prefix, open, url, user_in};

const USERS: [(&str, &str); 5] = [("app", "u"), ("app", "u1"), ("app", "U"), ("ap", "pu"), ("ap", "u")];
const SECOND: i64 = 1_000_000;

/// The rules in core over maps.
struct Model {
    books: Books,
    accounts: BTreeMap<usize, Account>,
    all: HashMap<&'static str, Cell>,
    drawn: Vec<(usize, HoldId)>,
}

impl Model {
    /// What every script begins with.
    fn sweep(&mut self, namespace: &str, now: Timestamp) {
        for (user, account) in &mut self.accounts {
            if USERS[*user].0 == namespace {
                account.expire(&self.books, now, self.all.get_mut(namespace).unwrap());
            }
        }
    }

    fn with<T>(
        &mut self,
        user: usize,
        now: Timestamp,
        act: impl FnOnce(&mut Account, &Books, &mut Cell) -> T,
    ) -> T {
        let namespace = USERS[user].0;
        let known = self.all.contains_key(namespace);
        self.all.entry(namespace).or_insert_with(|| Cell::new(self.books.periods.number(now)));
        self.sweep(namespace, now);
        let account = self.accounts.entry(user).or_insert_with(|| Account::new(&self.books, now));
        let out = act(account, &self.books, self.all.get_mut(namespace).unwrap());
        // Whoever used nothing is not kept, and looking makes nobody known. Runs have keys of their own.
        for account in self.accounts.values_mut() {
            if account.holds.is_empty() && is_blank(&account.user) {
                account.user = Cell::new(i64::MIN);
            }
        }
        if !known && is_blank(&self.all[namespace]) {
            self.all.remove(namespace);
        }
        out
    }
}

fn is_blank(cell: &Cell) -> bool {
    cell.warned == 0 && cell.held == Default::default() && cell.parts().is_empty()
}

#[derive(Debug, PartialEq)]
enum Answer {
    Held(Granted),
    Refused(Refusal),
    Failed(ErrorKind),
}

fn answer(reserve: Result<Reserve>) -> Answer {
    match reserve {
        Ok(Reserve::Held(granted)) => Answer::Held(granted),
        Ok(Reserve::Refused(refusal)) => Answer::Refused(*refusal),
        Err(e) => Answer::Failed(e.kind()),
    }
}

fn caps(rng: &mut StdRng, scale: u64) -> Caps {
    let mut cap = |share: f64, most: u64| rng.random_bool(share).then(|| rng.random_range(0..most * scale));
    let mut caps = Caps::default();
    (caps.tokens, caps.input_tokens, caps.output_tokens) = (cap(0.5, 250), cap(0.2, 200), cap(0.2, 200));
    caps.cost = cap(0.3, 2_000).map(NanoUsd);
    caps.wall_clock = cap(0.2, 100).map(Duration::from_secs);
    caps
}

fn budget(rng: &mut StdRng) -> BudgetConfig {
    let windows = [
        Window::Lifetime,
        Window::Hour,
        Window::Day,
        Window::Month,
        Window::Rolling(Duration::from_secs(60)),
        Window::Rolling(Duration::from_secs(3_601)),
    ];
    let mut budget = BudgetConfig::new().window(windows[rng.random_range(0..windows.len())]);
    budget = budget.soft_warning_at([0.5, 0.8, 1.0][rng.random_range(0..3)]);
    if rng.random_bool(0.6) {
        budget.global = caps(rng, 3);
    }
    budget.per_user = caps(rng, 1);
    if rng.random_bool(0.4) {
        budget.per_run = caps(rng, 1);
    }
    budget
}

fn hold(rng: &mut StdRng) -> Hold {
    let key = HoldKey::new(RunId::from_u128(rng.random_range(0..3)), rng.random_range(0..4));
    let lease = Duration::from_secs(rng.random_range(0..60));
    if rng.random_bool(0.15) {
        return Hold::wall_clock(key, Duration::from_secs(rng.random_range(1..40))).with_lease(lease);
    }
    let price = match rng.random_range(0..4) {
        0 => None,
        1 => Some(Price::per_token(1_000, 3_500)),
        2 => Some(Price::per_token(777, 13).with_cache(1, 2_001)),
        _ => Some(Price::default()),
    };
    let hold = Hold::tokens(key, rng.random_range(0..40), rng.random_range(0..60));
    hold.with_price(price).with_min_output(rng.random_range(0..10)).with_lease(lease)
}

fn usage(rng: &mut StdRng) -> Usage {
    let usage = Usage::new(rng.random_range(0..40), rng.random_range(0..60));
    usage
        .with_cache(rng.random_range(0..9), rng.random_range(0..9))
        .with_cost(NanoUsd(rng.random_range(0..99)))
}

async fn history(seed: u64, url: &str) {
    let mut rng = StdRng::seed_from_u64(seed);
    let budget = budget(&mut rng);
    let start = Timestamp::from_micros(
        1_700_000_000 * SECOND / (86_400 * SECOND) * (86_400 * SECOND) + 39_590 * SECOND,
    );
    let clock = Arc::new(ManualClock::new(start));
    let ledger = open(url, &fresh_prefix(), budget.clone()).await.with_clock(clock.clone());
    let mut model = Model {
        books: Books::new(&budget),
        accounts: BTreeMap::new(),
        all: HashMap::new(),
        drawn: Vec::new(),
    };
    for step in 0..50 {
        let user = rng.random_range(0..USERS.len());
        let scope = user_in(USERS[user].0, USERS[user].1, 0);
        let at = format!("seed {seed}, step {step}, {budget:?}");
        turn(&mut rng, &clock);
        let now = clock.now();
        match rng.random_range(0..20) {
            0..8 => {
                let hold = hold(&mut rng);
                let got = answer(ledger.reserve(&scope, &hold).await);
                let id = if let Answer::Held(granted) = &got { granted.id } else { HoldId::from_u128(1) };
                let expected =
                    model.with(user, now, |account, books, all| account.reserve(books, now, all, id, &hold));
                assert_eq!(got, answer(expected), "{at}: {hold:?}");
                if let Answer::Held(granted) = got {
                    model.drawn.push((user, granted.id));
                }
            }
            8..16 => one_hold(&mut rng, &ledger, &mut model, now, &at).await,
            16 => {
                let run = RunId::from_u128(rng.random_range(0..3));
                ledger.end_run(&scope, run).await.unwrap();
                model.with(user, now, |account, _, _| account.runs.remove(&run));
            }
            _ => look(&ledger, &mut model, user, &scope, now, &at).await,
        }
    }
}

fn turn(rng: &mut StdRng, clock: &ManualClock) {
    match rng.random_range(0..10) {
        0..4 => clock.advance(Duration::from_millis(rng.random_range(0..30_000))),
        4 => clock.advance(Duration::from_secs(rng.random_range(0..8_000))),
        5 => {
            let back = rng.random_range(0..100 * SECOND);
            clock.set(Timestamp::from_micros(clock.now().as_micros() - back));
        }
        _ => {}
    }
}

/// Something is done to a hold that was granted once.
async fn one_hold(rng: &mut StdRng, ledger: &RedisLedger, model: &mut Model, now: Timestamp, at: &str) {
    if model.drawn.is_empty() {
        return;
    }
    let newest = model.drawn.len().saturating_sub(6);
    let from = if rng.random_bool(0.8) { newest } else { 0 };
    let (user, id) = model.drawn[rng.random_range(from..model.drawn.len())];
    let scope = user_in(USERS[user].0, USERS[user].1, 0);
    let kind = |r: Result<()>| r.map_err(|e| e.kind());
    match rng.random_range(0..8) {
        0 | 1 => {
            let expected = model.with(user, now, |account, books, all| account.sent(books, now, all, id));
            assert_eq!(kind(ledger.sent(&scope, id).await), kind(expected), "{at}: sent");
        }
        2 => {
            let lease = Duration::from_secs(rng.random_range(0..60));
            let expected =
                model.with(user, now, |account, books, all| account.extend(books, now, all, id, lease));
            assert_eq!(kind(ledger.extend(&scope, id, lease).await), kind(expected), "{at}: extend");
        }
        3 => {
            let actual = usage(rng);
            let expected = model
                .with(user, now, |account, books, all| account.reconcile(books, now, all, id, actual, true));
            let got = ledger.reconcile(&scope, id, actual).await;
            assert_eq!(got.map_err(|e| e.kind()), expected.map_err(|e| e.kind()), "{at}: reconcile");
        }
        which => {
            let charge = match which {
                4 => Charge::Refund,
                5 => Charge::WallClock(Duration::from_millis(rng.random_range(0..40_000))),
                _ => Charge::Used { usage: usage(rng), estimated: rng.random_bool(0.4) },
            };
            let expected = model
                .with(user, now, |account, books, all| account.close(books, now, all, id, &charge, true));
            let got = ledger.close(&scope, id, charge).await;
            assert_eq!(got.map_err(|e| e.kind()), expected.map_err(|e| e.kind()), "{at}: {charge:?}");
        }
    }
}

async fn look(ledger: &RedisLedger, model: &mut Model, user: usize, scope: &Scope, now: Timestamp, at: &str) {
    let expected = model.with(user, now, |account, books, _| account.report(books, now));
    assert_eq!(ledger.usage(scope).await.unwrap(), expected, "{at}: usage");
    let mut expected = model.with(user, now, |account, _, _| account.estimates());
    let owned = ledger.estimates(scope).await.unwrap();
    let mut got: Vec<EstimatedCharge> = owned.into_iter().map(|one| one.open(scope).unwrap()).collect();
    got.sort_by_key(|one| one.hold);
    expected.sort_by_key(|one| one.hold);
    assert_eq!(got, expected, "{at}: estimates");
    if !model.books.global.is_empty() {
        let blank = Cell::new(model.books.periods.number(now));
        let all = model.all.get(USERS[user].0).unwrap_or(&blank);
        let expected = Account::report_global(&model.books, now, all);
        let got = ledger.namespace_usage(scope).await.unwrap();
        assert_eq!(
            (got.used, got.held_tokens, got.windows),
            (expected.used, expected.held_tokens, expected.windows),
            "{at}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scripts_answer_as_the_rules_in_core_do() {
    let url = url("redis-plain");
    for seed in 0..400 {
        history(seed, &url).await;
    }
}
