//! The standard policy: a mode, an allow list, a deny list and rules.

use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{Decision, Digest, Effect, Grounds, Judged, Permissions, Result, RunContext, ToolCall};

use crate::permissions::glob::Globs;
use crate::permissions::rule::{Arguments, Compiled, Rule};

/// What runs without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PermissionMode {
    /// What only reads runs; everything else asks.
    #[default]
    Default,
    /// What reads and what can be changed back runs; destructive and external calls ask.
    AcceptEdits,
    /// Everything runs that is not denied.
    Bypass,
}

impl PermissionMode {
    /// The mode's name in a configuration file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::AcceptEdits => "accept_edits",
            Self::Bypass => "bypass",
        }
    }

    /// The mode of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Default, Self::AcceptEdits, Self::Bypass].into_iter().find(|mode| mode.as_str() == name)
    }

    fn runs(self, effect: Effect) -> bool {
        match self {
            Self::Default => effect == Effect::Read,
            Self::AcceptEdits => matches!(effect, Effect::Read | Effect::Write),
            Self::Bypass => true,
        }
    }
}

/// A policy that is the same for everybody it applies to.
///
/// The strictest of these wins, deny before ask before allow, and no more special line beats a more general one:
///
/// - denied: a tool on the deny list, a tool that is not on the allow list (everything, by default), and what a deny
///   [`Rule`] is about;
/// - asked about: what an ask rule is about, in every mode;
/// - run: what the [`PermissionMode`] runs, and what an allow rule is about;
/// - asked about: the rest.
///
/// Both lists hold names, or patterns with `*` for any run of characters (`billing.*`); names are compared bytewise.
///
/// ```
/// use loomflow_core::Effect;
/// use loomflow_local::{Argument, Rule, StandardPermissions};
///
/// # fn main() -> loomflow_core::Result<()> {
/// let policy = StandardPermissions::accept_edits()
///     .denied_tools(["shell"])?
///     .rule(Rule::allow("mail.*").when(Argument::at("/to").matches("*@example.com")))?
///     .rule(Rule::deny("refund").when(Argument::at("/cents").above(10_000)).because("large refunds are made by hand"))?;
/// # Ok(()) }
/// ```
///
/// Its [`version`](Permissions::version) is a hash of all of this, reasons included: the same content has the same version in every
/// process, so an approval that outlives a restart is valid under the same policy and not under another.
#[derive(Clone, Debug)]
pub struct StandardPermissions {
    mode: PermissionMode,
    allowed: Option<Globs>,
    denied: Globs,
    rules: Vec<Compiled>,
    why: Arc<str>,
    version: u64,
}

impl StandardPermissions {
    /// The policy of `mode`, with nothing denied.
    #[must_use]
    pub fn new(mode: PermissionMode) -> Self {
        let (denied, rules) = (Globs::default(), Vec::new());
        Self { mode, allowed: None, denied, rules, why: "".into(), version: 0 }.versioned()
    }

    /// Reads and changes that can be undone run; the rest asks.
    #[must_use]
    pub fn accept_edits() -> Self {
        Self::new(PermissionMode::AcceptEdits)
    }

    /// Everything runs that is not denied and that no rule asks about. Say why with [`with_reason`](Self::with_reason): every call
    /// that runs only because of this is recorded with it.
    #[must_use]
    pub fn bypass() -> Self {
        Self::new(PermissionMode::Bypass)
    }

    /// Why this policy is what it is. Approvers, the model and the audit log are told with each ask and deny.
    #[must_use]
    pub fn with_reason(mut self, why: impl Into<Arc<str>>) -> Self {
        self.why = why.into();
        self.versioned()
    }

    /// Only tools that match one of `patterns` may run at all. Replaces an earlier list.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput), naming the pattern that is none.
    pub fn allowed_tools<S: AsRef<str>>(mut self, patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        self.allowed = Some(Globs::new(patterns)?);
        Ok(self.versioned())
    }

    /// Tools that match one of `patterns` never run, whatever else is said. Replaces an earlier list.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput), naming the pattern that is none.
    pub fn denied_tools<S: AsRef<str>>(mut self, patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        self.denied = Globs::new(patterns)?;
        Ok(self.versioned())
    }

