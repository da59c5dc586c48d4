//! One line of a policy: which calls, and what becomes of them.

use loomflow_core::{Effect, Error, Result, ToolCall};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::permissions::argument::{Argument, Holds};
use crate::permissions::glob::Globs;

/// What a rule says about the calls it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Says {
    Allow,
    Ask,
    Deny,
}

/// A rule: calls of which tools, with which effect and which arguments, are allowed, asked about or denied, and why.
///
/// As data: `{"decision": "deny", "tool": "refund", "effect": "external", "when": [{"at": "/cents", "above": 10000}], "because":
/// "large refunds are made by hand"}`. A rule without `tool` is about every tool, one without `effect` about every effect, and
/// one without `when` about all arguments; conditions of one rule must all hold.
///
/// An allow rule loosens what the mode alone would ask about, and nothing else: a deny or an ask rule and both lists stand,
/// however much more general they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub(crate) decision: Says,
    #[serde(default = "any")]
    tool: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    when: Vec<Argument>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    because: String,
}

fn any() -> String {
    "*".to_owned()
}

impl Rule {
    /// Calls of tools that match `tool` run without asking, where only the mode would ask.
    #[must_use]
    pub fn allow(tool: impl Into<String>) -> Self {
        Self::new(Says::Allow, tool.into())
    }

    /// Somebody must approve calls of tools that match `tool`, in every mode.
    #[must_use]
    pub fn ask(tool: impl Into<String>) -> Self {
        Self::new(Says::Ask, tool.into())
    }

    /// Calls of tools that match `tool` never run.
    #[must_use]
    pub fn deny(tool: impl Into<String>) -> Self {
        Self::new(Says::Deny, tool.into())
    }

    fn new(decision: Says, tool: String) -> Self {
        Self { decision, tool, effect: None, when: Vec::new(), because: String::new() }
    }

    /// Only calls of tools that do `effect`.
    #[must_use]
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effect = Some(effect);
        self
    }

    /// Only calls of whose arguments this holds, too.
    #[must_use]
    pub fn when(mut self, condition: Argument) -> Self {
        self.when.push(condition);
        self
    }

    /// Why. Approvers, the model and the audit log are told.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.because = why.into();
        self
    }

    /// Why, as it was said; empty when nobody did.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.because
    }
}

/// A rule that was checked and can be applied.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub(crate) rule: Rule,
    tools: Globs,
}

impl Compiled {
    pub(crate) fn new(rule: Rule) -> Result<Self> {
        rule.when.iter().try_for_each(Argument::check)?;
        let tools = Globs::new([&rule.tool])?;
        Ok(Self { rule, tools })
    }

    /// The rule as text, for the version of its policy.
    pub(crate) fn content(&self) -> String {
        serde_json::to_string(&self.rule).unwrap_or_else(|e| format!("{:?} {e}", self.rule))
    }

    /// Whether the rule is about this call.
    pub(crate) fn applies(&self, call: &ToolCall, effect: Effect, arguments: &mut Arguments) -> bool {
        if self.rule.effect.is_some_and(|own| own != effect) || !self.tools.matches(&call.name) {
            return false;
        }
        let conditions = &self.rule.when;
        let holds = conditions.iter().fold(Holds::Yes, |all, one| all.and(one.holds(arguments.of(call))));
        match self.rule.decision {
            Says::Allow => holds == Holds::Yes,
            Says::Ask | Says::Deny => holds != Holds::No,
        }
    }
}

/// A call's arguments, parsed when the first condition wants them.
#[derive(Debug, Default)]
pub(crate) struct Arguments(Option<std::result::Result<Value, Error>>);

impl Arguments {
    fn of(&mut self, call: &ToolCall) -> Option<&Value> {
        self.0.get_or_insert_with(|| call.parse_arguments()).as_ref().ok()
    }
}
