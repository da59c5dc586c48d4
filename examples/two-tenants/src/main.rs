//! two tenants
fn main() {}
