//! Rules about prose: it names what exists, its links lead somewhere, its code is compiled, and it knows no machine.

use super::Finding;
use super::graph::Package;
use super::lex::Source;
use super::tree::Tree;

const ARCHITECTURE: &str = "docs/architecture.md";

/// Where documents whose code blocks are compiled are listed.
const COMPILED: &str = "tests/src/docs.rs";

/// Directories of somebody's machine.
const MACHINE_PATHS: [&str; 4] = ["/work/", "/tmp/", "/root/", "/home/"];

/// Under a heading with one of these, a document may name what does not exist yet, and must not name what does.
const PLANNED: [&str; 2] = ["not built yet", "planned"];

pub(super) fn check(tree: &Tree, packages: &[Package], commands: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.with_ext("md") {
        changelog(path, text, &mut findings);
        machine_paths(path, text.lines().enumerate().map(|(i, line)| (i + 1, line)), &mut findings);
        links(tree, path, text, &mut findings);
        compiled(tree, path, text, &mut findings);
        named_commands(path, text, commands, &mut findings);
    }
    if let Some(text) = tree.get(ARCHITECTURE) {
        named_crates(tree, text, packages, &mut findings);
    }
    for (path, text) in tree.with_ext("rs") {
        let source = Source::parse(text);
        let comments = source.comments.iter().map(|(line, text)| (*line, text.as_str()));
        machine_paths(path, comments, &mut findings);
    }
    findings
}

fn changelog(path: &str, text: &str, findings: &mut Vec<Finding>) {
    let is_changelog = path.rsplit('/').next() == Some("CHANGELOG.md");
    let has_section = || text.lines().any(|line| line.starts_with('#') && line.contains("Unreleased"));
    if is_changelog && !has_section() {
        findings.push(Finding::new(path, 0, "changelog", "keep an `Unreleased` section for the next change"));
    }
}

fn machine_paths<'t>(path: &str, lines: impl Iterator<Item = (usize, &'t str)>, findings: &mut Vec<Finding>) {
    for (number, line) in lines {
        for machine in MACHINE_PATHS {
            // `http://host/work/x` and `target/tmp/x` are somebody's path, not this machine's.
            let absolute = |at: usize| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|c| {
                    !(c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '*' | '}' | '~'))
                })
            };
            if line.match_indices(machine).any(|(at, _)| absolute(at)) {
                let message = format!("`{machine}..` is a place on somebody's machine");
                findings.push(Finding::new(path, number, "machine-path", message));
            }
        }
    }
}

/// A line of prose, where it stands, and whether its heading says that it is not there yet.
struct Line<'t> {
    number: usize,
    text: &'t str,
    planned: bool,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let (mut planned, mut fenced) = (false, false);
    text.lines().enumerate().map(move |(i, line)| {
        fenced ^= line.trim_start().starts_with("```");
        if line.starts_with('#') && !fenced {
            let heading = line.to_lowercase();
            planned = PLANNED.iter().any(|word| heading.contains(word));
        }
        Line { number: i + 1, text: line, planned }
    })
}

fn named_crates(tree: &Tree, text: &str, packages: &[Package], findings: &mut Vec<Finding>) {
    // A crate that is a workspace of its own is none of the packages.
    let is_crate = |name: &str| {
        packages.iter().any(|package| package.name == name)
            || tree.contains(&format!("crates/{name}/Cargo.toml"))
    };
    for line in lines(text) {
        for name in crate_names(line.text) {
            let exists = is_crate(name);
            let message = match (exists, line.planned) {
                (false, false) => format!("`{name}` is not a crate of this workspace"),
                (true, true) => format!("`{name}` exists; it is no longer planned"),
                _ => continue,
            };
            findings.push(Finding::new(ARCHITECTURE, line.number, "docs-drift", message));
        }
        for path in line.text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_/.".contains(c))) {
            let Some(name) = path.strip_prefix("crates/").and_then(|rest| rest.split('/').next()) else {
                continue;
            };
            let exists = packages.iter().any(|package| package.dir == format!("crates/{name}"));
            if !name.is_empty() && !name.starts_with("loomflow") && !exists && !line.planned {
                let message = format!("there is no crates/{name}");
                findings.push(Finding::new(ARCHITECTURE, line.number, "docs-drift", message));
            }
        }
    }
}

