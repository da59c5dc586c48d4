//! One round: a namespace with a cap, workers that use it up, everything that can go wrong on the way, and the judgement.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use loomflow_core::danger::assume_scope;
use loomflow_core::{BudgetConfig, Epoch, Identity, Ledger, Namespace, Result, Scope, UserId};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::children::{Begin, ProviderProcess, Tell, Worker};
use super::judge::{Evidence, asked, judge};
use super::provider::{Manners, Seen};
use super::report::{Report, Tally};
use super::sampler::Sampler;
use super::stores::{Cut, Place, open};
use super::worker::{Job, MOST_HELD, Progress, Strings, user, work};
use super::{Failed, Options};

/// How far a clock is turned, in seconds.
const HOUR: i64 = 3_600;
/// How long workers may take to settle everything once they were told to stop.
const DRAIN: Duration = Duration::from_secs(300);
/// How long after the end of the longest lease the ledger may take to notice.
const GRACE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    Kill,
    Restart,
    Cut,
    Clock,
}

/// What a round is made of.
pub(super) struct Round<'r> {
    pub(super) program: &'r Path,
    pub(super) options: &'r Options,
    pub(super) place: &'r mut Place,
    pub(super) dir: PathBuf,
    pub(super) seed: u64,
    /// How long things go wrong.
    pub(super) active: Duration,
    pub(super) say: &'r (dyn Fn(&str) + Sync),
}

/// The caps of a round.
#[derive(Clone, Copy, Debug)]
struct CapsOf {
    all: u64,
    each: u64,
    users: u64,
}

impl CapsOf {
    /// Everybody fits at once, and what that leaves is soon used up; a user fits a dozen times.
    fn of(options: &Options, processes: u64) -> Self {
        let turns = options.turns * processes;
        Self { all: turns * MOST_HELD, each: 12 * MOST_HELD, users: (turns / 4).max(8) }
    }

    fn config(self) -> BudgetConfig {
        BudgetConfig::new().max_tokens(self.all).per_user_max_tokens(self.each)
    }
}

