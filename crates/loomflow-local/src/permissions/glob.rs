//! Tool name patterns: a name, or a name with `*` for any run of characters.

use loomflow_core::{Error, Result};

/// A list of patterns, split by how they are looked up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Globs {
    any: bool,
    exact: hashbrown::HashSet<String>,
    patterns: Vec<String>,
}

impl Globs {
    /// Compiles patterns of `A-Z a-z 0-9 _ . -` and `*`, at most 128 characters each.
    pub(crate) fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut globs = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'*');
            if pattern.is_empty() || pattern.len() > 128 || !pattern.bytes().all(allowed) {
                return Err(Error::invalid_input(format!(
                    "{pattern:?} is not a tool pattern: use 1 to 128 of A-Z a-z 0-9 _ . - and * for any characters"
                )));
            }
            if pattern.bytes().all(|b| b == b'*') {
                globs.any = true;
            } else if pattern.contains('*') {
                globs.patterns.push(pattern.to_owned());
            } else {
                globs.exact.insert(pattern.to_owned());
            }
        }
        Ok(globs)
    }

    /// The patterns, in an order that does not depend on how they were given.
    pub(crate) fn content(&self) -> Vec<&str> {
        let any = self.any.then_some("*");
        let mut all: Vec<&str> =
            self.exact.iter().chain(&self.patterns).map(String::as_str).chain(any).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.any || self.exact.contains(name) || self.patterns.iter().any(|p| glob(p, name))
    }
}

/// Whether all of `name` fits `pattern`, in which `*` is any run of characters.
///
/// Matches with one step of backtracking, so a hostile pattern costs pattern × name at worst.
pub(crate) fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
        } else if let Some((after, taken)) = star {
            star = Some((after, taken + 1));
            p = after;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, by recursion over every way to split.
    fn oracle(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('*', rest)) => (0..=name.len()).any(|k| oracle(rest, &name[k..])),
            Some((c, rest)) => name.first() == Some(c) && oracle(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab.*]{1,7}", name in "[ab.]{0,7}") {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            let globs = Globs::new([&pattern]).expect("an allowed pattern");
            prop_assert_eq!(globs.matches(&name), oracle(&chars(&pattern), &chars(&name)));
        }
    }

    #[test]
    fn patterns_are_bytewise_and_checked() {
        let globs = Globs::new(["billing.*", "shell"]).unwrap();
        for (name, fits) in [
            ("billing.refund", true),
            ("billing.", true),
            ("billing", false),
            ("Billing.refund", false),
            ("xbilling.refund", false),
            ("shell", true),
            ("shell2", false),
        ] {
            assert_eq!(globs.matches(name), fits, "{name}");
        }
        for bad in ["", "a b", "a?", "[a]", "ä*"] {
            assert!(Globs::new([bad]).is_err(), "{bad}");
        }
    }
}
