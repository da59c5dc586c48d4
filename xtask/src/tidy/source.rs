//! Rules about source files: the header, the length, and words that mean "not finished".

use std::collections::BTreeSet;

use super::Finding;
use super::lex::Source;
use super::tree::{Tree, is_test_path};

/// A file longer than this, tests aside, is more than one room.
const MAX_LINES: usize = 800;

/// Words that must not be left in, anywhere.
const LEFTOVERS: [(&str, &str); 6] = [
    ("todo!", "finish it"),
    ("unimplemented!", "implement it, or answer Unsupported"),
    ("dbg!", "take the debugging aid out"),
    ("#[ignore]", "a test that does not run protects nothing; make it run, or delete it"),
    ("#[ignore=", "a test that does not run protects nothing; make it run, or delete it"),
    ("assert!(true)", "assert something that can fail"),
];

/// Core's vocabulary stands on nothing: what it would reach for is passed in.
const OUTSIDE_CORE: [(&str, &str); 5] = [
    ("std::env", "pass configuration in"),
    ("std::fs", "files belong to a backend"),
    ("std::net", "sockets belong to a backend"),
    ("std::process", "processes belong to a backend"),
    ("tokio::fs", "files belong to a backend"),
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let test_files = test_files(tree);
    let mut findings = Vec::new();
    for (path, text) in tree.all() {
        conflicts(path, text, &mut findings);
    }
    for (path, text) in tree.with_ext("rs") {
        let source = Source::parse(text);
        let is_test = is_test_path(path) || test_files.contains(path);
        header(path, text, &mut findings);
        if !is_test {
            length(path, text, &source, &mut findings);
        }
        leftovers(path, &source, &mut findings);
        if path.starts_with("crates/loomflow-core/src/") && !is_test {
            outside_core(path, &source, &mut findings);
        }
    }
    findings
}

/// Files of modules that are declared under `#[cfg(test)]`.
pub(super) fn test_files(tree: &Tree) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, text) in tree.with_ext("rs") {
        let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
        let stem = file.trim_end_matches(".rs");
        let base =
            if matches!(stem, "lib" | "main" | "mod") { dir.to_owned() } else { format!("{dir}/{stem}") };
        for name in Source::parse(text).test_modules() {
            found.insert(format!("{base}/{name}.rs"));
            let inside = format!("{base}/{name}/");
            found.extend(
                tree.with_ext("rs").map(|(p, _)| p).filter(|p| p.starts_with(&inside)).map(str::to_owned),
            );
        }
    }
    found
}

/// What a merge leaves behind when nobody finished it.
fn conflicts(path: &str, text: &str, findings: &mut Vec<Finding>) {
    for (i, line) in text.lines().enumerate() {
        if ["<<<<<<< ", ">>>>>>> "].iter().any(|marker| line.starts_with(marker)) {
            findings.push(Finding::new(path, i + 1, "leftover", "a conflict marker: finish the merge"));
        }
    }
}

fn header(path: &str, text: &str, findings: &mut Vec<Finding>) {
    let first = text.lines().next().unwrap_or_default();
    if first.strip_prefix("//!").is_none_or(|rest| rest.trim().is_empty()) {
        findings.push(Finding::new(path, 1, "header", "open the file with `//!` and what the room is for"));
    }
}

fn length(path: &str, text: &str, source: &Source, findings: &mut Vec<Finding>) {
    let lines = source.shipped_lines(text);
    if lines > MAX_LINES {
        let message = format!("{lines} lines without its tests; split it before {MAX_LINES}");
        findings.push(Finding::new(path, 0, "length", message));
    }
}

fn leftovers(path: &str, source: &Source, findings: &mut Vec<Finding>) {
    for (needle, advice) in LEFTOVERS {
        for (line, _) in source.find(needle) {
            findings.push(Finding::new(path, line, "leftover", format!("`{needle}`: {advice}")));
        }
    }
    for needle in [".expect(\"\")", ".expect_err(\"\")"] {
        for (line, _) in source.find(needle) {
            findings.push(Finding::new(
                path,
                line,
                "leftover",
                "`expect` without a reason: say why it holds",
            ));
        }
    }
}

fn outside_core(path: &str, source: &Source, findings: &mut Vec<Finding>) {
    for (needle, advice) in OUTSIDE_CORE {
        for (line, _) in source.find(needle).filter(|(_, is_test)| !is_test) {
            findings.push(Finding::new(
                path,
                line,
                "core-stands-alone",
                format!("`{needle}` in core: {advice}"),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_rules;
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<Finding> {
        check(&Tree::of(&[(path, text)]))
    }

    #[test]
    fn a_tidy_file_is_silent() {
        assert_rules(&rules("crates/a/src/lib.rs", "//! What it is for.\nfn a() {}\n"), &[]);
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        assert_rules(&rules("crates/a/src/lib.rs", "fn a() {}\n"), &["header"]);
        assert_rules(&rules("crates/a/src/lib.rs", "//!\nfn a() {}\n"), &["header"]);
        assert_rules(&rules("tests/misuse/ui/fail/a.rs", "fn main() {}\n"), &["header"]);
        assert_rules(&rules("crates/a/src/lib.rs", ""), &["header"]);
    }

    #[test]
    fn a_long_file_is_split_unless_its_tests_are_long() {
        let long = format!("//! Long.\n{}", "fn a() {}\n".repeat(800));
        assert_rules(&rules("crates/a/src/lib.rs", &long), &["length"]);
        assert_rules(&rules("crates/a/tests/x.rs", &long), &[]);
        let tested = format!("//! Short.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn a() {}\n".repeat(900));
        assert_rules(&rules("crates/a/src/lib.rs", &tested), &[]);
        let out_of_line = Tree::of(&[
            ("crates/a/src/b.rs", "//! B.\n#[cfg(test)]\nmod tests;\n"),
            ("crates/a/src/b/tests.rs", &long),
        ]);
        assert_rules(&check(&out_of_line), &[]);
    }

    #[test]
    fn nothing_unfinished_is_left_in() {
        for code in [
            "fn a() { todo!() }",
            "fn a() { unimplemented!(\"later\") }",
            "fn a() { dbg!(1); }",
            "#[test]\n#[ignore]\nfn a() {}",
            "#[test]\n#[ignore = \"slow\"]\nfn a() {}",
            "fn a() { assert!(true) }",
            "fn a() { x.expect(\"\"); }",
            "fn a() { x\n.expect(\n\"  \"\n); }",
        ] {
            assert_rules(&rules("crates/a/tests/a.rs", &format!("//! A.\n{code}\n")), &["leftover"]);
        }
        let fine =
            "//! A.\n// todo!()\nconst A: &str = \"dbg!(1)\";\nfn a() { x.expect(\"it was checked\"); }\n";
        assert_rules(&rules("crates/a/src/a.rs", fine), &[]);
    }

    #[test]
    fn core_reaches_for_nothing() {
        let text = "//! A.\nuse std::fs;\nfn a() { std::env::var(\"A\"); }\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        assert_rules(
            &rules("crates/loomflow-core/src/a.rs", text),
            &["core-stands-alone", "core-stands-alone"],
        );
        assert_rules(&rules("crates/loomflow-local/src/a.rs", text), &[]);
        let declared = ("crates/loomflow-core/src/a/mod.rs", "//! A.\n#[cfg(test)]\nmod tests;\n");
        let tests = ("crates/loomflow-core/src/a/tests.rs", "//! A.\nuse std::fs;\n");
        assert_rules(&check(&Tree::of(&[declared, tests])), &[]);
    }
}
