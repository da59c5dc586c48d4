//! Misuse does not compile, and for the reason it should not.
//!
//! Each misuse is a pair. `ui/fail/NAME.rs` does not compile: the whole message is pinned beside it, and the table below
//! pins the error code. `ui/pass/NAME.rs` differs from it in at most three lines and compiles as a module of this very
//! test. So a case can fail neither for a stray reason nor because the right way is broken too.
//!
//! After a deliberate change: `TRYBUILD=overwrite cargo test -p loomflow-tests --test compile_fail`, then read the diff.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "../ui/pass/mod.rs"]
mod twins;

/// Every misuse, and the error the compiler must refuse it with.
const MISUSES: &[(&str, &str)] = &[
    ("unscoped_recall", "E0061"),
    ("forged_scope", "E0451"),
    ("minted_scope", "E0624"),
    ("deserialised_scope", "E0277"),
    ("default_scope", "E0599"),
    ("converted_scope", "E0277"),
    ("kept_scope", "E0308"),
    ("string_as_scope", "E0308"),
    ("tool_without_permit", "E0308"),
    ("forged_permit", "E0451"),
    ("permit_used_twice", "E0382"),
    ("model_outside_the_door", "E0308"),
    ("forged_admission", "E0624"),
    ("embedding_outside_the_door", "E0308"),
    ("raw_json_to_audit", "E0308"),
    ("forged_redaction", "E0423"),
    ("settled_before_sent", "E0599"),
    ("settled_twice", "E0382"),
    ("printed_secret", "E0277"),
    ("serialised_secret", "E0277"),
    ("copied_secret", "E0277"),
    ("agent_without_a_model", "E0599"),
    ("backend_through_a_handle", "E0616"),
    ("store_through_scoped_memory", "E0616"),
    ("memory_of_another", "E0061"),
];

/// How many lines a misuse and its twin may differ in.
const ONE_CHANGE: usize = 3;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui").join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn names_in(dir: &str) -> BTreeSet<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui").join(dir);
    let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    files
        .map(|file| file.expect("the directory can be read").file_name().to_string_lossy().into_owned())
        .filter_map(|file| file.strip_suffix(".rs").map(str::to_owned))
        .filter(|name| name != "mod")
        .collect()
}

#[test]
fn misuse_does_not_compile() {
    trybuild::TestCases::new().compile_fail("ui/fail/*.rs");
}

#[test]
fn each_misuse_is_refused_with_its_own_error() {
    for (name, code) in MISUSES {
        let message = read(&format!("fail/{name}.stderr"));
        let codes: BTreeSet<&str> =
            message.lines().filter_map(|line| line.strip_prefix("error[")?.split(']').next()).collect();
        assert_eq!(codes, BTreeSet::from([*code]), "{name}: {message}");
        assert_eq!(
            message.lines().filter(|line| line.starts_with("error")).count(),
            1,
            "{name} has one mistake and the compiler sees more:\n{message}"
        );
    }
}

#[test]
fn every_pair_is_in_the_table_and_every_twin_is_compiled() {
    let table: BTreeSet<String> = MISUSES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(table.len(), MISUSES.len(), "a misuse is listed twice");
    assert_eq!(names_in("fail"), table);
    assert_eq!(names_in("pass"), table);
    let modules = read("pass/mod.rs");
    let compiled: BTreeSet<String> = modules
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';').map(str::to_owned))
        .collect();
    assert_eq!(compiled, table);
}

#[test]
fn a_twin_is_one_change_away() {
    for (name, _) in MISUSES {
        let (fail, pass) = (read(&format!("fail/{name}.rs")), read(&format!("pass/{name}.rs")));
        let changed = changed_lines(&fail, &pass);
        assert!((1..=ONE_CHANGE).contains(&changed), "{name} and its twin differ in {changed} lines");
    }
}

/// Lines to take out or put in, whichever are more, to make one text the other.
fn changed_lines(a: &str, b: &str) -> usize {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
    // The longest common subsequence, row by row.
    let mut row = vec![0_usize; b.len() + 1];
    for line in &a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if line == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    a.len().max(b.len()) - row[b.len()]
}

#[test]
fn the_difference_is_counted_right() {
    assert_eq!(changed_lines("a\nb\nc", "a\nb\nc"), 0);
    assert_eq!(changed_lines("a\nb\nc", "a\nx\nc"), 1);
    assert_eq!(changed_lines("a\nb\nc", "a\nc"), 1);
    assert_eq!(changed_lines("a\nb", "x\na\nb\ny"), 2);
    assert_eq!(changed_lines("b\na", "a\nb"), 1);
}
