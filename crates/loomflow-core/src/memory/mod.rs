//! Memory: what a backend author implements, and the handle a tenant's code gets.

mod fact;
mod record;
mod scoped;
mod store;

pub use fact::{
    AssertOutcome, Asserted, Cardinality, Fact, FactQuery, FactStore, NewFact, canonical_predicate,
};
pub(crate) use record::searchable;
pub use record::{
    Embedding, Episode, EpisodeMatch, HistoryLimit, MemoryBlock, MemoryProfile, NewEpisode, PutBlock,
    RecallQuery,
};
pub use scoped::ScopedMemory;
pub use store::{Capabilities, MemoryStore, NoMemory};
