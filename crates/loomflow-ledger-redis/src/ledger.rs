//! The ledger: one script for each operation.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use loomflow_core::resilience::{Readiness, Repeat};
use loomflow_core::rules::quota::{Books, Bounds, HoldIds, Totals};
use loomflow_core::{
    BudgetConfig, CapUsage, Charge, Clock, Entity, Erase, Erased, Error, ErrorKind, EstimatedCharge,
    ExportItem, ExportStream, Granted, Hold, HoldId, Ledger, Limits, Owned, Owner, Refusal, RefusalReason,
    Reserve, Result, RunId, Scope, Settled, SystemClock, TenantData, Timestamp, Usage, UsageReport, Window,
    export_from,
};
use loomflow_support_redis::{Link, Script};
use redis::Value;

use crate::codec::{self, Args, Reply, cap_number, letter, moment, unreadable};
use crate::config::{OnOutage, RedisLedgerConfig};
use crate::disk::Disk;
use crate::outage::{self, Outage, Pending, What, is_outage};
use crate::schema::Schema;
use crate::scripts;

const STORE: &str = "ledger:redis";
/// How often an operation is made again because more leases had run out than one call settles.
const ROUNDS: usize = 1_000;

/// A quota in a Redis server, shared by every process that is given its URL.
///
/// Cloning gives another handle to the same connection. See the crate's page for what is kept where, and for what a crash
/// of the server costs.
#[derive(Clone)]
pub struct RedisLedger {
    shared: Arc<Shared>,
    clock: Option<Arc<dyn Clock>>,
}

struct Shared {
    link: Link,
    schema: Schema,
    ids: HoldIds,
    budget: BudgetConfig,
    books: Books,
    /// What every script is told of the budget: kind of window, its size, how long keys outlive it, and the caps.
    terms: [String; 4],
    /// What this process may grant by itself; `None` to refuse.
    outage: Option<Outage>,
    /// `None` to be answered when the server has it in memory.
    disk: Option<Disk>,
}

impl RedisLedger {
    /// Connects, and checks that the server can keep a quota.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for settings that cannot be used ([`RedisLedgerConfig::validate`]), a refused login, keys of
    /// another version, and a server that may evict keys; [`ErrorKind::Unreachable`], [`ErrorKind::Transport`] or
    /// [`ErrorKind::Timeout`] when nobody answers.
    pub async fn connect(config: RedisLedgerConfig) -> Result<Self> {
        config.validate()?;
        let schema = Schema::new(&config.key_prefix)?;
        let link = Link::connect(&config.link_options()).await?;
        check_eviction(&link).await?;
        let ids = schema.prepare(&link).await?;
        let disk = match config.wait_for_disk {
            true => Some(Disk::connect(&config.link_options(), schema.flushed()).await?),
            false => None,
        };
        let books = Books::new(&config.budget);
        let outage = match &config.on_outage {
            OnOutage::Refuse => None,
            OnOutage::Allow(allowance) => Some(Outage::new(allowance, &config.budget)),
        };
        let terms = terms(&config, &books);
        let shared = Shared { link, schema, ids, books, budget: config.budget, terms, outage, disk };
        Ok(Self { shared: Arc::new(shared), clock: None })
    }

    /// Takes the time from `clock` instead of the server, for tests: processes whose clocks differ would judge differently.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The configuration of the caps.
    #[must_use]
    pub fn config(&self) -> &BudgetConfig {
        &self.shared.budget
    }

    /// Tells the server what this process granted and closed during an outage; what was told already is not counted
    /// again. A task does this every second from the first charge on, and so does every operation: call it to know.
    ///
    /// # Errors
    ///
    /// The server's own, while it cannot be reached; what is pending stays so.
    pub async fn book(&self) -> Result<()> {
        let Some(outage) = &self.shared.outage else { return Ok(()) };
        let closed = |_| Error::new(ErrorKind::Internal, "nobody closes this semaphore");
        let _turn = outage.turn.acquire().await.map_err(closed)?;
        while let Some(pending) = outage.next(self.now()) {
            let fits = self.book_one(&pending).await?;
            outage.booked(&pending, fits, self.now());
        }
        Ok(())
    }

