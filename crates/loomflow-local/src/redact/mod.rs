//! In-process redact.
