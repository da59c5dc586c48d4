//! Which models of litellm's list come into the table, and what is kept of each.
//!
//! A price comes in whole or not at all: what depends on anything but the counts of tokens (searches, pictures, the mode of
//! thinking, a third step of prompt length) cannot be charged exactly, and an unknown price is refused where a wrong one
//! would be charged.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::decimal;
use super::file::{Entry, LongPrompt, Rates};

/// A model as the list has it: every member with the very text of its value.
pub(super) type Listed = BTreeMap<String, Box<RawValue>>;

/// The list's vendors that an adapter can reach, and the name each has in the table.
const VENDORS: [(&str, &str); 21] = [
    ("anthropic", "anthropic"),
    ("azure", "azure"),
    ("cerebras", "cerebras"),
    ("cohere", "cohere"),
    ("cohere_chat", "cohere"),
    ("dashscope", "dashscope"),
    ("deepinfra", "deepinfra"),
    ("deepseek", "deepseek"),
    ("fireworks_ai", "fireworks_ai"),
    ("fireworks_ai-embedding-models", "fireworks_ai"),
    ("gemini", "gemini"),
    ("groq", "groq"),
    ("meta", "meta"),
    ("minimax", "minimax"),
    ("mistral", "mistral"),
    ("moonshot", "moonshot"),
    ("openai", "openai"),
    ("sambanova", "sambanova"),
    ("together_ai", "together_ai"),
    ("xai", "xai"),
    ("zai", "zai"),
];

/// Models with these words in their name charge for something besides tokens, such as each search, or pass on the price
/// of another model.
const MORE_THAN_TOKENS: [&str; 5] = ["-search-", "/flux-", "deep-research", "model-router", "model_router"];

/// A dollar for a million tokens: several times what the dearest embedding costs. Above it the list has slipped by some digits.
const DEAREST_EMBEDDING: u64 = 1_000_000;

/// A member that begins so is a price of something that is not a token.
const NOT_TOKENS: [&str; 9] = [
    "input_cost_per_request",
    "input_cost_per_query",
    "output_cost_per_audio",
    "output_cost_per_character",
    "output_cost_per_image",
    "output_cost_per_pixel",
    "output_cost_per_second",
    "output_cost_per_video",
    "output_cost_per_query",
];

/// Why a model of a vendor that we reach is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dropped {
    NoPrice,
    Free,
    MoreThanTokens,
    ThinkingCostsMore,
    ManyTiers,
    EntriesDisagree,
    Implausible,
    NotANumber,
}

/// What came in, and what did not and why.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) entries: Vec<Entry>,
    pub(super) dropped: BTreeMap<Dropped, Vec<String>>,
    /// Rates that were no whole number of pico-dollars.
    pub(super) rounded: usize,
    /// Service tiers of models that came in without them, because the list has only some of their rates.
    pub(super) half_tiers: usize,
}

/// Chooses from the whole list.
pub(super) fn select(list: &BTreeMap<String, Listed>) -> Selection {
    let mut selection = Selection::default();
    let mut found: BTreeMap<(&str, &str), Vec<Result<Entry, Dropped>>> = BTreeMap::new();
    for (name, listed) in list {
        let Some((provider, vendor)) = vendor_of(listed) else { continue };
        if !matches!(text(listed, "mode"), Some("chat" | "responses" | "embedding")) {
            continue;
        }
        let bare = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
        let model = bare(provider).or_else(|| bare(vendor)).unwrap_or(name);
        let mut reader = Reader { listed, rounded: 0, half_tiers: 0 };
        found.entry((vendor, model)).or_default().push(reader.entry(vendor, model));
        selection.rounded += reader.rounded;
        selection.half_tiers += reader.half_tiers;
    }
    for ((vendor, model), mut entries) in found {
        let agree = entries.windows(2).all(|pair| pair[0] == pair[1]);
        match entries.pop() {
            Some(Ok(entry)) if agree => selection.entries.push(entry),
            Some(Err(why)) if agree => selection.drop(vendor, model, why),
            _ => selection.drop(vendor, model, Dropped::EntriesDisagree),
        }
    }
    selection
}

impl Selection {
    fn drop(&mut self, vendor: &str, model: &str, why: Dropped) {
        self.dropped.entry(why).or_default().push(format!("{vendor}/{model}"));
    }
}

fn vendor_of(listed: &Listed) -> Option<(&'static str, &'static str)> {
    let provider = text(listed, "litellm_provider")?;
    VENDORS.iter().find(|(theirs, _)| *theirs == provider).copied()
}

