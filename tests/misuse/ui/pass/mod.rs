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
mod context_of_a_child;
mod converted_scope;
mod copied_secret;
mod default_scope;
mod delegated_to_another_tenant;
mod delegated_without_a_run;
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
mod tool_answer_that_cannot_be_told;
mod tool_argument_that_borrows;
mod tool_argument_that_cannot_be_read;
mod tool_that_blocks;
mod tool_that_cannot_be_sent;
mod tool_with_an_unknown_effect;
mod tool_without_an_effect;
mod tool_without_documentation;
mod tool_without_permit;
mod unscoped_recall;
