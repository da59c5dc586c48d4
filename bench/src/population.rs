//! Tenants with names that are easy to mix up: prefixes of each other, case pairs, composed and decomposed letters,
//! look-alikes, separators, names of 256 bytes, and the anonymous bucket.

use hashbrown::{HashMap, HashSet};
use loomflow_core::{Agent, UserAgent, UserId};

/// Everybody of one load, by place.
#[derive(Debug)]
pub struct Population {
    tenants: Vec<Tenant>,
    by_name: HashMap<UserId, usize>,
    anonymous: Option<usize>,
}

/// One tenant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tenant {
    /// The name; `None` for the anonymous bucket.
    pub user: Option<UserId>,
    /// The tenant's conversation. Many tenants call theirs the same.
    pub session: String,
    /// Says a lot at a time, and runs into the budget.
    pub chatty: bool,
}

const CHATTY: usize = 12;

impl Population {
    /// `n` tenants, the last of them the anonymous bucket when there are two or more.
    #[must_use]
    pub fn new(n: usize) -> Self {
        let named = if n >= 2 { n - 1 } else { n };
        let mut tenants: Vec<Tenant> = names(named).into_iter().map(Some).map(tenant).collect();
        if n >= 2 {
            tenants.push(tenant(None));
        }
        for (place, tenant) in tenants.iter_mut().enumerate() {
            tenant.chatty = place % CHATTY == 5;
            let name = tenant.user.as_ref().map_or("", UserId::as_str);
            // The same session name in many partitions, and one that looks like somebody else's.
            tenant.session =
                if place % 2 == 0 || name.len() > 200 { "main".into() } else { format!("{name}-s") };
        }
        let by_name = tenants.iter().enumerate().filter_map(|(at, t)| Some((t.user.clone()?, at))).collect();
        Self { anonymous: (n >= 2).then_some(n - 1), tenants, by_name }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tenants.len()
    }

    /// Whether there is nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    /// The tenant at `place`.
    #[must_use]
    pub fn tenant(&self, place: usize) -> &Tenant {
        &self.tenants[place]
    }

    /// Whose name that is; `None` for a stranger.
    #[must_use]
    pub fn place(&self, user: Option<&UserId>) -> Option<usize> {
        match user {
            None => self.anonymous,
            Some(user) => self.by_name.get(user).copied(),
        }
    }

    /// The agent as the tenant at `place` sees it.
    #[must_use]
    pub fn enter(&self, agent: &Agent, place: usize) -> UserAgent {
        match &self.tenants[place].user {
            Some(user) => agent.for_user(user.clone()),
            None => agent.anonymous(),
        }
    }
}

fn tenant(user: Option<UserId>) -> Tenant {
    Tenant { user, session: String::new(), chatty: false }
}

fn names(n: usize) -> Vec<UserId> {
    let mut seen = HashSet::new();
    let mut all = Vec::with_capacity(n);
    for group in 0.. {
        for name in look_alikes(group) {
            if all.len() == n {
                return all;
            }
            if let Ok(user) = UserId::new(&name)
                && seen.insert(name)
            {
                all.push(user);
            }
        }
    }
    all
}

/// Names that differ by as little as names can.
fn look_alikes(group: usize) -> Vec<String> {
    let user = format!("user_{group}");
    let long = |last: char, length: usize| {
        let mut name = format!("{user}-{}", "x".repeat(length));
        name.truncate(length - 1);
        name.push(last);
        name
    };
    vec![
        user.clone(),
        format!("{user}0"),
        user.to_uppercase(),
        format!("User_{group}"),
        format!("us\u{435}r_{group}"),
        format!("caf\u{e9}_{group}"),
        format!("cafe\u{301}_{group}"),
        format!("user\u{ff3f}{group}"),
        format!("{user}:main"),
        format!("{user}/main"),
        format!("{user}|a"),
        format!("{user} a"),
        format!("{user}*"),
        format!("{user}%"),
        format!("{user}\\"),
        format!("'{user}'--"),
        format!("{{{user}}}"),
        format!("{user}-s"),
        long('y', 256),
        long('z', 256),
        long('z', 255),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_somebody_else_and_can_be_found_again() {
        let people = Population::new(1_000);
        assert_eq!(people.len(), 1_000);
        for place in 0..people.len() {
            assert_eq!(people.place(people.tenant(place).user.as_ref()), Some(place));
        }
        assert!(people.tenant(999).user.is_none());
        assert_eq!(people.place(Some(&UserId::new("stranger").unwrap())), None);
        assert!(look_alikes(3).iter().all(|name| UserId::new(name).is_ok()));
        assert!(Population::new(1).place(None).is_none());
    }
}
