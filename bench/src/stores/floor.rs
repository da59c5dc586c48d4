//! The floor: what the same disk or the same server does with the same rows, when nobody asks what they mean.

use loomflow_core::Result;

use super::Args;
use super::report::Floor;
use super::world::World;

/// The floor of the store, where it can be had.
pub(super) async fn measure(_args: &Args, _world: &World) -> Result<Option<Floor>> {
    Ok(None)
}
