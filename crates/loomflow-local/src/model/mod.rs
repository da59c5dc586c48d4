//! In-process model.
