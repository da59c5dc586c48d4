//! What an account must survive that a live run of operations hardly meets: caps that come and go, and clocks set back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use super::{Account, Books, Cell};
use crate::clock::Timestamp;
use crate::ids::{HoldId, RunId};
use crate::ledger::{BudgetConfig, Charge, Hold, HoldKey, Reserve, Window};
use crate::usage::Usage;

const LEASE: Duration = Duration::from_secs(60);

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn noon() -> Timestamp {
    at("2026-03-15T12:00:00Z")
}

fn used(input: u64, output: u64) -> Charge {
    Charge::Used { usage: Usage::new(input, output), estimated: false }
}

/// Reserves 30 and 20 tokens as hold `n` of run 1.
fn hold(account: &mut Account, books: &Books, now: Timestamp, global: &mut Cell, n: u32) -> HoldId {
    let hold =
        Hold::tokens(HoldKey::new(RunId::from_u128(1), n), 30, 20).with_min_output(20).with_lease(LEASE);
    let id = HoldId::from_u128(u128::from(n) + 1);
    let answer = account.reserve(books, now, global, id, &hold).unwrap();
    assert!(matches!(&answer, Reserve::Held(got) if got.id == id), "{answer:?}");
    id
}

fn books(config: BudgetConfig) -> Books {
    Books::new(&config.window(Window::Day))
}

#[test]
fn a_hold_of_a_run_that_ended_does_not_touch_the_next_run_of_that_id() {
    let books = books(BudgetConfig::new().per_run_max_tokens(100));
    let (mut account, mut global) = (Account::new(&books, noon()), Cell::default());
    let old = hold(&mut account, &books, noon(), &mut global, 0);
    account.runs.clear();
    let new = hold(&mut account, &books, noon(), &mut global, 1);
    account.close(&books, noon(), &mut global, old, &used(30, 20), true).unwrap();
    let run = &account.runs[&RunId::from_u128(1)];
    assert_eq!((run.cell.held.tokens(), run.cell.used.usage.total_tokens()), (50, 0));
    account.close(&books, noon(), &mut global, new, &used(1, 1), true).unwrap();
    let run = &account.runs[&RunId::from_u128(1)];
    assert_eq!((run.cell.held.tokens(), run.cell.used.usage.total_tokens()), (0, 2));
    assert_eq!(account.user.used.usage.total_tokens(), 52, "the user's own count has both");
}

#[test]
fn a_hold_is_settled_where_it_was_reserved_when_caps_were_added() {
    let (before, after) =
        (books(BudgetConfig::new()), books(BudgetConfig::new().max_tokens(100).per_run_max_tokens(100)));
    let (mut account, mut global) = (Account::new(&before, noon()), Cell::new(0));
    let old = hold(&mut account, &before, noon(), &mut global, 0);
    let new = hold(&mut account, &after, noon(), &mut global, 1);
    account.close(&after, noon(), &mut global, old, &used(9, 9), true).unwrap();
    assert_eq!((global.held.tokens(), global.used.usage.total_tokens()), (50, 0), "only the second is in it");
    account.close(&after, noon(), &mut global, new, &used(1, 1), true).unwrap();
    assert_eq!((global.held.tokens(), global.used.usage.total_tokens()), (0, 2));
}

#[test]
fn a_hold_is_settled_where_it_was_reserved_when_caps_were_taken_away() {
    let (before, after) =
        (books(BudgetConfig::new().max_tokens(100).per_run_max_tokens(100)), books(BudgetConfig::new()));
    for closes in [true, false] {
        let (mut account, mut global) = (Account::new(&before, noon()), Cell::new(0));
        let id = hold(&mut account, &before, noon(), &mut global, 0);
        let later = noon().saturating_add(LEASE);
        if closes {
            account.close(&after, noon(), &mut global, id, &used(30, 20), true).unwrap();
        } else {
            account.sent(&after, noon(), &mut global, id).unwrap();
            account.expire(&after, later, &mut global);
        }
        let run = &account.runs[&RunId::from_u128(1)].cell;
        for cell in [&account.user, &global, run] {
            assert_eq!((cell.held.tokens(), cell.used.usage.total_tokens()), (0, 50), "{closes}");
        }
    }
}

