//! A little chaos with every ledger, and chaos with a ledger that is broken on purpose, which must not pass.

#![forbid(unsafe_code)]

use std::path::Path;

use loomflow_tests::chaos::{self, Kind, Options, Report};

/// Processes, and turns at once in each.
const SMALL: (u64, u64) = (4, 60);

fn make(kind: Kind, options: &Options) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a thread can be started");
    let program = Path::new(env!("CARGO_BIN_EXE_chaos"));
    let made = runtime.block_on(chaos::ledger(kind, program, options, &|_| {}));
    made.unwrap_or_else(|why| panic!("{why}"))
}

fn a_little(kind: Kind) -> Report {
    let report = make(kind, &Options::new(SMALL.0, SMALL.1).with_seconds(5));
    assert_eq!(report.findings(), 0, "{report:#?}");
    assert!(report.looks > 0 && report.clock_jumps + report.kills > 0, "{report:#?}");
    assert_eq!(report.verdict.reconciled_tokens, report.verdict.invoiced_tokens);
    report
}

#[test]
fn the_ledger_of_one_process() {
    let report = a_little(Kind::InMemory);
    assert_eq!(report.verdict.ledger_tokens, report.verdict.invoiced_tokens, "nobody died");
}

#[test]
fn the_ledger_on_sqlite() {
    assert!(a_little(Kind::Sqlite).kills > 0);
}

#[test]
fn the_ledger_on_postgres() {
    assert!(a_little(Kind::Postgres).kills > 0);
}

#[test]
fn the_ledger_on_redis() {
    assert!(a_little(Kind::Redis).kills > 0);
}

#[cfg(feature = "fault-injection")]
mod faults {
    use loomflow_tests::chaos::{Fault, Kind, Options, Report};

    /// A fault needs a kill, or a cap that is used up, to be seen: it gets several schedules.
    const SCHEDULES: u64 = 4;

    fn bites(kind: Kind, fault: Fault, seen: impl Fn(&Report) -> u64) {
        let options = Options::new(3, 40).with_seconds(3).with_fault(Some(fault.to_string()));
        let mut last = Report::default();
        for seed in 0..SCHEDULES {
            last = super::make(kind, &options.clone().with_seed(seed));
            if seen(&last) > 0 {
                assert!(last.findings() > 0);
                return;
            }
        }
        panic!("{fault} was not seen: {last:#?}");
    }

    #[test]
    fn a_request_that_leaves_untold_is_lost_with_its_process() {
        bites(Kind::Sqlite, Fault::SkipSent, |report| report.verdict.lost);
    }

    #[test]
    fn a_lease_without_an_end_is_a_phantom() {
        bites(Kind::Sqlite, Fault::EndlessLease, |report| report.phantom_holds);
    }

    #[test]
    fn a_second_charge_is_one_too_many() {
        bites(Kind::InMemory, Fault::ChargeTwice, |report| report.verdict.doubled);
    }

    #[test]
    fn what_is_spent_after_a_refusal_is_overspend() {
        bites(Kind::InMemory, Fault::IgnoreRefusals, |report| report.overspend.min(report.verdict.lost));
    }

    #[test]
    fn a_call_that_is_never_closed_is_missed_in_a_process_that_lived() {
        bites(Kind::InMemory, Fault::ForgetClose, |report| report.verdict.live_mismatches);
    }

    #[test]
    fn a_word_too_few_is_seen() {
        bites(Kind::InMemory, Fault::Undercharge, |report| report.verdict.live_mismatches);
    }

    #[test]
    fn what_was_used_and_given_back_is_seen() {
        bites(Kind::InMemory, Fault::RefundUsed, |report| report.verdict.live_mismatches);
    }
}
