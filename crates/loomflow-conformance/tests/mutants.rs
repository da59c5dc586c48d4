//! Every defect that is put into a correct backend is found by the suite: the score is 100 per cent, and a defect that
//! lets one tenant at another's data is found by an isolation case.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that reports what found each mutant")]

mod reference;

use loomflow_conformance::{Case, Verdict, approvals, audit, ledger, memory, runtime, tool_cache};
use reference::Bug::{self, *};

/// The first case that finds the defect, an isolation case where one is asked for.
async fn killer<H: Sync>(cases: &'static [Case<H>], isolation: bool, open: impl Fn() -> H) -> Option<String> {
    for case in cases.iter().filter(|case| !isolation || case.is_isolation()) {
        if let Verdict::Failed(why) = case.verdict(&open()).await {
            return Some(format!("{case:?}: {why}"));
        }
    }
    None
}

async fn hunt<H: Sync>(
    cases: &'static [Case<H>],
    open: impl Fn(Bug) -> H,
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
            UnknownPriceIsFree,
            ExcessIsLost,
            BelowMinimum,
            LeaseNeverEnds,
            SentLeaseRefunds,
            EstimateStays,
            WarnsAlways,
            RefundIsCounted,
            GlobalNotCounted,
            ResetOnClockChange,
        ],
        &[
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
async fn every_approvals_mutant_is_found() {
    hunt(
        approvals::cases(),
        reference::approvals::harness,
        &[UsedTwice, DecidedTwice, ExpiryIgnored, BindingIgnored, VersionIgnored, RaceOnDecide],
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
            ForgetEverybody,
            ForgetTakesApprovers,
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_of_the_others_is_found() {
    let partition = [CaseFold, Truncate, NoNamespace, ForgetEverybody, OwnerFromArgument, NoFilter];
    hunt(audit::cases(), reference::others::log, &[], &[&partition[..], &[PrefixMatch, LikePattern]].concat()).await;
    let more = [EpochIgnored, KeysAreShared, ForeignClose];
    let plain = [LeaseNeverEnds, RememberReplaces];
    hunt(runtime::cases(), reference::others::journal, &plain, &[&partition[..], &more].concat()).await;
    let cache = [CaseFold, Truncate, NoNamespace, NoDelimiter, ForgetEverybody, EpochIgnored];
    hunt(tool_cache::cases(), reference::others::cache, &[], &cache).await;
}
