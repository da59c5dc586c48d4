//! `#[tool]`: an async fn becomes a tool that an agent can offer to a model.
//!
//! Application authors use it through the `loomflow` crate, where it is documented with examples that are compiled.

#![forbid(unsafe_code)]

mod expand;
mod function;
mod problems;
mod settings;

use proc_macro::TokenStream;

/// Makes an async fn a tool.
///
/// ```text
/// /// Gives the money of an order back.
/// #[tool(effect = external, timeout = "5s", idempotent, name = "orders.refund")]
/// async fn refund(
///     ctx: &RunContext,
///     /// The order's number.
///     order: OrderId,
///     /// In cents; all of it when left out.
///     amount: Option<u64>,
/// ) -> Result<String> { .. }
/// ```
///
/// What follows has the function's name and visibility, is a unit struct that implements `Tool`, and is offered with
/// `.tool(refund)`. The function itself is still there for tests of its own: `refund::call_direct(&ctx, order, amount)`. It
/// passes no door: no policy is asked, nothing is recorded.
///
/// # The attribute
///
/// | | |
/// |---|---|
/// | `effect = read \| write \| destructive \| external` | what a call does to the world; there is no default |
/// | `timeout = "500ms"`, `"5s"`, `"2m"` | how long a call may take; without it the agent's tool timeout holds |
/// | `idempotent`, `idempotent = false` | whether calling twice is the same as calling once; without it only what reads is |
/// | `name = "orders.refund"` | the tool's name; without it the function's: 1 to 64 of `A-Z a-z 0-9 _ . -`, where a dot counts twice |
/// | `crate = path` | where `loomflow` is found under another name; or `loomflow_support_tool` without the facade |
///
/// # The function
///
/// - Its documentation is the tool's description, and has to be there: the model knows nothing else about the tool.
/// - `&RunContext`, if it is wanted, is the first parameter. It knows who is asking; an argument never does.
/// - Every other parameter is an argument. Its name is the argument's name, its documentation the argument's description,
///   its type anything owned that implements `serde::de::DeserializeOwned` and `schemars::JsonSchema`. An `Option` may be
///   left out. A limit on a value is a type: `NonZeroU64`, an enum, or a newtype with `#[schemars(range(..))]`.
/// - It returns something that implements `IntoToolOutcome`: text, `()`, `Json(value)`, `ToolOutcome`, or a `Result`.
/// - Its future is `Send`. No generics, no `self`, no patterns.
///
/// Because the tool is a unit struct, a local variable cannot have its name while it is in scope.
///
/// # Arguments that do not fit
///
/// The function is not called. The model is told, at once, every argument that does not exist, is missing or has the
/// wrong type, and what the tool takes.
#[proc_macro_attribute]
pub fn tool(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand::tool(attribute.into(), item.into()).into()
}
