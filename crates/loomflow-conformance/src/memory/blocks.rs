//! Named blocks.

use loomflow_core::{ErrorKind, MemoryBlock, PutBlock, Scope};

use super::Harness;
use crate::Outcome::{self, Passed};
use crate::fixture::{Must as _, World, at, must_fail, open};
use crate::naughty;

async fn put(h: &Harness, scope: &Scope, block: PutBlock) {
    h.store().put_block(scope, block).await.must("put_block");
}

async fn all(h: &Harness, scope: &Scope) -> Vec<MemoryBlock> {
    open(scope, h.store().blocks(scope).await.must("blocks"), "blocks")
}

/// Blocks are ordered by their place, then by the bytes of their names.
pub async fn are_ordered_by_place_then_name(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    assert!(all(h, &alice).await.is_empty(), "an unknown partition has no blocks");
    for (name, order) in [("z", 0), ("persona", 7), ("\u{e9}", 1), ("a", 1), ("B", 1), ("big", u32::MAX)] {
        put(h, &alice, PutBlock::new(name, "text", at(0)).with_order(order)).await;
    }
    assert_eq!(h.block_names(&alice).await, ["z", "B", "a", "\u{e9}", "persona", "big"]);
    Passed
}

/// Writing a name again replaces its text and keeps its place, unless another place is given; a new block is at 0.
pub async fn are_replaced_in_place(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    put(h, &alice, PutBlock::new("a", "one", at(1)).with_order(5)).await;
    put(h, &alice, PutBlock::new("b", "two", at(1))).await;
    put(h, &alice, PutBlock::new("a", "three", at(2))).await;
    let expected = [MemoryBlock::new("b", "two", 0, at(1)), MemoryBlock::new("a", "three", 5, at(2))];
    assert_eq!(all(h, &alice).await, expected, "text and time are new, the place is kept");
    put(h, &alice, PutBlock::new("b", "", at(3)).with_order(9)).await;
    let expected = [MemoryBlock::new("a", "three", 5, at(2)), MemoryBlock::new("b", "", 9, at(3))];
    assert_eq!(all(h, &alice).await, expected, "an empty text is a text, and the place is moved");
    Passed
}

/// Removing a block removes it, and removing one that is not there succeeds.
pub async fn are_removed(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    put(h, &alice, PutBlock::new("a", "one", at(1)).with_order(5)).await;
    put(h, &alice, PutBlock::new("b", "two", at(1))).await;
    put(h, &alice, PutBlock::remove("a", at(2))).await;
    put(h, &alice, PutBlock::remove("a", at(2))).await;
    put(h, &alice, PutBlock::remove("never", at(2))).await;
    assert_eq!(h.block_names(&alice).await, ["b"]);
    put(h, &alice, PutBlock::new("a", "again", at(3))).await;
    let back = all(h, &alice).await;
    assert_eq!(
        (&*back[0].name, back[0].order),
        ("a", 0),
        "a removed block left nothing behind, its place included"
    );
    Passed
}

/// A name that is empty, longer than 128 bytes, or has a control character is refused, and nothing is written.
pub async fn refuse_bad_names(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let long = "x".repeat(129);
    for bad in ["", long.as_str(), "a\nb", "a\0b", "\u{7f}", "\u{85}"] {
        let write = h.store().put_block(&alice, PutBlock::new(bad, "text", at(0))).await;
        must_fail(write, ErrorKind::InvalidInput, &format!("put_block under the name {bad:?}"));
    }
    assert!(all(h, &alice).await.is_empty(), "a refused write writes nothing");
    put(h, &alice, PutBlock::new("x".repeat(128), "text", at(0))).await;
    put(h, &alice, PutBlock::new("\u{1f600}".repeat(32), "text", at(0))).await;
    assert_eq!(all(h, &alice).await.len(), 2, "128 bytes are allowed");
    Passed
}

/// Names that a careless store would mix up are different blocks.
pub async fn keep_hostile_names_apart(h: &Harness) -> Outcome {
    let alice = World::new().user("alice");
    let names = naughty::keys();
    for (i, name) in names.iter().enumerate() {
        put(h, &alice, PutBlock::new(name.as_str(), format!("text {i}"), at(0)).with_order(i as u32)).await;
    }
    let found = all(h, &alice).await;
    assert_eq!(found.len(), names.len(), "every name is a block of its own");
    for (i, (name, block)) in names.iter().zip(&found).enumerate() {
        assert_eq!((&*block.name, &*block.content), (name.as_str(), format!("text {i}").as_str()));
    }
    Passed
}
