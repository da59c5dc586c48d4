//! The Rust in the README and the book, compiled as doc tests.
//!
//! A new document is one line below; `cargo xtask tidy` refuses one whose Rust is not compiled.

/// Makes each document's Rust blocks doc tests of this crate.
macro_rules! docs {
    ($($name:ident = $path:literal,)*) => {
        $(
            #[cfg(doctest)]
            #[doc = include_str!($path)]
            #[derive(Debug)]
            pub struct $name;
        )*
    };
}

docs! {
    Readme = "../../README.md",
    Ledgers = "../../docs/ledgers.md",
    Models = "../../docs/models.md",
    Permissions = "../../docs/permissions.md",
    Prices = "../../docs/prices.md",
    RateLimits = "../../docs/rate-limits.md",
    Stores = "../../docs/stores.md",
    SubAgents = "../../docs/sub-agents.md",
    WritingATool = "../../docs/writing-a-tool.md",
}
