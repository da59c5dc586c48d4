//! In-process secrets.
