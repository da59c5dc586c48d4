//! The ledger on PostgreSQL.

use loomflow_tests::services;

use crate::compare;

#[test]
fn postgres_answers_as_the_oracle() {
    compare(&services::url("postgres"), None);
}
