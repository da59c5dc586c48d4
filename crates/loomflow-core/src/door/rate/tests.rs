//! The line before a limiter, with the time standing still between its ticks.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::task::JoinHandle;

use super::*;
use crate::identity::{Identity, Namespace, UserId};
use crate::rate_limit::{RateLimitConfig, RateRules, Tats};
use crate::tenant_data::{Erase, Erased, ExportStream, TenantData, export_from};

/// A limiter of the rules' arithmetic and nothing else.
#[derive(Debug)]
struct Plain {
    rules: RateRules,
    since: Instant,
    users: Mutex<std::collections::BTreeMap<Owner, Tats>>,
    all: Mutex<Tats>,
    asked: AtomicU64,
}

#[async_trait]
impl TenantData for Plain {
    fn store_name(&self) -> &str {
        "rate_limit:plain"
    }

    async fn export(&self, _scope: &Scope) -> Result<ExportStream> {
        Ok(export_from(Vec::new()))
    }

    async fn forget(&self, _scope: &Scope, _what: &Erase) -> Result<Erased> {
        Ok(Erased::new("rate_limit:plain"))
    }
}

#[async_trait]
impl RateLimiter for Plain {
    async fn take(&self, scope: &Scope, ask: &Amounts) -> Result<Taken> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // A server's answer takes a moment.
        tokio::task::yield_now().await;
        let now = self.since.elapsed().as_nanos() as u64;
        let (mut users, mut all) = (self.users.lock().unwrap(), self.all.lock().unwrap());
        let user = users.entry(scope.owner().clone()).or_default();
        Ok(match self.rules.limits.take(user, &mut all, now, ask) {
            Ok(()) => Taken::Admitted,
            Err(limited) => Taken::Limited(limited),
        })
    }

    async fn settle(&self, _scope: &Scope, _taken: &Amounts, _used: &Amounts) -> Result<()> {
        Ok(())
    }

    fn rules(&self) -> &RateRules {
        &self.rules
    }
}

