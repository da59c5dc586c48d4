//! The checked-out text files, in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Directories that hold nothing anybody wrote here.
const SKIPPED: [&str; 4] = ["target", ".git", "node_modules", "__pycache__"];
const TEXT: [&str; 5] = ["rs", "md", "toml", "sh", "yml"];

/// Relative paths with forward slashes, and contents.
#[derive(Debug, Default)]
pub(super) struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// Reads every text file below `root`.
    pub(super) fn load(root: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        tree.load_dir(root, "")?;
        Ok(tree)
    }

    fn load_dir(&mut self, dir: &Path, prefix: &str) -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    self.load_dir(&entry.path(), &format!("{path}/"))?;
                }
            } else if name.rsplit_once('.').is_some_and(|(_, ext)| TEXT.contains(&ext)) {
                self.files.insert(path, std::fs::read_to_string(entry.path())?);
            }
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn get(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// Whether any file lies in the directory `path`.
    pub(super) fn has_dir(&self, path: &str) -> bool {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        self.files.range(prefix.clone()..).next().is_some_and(|(first, _)| first.starts_with(&prefix))
    }

    /// Every file.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Every file whose name ends in `.ext`.
    pub(super) fn with_ext(&self, ext: &str) -> impl Iterator<Item = (&str, &str)> {
        let suffix = format!(".{ext}");
        self.files
            .iter()
            .filter(move |(path, _)| path.ends_with(&suffix))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

#[cfg(test)]
impl Tree {
    /// A tree written in a test.
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        Self { files: files.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect() }
    }
}

/// Whether a path is test code as a whole: a `tests` or `benches` directory, or a file cargo never ships.
pub(super) fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "benches")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_more_than_a_prefix() {
        let tree = Tree::of(&[("docs/adr/0001-a.md", ""), ("documents.md", "")]);
        assert!(tree.has_dir("docs") && tree.has_dir("docs/adr/"));
        assert!(!tree.has_dir("doc") && !tree.has_dir("documents.md"));
    }

    #[test]
    fn the_real_tree_is_read_and_the_build_output_is_not() {
        let tree = Tree::load(&crate::workspace_root()).unwrap();
        assert!(tree.contains("xtask/src/tidy/tree.rs"));
        assert!(!tree.has_dir("target") && !tree.has_dir(".git"));
    }
}