#[test]
fn a_report_of_an_account_with_a_due_hold_changes_no_window() {
    let books = books(BudgetConfig::new().max_tokens(100).per_user_max_tokens(100));
    let early = at("1969-12-31T01:00:00Z");
    let (mut account, mut global) = (Account::new(&books, early), Cell::new(books.periods.number(early)));
    let id = hold(&mut account, &books, early, &mut global, 0);
    account.sent(&books, early, &mut global, id).unwrap();
    let report = account.report(&books, early.saturating_add(LEASE));
    assert_eq!((report.used.total_tokens(), report.held_tokens, report.open_holds), (50, 0, 0));
    assert_eq!((account.open_holds, account.user.held.tokens()), (1, 50), "looking changes nothing");
}

#[test]
fn a_clock_set_back_tells_no_reset_that_is_past() {
    let books = books(BudgetConfig::new().per_user_max_tokens(50));
    let (mut account, mut global) = (Account::new(&books, noon()), Cell::default());
    hold(&mut account, &books, noon(), &mut global, 0);
    let back = at("2026-03-14T12:00:00Z");
    let hold = Hold::tokens(HoldKey::new(RunId::from_u128(1), 1), 1, 0);
    let answer = account.reserve(&books, back, &mut global, HoldId::from_u128(9), &hold).unwrap();
    let Reserve::Refused(no) = answer else { panic!("50 of 50 are held") };
    assert_eq!(no.resets_at, Some(at("2026-03-16T00:00:00Z")));
    assert_eq!(account.report(&books, back).windows[0].resets_at, no.resets_at);
}

#[test]
fn a_counter_says_when_nothing_in_it_counts_any_more() {
    let mut global = Cell::default();
    for (window, ends) in [
        (Window::Lifetime, None),
        (Window::Hour, Some("2026-03-15T13:00:00Z")),
        (Window::Day, Some("2026-03-16T00:00:00Z")),
        (Window::Month, Some("2026-04-01T00:00:00Z")),
        (Window::Rolling(Duration::from_secs(3_600)), Some("2026-03-15T13:01:00Z")),
    ] {
        let books = Books::new(&BudgetConfig::new().window(window));
        let mut account = Account::new(&books, noon());
        let id = hold(&mut account, &books, noon(), &mut global, 0);
        account.close(&books, noon(), &mut global, id, &used(1, 1), true).unwrap();
        let end = account.user.ends_at(&books.periods);
        assert_eq!(end, ends.map(at), "{window}");
        let Some(end) = end else { continue };
        let used = |now| account.report(&books, now).used.total_tokens();
        assert_eq!((used(Timestamp::from_micros(end.as_micros() - 1)), used(end)), (2, 0), "{window}");
    }
}

#[test]
fn an_invoice_says_nothing_of_time() {
    let books = books(BudgetConfig::new());
    let (mut account, mut global) = (Account::new(&books, noon()), Cell::default());
    let hold = Hold::wall_clock(HoldKey::new(RunId::from_u128(1), 0), LEASE).with_lease(LEASE);
    let id = HoldId::from_u128(1);
    account.reserve(&books, noon(), &mut global, id, &hold).unwrap();
    account.sent(&books, noon(), &mut global, id).unwrap();
    let later = noon().saturating_add(LEASE);
    account.expire(&books, later, &mut global);
    assert!(account.estimates().is_empty(), "no provider invoices time");
    account.reconcile(&books, later, &mut global, id, Usage::new(3, 4), true).unwrap();
    let report = account.report(&books, later);
    assert_eq!((report.used, report.wall_clock), (Usage::new(3, 4), LEASE));
}

