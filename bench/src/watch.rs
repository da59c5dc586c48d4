//! The isolation probes: everything a tenant receives is looked at here, by the way it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::canary::Canaries;
use crate::report::{ChannelReport, Isolation};

macro_rules! channels {
    ($($(#[$doc:meta])* $name:ident => $text:literal, $keeps:literal, $sees:literal;)*) => {
        /// A way on which tenants receive data.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(clippy::exhaustive_enums, reason = "the driver's own list")]
        pub enum Channel { $($(#[$doc])* $name,)* }

        impl Channel {
            const ALL: &'static [(&'static str, bool, bool)] = &[$(($text, $keeps, $sees),)*];
        }
    };
}

channels! {
    /// A message of a prompt, as the provider received it.
    Prompt => "prompt", false, true;
    /// A text that was sent to be embedded.
    Embedding => "embedding", false, true;
    /// Arguments that a tool was called with.
    ToolCall => "tool_call", false, true;
    /// A run's result.
    Result => "result", false, true;
    /// An event of a stream.
    Event => "event", false, true;
    /// An error.
    Error => "error", false, false;
    /// An episode that was recalled.
    Recall => "recall", false, true;
    /// A message of a session's history.
    History => "history", false, true;
    /// A fact.
    Fact => "fact", false, true;
    /// A memory block.
    Block => "block", false, true;
    /// The memory's profile.
    Profile => "profile", false, true;
    /// An entry of the tenant's own audit log.
    Audit => "audit", true, true;
    /// An exported record.
    Export => "export", true, true;
}

/// After how many looks a channel that never showed an own canary counts as blind.
const BLIND_AFTER: u64 = 100;

/// Looks at what tenants receive.
#[derive(Debug)]
pub struct Watch {
    canaries: Arc<Canaries>,
    seen: Box<[Seen]>,
    withheld: AtomicU64,
    violations: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Seen {
    probes: AtomicU64,
    own: AtomicU64,
    foreign: AtomicU64,
}

impl Watch {
    /// A watch for these canaries.
    #[must_use]
    pub fn new(canaries: Arc<Canaries>) -> Self {
        Self {
            canaries,
            seen: Channel::ALL.iter().map(|_| Seen::default()).collect(),
            withheld: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Looks at one piece of data that `tenant` received.
    pub fn look(&self, tenant: usize, channel: Channel, bytes: &[u8]) {
        let found = self.canaries.search(tenant, bytes);
        let (seen, (_, keeps_erased, _)) = (&self.seen[channel as usize], Channel::ALL[channel as usize]);
        seen.probes.fetch_add(1, Ordering::Relaxed);
        seen.own.fetch_add(found.own, Ordering::Relaxed);
        seen.foreign.fetch_add(found.foreign, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let came_back = found.erased > 0 && !keeps_erased;
        if found.foreign > 0 || came_back {
            self.violations.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks at a record as JSON.
    pub fn look_at(&self, tenant: usize, channel: Channel, record: &impl serde::Serialize) {
        match serde_json::to_vec(record) {
            Ok(bytes) => self.look(tenant, channel, &bytes),
            // What cannot be looked at cannot be vouched for.
            Err(_) => _ = self.violations.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A read failed because the store had handed out somebody else's record.
    pub fn withheld(&self) {
        self.withheld.fetch_add(1, Ordering::Relaxed);
    }

    /// What was seen, and the channels that never showed what they must show.
    #[must_use]
    pub fn report(&self) -> (Isolation, Vec<String>) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let channels: Vec<ChannelReport> = Channel::ALL
            .iter()
            .zip(&self.seen)
            .map(|((name, ..), s)| ChannelReport::new(name, load(&s.probes), load(&s.own), load(&s.foreign)))
            .collect();
        let blind = |((_, _, sees), c): (&(&str, bool, bool), &ChannelReport)| {
            (*sees && c.probes >= BLIND_AFTER && c.own == 0)
                .then(|| format!("the probe {:?} is blind: {} looks and no own canary", c.channel, c.probes))
        };
        let blind = Channel::ALL.iter().zip(&channels).filter_map(blind).collect();
        let [planted, by_owner, by_others] = self.canaries.counts();
        let isolation = Isolation {
            probes: channels.iter().map(|c| c.probes).sum(),
            violations: load(&self.violations) + load(&self.withheld),
            canaries_planted: planted,
            canaries_seen_by_others: by_others,
            canaries_seen_by_owner: by_owner,
            bytes: load(&self.bytes),
            channels,
        };
        (isolation, blind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> (Arc<Canaries>, Watch) {
        let canaries = Arc::new(Canaries::mint(2, 2, 1));
        (canaries.clone(), Watch::new(canaries))
    }

    #[test]
    fn a_foreign_canary_and_an_erased_one_are_violations() {
        let (canaries, watch) = watch();
        let mine = canaries.plant(0, 0);
        watch.look(0, Channel::Recall, mine.as_bytes());
        assert_eq!(watch.report().0.violations, 0);
        watch.look_at(1, Channel::History, &[&mine]);
        assert_eq!(watch.report().0.violations, 1);
        canaries.erase(0);
        watch.look(0, Channel::Audit, mine.as_bytes());
        assert_eq!(watch.report().0.violations, 1);
        watch.look(0, Channel::Recall, mine.as_bytes());
        watch.withheld();
        let (isolation, _) = watch.report();
        assert_eq!((isolation.violations, isolation.canaries_seen_by_others), (3, 1));
    }

    #[test]
    fn a_channel_that_never_shows_an_own_canary_is_blind() {
        let (canaries, watch) = watch();
        for _ in 0..BLIND_AFTER {
            watch.look(0, Channel::Recall, b"nothing");
            watch.look(0, Channel::Error, b"nothing");
        }
        assert_eq!(watch.report().1.len(), 1);
        watch.look(0, Channel::Recall, canaries.plant(0, 0).as_bytes());
        assert!(watch.report().1.is_empty());
    }
}
