//! The price table on disk: its shape, its one way of being written, and what is checked about it.
//!
//! One model per line, sorted, whole pico-dollars per token: a new list price is one changed line in a diff.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the format.
pub(crate) const SCHEMA: u32 = 1;

/// The whole file.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PriceFile {
    pub(crate) schema: u32,
    /// The day the prices were published by the source, as `YYYY-MM-DD`.
    pub(crate) as_of: String,
    /// Where the prices are from, with the version.
    pub(crate) source: String,
    pub(crate) models: Vec<Entry>,
}

/// One model of one vendor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) vendor: String,
    pub(crate) model: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) embedding: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) context_window: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_output_tokens: Option<u64>,
    pub(crate) price: Rates,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flex: Option<Rates>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<Rates>,
}

/// Pico-dollars per token. What the source does not say is left out; the reader decides what that means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rates {
    pub(crate) input: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cached_input: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache_write: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache_write_1h: Option<u64>,
    #[serde(default)]
    pub(crate) output: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) long_prompt: Option<LongPrompt>,
}

/// The rates of a prompt of more than `above` tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LongPrompt {
    pub(crate) above: u64,
    pub(crate) input: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cached_input: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache_write: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cache_write_1h: Option<u64>,
    #[serde(default)]
    pub(crate) output: u64,
}

impl PriceFile {
    /// The file's only text: sorted, one model per line.
    pub(crate) fn render(&self) -> serde_json::Result<String> {
        let sorted: BTreeMap<_, _> =
            self.models.iter().map(|entry| ((&entry.vendor, &entry.model), entry)).collect();
        let lines: Vec<String> = sorted.values().map(serde_json::to_string).collect::<Result<_, _>>()?;
        Ok(format!(
            "{{\n\"schema\":{},\n\"as_of\":{},\n\"source\":{},\n\"models\":[\n{}\n]\n}}\n",
            self.schema,
            serde_json::to_string(&self.as_of)?,
            serde_json::to_string(&self.source)?,
            lines.join(",\n"),
        ))
    }

    /// Reads a file and finds everything that is wrong with it.
    pub(crate) fn check(text: &str) -> Result<Self, String> {
        let file: Self = serde_json::from_str(text).map_err(|e| format!("it cannot be read: {e}"))?;
        if file.schema != SCHEMA {
            return Err(format!("its schema is {}, and this command writes {SCHEMA}", file.schema));
        }
        if !is_date(&file.as_of) {
            return Err(format!("as_of is {:?}, which is not a date such as 2026-01-31", file.as_of));
        }
        if file.models.is_empty() || file.source.is_empty() {
            return Err("it has no models, or does not say where they are from".to_owned());
        }
        if let Some(entry) = file.models.iter().find(|entry| !entry.is_sound()) {
            return Err(format!("{}/{} has no name, or a rate of zero", entry.vendor, entry.model));
        }
        let canonical = file.render().map_err(|e| format!("it cannot be written again: {e}"))?;
        match canonical.lines().zip(text.lines()).position(|(a, b)| a != b) {
            Some(line) => Err(format!("line {} is out of order, twice there, or edited by hand", line + 1)),
            None if canonical != text => Err("a line is twice there, or edited by hand".to_owned()),
            None => Ok(file),
        }
    }
}

impl Entry {
    /// Named, and nothing in it is free by accident.
    fn is_sound(&self) -> bool {
        let rates = [Some(&self.price), self.flex.as_ref(), self.priority.as_ref()];
        let named = !self.vendor.is_empty() && !self.model.is_empty();
        named && rates.into_iter().flatten().all(|rates| rates.is_sound(self.embedding))
    }
}

impl Rates {
    fn is_sound(&self, embedding: bool) -> bool {
        let priced = |input, output| input > 0 && (output > 0 || embedding);
        let written = [self.cached_input, self.cache_write, self.cache_write_1h];
        let long = self.long_prompt.as_ref();
        priced(self.input, self.output)
            && written.into_iter().flatten().all(|rate| rate > 0)
            && long.is_none_or(|long| {
                let written = [long.cached_input, long.cache_write, long.cache_write_1h];
                long.above > 0
                    && priced(long.input, long.output)
                    && written.into_iter().flatten().all(|rate| rate > 0)
            })
    }
}

