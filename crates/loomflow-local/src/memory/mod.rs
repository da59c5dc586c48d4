//! In-process memory.
