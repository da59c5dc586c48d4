//! One turn of one tenant: one run, or two at a time, driven the way the plan says.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use loomflow_core::{Error, ErrorKind, Result, Run, RunId, RunResult, RunStatus, UserAgent};

use crate::full::{CANARIES_PER_TURN, Seen, World};
use crate::plan::{Act, Plan};
use crate::watch::Channel;
use crate::witness::{KeptSchema, TOOL_CANARY};

/// Where a second run of the same tenant talks.
const BESIDE: &str = "beside";
/// How often a session that is busy with the end of a dropped run is tried again.
const TRIES: usize = 2_000;
/// How often at once; afterwards with a pause: where a store is on a network, an end takes as long as the network does.
const AT_ONCE: usize = 100;
const PAUSE: Duration = Duration::from_millis(5);

pub(super) async fn take(
    world: &World,
    tenant: usize,
    turn: usize,
    plan: &Plan,
    seen: &mut Seen,
) -> Result<()> {
    let session = &world.people.tenant(tenant).session;
    let first = Asked::new(world, tenant, turn, plan, session, 0);
    if !plan.beside {
        seen.absorb(first.drive(plan.act).await);
        return Ok(());
    }
    let second = Asked::new(world, tenant, turn, plan, BESIDE, 3);
    let (one, two) = futures_util::future::join(first.drive(plan.act), second.drive(Act::Answer)).await;
    seen.absorb(one);
    seen.absorb(two);
    Ok(())
}

/// The canary number `n` of a turn.
pub(super) fn canary(world: &World, tenant: usize, turn: usize, n: usize) -> String {
    world.canaries.plant(tenant, turn * CANARIES_PER_TURN + n)
}

/// A run that is about to be asked for.
struct Asked<'w> {
    world: &'w World,
    tenant: usize,
    user: UserAgent,
    input: String,
    session: &'w str,
    metadata: Vec<(&'static str, String)>,
}

impl<'w> Asked<'w> {
    fn new(
        world: &'w World,
        tenant: usize,
        turn: usize,
        plan: &Plan,
        session: &'w str,
        first: usize,
    ) -> Self {
        let said = canary(world, tenant, turn, first);
        let mut input = format!("please remember {said} as the word of turn {turn}");
        if world.people.tenant(tenant).chatty {
            input.push_str(&" and let me tell you more about it".repeat(20));
        }
        let mut script = plan.script;
        script.stall &= first == 0;
        let mut metadata = script.write();
        if script.tools > 0 {
            metadata.push((TOOL_CANARY, canary(world, tenant, turn, first + 1)));
        }
        let agent = if script.stall { &world.hurried } else { &world.agent };
        Self { world, tenant, user: world.people.enter(agent, tenant), input, session, metadata }
    }

    async fn drive(self, act: Act) -> Seen {
        let mut seen = Seen::default();
        match act {
            Act::Answer | Act::Hurry | Act::Structured => self.answer(act, &mut seen).await,
            Act::Cancel(polls) => self.cancel(polls, &mut seen).await,
            Act::Stream => self.stream(u64::MAX, &mut seen).await,
            Act::Abort(events) => self.stream(events, &mut seen).await,
        }
        seen
    }

    fn run(&self) -> Run {
        let mut run = self.user.run(&*self.input).session(self.session);
        for (key, value) in &self.metadata {
            run = run.metadata(*key, value);
        }
        run
    }

    async fn answer(&self, act: Act, seen: &mut Seen) {
        for tried in 0..TRIES {
            breathe(tried).await;
            let began = Instant::now();
            let run = self.run();
            let run = if act == Act::Structured { run.output_schema(KeptSchema::default()) } else { run };
            let ended = run.await;
            if self.is_busy(&ended) {
                continue;
            }
            seen.latencies.push(began.elapsed());
            return self.ended(ended, seen);
        }
        seen.defects.push("a session stayed busy after its run was dropped".to_owned());
    }

    async fn cancel(&self, polls: u64, seen: &mut Seen) {
        for tried in 0..TRIES {
            breathe(tried).await;
            match Impatient::new(self.run(), polls).await {
                Some(ended) if self.is_busy(&ended) => continue,
                Some(ended) => return self.ended(ended, seen),
                None => return seen.left += 1,
            }
        }
        seen.defects.push("a session stayed busy after its run was dropped".to_owned());
    }

