//! In-process schema.
