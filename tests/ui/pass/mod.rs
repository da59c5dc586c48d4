//! The twins: each file beside this one is its namesake in `../fail` after one change, and compiles.

#![allow(
    dead_code,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "only whether they compile counts"
)]

mod agent_without_a_model;
mod backend_through_a_handle;
mod converted_scope;
mod copied_secret;
mod default_scope;
mod deserialised_scope;
mod embedding_outside_the_door;
mod forged_admission;
mod forged_permit;
mod forged_redaction;
mod forged_scope;
mod kept_scope;
mod memory_of_another;
mod minted_scope;
mod model_outside_the_door;
mod permit_used_twice;
mod printed_secret;
mod raw_json_to_audit;
mod serialised_secret;
mod settled_before_sent;
mod settled_twice;
mod store_through_scoped_memory;
mod string_as_scope;
mod tool_without_permit;
mod unscoped_recall;
