//! Several processes at once, and one after the other.

use loomflow_tests::worker::{Act, Order, said};
use serde_json::{Value, json};

use loomflow_tests::place::{Place, namespace};

const TURNS: u64 = 40;
/// How often one value is superseded, by both processes together.
const SUPERSEDED: i64 = 1_000;
/// The readers ask about a moment after every value has begun.
const LATER: i64 = 1_000_000;

fn texts(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

pub(crate) fn sees_at_once(place: &Place) {
    let namespace = namespace();
    let order = |act| Order::new(&namespace, "ada", act);
    let mut both = [place.worker(), place.worker()];
    for n in 0..TURNS {
        let (writer, reader) = ((n % 2) as usize, ((n + 1) % 2) as usize);
        both[writer].must(&order(Act::Remember { n }));
        let found = both[reader].must(&order(Act::Words { text: format!("number{n}") }));
        assert_eq!(found, json!([n]), "recalled by words");
        let found = both[reader].must(&order(Act::Vectors));
        assert_eq!(found.as_array().unwrap().len() as u64, n + 1, "recalled by vector");
        let history = texts(&both[reader].must(&order(Act::History)));
        assert_eq!((history.len() as u64, &history[2 * n as usize]), (2 * (n + 1), &said(n)));
        let act = Act::Supersede { subject: "me".into(), object: format!("v{n}"), at: n as i64 };
        both[writer].must(&order(act));
        let current = both[reader].must(&order(Act::Current { subject: "me".into(), at: LATER }));
        assert_eq!(texts(&current), [format!("v{n}")]);
        both[writer].must(&order(Act::Block { name: format!("b{n}"), content: "x".into() }));
        assert_eq!(both[reader].must(&order(Act::Counts)), json!([n + 1, n + 1]));
    }
    both[0].must(&order(Act::Forget).at_epoch(1));
    assert_eq!(both[1].must(&order(Act::Epoch)), json!(1));
    assert_eq!(both[1].must(&order(Act::Export)), json!([]));
}

/// Processes that all come first.
pub(crate) fn opens_for_many_at_once(place: impl Fn() -> Place) {
    for _ in 0..5 {
        let place = place();
        let mut workers: Vec<_> = (0..6).map(|_| place.worker()).collect();
        let namespace = namespace();
        for (n, worker) in (0..).zip(&mut workers) {
            worker.must(&Order::new(&namespace, "ada", Act::Remember { n }));
        }
        assert_eq!(workers[0].must(&Order::new(&namespace, "ada", Act::Counts)), json!([6, 0]));
        workers[0].must(&Order::new(&namespace, "ada", Act::Forget).at_epoch(1));
    }
}

pub(crate) fn survives_a_restart(place: &Place) {
    let namespace = namespace();
    let order = |user: &str, act| Order::new(&namespace, user, act);
    let mut first = place.worker();
    for n in 0..TURNS {
        first.must(&order("ada", Act::Remember { n }));
        let act = Act::Supersede { subject: "me".into(), object: format!("v{n}"), at: n as i64 };
        first.must(&order("ada", act));
    }
    first.must(&order("ada", Act::Block { name: "b".into(), content: "x".into() }));
    first.must(&order("bob", Act::Remember { n: 1 }));
    first.must(&order("bob", Act::Forget).at_epoch(3));
    let before = first.must(&order("ada", Act::Export));
    let ranking = first.must(&order("ada", Act::Vectors));
    first.kill9();
    let mut second = place.worker();
    assert_eq!(before.as_array().unwrap().len() as u64, TURNS + (2 * TURNS - 1) + 1);
    assert_eq!(second.must(&order("ada", Act::Export)), before);
    assert_eq!(second.must(&order("ada", Act::Vectors)), ranking);
    assert_eq!(second.must(&order("ada", Act::Words { text: "number7".into() })), json!([7]));
    assert_eq!(second.must(&order("bob", Act::Epoch)), json!(3));
    let (kind, _) = second.ask(&order("bob", Act::Remember { n: 2 }).at_epoch(2)).unwrap_err();
    assert_eq!(kind, "erased", "an erasure is not forgotten");
    for user in ["ada", "bob"] {
        second.must(&order(user, Act::Forget).at_epoch(9));
    }
}

pub(crate) fn one_value_is_current(place: &Place) {
    let namespace = namespace();
    let order = |act| Order::new(&namespace, "ada", act);
    let current = || order(Act::Current { subject: "me".into(), at: LATER });
    let supersede = |at: i64| order(Act::Supersede { subject: "me".into(), object: format!("v{at}"), at });
    let (mut even, mut odd, mut reader) = (place.worker(), place.worker(), place.worker());
    even.must(&supersede(0));
    even.order_all((1..SUPERSEDED / 2).map(|n| supersede(2 * n)).collect());
    odd.order_all((0..SUPERSEDED / 2).map(|n| supersede(2 * n + 1)).collect());
    // One of the two is read to its end, then the other: neither waits for this, as an answer is a few bytes.
    let done = std::thread::spawn(move || {
        for (worker, answers) in [(&mut even, SUPERSEDED / 2 - 1), (&mut odd, SUPERSEDED / 2)] {
            for _ in 0..answers {
                let answer = worker.answer().expect("both stay to their end");
                answer.expect("a rival is no reason to fail");
            }
        }
    });
    let mut looks = 0;
    while !done.is_finished() {
        let found = texts(&reader.must(&current()));
        assert_eq!(found.len(), 1, "after {looks} looks: {found:?}");
        looks += 1;
    }
    done.join().unwrap();
    assert!(looks > 10, "the reader looked while they wrote");
    assert_eq!(texts(&reader.must(&current())), [format!("v{}", SUPERSEDED - 1)]);
    for at in [0, 1, 2, SUPERSEDED / 2, SUPERSEDED - 2] {
        let found = reader.must(&order(Act::Current { subject: "me".into(), at }));
        assert_eq!(texts(&found), [format!("v{at}")], "each value held in its time");
    }
    reader.must(&order(Act::Forget).at_epoch(1));
}
