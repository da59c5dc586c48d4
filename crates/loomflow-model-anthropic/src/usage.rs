//! What the provider says a call used.

use loomflow_core::Usage;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A report of usage as it is on the wire. Counts that are missing, null or no counts at all are not reported, and neither
/// are those that no call can have: a server in disorder must not charge somebody's budget of a year.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    #[serde(deserialize_with = "count")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    output_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    cache_read_input_tokens: Option<u64>,
    cache_creation: Option<ByTtl>,
    output_tokens_details: Option<Details>,
}

/// Tokens written to the cache, by how long they are kept.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct ByTtl {
    #[serde(deserialize_with = "count")]
    ephemeral_5m_input_tokens: Option<u64>,
    #[serde(deserialize_with = "count")]
    ephemeral_1h_input_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    #[serde(deserialize_with = "count")]
    thinking_tokens: Option<u64>,
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let count = Value::deserialize(deserializer)?.as_u64();
    Ok(count.filter(|count| *count <= u64::from(u32::MAX)))
}

/// Every report of one call, taken together: the largest of each count, since they are cumulative.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reports {
    input: u64,
    written: u64,
    read: u64,
    output: u64,
    thinking: u64,
    /// The count of generated tokens is the final one. At a stream's start it only begins.
    counted: bool,
}

impl Reports {
    /// Adds a report; `last` when its generated tokens are all there are.
    pub(crate) fn add(&mut self, report: &Report, last: bool) {
        let by_ttl = report.cache_creation.unwrap_or_default();
        let split = [by_ttl.ephemeral_5m_input_tokens, by_ttl.ephemeral_1h_input_tokens];
        let split = split.into_iter().flatten().fold(0, u64::saturating_add);
        let greater = |so_far: &mut u64, count: Option<u64>| *so_far = (*so_far).max(count.unwrap_or(0));
        greater(&mut self.input, report.input_tokens);
        greater(&mut self.written, report.cache_creation_input_tokens.max(Some(split)));
        greater(&mut self.read, report.cache_read_input_tokens);
        greater(&mut self.output, report.output_tokens);
        greater(&mut self.thinking, report.output_tokens_details.and_then(|details| details.thinking_tokens));
        self.counted |= last && report.output_tokens.is_some();
    }

    /// The usage, or `None` when the provider did not say it all: no prompt is without tokens, nor is a reply that said
    /// something.
    pub(crate) fn usage(&self, said_something: bool) -> Option<Usage> {
        let input = self.input.saturating_add(self.written).saturating_add(self.read);
        let told = input > 0 && self.counted && (self.output > 0 || !said_something);
        told.then(|| {
            let usage = Usage::new(input, self.output).with_cache(self.read, self.written);
            usage.with_reasoning(self.thinking.min(self.output))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(json: &str) -> Report {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn cached_tokens_are_part_of_the_prompt() {
        let mut reports = Reports::default();
        let start = r#"{"input_tokens":10,"cache_creation_input_tokens":300,"cache_read_input_tokens":2000,"output_tokens":1,
            "cache_creation":{"ephemeral_5m_input_tokens":100,"ephemeral_1h_input_tokens":200}}"#;
        reports.add(&report(start), false);
        assert_eq!(reports.usage(true), None, "the count at the start is not the final one");
        reports.add(&report(r#"{"output_tokens":42,"output_tokens_details":{"thinking_tokens":30}}"#), true);
        let usage = Usage::new(2_310, 42).with_cache(2_000, 300).with_reasoning(30);
        assert_eq!(reports.usage(true), Some(usage));
        reports.add(&report(r#"{"input_tokens":4,"output_tokens":40}"#), true);
        assert_eq!(reports.usage(true), Some(usage), "a smaller report takes nothing back");
    }

    #[test]
    fn the_split_alone_counts() {
        let mut reports = Reports::default();
        reports.add(
            &report(
                r#"{"input_tokens":1,"cache_creation":{"ephemeral_1h_input_tokens":7},"output_tokens":1}"#,
            ),
            true,
        );
        assert_eq!(reports.usage(true), Some(Usage::new(8, 1).with_cache(0, 7)));
    }

    #[test]
    fn what_is_no_count_is_no_report() {
        for json in [
            r#"{}"#,
            r#"{"input_tokens":0,"output_tokens":0}"#,
            r#"{"input_tokens":5,"output_tokens":0}"#,
            r#"{"input_tokens":5}"#,
            r#"{"input_tokens":null,"output_tokens":5}"#,
            r#"{"input_tokens":-5,"output_tokens":"many"}"#,
        ] {
            let mut reports = Reports::default();
            reports.add(&report(json), true);
            assert_eq!(reports.usage(true), None, "{json}");
        }
        let mut reports = Reports::default();
        reports.add(&report(r#"{"input_tokens":5,"output_tokens":0}"#), true);
        assert_eq!(reports.usage(false), Some(Usage::new(5, 0)), "a reply that said nothing");
        let huge = format!(r#"{{"input_tokens":{},"output_tokens":{}}}"#, u64::MAX, 1_u64 << 32);
        reports.add(&report(&huge), true);
        assert_eq!(reports.usage(false), Some(Usage::new(5, 0)), "no call has as many");
    }
}