/// A member that is a plain string.
fn text<'l>(listed: &'l Listed, member: &str) -> Option<&'l str> {
    listed.get(member)?.get().strip_prefix('"')?.strip_suffix('"')
}

/// Which step of service a rate belongs to, as the end of its name.
#[derive(Clone, Copy)]
struct Service(&'static str);

const DEFAULT: Service = Service("");
const FLEX: Service = Service("_flex");
const PRIORITY: Service = Service("_priority");

struct Reader<'l> {
    listed: &'l Listed,
    rounded: usize,
    half_tiers: usize,
}

impl Reader<'_> {
    fn entry(&mut self, vendor: &str, model: &str) -> Result<Entry, Dropped> {
        let costs_more = |name: &str| NOT_TOKENS.iter().any(|prefix| name.starts_with(prefix));
        if MORE_THAN_TOKENS.iter().any(|word| model.contains(word)) || self.priced().any(costs_more) {
            return Err(Dropped::MoreThanTokens);
        }
        let embedding = text(self.listed, "mode") == Some("embedding");
        let price = match self.steps()? {
            Some(rates) => rates,
            None => self.service(DEFAULT)?.ok_or(Dropped::NoPrice)?,
        };
        if price.input == 0 || (price.output == 0 && !embedding) {
            return Err(Dropped::Free);
        }
        if embedding && price.input > DEAREST_EMBEDDING {
            return Err(Dropped::Implausible);
        }
        self.thinking(self.listed, price.output)?;
        let flex = self.tier(FLEX, &price, embedding)?;
        let priority = self.tier(PRIORITY, &price, embedding)?;
        Ok(Entry {
            vendor: vendor.to_owned(),
            model: model.to_owned(),
            embedding,
            context_window: self.count("max_input_tokens"),
            max_output_tokens: self.count("max_output_tokens").filter(|_| !embedding),
            price,
            flex,
            priority,
        })
    }

    /// The names of members that say more than zero or nothing.
    fn priced(&self) -> impl Iterator<Item = &str> {
        let says =
            |value: &str| value != "null" && !decimal::units(value, 12).is_ok_and(|u| u.rounded_up == 0);
        self.listed.iter().filter(move |(_, value)| says(value.get())).map(|(name, _)| name.as_str())
    }

    /// The rates of a service tier besides the default one. Half of them are none: neither the price of a generated token
    /// nor that of a long prompt can be made up.
    fn tier(&mut self, service: Service, usual: &Rates, embedding: bool) -> Result<Option<Rates>, Dropped> {
        let rates = match self.service(service) {
            Ok(None) => return Ok(None),
            Ok(rates) => rates,
            Err(Dropped::NoPrice) => None,
            Err(why) => return Err(why),
        };
        let whole = rates.filter(|rates| {
            (rates.output > 0 || embedding) && rates.long_prompt.is_some() == usual.long_prompt.is_some()
        });
        self.half_tiers += usize::from(whole.is_none());
        Ok(whole)
    }

    /// The rates of one service tier, if the list has any.
    fn service(&mut self, Service(end): Service) -> Result<Option<Rates>, Dropped> {
        let all = self.listed;
        let Some(input) = self.rate(all, &format!("input_cost_per_token{end}"))? else { return Ok(None) };
        let output = self.rate(all, &format!("output_cost_per_token{end}"))?.unwrap_or_default();
        Ok(Some(Rates {
            input,
            cached_input: self.positive(all, &format!("cache_read_input_token_cost{end}"))?,
            cache_write: self.written(all, &format!("cache_creation_input_token_cost{end}"), input)?,
            cache_write_1h: self.positive(all, &format!("cache_creation_input_token_cost_above_1hr{end}"))?,
            output,
            long_prompt: self.long_prompt(end)?,
        }))
    }

    /// The tier of long prompts, whose members are named after its border: `.._above_200k_tokens`.
    fn long_prompt(&mut self, end: &str) -> Result<Option<LongPrompt>, Dropped> {
        let all = self.listed;
        let borders: Vec<&str> = self
            .priced()
            .filter_map(|name| name.strip_prefix("input_cost_per_token_above_")?.strip_suffix("_tokens"))
            .collect();
        let border = match borders[..] {
            [] => return Ok(None),
            [border] => border.to_owned(),
            _ => return Err(Dropped::ManyTiers),
        };
        let thousands = border.strip_suffix('k').and_then(|digits| digits.parse::<u64>().ok());
        let above = thousands.and_then(|k| k.checked_mul(1_000)).ok_or(Dropped::NotANumber)?;
        let end = format!("_above_{border}_tokens{end}");
        let Some(input) = self.rate(all, &format!("input_cost_per_token{end}"))? else { return Ok(None) };
        let Some(output) = self.rate(all, &format!("output_cost_per_token{end}"))? else {
            return Err(Dropped::NoPrice);
        };
        Ok(Some(LongPrompt {
            above,
            input,
            cached_input: self.positive(all, &format!("cache_read_input_token_cost{end}"))?,
            cache_write: self.written(all, &format!("cache_creation_input_token_cost{end}"), input)?,
            cache_write_1h: self.positive(all, &format!("cache_creation_input_token_cost_above_1hr{end}"))?,
            output,
        }))
    }

    /// The other way of writing long prompts: a list of steps, each with its range. Two of them make a tier; more cannot
    /// be charged.
    fn steps(&mut self) -> Result<Option<Rates>, Dropped> {
        let Some(raw) = self.listed.get("tiered_pricing") else { return Ok(None) };
        let steps: Vec<Listed> = serde_json::from_str(raw.get()).map_err(|_| Dropped::NotANumber)?;
        let borders: Vec<Option<u64>> =
            steps.iter().map(|step| step.get("range").and_then(|range| first_number(range.get()))).collect();
        match (&steps[..], &borders[..]) {
            ([only], [Some(0)]) => Ok(Some(self.step(only)?)),
            ([short, long], [Some(0), Some(above)]) if *above > 0 => {
                let Rates { input, cached_input, cache_write, cache_write_1h, output, .. } =
                    self.step(long)?;
                let above = *above;
                let long = LongPrompt { above, input, cached_input, cache_write, cache_write_1h, output };
                Ok(Some(Rates { long_prompt: Some(long), ..self.step(short)? }))
            }
            _ => Err(Dropped::ManyTiers),
        }
    }

    fn step(&mut self, step: &Listed) -> Result<Rates, Dropped> {
        let output = self.rate(step, "output_cost_per_token")?.ok_or(Dropped::NoPrice)?;
        self.thinking(step, output)?;
        let input = self.rate(step, "input_cost_per_token")?.ok_or(Dropped::NoPrice)?;
        Ok(Rates {
            input,
            cached_input: self.positive(step, "cache_read_input_token_cost")?,
            cache_write: self.written(step, "cache_creation_input_token_cost", input)?,
            cache_write_1h: self.positive(step, "cache_creation_input_token_cost_above_1hr")?,
            output,
            long_prompt: None,
        })
    }

    /// A token of thought costs what any other generated token costs, or the counts alone do not make the price.
    fn thinking(&mut self, of: &Listed, output: u64) -> Result<(), Dropped> {
        match self.rate(of, "output_cost_per_reasoning_token")? {
            Some(rate) if rate != output => Err(Dropped::ThinkingCostsMore),
            _ => Ok(()),
        }
    }

    /// A rate in pico-dollars.
    fn rate(&mut self, of: &Listed, member: &str) -> Result<Option<u64>, Dropped> {
        let Some(value) = of.get(member).map(|raw| raw.get()).filter(|value| *value != "null") else {
            return Ok(None);
        };
        let units = decimal::units(value, 12).map_err(|_| Dropped::NotANumber)?;
        self.rounded += usize::from(!units.exact);
        Ok(Some(units.rounded_up))
    }

    /// A rate of the cache. The list writes zero where a vendor has no such rate, which does not make it free.
    fn positive(&mut self, of: &Listed, member: &str) -> Result<Option<u64>, Dropped> {
        Ok(self.rate(of, member)?.filter(|rate| *rate > 0))
    }

    /// The rate of writing to the cache. No vendor takes less for it than for not writing; the list has some such numbers,
    /// which are the price of reading under the wrong name.
    fn written(&mut self, of: &Listed, member: &str, input: u64) -> Result<Option<u64>, Dropped> {
        Ok(self.positive(of, member)?.filter(|rate| *rate >= input))
    }

    /// A count of tokens, where the list has a number.
    fn count(&self, member: &str) -> Option<u64> {
        let units = decimal::units(self.listed.get(member)?.get(), 0).ok()?;
        (units.exact && units.rounded_up > 0).then_some(units.rounded_up)
    }
}

