//! What the provider says each tenant owes.

use std::sync::atomic::{AtomicU64, Ordering};

/// One account per tenant, by the tenant's place in the population.
#[derive(Debug)]
pub struct Invoice {
    rows: Box<[Row]>,
    embeddings: AtomicU64,
}

#[derive(Debug, Default)]
struct Row {
    input: AtomicU64,
    output: AtomicU64,
}

/// What one tenant owes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// Tokens the provider received.
    pub input: u64,
    /// Tokens it generated and handed over.
    pub output: u64,
}

impl Account {
    /// All tokens.
    #[must_use]
    pub fn total(self) -> u64 {
        self.input + self.output
    }
}

impl Invoice {
    /// Empty accounts of `tenants`.
    #[must_use]
    pub fn new(tenants: usize) -> Self {
        Self { rows: (0..tenants).map(|_| Row::default()).collect(), embeddings: AtomicU64::new(0) }
    }

    /// Bills received tokens.
    pub fn received(&self, tenant: usize, tokens: u64) {
        self.rows[tenant].input.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Notes that an order for vectors arrived.
    pub fn embedding_arrived(&self) {
        self.embeddings.fetch_add(1, Ordering::Relaxed);
    }

    /// How many orders for vectors arrived.
    #[must_use]
    pub fn embeddings(&self) -> u64 {
        self.embeddings.load(Ordering::Relaxed)
    }

    /// Takes received tokens off the bill again: the order was refused.
    pub fn refused(&self, tenant: usize, tokens: u64) {
        self.rows[tenant].input.fetch_sub(tokens, Ordering::Relaxed);
    }

    /// Bills generated tokens.
    pub fn generated(&self, tenant: usize, tokens: u64) {
        self.rows[tenant].output.fetch_add(tokens, Ordering::Relaxed);
    }

    /// The tenant's bill.
    #[must_use]
    pub fn account(&self, tenant: usize) -> Account {
        let row = &self.rows[tenant];
        Account { input: row.input.load(Ordering::Relaxed), output: row.output.load(Ordering::Relaxed) }
    }

    /// Everybody's bill together.
    #[must_use]
    pub fn total(&self) -> u64 {
        (0..self.rows.len()).map(|tenant| self.account(tenant).total()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_kept_apart_and_a_refused_order_is_taken_off() {
        let invoice = Invoice::new(2);
        invoice.received(0, 10);
        invoice.received(1, 7);
        invoice.generated(0, 3);
        invoice.refused(1, 7);
        assert_eq!(invoice.account(0), Account { input: 10, output: 3 });
        assert_eq!(invoice.account(1), Account::default());
        assert_eq!(invoice.total(), 13);
    }
}
