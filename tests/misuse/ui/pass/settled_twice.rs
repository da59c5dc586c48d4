//! Settling one reservation twice.

use loomflow_core::{Reservation, Result, Sent, Settled};

pub async fn settle(reservation: Reservation<Sent>, _other: Reservation<Sent>) -> Result<[Settled; 2]> {
    let first = reservation.settle(None).await?;
    let second = _other.settle(None).await?;
    Ok([first, second])
}

fn main() {}
