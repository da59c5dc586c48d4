//! What a server says a call used, and how much of that is believed.

use loomflow_core::Usage;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::wire::Count;

/// More tokens than any call has. A larger number is a defect, and as good as none.
const ABSURD: u64 = u32::MAX as u64;

/// One report.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Report {
    prompt_tokens: Count,
    completion_tokens: Count,
    total_tokens: Count,
    prompt_cache_hit_tokens: Count,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Count,
    cache_write_tokens: Count,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CompletionDetails {
    reasoning_tokens: Count,
}

/// What was reported so far: of each number the largest that was seen. Some servers count up as they stream, some report
/// twice, and some repeat a report that lacks parts.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    input: u64,
    output: u64,
    total: u64,
    cached: u64,
    cache_write: u64,
    reasoning: u64,
}

impl Reported {
    /// Takes a report; one that is not an object says nothing.
    pub(crate) fn take(&mut self, report: &RawValue) {
        let Ok(report) = serde_json::from_str::<Option<Report>>(report.get()) else { return };
        let Some(report) = report else { return };
        let prompt = report.prompt_tokens_details.unwrap_or_default();
        let completion = report.completion_tokens_details.unwrap_or_default();
        let cached = believed(prompt.cached_tokens).max(believed(report.prompt_cache_hit_tokens));
        for (seen, said) in [
            (&mut self.input, believed(report.prompt_tokens)),
            (&mut self.output, believed(report.completion_tokens)),
            (&mut self.total, believed(report.total_tokens)),
            (&mut self.cached, cached),
            (&mut self.cache_write, believed(prompt.cache_write_tokens)),
            (&mut self.reasoning, believed(completion.reasoning_tokens)),
        ] {
            *seen = (*seen).max(said);
        }
    }

    /// The usage; `None` where the reports cannot be the whole of it: every prompt has tokens, and so has every reply that
    /// `said` something.
    pub(crate) fn usage(&self, said: bool) -> Option<Usage> {
        let (input, output) = self.in_all();
        if self.input == 0 || (said && output == 0) {
            return None;
        }
        let cached = self.cached.min(input);
        let written = self.cache_write.min(input - cached);
        let usage = Usage::new(input, output).with_cache(cached, written);
        Some(usage.with_reasoning(self.reasoning.min(output)))
    }

    /// Prompt and generated tokens. Where the total tells of more than both, a server has left some out: what was cached
    /// out of the prompt, or, as Google's does without naming it, reasoning out of the completion.
    fn in_all(&self) -> (u64, u64) {
        let (input, output) = (self.input, self.output);
        match self.total.saturating_sub(input + output) {
            more if more > 0 && more == self.cached => (input + more, output),
            more => (input, output + more),
        }
    }
}

fn believed(tokens: Count) -> u64 {
    tokens.0.filter(|tokens| *tokens <= ABSURD).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(reports: &[&str], said: bool) -> Option<Usage> {
        let mut reported = Reported::default();
        for report in reports {
            reported.take(serde_json::from_str(report).unwrap());
        }
        reported.usage(said)
    }

    #[test]
    fn every_form_of_a_report_is_read() {
        let openai = r#"{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,
            "prompt_tokens_details":{"cached_tokens":64,"audio_tokens":0},
            "completion_tokens_details":{"reasoning_tokens":12}}"#;
        assert_eq!(usage(&[openai], true), Some(Usage::new(100, 20).with_cache(64, 0).with_reasoning(12)));
        let deepseek = r#"{"prompt_tokens":9,"completion_tokens":2,"prompt_cache_hit_tokens":8,"prompt_cache_miss_tokens":1}"#;
        assert_eq!(usage(&[deepseek], true), Some(Usage::new(9, 2).with_cache(8, 0)));
        let apart = r#"{"prompt_tokens":10,"completion_tokens":2,"total_tokens":42,"completion_tokens_details":{"reasoning_tokens":30}}"#;
        assert_eq!(usage(&[apart], true), Some(Usage::new(10, 32).with_reasoning(30)));
        let cached_apart = r#"{"prompt_tokens":10,"completion_tokens":2,"total_tokens":112,"prompt_tokens_details":{"cached_tokens":100}}"#;
        assert_eq!(usage(&[cached_apart], true), Some(Usage::new(110, 2).with_cache(100, 0)));
        assert_eq!(
            usage(&[r#"{"prompt_tokens":3.0,"completion_tokens":1.0}"#], true),
            Some(Usage::new(3, 1))
        );
    }

    #[test]
    fn reasoning_that_only_the_total_tells_of_is_not_free() {
        let google = r#"{"prompt_tokens":20,"completion_tokens":198,"total_tokens":623}"#;
        assert_eq!(usage(&[google], true), Some(Usage::new(20, 603)));
        let nothing_said = r#"{"prompt_tokens":20,"completion_tokens":0,"total_tokens":425}"#;
        assert_eq!(usage(&[nothing_said], true), Some(Usage::new(20, 405)));
        let less = r#"{"prompt_tokens":20,"completion_tokens":5,"total_tokens":7}"#;
        assert_eq!(usage(&[less], true), Some(Usage::new(20, 5)), "a total takes nothing back");
    }

    #[test]
    fn the_largest_of_each_number_counts() {
        let running = [
            r#"{"prompt_tokens":10,"completion_tokens":1}"#,
            r#"{"prompt_tokens":10,"completion_tokens":7,"prompt_tokens_details":null}"#,
            r#"{"prompt_tokens":0,"completion_tokens":3}"#,
            "null",
        ];
        assert_eq!(usage(&running, true), Some(Usage::new(10, 7)));
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        for none in [
            "{}",
            "[]",
            "7",
            r#"{"prompt_tokens":0,"completion_tokens":0}"#,
            r#"{"prompt_tokens":-5,"completion_tokens":3}"#,
            r#"{"prompt_tokens":5}"#,
            r#"{"prompt_tokens":5,"completion_tokens":-1}"#,
            r#"{"prompt_tokens":"5","completion_tokens":1}"#,
            r#"{"prompt_tokens":18446744073709551615,"completion_tokens":1}"#,
        ] {
            assert_eq!(usage(&[none], true), None, "{none}");
        }
        assert_eq!(usage(&[r#"{"prompt_tokens":5,"completion_tokens":0}"#], false), Some(Usage::new(5, 0)));
        let more_cached_than_read =
            r#"{"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":9}}"#;
        assert_eq!(usage(&[more_cached_than_read], true), Some(Usage::new(5, 1).with_cache(5, 0)));
    }
}
