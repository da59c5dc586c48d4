//! Settling a reservation whose request never left.

use loomflow_core::{Held, Reservation, Result, Settled};

pub async fn settle(reservation: Reservation<Held>) -> Result<Settled> {
    reservation.sent().await?.settle(None).await
}

fn main() {}
