//! Rules about where things lie: the common file map of backends, crate roots, and decision records.

use std::collections::BTreeMap;

use super::Finding;
use super::graph::{Package, is_backend};
use super::lex::Source;
use super::tree::Tree;

/// What every backend has, so that a reviewer knows the room before opening the door.
const FILE_MAP: [&str; 4] = ["src/lib.rs", "src/config.rs", "docs.md", "tests/conformance.rs"];

const DECISIONS: &str = "docs/adr/";

pub(super) fn check(tree: &Tree, packages: &[Package]) -> Vec<Finding> {
    let mut findings = decisions(tree);
    for package in packages {
        if is_backend(&package.name) {
            file_map(tree, package, &mut findings);
        }
        unsafe_code(tree, package, &mut findings);
    }
    findings
}

fn file_map(tree: &Tree, package: &Package, findings: &mut Vec<Finding>) {
    for file in FILE_MAP {
        let path = format!("{}/{file}", package.dir);
        if !tree.contains(&path) {
            findings.push(Finding::new(&path, 0, "file-map", "every backend has this file"));
        }
    }
}

/// Every root forbids unsafe code, or a decision record names the crate and says why not.
fn unsafe_code(tree: &Tree, package: &Package, findings: &mut Vec<Finding>) {
    let decided = || {
        tree.with_ext("md").any(|(path, text)| {
            path.starts_with(DECISIONS) && text.contains(&package.name) && text.contains("unsafe")
        })
    };
    for root in &package.roots {
        let forbids = tree
            .get(root)
            .is_some_and(|text| Source::parse(text).find("#![forbid(unsafe_code)]").next().is_some());
        if !forbids && !decided() {
            let message = "add `#![forbid(unsafe_code)]`, or a decision record that names the crate";
            findings.push(Finding::new(root, 0, "unsafe-code", message));
        }
    }
}

fn decisions(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut numbers: BTreeMap<&str, &str> = BTreeMap::new();
    for (path, text) in tree.with_ext("md") {
        let Some(name) = path.strip_prefix(DECISIONS).filter(|name| *name != "README.md") else { continue };
        let Some(number) = number(name) else {
            findings.push(Finding::new(path, 0, "decision", "name it NNNN-what-was-decided.md"));
            continue;
        };
        if let Some(other) = numbers.insert(number, path) {
            findings.push(Finding::new(path, 0, "decision", format!("{number} is taken by {other}")));
        }
        let title = text.lines().next().and_then(|line| line.strip_prefix("# "));
        if title.is_none_or(|title| title.trim().is_empty()) {
            findings.push(Finding::new(path, 1, "decision", "open it with `# ` and its title"));
        }
    }
    findings
}

/// The number of `NNNN-words.md`.
fn number(name: &str) -> Option<&str> {
    let (number, words) = name.strip_suffix(".md")?.split_once('-')?;
    let is_number = number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit());
    let are_words =
        !words.is_empty() && words.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (is_number && are_words).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_rules;
    use super::*;

    fn package(name: &str) -> Package {
        let dir = format!("crates/{name}");
        Package {
            name: name.to_owned(),
            roots: vec![format!("{dir}/src/lib.rs")],
            dir,
            dependencies: Vec::new(),
        }
    }

    const FORBIDS: &str = "//! A.\n#![forbid(unsafe_code)]\n";

    #[test]
    fn a_backend_has_the_common_files() {
        let name = "loomflow-ledger-redis";
        let paths: Vec<String> = FILE_MAP.iter().map(|file| format!("crates/{name}/{file}")).collect();
        let all: Vec<(&str, &str)> = paths.iter().map(|path| (path.as_str(), FORBIDS)).collect();
        assert_rules(&check(&Tree::of(&all), &[package(name)]), &[]);
        for missing in 1..all.len() {
            let mut some = all.clone();
            some.remove(missing);
            assert_rules(&check(&Tree::of(&some), &[package(name)]), &["file-map"]);
        }
        let other = Tree::of(&[("crates/loomflow-otel/src/lib.rs", FORBIDS)]);
        assert_rules(&check(&other, &[package("loomflow-otel")]), &[]);
    }

    #[test]
    fn a_root_forbids_unsafe_code_or_a_decision_says_why() {
        let root = "crates/loomflow-x/src/lib.rs";
        let x = [package("loomflow-x")];
        assert_rules(
            &check(&Tree::of(&[(root, "//! A.\n// #![forbid(unsafe_code)]\n")]), &x),
            &["unsafe-code"],
        );
        assert_rules(&check(&Tree::of(&[(root, FORBIDS)]), &x), &[]);
        let decided = ("docs/adr/0001-ffi.md", "# FFI\nloomflow-x needs unsafe for its C library.\n");
        assert_rules(&check(&Tree::of(&[(root, "//! A.\n"), decided]), &x), &[]);
    }

    #[test]
    fn decisions_are_numbered_and_titled() {
        let fine = [
            ("docs/adr/0001-one.md", "# One\n"),
            ("docs/adr/0002-two.md", "# Two\n"),
            ("docs/adr/README.md", ""),
        ];
        assert_rules(&check(&Tree::of(&fine), &[]), &[]);
        for wrong in [
            "docs/adr/1-one.md",
            "docs/adr/one.md",
            "docs/adr/0001.md",
            "docs/adr/0001-.md",
            "docs/adr/0001-a b.md",
        ] {
            assert_rules(&check(&Tree::of(&[(wrong, "# One\n")]), &[]), &["decision"]);
        }
        assert_rules(&check(&Tree::of(&[("docs/adr/0001-one.md", "One\n")]), &[]), &["decision"]);
        let twice = Tree::of(&[("docs/adr/0001-one.md", "# One\n"), ("docs/adr/0001-two.md", "# Two\n")]);
        assert_rules(&check(&twice, &[]), &["decision"]);
    }
}
