//! A piece of a list of requests: where it goes on, and how far.

use crate::approval::ApprovalRequest;
use crate::clock::Timestamp;
use crate::ids::ApprovalId;

/// The most requests that one page has.
pub const MAX_APPROVAL_PAGE: usize = 1_000;

/// Which part of a list of requests: at most so many, oldest first, after a place that an earlier page ended at.
///
/// The order is by when they were asked, and of those at one instant by id; it does not change while somebody pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApprovalPage {
    after: Option<(Timestamp, ApprovalId)>,
    limit: usize,
}

impl ApprovalPage {
    /// The oldest `limit` requests, at least 1 and at most [`MAX_APPROVAL_PAGE`].
    #[must_use]
    pub fn first(limit: usize) -> Self {
        Self { after: None, limit: limit.clamp(1, MAX_APPROVAL_PAGE) }
    }

    /// Only requests after this one, the last of the page before. It may have been decided meanwhile.
    #[must_use]
    pub fn after(mut self, last: &ApprovalRequest) -> Self {
        self.after = Some((last.requested_at, last.id));
        self
    }

    /// The place after which the page begins, as a list is ordered; `None` for the first.
    #[must_use]
    pub fn place(&self) -> Option<(Timestamp, ApprovalId)> {
        self.after
    }

    /// The most requests on it.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }
}

/// The oldest 100.
impl Default for ApprovalPage {
    fn default() -> Self {
        Self::first(100)
    }
}
