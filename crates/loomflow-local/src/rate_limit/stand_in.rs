//! What limits while the shared limiter is down, for who would rather go on than stop.

use async_trait::async_trait;
use loomflow_core::{
    Amounts, Epoch, Erase, Erased, Error, ErrorKind, ExportStream, RateLimiter, RateRules, Result, Scope,
    Taken, TenantData, resilience::Readiness,
};
use std::sync::Arc;

use super::StandardRateLimiter;

/// A shared limiter, and this process's share of its limits for while it cannot be reached.
///
/// Without this, a limiter that is down refuses: nothing runs. With it, each of `instances` processes goes on at its share of
/// every rate and burst, counted from a fresh burst of that share. What was taken meanwhile is not told to the shared limiter
/// when it is back.
#[derive(Debug)]
pub struct StandInRateLimiter {
    shared: Arc<dyn RateLimiter>,
    own: StandardRateLimiter,
}

impl StandInRateLimiter {
    /// Stands in for `shared`, in each of at most `instances` processes.
    #[must_use]
    pub fn new(shared: Arc<dyn RateLimiter>, instances: u32) -> Self {
        let own = StandardRateLimiter::with_rules(shared.rules().shared_by(instances));
        Self { shared, own }
    }
}

/// Whether nobody was there to ask. A wrong password or a defect is not that.
fn is_down(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unreachable | ErrorKind::Transport | ErrorKind::Timeout | ErrorKind::Overloaded
    )
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RateLimiter for StandInRateLimiter {
    async fn take(&self, scope: &Scope, ask: &Amounts) -> Result<Taken> {
        match self.shared.take(scope, ask).await {
            Err(error) if is_down(&error) => self.own.take(scope, ask).await,
            answer => answer,
        }
    }

    async fn settle(&self, scope: &Scope, taken: &Amounts, used: &Amounts) -> Result<()> {
        match self.shared.settle(scope, taken, used).await {
            Err(error) if is_down(&error) => self.own.settle(scope, taken, used).await,
            answer => answer,
        }
    }

    fn rules(&self) -> &RateRules {
        self.shared.rules()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl TenantData for StandInRateLimiter {
    fn store_name(&self) -> &str {
        self.shared.store_name()
    }

    async fn epoch(&self, scope: &Scope) -> Result<Epoch> {
        self.shared.epoch(scope).await
    }

    async fn ready(&self) -> Readiness {
        self.shared.ready().await
    }

    async fn export(&self, scope: &Scope) -> Result<ExportStream> {
        self.shared.export(scope).await
    }

    async fn forget(&self, scope: &Scope, what: &Erase) -> Result<Erased> {
        self.shared.forget(scope, what).await
    }
}
