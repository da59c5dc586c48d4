//! The ledger on Redis.

use loomflow_tests::services;

use crate::compare;

#[test]
fn redis_answers_as_the_oracle() {
    compare(&services::url("redis-plain"), None);
}
