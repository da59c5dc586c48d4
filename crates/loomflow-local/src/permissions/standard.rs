//! The standard policy: a mode, an allow list and a deny list.

use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{Decision, Effect, Permissions, Result, RunContext, ToolCall};

use crate::permissions::glob::Globs;

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
/// In this order: a tool on the deny list is denied, in every mode; a tool that is not on the allow list (everything, by
/// default) is denied; then the [`PermissionMode`] says whether it runs or asks.
///
/// Both lists hold names, or patterns with `*` for any run of characters (`billing.*`); names are compared bytewise.
#[derive(Clone, Debug)]
pub struct StandardPermissions {
    mode: PermissionMode,
    allowed: Option<Globs>,
    denied: Globs,
    why: Arc<str>,
}

impl StandardPermissions {
    /// The policy of `mode`, with nothing denied.
    #[must_use]
    pub fn new(mode: PermissionMode) -> Self {
        Self { mode, allowed: None, denied: Globs::default(), why: "".into() }
    }

    /// Reads and changes that can be undone run; the rest asks.
    #[must_use]
    pub fn accept_edits() -> Self {
        Self::new(PermissionMode::AcceptEdits)
    }

    /// Everything runs that is not denied. Say why with [`with_reason`](Self::with_reason).
    #[must_use]
    pub fn bypass() -> Self {
        Self::new(PermissionMode::Bypass)
    }

    /// Why this policy is what it is. Approvers, the model and the audit log are told with each ask and deny.
    #[must_use]
    pub fn with_reason(mut self, why: impl Into<Arc<str>>) -> Self {
        self.why = why.into();
        self
    }

    /// Only tools that match one of `patterns` may run at all. Replaces an earlier list.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput), naming the pattern that is none.
    pub fn allowed_tools<S: AsRef<str>>(mut self, patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        self.allowed = Some(Globs::new(patterns)?);
        Ok(self)
    }

    /// Tools that match one of `patterns` never run, whatever else is said. Replaces an earlier list.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput), naming the pattern that is none.
    pub fn denied_tools<S: AsRef<str>>(mut self, patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        self.denied = Globs::new(patterns)?;
        Ok(self)
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

    /// What this policy says about a call of `tool`, which does `effect`.
    #[must_use]
    pub fn decide(&self, tool: &str, effect: Effect) -> Decision {
        if self.denied.matches(tool) {
            return Decision::deny(self.because(format!("{tool} is denied by policy")));
        }
        if self.allowed.as_ref().is_some_and(|allowed| !allowed.matches(tool)) {
            return Decision::deny(self.because(format!("{tool} is not among the allowed tools")));
        }
        if self.mode.runs(effect) {
            return Decision::Allow;
        }
        Decision::ask(
            self.because(format!("{tool} is {}, which this user's policy asks about", effect.as_str())),
        )
    }

    fn because(&self, what: String) -> String {
        if self.why.is_empty() { what } else { format!("{what}: {}", self.why) }
    }
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
        Ok(self.decide(&call.name, effect))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                        let got = policy.decide("pay", effect);
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
            policy.decide("shell", Effect::Read),
            Decision::deny("shell is denied by policy: on call")
        );
        for mode in [PermissionMode::Default, PermissionMode::AcceptEdits, PermissionMode::Bypass] {
            assert_eq!(PermissionMode::from_name(mode.as_str()), Some(mode));
        }
        assert_eq!(PermissionMode::from_name("Bypass"), None);
    }
}
