//! The ledger in process, as it is, and with so few users kept hot that they are evicted at any moment.

use crate::compare;

#[test]
fn the_ledger_in_process_answers_as_the_oracle() {
    compare("inmemory", None);
}

/// Two hot users of six, evicted at any moment and by idleness: nothing that is answered changes.
#[test]
fn eviction_changes_no_answer() {
    compare("inmemory", Some(2));
}