impl Round<'_> {
    /// Plays the round and judges it.
    ///
    /// # Errors
    ///
    /// When it could not be played: that is no finding about the ledger.
    pub(super) async fn play(mut self) -> std::result::Result<Report, Failed> {
        let processes = if self.place.is_shared() { self.options.processes } else { 1 };
        let caps = CapsOf::of(self.options, processes);
        let namespace = format!("chaos-{:016x}", rand::random::<u64>());
        let invoice = self.dir.join("invoice");
        let manners = Manners {
            seed: self.seed,
            gather: self.options.turns * processes,
            patience: self.options.lease / 2,
            // A call takes long enough to be killed in.
            pause: (self.active / 32).clamp(Duration::from_millis(5), Duration::from_millis(250)),
        };
        let provider = ProviderProcess::start(self.program, &invoice, &manners)?;
        let strings = Arc::new(Strings::default());
        let judges = strings.clock.clone();
        let ledger = open(self.place.url(), caps.config(), judges.clone()).await?;
        let scopes = Scopes(Namespace::new(&namespace)?);
        let users: Arc<[Scope]> =
            (0..caps.users).map(|n| user(n).map(|user| scopes.of_user(user))).collect::<Result<_>>()?;
        let sampler = Sampler::start(ledger.clone(), users.clone());
        let begin = Begin {
            job: Job {
                namespace,
                provider: provider.address.clone(),
                users: caps.users,
                turns: self.options.turns,
                seed: self.seed,
                lease: self.options.lease,
                notes: self.dir.join("notes"),
                fault: self.options.fault.clone(),
            },
            ledger: self.place.url_for_workers(),
            cap: caps.all,
            per_user: caps.each,
        };
        let mut tally = Tally::default();
        let notes = if self.place.is_shared() {
            self.with_processes(&provider, &begin, processes, &mut tally).await?
        } else {
            self.within(&provider, begin.job, ledger.clone(), strings, &mut tally).await?
        };
        // Wherever time is that of a process, some process made its leases an hour from now.
        judges.turn_to(HOUR);
        let phantom_holds = self.leases_end(&*ledger, &users).await?;
        let samples = sampler.stop().await;
        let mut evidence = Evidence::default();
        evidence.invoice(&invoice)?;
        for path in &notes {
            evidence.notes(path)?;
        }
        let over_cap = evidence.invoiced().total() > caps.all;
        let verdict = judge(&*ledger, &evidence, |name| Ok(scopes.of_user(UserId::new(name)?))).await?;
        tally.seen(provider.seen());
        Ok(Report::of_round(tally, samples, verdict, phantom_holds, over_cap, caps.all))
    }

    /// Workers in processes of their own, which things happen to. Returns where they made their notes.
    async fn with_processes(
        &mut self,
        provider: &ProviderProcess,
        begin: &Begin,
        processes: u64,
        tally: &mut Tally,
    ) -> std::result::Result<Vec<PathBuf>, Failed> {
        let mut crew =
            Crew { program: self.program, begin, seed: self.seed, workers: Vec::new(), notes: Vec::new() };
        for _ in 0..processes {
            let worker = crew.another()?;
            crew.workers.push(worker);
        }
        // With everybody there at once; the provider's patience ends the waiting if somebody never comes.
        while !provider.seen().open {
            crew.tell(self.say, provider.seen());
            if crew.all_over() {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let mut luck = StdRng::seed_from_u64(self.seed);
        let mut deck: Vec<Mishap> = Vec::new();
        let began = Instant::now();
        let step = self.active.as_millis().max(8) as u64 / 8;
        let mut next = began;
        while began.elapsed() < self.active && !crew.all_over() {
            if Instant::now() < next {
                crew.tell(self.say, provider.seen());
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            if deck.is_empty() {
                let first = crew.notes.len() as u64 == processes;
                deck = self.deck();
                deck.shuffle(&mut luck);
                // The first thing that happens falls among everybody's calls.
                deck.extend(first.then_some(Mishap::Kill));
            }
            let mishap = deck.pop().unwrap_or(Mishap::Clock);
            self.happens(mishap, &mut crew, &mut luck, tally).await?;
            next = Instant::now() + Duration::from_millis(luck.random_range(step / 4..=step * 5 / 4));
        }
        for worker in &mut crew.workers {
            worker.tell(Tell::Stop);
        }
        let stopped = Instant::now();
        while !crew.all_over() {
            crew.tell(self.say, provider.seen());
            if stopped.elapsed() > DRAIN {
                return Err(Failed::new("a worker that was told to stop did not settle everything in time"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        for worker in &mut crew.workers {
            tally.worker(&worker.progress());
        }
        tally.processes += crew.notes.len() as u64;
        let died = crew.workers.iter_mut().filter(|worker| !worker.progress().ended).count();
        if died > 0 {
            return Err(Failed::new(format!("{died} workers died by themselves")));
        }
        Ok(crew.notes)
    }

    /// What can happen to this ledger, each kind at least once.
    fn deck(&self) -> Vec<Mishap> {
        let mut deck = vec![Mishap::Kill, Mishap::Clock, Mishap::Kill, Mishap::Clock];
        if self.place.has_server() {
            deck.extend([Mishap::Cut, Mishap::Cut, Mishap::Restart]);
        }
        deck
    }

    async fn happens(
        &mut self,
        mishap: Mishap,
        crew: &mut Crew<'_>,
        luck: &mut StdRng,
        tally: &mut Tally,
    ) -> std::result::Result<(), Failed> {
        let whose = luck.random_range(0..crew.workers.len());
        match mishap {
            Mishap::Kill => {
                crew.workers[whose].kill9();
                let progress = crew.workers[whose].progress();
                tally.worker(&progress);
                tally.kills += u64::from(!progress.ended);
                let worker = crew.another()?;
                crew.workers[whose] = worker;
            }
            Mishap::Clock => {
                let seconds = [HOUR, -HOUR, 0][luck.random_range(0..3)];
                crew.workers[whose].tell(Tell::Clock(seconds));
                tally.clock_jumps += 1;
            }
            Mishap::Cut => {
                let bytes = luck.random_range(0..4_000);
                let how = [Cut::All, Cut::Request(bytes), Cut::Reply(bytes)][luck.random_range(0..3)];
                self.place.cut(how).await;
                tally.cuts += 1;
            }
            Mishap::Restart => {
                self.place.restart().await;
                tally.restarts += 1;
            }
        }
        Ok(())
    }

    /// A ledger that lives in one process: turns in this one, whose clock jumps. A kill would end its world.
    async fn within(
        &mut self,
        provider: &ProviderProcess,
        job: Job,
        ledger: Arc<dyn Ledger>,
        strings: Arc<Strings>,
        tally: &mut Tally,
    ) -> std::result::Result<Vec<PathBuf>, Failed> {
        let notes = vec![job.notes.clone()];
        let working = tokio::spawn(work(job, ledger, strings.clone()));
        let mut luck = StdRng::seed_from_u64(self.seed);
        let began = Instant::now();
        let step = self.active.as_millis().max(8) as u64 / 8;
        let mut next = began;
        while !working.is_finished() {
            if began.elapsed() > self.active + DRAIN {
                return Err(Failed::new("the turns did not come to an end"));
            }
            if began.elapsed() > self.active {
                strings.stop.store(true, Ordering::SeqCst);
            } else if Instant::now() >= next {
                strings.clock.turn_to([HOUR, -HOUR, 0][luck.random_range(0..3)]);
                tally.clock_jumps += 1;
                next = Instant::now() + Duration::from_millis(luck.random_range(step / 4..=step * 5 / 4));
            }
            (self.say)(&line([strings.progress.lock().clone()].iter(), provider.seen()));
            tokio::time::sleep(LOOK_EVERY).await;
        }
        working.await.map_err(|e| Failed::new(e.to_string()))??;
        tally.worker(&strings.progress.lock());
        tally.processes += 1;
        Ok(notes)
    }

    /// Waits past the longest lease. What is held after that is held by nobody.
    async fn leases_end(&self, ledger: &dyn Ledger, users: &[Scope]) -> Result<u64> {
        let began = Instant::now();
        let mut held = 1;
        while held > 0 && began.elapsed() < self.options.lease + GRACE {
            (self.say)("waiting for the leases of the dead to end");
            tokio::time::sleep(Duration::from_millis(200)).await;
            held = held_by_all(ledger, &users[0]).await?;
        }
        let mut open = 0;
        for user in users {
            let report = asked(async || ledger.usage(user).await).await?;
            open += report.open_holds.max(u64::from(report.held_tokens > 0));
        }
        let held = held_by_all(ledger, &users[0]).await?;
        // All together may hold what no user does.
        Ok(open.max(u64::from(held > 0)))
    }
}

async fn held_by_all(ledger: &dyn Ledger, user: &Scope) -> Result<u64> {
    let report = asked(async || ledger.namespace_usage(user).await).await?;
    Ok(report.windows.iter().map(|line| line.held).sum::<u64>() + report.held_tokens)
}

struct Scopes(Namespace);

impl Scopes {
    fn of_user(&self, user: UserId) -> Scope {
        assume_scope(self.0.clone(), Identity::User(user), Epoch::ZERO)
    }
}

/// The workers of a round, and the notes of all there ever were.
struct Crew<'c> {
    program: &'c Path,
    begin: &'c Begin,
    seed: u64,
    workers: Vec<Worker>,
    notes: Vec<PathBuf>,
}

impl Crew<'_> {
    fn another(&mut self) -> std::io::Result<Worker> {
        let number = self.notes.len() as u64;
        let mut job = self.begin.job.clone();
        job.notes.set_extension(number.to_string());
        job.seed = self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.notes.push(job.notes.clone());
        // It may be killed before it wrote anything.
        std::fs::File::create(&job.notes)?;
        let begin = Begin { job, ledger: self.begin.ledger.clone(), ..*self.begin };
        Worker::start(self.program, &begin)
    }

    fn all_over(&mut self) -> bool {
        self.workers.iter_mut().all(|worker| worker.progress().ended || worker.is_gone())
    }

    fn tell(&self, say: &(dyn Fn(&str) + Sync), seen: Seen) {
        let progress: Vec<Progress> = self.workers.iter().map(Worker::progress).collect();
        say(&line(progress.iter(), seen));
    }
}

fn line<'p>(progress: impl Iterator<Item = &'p Progress>, seen: Seen) -> String {
    let (mut turns, mut refused, mut failed) = (0, 0, 0);
    for one in progress {
        turns += one.turns();
        refused += one.refused;
        failed += one.failed.values().sum::<u64>();
    }
    let Seen { asked, in_flight, most, .. } = seen;
    format!(
        "{turns} turns ({refused} refused, {failed} failed), {asked} calls, {in_flight} in flight, {most} at most"
    )
}
