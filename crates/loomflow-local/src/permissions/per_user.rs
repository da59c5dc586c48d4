//! One policy per user, replaceable while runs go on.

use std::any::TypeId;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use hashbrown::HashMap;
use loomflow_core::{Decision, Effect, Judged, Permissions, Result, RunContext, ToolCall, UserId};
use parking_lot::{Mutex, RwLock};

use crate::permissions::StandardPermissions;
use crate::permissions::standard::hash;

/// A policy for each user that has one of its own, and one for everybody else.
///
/// Users are compared bytewise; no key is a pattern. The anonymous bucket has the policy of
/// [`anonymous`](Self::anonymous), or else the default one: no user id can name it.
///
/// [`replace`](Self::replace) exchanges everything at once: a check sees the old policies or the new ones and waits for neither, and
/// [`version`](Permissions::version) changes, so that no approval given under the old ones is valid under the new.
///
/// The first version is a hash of the content, so that after a restart with the same policies an approval is still valid, and
/// with others it is not. A reload makes a version of the one before and the new content, so that it is one this process has not
/// had, even if it brings an old content back: what was approved before a reload is asked about again. Policies that are not [`StandardPermissions`] add whatever version they
/// report themselves.
pub struct PerUserPermissions {
    state: RwLock<Arc<State>>,
    /// One reload at a time; checks never take this.
    reloading: Mutex<()>,
}

/// What one policy is and what it adds to the version.
#[derive(Clone)]
struct Entry {
    policy: Arc<dyn Permissions>,
    share: u64,
}

#[derive(Clone)]
struct State {
    default: Entry,
    anonymous: Option<Entry>,
    users: HashMap<UserId, Entry>,
    /// The policies whose own version can change: all but the standard ones, which are values.
    live: Vec<Arc<dyn Permissions>>,
    /// What the versions of `live` are added to: the sum of all shares, or what a reload made of that.
    base: u64,
}

impl State {
    /// Enters a policy under a name of its own, so that two exchanged policies do not add up to the same.
    fn take<P: Permissions>(&mut self, part: &str, name: &str, policy: P) -> Entry {
        let is_value = TypeId::of::<P>() == TypeId::of::<StandardPermissions>();
        let content = if is_value { policy.version() } else { 0 };
        let policy: Arc<dyn Permissions> = Arc::new(policy);
        if !is_value {
            self.live.push(policy.clone());
        }
        let share = hash(&[part.as_bytes(), name.as_bytes(), &content.to_be_bytes(), &[u8::from(is_value)]]);
        self.base = self.base.wrapping_add(share);
        Entry { policy, share }
    }

    /// Leaves out a policy that another took the place of.
    fn leave(&mut self, entry: &Entry) {
        self.base = self.base.wrapping_sub(entry.share);
        self.live.retain(|live| !Arc::ptr_eq(live, &entry.policy));
    }

    fn version(&self) -> u64 {
        self.live.iter().fold(self.base, |sum, policy| sum.wrapping_add(policy.version()))
    }
}

impl PerUserPermissions {
    /// `default` for everybody.
    #[must_use]
    pub fn new(default: impl Permissions) -> Self {
        let nobody = Entry { policy: Arc::new(StandardPermissions::default()), share: 0 };
        let mut state =
            State { default: nobody, anonymous: None, users: HashMap::new(), live: Vec::new(), base: 0 };
        state.default = state.take("default", "", default);
        Self { state: RwLock::new(Arc::new(state)), reloading: Mutex::new(()) }
    }

    /// Gives `user` a policy of its own, in full: nothing of the default one applies to it. Takes the place of an earlier one.
    #[must_use]
    pub fn policy(mut self, user: UserId, policy: impl Permissions) -> Self {
        let state = Arc::make_mut(self.state.get_mut());
        let entry = state.take("user", user.as_str(), policy);
        if let Some(earlier) = state.users.insert(user, entry) {
            state.leave(&earlier);
        }
        self
    }

    /// Gives the anonymous bucket a policy of its own. Takes the place of an earlier one.
    #[must_use]
    pub fn anonymous(mut self, policy: impl Permissions) -> Self {
        let state = Arc::make_mut(self.state.get_mut());
        let entry = state.take("anonymous", "", policy);
        if let Some(earlier) = state.anonymous.replace(entry) {
            state.leave(&earlier);
        }
        self
    }

    /// Takes over all the policies of `other` at once, and changes the version.
    pub fn replace(&self, other: Self) {
        let mut next = other.state.into_inner();
        let _one_at_a_time = self.reloading.lock();
        let (before, content) = (self.version().to_be_bytes(), next.base.to_be_bytes());
        Arc::make_mut(&mut next).base = hash(&[b"reload", &before, &content]);
        let last = std::mem::replace(&mut *self.state.write(), next);
        // The old policies go here, after the exchange: ten thousand of them take a while.
        drop(last);
    }

