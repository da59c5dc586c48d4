//! SIGKILL at random moments: of the process that writes to a memory, and of the server that it writes to.
//!
//! What is missing and what is there twice is counted; whatever else is not as it should be panics.

#![allow(clippy::unwrap_used, reason = "panics are findings here")]
#![allow(clippy::disallowed_methods, reason = "what waits here is a test with threads of its own")]

use std::time::Duration;

use loomflow_core::{Episode, Fact, MemoryBlock};
use serde_json::{Value, json};

use crate::place::{OwnPlace, namespace};
use crate::worker::{Act, Answer, COMMON, Order, Worker, reply, run, said, vector};

/// More than is written before the kill.
const ORDERS: u64 = 20_000;
const SUBJECTS: u64 = 3;
/// How many acknowledgements a kill waits for at most.
const MOST_AWAITED: u64 = 12;

/// Write `n`: turns, values that supersede one another, and a block, in turn.
fn write(n: u64) -> Act {
    match n % 4 {
        0 | 1 => Act::Remember { n },
        2 => {
            let subject = format!("s{}", (n / 4) % SUBJECTS);
            Act::Supersede { subject, object: format!("v{n}"), at: n as i64 }
        }
        _ => Act::Block { name: "b".into(), content: format!("{n} {}", reply(n)) },
    }
}

/// A pause that now and then is long enough for many writes.
fn random_pause() {
    std::thread::sleep(Duration::from_micros(rand::random_range(0..40_000)));
}

fn begin(mut worker: Worker, namespace: &str, user: &str) -> Worker {
    worker.must(&Order::new(namespace, user, write(0)));
    worker.order_all((1..ORDERS).map(|n| Order::new(namespace, user, write(n))).collect());
    worker
}

/// Wait for a random number of acknowledgements and a random pause after them, so that the kill falls in the middle of
/// something however slow the store or the machine is. Returns how many writes are acknowledged.
fn let_it_write(worker: &mut Worker) -> u64 {
    let awaited = rand::random_range(0..=MOST_AWAITED);
    for n in 1..=awaited {
        worker.answer().expect("it is alive").unwrap_or_else(|why| panic!("write {n} failed: {why:?}"));
    }
    random_pause();
    1 + awaited
}

/// How many writes were acknowledged, of those in the order they were given; `done` of them are known of.
fn acknowledged(worker: &mut Worker, mut done: u64, may_fail: bool) -> u64 {
    while let Some(answer) = worker.answer() {
        match answer {
            Ok(_) => done += 1,
            Err(why) if !may_fail => panic!("write {done} failed: {why:?}"),
            Err(_) => break,
        }
    }
    assert!(done < ORDERS, "the worker had nothing left to be killed in");
    done
}

/// What was killed, and what came of it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Toll {
    /// Kills of the process that wrote.
    pub kills: u64,
    /// Kills of the server.
    pub restarts: u64,
    /// The most writes that were acknowledged before a kill.
    pub most: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Of these, how many are not there.
    pub lost: u64,
    /// Writes that are there twice.
    pub doubled: u64,
    /// The first of them in words.
    pub example: Option<String>,
}

impl Toll {
    fn writes(&mut self, done: u64) {
        self.most = self.most.max(done);
        self.acknowledged += done;
    }

    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.kills += other.kills;
        self.restarts += other.restarts;
        self.most = self.most.max(other.most);
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.example = self.example.take().or(other.example);
    }

    /// Panics unless everything that was acknowledged is there once, and kills fell between writes.
    ///
    /// # Panics
    ///
    /// When it is not so.
    pub fn assert_none(&self) {
        assert!(self.lost + self.doubled == 0, "{self:?}");
        assert!(self.most > 4, "hardly anything was written before a kill: {self:?}");
    }
}