/// Whether `text` is a day of the calendar, written `YYYY-MM-DD`.
pub(crate) fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let number = |part: &str, length: usize| -> Option<u32> {
        (part.len() == length && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let [year, month, day] = parts[..] else { return false };
    let (Some(year), Some(month), Some(day)) = (number(year, 4), number(month, 2), number(day, 2)) else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=days).contains(&day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(vendor: &str, model: &str) -> Entry {
        Entry {
            vendor: vendor.to_owned(),
            model: model.to_owned(),
            embedding: false,
            context_window: Some(1_000),
            max_output_tokens: None,
            price: Rates { input: 5, cached_input: Some(1), output: 7, ..Rates::default() },
            flex: None,
            priority: None,
        }
    }

    fn file(models: Vec<Entry>) -> PriceFile {
        PriceFile { schema: SCHEMA, as_of: "2026-02-28".to_owned(), source: "a list".to_owned(), models }
    }

    #[test]
    fn a_file_is_written_sorted_and_read_back() {
        let text = file(vec![entry("b", "x"), entry("a", "y"), entry("a", "x")]).render().unwrap();
        let lines: Vec<&str> = text.lines().skip(5).take(3).collect();
        assert_eq!(
            lines[0],
            r#"{"vendor":"a","model":"x","context_window":1000,"price":{"input":5,"cached_input":1,"output":7}},"#
        );
        assert!(lines[1].contains(r#""a","model":"y""#) && lines[2].contains(r#""b","model":"x""#), "{text}");
        let read = PriceFile::check(&text).unwrap();
        assert_eq!(read.models, [entry("a", "x"), entry("a", "y"), entry("b", "x")]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_named() {
        let good = file(vec![entry("a", "x"), entry("a", "y")]).render().unwrap();
        let lines: Vec<&str> = good.lines().collect();
        let swapped = good.replace(lines[5], "@").replace(lines[6], lines[5].trim_end_matches(','));
        let twice = good.replace(lines[5], &format!("{0}\n{0}", lines[5]));
        for (text, wrong) in [
            (good.replace("2026-02-28", "2026-02-29"), "not a date"),
            (good.replace("\"schema\":1", "\"schema\":2"), "schema"),
            (good.replace("\"input\":5", "\"input\":-5"), "cannot be read"),
            (good.replace("\"input\":5", "\"input\":5.0"), "cannot be read"),
            (good.replace("\"input\":5", "\"input\":0"), "rate of zero"),
            (good.replace("\"output\":7", "\"output\":0"), "rate of zero"),
            (good.replace("\"model\":\"x\"", "\"model\":\"\""), "no name"),
            (good.replace("\"input\":5", "\"input\": 5"), "line 6"),
            (good.replace("\"input\":5", "\"inputs\":5"), "unknown field"),
            (swapped.replace('@', &format!("{},", lines[6])), "line 6"),
            (twice, "line 7"),
            (good.trim_end().to_owned(), "by hand"),
            (String::new(), "cannot be read"),
        ] {
            let why = PriceFile::check(&text).unwrap_err();
            assert!(why.contains(wrong), "{why}: {text}");
        }
        PriceFile::check(&good).unwrap();
    }

    #[test]
    fn dates_are_days_of_the_calendar() {
        for good in ["2026-01-31", "2024-02-29", "2000-02-29", "2026-12-01"] {
            assert!(is_date(good), "{good}");
        }
        for bad in [
            "",
            "2026-1-31",
            "2026-13-01",
            "2026-00-01",
            "2026-04-31",
            "2100-02-29",
            "2026-01-00",
            "26-01-01",
        ]
        .into_iter()
        .chain(["2026-01-31T00:00", "2026/01/31", "+026-01-31", "2026-01-3 "])
        {
            assert!(!is_date(bad), "{bad}");
        }
    }
}
