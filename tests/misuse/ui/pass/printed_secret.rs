//! Printing a secret.

use loomflow_core::{Secret, SecretRef};

pub fn print(_secret: &Secret<String>, _name: &SecretRef) -> String {
    format!("{_name:?}")
}

fn main() {}
