//! Embedders that need no provider: feature hashing, and a double for tests.

mod fake;
mod hash;

pub use fake::FakeEmbedder;
pub use hash::HashEmbedder;
