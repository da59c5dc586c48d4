//! Plays a schedule: one process after the other, until its run is over.

use std::sync::Arc;
use std::time::Duration;

use loomflow::local::{InMemoryJournalStore, InProcRuntime, PerUserPermissions};
use loomflow_core::danger::assume_scope;
use loomflow_core::{
    Agent, ApprovalDecision, ApprovalId, ApprovalRequest, Clock as _, Digest, Epoch, ErrorKind, Identity,
    Namespace, Permissions as _, RunId, RunResult, RunStatus, Scope, Timestamp, UserAgent,
};
use serde_json::json;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::Instant;

use super::Open;
use super::history::{Fact, History};
use super::parts::{Journal, Tells, WorldClock, model, till};
use super::plan::{Act, Plan, Stranger};
use super::policy::{self, Content};
use super::store::Watched;
use crate::fixture::user;

/// How long a request lives.
const EXPIRES: Duration = Duration::from_secs(24 * 3_600);
/// Longer than the lease of a run that nobody renews.
const GAP: Duration = Duration::from_secs(600);
/// More processes than any schedule needs.
const MAX_LIVES: u32 = 64;

type Told = Result<(), String>;

/// What outlives a process.
struct World<'p> {
    plan: &'p Plan,
    namespace: Namespace,
    history: History,
    clock: Arc<WorldClock>,
    store: Arc<Watched>,
    journal: Arc<Journal>,
    policies: Arc<PerUserPermissions>,
    /// What this process began with and was given since.
    contents: Vec<Content>,
    /// Every row of contents there was, by its label.
    rows: Vec<Vec<Content>>,
    run: Option<RunId>,
    /// So much time has passed in this process that its lease may be another's.
    leased_out: bool,
}

/// How a process ended.
enum End {
    /// The run is over.
    Over,
    /// The process went away at this moment, and the next begins with this policy, or with the same.
    Crash(Option<Content>, (Instant, Timestamp)),
}

/// Plays `plan`. The answer is what happened, and what was seen on the way that must not be.
pub(super) fn play(plan: &Plan, namespace: &str, open: &Open<'_>) -> (History, Told) {
    let history = History::default();
    let told = lives(plan, namespace, open, &history);
    (history, told)
}

fn lives(plan: &Plan, namespace: &str, open: &Open<'_>, history: &History) -> Told {
    let mut world: Option<World<'_>> = None;
    let mut acts = plan.acts.iter().copied();
    let mut last = None;
    for life in 0..MAX_LIVES {
        let process = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let process = process.map_err(|e| format!("a process cannot start: {e}"))?;
        history.add(Fact::Life(life));
        let end = process.block_on(async {
            let world = match &mut world {
                None => world.insert(World::begin(plan, namespace, open, history)?),
                Some(world) => world,
            };
            if let Some(last) = last {
                world.clock.go_on(last, GAP).await;
            }
            world.live(&mut acts).await
        })?;
        // The process goes away: what was in flight in it is dropped where it stood, and nothing of it goes on.
        drop(process);
        match (end, &mut world) {
            (End::Crash(content, stood), Some(world)) => {
                last = Some(stood);
                world.restart(content);
            }
            _ => return Ok(()),
        }
    }
    Err("the run does not end".to_owned())
}

impl<'p> World<'p> {
    fn begin(plan: &'p Plan, namespace: &str, open: &Open<'_>, history: &History) -> Result<Self, String> {
        let clock = Arc::new(WorldClock::start());
        let mut world = Self {
            plan,
            namespace: Namespace::new(namespace).map_err(|e| e.to_string())?,
            history: history.clone(),
            store: Arc::new(Watched { store: open(clock.clone()), history: history.clone() }),
            clock,
            journal: Arc::new(Journal(InProcRuntime::with_journal(InMemoryJournalStore::new()))),
            policies: Arc::new(plan.policy.policies()),
            contents: vec![plan.policy],
            rows: Vec::new(),
            run: None,
            leased_out: false,
        };
        world.restart(None);
        Ok(world)
    }

    /// A new process reads its policies anew.
    fn restart(&mut self, content: Option<Content>) {
        let content = content.or(self.contents.last().copied()).unwrap_or(self.plan.policy);
        self.contents = vec![content];
        self.policies = Arc::new(content.policies());
        self.in_force();
    }

    fn reload(&mut self, content: Content) {
        self.contents.push(content);
        self.policies.replace(content.policies());
        self.in_force();
    }

    fn in_force(&mut self) {
        let known = self.rows.iter().position(|row| *row == self.contents);
        let label = known.unwrap_or_else(|| {
            self.rows.push(self.contents.clone());
            self.rows.len() - 1
        });
        self.history.add(Fact::Policy { label, version: self.policies.version() });
    }

