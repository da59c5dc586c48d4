//! In-process ledger.
