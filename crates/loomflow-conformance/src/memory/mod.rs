//! The suite of [`MemoryStore`], facts included.

pub mod blocks;
pub mod concurrency;
pub mod erasure;
pub mod facts;
pub mod facts_time;
pub mod history;
pub mod isolation;
pub mod planted;
pub mod profile;
pub mod recall;
pub mod recall_vectors;
pub mod remember;

use std::fmt;
use std::sync::Arc;

use loomflow_core::{
    Episode, EpisodeMatch, Fact, FactQuery, FactStore, HistoryLimit, MemoryStore, NewEpisode, NewFact,
    PutBlock, RecallQuery, Result, Scope, SessionId,
};

use crate::fixture::{Must as _, open};
use crate::plant::{Plant, PlantHook};
use crate::{IntoHarness, Unavailable};

/// A row to plant in a memory.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Planted {
    /// An episode that recall and history must find.
    Episode(NewEpisode),
    /// A block. Its content is always set.
    Block(PutBlock),
    /// A fact. Asked for only when the backend has facts.
    Fact(NewFact),
}

/// The memory under test.
#[derive(Clone)]
pub struct Harness {
    store: Arc<dyn MemoryStore>,
    plant: PlantHook<Planted>,
}

impl Harness {
    /// A harness for `store`, which may be shared with other cases and hold other data.
    #[must_use]
    pub fn new(store: Arc<dyn MemoryStore>) -> Self {
        Self { store, plant: PlantHook::none() }
    }

    /// Says how to write a foreign row where a tenant's own query finds it. Without it the suite fails.
    #[must_use]
    pub fn with_plant<F, Fut>(mut self, plant: F) -> Self
    where
        F: Fn(Plant<Planted>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.plant = PlantHook::new(plant);
        self
    }

    /// The backend.
    #[must_use]
    pub fn store(&self) -> &dyn MemoryStore {
        &*self.store
    }

    pub(crate) fn shared(&self) -> Arc<dyn MemoryStore> {
        self.store.clone()
    }

    pub(crate) fn facts(&self) -> Option<&dyn FactStore> {
        self.store.facts()
    }

    pub(crate) async fn remember(&self, scope: &Scope, episode: NewEpisode) {
        self.store.remember(scope, episode).await.must("remember");
    }

    pub(crate) async fn recall(&self, scope: &Scope, query: &RecallQuery) -> Vec<EpisodeMatch> {
        open(scope, self.store.recall(scope, query).await.must("recall"), "recall")
    }

    pub(crate) async fn newest(&self, scope: &Scope) -> Vec<Arc<Episode>> {
        let found = self.recall(scope, &RecallQuery::new("", 1_000)).await;
        found.into_iter().map(|m| m.episode).collect()
    }

    pub(crate) async fn history(&self, scope: &Scope, session: &SessionId, messages: usize) -> Vec<String> {
        let limit = HistoryLimit::messages(messages);
        let found = self.store.history(scope, session, limit).await.must("history");
        open(scope, found, "history").into_iter().map(|m| m.text.to_string()).collect()
    }

    pub(crate) async fn block_names(&self, scope: &Scope) -> Vec<String> {
        let found = self.store.blocks(scope).await.must("blocks");
        open(scope, found, "blocks").into_iter().map(|b| b.name.to_string()).collect()
    }

    pub(crate) async fn query_facts(&self, scope: &Scope, query: &FactQuery) -> Vec<Fact> {
        let facts = self.facts().expect("asked only of a backend with facts");
        open(scope, facts.query(scope, query).await.must("query of facts"), "query of facts")
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory::Harness({}, {:?})", self.store.store_name(), self.plant)
    }
}

#[doc(hidden)]
#[allow(clippy::future_not_send, reason = "a factory need not be Send")]
pub async fn provide<F, Fut, P>(factory: F) -> Result<Harness, Unavailable>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = P>,
    P: IntoHarness<Harness>,
{
    factory().await.into_harness()
}