    /// Adds a rule. Rules have no order: the strictest that is about a call wins, and of equally strict ones the first is the
    /// reason told.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput), naming the pattern or condition that cannot be used.
    pub fn rule(mut self, rule: Rule) -> Result<Self> {
        self.rules.push(Compiled::new(rule)?);
        Ok(self.versioned())
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> PermissionMode {
        self.mode
    }

    /// Why this policy is what it is; empty when nobody said.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.why
    }

    /// What this policy says about a call of a tool that does `effect`, and what an allow rests on.
    #[must_use]
    pub fn decide(&self, call: &ToolCall, effect: Effect) -> Judged {
        let tool = &call.name;
        if self.denied.matches(tool) {
            return self.deny(format!("{tool} is denied by policy"));
        }
        if self.allowed.as_ref().is_some_and(|allowed| !allowed.matches(tool)) {
            return self.deny(format!("{tool} is not among the allowed tools"));
        }
        let mut arguments = Arguments::default();
        let mut first = [None; 3];
        for line in &self.rules {
            let slot = &mut first[line.rule.decision as usize];
            if slot.is_none() && line.applies(call, effect, &mut arguments) {
                *slot = Some(line.rule.reason());
            }
        }
        let [allow, ask, deny] = first;
        if let Some(why) = deny {
            return self.deny(told(format!("{tool} is denied by a rule"), why));
        }
        if let Some(why) = ask {
            return self.ask(told(format!("a rule asks about {tool}"), why));
        }
        if PermissionMode::Default.runs(effect) {
            return Decision::Allow.into();
        }
        if let Some(why) = allow {
            return Judged::allowed_by(Grounds::new("rule", why));
        }
        match self.mode {
            PermissionMode::Bypass => {
                let why = if self.why.is_empty() { "no reason was given".into() } else { self.why.clone() };
                Judged::allowed_by(Grounds::new(PermissionMode::Bypass.as_str(), why))
            }
            mode if mode.runs(effect) => Decision::Allow.into(),
            _ => self.ask(format!("{tool} is {}, which this user's policy asks about", effect.as_str())),
        }
    }

    fn deny(&self, what: String) -> Judged {
        Decision::deny(told(what, &self.why)).into()
    }

    fn ask(&self, what: String) -> Judged {
        Decision::ask(told(what, &self.why)).into()
    }

    /// Computed when the policy is made, so that asking for it costs nothing.
    fn versioned(mut self) -> Self {
        let mut parts =
            vec!["standard policy 1".to_owned(), self.mode.as_str().to_owned(), self.why.to_string()];
        let lists = [self.allowed.as_ref(), Some(&self.denied)];
        for list in lists {
            parts.push(list.map_or("any".to_owned(), |globs| globs.content().join(" ")));
            parts.push(list.is_some().to_string());
        }
        parts.extend(self.rules.iter().map(Compiled::content));
        let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
        self.version = hash(&parts);
        self
    }
}

/// 64 bits of the SHA-256 of `parts`.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let digest = Digest::of(parts);
    let (first, _) = digest.as_bytes().split_first_chunk().expect("a digest is longer than eight bytes");
    u64::from_be_bytes(*first)
}

fn told(what: String, why: &str) -> String {
    if why.is_empty() { what } else { format!("{what}: {why}") }
}

impl Default for StandardPermissions {
    /// What only reads runs; everything else asks.
    fn default() -> Self {
        Self::new(PermissionMode::Default)
    }
}