    fn agent(&self) -> Result<Agent, String> {
        let history = self.history.clone();
        Agent::builder("x")
            .namespace(self.namespace.clone())
            .model(model(&self.plan.turns))
            .tool(till(&history))
            .clock(self.clock.clone())
            .permissions(policy::Watched { policies: self.policies.clone(), history: history.clone() })
            .runtime(self.journal.clone())
            .approval_store(self.store.clone())
            .approval_handler(Tells { does: self.plan.handler.clone(), history })
            .approvers([user("boss")])
            .approvals_expire_after(EXPIRES)
            .build()
            .map_err(|e| e.to_string())
    }

    /// One process: begins the run or goes on with it, and does what the plan says until the run is over or it crashes.
    async fn live(&mut self, acts: &mut impl Iterator<Item = Act>) -> Result<End, String> {
        self.leased_out = false;
        let agent = self.agent()?;
        let alice = agent.for_user(user("alice"));
        let run = match self.run {
            None => alice.run("pay").session("s"),
            Some(run) => alice.resume(run).await.map_err(|e| format!("the run cannot be resumed: {e}"))?,
        };
        let mut running = tokio::spawn(IntoFuture::into_future(run));
        // It has begun before anything else happens: who resumes it now comes second.
        yield_now().await;
        loop {
            if self.run.is_none() {
                self.run = alice.open_runs().await.ok().and_then(|open| open.first().map(|run| run.run));
            }
            if running.is_finished() {
                return self.over(&mut running).await;
            }
            let Some(act) = acts.next() else { break };
            if let Act::Crash(content) = act {
                // A process that crashed before its run began has none to go on with.
                return Ok(match self.run {
                    Some(_) => End::Crash(content, self.clock.last()),
                    None => End::Over,
                });
            }
            self.act(&agent, act).await?;
        }
        // Everything was tried: what is decided is used, and then what nobody decided expires.
        while !running.is_finished() {
            if !self.quiet(&running).await {
                tokio::time::advance(EXPIRES).await;
            }
        }
        self.over(&mut running).await
    }

    /// Lets the run go on until it waits for a person. False when it does.
    async fn quiet(&self, running: &JoinHandle<loomflow_core::Result<RunResult>>) -> bool {
        let before = self.history.len();
        for _ in 0..6 {
            for _ in 0..24 {
                yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(12)).await;
            if running.is_finished() {
                return true;
            }
        }
        self.history.len() != before
    }

    async fn over(
        &mut self,
        running: &mut JoinHandle<loomflow_core::Result<RunResult>>,
    ) -> Result<End, String> {
        let at = self.clock.now();
        match running.await.map_err(|e| format!("the run's task went wrong: {e}"))? {
            Ok(result) => {
                if result.status != RunStatus::Completed {
                    return Err(format!("the run ended as {:?}", result.status));
                }
                self.history.add(Fact::Ended { at });
            }
            Err(error) if error.kind() == ErrorKind::Timeout => {
                self.history.add(Fact::Ended { at });
            }
            Err(error)
                if error.kind() == ErrorKind::Conflict && error.to_string().contains("nobody knows") =>
            {
                self.history.add(Fact::Parked);
            }
            Err(error) => return Err(format!("the run failed: {error}")),
        }
        Ok(End::Over)
    }

    fn request(&self, which: usize) -> Option<ApprovalId> {
        let all = self.history.requests();
        (!all.is_empty()).then(|| all[which % all.len()])
    }

    fn scope(&self, identity: Identity) -> Scope {
        assume_scope(self.namespace.clone(), identity, Epoch::ZERO)
    }

    async fn act(&mut self, agent: &Agent, act: Act) -> Told {
        let boss = agent.for_user(user("boss"));
        match act {
            Act::Go(suspensions) => {
                for _ in 0..suspensions {
                    yield_now().await;
                }
            }
            Act::Wait => tokio::time::sleep(Duration::from_millis(10)).await,
            Act::Expire => {
                self.leased_out = true;
                tokio::time::advance(EXPIRES).await;
            }
            Act::Reload(content) => self.reload(content),
            Act::ResumeTwice => return self.resume_twice(agent).await,
            // Taken care of where the process ends.
            Act::Crash(_) => {}
            Act::Approve(which) => self.decide(&boss, which, |_| ApprovalDecision::Approve).await,
            Act::Deny(which) => {
                self.decide(&boss, which, |_| ApprovalDecision::Deny { reason: String::new() }).await;
            }
            Act::Edit(which, cents) => {
                let edit = |call| ApprovalDecision::Edit { args: json!({"call": call, "cents": cents}) };
                self.decide(&boss, which, edit).await;
            }
            Act::Twice(which) => return self.twice(&boss, which).await,
            Act::Again(which) => return self.again(&boss, which).await,
            Act::Wrong(which, who) => return self.wrong(agent, which, who).await,
            Act::Reuse(which) => return self.reuse(which).await,
            Act::Forge(which) => return self.forge(which).await,
        }
        Ok(())
    }

