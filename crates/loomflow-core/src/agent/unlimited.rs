//! The ledger of an agent that was given no budget: it grants everything and counts nothing.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::HoldId;
use crate::ledger::{Charge, Granted, Hold, Ledger, Limits, Reserve, Settled, UsageReport};
use crate::scope::Scope;
use crate::tenant_data::{Erase, Erased, ExportStream, TenantData, export_from};

/// Grants everything and counts nothing.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::exhaustive_structs, reason = "a unit that is what its name says")]
pub struct UnlimitedLedger;

#[async_trait]
impl TenantData for UnlimitedLedger {
    fn store_name(&self) -> &str {
        "ledger:none"
    }

    async fn export(&self, _scope: &Scope) -> Result<ExportStream> {
        Ok(export_from(Vec::new()))
    }

    async fn forget(&self, _scope: &Scope, _what: &Erase) -> Result<Erased> {
        Ok(Erased::new(self.store_name()))
    }
}

#[async_trait]
impl Ledger for UnlimitedLedger {
    async fn reserve(&self, _scope: &Scope, hold: &Hold) -> Result<Reserve> {
        Ok(Reserve::Held(Granted::new(HoldId::from_u128(0), hold.output_tokens, hold.wall_clock)))
    }

    async fn sent(&self, _scope: &Scope, _hold: HoldId) -> Result<()> {
        Ok(())
    }

    async fn extend(&self, _scope: &Scope, _hold: HoldId, _lease: Duration) -> Result<()> {
        Ok(())
    }

    async fn close(&self, _scope: &Scope, _hold: HoldId, _charge: Charge) -> Result<Settled> {
        Ok(Settled::default())
    }

    async fn usage(&self, _scope: &Scope) -> Result<UsageReport> {
        Ok(UsageReport::default())
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }
}