fn total(account: &Account, books: &Books, now: Timestamp) -> u64 {
    account.report(books, now).used.total_tokens()
}

#[test]
fn an_estimate_is_of_the_window_in_which_its_lease_ended() {
    let books = books(BudgetConfig::new().max_tokens(100).per_user_max_tokens(100));
    let evening = at("2026-03-15T23:58:00Z");
    let (mut account, mut global) = (Account::new(&books, evening), Cell::default());
    let id = hold(&mut account, &books, evening, &mut global, 0);
    account.sent(&books, evening, &mut global, id).unwrap();
    let midnight = at("2026-03-16T00:00:00Z");
    assert_eq!(total(&account, &books, Timestamp::from_micros(midnight.as_micros() - 1)), 50);
    // Nobody looks before the next day has begun: what the lease's end charged is yesterday's.
    account.expire(&books, at("2026-03-16T09:00:00Z"), &mut global);
    assert_eq!((account.user.used.usage.total_tokens(), global.used.usage.total_tokens()), (0, 0));
    assert_eq!((account.user.held.tokens(), global.held.tokens()), (0, 0));
}

#[test]
fn a_clock_set_back_loses_no_charge() {
    for caps in [BudgetConfig::new().max_tokens(200), BudgetConfig::new().per_user_max_tokens(200)] {
        charges_on_a_clock_set_back(&books(caps));
    }
}

fn charges_on_a_clock_set_back(books: &Books) {
    let back = at("2026-03-14T12:00:00Z");
    let (mut account, mut global) = (Account::new(books, noon()), Cell::default());
    let closed = hold(&mut account, books, noon(), &mut global, 0);
    let dies = hold(&mut account, books, noon(), &mut global, 1);
    account.close(books, back, &mut global, closed, &used(30, 20), true).unwrap();
    assert_eq!((total(&account, books, back), total(&account, books, noon())), (50, 50));
    account.sent(books, back, &mut global, dies).unwrap();
    account.extend(books, back, &mut global, dies, LEASE).unwrap();
    account.expire(books, back.saturating_add(LEASE), &mut global);
    assert_eq!((total(&account, books, back), total(&account, books, noon())), (100, 100));
    let of_all = if books.global.is_empty() { 0 } else { 100 };
    assert_eq!((global.used.usage.total_tokens(), global.held.tokens()), (of_all, 0));
    let morrow = at("2026-03-16T00:00:00Z");
    assert_eq!(total(&account, books, morrow), 0, "all of it is of the day that had begun");
}

#[test]
fn an_invoice_corrects_the_window_that_was_charged_and_no_other() {
    let hour = Duration::from_secs(3_600);
    for (window, still_counts) in [(Window::Hour, 0), (Window::Rolling(hour), 2)] {
        let books = Books::new(&BudgetConfig::new().max_tokens(500).per_user_max_tokens(500).window(window));
        let (mut account, mut global) = (Account::new(&books, noon()), Cell::default());
        let lost = hold(&mut account, &books, noon(), &mut global, 0);
        account.sent(&books, noon(), &mut global, lost).unwrap();
        let later = at("2026-03-15T13:00:00Z");
        account.expire(&books, later, &mut global);
        let next = hold(&mut account, &books, later, &mut global, 1);
        account.close(&books, later, &mut global, next, &used(3, 4), true).unwrap();
        account.reconcile(&books, later, &mut global, lost, Usage::new(1, 1), true).unwrap();
        assert_eq!(total(&account, &books, later), 7 + still_counts, "{window}");
        assert_eq!(global.used.usage.total_tokens(), 7 + still_counts, "{window}");
        // The slice of the estimate is over, that of the later call is not.
        let over = at("2026-03-15T13:03:00Z");
        assert_eq!(total(&account, &books, over), 7, "{window}");
    }
}
