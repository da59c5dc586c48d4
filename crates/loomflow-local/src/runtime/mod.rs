//! In-process runtime.
