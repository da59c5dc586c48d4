//! LoomFlow's quota ledger on SQLite.
#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]