/// The first number of a JSON array.
fn first_number(array: &str) -> Option<u64> {
    let numbers: Vec<Box<RawValue>> = serde_json::from_str(array).ok()?;
    let units = decimal::units(numbers.first()?.get(), 0).ok()?;
    units.exact.then_some(units.rounded_up)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Selects from one model of this name with these members.
    fn one(name: &str, members: &str) -> Selection {
        let json = format!("{{{name:?}:{{{members}}}}}");
        select(&serde_json::from_str(&json).unwrap())
    }

    fn entry(name: &str, members: &str) -> Entry {
        let mut selection = one(name, members);
        assert!(selection.dropped.is_empty(), "{:?}", selection.dropped);
        selection.entries.pop().unwrap()
    }

    fn dropped(name: &str, members: &str) -> Dropped {
        let selection = one(name, members);
        assert!(selection.entries.is_empty(), "{:?}", selection.entries);
        *selection.dropped.keys().next().unwrap()
    }

    const CHAT: &str = r#""litellm_provider":"openai","mode":"chat""#;
    const PLAIN: &str = r#""input_cost_per_token":4e-07,"output_cost_per_token":0.0000016"#;

    #[test]
    fn rates_come_from_the_text_of_the_number() {
        let entry = entry(
            "openai/m",
            &format!(r#"{CHAT},{PLAIN},"cache_read_input_token_cost":1e-7,"max_input_tokens":128000.0"#),
        );
        assert_eq!((entry.vendor.as_str(), entry.model.as_str()), ("openai", "m"));
        assert_eq!(
            entry.price,
            Rates { input: 400_000, cached_input: Some(100_000), output: 1_600_000, ..Rates::default() }
        );
        assert_eq!(entry.context_window, Some(128_000));
        let odd = one(
            "m",
            &format!(r#"{CHAT},"input_cost_per_token":4.00000000001e-07,"output_cost_per_token":1e-6"#),
        );
        assert_eq!((odd.entries[0].price.input, odd.rounded), (400_001, 1), "rounded up, and counted");
    }

    #[test]
    fn tiers_of_service_and_of_length_are_kept_apart() {
        let entry = entry(
            "m",
            &format!(
                r#"{CHAT},{PLAIN},"input_cost_per_token_above_200k_tokens":8e-07,"output_cost_per_token_above_200k_tokens":2e-06,
                "cache_creation_input_token_cost":5e-07,"cache_creation_input_token_cost_above_1hr":7e-07,
                "cache_creation_input_token_cost_above_1hr_above_200k_tokens":9e-07,
                "input_cost_per_token_flex":2e-07,"output_cost_per_token_flex":8e-07,
                "input_cost_per_token_above_200k_tokens_priority":3e-06,"output_cost_per_token_above_200k_tokens_priority":4e-06,
                "input_cost_per_token_priority":1e-06,"output_cost_per_token_priority":2e-06,"cache_read_input_token_cost_priority":1e-08"#
            ),
        );
        let long = entry.price.long_prompt.unwrap();
        assert_eq!(
            (long.above, long.input, long.output, long.cache_write_1h),
            (200_000, 800_000, 2_000_000, Some(900_000))
        );
        assert_eq!((entry.price.cache_write, entry.price.cache_write_1h), (Some(500_000), Some(700_000)));
        assert_eq!(entry.flex, None, "nobody knows what a long prompt costs there");
        let priority = entry.priority.unwrap();
        assert_eq!((priority.input, priority.cached_input), (1_000_000, Some(10_000)));
        assert_eq!(priority.long_prompt.unwrap().input, 3_000_000);
    }

    #[test]
    fn a_service_tier_comes_in_whole_or_not_at_all() {
        let flex = r#""input_cost_per_token_flex":2e-07,"output_cost_per_token_flex":8e-07"#;
        let whole = entry("m", &format!("{CHAT},{PLAIN},{flex}"));
        assert_eq!(whole.flex, Some(Rates { input: 200_000, output: 800_000, ..Rates::default() }));
        let half = r#""input_cost_per_token_flex":1e-7,"cache_read_input_token_cost_flex":1e-8"#;
        let selection = one("m", &format!("{CHAT},{PLAIN},{half}"));
        assert_eq!((&selection.entries[0].flex, selection.half_tiers), (&None, 1), "and the model stays");
    }

    #[test]
    fn two_steps_are_a_tier_and_three_are_too_many() {
        let chat = r#""litellm_provider":"dashscope","mode":"chat""#;
        let step = |from: &str, rate: &str| {
            format!(r#"{{"input_cost_per_token":{rate},"output_cost_per_token":{rate},"range":[{from},9]}}"#)
        };
        let two =
            format!(r#"{chat},"tiered_pricing":[{},{}]"#, step("0", "1e-07"), step("256000.0", "3e-07"));
        let entry = entry("dashscope/q", &two);
        assert_eq!(
            (entry.price.input, entry.price.long_prompt.map(|l| (l.above, l.input))),
            (100_000, Some((256_000, 300_000)))
        );
        let three = format!(r#"{chat},"tiered_pricing":[{0},{0},{0}]"#, step("0", "1e-07"));
        assert_eq!(dropped("dashscope/q", &three), Dropped::ManyTiers);
    }

    #[test]
    fn what_cannot_be_charged_exactly_is_left_out() {
        let with = |more: &str| format!("{CHAT},{PLAIN},{more}");
        assert_eq!(dropped("m", CHAT), Dropped::NoPrice);
        assert_eq!(
            dropped("m", &format!(r#"{CHAT},"input_cost_per_token":0.0,"output_cost_per_token":0"#)),
            Dropped::Free
        );
        assert_eq!(
            dropped("m", &format!(r#"{CHAT},"input_cost_per_token":1e-7"#)),
            Dropped::Free,
            "half a price"
        );
        assert_eq!(entry("NousResearch/m", &format!("{CHAT},{PLAIN}")).model, "NousResearch/m");
        assert_eq!(dropped("m-search-preview", &with(r#""x":1"#)), Dropped::MoreThanTokens);
        assert_eq!(dropped("m", &with(r#""input_cost_per_request":0.005"#)), Dropped::MoreThanTokens);
        assert_eq!(dropped("m", &with(r#""output_cost_per_audio_token":1e-6"#)), Dropped::MoreThanTokens);
        assert_eq!(
            dropped("m", &with(r#""output_cost_per_reasoning_token":4e-06"#)),
            Dropped::ThinkingCostsMore
        );
        assert_eq!(dropped("m", &with(r#""cache_read_input_token_cost":-1e-6"#)), Dropped::NotANumber);
        let borders =
            r#""input_cost_per_token_above_128k_tokens":1e-6,"input_cost_per_token_above_200k_tokens":1e-6"#;
        assert_eq!(dropped("m", &with(borders)), Dropped::ManyTiers);
        entry("m", &with(r#""output_cost_per_reasoning_token":1.6e-06,"output_cost_per_audio_token":0"#));
    }

    #[test]
    fn a_cache_that_costs_zero_has_no_published_rate() {
        let entry = entry(
            "m",
            &format!(
                r#"{CHAT},{PLAIN},"cache_creation_input_token_cost":0.0,"input_cost_per_token_priority":null"#
            ),
        );
        assert_eq!((entry.price.cache_write, entry.priority), (None, None));
    }

    #[test]
    fn an_embedding_at_a_thousand_times_its_price_is_left_out() {
        let with = |rate: &str| {
            format!(r#""litellm_provider":"openai","mode":"embedding","input_cost_per_token":{rate}"#)
        };
        assert_eq!(entry("m", &with("1.3e-07")).price.input, 130_000);
        assert_eq!(dropped("m", &with("0.0001")), Dropped::Implausible);
    }

    #[test]
    fn writing_to_a_cache_is_not_cheaper_than_not_writing() {
        let with = |rate: &str| format!(r#"{CHAT},{PLAIN},"cache_creation_input_token_cost":{rate}"#);
        assert_eq!(entry("m", &with("2e-07")).price.cache_write, None);
        assert_eq!(entry("m", &with("5e-07")).price.cache_write, Some(500_000));
    }

    #[test]
    fn two_entries_of_one_model_agree_or_are_left_out() {
        let deepseek = r#""litellm_provider":"deepseek","mode":"chat""#;
        let list = |other: &str| {
            format!(r#"{{"deepseek/m":{{{deepseek},{PLAIN}}},"m":{{{deepseek},{PLAIN}{other}}}}}"#)
        };
        let same = select(&serde_json::from_str(&list("")).unwrap());
        assert_eq!((same.entries.len(), same.dropped.len()), (1, 0));
        let other = select(&serde_json::from_str(&list(r#","cache_read_input_token_cost":1e-9"#)).unwrap());
        assert_eq!(other.dropped.get(&Dropped::EntriesDisagree).unwrap(), &["deepseek/m"]);
        assert!(other.entries.is_empty());
    }

    #[test]
    fn other_vendors_and_other_kinds_are_passed_over() {
        for members in [
            format!(r#""litellm_provider":"bedrock","mode":"chat",{PLAIN}"#),
            format!(r#""litellm_provider":"openai","mode":"realtime",{PLAIN}"#),
            format!(r#""litellm_provider":"openai",{PLAIN}"#),
        ] {
            let selection = one("m", &members);
            assert!(selection.entries.is_empty() && selection.dropped.is_empty(), "{selection:?}");
        }
        let embedding = entry(
            "e",
            r#""litellm_provider":"openai","mode":"embedding","input_cost_per_token":2e-8,"max_output_tokens":5"#,
        );
        assert!(embedding.embedding && embedding.price.output == 0 && embedding.max_output_tokens.is_none());
    }
}
