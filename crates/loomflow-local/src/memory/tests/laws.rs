//! One test a law.
