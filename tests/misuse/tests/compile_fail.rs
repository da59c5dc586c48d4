//! Misuse does not compile, and for the reason it should not.
//!
//! Each misuse is a pair. `ui/fail/NAME.rs` does not compile: the whole message is pinned beside it, and the table below
//! pins the error code, or the words where an error has no code (a macro's has none). `ui/pass/NAME.rs` differs from it in at most three lines and compiles as a module of this very
//! test. So a case can fail neither for a stray reason nor because the right way is broken too.
//!
//! After a deliberate change: `TRYBUILD=overwrite cargo test -p loomflow-misuse --test compile_fail`, then read the diff.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "../ui/pass/mod.rs"]
mod twins;

/// Every misuse, and the error the compiler must refuse it with: its code, or else how it begins.
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
    ("delegated_without_a_run", "E0599"),
    ("delegated_to_another_tenant", "E0308"),
    ("context_of_a_child", "E0451"),
    ("tool_without_an_effect", "`#[tool]` needs an effect: "),
    ("tool_with_an_unknown_effect", "there is no effect `harmless`"),
    ("tool_without_documentation", "a tool needs a documentation comment"),
    ("tool_that_blocks", "a tool is an `async fn`"),
    ("tool_that_cannot_be_sent", "future cannot be sent between threads safely"),
    ("tool_argument_that_cannot_be_read", "E0277"),
    ("tool_argument_that_borrows", "an argument is owned"),
    ("tool_answer_that_cannot_be_told", "E0277"),
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
    for (name, expected) in MISUSES {
        let message = read(&format!("fail/{name}.stderr"));
        let errors: Vec<&str> = message.lines().filter_map(error).collect();
        let [error] = errors.as_slice() else {
            panic!("{name} has one mistake and the compiler sees {}:\n{message}", errors.len());
        };
        assert!(is_refused_with(error, expected), "{name} is not refused with {expected:?}:\n{message}");
    }
}

/// What follows `error` on a line that begins one: `[CODE]: WORDS` or `: WORDS`.
fn error(line: &str) -> Option<&str> {
    line.strip_prefix("error").filter(|rest| rest.starts_with(['[', ':']))
}

/// Words are compared only where there is no code: a code is the compiler's own and stays when its words change.
fn is_refused_with(error: &str, expected: &str) -> bool {
    match error.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((code, _)) => code == expected,
        None => error.strip_prefix(": ").is_some_and(|words| words.starts_with(expected)),
    }
}

#[test]
fn an_error_is_known_by_its_code_or_else_by_its_words() {
    assert_eq!(error("error[E0277]: no"), Some("[E0277]: no"));
    assert_eq!(error("  = note: error: no"), None);
    assert_eq!(error("errors were found"), None);
    assert!(is_refused_with("[E0277]: a tool", "E0277"));
    assert!(!is_refused_with("[E0277]: a tool", "E0278"));
    assert!(!is_refused_with("[E0277]: a tool", "a tool"));
    assert!(is_refused_with(": a tool is", "a tool"));
    assert!(!is_refused_with(": not a tool", "a tool"));
    assert!(!is_refused_with(": E0277", "[E0277]"));
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