    /// The approver decides; too late or for the second time is an error that concerns nobody but them.
    async fn decide(&self, boss: &UserAgent, which: usize, how: impl Fn(u64) -> ApprovalDecision) {
        let Some(id) = self.request(which) else { return };
        let _late = boss.decide(id, how(self.call_of(id))).await;
    }

    fn call_of(&self, id: ApprovalId) -> u64 {
        let of = |fact: &Fact| match fact {
            Fact::Created { id: found, call, .. } if *found == id => Some(*call),
            _ => None,
        };
        self.history.facts().iter().find_map(of).unwrap_or_default()
    }

    async fn twice(&self, boss: &UserAgent, which: usize) -> Told {
        let Some(id) = self.request(which) else { return Ok(()) };
        let both = futures_util::future::join(
            boss.decide(id, ApprovalDecision::Approve),
            boss.decide(id, ApprovalDecision::Approve),
        );
        match both.await {
            (Ok(()), Ok(())) => Err(format!("{id} was decided twice at once")),
            _ => Ok(()),
        }
    }

    async fn again(&self, boss: &UserAgent, which: usize) -> Told {
        let Some(id) = self.request(which) else { return Ok(()) };
        if !self.history.has(|fact| matches!(fact, Fact::Decided { id: of, .. } if *of == id)) {
            return Ok(());
        }
        match boss.decide(id, ApprovalDecision::Approve).await {
            Ok(()) => Err(format!("{id} was decided a second time")),
            Err(_) => Ok(()),
        }
    }

    /// Somebody who may not tries to decide, and to use what somebody else decided.
    async fn wrong(&self, agent: &Agent, which: usize, who: Stranger) -> Told {
        let Some(id) = self.request(which) else { return Ok(()) };
        let (stranger, identity) = match who {
            Stranger::Requester => (agent.for_user(user("alice")), None),
            Stranger::Mallory => (agent.for_user(user("mallory")), Some(Identity::User(user("mallory")))),
            Stranger::Anonymous => (agent.anonymous(), Some(Identity::Anonymous)),
        };
        if stranger.decide(id, ApprovalDecision::Approve).await.is_ok() {
            return Err(format!("{who:?} decided {id}"));
        }
        let Some(identity) = identity else { return Ok(()) };
        self.take(id, identity, |_| ()).await.map_err(|()| format!("{who:?} used {id}"))
    }

    async fn reuse(&self, which: usize) -> Told {
        let Some(id) = self.request(which) else { return Ok(()) };
        if !self.history.has(|fact| matches!(fact, Fact::Consumed { id: of, .. } if *of == id)) {
            return Ok(());
        }
        let alice = Identity::User(user("alice"));
        self.take(id, alice, |_| ()).await.map_err(|()| format!("{id} was used a second time"))
    }

    /// An approval is used for another call, and under another policy.
    async fn forge(&self, which: usize) -> Told {
        let Some(id) = self.request(which) else { return Ok(()) };
        let alice = || Identity::User(user("alice"));
        let other_call = |request: &mut ApprovalRequest| request.digest = Digest::of(&[b"another"]);
        let other_policy = |request: &mut ApprovalRequest| request.policy_version ^= 1;
        self.take(id, alice(), other_call).await.map_err(|()| format!("{id} was used for another call"))?;
        self.take(id, alice(), other_policy).await.map_err(|()| format!("{id} was used under another policy"))
    }

    /// Tries to use an approval past the agent, knowing everything there is to know about it. An error is that it worked.
    async fn take(
        &self,
        id: ApprovalId,
        identity: Identity,
        change: impl FnOnce(&mut ApprovalRequest),
    ) -> Result<(), ()> {
        let now = self.clock.now();
        let own = self.scope(Identity::User(user("alice")));
        let Ok(found) = self.store.store.get(&own, id, now).await else { return Ok(()) };
        let Ok(mut found) = found.open(&own) else { return Ok(()) };
        change(&mut found.request);
        let ApprovalRequest { digest, policy_version, .. } = found.request;
        let scope = self.scope(identity);
        let taken = self.store.store.consume(&scope, id, digest, policy_version, now).await;
        if taken.is_ok() { Err(()) } else { Ok(()) }
    }

    async fn resume_twice(&self, agent: &Agent) -> Told {
        let Some(run) = self.run.filter(|_| !self.leased_out) else { return Ok(()) };
        let Ok(second) = agent.for_user(user("alice")).resume(run).await else { return Ok(()) };
        match IntoFuture::into_future(second).await {
            Ok(result) if result.status == RunStatus::Completed => {
                Err("a run that goes on was resumed beside itself".to_owned())
            }
            _ => Ok(()),
        }
    }
}
