//! In-process approvals.
