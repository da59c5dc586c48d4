//! The provider at the other end: model doubles that keep an invoice of their own.
//!
//! Nothing here shares a counter or a counting function with the ledger or with core. What a double tells core before a
//! call (`count_tokens`, `count_output`) and what it writes on the invoice are two implementations, so that a
//! disagreement anywhere shows as a mismatch.

mod embedder;
mod fixed;
mod invoice;
mod metered;

pub use embedder::MeteredEmbedder;
pub use fixed::{FixedModel, INPUT_TOKENS, OUTPUT_TOKENS};
pub use invoice::{Account, Invoice};
pub use metered::MeteredModel;