    /// Reads at most `limit` events, and drops the stream if that was not all.
    async fn stream(&self, limit: u64, seen: &mut Seen) {
        for tried in 0..TRIES {
            breathe(tried).await;
            let began = Instant::now();
            let mut asked = self.user.stream(&*self.input).session(self.session);
            for (key, value) in &self.metadata {
                asked = asked.metadata(*key, value);
            }
            let mut events = match asked.await {
                Ok(events) => events,
                Err(error) => return self.ended(Err(error), seen),
            };
            let mut read = 0;
            let mut ended = false;
            while read < limit {
                let Some(event) = events.next().await else {
                    ended = true;
                    break;
                };
                read += 1;
                self.world.watch.look_at(self.tenant, Channel::Event, &event);
                if event.seq != read {
                    seen.defects.push(format!("event {} came at place {read}", event.seq));
                }
            }
            if !ended {
                drop(events);
                return seen.endings.dropped += 1;
            }
            let result = events.result().await;
            if self.is_busy(&result) {
                continue;
            }
            seen.latencies.push(began.elapsed());
            return self.ended(result, seen);
        }
        seen.defects.push("a session stayed busy after its run was dropped".to_owned());
    }

    /// The run did not begin, because the closer is still ending the one before it in this session.
    fn is_busy(&self, ended: &Result<RunResult>) -> bool {
        matches!(ended, Err(error) if error.kind() == ErrorKind::Conflict && run_of(error).is_none())
    }

    fn ended(&self, ended: Result<RunResult>, seen: &mut Seen) {
        let (run, status) = match &ended {
            Ok(result) => {
                self.world.watch.look_at(self.tenant, Channel::Result, result);
                if result.user_id.as_ref() != self.world.people.tenant(self.tenant).user.as_ref() {
                    seen.defects.push("a result names another tenant".to_owned());
                }
                (Some(result.run_id), result.status)
            }
            Err(error) => {
                let text = format!("{error} {error:?}");
                self.world.watch.look(self.tenant, Channel::Error, text.as_bytes());
                if error.kind() == ErrorKind::IsolationViolation {
                    self.world.watch.withheld();
                }
                if is_defect(error.kind()) {
                    seen.defects.push(format!("a run failed with {}: {error}", error.kind().as_str()));
                }
                (run_of(error), status_of(error))
            }
        };
        // Without an id the run never began, and there is nothing to find in the log.
        let Some(run) = run else { return };
        seen.known.push((run, status));
        let endings = &mut seen.endings;
        *match status {
            RunStatus::Completed => &mut endings.completed,
            RunStatus::Interrupted => &mut endings.interrupted,
            RunStatus::TimedOut => &mut endings.timed_out,
            _ => &mut endings.failed,
        } += 1;
    }
}

/// A fresh turn of this task: the first poll then surely gets as far as the first thing that really waits.
async fn breathe(tried: usize) {
    if tried < AT_ONCE {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(PAUSE).await;
    }
}

fn run_of(error: &Error) -> Option<RunId> {
    let id = error.context().iter().find(|(key, _)| *key == "run_id");
    id.and_then(|(_, value)| value.parse().ok())
}

fn status_of(error: &Error) -> RunStatus {
    if error.refusal().is_some() {
        RunStatus::Interrupted
    } else if error.kind() == ErrorKind::Timeout && error.operation() == "run" {
        RunStatus::TimedOut
    } else {
        RunStatus::Failed
    }
}

/// Kinds that nothing in the load explains.
fn is_defect(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Internal
            | ErrorKind::Config
            | ErrorKind::InvalidInput
            | ErrorKind::NotFound
            | ErrorKind::Conflict
            | ErrorKind::Capacity
            | ErrorKind::Unsupported
            | ErrorKind::OutputInvalid
    )
}

/// A run that is dropped after so many polls. `None`: it was.
struct Impatient<F> {
    run: Option<Pin<Box<F>>>,
    polls: u64,
}

impl<F: Future> Impatient<F> {
    fn new<R: IntoFuture<IntoFuture = F>>(run: R, polls: u64) -> Self {
        Self { run: Some(Box::pin(run.into_future())), polls }
    }
}

impl<F: Future> Future for Impatient<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(run) = &mut self.run else { return Poll::Ready(None) };
        if let Poll::Ready(ended) = run.as_mut().poll(cx) {
            self.run = None;
            return Poll::Ready(Some(ended));
        }
        self.polls = self.polls.saturating_sub(1);
        if self.polls == 0 {
            self.run = None;
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}
