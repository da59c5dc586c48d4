//! Keeping a copy of a scope beyond the run it was lent to.

use loomflow_core::{Owner, Scope};

pub struct Keeper<T>(pub T);

pub fn keep(scope: &Scope) -> Keeper<impl Sized + 'static> {
    Keeper::<Owner>(scope.owner().clone())
}

pub fn whose(owner: &Owner) -> bool {
    owner.user_id().is_some()
}

fn main() {}
