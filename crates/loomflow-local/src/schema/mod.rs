//! Structured output: JSON Schema, within limits that a hostile schema cannot pass.

mod graph;
mod json_schema;

pub use json_schema::JsonSchema;
