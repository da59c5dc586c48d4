#![doc = include_str!("../docs.md")]
#![forbid(unsafe_code)]
