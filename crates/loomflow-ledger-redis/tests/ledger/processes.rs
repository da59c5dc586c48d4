//! Processes that share one quota.

use std::io::{BufRead as _, Write as _};
use std::process::{Command, Stdio};

use loomflow_core::{BudgetConfig, Hold, Ledger, Reserve, Window};

use crate::common::{fresh_prefix, key, open, url, used, user};

const CAP: u64 = 100_000;
const IN_FLIGHT: u64 = 50;
/// Begins the line that a process says at its end.
const SPENT: &str = "spent ";

fn budget() -> BudgetConfig {
    BudgetConfig::new().max_tokens(CAP).per_user_max_tokens(CAP / 2).window(Window::Month)
}

/// Spends until everything is refused, and returns what was charged.
async fn spender(url: &str, prefix: &str) -> u64 {
    let ledger = open(url, prefix, budget()).await;
    let tasks = (0..IN_FLIGHT).map(|n| {
        let (ledger, scope) = (ledger.clone(), user(&format!("user_{}", n % 4)));
        tokio::spawn(async move {
            let mut charged = 0;
            loop {
                let hold = Hold::tokens(key(), 20 + n, 60);
                let Reserve::Held(got) = ledger.reserve(&scope, &hold).await.unwrap() else { return charged };
                let all = ledger.namespace_usage(&scope).await.unwrap();
                assert!(all.used.total_tokens() + all.held_tokens <= CAP, "at one instant: {all:?}");
                ledger.sent(&scope, got.id).await.unwrap();
                ledger.close(&scope, got.id, used(20 + n, got.output_tokens)).await.unwrap();
                charged += 20 + n + got.output_tokens;
            }
        })
    });
    let mut charged = 0;
    for task in tasks.collect::<Vec<_>>() {
        charged += task.await.unwrap();
    }
    charged
}

/// The other process: it does what a line of its input says. Without one it is a test like any other, of nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process() {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    if let Some((url, prefix)) = line.trim().split_once(' ') {
        let charged = spender(url, prefix).await;
        writeln!(std::io::stderr(), "\n{SPENT}{charged}").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_with_fifty_in_flight_each_never_overspend() {
    let (url, prefix) = (url("redis-plain"), fresh_prefix());
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::process", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(other.stdin.take().unwrap(), "{url} {prefix}").unwrap();
        others.push(other);
    }
    let mut charged = 0;
    for other in others {
        let said = other.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.success(), "{text}");
        let spent = text.lines().find_map(|line| line.strip_prefix(SPENT));
        charged += spent.unwrap_or_else(|| panic!("{text}")).parse::<u64>().unwrap();
    }
    let ledger = open(&url, &prefix, budget()).await;
    let all = ledger.namespace_usage(&user("user_0")).await.unwrap();
    assert_eq!((all.used.total_tokens(), all.held_tokens), (charged, 0), "the sums agree");
    assert!(charged <= CAP && charged > CAP - 200, "{charged} of {CAP}");
}
