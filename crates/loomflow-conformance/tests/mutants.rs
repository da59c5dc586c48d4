//! Every defect that is put into a correct backend is found by the suite: the score is 100 per cent, and a defect that
//! lets one tenant at another's data is found by an isolation case.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that reports what found each mutant")]

mod reference;

use loomflow_conformance::{
    Case, Verdict, approvals, audit, ledger, memory, models, rate_limit, runtime, tool_cache,
};
use reference::Bug::{self, *};

/// The first case that finds the defect, an isolation case where one is asked for.
async fn killer<H: Send + Sync>(
    cases: &'static [Case<H>],
    isolation: bool,
    open: impl Fn() -> H + Send + Sync,
) -> Option<String> {
    for case in cases.iter().filter(|case| !isolation || case.is_isolation()) {
        if let Verdict::Failed(why) = case.verdict(&open()).await {
            return Some(format!("{case:?}: {why}"));
        }
    }
    None
}

/// Fails unless the case `name` itself finds the defect: other cases may find it as well, for other reasons.
async fn must_find<H: Send + Sync>(
    cases: &'static [Case<H>],
    open: impl Fn(Bug) -> H + Send + Sync,
    pairs: &[(Bug, &str)],
) {
    let mut missed = Vec::new();
    for (bug, name) in pairs {
        let case = cases.iter().find(|case| case.name() == *name).unwrap();
        let verdict = case.verdict(&open(*bug)).await;
        if !matches!(verdict, Verdict::Failed(_)) {
            missed.push(format!("{name} does not find {bug:?}: {verdict:?}"));
        }
    }
    // Printed, because the panics of the cases, and with them this one's, are kept silent.
    println!("{missed:#?}");
    assert!(missed.is_empty(), "{missed:#?}");
}