    fn now(&self) -> Arc<State> {
        self.state.read().clone()
    }

    fn of(&self, user: Option<&UserId>) -> Arc<dyn Permissions> {
        let state = self.state.read();
        let own = match user {
            Some(user) => state.users.get(user),
            None => state.anonymous.as_ref(),
        };
        own.unwrap_or(&state.default).policy.clone()
    }
}

#[async_trait]
impl Permissions for PerUserPermissions {
    async fn check(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Decision> {
        self.judge(ctx, call, effect).await.map(|judged| judged.decision)
    }

    async fn judge(&self, ctx: &RunContext, call: &ToolCall, effect: Effect) -> Result<Judged> {
        // The user is the run's, never anything the call says.
        self.of(ctx.user_id()).judge(ctx, call, effect).await
    }

    fn version(&self) -> u64 {
        // Not under the lock: a policy's own code runs here.
        self.now().version()
    }
}

impl fmt::Debug for PerUserPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.now();
        f.debug_struct("PerUserPermissions")
            .field("default", &state.default.policy)
            .field("anonymous", &state.anonymous.as_ref().map(|entry| &entry.policy))
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

    #[test]
    fn the_first_version_is_the_content_in_whatever_order_it_was_given() {
        let standard = StandardPermissions::default;
        let bypass = StandardPermissions::bypass;
        let new = || PerUserPermissions::new(standard());
        let one = new().policy(user("a"), bypass()).policy(user("b"), standard()).anonymous(bypass());
        let two = new().anonymous(bypass()).policy(user("b"), standard()).policy(user("a"), bypass());
        let again = new().policy(user("b"), bypass()).policy(user("a"), standard()).anonymous(standard());
        let again = again.policy(user("b"), standard()).policy(user("a"), bypass()).anonymous(bypass());
        assert_eq!(one.version(), two.version());
        assert_eq!(one.version(), again.version(), "a policy that was overwritten leaves nothing behind");
        let live = new().policy(user("a"), Living(AtomicU64::new(7))).policy(user("a"), bypass());
        assert_eq!(live.version(), new().policy(user("a"), bypass()).version());
        let mut seen = std::collections::BTreeSet::new();
        for other in [
            new(),
            PerUserPermissions::new(bypass()),
            new().policy(user("a"), bypass()),
            new().policy(user("b"), bypass()),
            new().policy(user("a"), standard()),
            new().anonymous(standard()),
            new().policy(user("a"), bypass()).policy(user("b"), standard()),
            new().policy(user("a"), standard()).policy(user("b"), bypass()),
            one,
        ] {
            assert!(seen.insert(other.version()), "{other:?}");
        }
    }

    /// A counter would do within one process, and would give what the next process reloads the version of something else.
    #[test]
    fn a_reload_in_another_process_has_the_version_of_its_content() {
        let process = |reload: StandardPermissions| {
            let policy = PerUserPermissions::new(StandardPermissions::default());
            policy.replace(PerUserPermissions::new(reload));
            policy.version()
        };
        assert_eq!(process(StandardPermissions::bypass()), process(StandardPermissions::bypass()));
        assert_ne!(process(StandardPermissions::bypass()), process(StandardPermissions::accept_edits()));
    }

    #[test]
    fn an_old_content_that_comes_back_is_a_new_version() {
        let policy = PerUserPermissions::new(StandardPermissions::default());
        let first = policy.version();
        policy.replace(PerUserPermissions::new(StandardPermissions::bypass()));
        policy.replace(PerUserPermissions::new(StandardPermissions::default()));
        assert_ne!(policy.version(), first);
    }

    /// Whatever a policy does when it is asked for its version or dropped, checks do not wait for it.
    #[test]
    fn a_reload_runs_no_policys_code_under_the_lock_of_checks() {
        #[derive(Debug)]
        struct Looks(std::sync::Weak<PerUserPermissions>);
        impl Looks {
            fn look(&self) {
                let free = |all: Arc<PerUserPermissions>| all.state.try_read().is_some();
                assert!(self.0.upgrade().is_none_or(free), "a check would have to wait");
            }
        }
        impl Drop for Looks {
            fn drop(&mut self) {
                self.look();
            }
        }
        #[async_trait]
        impl Permissions for Looks {
            async fn check(&self, _: &RunContext, _: &ToolCall, _: Effect) -> Result<Decision> {
                Ok(Decision::Allow)
            }
            fn version(&self) -> u64 {
                self.look();
                1
            }
        }
        let all = Arc::new(PerUserPermissions::new(StandardPermissions::default()));
        for _ in 0..3 {
            all.replace(PerUserPermissions::new(Looks(Arc::downgrade(&all))));
        }
        all.replace(PerUserPermissions::new(StandardPermissions::default()));
        assert_eq!(Arc::weak_count(&all), 0, "the old ones are gone");
    }
}
