//! The report as a table for people.

use std::fmt::Write as _;

use crate::report::Report;

/// Rows of a name and a value, for the terminal and for the page.
#[must_use]
pub fn rows(report: &Report) -> Vec<(&'static str, String)> {
    let Report { latency_us: l, rss_bytes: rss, isolation: i, budget: b, audit: a, endings: e, .. } = report;
    let config = &report.config;
    let profile = format!("{:?}", config.profile).to_lowercase();
    let mut rows = vec![
        (
            "profile",
            format!("{profile}, {} users x {} turns, seed {}", config.users, config.turns, config.seed),
        ),
        ("machine", format!("{} of {} cores, {}", config.threads, report.machine.cores, report.machine.cpu)),
        (
            "runs",
            format!("{} ({} model calls), {} users in flight", report.runs, report.turns, config.concurrency),
        ),
        ("throughput", format!("{:.0} runs/s over {:.2} s", report.runs_per_s, report.wall_s)),
        ("CPU per run", format!("{:.1} us", report.cpu_us_per_run)),
        ("latency", format!("p50 {} p90 {} p99 {} p99.9 {} max {} us", l.p50, l.p90, l.p99, l.p999, l.max)),
        ("memory", format!("{} -> {}, audit log {}", bytes(rss.before), bytes(rss.after), bytes(rss.audit))),
        (
            "memory per user",
            format!(
                "{} at the end; fit {} (r2 {:.3})",
                bytes(rss.per_user),
                bytes(report.rss_fit.slope_bytes_per_user.max(0.0) as u64),
                report.rss_fit.r2
            ),
        ),
        (
            "endings",
            format!(
                "{} completed, {} interrupted, {} failed, {} timed out, {} dropped, {} withdrawn before they began",
                e.completed, e.interrupted, e.failed, e.timed_out, e.dropped, e.withdrawn
            ),
        ),
        (
            "isolation",
            format!("{} violations in {} probes ({} searched)", i.violations, i.probes, bytes(i.bytes)),
        ),
    ];
    if i.canaries_planted > 0 {
        let seen = format!(
            "{} planted, {} seen by their owner, {} seen by others",
            i.canaries_planted, i.canaries_seen_by_owner, i.canaries_seen_by_others
        );
        rows.push(("canaries", seen));
    }
    rows.push((
        "budget",
        format!(
            "{} tokens invoiced, {} charged; {} mismatches, {} over caps, {} phantom holds, {} users exhausted",
            b.invoiced_tokens, b.ledger_tokens, b.mismatches, b.overspend_tokens, b.phantom_holds, b.exhausted_users
        ),
    ));
    let chain = if a.verified { "chain whole" } else { "CHAIN BROKEN" };
    rows.push((
        "audit",
        format!("{} entries of {} expected, {chain}, {} problems", a.entries, a.expected, a.problems),
    ));
    let s = &report.stores;
    rows.push((
        "stores",
        format!("memory {}, ledger {}, audit {}, runtime {}", s.memory, s.ledger, s.audit, s.runtime),
    ));
    rows
}

/// The table.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    for (name, value) in rows(report) {
        let _ = writeln!(out, "{name:<16}  {value}");
    }
    let verdict = if report.failures.is_empty() { "PASSED" } else { "FAILED" };
    let _ = writeln!(out, "{:<16}  {verdict}", "verdict");
    for failure in &report.failures {
        let _ = writeln!(out, "{:<16}  {failure}", "");
    }
    out
}

/// Bytes in a unit that people read.
fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n < 10_240.0 => format!("{n:.0} B"),
        _ if n < 10_485_760.0 => format!("{:.1} KiB", n / 1024.0),
        _ => format!("{:.1} MiB", n / 1_048_576.0),
    }
}
