//! In-process cache.
