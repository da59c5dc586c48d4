//! The suite of [`Model`](loomflow_core::Model) adapters that speak HTTP: whatever a server sends, or does not send, ends in a
//! typed error or in a correct result. Never in a call for free, a wrong tool, a hang or a full memory.
//!
//! Each case puts a [`ScriptedServer`](crate::doubles::ScriptedServer) in the provider's place and a real
//! [`Agent`](loomflow_core::Agent) with a [`RecordingLedger`](crate::doubles::RecordingLedger) before the adapter, and
//! compares what was charged with what the script had sent, counted by the suite itself.
//!
//! The case about memory measures the whole test process; run the tests one process each (as `cargo nextest` does) to
//! have nobody else's memory counted.

mod bench;
mod bodies;
pub mod cuts;
pub mod endless;
pub mod faults;
pub mod keys;
pub mod replies;
pub mod stalls;
pub mod statuses;
mod wire;

use std::fmt;
use std::sync::Arc;

pub use wire::{Setup, Wire, WireCall, WireEvent, WireReply};

use crate::{IntoHarness, Unavailable};

/// An adapter and its provider's wire.
#[derive(Clone)]
pub struct Harness {
    wire: Arc<dyn Wire>,
}

impl Harness {
    /// A harness of this wire.
    #[must_use]
    pub fn new(wire: impl Wire) -> Self {
        Self { wire: Arc::new(wire) }
    }

    pub(crate) fn wire(&self) -> &dyn Wire {
        &*self.wire
    }

    /// The wire, to be kept by a script.
    pub(crate) fn shared(&self) -> Arc<dyn Wire> {
        self.wire.clone()
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "models::Harness({:?})", self.wire)
    }
}

#[doc(hidden)]
pub async fn provide<F, Fut, P>(factory: F) -> Result<Harness, Unavailable>
where
    F: Fn() -> Fut,
    Fut: Future<Output = P>,
    P: IntoHarness<Harness>,
{
    factory().await.into_harness()
}

crate::case::suite! { $ models, models_cases, __loomflow_models_case,
    /// One `#[test]` per case of the model suite, in a module `models_cases`. `factory` is an `async fn` to a
    /// [`models::Harness`](crate::models::Harness).
    behaviour: [
        replies::text_arrives_as_it_was_said,
        replies::parallel_calls_keep_their_arguments,
        replies::a_dotted_tool_travels_under_its_wire_name,
        replies::a_schema_reaches_the_wire,
        replies::the_granted_output_reaches_the_wire,
        replies::missing_usage_is_estimated_and_marked,
        replies::call_ids_that_repeat_stay_two_calls,
        replies::arguments_that_are_not_json_run_no_tool,
        replies::a_call_that_is_cut_off_runs_no_tool,
        replies::an_answer_cut_short_by_its_limit_is_no_success,
        replies::a_refusal_is_no_success,
        replies::the_request_id_is_on_record,
        cuts::a_stream_cut_at_any_byte_is_paid_for,
        cuts::a_chunked_stream_cut_at_any_byte_is_paid_for,
        cuts::a_plain_reply_cut_at_any_byte_is_paid_for,
        cuts::a_stream_split_at_any_byte_reads_the_same,
        cuts::a_long_stream_split_at_random_reads_the_same,
        cuts::line_ends_may_be_crlf_split_anywhere,
        faults::a_page_with_an_error_status_is_the_status,
        faults::a_page_with_a_success_is_no_answer,
        faults::an_error_with_a_success_is_an_error,
        faults::an_error_within_a_stream_is_charged_what_was_streamed,
        faults::text_that_is_not_utf8_is_refused,
        faults::an_empty_reply_is_no_answer,
        faults::a_stream_of_something_else_is_no_answer,
        endless::a_stream_that_never_ends_is_bounded,
        endless::a_stream_that_says_nothing_for_ever_is_bounded,
        endless::arguments_that_never_end_are_bounded,
        endless::too_many_calls_are_refused,
        endless::an_event_of_a_hundred_megabytes_leaves_memory_flat,
        endless::a_plain_reply_of_a_hundred_megabytes_leaves_memory_flat,
        endless::an_error_page_of_a_hundred_megabytes_leaves_memory_flat,
        endless::a_head_that_never_ends_is_bounded,
        statuses::each_status_has_its_kind,
        statuses::retry_after_is_read_in_every_form,
        statuses::absurd_retry_afters_are_survived,
        statuses::each_attempt_is_paid_for_on_its_own,
        stalls::a_head_that_never_comes_times_out,
        stalls::a_head_that_drips_times_out,
        stalls::a_body_that_stalls_times_out,
        stalls::a_body_that_drips_ends_with_the_run,
        stalls::a_slow_reply_is_read_to_its_end,
        stalls::a_refused_connection_is_unreachable_and_free,
        stalls::a_reset_in_mid_stream_is_charged_what_was_streamed,
        stalls::a_connection_closed_without_an_answer_is_charged,
        stalls::a_caller_who_leaves_in_mid_stream_closes_and_pays,
        stalls::a_caller_who_leaves_before_the_head_closes_and_pays,
    ],
    isolation: [
        keys::each_tenant_sends_its_own_key,
        keys::a_rotated_key_is_used_at_once,
        keys::a_tenant_without_a_key_sends_nothing,
        keys::a_secret_store_that_is_down_is_not_the_tenants_to_pay,
        keys::a_key_that_no_header_can_carry_sends_nothing,
        keys::a_key_that_the_provider_echoes_goes_nowhere,
        keys::a_redirect_is_not_given_the_key,
        keys::replies_at_once_stay_with_who_asked,
    ],
}
