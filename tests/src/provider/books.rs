//! What the provider says each customer owes: its own arithmetic, in pico-dollars.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// What one call costs, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bill {
    /// Prompt words.
    pub input: u64,
    /// Of these, read from the cache.
    pub cached: u64,
    /// Generated words that were handed over.
    pub output: u64,
}

/// Pico-dollars per word: full, cached, generated.
pub const RATES: [u64; 3] = [2_500_001, 250_001, 10_000_003];

/// What a customer owes so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Calls that were billed.
    pub calls: u64,
    /// Prompt words.
    pub input: u64,
    /// Generated words.
    pub output: u64,
    /// Nano-dollars, each call rounded up.
    pub nano: u64,
}

/// All accounts, by the customer's key.
#[derive(Debug, Default)]
pub struct Books(Mutex<BTreeMap<String, Account>>);

impl Books {
    /// Opens the account of a customer, whose orders may all be refused.
    pub(super) fn welcome(&self, customer: &str) {
        self.0.lock().entry(customer.to_owned()).or_default();
    }

    pub(super) fn bill(&self, customer: &str, bill: &Bill) {
        let [full, cached, generated] = RATES;
        let pico = (bill.input - bill.cached) * full + bill.cached * cached + bill.output * generated;
        let mut accounts = self.0.lock();
        let account = accounts.entry(customer.to_owned()).or_default();
        account.calls += 1;
        account.input += bill.input;
        account.output += bill.output;
        account.nano += pico / 1_000 + u64::from(!pico.is_multiple_of(1_000));
    }

    /// A customer's account.
    pub fn account(&self, customer: &str) -> Account {
        self.0.lock().get(customer).copied().unwrap_or_default()
    }

    /// How many customers there are.
    pub fn customers(&self) -> usize {
        self.0.lock().len()
    }
}
