//! Keeping a copy of a scope beyond the run it was lent to.

use loomflow_core::{Owner, Scope};

pub struct Keeper<T>(pub T);

pub fn keep(scope: &Scope) -> Keeper<impl Sized + 'static> {
    Keeper::<Scope>(scope.clone())
}

pub fn whose(owner: &Owner) -> bool {
    owner.user_id().is_some()
}

fn main() {}
