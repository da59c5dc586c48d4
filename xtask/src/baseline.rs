//! Comparing a report of the load driver with an older one.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use crate::{Failure, Outcome};

/// Two runs of the same binary on a shared machine differ by less than this factor.
const NOISE: f64 = 1.5;

/// What makes two reports comparable: the same work on the same stores.
const SAME: [&str; 5] = ["/config/profile", "/config/users", "/config/turns", "/config/smoke", "/stores"];

/// A report as the driver wrote it.
#[derive(Debug)]
pub(crate) struct Report {
    text: String,
    value: Value,
}

impl Report {
    /// Reads the report in `path`.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::Usage(format!("the report {} cannot be read: {e}", path.display())))?;
        Self::parse(text).map_err(|why| Failure::Usage(format!("{}: {why}", path.display())))
    }

    fn parse(text: String) -> Result<Self, String> {
        let value: Value = serde_json::from_str(&text).map_err(|e| format!("not a JSON report: {e}"))?;
        match value.get("schema").and_then(Value::as_u64) {
            Some(1) => Ok(Self { text, value }),
            other => Err(format!("the report's schema is {other:?}; 1 is what is understood here")),
        }
    }

    /// The report exactly as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Fails unless the report shows what `fault` does.
    pub(crate) fn expect_alarm(&self, fault: &str) -> Outcome {
        let at_least_one = |pointer: &str| Ok::<_, Failure>(self.number(pointer)? > 0.0);
        let seen = match fault {
            "leak" => {
                at_least_one("/isolation/violations")? || at_least_one("/isolation/canaries_seen_by_others")?
            }
            "double_charge" => at_least_one("/budget/mismatches")?,
            _ => {
                self.number("/audit/entries")? != self.number("/audit/expected")?
                    || self.value.pointer("/audit/verified") == Some(&Value::Bool(false))
            }
        };
        if seen {
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "the report of fault `{fault}` shows nothing of it: the probes are blind"
        )))
    }

    fn number(&self, pointer: &str) -> Outcome<f64> {
        self.value
            .pointer(pointer)
            .and_then(Value::as_f64)
            .ok_or_else(|| Failure::Failed(format!("the report has no number at {pointer}")))
    }
}

/// What the comparison found.
#[derive(Debug)]
pub(crate) struct Verdict {
    lines: Vec<String>,
    regressions: usize,
}

impl Verdict {
    /// A regression is a failure.
    pub(crate) fn into_outcome(self) -> Outcome {
        match self.regressions {
            0 => Ok(()),
            n => Err(Failure::Failed(format!("{n} regression(s) against the baseline"))),
        }
    }

    fn judge(&mut self, name: &str, old: f64, new: f64, limit: f64) {
        let bad = new > limit;
        self.regressions += usize::from(bad);
        let word = if bad { "REGRESSION" } else { "ok" };
        self.lines.push(format!("{name:<24} {old:>12.1} {new:>12.1} {limit:>12.1}  {word}"));
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<24} {:>12} {:>12} {:>12}", "against the baseline", "baseline", "now", "limit")?;
        self.lines.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

/// Compares CPU time within a band of noise, and violations without one.
///
/// Wall-clock figures are left out: on a shared machine they measure the neighbours.
pub(crate) fn compare(old: &Report, new: &Report) -> Outcome<Verdict> {
    for pointer in SAME {
        let (was, is) = (old.value.pointer(pointer), new.value.pointer(pointer));
        if was != is {
            let show = |v: Option<&Value>| v.map_or_else(|| "nothing".to_owned(), Value::to_string);
            return Err(Failure::Usage(format!(
                "the baseline measured other work: {pointer} was {} and is {}",
                show(was),
                show(is)
            )));
        }
    }
    let mut verdict = Verdict { lines: Vec::new(), regressions: 0 };
    let (was, is) = (old.number("/cpu_us_per_run")?, new.number("/cpu_us_per_run")?);
    verdict.judge("cpu_us_per_run", was, is, was * NOISE);
    let (was, is) = (old.number("/isolation/violations")?, new.number("/isolation/violations")?);
    verdict.judge("isolation violations", was, is, 0.0);
    if old.value.pointer("/machine/cpu") != new.value.pointer("/machine/cpu") {
        verdict.lines.push("note: the baseline is from another machine".to_owned());
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(cpu: f64, violations: u64, users: u64) -> Report {
        let value = json!({
            "schema": 1, "config": {"profile": "full", "users": users}, "machine": {"cpu": "x"},
            "cpu_us_per_run": cpu, "isolation": {"violations": violations, "canaries_seen_by_others": 0},
            "budget": {"mismatches": 0}, "audit": {"entries": 5, "expected": 5, "verified": true},
            "stores": {"memory": "inmemory"},
        });
        Report::parse(value.to_string()).unwrap()
    }

    #[test]
    fn noise_passes_and_a_regression_does_not() {
        let verdict = |cpu, violations| compare(&report(100.0, 0, 5), &report(cpu, violations, 5)).unwrap();
        assert!(verdict(149.0, 0).into_outcome().is_ok());
        assert!(verdict(10.0, 0).into_outcome().is_ok());
        let slow = verdict(151.0, 0);
        assert!(slow.to_string().contains("REGRESSION"), "{slow}");
        assert!(slow.into_outcome().is_err());
        assert!(verdict(100.0, 1).into_outcome().is_err());
    }

    #[test]
    fn a_violation_in_the_baseline_excuses_none_now() {
        assert!(compare(&report(1.0, 3, 5), &report(1.0, 3, 5)).unwrap().into_outcome().is_err());
    }

    #[test]
    fn other_work_is_not_compared() {
        assert!(matches!(compare(&report(1.0, 0, 5), &report(1.0, 0, 6)), Err(Failure::Usage(_))));
        assert!(Report::parse("{\"schema\":2}".to_owned()).is_err());
        assert!(Report::parse("ERROR".to_owned()).is_err());
    }

    #[test]
    fn a_fault_must_show_in_its_own_figures() {
        for fault in crate::bench_tenants::FAULTS {
            assert!(report(1.0, 0, 5).expect_alarm(fault).is_err(), "{fault}");
        }
        assert!(report(1.0, 1, 5).expect_alarm("leak").is_ok());
        assert!(report(1.0, 1, 5).expect_alarm("double_charge").is_err());
        let mut lost = report(1.0, 0, 5);
        lost.value["audit"]["entries"] = json!(4);
        assert!(lost.expect_alarm("lost_audit").is_ok());
    }
}
