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
    Approvals = "../../docs/approvals.md",
    Models = "../../docs/models.md",
    Prices = "../../docs/prices.md",
    Stores = "../../docs/stores.md",
    WritingATool = "../../docs/writing-a-tool.md",
}
