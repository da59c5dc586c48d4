//! In-process permissions.