crate::case::suite! { $ memory, memory_cases, __loomflow_memory_case,
    /// One `#[test]` per case of the memory suite, in a module `memory_cases`. `factory` is an `async fn` that returns a
    /// fresh [`memory::Harness`](crate::memory::Harness), or `Result<Harness, Unavailable>`.
    behaviour: [
        remember::returns_an_id_derived_from_the_run,
        remember::the_same_run_is_stored_once,
        remember::messages_come_back_as_they_were,
        remember::hostile_text_comes_back_as_it_was,
        remember::the_newest_come_first_without_a_query,
        history::is_oldest_first_and_of_one_session,
        history::is_ordered_by_when_it_was_said,
        history::keeps_episodes_whole,
        history::of_an_unknown_session_is_empty,
        history::hostile_sessions_do_not_mix,
        recall::ranks_by_words,
        recall::leaves_out_what_does_not_match,
        recall::does_not_search_tool_outcomes,
        recall::scores_by_reciprocal_rank,
        recall::breaks_ties_by_time_then_id,
        recall::keeps_to_its_limit,
        recall::leaves_out_the_history_in_the_prompt,
        recall::takes_a_query_as_data,
        recall::of_an_unknown_partition_is_empty,
        recall_vectors::ranks_by_cosine,
        recall_vectors::leaves_out_what_points_away,
        recall_vectors::refuses_vectors_of_another_kind,
        recall_vectors::refuses_vectors_that_are_none,
        recall_vectors::fuses_words_and_vectors,
        blocks::are_ordered_by_place_then_name,
        blocks::are_replaced_in_place,
        blocks::are_removed,
        blocks::refuse_bad_names,
        blocks::keep_hostile_names_apart,
        profile::of_an_unknown_partition_is_zero,
        profile::counts_what_is_held,
        profile::lists_recent_sessions_newest_first,
        profile::export_is_complete,
        profile::export_of_an_unknown_partition_is_empty,
        facts::are_found_by_their_parts,
        facts::are_reinforced_instead_of_repeated,
        facts::of_many_stand_side_by_side,
        facts::refuse_nonsense,
        facts::are_newest_first,
        facts::are_found_by_words,
        facts::of_an_unknown_partition_are_none,
        facts_time::one_value_ends_the_other,
        facts_time::what_was_believed_can_be_asked,
        facts_time::a_late_arrival_does_not_undo_the_present,
        facts_time::a_correction_in_the_middle_splits,
        facts_time::borders_are_half_open,
        facts_time::the_transaction_axis_never_runs_backwards,
        facts_time::of_concurrent_values_one_stands,
        erasure::everything_goes_everywhere,
        erasure::of_a_session_leaves_the_others,
        erasure::of_a_session_takes_facts_that_came_from_it_alone,
        erasure::before_a_moment_leaves_what_came_after,
        erasure::of_a_session_before_a_moment_takes_only_both,
        erasure::of_an_unknown_partition_is_a_line_of_zeros,
        erasure::what_is_erased_no_longer_weighs,
        erasure::a_partition_can_be_used_again,
        concurrency::concurrent_turns_are_all_kept,
        concurrency::the_same_turn_at_once_is_stored_once,
        concurrency::dropped_writes_are_whole_or_absent,
    ],
    isolation: [
        erasure::stale_writes_are_refused,
        erasure::stale_writes_are_refused_for_a_user_never_seen,
        erasure::the_epoch_never_goes_back,
        erasure::two_erasures_never_share_an_epoch,
        erasure::a_partial_erasure_raises_the_epoch_too,
        isolation::the_same_run_and_session_in_every_tenant,
        isolation::blocks_of_the_same_name_in_every_tenant,
        isolation::facts_of_the_same_subject_in_every_tenant,
        isolation::profiles_count_their_own,
        isolation::exports_hold_their_own,
        isolation::vectors_of_others_never_match,
        isolation::erasing_one_leaves_the_other,
        isolation::erasing_one_does_not_make_the_other_stale,
        isolation::namespaces_are_apart,
        isolation::a_border_between_namespace_and_user_cannot_be_shifted,
        isolation::anonymous_is_nobody_else,
        isolation::ranking_ignores_what_others_wrote,
        isolation::others_cannot_crowd_a_tenant_out,
        isolation::hostile_queries_find_nothing_foreign,
        isolation::concurrent_tenants_stay_apart,
        planted::a_foreign_episode_trips_recall,
        planted::a_foreign_episode_trips_history,
        planted::a_foreign_block_trips_blocks,
        planted::a_foreign_fact_trips_facts,
        planted::a_foreign_record_trips_export,
        planted::a_foreign_record_trips_profile,
    ],
}
