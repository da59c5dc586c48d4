//! Hostile names: valid ids that a careless store mixes up, and invalid ones that must never become an id.

use loomflow_core::{Identity, LEGACY_ANONYMOUS_SENTINEL, SessionId, UserId};

/// Pairs of valid names that differ, and that some store, driver, collation, pattern or key format takes for one.
const PAIRS: &[(&str, &str)] = &[
    ("user_1", "user_10"),
    ("user_1", "userX1"),
    ("user_1", "user_"),
    ("user%", "user_1"),
    ("Ada", "ada"),
    ("ALICE@EXAMPLE.COM", "alice@example.com"),
    ("caf\u{e9}", "cafe\u{301}"),
    ("\u{212b}ngstrom", "\u{c5}ngstrom"),
    ("\u{430}lice", "alice"),
    ("p\u{0430}ypal", "paypal"),
    ("stra\u{df}e", "strasse"),
    ("\u{130}stanbul", "istanbul"),
    ("\u{131}d", "id"),
    ("\u{212a}elvin", "kelvin"),
    ("\u{fb01}nance", "finance"),
    ("user_\u{ff11}", "user_1"),
    ("a:b", "a"),
    ("a:b:c", "a:b"),
    ("a/b", "a%2Fb"),
    ("a/../b", "b"),
    ("..", "."),
    ("a|b", "a\\|b"),
    ("{a}", "a"),
    ("a,b", "b"),
    ("*", "alice"),
    ("a*", "ab"),
    ("a?", "ab"),
    ("[a-z]", "q"),
    ("%", "_"),
    ("o'brien", "o''brien"),
    ("\"quoted\"", "quoted"),
    ("back\\slash", "back\\\\slash"),
    ("x'; DROP TABLE episodes; --", "x"),
    ("a -- b", "a"),
    ("a b", "a  b"),
    ("a b", "a\u{a0}b"),
    ("1", "01"),
    ("1", "1.0"),
    ("null", "NULL"),
    ("default", "Default"),
    ("\u{1f600}", "\u{1f601}"),
    ("\u{1f469}\u{1f3fd}", "\u{1f469}"),
    ("$1", "$2"),
    ("{user}", "{{user}}"),
    ("true", "1"),
    ("__proto__", "proto"),
];

/// Names that look like somebody special: nothing, the anonymous bucket, an operator.
const SPECIAL: &[&str] =
    &["null", "none", "nil", "undefined", "default", "anonymous", "(anonymous)", "system", "a", "u"];

/// Valid user ids that are nasty: prefixes of each other, case pairs, Unicode look-alikes, separators, quotes, patterns,
/// 256 bytes that differ only in the last.
#[must_use]
pub fn users() -> Vec<UserId> {
    let mut names: Vec<String> = PAIRS.iter().flat_map(|(a, b)| [*a, *b]).map(str::to_owned).collect();
    names.extend(SPECIAL.iter().map(|s| (*s).to_owned()));
    names.extend(long());
    names.sort_unstable();
    names.dedup();
    names.iter().map(|name| valid(name)).collect()
}

/// Every hostile user, and the anonymous bucket.
#[must_use]
pub fn identities() -> Vec<Identity> {
    let mut all: Vec<Identity> = users().into_iter().map(Identity::User).collect();
    all.push(Identity::Anonymous);
    all
}

/// Hostile pairs of identities: each pair differs, and each has been one and the same to some store.
#[must_use]
pub fn pairs() -> Vec<(Identity, Identity)> {
    let user = |name: &str| Identity::User(valid(name));
    let mut all: Vec<_> = PAIRS.iter().map(|(a, b)| (user(a), user(b))).collect();
    all.extend(SPECIAL.iter().map(|name| (user(name), Identity::Anonymous)));
    let long = long();
    all.extend(long.iter().zip(long.iter().skip(1)).map(|(a, b)| (user(a), user(b))));
    all
}

/// Session ids with the same nastiness as [`users`].
#[must_use]
pub fn sessions() -> Vec<SessionId> {
    users()
        .iter()
        .map(|id| {
            SessionId::new(id.as_str()).unwrap_or_else(|e| panic!("a user id is a valid session id: {e}"))
        })
        .collect()
}

