//! Which models take which members of a request, by their names.
//!
//! A name is looked for anywhere in the text, so that `anthropic/claude-sonnet-4.5` and
//! `us.anthropic.claude-sonnet-4-5-20250929-v1:0` of gateways are known, too.

/// What a family of models takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "a table of what is known, one column each")]
pub(crate) struct Family {
    /// `thinking.budget_tokens`.
    pub(crate) budget: bool,
    /// `thinking.type = adaptive`.
    pub(crate) adaptive: bool,
    /// `output_config.effort`.
    pub(crate) effort: bool,
    /// `output_config.format`.
    pub(crate) schema: bool,
}

const fn family(budget: bool, adaptive: bool, effort: bool, schema: bool) -> Family {
    Family { budget, adaptive, effort, schema }
}

/// The first that is contained in a name decides.
const FAMILIES: [(&str, Family); 18] = [
    ("claude-2", family(false, false, false, false)),
    ("claude-instant", family(false, false, false, false)),
    ("claude-3-7", family(true, false, false, false)),
    ("claude-3", family(false, false, false, false)),
    ("claude-sonnet-4-0", family(true, false, false, false)),
    ("claude-sonnet-4-2025", family(true, false, false, false)),
    ("claude-opus-4-0", family(true, false, false, false)),
    ("claude-opus-4-2025", family(true, false, false, false)),
    ("claude-opus-4-1", family(true, false, false, false)),
    ("claude-sonnet-4-5", family(true, false, false, true)),
    ("claude-haiku-4-5", family(true, false, false, true)),
    ("claude-opus-4-5", family(true, false, true, true)),
    ("claude-opus-4-6", family(true, true, true, true)),
    ("claude-sonnet-4-6", family(true, true, true, true)),
    ("claude-4-", family(true, false, false, false)),
    ("claude-sonnet-4", family(false, true, true, true)),
    ("claude-opus-4", family(false, true, true, true)),
    // Whatever comes later is taken to be like the latest that is known.
    ("claude-", family(false, true, true, true)),
];

impl Family {
    /// The family of a name. A model of somebody else, behind a server that speaks this API, may take everything its user
    /// asks for; only a schema is not sent to it unasked.
    pub(crate) fn of(model: &str) -> Self {
        let name = model.to_ascii_lowercase().replace('.', "-");
        // `claude-sonnet-4` by itself is the first of its line, not the latest.
        let ends = |line: &str| name.ends_with(line) || name.contains(&format!("{line}@"));
        if ends("claude-sonnet-4") || ends("claude-opus-4") {
            return family(true, false, false, false);
        }
        FAMILIES
            .iter()
            .find(|(part, _)| name.contains(part))
            .map_or(family(true, true, true, false), |(_, family)| *family)
    }
}

#[cfg(feature = "client")]
impl Family {
    /// Whether its models make more tokens of a text than those up to Claude 4.6. Which the names of others are of is not
    /// known, so they are taken not to be.
    pub(crate) fn is_dense(self) -> bool {
        self.adaptive && !self.budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_gateways_are_known() {
        let sonnet_45 = Family::of("claude-sonnet-4-5");
        assert_eq!(sonnet_45, family(true, false, false, true));
        for name in [
            "claude-sonnet-4-5-20250929",
            "anthropic/claude-sonnet-4.5",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "Claude-Sonnet-4-5@20250929",
        ] {
            assert_eq!(Family::of(name), sonnet_45, "{name}");
        }
        let first = family(true, false, false, false);
        for name in [
            "anthropic/claude-sonnet-4",
            "claude-sonnet-4-20250514",
            "claude-sonnet-4@20250514",
            "claude-opus-4.1",
        ] {
            assert_eq!(Family::of(name), first, "{name}");
        }
        for name in ["claude-opus-4-7", "claude-sonnet-5", "claude-opus-4-8"] {
            assert_eq!(Family::of(name), family(false, true, true, true), "{name}");
        }
        assert_eq!(Family::of("deepseek-chat"), family(true, true, true, false));
    }
}