/// Kills the process that writes, in the middle of writing, for as long as `go_on` says so of the round from 0. `worker`
/// starts a process.
///
/// # Panics
///
/// When something is half there, or a process cannot go on where the other was killed.
pub fn the_client(worker: &dyn Fn() -> Worker, go_on: &dyn Fn(u64) -> bool) -> Toll {
    let namespace = namespace();
    let mut witness = worker();
    let mut toll = Toll::default();
    for round in (0..).take_while(|round| go_on(*round)) {
        let user = format!("u{round}");
        let mut worker = begin(worker(), &namespace, &user);
        let done = let_it_write(&mut worker);
        worker.kill9();
        let done = acknowledged(&mut worker, done, false);
        // A server may still be about to do what it was told before the client went.
        std::thread::sleep(Duration::from_millis(60));
        toll.kills += 1;
        toll.writes(done);
        check(&mut witness, &namespace, &user, done, &mut toll);
        // Whoever comes next can go on, in the middle of what the killed one did.
        witness.must(&Order::new(&namespace, &user, write(done)));
        witness.must(&Order::new(&namespace, &user, write(done + 1)));
        check(&mut witness, &namespace, &user, done + 2, &mut toll);
        witness.must(&Order::new(&namespace, &user, Act::Forget).at_epoch(1));
    }
    toll
}

/// Kills the server in the middle of writing, for as long as `go_on` says so of the round from 0, and starts it again.
///
/// # Panics
///
/// When something is half there, or nobody can go on afterwards.
pub fn the_server(place: &mut OwnPlace, go_on: &dyn Fn(u64) -> bool) -> Toll {
    let namespace = namespace();
    let mut toll = Toll::default();
    let mut kept: Vec<(String, u64)> = Vec::new();
    for round in (0..).take_while(|round| go_on(*round)) {
        let user = format!("u{round}");
        let mut worker = begin(place.worker(), &namespace, &user);
        let done = let_it_write(&mut worker);
        place.kill9();
        let done = acknowledged(&mut worker, done, true);
        worker.kill9();
        place.restart();
        toll.kills += 1;
        toll.restarts += 1;
        toll.writes(done);
        let mut witness = place.worker();
        check(&mut witness, &namespace, &user, done, &mut toll);
        witness.must(&Order::new(&namespace, &user, write(done)));
        check(&mut witness, &namespace, &user, done + 1, &mut toll);
        kept.push((user, done + 1));
    }
    let mut witness = place.worker();
    for (user, done) in &kept {
        check(&mut witness, &namespace, user, *done, &mut toll);
    }
    toll
}

/// Everything that was acknowledged is there, whole; of what was on its way, all or nothing; and no more than that.
fn check(witness: &mut Worker, namespace: &str, user: &str, done: u64, toll: &mut Toll) {
    let export = witness.must(&Order::new(namespace, user, Act::Export));
    let held = Held::read(&export);
    let expected = |writes: u64| Held::after(writes);
    // The write after the last acknowledged one was on its way.
    let (least, most) = (expected(done), expected(done + 1));
    if held != least && held != most {
        let (lost, doubled) = (held.lacks(&least), held.repeats());
        let why = format!("after {done} writes there is\n{held:?}\nand neither\n{least:?}\nnor\n{most:?}");
        assert!(lost + doubled > 0, "{user}: {why}");
        toll.lost += lost;
        toll.doubled += doubled;
        toll.example.get_or_insert(why);
        return;
    }
    let mut ask = |act| -> Answer { witness.ask(&Order::new(namespace, user, act)) };
    // What finds them knows of the same ones.
    let mut turns = held.turns.clone();
    turns.sort_unstable();
    let blocks = u64::from(held.block.is_some());
    assert_eq!(ask(Act::Counts), Ok(json!([turns.len(), blocks])));
    for act in [Act::Words { text: COMMON.into() }, Act::Vectors] {
        let mut found: Vec<u64> = serde_json::from_value(ask(act).unwrap()).unwrap();
        found.sort_unstable();
        assert_eq!(found, turns, "all turns are found");
    }
    let history: Vec<String> = serde_json::from_value(ask(Act::History).unwrap()).unwrap();
    assert_eq!(history, turns.iter().flat_map(|n| [said(*n), reply(*n)]).collect::<Vec<_>>());
    for (subject, values) in (0..).zip(&held.values) {
        let act = Act::Current { subject: format!("s{subject}"), at: 10_000_000 };
        let current: Vec<String> = serde_json::from_value(ask(act).unwrap()).unwrap();
        let last: Vec<String> = values.last().map(|n| format!("v{n}")).into_iter().collect();
        assert_eq!(current, last, "exactly one value is current");
    }
}

/// What a user has, as numbers of writes.
#[derive(Debug, PartialEq)]
struct Held {
    turns: Vec<u64>,
    /// By subject, in the order of their time.
    values: Vec<Vec<u64>>,
    block: Option<u64>,
}

