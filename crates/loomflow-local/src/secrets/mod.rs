//! In-process secrets: the process environment, and a table.

mod dict;
mod env;

pub use dict::DictSecrets;
pub use env::EnvSecrets;
