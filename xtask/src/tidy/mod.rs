//! `cargo xtask tidy`: house rules as code.
//!
//! A rule reads a [`Tree`] (the checked-out text files) or the workspace's manifests and returns [`Finding`]s. Rules
//! never touch the disk themselves, so each has a test that turns it red on a tree written in the test.

mod docs;
mod graph;
mod layout;
mod lex;
mod loud;
mod source;
mod tree;

use std::fmt;
use std::path::Path;

use self::tree::Tree;
use crate::{Failure, Outcome};

/// A broken rule, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// From 1; 0 when the file as a whole is meant.
    line: usize,
    rule: &'static str,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, rule: &'static str, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line.max(1), self.rule, self.message)
    }
}

/// Checks the workspace in `root` and prints what it finds.
pub(crate) fn run(root: &Path) -> Outcome {
    let tree = Tree::load(root).map_err(|e| Failure::Failed(format!("the tree cannot be read: {e}")))?;
    let packages = graph::packages(root)?;
    let (uses, mut findings) = loud::check(&tree);
    findings.extend(source::check(&tree));
    findings.extend(layout::check(&tree, &packages));
    findings.extend(docs::check(&tree, &packages, &crate::command_names()));
    findings.extend(graph::check(&packages));
    findings.sort();
    if !uses.is_empty() {
        println!("  the loud ways around the types are used by:");
        for (path, count) in &uses {
            println!("    {path} ({count})");
        }
    }
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("  {} files and {} packages keep the house rules", tree.len(), packages.len());
            Ok(())
        }
        n => Err(Failure::Failed(format!("{n} house rule(s) broken"))),
    }
}

#[cfg(test)]
mod testing {
    //! What the tests of rules share.

    use super::Finding;

    /// Fails unless exactly these rules are broken, in any order.
    pub(super) fn assert_rules(findings: &[Finding], expected: &[&str]) {
        let mut rules: Vec<&str> = findings.iter().map(|f| f.rule).collect();
        rules.sort_unstable();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(rules, expected, "{findings:#?}");
    }
}