/// Keys and block names with the same nastiness as [`users`], at most 128 bytes long.
#[must_use]
pub fn keys() -> Vec<String> {
    let mut keys: Vec<String> =
        users().iter().map(|id| id.as_str().to_owned()).filter(|k| k.len() <= 128).collect();
    keys.push(" surrounded by blanks ".to_owned());
    keys
}

/// Texts that a careless query would take for syntax.
#[must_use]
pub fn queries() -> &'static [&'static str] {
    &[
        "\"",
        "'",
        "\"unbalanced",
        "a OR b",
        "* NOT falcon",
        "NEAR(falcon, 5)",
        "body:falcon",
        "falcon*",
        "-falcon",
        "@tag:{x}",
        "(falcon",
        "falcon)",
        "fal%con",
        "x'; DROP TABLE episodes; --",
        "\\",
        "{falcon}",
        "falcon | violet",
        "falcon & ! violet",
        "[falcon]",
        "$where",
        "\u{1f600}",
        "fal\u{301}con",
        "^falcon",
        "~falcon",
        "falcon:*",
        "\u{0}falcon",
    ]
}

/// What [`UserId::new`] must refuse, and why.
#[must_use]
pub fn refused() -> Vec<(String, &'static str)> {
    let mut all: Vec<(String, &'static str)> = vec![
        (String::new(), "empty"),
        ("x".repeat(257), "257 bytes"),
        ("\u{1f600}".repeat(65), "260 bytes"),
        (LEGACY_ANONYMOUS_SENTINEL.to_owned(), "the reserved sentinel"),
    ];
    let inside = [
        ('\0', "NUL"),
        ('\n', "control"),
        ('\r', "control"),
        ('\t', "control"),
        ('\u{7f}', "control"),
        ('\u{85}', "control"),
        ('\u{ad}', "format (soft hyphen)"),
        ('\u{200b}', "format (zero-width space)"),
        ('\u{200d}', "format (zero-width joiner)"),
        ('\u{202e}', "bidirectional override"),
        ('\u{2066}', "bidirectional isolate"),
        ('\u{feff}', "format (byte order mark)"),
        ('\u{e0061}', "format (tag)"),
        ('\u{2028}', "line separator"),
        ('\u{2029}', "paragraph separator"),
        ('\u{e000}', "private use"),
        ('\u{10ffff}', "unassigned (noncharacter)"),
        ('\u{fdd0}', "unassigned (noncharacter)"),
        ('\u{378}', "unassigned"),
    ];
    all.extend(inside.iter().map(|(c, why)| (format!("a{c}b"), *why)));
    all.extend(["\u{200d}", "\u{202e}"].iter().map(|c| ((*c).to_owned(), "nothing but a format character")));
    all.extend(
        [" a", "a ", "\u{a0}a", "a\u{3000}", " ", "\ta"]
            .iter()
            .map(|t| ((*t).to_owned(), "surrounding blanks")),
    );
    all
}

/// Ids at the length limit, which a truncating column takes for one.
fn long() -> Vec<String> {
    let stem = "x".repeat(255);
    vec![
        "x".repeat(63),
        "x".repeat(64),
        stem.clone(),
        format!("{stem}x"),
        format!("{stem}y"),
        "\u{1f600}".repeat(64),
        format!("{}abcd", "\u{1f600}".repeat(63)),
    ]
}

fn valid(name: &str) -> UserId {
    UserId::new(name).unwrap_or_else(|e| panic!("the suite's hostile id {name:?} is meant to be valid: {e}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn hostile_ids_are_valid_and_distinct() {
        let all = identities();
        assert!(all.len() > 60);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        assert!(pairs().iter().all(|(a, b)| a != b));
        assert!(users().iter().any(|u| u.as_str().len() == 256));
        assert_eq!(sessions().len(), users().len());
    }

    #[test]
    fn what_must_be_refused_is_refused() {
        for (text, why) in refused() {
            assert!(UserId::new(&text).is_err(), "{text:?} was accepted: {why}");
        }
    }
}
