//! The file: what survives, what a change of the budget leaves, what is cleared away, what is refused, and that an erased
//! name is gone.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{Folder, clock, count, guessed, held, key, raw, scope, scope_in, spend, used};
use futures_util::TryStreamExt as _;
use futures_util::future::join_all;
use loomflow_core::{
    BudgetConfig, Epoch, Erase, ErrorKind, Hold, HoldKey, Ledger as _, Reserve, RunId, TenantData as _,
    Usage, Window,
};
use loomflow_ledger_sqlite::{Durability, SqliteLedger, SqliteLedgerConfig};

const DAY: Duration = Duration::from_secs(86_400);

fn capped() -> BudgetConfig {
    BudgetConfig::new().max_tokens(1_000).per_user_max_tokens(500).per_run_max_tokens(300).window(Window::Day)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_survives_a_restart_and_is_seen_by_others() {
    let (folder, clock) = (Folder::new(), clock());
    let open = async || folder.open(capped()).await.with_clock(clock.clone());
    let alice = scope("alice");
    let ledger = open().await;
    let run = RunId::from_u128(7);
    let hold = Hold::tokens(HoldKey::new(run, 1), 20, 30);
    let closed = held(&ledger, &alice, &Hold::tokens(HoldKey::new(run, 0), 10, 10)).await.id;
    ledger.close(&alice, closed, guessed(10, 5)).await.unwrap();
    let got = held(&ledger, &alice, &hold).await;
    ledger.sent(&alice, got.id).await.unwrap();
    let all = async |ledger: &SqliteLedger| {
        let export: Vec<_> = ledger.export(&alice).await.unwrap().try_collect().await.unwrap();
        let usage = ledger.usage(&alice).await.unwrap();
        (
            usage,
            ledger.namespace_usage(&alice).await.unwrap(),
            ledger.estimates(&alice).await.unwrap(),
            export,
        )
    };
    let before = all(&ledger).await;
    assert_eq!((before.0.used.total_tokens(), before.0.held_tokens, before.0.open_holds), (15, 50, 1));
    assert_eq!((before.2.len(), before.3.len()), (1, 2));
    let second = open().await;
    assert_eq!(all(&second).await, before, "a second connection sees what was answered");
    drop((ledger, second));
    let ledger = open().await;
    assert_eq!(all(&ledger).await, before, "it is all there after a restart");
    assert_eq!(held(&ledger, &alice, &hold).await.id, got.id, "the same key is the same hold");
    let more = ledger.reserve(&alice, &Hold::tokens(HoldKey::new(run, 2), 236, 0)).await.unwrap();
    assert!(matches!(more, Reserve::Refused(_)), "the run has used and holds 65 of 300");
    assert!(!ledger.close(&alice, got.id, used(20, 1)).await.unwrap().duplicate);
    let again = ledger.close(&alice, got.id, used(20, 1)).await.unwrap();
    assert!(again.duplicate, "an id proves itself to whoever opens the file");
    assert!(!ledger.reconcile(&alice, closed, Usage::new(9, 9)).await.unwrap().duplicate);
    assert_eq!(ledger.usage(&alice).await.unwrap().used.total_tokens(), 39);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_window_starts_a_counter_of_its_own() {
    let folder = Folder::new();
    let alice = scope("alice");
    let budget = || BudgetConfig::new().per_user_max_tokens(100).max_tokens(100);
    let (by_hour, by_day) = (budget().window(Window::Hour), budget().window(Window::Day));
    let ledger = folder.open(by_hour.clone()).await;
    spend(&ledger, &alice, 30, 0).await;
    let open = held(&ledger, &alice, &Hold::tokens(key(), 10, 10)).await;
    drop(ledger);
    let ledger = folder.open(by_day).await;
    assert_eq!(ledger.usage(&alice).await.unwrap().held_tokens, 0, "it is held in the old one");
    spend(&ledger, &alice, 60, 0).await;
    ledger.sent(&alice, open.id).await.unwrap();
    assert!(!ledger.close(&alice, open.id, used(10, 1)).await.unwrap().duplicate);
    let usage = ledger.usage(&alice).await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.held_tokens, usage.open_holds), (60, 0, 0));
    assert_eq!(ledger.export(&alice).await.unwrap().try_collect::<Vec<_>>().await.unwrap().len(), 2);
    drop(ledger);
    let ledger = folder.open(by_hour).await;
    let usage = ledger.usage(&alice).await.unwrap();
    assert_eq!((usage.used.total_tokens(), usage.held_tokens, usage.open_holds), (41, 0, 0));
    let all = ledger.namespace_usage(&alice).await.unwrap();
    assert_eq!((all.used.total_tokens(), all.held_tokens), (41, 0), "and of all users together");
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_that_come_and_go_leave_no_hold_behind() {
    let folder = Folder::new();
    let alice = scope("alice");
    let hold = |n| Hold::tokens(HoldKey::new(RunId::from_u128(1), n), 40, 10).with_min_output(10);
    let all = || BudgetConfig::new().max_tokens(100).per_run_max_tokens(100);
    let mut open = Vec::new();
    for (n, budget) in [all(), BudgetConfig::new(), all()].into_iter().enumerate() {
        let ledger = folder.open(budget).await;
        open.push(held(&ledger, &alice, &hold(u32::try_from(n).unwrap())).await.id);
    }
    // Closed where there are no such caps, and where there are.
    let bare = folder.open(BudgetConfig::new()).await;
    for id in &open[..2] {
        bare.close(&alice, *id, used(1, 0)).await.unwrap();
    }
    drop(bare);
    let ledger = folder.open(all()).await;
    ledger.close(&alice, open[2], used(1, 0)).await.unwrap();
    let together = ledger.namespace_usage(&alice).await.unwrap();
    assert_eq!((together.used.total_tokens(), together.held_tokens), (2, 0), "of the two that it counted");
    let got = held(&ledger, &alice, &Hold::tokens(HoldKey::new(RunId::from_u128(1), 9), 98, 0)).await;
    ledger.close(&alice, got.id, used(0, 0)).await.unwrap();
    assert_eq!(ledger.usage(&alice).await.unwrap().open_holds, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_needs_is_cleared_away_and_nothing_is_given_away() {
    let (folder, clock) = (Folder::new(), clock());
    let open = async || folder.open(capped()).await.with_clock(clock.clone());
    let (alice, gone) = (scope("alice"), scope("gone"));
    let ledger = open().await;
    spend(&ledger, &alice, 250, 50).await;
    // Whose process died; nobody of that name comes back.
    held(&ledger, &gone, &Hold::tokens(key(), 10, 10)).await;
    assert_eq!(count(&folder.file(), "ledger_counters").await, 5, "two users, two runs, and all together");
    for days in 0..60 {
        clock.advance(DAY);
        // The first write after opening clears something away.
        let ledger = open().await;
        let got =
            held(&ledger, &scope("other"), &Hold::tokens(HoldKey::new(RunId::from_u128(3), 0), 1, 0)).await;
        ledger.close(&scope("other"), got.id, used(1, 0)).await.unwrap();
        assert!(ledger.usage(&alice).await.unwrap().used.total_tokens() == 0, "day {days}");
    }
    let left = count(&folder.file(), "ledger_counters").await;
    assert!(left <= 4, "the counters of {left} entities are kept");
    assert_eq!(count(&folder.file(), "ledger_holds").await, 1, "the lost hold can be reconciled still");
    // Back to the day on which alice spent her quota: her counter is gone, and she gets no second one.
    let back = clock.read().as_micros() - i64::try_from((DAY * 60).as_micros()).unwrap();
    clock.set(loomflow_core::Timestamp::from_micros(back));
    let ledger = open().await;
    spend(&ledger, &alice, 250, 50).await;
    clock.advance(DAY);
    let no = ledger.reserve(&alice, &Hold::tokens(key(), 250, 0)).await.unwrap();
    assert!(matches!(no, Reserve::Refused(_)), "an old window is not opened again, so it does not end again");
    clock.advance(DAY * 200);
    for _ in 0..3 {
        spend(&open().await, &scope("other"), 1, 0).await;
    }
    assert_eq!(count(&folder.file(), "ledger_holds").await, 0, "no invoice came in a hundred days");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_thousand_estimates_are_kept() {
    let folder = Folder::new();
    let config =
        SqliteLedgerConfig::new(folder.file(), BudgetConfig::new()).with_durability(Durability::Normal);
    let ledger = SqliteLedger::connect(config).await.unwrap();
    let alice = scope("alice");
    let mut ids = Vec::new();
    for n in 0..1_030 {
        let got = held(&ledger, &alice, &Hold::tokens(HoldKey::new(RunId::from_u128(1), n), 1, 0)).await;
        ledger.close(&alice, got.id, guessed(1, 0)).await.unwrap();
        ids.push(got.id);
    }
    let listed = ledger.estimates(&alice).await.unwrap();
    let listed: Vec<_> = listed.into_iter().map(|e| e.open(&alice).unwrap().hold).collect();
    assert_eq!(listed, ids[30..], "oldest first");
    assert!(ledger.reconcile(&alice, ids[0], Usage::new(9, 9)).await.unwrap().duplicate, "it stands");
    assert_eq!(ledger.usage(&alice).await.unwrap().used.total_tokens(), 1_030);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_beyond_a_column_are_kept_exactly() {
    let folder = Folder::new();
    let ledger = folder.open(BudgetConfig::new()).await;
    let alice = scope("alice");
    for _ in 0..2 {
        let got = held(&ledger, &alice, &Hold::tokens(key(), u64::MAX >> 2, 0)).await;
        ledger.close(&alice, got.id, used(u64::MAX >> 1, 3)).await.unwrap();
    }
    let got = held(&ledger, &alice, &Hold::tokens(key(), u64::MAX >> 2, u64::MAX)).await;
    let usage = folder.open(BudgetConfig::new()).await.usage(&alice).await.unwrap();
    assert_eq!((usage.used, usage.held_tokens), (Usage::new(u64::MAX - 1, 6), (u64::MAX >> 2) * 2));
    ledger.close(&alice, got.id, used(1, 0)).await.unwrap();
    assert_eq!(ledger.usage(&alice).await.unwrap().used, Usage::new(u64::MAX, 6));
    let over = ledger.reserve(&alice, &Hold::tokens(key(), u64::MAX, 0)).await.unwrap_err();
    assert_eq!(over.kind(), ErrorKind::InvalidInput, "{over}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_refuses_and_counts_what_it_answered() {
    let folder = Folder::new();
    let config = SqliteLedgerConfig::new(folder.file(), BudgetConfig::new()).with_max_bytes(200 << 10);
    let ledger = SqliteLedger::connect(config).await.unwrap();
    let mut kept = 0;
    let full = loop {
        let user = scope(&format!("user_{kept}"));
        match ledger.reserve(&user, &Hold::tokens(key(), 1, 1)).await {
            Ok(_) => kept += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), ErrorKind::Capacity, "{full}");
    assert!(kept > 10);
    assert!(ledger.ready().await.ready);
    for n in 0..kept {
        let usage = ledger.usage(&scope(&format!("user_{n}"))).await.unwrap();
        assert_eq!((usage.held_tokens, usage.open_holds), (2, 1));
    }
    assert_eq!(ledger.usage(&scope(&format!("user_{kept}"))).await.unwrap().open_holds, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_refused() {
    let folder = Folder::new();
    drop(folder.open(BudgetConfig::new()).await);
    let mut conn = raw(&folder.file()).await;
    sqlx::query("UPDATE loomflow_schema SET version = 9").execute(&mut conn).await.unwrap();
    for migrate in [true, false] {
        let config = SqliteLedgerConfig::new(folder.file(), BudgetConfig::new()).with_migrate(migrate);
        let error = SqliteLedger::connect(config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("version 9"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_migrated_beforehand_and_nonsense_is_refused() {
    let folder = Folder::new();
    let config = SqliteLedgerConfig::new(folder.file(), BudgetConfig::new()).with_migrate(false);
    assert_eq!(SqliteLedger::connect(config.clone()).await.unwrap_err().kind(), ErrorKind::Config);
    SqliteLedger::migrate(&config).await.unwrap();
    SqliteLedger::connect(config.clone()).await.unwrap();
    let nonsense = config.with_budget(BudgetConfig::new().soft_warning_at(0.0));
    assert!(SqliteLedger::connect(nonsense).await.unwrap_err().to_string().contains("soft_warning_at"));
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_takes_the_name_out_of_every_file_and_leaves_the_quota() {
    const USERS: usize = 150;
    let folder = Folder::new();
    let config = SqliteLedgerConfig::new(folder.file(), BudgetConfig::new().per_user_max_tokens(100))
        .with_durability(Durability::Normal);
    let ledger = SqliteLedger::connect(config).await.unwrap();
    let name = |n: usize| format!("canary_{n:06}");
    join_all((0..USERS).map(|n| {
        let ledger = ledger.clone();
        async move { spend(&ledger, &scope(&name(n)), 60, 40).await }
    }))
    .await;
    for n in 0..USERS / 2 {
        let (old, new) = (scope(&name(n)), scope_in("app", &name(n), 1));
        assert!(contains(&folder.bytes(), &name(n)));
        let line = ledger.forget(&new, &Erase::everything()).await.unwrap();
        assert_eq!((line.total(), line.retained.len()), (1, 1), "{line:?}");
        assert_eq!(ledger.epoch(&old).await.unwrap(), Epoch::new(1));
        let no = ledger.reserve(&old, &Hold::tokens(key(), 1, 0)).await.unwrap();
        assert!(matches!(no, Reserve::Refused(_)), "the quota is spent");
        held(&ledger, &old, &Hold::tokens(key(), 0, 0)).await;
        assert!(!contains(&folder.bytes(), &name(n)), "a scope from before puts no name back");
        let export: Vec<_> = ledger.export(&old).await.unwrap().try_collect().await.unwrap();
        assert_eq!(export.len(), 1, "what is kept can be seen by whose it is");
    }
    held(&ledger, &scope_in("app", &name(0), 1), &Hold::tokens(key(), 0, 0)).await;
    for n in 0..USERS {
        assert_eq!(contains(&folder.bytes(), &name(n)), n == 0 || n >= USERS / 2, "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_names_another_owner_is_withheld() {
    let folder = Folder::new();
    let ledger = folder.open(BudgetConfig::new()).await;
    let alice = scope("alice");
    let got = held(&ledger, &alice, &Hold::tokens(key(), 1, 1)).await;
    let mut conn = raw(&folder.file()).await;
    sqlx::query("UPDATE ledger_names SET user_id = 'mallory'").execute(&mut conn).await.unwrap();
    let kinds = [
        ledger.reserve(&alice, &Hold::tokens(key(), 1, 1)).await.map(drop),
        ledger.sent(&alice, got.id).await,
        ledger.close(&alice, got.id, used(1, 1)).await.map(drop),
        ledger.usage(&alice).await.map(drop),
        ledger.forget(&scope_in("app", "alice", 1), &Erase::everything()).await.map(drop),
    ];
    for (n, answer) in kinds.into_iter().enumerate() {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsolationViolation, "{n}");
        assert!(!format!("{error:?}").contains("mallory"), "{n}");
    }
    let export: Vec<_> = ledger.export(&alice).await.unwrap().try_collect().await.unwrap();
    let opened = export.into_iter().next().unwrap().open(&alice);
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::IsolationViolation, "core looks at whose it is");
}
