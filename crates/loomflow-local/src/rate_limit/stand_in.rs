//! What limits while the shared limiter is down, for who would rather go on than stop.

use async_trait::async_trait;
use loomflow_core::{
    Amounts, Epoch, Erase, Erased, Error, ErrorKind, ExportStream, RateLimiter, RateRules, Result, Scope,
    Taken, TenantData, resilience::Readiness,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use super::StandardRateLimiter;

/// Longer than any call takes that this process's share let through.
const LONGEST_CALL: Duration = Duration::from_secs(24 * 3_600);

/// A shared limiter, and this process's share of its limits for while it cannot be reached.
///
/// Without this, a limiter that is down refuses: nothing runs. With it, each of `instances` processes goes on at its share of
/// every rate and burst, counted from a fresh burst of that share. What was taken meanwhile is not told to the shared limiter
/// when it is back; for a day afterwards it is given nothing back, because nobody knows which call was let through by whom.
#[derive(Debug)]
pub struct StandInRateLimiter {
    shared: Arc<dyn RateLimiter>,
    own: StandardRateLimiter,
    /// When this process's share last let something through.
    stood_in: Mutex<Option<Instant>>,
}

impl StandInRateLimiter {
    /// Stands in for `shared`, in each of at most `instances` processes.
    #[must_use]
    pub fn new(shared: Arc<dyn RateLimiter>, instances: u32) -> Self {
        let own = StandardRateLimiter::with_rules(shared.rules().shared_by(instances));
        Self { shared, own, stood_in: Mutex::default() }
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
            Err(error) if is_down(&error) => {
                *self.stood_in.lock() = Some(Instant::now());
                self.own.take(scope, ask).await
            }
            answer => answer,
        }
    }

    async fn settle(&self, scope: &Scope, taken: &Amounts, used: &Amounts) -> Result<()> {
        let lately = self.stood_in.lock().is_some_and(|at| at.elapsed() < LONGEST_CALL);
        let owed = if lately { used.with_tokens(used.tokens.max(taken.tokens)) } else { *used };
        match self.shared.settle(scope, taken, &owed).await {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::sync::atomic::{AtomicBool, Ordering};

    use loomflow_core::{RateLimitConfig, danger::assume_scope, export_from};

    use super::*;

    /// A shared limiter that admits everything while it is up.
    #[derive(Debug)]
    struct Shared {
        rules: RateRules,
        down: AtomicBool,
        kind: ErrorKind,
    }

    #[async_trait]
    impl TenantData for Shared {
        fn store_name(&self) -> &str {
            "rate_limit:shared"
        }

        async fn export(&self, _scope: &Scope) -> Result<ExportStream> {
            Ok(export_from(Vec::new()))
        }

        async fn forget(&self, _scope: &Scope, _what: &Erase) -> Result<Erased> {
            Ok(Erased::new("rate_limit:shared"))
        }
    }

    #[async_trait]
    impl RateLimiter for Shared {
        async fn take(&self, _scope: &Scope, _ask: &Amounts) -> Result<Taken> {
            if self.down.load(Ordering::SeqCst) {
                return Err(Error::new(self.kind, "down"));
            }
            Ok(Taken::Admitted)
        }

        async fn settle(&self, _scope: &Scope, _taken: &Amounts, _used: &Amounts) -> Result<()> {
            if self.down.load(Ordering::SeqCst) { Err(Error::new(self.kind, "down")) } else { Ok(()) }
        }

        fn rules(&self) -> &RateRules {
            &self.rules
        }
    }

    #[tokio::test]
    async fn an_outage_is_ridden_out_at_a_share_and_a_defect_is_not() {
        use loomflow_core::{Identity, Namespace};
        let alice = assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO);
        for (kind, share) in
            [(ErrorKind::Unreachable, Some(3)), (ErrorKind::Timeout, Some(3)), (ErrorKind::Config, None)]
        {
            let rules = RateLimitConfig::new().per_user_rps(0.001).burst(10).rules().unwrap();
            let shared = Arc::new(Shared { rules, down: AtomicBool::new(false), kind });
            let limiter = StandInRateLimiter::new(shared.clone(), 3);
            assert_eq!(limiter.take(&alice, &Amounts::run()).await.unwrap(), Taken::Admitted);
            shared.down.store(true, Ordering::SeqCst);
            let mut admitted = 0;
            loop {
                match limiter.take(&alice, &Amounts::run()).await {
                    Ok(Taken::Admitted) => admitted += 1,
                    Ok(Taken::Limited(limited)) => {
                        assert_eq!((Some(admitted), limited.burst), (share, 3));
                        limiter.settle(&alice, &Amounts::run(), &Amounts::default()).await.unwrap();
                        assert_eq!(limiter.take(&alice, &Amounts::run()).await.unwrap(), Taken::Admitted);
                        break;
                    }
                    Err(error) => {
                        assert_eq!((error.kind(), share), (kind, None), "a defect is told");
                        break;
                    }
                }
            }
            shared.down.store(false, Ordering::SeqCst);
            assert_eq!(limiter.take(&alice, &Amounts::run()).await.unwrap(), Taken::Admitted);
        }
    }
}
