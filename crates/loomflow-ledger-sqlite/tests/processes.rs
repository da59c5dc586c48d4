//! Several processes on one file: together they spend no more than a cap, and one that is killed leaves nothing half done.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{Folder, held, scope, used};
use loomflow_core::{
    BudgetConfig, Charge, ErrorKind, Hold, HoldKey, Ledger as _, Reserve, RunId, UsageReport,
};
use loomflow_ledger_sqlite::{SqliteLedger, SqliteLedgerConfig};

const CHILD: &str = "LOOMFLOW_LEDGER_SQLITE_CHILD";
const CAP: u64 = 6_000;
/// Long enough that it seldom ends in the middle of a call, however busy the machine is.
const LEASE: Duration = Duration::from_secs(3);

fn budget() -> BudgetConfig {
    BudgetConfig::new().max_tokens(CAP).per_user_max_tokens(CAP - 1_000).per_run_max_tokens(CAP)
}

/// What another process does until it is killed or everything is spent: it reserves, sends, and charges or gives back, and
/// says so. Nothing unless its parent names a file.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::disallowed_methods, reason = "the parent names the file")]
async fn child_spends() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let ledger = SqliteLedger::connect(SqliteLedgerConfig::new(path, budget())).await.unwrap();
    let tasks = (0..4).map(|task: u32| tokio::spawn(spend(ledger.clone(), task)));
    for task in tasks {
        task.await.unwrap();
    }
}

#[allow(clippy::print_stdout, reason = "the parent reads it")]
async fn spend(ledger: SqliteLedger, task: u32) {
    let user = scope(if task.is_multiple_of(2) { "alice" } else { "bob" });
    let run = RunId::from_u128(rand::random());
    for seq in 0.. {
        let hold = Hold::tokens(HoldKey::new(run, seq), 20, 30).with_lease(LEASE);
        let Reserve::Held(got) = ledger.reserve(&user, &hold).await.unwrap() else { return };
        match ledger.sent(&user, got.id).await {
            Err(late) if late.kind() == ErrorKind::NotFound => continue,
            sent => sent.unwrap(),
        }
        if seq % 5 == 0 {
            ledger.close(&user, got.id, Charge::Refund).await.unwrap();
        } else {
            let output = got.output_tokens.min(7);
            ledger.close(&user, got.id, used(20, output)).await.unwrap();
            println!("charged {}", 20 + output);
        }
    }
}

fn child(folder: &Folder) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_spends", "--nocapture"])
        .env(CHILD, folder.file())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a process said that it charged.
fn told(out: ChildStdout) -> u64 {
    let lines = BufReader::new(out).lines();
    // The first line follows what the test runner prints, and the last may be cut short.
    let charged = |line: std::io::Result<String>| {
        line.ok()?.split("charged ").nth(1).and_then(|n| n.trim().parse::<u64>().ok())
    };
    lines.filter_map(charged).sum()
}

/// Not over a cap, whoever looks, whenever.
fn sound(report: &UsageReport) {
    assert!(report.used.total_tokens() + report.held_tokens <= CAP, "{report:?}");
    for line in &report.windows {
        assert!(line.used + line.held <= line.limit, "{line:?}");
    }
}

async fn look(ledger: &SqliteLedger) -> UsageReport {
    for user in ["alice", "bob"] {
        sound(&ledger.usage(&scope(user)).await.unwrap());
    }
    let all = ledger.namespace_usage(&scope("alice")).await.unwrap();
    sound(&all);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_spend_no_more_than_one_cap() {
    let folder = Folder::new();
    let ledger = folder.open(budget()).await;
    let mut children = [child(&folder), child(&folder)];
    let mut looks = 0;
    let readers = children.each_mut().map(|child| {
        let out = child.stdout.take().unwrap();
        std::thread::spawn(move || told(out))
    });
    for child in &mut children {
        while child.try_wait().unwrap().is_none() {
            look(&ledger).await;
            looks += 1;
        }
        assert!(child.wait().unwrap().success());
    }
    let told: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    let all = look(&ledger).await;
    assert!(looks > 5, "somebody looked while they spent");
    assert_eq!((all.used.total_tokens(), all.held_tokens), (told, 0), "what was charged is what they said");
    assert!(told > CAP - 200, "they spent nearly all of it: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_in_the_middle_leaves_nothing_held_when_its_leases_end() {
    for _ in 0..3 {
        let folder = Folder::new();
        let ledger = folder.open(budget()).await;
        let mut child = child(&folder);
        while look(&ledger).await.used.total_tokens() < 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(rand::random_range(0..20_000))).await;
        child.kill().unwrap();
        let told = told(child.stdout.take().unwrap());
        child.wait().unwrap();
        let after = look(&ledger).await;
        assert!(after.used.total_tokens() >= told, "what was answered is there");
        // Others can go on at once.
        let got =
            held(&ledger, &scope("carol"), &Hold::tokens(HoldKey::new(RunId::from_u128(1), 0), 5, 5)).await;
        ledger.close(&scope("carol"), got.id, used(5, 5)).await.unwrap();
        tokio::time::sleep(LEASE + Duration::from_millis(50)).await;
        let later = look(&ledger).await;
        assert_eq!(later.held_tokens, 0, "every lease ran out");
        // What was sent is charged as an estimate; a task of the child had one hold at the most.
        let estimated = later.estimated_tokens;
        assert!(estimated <= 4 * 50, "{estimated}");
        assert!(later.used.total_tokens() >= told + 10 + estimated);
        assert_eq!(
            later.used.total_tokens(),
            after.used.total_tokens() + 10 + estimated - after.estimated_tokens
        );
        for user in ["alice", "bob", "carol"] {
            let usage = ledger.usage(&scope(user)).await.unwrap();
            assert_eq!((usage.held_tokens, usage.open_holds), (0, 0), "{user}");
        }
    }
}
