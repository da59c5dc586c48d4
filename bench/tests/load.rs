//! The load driver at a size for tests: nothing is wrong with a system that is whole, and every deliberate fault shows in
//! the figures it belongs to.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a load that cannot run is a failed test")]

use clap::Parser as _;
use loomflow_bench::config::Args;
use loomflow_bench::progress::Progress;
use loomflow_bench::report::Report;
use loomflow_bench::{fixed, full};

fn run(args: &[&str], threads: usize) -> Report {
    let config = Args::try_parse_from([&["tenants", "--quiet"], args].concat()).unwrap().resolve().unwrap();
    let progress = Progress::new(0, true);
    let mut runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build().unwrap();
    let full = args.iter().all(|arg| *arg != "--profile");
    runtime
        .block_on(async {
            if full { full::run(&config, &progress).await } else { fixed::run(&config, &progress).await }
        })
        .unwrap()
        .0
}

const SMALL: [&str; 4] = ["--users", "60", "--turns", "4"];

#[test]
fn a_system_that_is_whole_passes_on_one_thread_and_on_several() {
    for threads in [1, 2] {
        for seed in ["1", "2"] {
            let report = run(&[&SMALL[..], &["--seed", seed]].concat(), threads);
            assert_eq!(report.failures, Vec::<String>::new(), "seed {seed}, {threads} threads");
            assert!(report.isolation.canaries_seen_by_owner > 0 && report.budget.invoiced_tokens > 0);
            assert!(report.endings.dropped > 0 && report.endings.completed > 100);
        }
    }
}

#[cfg(feature = "memory-sqlite")]
#[test]
fn a_system_on_a_store_passes_and_a_lost_entry_shows() {
    let file = std::env::temp_dir().join(format!("loomflow-load-{:016x}.db", rand::random::<u64>()));
    let url = format!("sqlite:{}", file.display());
    let on_a_store =
        |args: &[&str]| run(&[&["--users", "40", "--turns", "3", "--memory", &url], args].concat(), 2);
    for seed in ["1", "2"] {
        let report = on_a_store(&["--seed", seed]);
        assert_eq!(report.failures, Vec::<String>::new(), "seed {seed}");
        assert!(report.stores.memory == "sqlite" && report.endings.dropped > 0);
    }
    #[cfg(feature = "fault-injection")]
    {
        let forgetful = on_a_store(&["--fault", "lost_audit"]);
        assert!(forgetful.audit.entries < forgetful.audit.expected && forgetful.budget.mismatches == 0);
    }
    for rest in ["", "-wal", "-shm"] {
        let _gone = std::fs::remove_file(format!("{}{rest}", file.display()));
    }
}

#[test]
fn few_tenants_and_few_workers_pass_too() {
    for args in [
        ["--users", "1", "--turns", "9"],
        ["--users", "2", "--turns", "9"],
        ["--concurrency", "3", "--users", "20"],
    ] {
        assert_eq!(run(&args, 1).failures, Vec::<String>::new(), "{args:?}");
    }
}

#[test]
fn the_comparison_does_exactly_its_work() {
    for (profile, calls, entries) in [("bare", 40, 0), ("text", 40, 3 * 41), ("tool", 80, 7 * 41)] {
        let report = run(&["--profile", profile, "--users", "10", "--turns", "4"], 1);
        assert_eq!(report.failures, Vec::<String>::new(), "{profile}");
        assert_eq!((report.runs, report.turns, report.audit.entries), (40, calls, entries), "{profile}");
        // System, three turns of the session and the prompt; with a tool, the last call has its outcome behind it.
        let longest = if profile == "tool" { 1 + 3 * 4 + 3 } else { 1 + 3 * 2 + 1 };
        assert_eq!(report.longest_prompt_messages, longest, "{profile}");
    }
}

#[cfg(feature = "fault-injection")]
#[test]
fn every_fault_shows_in_its_own_figures() {
    let broken = |fault| run(&["--users", "150", "--turns", "5", "--fault", fault], 1);
    let leak = broken("leak");
    assert!(leak.isolation.violations > 0 && leak.isolation.canaries_seen_by_others > 0);
    assert!(leak.budget.mismatches == 0 && leak.audit.entries == leak.audit.expected);
    let greedy = broken("double_charge");
    assert!(greedy.budget.mismatches > 0 && greedy.isolation.violations == 0);
    let forgetful = broken("lost_audit");
    assert!(forgetful.audit.entries < forgetful.audit.expected && forgetful.budget.mismatches == 0);
    assert!([leak, greedy, forgetful].iter().all(|report| !report.failures.is_empty()));
}
