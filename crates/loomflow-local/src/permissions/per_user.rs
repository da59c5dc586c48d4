//! One policy per user, replaceable while runs go on.

use std::any::TypeId;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use hashbrown::HashMap;
use loomflow_core::{Decision, Effect, Permissions, Result, RunContext, ToolCall, UserId};
use parking_lot::RwLock;

use crate::permissions::StandardPermissions;

/// A policy for each user that has one of its own, and one for everybody else.
///
/// Users are compared bytewise; no key is a pattern. The anonymous bucket has the policy of
/// [`anonymous`](Self::anonymous), or else the default one: no user id can name it.
///
/// [`replace`](Self::replace) exchanges everything at once: a check sees the old policies or the new ones, and
/// [`version`](Permissions::version) changes, so that no approval given under the old ones is valid under the new.
pub struct PerUserPermissions(RwLock<Arc<State>>);

#[derive(Clone)]
struct State {
    default: Arc<dyn Permissions>,
    anonymous: Option<Arc<dyn Permissions>>,
    users: HashMap<UserId, Arc<dyn Permissions>>,
    /// The policies whose own version can change: all but the standard ones, which are values.
    live: Vec<Arc<dyn Permissions>>,
    /// What the versions of `live` are added to.
    base: u64,
}

impl State {
    fn take<P: Permissions>(&mut self, policy: P) -> Arc<dyn Permissions> {
        let policy: Arc<dyn Permissions> = Arc::new(policy);
        if TypeId::of::<P>() != TypeId::of::<StandardPermissions>() {
            self.live.push(policy.clone());
        }
        policy
    }

    fn live_versions(&self) -> u64 {
        self.live.iter().fold(0, |sum, policy| sum.wrapping_add(policy.version()))
    }
}

impl PerUserPermissions {
    /// `default` for everybody.
    #[must_use]
    pub fn new(default: impl Permissions) -> Self {
        let nobody: Arc<dyn Permissions> = Arc::new(StandardPermissions::default());
        let mut state =
            State { default: nobody, anonymous: None, users: HashMap::new(), live: Vec::new(), base: 0 };
        state.default = state.take(default);
        Self(RwLock::new(Arc::new(state)))
    }

    /// Gives `user` a policy of its own, in full: nothing of the default one applies to it.
    #[must_use]
    pub fn policy(mut self, user: UserId, policy: impl Permissions) -> Self {
        let state = Arc::make_mut(self.0.get_mut());
        let policy = state.take(policy);
        state.users.insert(user, policy);
        self
    }

    /// Gives the anonymous bucket a policy of its own.
    #[must_use]
    pub fn anonymous(mut self, policy: impl Permissions) -> Self {
        let state = Arc::make_mut(self.0.get_mut());
        let policy = state.take(policy);
        state.anonymous = Some(policy);
        self
    }

    /// Takes over all the policies of `other` at once, and changes the version.
    pub fn replace(&self, other: Self) {
        let mut state = other.0.into_inner();
        let mut current = self.0.write();
        let next = current.base.wrapping_add(current.live_versions()).wrapping_add(1);
        let base = next.wrapping_sub(state.live_versions());
        Arc::make_mut(&mut state).base = base;
        *current = state;
    }

    fn of(&self, user: Option<&UserId>) -> Arc<dyn Permissions> {
        let state = self.0.read();
        let own = match user {
            Some(user) => state.users.get(user),
            None => state.anonymous.as_ref(),
        };
        own.unwrap_or(&state.default).clone()
    }
}

#[async_trait]
impl Permissions for PerUserPermissions {
    async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision> {
        // The user is the run's, never anything the call says.
        self.of(ctx.user_id()).check(ctx, call, effect).await
    }

    fn version(&self) -> u64 {
        let state = self.0.read();
        state.base.wrapping_add(state.live_versions())
    }
}

impl fmt::Debug for PerUserPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.read();
        f.debug_struct("PerUserPermissions")
            .field("default", &state.default)
            .field("anonymous", &state.anonymous)
            .field("users", &state.users.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use loomflow_core::danger::{assume_scope, detached_context};
    use loomflow_core::{Epoch, Identity, Namespace};

    use super::*;

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    fn context(id: Option<&str>) -> RunContext {
        let identity = id.map_or(Identity::Anonymous, |id| Identity::User(user(id)));
        detached_context(assume_scope(Namespace::default(), identity, Epoch::ZERO))
    }

    async fn ask(policy: &PerUserPermissions, id: Option<&str>) -> &'static str {
        let call = ToolCall::new("c", "pay", r#"{"user_id":"staff"}"#);
        policy.check(&context(id), &call, Effect::External).await.unwrap().as_str()
    }

    #[tokio::test]
    async fn each_user_has_its_own_policy_and_no_name_is_a_pattern() {
        let policy = PerUserPermissions::new(StandardPermissions::default())
            .policy(user("staff"), StandardPermissions::bypass())
            .policy(user("*"), StandardPermissions::bypass())
            .policy(user("user_1"), StandardPermissions::bypass().denied_tools(["pay"]).unwrap())
            .anonymous(StandardPermissions::bypass().allowed_tools(["look"]).unwrap());
        for (id, expected) in [
            (Some("staff"), "allow"),
            (Some("Staff"), "ask"),
            (Some("ｓtaff"), "ask"),
            (Some("user_1"), "deny"),
            (Some("user_10"), "ask"),
            (Some("*"), "allow"),
            (Some("anonymous"), "ask"),
            (None, "deny"),
        ] {
            assert_eq!(ask(&policy, id).await, expected, "{id:?}");
        }
        assert_eq!(ask(&PerUserPermissions::new(StandardPermissions::bypass()), None).await, "allow");
    }

    #[derive(Debug)]
    struct Living(AtomicU64);
    #[async_trait]
    impl Permissions for Living {
        async fn check(&self, _: &RunContext, _: &ToolCall, _: Effect) -> Result<Decision> {
            Ok(Decision::deny("no"))
        }
        fn version(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_reload_takes_effect_and_never_repeats_a_version() {
        let policy = PerUserPermissions::new(StandardPermissions::default());
        let mut seen = vec![policy.version()];
        assert_eq!(policy.version(), seen[0], "nothing changed");
        for round in 0..20 {
            let next = PerUserPermissions::new(StandardPermissions::default());
            policy.replace(if round % 2 == 0 {
                next.policy(user("alice"), Living(AtomicU64::new(round * 100)))
            } else {
                next.policy(user("alice"), StandardPermissions::bypass())
            });
            assert_eq!(ask(&policy, Some("alice")).await, if round % 2 == 0 { "deny" } else { "allow" });
            let version = policy.version();
            assert!(!seen.contains(&version), "{version} was seen before");
            seen.push(version);
        }
    }
}
