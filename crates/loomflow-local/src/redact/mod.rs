//! In-process redaction: every secret this process resolved, and the shapes secrets are known to have.

mod exact;
mod patterns;
mod scrub;

pub use scrub::PatternScrub;