#[async_trait]
impl Permissions for StandardPermissions {
    async fn check(&self, _ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision> {
        Ok(self.decide(call, effect).decision)
    }

    async fn judge(&self, _ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Judged> {
        Ok(self.decide(call, effect))
    }

    fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::permissions::Argument;

    fn call(tool: &str, arguments: &str) -> ToolCall {
        ToolCall::new("c", tool, arguments)
    }

    /// Mode × effect × allow list × deny list, each against the sentence that defines it.
    #[test]
    fn the_whole_table() {
        use Effect::{Destructive, External, Read, Write};
        use PermissionMode::{AcceptEdits, Bypass, Default};
        let lists: [(&[&str], bool); 5] =
            [(&[], false), (&["*"], true), (&["pay"], true), (&["p*"], true), (&["other", "x.*"], false)];
        let runs = [
            (Default, Read),
            (AcceptEdits, Read),
            (AcceptEdits, Write),
            (Bypass, Read),
            (Bypass, Write),
            (Bypass, Destructive),
            (Bypass, External),
        ];
        for mode in [Default, AcceptEdits, Bypass] {
            for effect in [Read, Write, Destructive, External] {
                for allow in
                    [None, Some(lists[0]), Some(lists[1]), Some(lists[2]), Some(lists[3]), Some(lists[4])]
                {
                    for (deny, on_deny) in lists {
                        let mut policy = StandardPermissions::new(mode).denied_tools(deny).unwrap();
                        if let Some((allow, _)) = allow {
                            policy = policy.allowed_tools(allow).unwrap();
                        }
                        let on_allow = allow.is_none_or(|(_, on)| on);
                        let expected = match (on_deny, on_allow, runs.contains(&(mode, effect))) {
                            (true, _, _) | (_, false, _) => "deny",
                            (false, true, true) => "allow",
                            (false, true, false) => "ask",
                        };
                        let got = policy.decide(&call("pay", "{}"), effect).decision;
                        assert_eq!(got.as_str(), expected, "{mode:?} {effect:?} {allow:?} {deny:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn reasons_and_names_are_told() {
        let policy = StandardPermissions::bypass().with_reason("on call").denied_tools(["shell"]).unwrap();
        assert_eq!(
            policy.decide(&call("shell", "{}"), Effect::Read).decision,
            Decision::deny("shell is denied by policy: on call")
        );
        for mode in [PermissionMode::Default, PermissionMode::AcceptEdits, PermissionMode::Bypass] {
            assert_eq!(PermissionMode::from_name(mode.as_str()), Some(mode));
        }
        assert_eq!(PermissionMode::from_name("Bypass"), None);
    }

    /// Every set of rules over one call, each against the sentence that defines the merge.
    #[test]
    fn an_allow_rule_loosens_only_what_the_mode_asks_about() {
        use PermissionMode::{AcceptEdits, Bypass, Default};
        let all = [Rule::allow("pay"), Rule::ask("p*"), Rule::deny("*")];
        for mode in [Default, AcceptEdits, Bypass] {
            for effect in [Effect::Read, Effect::Write, Effect::External] {
                for set in 0..8_u8 {
                    for list in ["none", "denied", "not allowed"] {
                        let mut policy = StandardPermissions::new(mode);
                        let has = |n: usize| set & (1 << n) != 0;
                        for (n, rule) in all.iter().enumerate().filter(|(n, _)| has(*n)) {
                            policy = policy.rule(rule.clone().because(format!("rule {n}"))).unwrap();
                        }
                        policy = match list {
                            "denied" => policy.denied_tools(["pay"]).unwrap(),
                            "not allowed" => policy.allowed_tools(["look"]).unwrap(),
                            _ => policy,
                        };
                        let expected = if list != "none" || has(2) {
                            "deny"
                        } else if has(1) {
                            "ask"
                        } else if has(0) || mode.runs(effect) {
                            "allow"
                        } else {
                            "ask"
                        };
                        let judged = policy.decide(&call("pay", "{}"), effect);
                        assert_eq!(judged.decision.as_str(), expected, "{mode:?} {effect:?} {set} {list}");
                        let only_bypass =
                            expected == "allow" && mode == Bypass && effect != Effect::Read && !has(0);
                        let grounds = judged.grounds.map(|grounds| grounds.mode);
                        assert_eq!(
                            grounds == Some("bypass"),
                            only_bypass,
                            "{mode:?} {effect:?} {set} {list}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_judged_counts_against_the_call() {
        let large = || Argument::at("/cents").above(10_000);
        let deny = StandardPermissions::bypass().rule(Rule::deny("refund").when(large())).unwrap();
        let ask = StandardPermissions::bypass().rule(Rule::ask("refund").when(large())).unwrap();
        let small = Argument::at("/cents").below(10_001);
        let allow = StandardPermissions::default().rule(Rule::allow("refund").when(small)).unwrap();
        for (arguments, large) in [
            (r#"{"cents":10000}"#, false),
            (r#"{"cents":-1}"#, false),
            (r#"{"cents":10001}"#, true),
            (r#"{"cents":18446744073709551615}"#, true),
            (r#"{"cents":1e300}"#, true),
            (r#"{"cents":9999.5}"#, true),
            (r#"{"cents":1.0}"#, true),
            (r#"{"cents":"1"}"#, true),
            (r#"{"cents":null}"#, true),
            (r#"{"cents":[1]}"#, true),
            (r#"{"Cents":1}"#, true),
            (r#"{"cents":1,"cents":20000}"#, true),
            ("{}", true),
            ("", true),
            ("[1]", true),
            ("{not json", true),
        ] {
            let decide = |policy: &StandardPermissions| {
                policy.decide(&call("refund", arguments), Effect::External).decision.as_str()
            };
            assert_eq!(decide(&deny), if large { "deny" } else { "allow" }, "{arguments}");
            assert_eq!(decide(&ask), if large { "ask" } else { "allow" }, "{arguments}");
            assert_eq!(decide(&allow), if large { "ask" } else { "allow" }, "{arguments}");
        }
    }

    #[test]
    fn a_rule_is_data_and_says_what_is_wrong_with_it() {
        let rule = Rule::deny("refund")
            .effect(Effect::External)
            .when(Argument::at("/cents").above(10_000))
            .when(Argument::at("/to").one_of(["a", "b"]))
            .because("by hand");
        let data = json!({
            "decision": "deny", "tool": "refund", "effect": "external", "because": "by hand",
            "when": [{"at": "/cents", "above": 10_000}, {"at": "/to", "one_of": ["a", "b"]}],
        });
        assert_eq!(serde_json::to_value(&rule).unwrap(), data);
        assert_eq!(serde_json::from_value::<Rule>(data).unwrap(), rule);
        let short: Rule = serde_json::from_value(json!({"decision": "ask"})).unwrap();
        assert_eq!(short, Rule::ask("*"));
        for bad in [
            json!({"tool": "x"}),
            json!({"decision": "maybe"}),
            json!({"decision": "deny", "tools": ["x"]}),
            json!({"decision": "deny", "when": [{"at": "/x", "over": 1}]}),
            json!({"decision": "deny", "when": [{"at": "/x", "above": 1.5}]}),
        ] {
            assert!(serde_json::from_value::<Rule>(bad.clone()).is_err(), "{bad}");
        }
        for bad in [Rule::deny("a b"), Rule::deny("x").when(Argument::at("x").exists(true))] {
            assert!(StandardPermissions::default().rule(bad).is_err());
        }
    }

    #[test]
    fn the_version_is_the_content() {
        let rule = || Rule::deny("refund").when(Argument::at("/cents").above(10));
        let make = || StandardPermissions::default().denied_tools(["a", "b*"]).unwrap().rule(rule()).unwrap();
        let same =
            StandardPermissions::default().rule(rule()).unwrap().denied_tools(["b*", "a", "a"]).unwrap();
        assert_eq!(make().version(), same.version(), "however it was put together");
        let mut seen = std::collections::BTreeSet::new();
        for policy in [
            StandardPermissions::default(),
            StandardPermissions::accept_edits(),
            StandardPermissions::bypass(),
            StandardPermissions::bypass().with_reason("x"),
            StandardPermissions::default().allowed_tools(["a"]).unwrap(),
            StandardPermissions::default().allowed_tools(["any"]).unwrap(),
            StandardPermissions::default().allowed_tools::<&str>([]).unwrap(),
            StandardPermissions::default().denied_tools(["a"]).unwrap(),
            StandardPermissions::default().denied_tools(["a", "b"]).unwrap(),
            make(),
            make().rule(rule()).unwrap(),
            make().rule(rule().because("x")).unwrap(),
            StandardPermissions::default()
                .rule(Rule::deny("refund").when(Argument::at("/cents").above(11)))
                .unwrap(),
        ] {
            assert!(seen.insert(policy.version()), "{policy:?}");
        }
        // Written down: another build of this crate must agree, or approvals would not outlive an upgrade.
        assert_eq!(format!("{:016x}", StandardPermissions::default().version()), "f65de82f3c671298");
    }
}