async fn hunt<H: Send + Sync>(
    cases: &'static [Case<H>],
    open: impl Fn(Bug) -> H + Send + Sync,
    plain: &[Bug],
    isolation: &[Bug],
) {
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    let all = plain.iter().map(|bug| (*bug, false)).chain(isolation.iter().map(|bug| (*bug, true)));
    for (bug, must_be_isolation) in all {
        match killer(cases, must_be_isolation, || open(bug)).await {
            Some(found) => println!("{bug:?} found by {}", found.chars().take(160).collect::<String>()),
            None => survivors.push(bug),
        }
    }
    let total = plain.len() + isolation.len();
    println!("{} of {total} mutants found", total - survivors.len());
    assert!(survivors.is_empty(), "no case finds {survivors:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cases_find_what_they_are_named_for() {
    std::panic::set_hook(Box::new(|_| {}));
    let pairs = [
        (SharedStatistics, "ranking_ignores_what_others_wrote"),
        (CutBeforeFilter, "others_cannot_crowd_a_tenant_out"),
        (HalfAWrite, "dropped_writes_are_whole_or_absent"),
        (ForgetKeepsCopies, "everything_goes_everywhere"),
        (NoFilter, "concurrent_tenants_stay_apart"),
        (OwnerFromArgument, "a_foreign_episode_trips_history"),
        (OwnerFromArgument, "a_foreign_block_trips_blocks"),
        (OwnerFromArgument, "a_foreign_fact_trips_facts"),
        (OwnerFromArgument, "a_foreign_record_trips_export"),
        (OwnerFromArgument, "a_foreign_record_trips_profile"),
        (NoNamespace, "namespaces_are_apart"),
        (EpochOfEverybody, "erasing_one_does_not_make_the_other_stale"),
        (AnonymousIsAName, "anonymous_is_nobody_else"),
    ];
    must_find(memory::cases(), reference::memory::harness, &pairs).await;
    let pairs = [
        (RaceOnReserve, "reserves_at_once_never_exceed_the_global_cap"),
        (RaceOnReserve, "the_books_balance_under_load"),
        (DoubleSettle, "closes_at_once_count_once"),
        (KeyIgnored, "the_same_key_at_once_holds_once"),
        (KeyIgnored, "dropped_calls_are_whole_or_absent"),
        (GlobalNotCounted, "the_global_cap_counts_everybody"),
        (ForgetEverybody, "forgetting_one_leaves_the_other"),
        (ResetOnClockChange, "turning_the_clock_back_gives_nothing_away"),
        (LeaseNeverEnds, "an_expired_hold_is_refunded"),
    ];
    must_find(ledger::cases(), reference::ledger::harness, &pairs).await;
    let pairs = [
        (UsedTwice, "a_decision_is_used_once"),
        (UsedTwice, "of_concurrent_uses_one_wins"),
        (DecidedTwice, "a_request_is_decided_once"),
        (RaceOnDecide, "of_concurrent_decisions_one_wins"),
        (ExpiryIgnored, "an_expired_request_can_be_neither_decided_nor_used"),
        (OtherNamespaceDecides, "an_approver_of_another_namespace_is_a_stranger"),
    ];
    must_find(approvals::cases(), reference::approvals::harness, &pairs).await;
    let pairs = [
        (EvictionRefills, "many_strangers_make_no_limit_fresh"),
        (GlobalNotCounted, "the_global_limit_counts_everybody"),
        (RefundAboveBurst, "no_limit_becomes_better_than_fresh"),
        (BurstAndOne, "no_window_has_more_than_rate_and_burst"),
        (RaceOnReserve, "fifty_at_once_admit_a_burst"),
        (RaceOnReserve, "fifty_users_at_once_admit_a_global_burst"),
        (HalfTaken, "all_is_taken_or_nothing"),
        (HalfTaken, "all_or_nothing_at_once"),
        (RefusedTakesGlobal, "a_user_who_is_refused_takes_nothing_of_the_global_limit"),
        (RetryTooSoon, "a_refusal_says_exactly_when"),
        (ShortestWait, "the_longest_wait_is_named"),
        (LeaseNeverEnds, "what_was_taken_comes_back_at_the_rate"),
        (ResetOnClockChange, "turning_the_clock_back_gives_nothing_and_locks_nobody_out"),
        (ClockLocksOut, "turning_the_clock_back_gives_nothing_and_locks_nobody_out"),
        (ExcessIsLost, "a_debt_is_waited_for"),
        (NoNamespace, "namespaces_are_apart"),
        (ForgetEverybody, "forgetting_one_leaves_the_other"),
    ];
    must_find(rate_limit::cases(), reference::rate_limit::harness, &pairs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_memory_mutant_is_found() {
    hunt(
        memory::cases(),
        reference::memory::harness,
        &[
            TiesOldestFirst,
            ForgetKeepsCopies,
            ForgetKeepsStatistics,
            ForgetSessionTakesSharedFacts,
            RememberTwice,
            RememberReplaces,
            HistorySplitsEpisodes,
            SessionsByPrefix,
            LateFactWins,
            HalfAWrite,
            MixedVectors,
            AnyVector,
            KindOutlivesErasure,
        ],
        &[
            CaseFold,
            PrefixMatch,
            LikePattern,
            Truncate,
            NoDelimiter,
            NoNamespace,
            AnonymousIsAName,
            NoFilter,
            OwnerFromArgument,
            DropForeign,
            ExportEverybody,
            ProfileOfEverybody,
            SharedStatistics,
            CutBeforeFilter,
            EpochIgnored,
            EpochOfEverybody,
            EpochOnlyOfKnown,
            EpochGoesBack,
            EpochShared,
            EpochNotByParts,
            ForgetEverybody,
            RunIdsAreGlobal,
            FactsEndForeignFacts,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ledger_mutant_is_found() {
    hunt(
        ledger::cases(),
        reference::ledger::harness,
        &[
            DoubleSettle,
            RaceOnReserve,
            KeyIgnored,
            KeyHidesAmounts,
            UnknownPriceIsFree,
            ExcessIsLost,
            BelowMinimum,
            LeaseNeverEnds,
            SentLeaseRefunds,
            EstimateStays,
            EstimatesHideExpired,
            InvoiceIsAdded,
            InvoiceReplacesReports,
            WarnsAlways,
            RefundIsCounted,
            GlobalNotCounted,
            ResetOnClockChange,
        ],
        &[
            EstimatesOfEverybody,
            CaseFold,
            Truncate,
            NoDelimiter,
            NoNamespace,
            AnonymousIsAName,
            ForeignClose,
            ForeignSent,
            RunsAreShared,
            KeysAreShared,
            ForgetResetsQuota,
            ForgetEverybody,
            ExportEverybody,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rate_limit_mutant_is_found() {
    hunt(
        rate_limit::cases(),
        reference::rate_limit::harness,
        &[
            BurstAndOne,
            TooLargeWaits,
            RetryTooSoon,
            ShortestWait,
            HalfTaken,
            RefusedTakesGlobal,
            RefundAboveBurst,
            RefundIsCounted,
            ExcessIsLost,
            DebtUnbounded,
            SettlesEverything,
            GlobalNotSettled,
            GlobalNotCounted,
            RaceOnReserve,
            LeaseNeverEnds,
            ResetOnClockChange,
            ClockLocksOut,
        ],
        &[
            CaseFold,
            PrefixMatch,
            LikePattern,
            Truncate,
            NoDelimiter,
            NoNamespace,
            AnonymousIsAName,
            NoFilter,
            EvictionRefills,
            ForgetResetsQuota,
            ForgetEverybody,
            ExportEverybody,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_approvals_mutant_is_found() {
    hunt(
        approvals::cases(),
        reference::approvals::harness,
        &[
            UsedTwice,
            DecidedTwice,
            ExpiryIgnored,
            BindingIgnored,
            VersionIgnored,
            RaceOnDecide,
            GrantWider,
            GrantNeverEnds,
            GrantsUnbounded,
            RevokeKeeps,
            ForgetKeepsGrants,
            PlaceIgnored,
            PagesUnbounded,
            RequestsUnbounded,
            LapsedAgain,
            VoidIsUsed,
            VoidForgotten,
            LapsesForEverybody,
        ],
        &[
            CaseFold,
            Truncate,
            NoDelimiter,
            NoNamespace,
            AnonymousIsAName,
            OwnerFromArgument,
            StrangerDecides,
            LookAlikeDecides,
            OtherNamespaceDecides,
            RequesterDecides,
            ApproverUses,
            IdTakenOver,
            ListsEverybody,
            ExportEverybody,
            EpochIgnored,
            EpochShared,
            ForgetEverybody,
            ForgetTakesApprovers,
            GrantByAnybody,
            GrantsOfEverybody,
            AnonymousIsRemembered,
            StrangerRevokes,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_of_the_others_is_found() {
    let partition =
        [CaseFold, Truncate, NoNamespace, NoDelimiter, ForgetEverybody, OwnerFromArgument, NoFilter];
    hunt(
        audit::cases(),
        reference::others::log,
        &[],
        &[&partition[..], &[PrefixMatch, LikePattern]].concat(),
    )
    .await;
    let more = [EpochIgnored, EpochShared, KeysAreShared, ForeignClose];
    let plain = [LeaseNeverEnds, RememberReplaces, StatusIgnored];
    hunt(runtime::cases(), reference::others::journal, &plain, &[&partition[..], &more].concat()).await;
    let cache = [CaseFold, Truncate, NoNamespace, NoDelimiter, ForgetEverybody, EpochIgnored];
    hunt(tool_cache::cases(), reference::others::cache, &[], &cache).await;
}

/// The cases that are quick to find what they are named for; the rest of the defects is hunted through the whole suite.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cases_of_models_find_what_they_are_named_for() {
    std::panic::set_hook(Box::new(|_| {}));
    let pairs = [
        (EofIsEnd, "a_stream_cut_at_any_byte_is_paid_for"),
        (EofIsEnd, "an_empty_reply_is_no_answer"),
        (NoUsageIsZero, "missing_usage_is_estimated_and_marked"),
        (PromptUndercounted, "text_arrives_as_it_was_said"),
        (OutputUncounted, "a_caller_who_leaves_in_mid_stream_closes_and_pays"),
        (ArgumentsUncounted, "arguments_that_never_end_are_bounded"),
        (CutIsFree, "a_connection_closed_without_an_answer_is_charged"),
        (FollowsRedirects, "a_redirect_is_not_given_the_key"),
        (EchoesKey, "a_key_that_the_provider_echoes_goes_nowhere"),
        (CutsBeforeScrub, "a_key_that_the_provider_echoes_goes_nowhere"),
        (RequestIdUnscrubbed, "a_key_that_the_provider_echoes_goes_nowhere"),
        (KeyIsKept, "a_rotated_key_is_used_at_once"),
        (KeyIsKept, "each_tenant_sends_its_own_key"),
        (KeyOfWhoeverWasLast, "each_tenant_sends_its_own_key"),
        (KeyInjects, "a_key_that_no_header_can_carry_sends_nothing"),
        (EmptyKeySent, "a_tenant_without_a_key_sends_nothing"),
        (StoreIsProvider, "a_secret_store_that_is_down_is_not_the_tenants_to_pay"),
        (UnboundedEvent, "an_event_of_a_hundred_megabytes_leaves_memory_flat"),
        (UnboundedBody, "a_plain_reply_of_a_hundred_megabytes_leaves_memory_flat"),
        (UnboundedErrorBody, "an_error_page_of_a_hundred_megabytes_leaves_memory_flat"),
        (UnboundedHead, "a_head_that_never_ends_is_bounded"),
        (LossyText, "text_that_is_not_utf8_is_refused"),
        (ErrorOvertakes, "text_that_is_not_utf8_is_refused"),
        (CrlfIsTwo, "line_ends_may_be_crlf_split_anywhere"),
        (PieceLost, "a_stream_split_at_any_byte_reads_the_same"),
        (PieceLost, "a_long_stream_split_at_random_reads_the_same"),
        (RetriesAlone, "a_connection_closed_without_an_answer_is_charged"),
        (ClampForgotten, "the_granted_output_reaches_the_wire"),
        (SchemaForgotten, "a_schema_reaches_the_wire"),
        (NameWithDot, "a_dotted_tool_travels_under_its_wire_name"),
        (BadArgumentsAreEmpty, "arguments_that_are_not_json_run_no_tool"),
        (IdsMerge, "call_ids_that_repeat_stay_two_calls"),
        (ErrorIsAnswer, "an_error_with_a_success_is_an_error"),
        (ErrorEventIgnored, "an_error_within_a_stream_is_charged_what_was_streamed"),
        (LimitIsEnd, "an_answer_cut_short_by_its_limit_is_no_success"),
        (LimitIsEnd, "a_refusal_is_no_success"),
        (RequestIdLost, "the_request_id_is_on_record"),
        (RetryAfterIgnored, "retry_after_is_read_in_every_form"),
        (RetryAfterPanics, "absurd_retry_afters_are_survived"),
        (EveryStatusIsOverloaded, "each_status_has_its_kind"),
        (RefusedIsTransport, "a_refused_connection_is_unreachable_and_free"),
        (PageInMessage, "a_page_with_an_error_status_is_the_status"),
    ];
    must_find(models::cases(), reference::model_wire::harness, &pairs).await;
}

/// These defects hang, so that finding them takes as long as the suite waits: all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_hangs_or_goes_on_alone_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let pairs = [
        (NoHeadersTimeout, "a_head_that_never_comes_times_out"),
        (HeadersTimeoutPerRead, "a_head_that_drips_times_out"),
        (NoIdleTimeout, "a_body_that_stalls_times_out"),
        (GoesOnAlone, "a_caller_who_leaves_in_mid_stream_closes_and_pays"),
    ];
    let hunts = pairs.map(|pair| async move {
        must_find(models::cases(), reference::model_wire::harness, &[pair]).await;
    });
    futures_util::future::join_all(hunts).await;
}
