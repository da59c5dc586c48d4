//! Writes that are still on their way when another process erases.

use std::time::Duration;

use loomflow_tests::worker::{Act, Order};
use serde_json::json;

use loomflow_tests::place::{Place, namespace};

const ROUNDS: u64 = 40;
/// Writes a round, of each kind.
const WRITES: u64 = 12;

/// A round: one process writes with a scope from before the erasure, which another process does in the middle of it.
pub(crate) fn stale_writes_race(place: &Place) {
    let namespace = namespace();
    let mut eraser = place.worker();
    let mut refused = 0;
    let mut accepted = 0;
    for round in 0..ROUNDS {
        let user = format!("u{round}");
        let order = |act| Order::new(&namespace, &user, act);
        let mut writer = place.worker();
        writer.must(&order(Act::Remember { n: 0 }));
        let writes = (1..=WRITES).flat_map(|n| {
            let block = Act::Block { name: format!("b{n}"), content: "x".into() };
            let supersede = Act::Supersede { subject: "me".into(), object: format!("v{n}"), at: n as i64 };
            [Act::Remember { n }, Act::Like { n }, block, supersede].map(order)
        });
        writer.order_all(writes.collect());
        // Some begin to write long before the erasure, some hardly, and each at another place.
        for _ in 0..rand::random_range(1..WRITES) {
            let _done = writer.answer().expect("the writer stays").expect("nothing is erased yet");
            accepted += 1;
        }
        std::thread::sleep(Duration::from_micros(rand::random_range(0..2_000)));
        eraser.must(&order(Act::Forget).at_epoch(1));
        let at_once = eraser.must(&order(Act::Export).at_epoch(1));
        assert_eq!(at_once, json!([]), "nothing is left when the erasure has been acknowledged");
        let mut stopped = false;
        while let Some(answer) = writer.answer() {
            match answer {
                Ok(_) => assert!(!stopped, "a write was accepted after one had been refused"),
                Err((kind, why)) => {
                    assert_eq!(kind, "erased", "{why}");
                    (stopped, refused) = (true, refused + 1);
                }
            }
        }
        assert_eq!(eraser.must(&order(Act::Export).at_epoch(1)), json!([]), "and nothing has come back");
        assert_eq!(eraser.must(&order(Act::Counts).at_epoch(1)), json!([0, 0]));
        assert_eq!(eraser.must(&order(Act::Words { text: "parcel".into() }).at_epoch(1)), json!([]));
        // The next life of the user is its own.
        eraser.must(&order(Act::Remember { n: 99 }).at_epoch(1));
        assert_eq!(eraser.must(&order(Act::Vectors).at_epoch(1)), json!([99]));
        eraser.must(&order(Act::Forget).at_epoch(2));
    }
    assert!(
        refused > ROUNDS && accepted > ROUNDS,
        "{refused} refused, {accepted} accepted: that was no race"
    );
}