/// When, who, and which of theirs.
type Admitted = (u64, &'static str, u32);

struct Bench {
    gate: Arc<RateGate>,
    limiter: Arc<Plain>,
    began: Instant,
    admitted: Arc<Mutex<Vec<Admitted>>>,
}

impl Bench {
    fn new(config: RateLimitConfig) -> Self {
        let limiter = Arc::new(Plain {
            rules: config.on_limit(OnLimit::Wait).rules().unwrap(),
            since: Instant::now(),
            users: Mutex::default(),
            all: Mutex::default(),
            asked: AtomicU64::new(0),
        });
        let gate = Arc::new(RateGate::new(limiter.clone()));
        Self { gate, limiter, began: Instant::now(), admitted: Arc::default() }
    }

    fn millis(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Somebody who wants in, in a task of their own.
    fn enter(&self, user: &'static str, number: u32) -> JoinHandle<Result<bool>> {
        self.enter_within(user, number, Duration::from_secs(3_600))
    }

    fn enter_within(&self, user: &'static str, number: u32, patience: Duration) -> JoinHandle<Result<bool>> {
        let (gate, began, admitted) = (self.gate.clone(), self.began, self.admitted.clone());
        tokio::spawn(async move {
            let passed = gate.pass(&scope(user), &Amounts::run(), patience).await;
            if passed.is_ok() {
                admitted.lock().unwrap().push((began.elapsed().as_millis() as u64, user, number));
            }
            passed
        })
    }

    fn admitted(&self) -> Vec<(u64, &'static str, u32)> {
        self.admitted.lock().unwrap().clone()
    }

    fn is_empty(&self) -> bool {
        self.gate.lines.sizes() == (0, 0)
    }
}

fn scope(user: &str) -> Scope {
    let identity = Identity::User(UserId::new(user).unwrap());
    Scope::mint(Owner::new(Namespace::default(), identity), Epoch::ZERO)
}

async fn settle_down() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn ten_a_second(burst: u64) -> RateLimitConfig {
    RateLimitConfig::new().per_user_rps(10.0).burst(burst).max_wait(Duration::from_secs(60))
}

#[tokio::test(start_paused = true)]
async fn first_come_first_served_at_the_rate() {
    let bench = Bench::new(ten_a_second(2));
    let mut all = Vec::new();
    for number in 0..12 {
        all.push(bench.enter("alice", number));
        settle_down().await;
    }
    for waiter in all {
        waiter.await.unwrap().unwrap();
    }
    let expected: Vec<_> = (0..12).map(|n: u32| (u64::from(n.saturating_sub(1)) * 100, "alice", n)).collect();
    assert_eq!(bench.admitted(), expected);
    // One try for each that got in at once; the others ask when it is their turn, and once more when it is time.
    assert!(bench.limiter.asked.load(Ordering::SeqCst) <= 2 + 1 + 2 * 10, "no herd and no busy loop");
    assert!(bench.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_does_not_overtake() {
    let bench = Bench::new(ten_a_second(1));
    bench.enter("alice", 0).await.unwrap().unwrap();
    let waits = bench.enter("alice", 1);
    settle_down().await;
    // It fits now, but somebody came before.
    tokio::time::advance(Duration::from_millis(100)).await;
    bench.enter("alice", 2).await.unwrap().unwrap();
    waits.await.unwrap().unwrap();
    assert_eq!(bench.admitted(), [(0, "alice", 0), (100, "alice", 1), (200, "alice", 2)]);
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_away_leaves_the_line_and_takes_nothing() {
    let bench = Bench::new(ten_a_second(1));
    bench.enter("alice", 0).await.unwrap().unwrap();
    let mut all = Vec::new();
    for number in 1..=6 {
        all.push(bench.enter("alice", number));
        settle_down().await;
    }
    // The first in line, one in the middle, and the last.
    for gone in [0, 2, 5] {
        all[gone].abort();
    }
    for (n, waiter) in all.into_iter().enumerate() {
        assert_eq!(waiter.await.is_err(), [0, 2, 5].contains(&n));
    }
    assert_eq!(bench.admitted(), [(0, "alice", 0), (100, "alice", 2), (200, "alice", 4), (300, "alice", 5)]);
    assert!(bench.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_in_vain_or_beyond_the_deadline() {
    let bench = Bench::new(ten_a_second(1).max_wait(Duration::from_millis(250)));
    bench.enter("alice", 0).await.unwrap().unwrap();
    let all: Vec<_> = (1..=4).map(|number| bench.enter("alice", number)).collect();
    let hurried = bench.enter_within("alice", 9, Duration::from_millis(30));
    let mut late = 0;
    for waiter in all {
        if let Err(error) = waiter.await.unwrap() {
            let limited = error.limited().unwrap();
            assert_eq!((limited.limit, error.kind()), ("per_user_rps", crate::ErrorKind::RateLimited));
            assert!(error.retry_after().is_some_and(|after| after <= Duration::from_millis(100)));
            late += 1;
        }
    }
    assert_eq!((late, bench.admitted().len()), (2, 3));
    assert!(bench.millis() <= 250);
    hurried.await.unwrap().unwrap_err();
    // Alone, whoever cannot be served in time is told so at once.
    let since = bench.millis();
    let error = bench.enter_within("alice", 9, Duration::from_millis(20)).await.unwrap().unwrap_err();
    assert_eq!((error.limited().unwrap().reason, bench.millis()), (LimitReason::Rate, since));
    assert!(bench.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_line_is_bounded_by_user_and_in_all() {
    let bench = Bench::new(ten_a_second(1).max_waiting(2, 3));
    for user in ["alice", "bob", "carol"] {
        bench.enter(user, 0).await.unwrap().unwrap();
    }
    let mut waiting = Vec::new();
    for (user, fits) in
        [("alice", true), ("alice", true), ("alice", false), ("bob", true), ("bob", false), ("carol", false)]
    {
        let mut enters = bench.enter(user, 1);
        settle_down().await;
        match (&mut enters).now_or_never() {
            None => waiting.push(enters),
            Some(ended) => {
                let error = ended.unwrap().unwrap_err();
                assert_eq!(error.limited().unwrap().reason, LimitReason::Queue);
                assert!(!fits && error.retry_after().is_some());
                continue;
            }
        }
        assert!(fits, "{user}");
    }
    for waiter in waiting {
        waiter.await.unwrap().unwrap();
    }
    assert!(bench.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_common_limit_is_served_in_order_and_no_user_starves_another() {
    let config = RateLimitConfig::new().global_rps(10.0).global_burst(1).max_wait(Duration::from_secs(60));
    let bench = Bench::new(config);
    let mut all = Vec::new();
    for number in 0..5 {
        all.push(bench.enter("alice", number));
        settle_down().await;
    }
    for number in 0..2 {
        all.push(bench.enter("bob", number));
        settle_down().await;
    }
    for waiter in all {
        waiter.await.unwrap().unwrap();
    }
    let order: Vec<_> = bench.admitted().into_iter().map(|(_, user, n)| (user, n)).collect();
    let rank = |who| order.iter().position(|other| *other == who).unwrap();
    assert!(rank(("bob", 0)) <= 2 && rank(("bob", 1)) <= 4, "{order:?}");
    for user in ["alice", "bob"] {
        let own: Vec<u32> = order.iter().filter(|(who, _)| *who == user).map(|(_, n)| *n).collect();
        assert!(own.is_sorted(), "{order:?}");
    }
    let times: Vec<u64> = bench.admitted().into_iter().map(|(at, ..)| at).collect();
    assert_eq!(times, [0, 100, 200, 300, 400, 500, 600]);
    assert!(bench.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_user_s_own_limit_keeps_nobody_from_the_common_one() {
    let config = ten_a_second(1).global_rps(1_000.0).global_burst(2);
    let bench = Bench::new(config);
    bench.enter("alice", 0).await.unwrap().unwrap();
    let slow = bench.enter("alice", 1);
    settle_down().await;
    bench.enter("bob", 0).await.unwrap().unwrap();
    bench.enter("carol", 0).await.unwrap().unwrap();
    assert!(bench.millis() <= 2, "{:?}", bench.admitted());
    slow.await.unwrap().unwrap();
    assert_eq!(bench.admitted().last(), Some(&(100, "alice", 1)));
}

#[tokio::test(start_paused = true)]
async fn what_never_fits_is_refused_at_once_and_for_good() {
    let bench = Bench::new(RateLimitConfig::new().per_user_tokens_per_minute(100));
    let asked = bench.gate.pass(&scope("alice"), &Amounts::model_call(101), Duration::from_secs(9)).await;
    let error = asked.unwrap_err();
    assert_eq!(error.limited().unwrap().reason, LimitReason::TooLarge);
    assert!(!error.is_retryable() && error.retry_after().is_none());
    assert!(error.to_string().contains("which is 100"), "{error}");
    bench.gate.pass(&scope("alice"), &Amounts::model_call(100), Duration::from_secs(9)).await.unwrap();
}