    /// Tells one, and says whether every cap that it counts against is kept.
    async fn book_one(&self, pending: &Pending) -> Result<bool> {
        let Pending { owner, epoch, hold, used, what } = pending;
        let mut args = self.args(owner)?;
        args.hold(*hold);
        let script = match what {
            What::Charge { key, granted, closed, estimated, .. } => {
                let state = estimated.map_or("", |expired| if expired { "3" } else { "2" });
                args.run(key.run).number(key.seq.into()).text(&moment(*closed)?).text(state).number(*granted);
                args.name(owner, *epoch).totals(used);
                &scripts::BOOK
            }
            What::Close { estimated } => {
                args.text(if *estimated { "estimated" } else { "told" }).totals(used);
                args.flag(self.shared.ids.granted(owner, *hold));
                &scripts::CLOSE
            }
        };
        let mut reply = self.run("book", script, owner, &args).await?;
        Ok(matches!(what, What::Close { .. }) || reply.number()? == 0)
    }

    /// The allowance, where something was granted out of it that is not booked, and the server is still away.
    async fn still_out(&self) -> Result<Option<&Outage>> {
        let Some(outage) = self.shared.outage.as_ref().filter(|outage| outage.is_active()) else {
            return Ok(None);
        };
        match self.book().await {
            Ok(()) => Ok(None),
            Err(e) if is_outage(&e) => Ok(Some(outage)),
            Err(e) => Err(e),
        }
    }

    /// Books before anything else where a charge of this hold waits for it: the server would not know the hold.
    async fn told_of(&self, hold: HoldId) -> Result<()> {
        match self.own().filter(|outage| outage.is_pending(hold, self.now())) {
            Some(_) => self.book().await,
            None => Ok(()),
        }
    }

    /// What may be granted by this process, when `error` says that the server is away.
    fn allowance(&self, error: &Error) -> Option<&Outage> {
        self.shared.outage.as_ref().filter(|_| is_outage(error))
    }

    /// Where this process granted something, whether or not the server is away.
    fn own(&self) -> Option<&Outage> {
        self.shared.outage.as_ref().filter(|outage| outage.is_active())
    }