/// Words like `loomflow-memory-redis`. A family (`loomflow-memory-*`, `loomflow-memory-{a,b}`) names no crate.
fn crate_names(line: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let mut names = Vec::new();
    for (at, _) in line.match_indices("loomflow-") {
        let joined =
            line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        let rest = &line[at..];
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let name = &rest[..end];
        if !joined && !name.ends_with('-') {
            names.push(name);
        }
    }
    names
}

/// `cargo xtask WORD`, in any document, is a command that exists.
fn named_commands(path: &str, text: &str, commands: &[String], findings: &mut Vec<Finding>) {
    for line in lines(text).filter(|line| !line.planned) {
        for (at, prefix) in line.text.match_indices("cargo xtask ") {
            let rest = &line.text[at + prefix.len()..];
            let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(rest.len());
            let word = &rest[..end];
            if !word.is_empty() && !word.starts_with('-') && !commands.iter().any(|c| c == word) {
                let message = format!("there is no `cargo xtask {word}`");
                findings.push(Finding::new(path, line.number, "docs-drift", message));
            }
        }
    }
}

/// Relative links lead to a file or a directory of the tree.
fn links(tree: &Tree, path: &str, text: &str, findings: &mut Vec<Finding>) {
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut fenced = false;
    for (i, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split(['#', ' ']).next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains(':') || file.contains('`');
            // Files that are not text (pictures, keys) are not in the tree; only what can be judged is.
            let is_text = [".md", ".rs", ".toml"].iter().any(|ext| file.ends_with(ext));
            let target = join(dir, file);
            let leads = if file.ends_with('/') { tree.has_dir(&target) } else { tree.contains(&target) };
            if !elsewhere && !leads && (is_text || file.ends_with('/')) {
                findings.push(Finding::new(path, i + 1, "link", format!("{file} does not exist")));
            }
        }
    }
}