impl Held {
    fn empty() -> Self {
        Self { turns: Vec::new(), values: vec![Vec::new(); SUBJECTS as usize], block: None }
    }

    /// After so many writes.
    fn after(writes: u64) -> Self {
        let mut held = Self::empty();
        for n in 0..writes {
            match write(n) {
                Act::Remember { n } => held.turns.push(n),
                Act::Supersede { .. } => held.values[((n / 4) % SUBJECTS) as usize].push(n),
                _ => held.block = Some(n),
            }
        }
        held
    }

    /// Every write there is.
    fn writes(&self) -> Vec<u64> {
        let values = self.values.iter().flatten();
        self.turns.iter().chain(values).chain(&self.block).copied().collect()
    }

    /// How many of `others` are not there. Of a block, only the last value is.
    fn lacks(&self, other: &Self) -> u64 {
        let mine = self.writes();
        let newer = |n: &u64| self.block > Some(*n) && other.block == Some(*n);
        other.writes().iter().filter(|n| !mine.contains(n) && !newer(n)).count() as u64
    }

    /// How many writes are there again.
    fn repeats(&self) -> u64 {
        let (all, mut once) = (self.writes().len(), self.writes());
        once.sort_unstable();
        once.dedup();
        (all - once.len()) as u64
    }

    /// From an export, every record of which has to be whole.
    fn read(export: &Value) -> Self {
        let mut held = Self::empty();
        let mut facts: Vec<Fact> = Vec::new();
        for item in export.as_array().expect("an export is a list") {
            let data = item["data"].clone();
            match item["kind"].as_str() {
                Some("episode") => held.turns.push(turn(data)),
                Some("fact") => facts.push(serde_json::from_value(data).expect("a fact is whole")),
                Some("block") => {
                    let block: MemoryBlock = serde_json::from_value(data).expect("a block is whole");
                    let n =
                        block.content.split(' ').next().unwrap().parse().expect("it begins with its number");
                    assert_eq!(*block.content, format!("{n} {}", reply(n)));
                    held.block = Some(n);
                }
                other => panic!("an export has no {other:?}"),
            }
        }
        held.turns.sort_unstable();
        for subject in 0..SUBJECTS {
            let rows: Vec<&Fact> = facts.iter().filter(|f| *f.subject == *format!("s{subject}")).collect();
            held.values[subject as usize] = values(&rows);
        }
        held
    }
}

fn turn(data: Value) -> u64 {
    let episode: Episode = serde_json::from_value(data).expect("an episode is whole");
    let n = u64::try_from(episode.id.as_u128() - 1).unwrap();
    let texts: Vec<&str> = episode.messages.iter().map(|m| &*m.text).collect();
    assert_eq!(texts, [said(n), reply(n)]);
    assert_eq!((episode.embedding, episode.id), (Some(vector(n)), run(n).into()));
    n
}

/// The values of a subject: what is believed of them covers the time from the first on without a gap, and what is no
/// longer believed is one row for each that was superseded.
fn values(rows: &[&Fact]) -> Vec<u64> {
    let mut believed: Vec<&&Fact> = rows.iter().filter(|f| f.known_until.is_none()).collect();
    believed.sort_by_key(|f| f.valid_from);
    for pair in believed.windows(2) {
        assert_eq!(pair[0].valid_until, Some(pair[1].valid_from), "no gap and no overlap: {believed:?}");
    }
    if let Some(last) = believed.last() {
        assert_eq!(last.valid_until, None, "the last value holds: {believed:?}");
        assert_eq!(rows.len(), 2 * believed.len() - 1, "each but the last was ended once: {rows:?}");
    }
    let number = |f: &&&Fact| f.object.trim_start_matches('v').parse().expect("a value is a number");
    believed.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_is_there_twice_is_counted() {
        let (least, mut held) = (Held::after(7), Held::after(8));
        assert_eq!(
            (held.lacks(&least), held.repeats()),
            (0, 0),
            "a newer block replaces one that was acknowledged"
        );
        held.turns.retain(|n| *n != 4);
        assert_eq!((held.lacks(&least), held.repeats()), (1, 0));
        held.turns.push(0);
        held.values[1].clear();
        assert_eq!((held.lacks(&least), held.repeats()), (2, 1));
        held.block = Some(1);
        assert_eq!(held.lacks(&least), 3, "an older block is none");
    }
}