    /// From now on a task tries to book, until all is.
    fn wait_for_server(&self, outage: &Outage) {
        if outage.waiting.swap(true, Ordering::AcqRel) {
            return;
        }
        let (shared, clock) = (Arc::downgrade(&self.shared), self.clock.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(outage::TRY_AGAIN).await;
                let Some(shared) = shared.upgrade() else { return };
                let ledger = Self { shared, clock: clock.clone() };
                // What is wrong with the server is told to whoever calls; here it is only tried again.
                let _still_away = ledger.book().await;
                let Some(outage) = &ledger.shared.outage else { return };
                if !outage.is_active() {
                    outage.waiting.store(false, Ordering::Release);
                    return;
                }
            }
        });
    }

    fn now(&self) -> Timestamp {
        self.clock.as_ref().map_or_else(|| SystemClock.now(), |clock| clock.now())
    }

    fn reserve_here(&self, outage: &Outage, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        self.wait_for_server(outage);
        let now = self.now();
        outage.reserve(scope, self.shared.ids.draw_at(scope.owner(), now), hold, now)
    }

    /// The arguments that every script begins with.
    fn args(&self, owner: &Owner) -> Result<Args> {
        let mut args = Args::default();
        args.text(&self.clock.as_ref().map(|clock| moment(clock.now())).transpose()?.unwrap_or_default());
        for term in &self.shared.terms {
            args.text(term);
        }
        args.text(&Schema::partition(owner));
        Ok(args)
    }

    async fn run(
        &self,
        operation: &'static str,
        script: &Script,
        owner: &Owner,
        args: &Args,
    ) -> Result<Reply> {
        let base = self.shared.schema.base(owner.namespace());
        let values: Vec<Value> =
            self.shared.link.script(operation, Repeat::Safe, script, &base, &args.0).await?;
        let reply = Reply::read(values).map_err(|e| e.with_operation(operation))?;
        if let Some(disk) = self.shared.disk.as_ref().filter(|_| !reply.is_look()) {
            disk.wait().await?;
        }
        Ok(reply)
    }

    /// Runs a script whose answer may be wrong while leases that ran out are not settled.
    async fn settled(
        &self,
        operation: &'static str,
        script: &Script,
        owner: &Owner,
        args: &Args,
        answers: &[&str],
    ) -> Result<Reply> {
        let mut reply = self.run(operation, script, owner, args).await?;
        for _ in 0..ROUNDS {
            if !reply.more || !answers.contains(&&*reply.word) {
                break;
            }
            reply = self.run(operation, script, owner, args).await?;
        }
        Ok(reply)
    }

    async fn reserve_there(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        let ask = self.shared.books.ask(hold)?;
        let owner = scope.owner();
        let mut args = self.args(owner)?;
        args.hold(self.shared.ids.draw_at(owner, self.now())).run(hold.key.run).number(hold.key.seq.into());
        args.bytes(&ask.terms().as_bytes()[..16]).micros(hold.lease);
        args.ask(&ask)?.name(owner, scope.epoch().get());
        let mut reply =
            self.settled("reserve", &scripts::RESERVE, owner, &args, &["exhausted", "beyond"]).await?;
        match &*reply.word {
            "held" => {
                let (id, output, wall) = (reply.hold()?, reply.number()?, reply.number()?);
                let granted = Granted::new(id, output, Duration::from_micros(wall));
                Ok(Reserve::Held(granted.with_warnings(reply.warnings()?)))
            }
            "exhausted" => {
                Ok(Reserve::Refused(Box::new(self.refusal(RefusalReason::Exhausted, &mut reply)?)))
            }
            "unpriced" => {
                Ok(Reserve::Refused(Box::new(self.refusal(RefusalReason::UnknownPrice, &mut reply)?)))
            }
            "conflict" => Err(Error::new(
                ErrorKind::Conflict,
                "a hold of this key is open already, for other amounts or at another price",
            )
            .with_operation("reserve")),
            "beyond" => Err(codec::overflow().with_operation("reserve")),
            _ => Err(unreadable().with_operation("reserve")),
        }
    }

    fn refusal(&self, reason: RefusalReason, reply: &mut Reply) -> Result<Refusal> {
        let (entity, cap) = (reply.entity()?, reply.cap()?);
        let [limit, used, held, needed] =
            [reply.number()?, reply.number()?, reply.number()?, reply.number()?];
        let (now, stands) = (reply.signed()?.ok_or_else(unreadable)?, reply.signed()?);
        let resets = if entity == Entity::Run { None } else { self.resets_at(now, stands) };
        let refusal = Refusal::new(reason, entity, cap, self.shared.budget.window);
        Ok(refusal.with_numbers(limit, used, held, needed).with_reset(resets))
    }

    /// When a quota comes back: `stands` is the oldest slice of a rolling window, or the window the counter is in, which is
    /// later than `now` when the clock was set back.
    fn resets_at(&self, now: i64, stands: Option<i64>) -> Option<Timestamp> {
        let periods = &self.shared.books.periods;
        let stands = stands?;
        if periods.rolls() {
            return Some(periods.leaves_at(stands));
        }
        let present = Timestamp::from_micros(now).max(periods.starts_at(stands));
        periods.window().bounds(present).map(|(_, end)| end)
    }

    /// What a counter says; `None` for one that never was, and the owner where a name is kept.
    async fn report(
        &self,
        operation: &'static str,
        scope: &Scope,
        whose: &str,
        (entity, bounds): (Entity, &Bounds),
    ) -> Result<(UsageReport, Option<Owner>, bool)> {
        self.still_out().await?;
        let mut args = self.args(scope.owner())?;
        args.text(whose);
        let mut reply =
            self.settled(operation, &scripts::USAGE, scope.owner(), &args, &["used", "nobody"]).await?;
        let (now, stands) = (reply.signed()?.ok_or_else(unreadable)?, reply.signed()?);
        let resets = self.resets_at(now, stands);
        let counter = reply.counter()?;
        let mut report = UsageReport::default();
        report.used = counter.usage;
        report.held_tokens = counter.held_tokens();
        report.open_holds = counter.open;
        report.estimated_tokens = counter.estimated;
        report.wall_clock = Duration::from_micros(counter.wall);
        let line = |(cap, limit, _)| {
            let (used, held) = counter.numbers(cap);
            CapUsage::new(entity, cap, self.shared.budget.window, limit).with_numbers(used, held, resets)
        };
        report.windows = bounds.caps().map(line).collect();
        Ok((report, reply.owner()?, reply.word == "used"))
    }

    async fn finish(
        &self,
        operation: &'static str,
        scope: &Scope,
        hold: HoldId,
        word: &str,
        used: &Totals,
    ) -> Result<Settled> {
        let mut args = self.args(scope.owner())?;
        let granted = self.shared.ids.granted(scope.owner(), hold);
        args.hold(hold).text(word).totals(used).flag(granted);
        let mut reply = self.run(operation, &scripts::CLOSE, scope.owner(), &args).await?;
        match &*reply.word {
            "settled" => reply.settled(),
            "open" => Err(Error::new(ErrorKind::Conflict, "the hold is open: its call has not ended yet")),
            // Closed, or never there: the id itself says which.
            _ if granted => {
                let mut settled = Settled::default();
                settled.duplicate = true;
                Ok(settled)
            }
            _ => Err(Error::new(ErrorKind::NotFound, "there is no such hold")),
        }
        .map_err(|e: Error| e.with_operation(operation))
    }
}

