//! Settling one reservation twice.

use loomflow_core::{Reservation, Sent};

pub fn settle(reservation: Reservation<Sent>, _other: Reservation<Sent>) {
    drop(reservation.settle(None));
    drop(reservation.settle(None));
}

fn main() {}
