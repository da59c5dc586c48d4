//! What a ledger reports, against the oracle's lists.

use std::time::Duration;

use loomflow_core::{Caps, Entity, ErrorKind, NanoUsd, RunId, Usage, UsageReport};

use super::ops::USERS;
use super::oracle::{Oracle, State, Sums};
use super::world::World;

impl World {
    /// Compares what the ledger reports of the user that the step was about, or of everybody.
    pub(super) async fn compare(&mut self, everybody: bool) {
        self.tick();
        for user in 0..USERS.len() {
            if everybody || user == self.about {
                self.compare_user(user).await;
            }
        }
        // The first user of each namespace.
        for user in [0, 4] {
            if everybody || USERS[user].0 == USERS[self.about].0 {
                self.compare_namespace(user).await;
            }
        }
    }

    async fn compare_user(&self, user: usize) {
        let report = self.ledger.usage(&self.scope(user)).await.unwrap();
        let oracle = &self.oracle;
        self.compare_report(&report, Entity::User, user, &oracle.config.per_user);
        assert_eq!(report.open_holds, oracle.open().filter(|h| h.user == user).count() as u64, "{user}");
        if self.hot_users.is_none() {
            self.compare_estimates(user).await;
        }
    }

    async fn compare_namespace(&self, user: usize) {
        let report = self.ledger.namespace_usage(&self.scope(user)).await;
        let caps = &self.oracle.config.global;
        if caps.is_empty() {
            assert_eq!(report.unwrap_err().kind(), ErrorKind::Unsupported);
        } else {
            self.compare_report(&report.unwrap(), Entity::Global, user, caps);
        }
    }

    fn compare_report(&self, report: &UsageReport, entity: Entity, user: usize, caps: &Caps) {
        let none = RunId::from_u128(0);
        let (used, estimated, excess) = self.oracle.used(entity, user, none);
        let held = self.oracle.held(entity, user, none);
        let who = format!("{entity:?} {user}");
        assert_eq!(report.used, Usage::new(used[0], used[1]).with_cost(NanoUsd(used[2])), "{who}");
        assert_eq!(report.wall_clock, Duration::from_micros(used[3]), "{who}");
        assert_eq!(report.estimated_tokens, estimated, "{who}");
        assert_eq!(report.held_tokens, held[0] + held[1], "{who}");
        let limits = Oracle::limits(caps).into_iter().enumerate();
        let capped: Vec<(usize, u64)> = limits.filter_map(|(i, limit)| Some((i, limit?))).collect();
        assert_eq!(report.windows.len(), capped.len(), "{who}");
        let five = |sums: Sums, i: usize| Oracle::five(sums)[i];
        for (line, (i, limit)) in report.windows.iter().zip(capped) {
            assert_eq!(line.limit, limit, "{who}");
            assert_eq!((line.used, line.held), (five(used, i), five(held, i)), "{who} {line:?}");
            assert!(line.used + line.held <= line.limit + five(excess, i), "{who} is over a cap: {line:?}");
        }
    }

    async fn compare_estimates(&self, user: usize) {
        let scope = self.scope(user);
        let listed = self.ledger.estimates(&scope).await.unwrap();
        let mut listed: Vec<_> = listed
            .into_iter()
            .map(|owned| owned.open(&scope).unwrap())
            .map(|e| (e.hold, e.key, e.charged, e.expired))
            .collect();
        let mut expected: Vec<_> = Vec::new();
        for hold in self.oracle.holds.iter().filter(|hold| hold.user == user) {
            let State::Estimated { charge, expired } = hold.state else { continue };
            let sums = self.oracle.charges[charge].sums;
            if sums[..3] != [0; 3] {
                let charged = Usage::new(sums[0], sums[1]).with_cost(NanoUsd(sums[2]));
                expected.push((hold.id, hold.key, charged, expired));
            }
        }
        listed.sort_by_key(|e| e.0);
        expected.sort_by_key(|e| e.0);
        assert_eq!(listed, expected, "the estimates of {user}");
    }
}
