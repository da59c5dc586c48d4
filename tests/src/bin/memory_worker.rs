//! `memory_worker`: a process of its own that does to a store what it is told.

#![forbid(unsafe_code)]

fn main() {}
