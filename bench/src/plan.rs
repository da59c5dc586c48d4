//! What a tenant does in a turn, drawn from the seed, and what of it the provider is told.

use std::collections::BTreeMap;

use crate::draw::Draw;

/// How a run is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the driver's own list")]
pub enum Act {
    /// Awaited to its end.
    Answer,
    /// Streamed to its end.
    Stream,
    /// Dropped after so many polls.
    Cancel(u64),
    /// Its stream dropped after so many events.
    Abort(u64),
    /// Given too little time for a provider that stalls.
    Hurry,
    /// Asked for an answer of a shape that the first reply misses.
    Structured,
}

/// What goes wrong at the provider, on the first attempt of each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the driver's own list")]
pub enum Trouble {
    /// Nothing.
    Nothing,
    /// No order is taken; not billed.
    Overloaded,
    /// No order is taken, and a wait is asked for; not billed.
    RateLimited,
    /// The connection breaks before the reply; billed, because the order was taken.
    Transport,
    /// The stream fails before its first piece.
    BrokenAtOnce,
    /// The stream fails after some pieces.
    BrokenLater,
    /// The stream ends without its end.
    CutOff,
}

const TROUBLES: [(&str, Trouble); 7] = [
    ("nothing", Trouble::Nothing),
    ("overloaded", Trouble::Overloaded),
    ("rate_limited", Trouble::RateLimited),
    ("transport", Trouble::Transport),
    ("broken_at_once", Trouble::BrokenAtOnce),
    ("broken_later", Trouble::BrokenLater),
    ("cut_off", Trouble::CutOff),
];

/// What the provider is to do in a run. It travels in the run's metadata, which no store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Script {
    /// How many tools to call first.
    pub tools: usize,
    /// What goes wrong.
    pub trouble: Trouble,
    /// Whether the reply says nothing about usage.
    pub silent: bool,
    /// Whether the reply never ends.
    pub stall: bool,
}

impl Script {
    /// The script in a run's metadata.
    #[must_use]
    pub fn read(metadata: &BTreeMap<String, String>) -> Self {
        let get = |key| metadata.get(key).map_or("", String::as_str);
        let trouble = TROUBLES.iter().find(|(name, _)| *name == get("trouble"));
        Self {
            tools: get("tools").parse().unwrap_or(0),
            trouble: trouble.map_or(Trouble::Nothing, |(_, trouble)| *trouble),
            silent: get("silent") == "yes",
            stall: get("stall") == "yes",
        }
    }

    /// The script as metadata.
    #[must_use]
    pub fn write(&self) -> Vec<(&'static str, String)> {
        let trouble = TROUBLES.iter().find(|(_, trouble)| *trouble == self.trouble);
        let mut out = vec![("tools", self.tools.to_string())];
        out.extend(trouble.map(|(name, _)| ("trouble", (*name).to_owned())));
        out.extend(self.silent.then(|| ("silent", "yes".to_owned())));
        out.extend(self.stall.then(|| ("stall", "yes".to_owned())));
        out
    }
}

/// What a tenant does in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// How the run is driven.
    pub act: Act,
    /// What the provider does.
    pub script: Script,
    /// A second run at the same time, in another session.
    pub beside: bool,
    /// Plants a fact afterwards.
    pub fact: bool,
    /// Plants a block afterwards.
    pub block: bool,
    /// Looks at everything of its own afterwards.
    pub probe: bool,
    /// Exports everything of its own afterwards.
    pub export: bool,
    /// Has everything erased at the end of the turn.
    pub forget: bool,
}

impl Plan {
    /// The plan of `tenant` for `turn`.
    #[must_use]
    pub fn of(seed: u64, tenant: usize, turn: usize) -> Self {
        let mut draw = Draw::at(seed, [tenant as u64, turn as u64]);
        let tools = if (tenant + turn) % 2 == 1 { 1 + usize::from(draw.once_in(4)) } else { 0 };
        let mut script = Script { tools, trouble: Trouble::Nothing, silent: draw.once_in(6), stall: false };
        let act = match draw.below(100) {
            0..=59 => Act::Answer,
            60..=74 => Act::Stream,
            75..=84 => Act::Cancel(1 + draw.below(20)),
            85..=92 => Act::Abort(1 + draw.below(12)),
            93..=94 => Act::Hurry,
            _ => Act::Structured,
        };
        if draw.once_in(8) {
            script.trouble = TROUBLES[1 + draw.below(6) as usize].1;
        }
        if act == Act::Hurry {
            script.stall = true;
        }
        if act == Act::Structured {
            script.tools = 0;
        }
        Self {
            act,
            script,
            beside: draw.once_in(16),
            fact: draw.once_in(2),
            block: draw.once_in(4),
            probe: draw.once_in(3),
            export: draw.once_in(24),
            forget: draw.once_in(150),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_survives_its_travel() {
        for tenant in 0..500 {
            let script = Plan::of(3, tenant, tenant % 5).script;
            let metadata = script.write().into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            assert_eq!(Script::read(&metadata), script);
        }
    }

    #[test]
    fn a_smoke_run_does_everything_there_is() {
        let plans: Vec<_> = (0..200).flat_map(|t| (0..5).map(move |n| Plan::of(1, t, n))).collect();
        let some = |what: fn(&Plan) -> bool| plans.iter().any(what);
        assert!(
            some(|p| p.forget) && some(|p| p.export) && some(|p| p.beside) && some(|p| p.script.tools == 2)
        );
        assert!(some(|p| p.act == Act::Hurry) && some(|p| p.act == Act::Structured));
        for (_, trouble) in TROUBLES {
            assert!(plans.iter().any(|p| p.script.trouble == trouble), "{trouble:?}");
        }
        let with_tools = plans.iter().filter(|p| p.script.tools > 0).count();
        assert!((400..=500).contains(&with_tools), "{with_tools}");
    }
}
