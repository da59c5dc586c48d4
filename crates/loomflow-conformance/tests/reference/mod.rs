//! Naive, correct backends that the suites are tried on, and the defects that can be put into them.
//!
//! Everything is a flat list under one lock, scanned for every question: slow, and easy to see to be right.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod approvals;
pub(crate) mod ledger;
pub(crate) mod memory;
pub(crate) mod model;
pub(crate) mod model_wire;
pub(crate) mod others;
pub(crate) mod rate_limit;

use loomflow_core::{Epoch, Error, ErrorKind, Identity, Owner, Result, Scope};

/// A defect of a backend. `Clean` is the correct one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    Clean,
    // How a partition becomes a key.
    CaseFold,
    PrefixMatch,
    LikePattern,
    Truncate,
    NoDelimiter,
    NoNamespace,
    AnonymousIsAName,
    // Whose a record is.
    NoFilter,
    OwnerFromArgument,
    DropForeign,
    ExportEverybody,
    ProfileOfEverybody,
    // Ranking.
    SharedStatistics,
    CutBeforeFilter,
    TiesOldestFirst,
    // Erasure.
    EpochIgnored,
    EpochOfEverybody,
    EpochOnlyOfKnown,
    EpochGoesBack,
    EpochShared,
    EpochNotByParts,
    ForgetEverybody,
    ForgetKeepsCopies,
    ForgetKeepsStatistics,
    ForgetSessionTakesSharedFacts,
    // Memory's own.
    RememberTwice,
    RememberReplaces,
    RunIdsAreGlobal,
    HistorySplitsEpisodes,
    SessionsByPrefix,
    FactsEndForeignFacts,
    LateFactWins,
    HalfAWrite,
    MixedVectors,
    AnyVector,
    KindOutlivesErasure,
    // Ledger.
    DoubleSettle,
    RaceOnReserve,
    ForeignClose,
    ForeignSent,
    RunsAreShared,
    KeysAreShared,
    KeyIgnored,
    KeyHidesAmounts,
    ForgetResetsQuota,
    UnknownPriceIsFree,
    ExcessIsLost,
    BelowMinimum,
    LeaseNeverEnds,
    SentLeaseRefunds,
    EstimateStays,
    WarnsAlways,
    EstimatesHideExpired,
    EstimatesOfEverybody,
    InvoiceIsAdded,
    InvoiceReplacesReports,
    RefundIsCounted,
    GlobalNotCounted,
    ResetOnClockChange,
    // Rate limits.
    EvictionRefills,
    BurstAndOne,
    TooLargeWaits,
    RetryTooSoon,
    ShortestWait,
    HalfTaken,
    RefusedTakesGlobal,
    RefundAboveBurst,
    DebtUnbounded,
    SettlesEverything,
    GlobalNotSettled,
    ClockLocksOut,
    // Approvals.
    UsedTwice,
    DecidedTwice,
    StrangerDecides,
    LookAlikeDecides,
    OtherNamespaceDecides,
    RequesterDecides,
    ApproverUses,
    ExpiryIgnored,
    BindingIgnored,
    VersionIgnored,
    IdTakenOver,
    ListsEverybody,
    RaceOnDecide,
    ForgetTakesApprovers,
    GrantWider,
    GrantByAnybody,
    GrantNeverEnds,
    GrantsOfEverybody,
    GrantsUnbounded,
    AnonymousIsRemembered,
    StrangerRevokes,
    RevokeKeeps,
    ForgetKeepsGrants,
    PlaceIgnored,
    PagesUnbounded,
    RequestsUnbounded,
    LapsedAgain,
    VoidIsUsed,
    VoidForgotten,
    LapsesForEverybody,
    // Runtime.
    StatusIgnored,
    // Models.
    EofIsEnd,
    NoUsageIsZero,
    PromptUndercounted,
    OutputUncounted,
    ArgumentsUncounted,
    CutIsFree,
    FollowsRedirects,
    EchoesKey,
    CutsBeforeScrub,
    RequestIdUnscrubbed,
    KeyIsKept,
    KeyOfWhoeverWasLast,
    KeyInjects,
    EmptyKeySent,
    NoIdleTimeout,
    NoHeadersTimeout,
    HeadersTimeoutPerRead,
    UnboundedEvent,
    UnboundedBody,
    UnboundedErrorBody,
    UnboundedHead,
    LossyText,
    CrlfIsTwo,
    PieceLost,
    GoesOnAlone,
    RetriesAlone,
    ClampForgotten,
    SchemaForgotten,
    NameWithDot,
    BadArgumentsAreEmpty,
    IdsMerge,
    ErrorIsAnswer,
    ErrorEventIgnored,
    LimitIsEnd,
    RequestIdLost,
    RetryAfterIgnored,
    RetryAfterPanics,
    EveryStatusIsOverloaded,
    RefusedIsTransport,
    StoreIsProvider,
    PageInMessage,
    ErrorOvertakes,
}

/// The key of a partition, as this backend makes it.
pub(crate) fn key(bug: Bug, owner: &Owner) -> String {
    let user = match owner.identity() {
        Identity::User(id) => id.as_str().to_owned(),
        Identity::Anonymous if bug == Bug::AnonymousIsAName => "anonymous".to_owned(),
        Identity::Anonymous => "\0".to_owned(),
    };
    let namespace = owner.namespace();
    match bug {
        Bug::CaseFold => format!("{namespace}\n{}", user.to_lowercase()),
        Bug::Truncate => format!("{namespace}\n{}", user.chars().take(64).collect::<String>()),
        Bug::NoDelimiter => format!("{namespace}{user}"),
        Bug::NoNamespace => user,
        _ => format!("{namespace}\n{user}"),
    }
}

/// Refuses an erasure whose epoch is not newer than the `stored` one.
pub(crate) fn newer(bug: Bug, scope: &Scope, stored: Option<&Epoch>) -> Result<()> {
    let stored = stored.copied().unwrap_or_default();
    if scope.epoch() > stored || matches!(bug, Bug::EpochShared | Bug::EpochGoesBack) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Conflict, "erased at the same time; try again"))
}

/// Whether a row under `stored` is found by a question of `asked`.
pub(crate) fn found(bug: Bug, stored: &str, asked: &str) -> bool {
    match bug {
        Bug::NoFilter => true,
        Bug::PrefixMatch => stored.starts_with(asked),
        Bug::LikePattern => like(asked.as_bytes(), stored.as_bytes()),
        _ => stored == asked,
    }
}

/// SQL's LIKE, which somebody used where `=` was meant.
fn like(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'%', rest)), _) => like(rest, text) || (!text.is_empty() && like(pattern, &text[1..])),
        (Some((b'_', rest)), Some((_, tail))) => like(rest, tail),
        (Some((p, rest)), Some((t, tail))) => p == t && like(rest, tail),
        _ => false,
    }
}
