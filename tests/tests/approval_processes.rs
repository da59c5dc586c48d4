//! Several processes on one store of approvals: one decides, one uses, and SIGKILL of any of them, or of the server, leaves
//! every request pending, decided or used, and never between.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "what waits here is a test with threads of its own")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use loomflow_core::ApprovalId;
use loomflow_tests::approvals::{Act, Answer, ApprovalWorker, DECIDERS, Order};
use loomflow_tests::own::OwnPostgres;
use loomflow_tests::services;
use serde_json::json;

const ROUNDS: usize = 200;
const KILLS: u64 = 24;

/// Where a store is, and the folder that goes with it.
struct Place(String, Option<PathBuf>);

impl Place {
    fn sqlite() -> Self {
        let dir = std::env::temp_dir().join(format!("loomflow-approvals-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(format!("sqlite:{}", dir.join("approvals.db").display()), Some(dir))
    }

    fn postgres() -> Self {
        Self(services::url("postgres"), None)
    }

    fn worker(&self) -> ApprovalWorker {
        ApprovalWorker::start(Path::new(env!("CARGO_BIN_EXE_approval_worker")), &self.0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(dir) = &self.1 {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}

/// Orders in a namespace that nobody else has.
struct World(String);

impl World {
    fn new() -> Self {
        Self(format!("proc-{:016x}", rand::random::<u64>()))
    }

    fn order(&self, user: &str, act: Act) -> Order {
        Order::new(&self.0, user, act)
    }

    fn asked(&self, worker: &mut ApprovalWorker) -> ApprovalId {
        serde_json::from_value(worker.ask(&self.order("alice", Act::Ask)).unwrap()).unwrap()
    }

    fn state(&self, worker: &mut ApprovalWorker, id: ApprovalId) -> String {
        let state = worker.ask(&self.order("alice", Act::State { id })).unwrap();
        state.as_str().unwrap().to_owned()
    }
}

fn won(answers: &[Answer]) -> usize {
    for answer in answers {
        assert!(answer.is_ok() || answer.as_ref().is_err_and(|(kind, _)| kind == "conflict"), "{answer:?}");
    }
    answers.iter().filter(|answer| answer.is_ok()).count()
}

/// Two processes decide the same request, and then use it, at the same time: one wins, each time.
fn of_two_processes_one_wins(place: &Place) {
    let world = World::new();
    let mut both = [place.worker(), place.worker()];
    for round in 0..ROUNDS {
        let id = world.asked(&mut both[round % 2]);
        let both_at_once = |both: &mut [ApprovalWorker; 2], orders: [Order; 2]| {
            both.iter_mut().zip(&orders).for_each(|(worker, order)| worker.tell(order));
            let answers: Vec<Answer> = both.iter_mut().map(|worker| worker.answer().unwrap()).collect();
            answers
        };
        let decide = DECIDERS.map(|who| world.order(who, Act::Approve { id, remember: false }));
        let decided = both_at_once(&mut both, decide);
        assert_eq!(won(&decided), 1, "round {round}: {decided:?}");
        let decider = DECIDERS[decided.iter().position(Result::is_ok).unwrap()];
        let take = [(); 2].map(|()| world.order("alice", Act::Use { id }));
        let used = both_at_once(&mut both, take);
        assert_eq!(won(&used), 1, "round {round}: {used:?}");
        let by = used.into_iter().find_map(Result::ok).unwrap();
        assert_eq!(by, json!(decider), "the decision that won is the one that is used");
    }
}

/// A process that is killed while it decides or uses leaves either all of it or nothing; what it had answered is there.
fn a_process_killed_at_a_decision_leaves_it_whole(place: &Place) {
    let world = World::new();
    let mut witness = place.worker();
    let mut grants = 0;
    for kill in 0..KILLS {
        let id = world.asked(&mut witness);
        let mut decider = place.worker();
        // Up and connected.
        assert_eq!(world.state(&mut decider, id), "pending");
        decider.tell(&world.order("ops", Act::Approve { id, remember: true }));
        std::thread::sleep(Duration::from_micros(kill * 300));
        decider.kill9();
        let acknowledged = decider.answer().is_some();
        // What a server had already been given may still be done.
        let state = settled(&mut || world.state(&mut witness, id), acknowledged);
        let held = witness.ask(&world.order("alice", Act::Grants)).unwrap();
        grants += u64::from(state == "decided");
        assert_eq!(held, json!(grants), "a decision and its grant are there together or not at all");
        if state == "pending" {
            witness.ask(&world.order("ops", Act::Approve { id, remember: false })).unwrap();
        }

        let mut user = place.worker();
        assert_eq!(world.state(&mut user, id), "decided");
        user.tell(&world.order("alice", Act::Use { id }));
        std::thread::sleep(Duration::from_micros(kill * 300));
        user.kill9();
        let acknowledged = user.answer().is_some();
        let used = settled(&mut || world.state(&mut witness, id), acknowledged) == "consumed";
        let again = witness.ask(&world.order("alice", Act::Use { id }));
        assert_eq!(again.is_ok(), !used, "used once, by the one or the other: {again:?}");
        assert!(witness.ask(&world.order("alice", Act::Use { id })).is_err(), "and never again");
    }
}

/// The state once nothing is on its way any more.
fn settled(state: &mut dyn FnMut() -> String, acknowledged: bool) -> String {
    let mut last = state();
    let before = last.clone();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(5));
        last = state();
    }
    assert!(!acknowledged || last == before, "what was answered was there at once");
    last
}

/// A waiting process finds what another decides; and everything is there for one that begins later.
fn another_process_is_heard_and_a_restart_loses_nothing(place: &Place) {
    let world = World::new();
    let (id, other) = {
        let (mut waiter, mut decider) = (place.worker(), place.worker());
        let (id, other) = (world.asked(&mut waiter), world.asked(&mut waiter));
        waiter.tell(&world.order("alice", Act::Await { id }));
        decider.ask(&world.order("lead", Act::Approve { id, remember: true })).unwrap();
        assert_eq!(waiter.answer(), Some(Ok(json!(null))));
        (id, other)
    };
    let mut later = place.worker();
    assert_eq!(world.state(&mut later, id), "decided");
    assert_eq!(world.state(&mut later, other), "pending");
    assert_eq!(later.ask(&world.order("alice", Act::Grants)), Ok(json!(1)));
    assert_eq!(later.ask(&world.order("alice", Act::Use { id })), Ok(json!("lead")));
    assert_eq!(later.ask(&world.order("bob", Act::Use { id })).unwrap_err().0, "not_found");
}

mod sqlite {
    use super::*;

    #[test]
    fn of_two_processes_one_wins_each_time() {
        of_two_processes_one_wins(&Place::sqlite());
    }

    #[test]
    fn a_killed_process_leaves_it_whole() {
        a_process_killed_at_a_decision_leaves_it_whole(&Place::sqlite());
    }

    #[test]
    fn another_process_is_heard() {
        another_process_is_heard_and_a_restart_loses_nothing(&Place::sqlite());
    }
}

mod postgres {
    use super::*;

    #[test]
    fn of_two_processes_one_wins_each_time() {
        of_two_processes_one_wins(&Place::postgres());
    }

    #[test]
    fn a_killed_process_leaves_it_whole() {
        a_process_killed_at_a_decision_leaves_it_whole(&Place::postgres());
    }

    #[test]
    fn another_process_is_heard() {
        another_process_is_heard_and_a_restart_loses_nothing(&Place::postgres());
    }

    /// The server is killed while a process decides, and started again on the same data.
    #[test]
    fn a_killed_server_loses_no_decision() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let mut server = runtime.block_on(OwnPostgres::start());
        let place = Place(server.url().to_owned(), None);
        let world = World::new();
        let mut kept = Vec::new();
        for kill in 0..5_u64 {
            let mut worker = place.worker();
            let id = world.asked(&mut worker);
            worker.tell(&world.order("ops", Act::Approve { id, remember: true }));
            std::thread::sleep(Duration::from_micros(kill * 1_500));
            server.kill9();
            let acknowledged = worker.answer().is_some_and(|answer| answer.is_ok());
            worker.kill9();
            runtime.block_on(server.restart());
            let mut witness = place.worker();
            let state = world.state(&mut witness, id);
            assert!(!acknowledged || state == "decided", "what was acknowledged was lost");
            kept.push((id, state));
            let decided = kept.iter().filter(|(_, state)| state == "decided").count();
            assert_eq!(witness.ask(&world.order("alice", Act::Grants)), Ok(json!(decided)));
            for (id, state) in &kept {
                assert_eq!(world.state(&mut witness, *id), *state, "an earlier one changed");
            }
        }
    }
}
