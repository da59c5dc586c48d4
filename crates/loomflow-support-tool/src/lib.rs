//! What the code that `#[tool]` writes stands on. Application authors meet it through the `loomflow` crate only.
//!
//! It turns the types of a function's parameters into the JSON Schema that the model is shown, and the model's
//! arguments into values of these types, or into words that tell the model everything that was wrong. It is a crate of
//! its own because core knows no schema generator.
//!
//! A crate that writes tools without the facade depends on `loomflow-core`, `loomflow-macros` and this crate, and says
//! `#[tool(crate = loomflow_support_tool, ..)]`.

#![forbid(unsafe_code)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod absent;
mod declare;
mod read;
mod schema;
mod words;

pub use {schemars, serde};

/// What `#[tool]` names in the code it writes. It changes with the macro and is not for anybody else.
#[doc(hidden)]
pub mod __tool {
    use std::pin::Pin;

    pub use loomflow_core::{
        Effect, IntoToolOutcome, PermittedCall, RunContext, Tool, ToolOutcome, ToolSpec,
    };

    pub use crate::declare::{Declaration, Declared, Pass};

    /// What a tool's `call` returns once `async_trait` is taken away.
    pub type Called<'c> = Pin<Box<dyn Future<Output = ToolOutcome> + Send + 'c>>;

    /// What the model is told. The macro calls it at the place of the function's return type.
    pub fn answer(answer: impl IntoToolOutcome) -> ToolOutcome {
        answer.into_tool_outcome()
    }
}
