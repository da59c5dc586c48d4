//! Writing a secret into JSON.

use loomflow_core::Secret;

pub fn write(_secret: &Secret<String>, name: &str) -> String {
    serde_json::json!({ name: _secret }).to_string()
}

fn main() {}
