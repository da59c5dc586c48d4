//! LoomFlow's quota ledger on PostgreSQL.
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]