impl fmt::Debug for RedisLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLedger")
            .field("link", &self.shared.link)
            .field("budget", &self.shared.budget)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn reserve(&self, scope: &Scope, hold: &Hold) -> Result<Reserve> {
        if let Some(outage) = self.still_out().await? {
            return self.reserve_here(outage, scope, hold);
        }
        if let Some(outage) = self.own().filter(|o| o.has_key(scope.owner(), hold.key, self.now())) {
            return self.reserve_here(outage, scope, hold);
        }
        match self.reserve_there(scope, hold).await {
            Err(e) => match self.allowance(&e) {
                Some(outage) => self.reserve_here(outage, scope, hold),
                None => Err(e),
            },
            answer => answer,
        }
    }

    async fn sent(&self, scope: &Scope, hold: HoldId) -> Result<()> {
        let now = self.now();
        let here = |outage: &Outage| {
            outage.with_hold(scope, hold, now, |account, books, all| account.sent(books, now, all, hold))
        };
        if let Some(answer) = self.own().and_then(here) {
            return answer;
        }
        let mut args = self.args(scope.owner())?;
        args.hold(hold);
        done(self.run("sent", &scripts::SENT, scope.owner(), &args).await?, "sent")
    }

    async fn extend(&self, scope: &Scope, hold: HoldId, lease: Duration) -> Result<()> {
        let now = self.now();
        let here = |outage: &Outage| {
            outage.with_hold(scope, hold, now, |account, books, all| {
                account.extend(books, now, all, hold, lease)
            })
        };
        if let Some(answer) = self.own().and_then(here) {
            return answer;
        }
        let mut args = self.args(scope.owner())?;
        args.hold(hold).micros(lease);
        done(self.run("extend", &scripts::EXTEND, scope.owner(), &args).await?, "extend")
    }

    async fn close(&self, scope: &Scope, hold: HoldId, charge: Charge) -> Result<Settled> {
        let estimated = matches!(charge, Charge::Used { estimated: true, .. });
        let word = if estimated { "estimated" } else { "told" };
        if let Some(settled) = self.own().and_then(|outage| outage.close(scope, hold, &charge, self.now())) {
            return settled;
        }
        let answer = match self.told_of(hold).await {
            Ok(()) => self.finish("close", scope, hold, word, &Totals::charged(&charge)).await,
            Err(e) => Err(e),
        };
        match answer {
            Err(e) => match self.allowance(&e) {
                // Only what was granted to this user is worth keeping.
                Some(outage)
                    if self.shared.ids.granted(scope.owner(), hold)
                        && outage.defer(scope, hold, &charge, self.now()) =>
                {
                    self.wait_for_server(outage);
                    Ok(Settled::default())
                }
                _ => Err(e),
            },
            answer => answer,
        }
    }

    async fn estimates(&self, scope: &Scope) -> Result<Vec<Owned<EstimatedCharge>>> {
        if let Some(outage) = self.still_out().await? {
            let unbooked = outage.unbooked(scope.owner(), self.now()).into_iter();
            return Ok(unbooked.map(|estimate| Owned::new(scope.owner().clone(), estimate)).collect());
        }
        let args = self.args(scope.owner())?;
        let mut reply =
            self.settled("estimates", &scripts::ESTIMATES, scope.owner(), &args, &["estimates"]).await?;
        // A counter without a name is found by the digest of this very owner.
        let owner = reply.owner()?.unwrap_or_else(|| scope.owner().clone());
        Ok(reply.estimates()?.into_iter().map(|estimate| Owned::new(owner.clone(), estimate)).collect())
    }

    async fn reconcile(&self, scope: &Scope, hold: HoldId, actual: Usage) -> Result<Settled> {
        self.still_out().await?;
        let used = Totals::charged(&Charge::Used { usage: actual, estimated: false });
        self.finish("reconcile", scope, hold, "invoiced", &used).await
    }

    async fn namespace_usage(&self, scope: &Scope) -> Result<UsageReport> {
        let bounds = &self.shared.books.global;
        if bounds.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the usage of all users together is counted only under caps of all users together",
            ));
        }
        Ok(self.report("namespace_usage", scope, "all", (Entity::Global, bounds)).await?.0)
    }

    async fn usage(&self, scope: &Scope) -> Result<UsageReport> {
        Ok(self.report("usage", scope, "user", (Entity::User, &self.shared.books.user)).await?.0)
    }

    async fn end_run(&self, scope: &Scope, run: RunId) -> Result<()> {
        if let Some(outage) = self.own() {
            outage.end_run(scope.owner(), run, self.now());
        }
        let mut args = self.args(scope.owner())?;
        args.run(run);
        done(self.run("end_run", &scripts::END_RUN, scope.owner(), &args).await?, "end_run")
    }

    fn limits(&self) -> Limits {
        let budget = &self.shared.budget;
        let all = [&budget.global, &budget.per_user, &budget.per_run];
        Limits::new(all.iter().any(|caps| caps.wall_clock.is_some()), !self.shared.books.run.is_empty())
    }
}

