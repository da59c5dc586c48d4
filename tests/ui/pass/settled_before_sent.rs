//! Settling a reservation whose request never left.

use loomflow_core::{Held, Reservation, Result};

pub async fn settle(reservation: Reservation<Held>) -> Result<()> {
    let reservation = reservation.sent().await?;
    drop(reservation.settle(None));
    Ok(())
}

fn main() {}