fn join(dir: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in relative.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The README and the book are listed where their code is compiled, and no fence in them leaves its language out.
fn compiled(tree: &Tree, path: &str, text: &str, findings: &mut Vec<Finding>) {
    let is_book = path == "README.md" || path.starts_with("docs/");
    let listed = tree.get(COMPILED).is_some_and(|list| list.contains(&format!("\"../../{path}\"")));
    if !is_book && !listed {
        return;
    }
    let mut fenced = false;
    for (i, line) in text.lines().enumerate() {
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        fenced = !fenced;
        if !fenced {
            continue;
        }
        if info.trim().is_empty() {
            let message = "name the fence's language; a bare one is taken for Rust";
            findings.push(Finding::new(path, i + 1, "code-block", message));
        } else if info.split(',').any(|word| word.trim() == "ignore") {
            let message = "code that is not compiled drifts; use `no_run`, or a sketch as `text`";
            findings.push(Finding::new(path, i + 1, "code-block", message));
        } else if info.starts_with("rust") && !listed {
            let message = format!("list this document in {COMPILED}, so that its code is compiled");
            findings.push(Finding::new(path, i + 1, "code-block", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_rules;
    use super::*;

    fn package(name: &str) -> Package {
        Package {
            name: name.to_owned(),
            dir: format!("crates/{name}"),
            roots: Vec::new(),
            dependencies: Vec::new(),
        }
    }

    fn rules(path: &str, text: &str) -> Vec<Finding> {
        let commands = ["test".to_owned(), "bench-tenants".to_owned()];
        check(&Tree::of(&[(path, text)]), &[package("loomflow-core"), package("loomflow")], &commands)
    }

    #[test]
    fn the_architecture_names_crates_that_exist() {
        let fine = "`loomflow-core` lies in crates/loomflow-core/src; backends are `loomflow-memory-*`,\n\
                    `loomflow-{audit,memory}-x` and loomflow_core::Scope.\n";
        assert_rules(&rules(ARCHITECTURE, fine), &[]);
        assert_rules(&rules(ARCHITECTURE, "see `loomflow-nothing`\n"), &["docs-drift"]);
        assert_rules(&rules(ARCHITECTURE, "see crates/nothing/src\n"), &["docs-drift"]);
        assert_rules(&rules("docs/other.md", "see `loomflow-nothing`\n"), &[]);
    }

    #[test]
    fn what_is_planned_may_be_named_until_it_exists() {
        assert_rules(&rules(ARCHITECTURE, "## Not built yet\nloomflow-memory-redis\n"), &[]);
        assert_rules(&rules(ARCHITECTURE, "## Not built yet\nloomflow-core\n"), &["docs-drift"]);
        assert_rules(
            &rules(ARCHITECTURE, "## Planned\nx\n## Built\nloomflow-memory-redis\n"),
            &["docs-drift"],
        );
    }

    #[test]
    fn commands_that_are_named_exist() {
        assert_rules(
            &rules("README.md", "Run `cargo xtask test --fast`, then `cargo xtask bench-tenants`.\n"),
            &[],
        );
        assert_rules(&rules("README.md", "Run `cargo xtask chaos`.\n"), &["docs-drift"]);
        assert_rules(&rules("README.md", "## Planned\n`cargo xtask chaos`\n"), &[]);
    }

    #[test]
    fn a_changelog_has_room_for_the_next_change() {
        assert_rules(&rules("CHANGELOG.md", "# Changelog\n## [Unreleased]\n"), &[]);
        assert_rules(
            &rules("crates/a/CHANGELOG.md", "# Changelog\nUnreleased things\n## 0.1.0\n"),
            &["changelog"],
        );
    }

    #[test]
    fn no_document_or_comment_knows_a_machine() {
        for wrong in ["see /work/x", "`/tmp/x`", "(/home/me/x)", "/root/x"] {
            assert_rules(&rules("docs/a.md", wrong), &["machine-path"]);
            assert_rules(&rules("crates/a/src/lib.rs", &format!("//! See {wrong}.\n")), &["machine-path"]);
        }
        for fine in ["framework/work/x", "https://example.com/tmp/x", "target/tmp/x", "the /works/ of"] {
            assert_rules(&rules("docs/a.md", fine), &[]);
        }
        assert_rules(&rules("crates/a/src/lib.rs", "//! A.\nconst A: &str = \"/tmp/x\";\n"), &[]);
    }

    #[test]
    fn links_lead_somewhere() {
        assert_rules(&rules("docs/a.md", "[x](b.md)"), &["link"]);
        assert_rules(&rules("docs/a.md", "[x](adr/) [y](../docs/)"), &["link"]);
        assert_rules(
            &rules("docs/a.md", "[x](a.md#part) [y](../docs/a.md) [z](https://example.com/b.md)"),
            &[],
        );
        assert_rules(&rules("docs/a.md", "```text\n[x](b.md)\n```\n"), &[]);
    }

    #[test]
    fn the_books_code_is_compiled() {
        let code = "```rust\nfn a() {}\n```\n";
        assert_rules(&rules("README.md", code), &["code-block"]);
        let list = (COMPILED, "docs! { Readme = \"../../README.md\" }");
        let check = |text: &str| check(&Tree::of(&[("README.md", text), list]), &[], &[]);
        assert_rules(&check(code), &[]);
        assert_rules(&check("```\nfn a() {}\n```\n"), &["code-block"]);
        assert_rules(&check("```rust,ignore\nfn a() {}\n```\n"), &["code-block"]);
        assert_rules(&rules("crates/a/README.md", code), &[]);
    }
}
