//! The contracts' arithmetic, as pure functions: what every memory and every ledger would otherwise write again, and get
//! wrong in a way of its own.
//!
//! A backend brings rows in and takes decisions out; nothing here does I/O, and nothing here knows a tenant.

pub mod approvals;
mod checks;
mod export;
pub mod facts;
pub mod gcra;
pub mod quota;
pub mod rank;
pub mod words;

pub use checks::{Space, check_block_name, check_embedding};
pub use export::{export_block, export_episode, export_fact};

use crate::clock::Timestamp;
use crate::identity::SessionId;
use crate::memory::HistoryLimit;
use crate::tenant_data::Erase;

/// How many samples a [`MemoryProfile`](crate::MemoryProfile) shows of each kind.
pub const PROFILE_SAMPLES: usize = 10;

/// How many of a session's latest episodes fit into `limit`: the longest run of them, newest first, whose messages
/// together are no more. `messages` yields how many each episode has, the newest episode first.
pub fn latest_that_fit(messages: impl IntoIterator<Item = usize>, limit: HistoryLimit) -> usize {
    let mut room = limit.messages;
    let fits = |needed: &usize| {
        let fits = *needed <= room;
        room = room.saturating_sub(*needed);
        fits
    };
    messages.into_iter().take_while(fits).count()
}

/// Whether an erasure takes the episode of `session` that was said at `at`.
#[must_use]
pub fn erases(what: &Erase, session: &SessionId, at: Timestamp) -> bool {
    what.session.as_ref().is_none_or(|wanted| wanted == session)
        && what.before.is_none_or(|moment| at < moment)
}

/// The moment before which an erasure also takes blocks, and facts without a source that is held. `None` when it takes
/// neither by time: blocks and facts belong to no session.
#[must_use]
pub fn erases_unsourced_before(what: &Erase) -> Option<Timestamp> {
    if what.session.is_none() { what.before } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_episodes_fit_whole_or_not_at_all() {
        let fit = |limit| latest_that_fit([2, 4, 1], HistoryLimit::messages(limit));
        assert_eq!([0, 1, 2, 5, 6, 7].map(fit), [0, 0, 1, 1, 2, 3]);
    }

    #[test]
    fn an_erasure_takes_what_is_of_the_session_and_older() {
        let session = |name| SessionId::new(name).unwrap();
        let at = Timestamp::from_micros;
        let what = Erase::session(session("s")).with_before(at(5));
        assert!(erases(&what, &session("s"), at(4)));
        assert!(!erases(&what, &session("s"), at(5)) && !erases(&what, &session("t"), at(4)));
        assert_eq!(erases_unsourced_before(&what), None);
        assert_eq!(erases_unsourced_before(&Erase::before(at(5))), Some(at(5)));
        assert!(erases(&Erase::everything(), &session("t"), at(9)));
    }
}
