//! The rule about `danger`: who may use the loud ways around the types, and the list of who does.

use std::collections::BTreeMap;

use super::Finding;
use super::lex::Source;
use super::source::test_files;
use super::tree::{Tree, is_test_path};

const NAME: &str = "danger";

/// Whole packages that may: they take the place of the edge, or try to break in.
const ROOMS: [&str; 5] =
    ["crates/loomflow-conformance/", "crates/loomflow-serve/", "crates/loomflow-cli/", "bench/", "tests/"];

const DEFINITION: &str = "crates/loomflow-core/src/danger.rs";
const DECLARATION: &str = "crates/loomflow-core/src/lib.rs";

/// Who uses it and how often, and who must not.
pub(super) fn check(tree: &Tree) -> (BTreeMap<String, usize>, Vec<Finding>) {
    let test_files = test_files(tree);
    let (mut uses, mut findings) = (BTreeMap::new(), Vec::new());
    for (path, text) in tree.with_ext("rs").filter(|(path, _)| *path != DEFINITION) {
        let is_room = ROOMS.iter().any(|room| path.starts_with(room));
        let may = is_room || is_test_path(path) || test_files.contains(path);
        let source = Source::parse(text);
        for (line, in_test) in source.find(NAME) {
            if path == DECLARATION && source.line_of_code(line).ends_with("mod danger;") {
                continue;
            }
            *uses.entry(path.to_owned()).or_insert(0) += 1;
            if !may && !in_test {
                let message = "only conformance, serve, cli, bench and tests may go around the types";
                findings.push(Finding::new(path, line, NAME, message));
            }
        }
    }
    (uses, findings)
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_rules;
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<Finding> {
        check(&Tree::of(&[(path, text)])).1
    }

    #[test]
    fn every_way_of_naming_it_is_seen() {
        for code in [
            "use loomflow_core::danger;",
            "use loomflow_core::{Scope, danger};",
            "use loomflow_core::danger::assume_scope;",
            "use loomflow_core::danger as quiet;",
            "use loomflow_core::{\n    danger::{\n        permit,\n    },\n};",
            "fn f() { loomflow_core :: danger :: permit(a, b); }",
            "pub use loomflow_core::danger;",
        ] {
            for path in [
                "crates/loomflow-memory-x/src/store.rs",
                "crates/loomflow/src/lib.rs",
                "examples/a/src/main.rs",
            ] {
                assert_rules(&findings(path, code), &["danger"]);
            }
        }
    }

    #[test]
    fn its_rooms_and_tests_may() {
        for path in [
            "crates/loomflow-conformance/src/lib.rs",
            "crates/loomflow-serve/src/auth.rs",
            "crates/loomflow-cli/src/main.rs",
            "bench/src/bin/tenants.rs",
            "tests/tests/laws.rs",
            "crates/loomflow-local/tests/conformance.rs",
            "crates/loomflow-core/src/danger.rs",
        ] {
            assert_rules(&findings(path, "use loomflow_core::danger;"), &[]);
        }
        let unit = "#[cfg(test)]\nmod tests { use loomflow_core::danger; }";
        assert_rules(&findings("crates/loomflow-local/src/memory/mod.rs", unit), &[]);
        assert_rules(&findings(DECLARATION, "pub mod danger;"), &[]);
        assert_rules(&findings(DECLARATION, "pub mod danger;\npub use danger::permit;"), &["danger"]);
        assert_rules(&findings("crates/loomflow-serve-x/src/lib.rs", "use danger::x;"), &["danger"]);
    }

    #[test]
    fn who_uses_it_is_listed() {
        let tree =
            Tree::of(&[("bench/src/lib.rs", "danger::a(); danger::b();"), ("tests/src/lib.rs", "// danger")]);
        let (uses, _) = check(&tree);
        assert_eq!(uses.into_iter().collect::<Vec<_>>(), [("bench/src/lib.rs".to_owned(), 2)]);
    }
}
