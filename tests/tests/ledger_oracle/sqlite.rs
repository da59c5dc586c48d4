//! The ledger on SQLite, all sequences in one file.

use crate::compare;

#[test]
fn sqlite_answers_as_the_oracle() {
    let dir = std::env::temp_dir().join(format!("loomflow-ledger-oracle-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&dir).unwrap();
    compare(&format!("sqlite:{}", dir.join("ledger.db").display()), None);
    std::fs::remove_dir_all(&dir).unwrap();
}