#[async_trait]
impl TenantData for RedisLedger {
    fn store_name(&self) -> &str {
        STORE
    }

    async fn ready(&self) -> Readiness {
        self.shared.link.ready().await
    }

    /// The user's counter as one item of kind `counter`, and each estimate as one of kind `estimate`.
    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        let bounds = (Entity::User, &self.shared.books.user);
        let (report, named, known) = self.report("export", scope, "user", bounds).await?;
        if !known {
            return Ok(export_from(Vec::new()));
        }
        // A counter without a name is found by the digest of this very owner.
        let owner = named.unwrap_or_else(|| scope.owner().clone());
        let mut items = vec![Owned::new(owner, ExportItem::new("counter", json(&report)?))];
        for estimate in self.estimates(scope).await? {
            let owner = estimate.owner().clone();
            items.push(Owned::new(owner, ExportItem::new("estimate", json(&estimate.open(scope)?)?)));
        }
        Ok(export_from(items))
    }

    /// Takes the user's name off the counter. The numbers stay until their window ends, or an erasure would be a way to a
    /// fresh quota.
    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        let line = Erased::new(STORE);
        if !what.is_everything() {
            let bounds = (Entity::User, &self.shared.books.user);
            let (_, _, known) = self.report("forget", scope, "user", bounds).await?;
            let line = line.with_count("counter_name", 0);
            return Ok(if known {
                line.with_retained("the usage counters: they belong to no session and hold no content")
            } else {
                line
            });
        }
        let mut args = self.args(scope.owner())?;
        args.text(&format!("{:020}", scope.epoch().get()));
        let mut reply = self.run("forget", &scripts::FORGET, scope.owner(), &args).await?;
        let (named, kept) = (reply.number()?, reply.number()? == 1);
        let line = line.with_count("counter_name", named);
        Ok(if kept {
            line.with_retained(
                "the usage counters and estimates, without the name and under the SHA-256 of namespace and user, until their \
                 window ends: erasing them would give a fresh quota",
            )
        } else {
            line
        })
    }
}

