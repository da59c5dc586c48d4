//! In-process audit.
