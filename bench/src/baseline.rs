//! Comparing a report with an older one of the same work.

use std::path::Path;

use serde_json::Value;

use crate::report::Report;

/// Two runs of one binary on a shared machine differ by less than this factor.
pub const NOISE: f64 = 1.5;

/// What makes two reports comparable: the same work on the same stores.
const SAME: [&str; 6] =
    ["/config/profile", "/config/users", "/config/turns", "/config/threads", "/config/smoke", "/stores"];

/// Names every figure of `report` that regressed against the report in `path`.
///
/// Wall-clock figures are left out: on a shared machine they measure the neighbours.
///
/// # Errors
///
/// When the file cannot be read, is no report, or measured other work.
pub fn regressions(path: &Path, report: &Report) -> Result<Vec<String>, String> {
    let told = |why: String| format!("--baseline {}: {why}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| told(e.to_string()))?;
    let old: Value = serde_json::from_str(&text).map_err(|e| told(format!("not a JSON report: {e}")))?;
    let new = serde_json::to_value(report).map_err(|e| told(e.to_string()))?;
    compare(&old, &new).map_err(told)
}

fn compare(old: &Value, new: &Value) -> Result<Vec<String>, String> {
    if old["schema"] != new["schema"] {
        return Err(format!("its schema is {}, and this driver writes {}", old["schema"], new["schema"]));
    }
    for pointer in SAME {
        if old.pointer(pointer) != new.pointer(pointer) {
            return Err(format!("it measured other work: {pointer} differs"));
        }
    }
    let figure = |report: &Value| {
        report["cpu_us_per_run"].as_f64().ok_or_else(|| "it has no figure cpu_us_per_run".to_owned())
    };
    let (was, is) = (figure(old)?, figure(new)?);
    let limit = was * NOISE;
    Ok(if is > limit {
        vec![format!("regression: cpu_us_per_run is {is:.1}, was {was:.1}, may be {limit:.1}")]
    } else {
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(cpu: f64, users: u64) -> Value {
        json!({"schema": 1, "config": {"profile": "full", "users": users}, "cpu_us_per_run": cpu})
    }

    #[test]
    fn a_regression_is_named_and_noise_is_not_one() {
        assert!(compare(&report(100.0, 5), &report(149.0, 5)).unwrap().is_empty());
        let found = compare(&report(100.0, 5), &report(151.0, 5)).unwrap();
        assert!(found[0].contains("cpu_us_per_run is 151.0"), "{found:?}");
        assert!(compare(&report(100.0, 5), &report(100.0, 6)).unwrap_err().contains("/config/users"));
        assert!(compare(&json!({"schema": 2}), &report(1.0, 5)).is_err());
    }
}