fn done(reply: Reply, operation: &'static str) -> Result<()> {
    if reply.word == "done" {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, "there is no such open hold").with_operation(operation))
}

fn json(value: &impl serde::Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "a counter could not be written as JSON").with_source(e))
}

fn terms(config: &RedisLedgerConfig, books: &Books) -> [String; 4] {
    const HOUR: u64 = 3_600_000_000;
    let (kind, size) = match config.budget.window {
        Window::Hour => ("h", HOUR),
        Window::Day => ("d", 24 * HOUR),
        Window::Month => ("m", 24 * HOUR),
        Window::Rolling(_) => ("r", books.periods.size().unsigned_abs()),
        _ => ("l", 1),
    };
    let mut caps = String::new();
    for (entity, bounds) in
        [(Entity::Global, &books.global), (Entity::User, &books.user), (Entity::Run, &books.run)]
    {
        for (cap, limit, line) in bounds.caps() {
            let (letter, number) = (letter(entity), cap_number(cap));
            caps.push_str(&format!("{letter}{number}:{limit}:{line} "));
        }
    }
    let mut outlive = Args::default();
    outlive.micros(config.longest_lease);
    let outlive = outlive.0.remove(0).into_iter().map(char::from).collect();
    [kind.to_owned(), size.to_string(), outlive, caps]
}

/// A server that evicts keys gives quotas away.
async fn check_eviction(link: &Link) -> Result<()> {
    let mut info = redis::cmd("INFO");
    info.arg("memory");
    // A server that does not tell is believed.
    let told: String = match link.command("connect", Repeat::Safe, &info).await {
        Ok(told) => told,
        Err(e) if e.kind() == ErrorKind::Config || e.kind() == ErrorKind::Internal => return Ok(()),
        Err(e) => return Err(e),
    };
    let value = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match (value("maxmemory:"), value("maxmemory_policy:")) {
        (Some(max), Some(policy)) if max != "0" && policy != "noeviction" => Err(Error::new(
            ErrorKind::Config,
            format!(
                "this Redis evicts keys when it is full (maxmemory-policy {policy}), and with them quotas that are spent: set \
                 maxmemory-policy noeviction, or give the ledger a server of its own"
            ),
        )
        .with_operation("connect")),
        _ => Ok(()),
    }
}
