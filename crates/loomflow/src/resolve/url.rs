//! Reading a store's URL: which store, and what it is told; errors that say what to do and repeat nothing.

use std::fmt;
use std::sync::Arc;

use loomflow_core::{Error, ErrorKind, Result, Secret};

/// A URL that names a store. It may hold a password, so it is never printed; it is wiped from memory when the last copy
/// of it is dropped.
#[derive(Clone)]
pub struct StoreUrl(Arc<Secret<String>>);

impl From<&str> for StoreUrl {
    fn from(url: &str) -> Self {
        url.to_owned().into()
    }
}

impl From<String> for StoreUrl {
    fn from(url: String) -> Self {
        Secret::new(url).into()
    }
}

impl From<Secret<String>> for StoreUrl {
    fn from(url: Secret<String>) -> Self {
        Self(Arc::new(url))
    }
}

/// As [`Secrets::resolve`](loomflow_core::Secrets::resolve) hands it out.
impl From<Arc<Secret<String>>> for StoreUrl {
    fn from(url: Arc<Secret<String>>) -> Self {
        Self(url)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreUrl(..)")
    }
}

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    InMemory,
    Sqlite,
    Postgres,
    Redis,
    Qdrant,
}

/// Every scheme there is. The first of a kind is the one that is suggested.
const SCHEMES: [(&str, Kind); 7] = [
    ("inmemory", Kind::InMemory),
    ("sqlite", Kind::Sqlite),
    ("postgres", Kind::Postgres),
    ("postgresql", Kind::Postgres),
    ("redis", Kind::Redis),
    ("rediss", Kind::Redis),
    ("qdrant", Kind::Qdrant),
];

/// What people write who mean one of them.
const MEANT: [(&str, Kind); 7] = [
    ("file", Kind::Sqlite),
    ("pg", Kind::Postgres),
    ("pgsql", Kind::Postgres),
    ("psql", Kind::Postgres),
    ("valkey", Kind::Redis),
    ("http", Kind::Qdrant),
    ("https", Kind::Qdrant),
];

impl Kind {
    /// How its URL is written.
    pub(super) fn form(self) -> &'static str {
        match self {
            Self::InMemory => "inmemory",
            Self::Sqlite => "sqlite:PATH",
            Self::Postgres => "postgres://USER:PASSWORD@HOST/DATABASE",
            Self::Redis => "redis://HOST:PORT",
            Self::Qdrant => "qdrant:http://HOST:PORT",
        }
    }
}

/// What a URL is to name, and the stores that keep it.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) kinds: &'static [Kind],
}

/// What a URL says: which store, and the path or URL that its configuration takes.
pub(super) struct Target {
    pub(super) kind: Kind,
    #[allow(dead_code, reason = "without the feature of any store, nobody is told")]
    pub(super) place: Secret<String>,
    /// What Qdrant is shown beside its address.
    #[allow(dead_code, reason = "only one store has a key beside its address")]
    pub(super) key: Option<Secret<String>>,
}

impl Target {
    fn new(kind: Kind, place: String) -> Self {
        Self { kind, place: Secret::new(place), key: None }
    }
}

impl StoreUrl {
    pub(super) fn parse(&self, part: &Part) -> Result<Target> {
        // A secret that was read from a file ends in a newline.
        let text = self.0.expose().trim();
        if text.is_empty() {
            return Err(config(format!("the {}'s URL is empty; {}", part.name, known(part))));
        }
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) => (scheme, Some(rest)),
            None => (text, None),
        };
        let Some((name, kind)) = SCHEMES.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(scheme))
        else {
            return Err(unknown(part, scheme, text));
        };
        if !part.kinds.contains(&kind) {
            return Err(config(format!("`{name}` keeps no {}; {}", part.name, known(part))));
        }
        match (kind, rest) {
            (Kind::InMemory, None) => Ok(Target::new(kind, String::new())),
            (Kind::InMemory, Some(_)) => Err(config("`inmemory` takes nothing after it")),
            (Kind::Sqlite, rest) => Ok(Target::new(kind, path(part, rest.unwrap_or_default())?)),
            (Kind::Qdrant, rest) => qdrant(rest.unwrap_or_default()),
            (Kind::Postgres | Kind::Redis, rest) => {
                let rest = rest.unwrap_or_default();
                server(kind, rest.strip_prefix("//"))?;
                Ok(Target::new(kind, format!("{name}:{rest}")))
            }
        }
    }
}

/// An address, and the key beside it: a driver that was handed both in one would tell of them in one.
fn qdrant(url: &str) -> Result<Target> {
    let after = after(url, "http://").or_else(|| after(url, "https://"));
    server(Kind::Qdrant, after)?;
    if url.contains('@') {
        return Err(config("Qdrant knows no user; write its key as `?api_key=KEY` behind the port"));
    }
    let Some((address, query)) = url.split_once('?') else {
        return Ok(Target::new(Kind::Qdrant, url.to_owned()));
    };
    let key = query.strip_prefix("api_key=").filter(|key| !key.is_empty() && !key.contains(['&', '=']));
    let Some(key) = key.and_then(decoded) else {
        return Err(config("behind `?`, the URL of Qdrant takes `api_key=KEY` and nothing else"));
    };
    Ok(Target { key: Some(Secret::new(key)), ..Target::new(Kind::Qdrant, address.to_owned()) })
}

/// Without its percent-encoding; `None` where that is broken.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let (high, low) =
                    (char::from(rest.next()?).to_digit(16)?, char::from(rest.next()?).to_digit(16)?);
                u8::try_from(16 * high + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// What follows `prefix`, in whatever case that is written.
fn after<'u>(url: &'u str, prefix: &str) -> Option<&'u str> {
    let head = url.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &url[prefix.len()..])
}

/// A file's path. `sqlite:///x` and `sqlite://x` are written by those who come from other libraries: `/x` and `x`.
fn path(part: &Part, rest: &str) -> Result<String> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() {
        return Err(config("`sqlite:` needs the path of a file, such as `sqlite:./loomflow.db`"));
    }
    if path == ":memory:" {
        return Err(config(format!(
            "`sqlite:` is always a file; a {} that ends with the process is `inmemory`",
            part.name
        )));
    }
    if path.contains(['?', '\0']) {
        return Err(config(
            "`sqlite:PATH` takes a path and no parameters; say the rest with the store's own configuration",
        ));
    }
    Ok(path.to_owned())
}

/// Checks what follows the `//`: a host, and nothing that would be read as another part than was meant. A password with
/// a bare `/` in it would otherwise become a host, a port and a database, and be told in errors about these.
fn server(kind: Kind, rest: Option<&str>) -> Result<()> {
    let form = kind.form();
    let Some(rest) = rest else {
        return Err(config(format!("this URL is not written like `{form}`")));
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if rest.contains(['#', '\\']) || rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(encode_it());
    }
    if tail.contains('@') {
        return Err(encode_it());
    }
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let query = tail.split_once('?').map_or("", |(_, query)| query);
    // PostgreSQL may be told its host, or a socket's folder, by a parameter.
    let told = kind == Kind::Postgres
        && query.split('&').any(|pair| ["host=", "hostaddr="].iter().any(|key| pair.starts_with(key)));
    if !told && (host.is_empty() || host.starts_with(':')) {
        return Err(config(format!("this URL names no host; write `{form}`")));
    }
    Ok(())
}

fn encode_it() -> Error {
    config(
        "this URL cannot be read without doubt: in a user name, a password or a parameter, write @ as %40, / as %2F, ? as \
         %3F, # as %23, \\ as %5C and a blank as %20",
    )
}

/// Nothing of what was given is repeated: where a scheme belongs, a user name, a password or a key may stand.
fn unknown(part: &Part, scheme: &str, text: &str) -> Error {
    if scheme.eq_ignore_ascii_case("secret") {
        return config(
            "`secret:NAME` names a secret and is not a URL; resolve it first and pass what it holds",
        );
    }
    let hint = match nearest(part, scheme) {
        Some(kind) => format!("did you mean `{}`? ", kind.form()),
        None if !text.contains("://") && (text.contains(['/', '.'])) => {
            "a file is written `sqlite:PATH`; ".to_owned()
        }
        None => String::new(),
    };
    config(format!("the {}'s URL has no known scheme; {hint}{}", part.name, known(part)))
}

fn nearest(part: &Part, scheme: &str) -> Option<Kind> {
    /// Below this likeness a guess is more likely wrong than right.
    const ALIKE: f64 = 0.6;
    /// Longer than any scheme with a slip in it.
    const LONGEST: usize = 16;
    if scheme.len() > LONGEST {
        return None;
    }
    // Other libraries say the driver, too: `postgresql+psycopg`.
    let given = scheme.split('+').next().unwrap_or_default().to_ascii_lowercase();
    let kept = |(_, kind): &(&str, Kind)| part.kinds.contains(kind);
    if let Some((_, kind)) = MEANT.into_iter().filter(kept).find(|(name, _)| *name == given) {
        return Some(kind);
    }
    SCHEMES
        .into_iter()
        .filter(kept)
        .map(|(name, kind)| (strsim::normalized_damerau_levenshtein(&given, name), kind))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, kind)| kind)
}

fn known(part: &Part) -> String {
    let forms: Vec<&str> = part.kinds.iter().map(|kind| kind.form()).collect();
    format!("use one of {}", forms.join(", "))
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::super::{LEDGER, MEMORY};
    use super::*;

    fn read(url: &str) -> (Kind, String) {
        let target = StoreUrl::from(url).parse(&MEMORY).unwrap();
        (target.kind, target.place.expose().clone())
    }

    #[test]
    fn a_key_of_qdrant_stands_beside_its_address() {
        let target = StoreUrl::from("qdrant:https://h:6334?api_key=a%2Fb%40%C3%A9").parse(&MEMORY).unwrap();
        assert_eq!(target.place.expose(), "https://h:6334");
        assert_eq!(target.key.as_ref().map(|key| key.expose().as_str()), Some("a/b@é"));
        for odd in ["api_key=", "key=a", "api_key=a&b=c", "api_key=%zz", "api_key=%4", "api_key=%ff", ""] {
            assert!(why(&format!("qdrant:http://h?{odd}")).contains("api_key=KEY"), "{odd}");
        }
        assert!(why("qdrant:http://key@h").contains("api_key=KEY"));
    }

    fn why(url: &str) -> String {
        let error = StoreUrl::from(url).parse(&MEMORY).err().unwrap_or_else(|| panic!("{url} was taken"));
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!error.is_retryable());
        error.to_string()
    }

    #[test]
    fn every_form_is_read() {
        for (url, kind, place) in [
            ("inmemory", Kind::InMemory, ""),
            (" InMemory\n", Kind::InMemory, ""),
            ("sqlite:./a b.db", Kind::Sqlite, "./a b.db"),
            ("sqlite:/var/a.db", Kind::Sqlite, "/var/a.db"),
            ("sqlite:///var/a.db", Kind::Sqlite, "/var/a.db"),
            ("sqlite://a.db", Kind::Sqlite, "a.db"),
            ("postgres://u:p@h/d\n", Kind::Postgres, "postgres://u:p@h/d"),
            ("POSTGRESQL://u:p@@h:1/d?a=b", Kind::Postgres, "postgresql://u:p@@h:1/d?a=b"),
            ("postgres:///d?host=/run/postgresql", Kind::Postgres, "postgres:///d?host=/run/postgresql"),
            ("redis://h", Kind::Redis, "redis://h"),
            ("rediss://:p%40%2F@[::1]:6380/2", Kind::Redis, "rediss://:p%40%2F@[::1]:6380/2"),
            ("qdrant:http://h:6334", Kind::Qdrant, "http://h:6334"),
            ("qdrant:HTTPS://h", Kind::Qdrant, "HTTPS://h"),
        ] {
            assert_eq!(read(url), (kind, place.to_owned()), "{url:?}");
        }
    }

    #[test]
    fn an_unknown_scheme_names_the_nearest_and_all() {
        for (url, nearest) in [
            ("postgre://h/d", "`postgres://"),
            ("postgrse://h/d", "`postgres://"),
            ("pg://h/d", "`postgres://"),
            ("sqlite3:x.db", "`sqlite:PATH`"),
            ("memory", "`inmemory`"),
            ("in-memory", "`inmemory`"),
            ("reddis://h", "`redis://"),
            ("http://h:6334", "`qdrant:http://"),
            ("qdrant+http://h", "`qdrant:http://"),
            ("./bot.db", "`sqlite:PATH`"),
        ] {
            let why = why(url);
            assert!(why.contains(nearest), "{url}: {why}");
            let all = ["inmemory", "sqlite:", "postgres:", "redis:", "qdrant:"];
            assert!(all.iter().all(|scheme| why.contains(scheme)), "{why}");
        }
        for none in ["mongodb://h", "hunter2", "a:b@h"] {
            assert!(!why(none).contains("did you mean"), "{none}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (url, named) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("sqlite:", "the path of a file"),
            ("sqlite://", "the path of a file"),
            ("sqlite", "the path of a file"),
            ("sqlite:a.db?mode=ro", "no parameters"),
            ("sqlite::memory:", "`inmemory`"),
            ("sqlite://:memory:", "`inmemory`"),
            ("postgres", "postgres://USER"),
            ("postgres:h/d", "postgres://USER"),
            ("postgres://", "no host"),
            ("postgres://u:p@/d", "no host"),
            ("postgres://:5432/d", "no host"),
            ("redis://:p@", "no host"),
            ("qdrant:h:6334", "qdrant:http://"),
            ("qdrant://h:6334", "qdrant:http://"),
            ("qdrant:http://", "no host"),
            ("inmemory:x", "nothing after it"),
            ("secret:DB_URL", "resolve it first"),
        ] {
            let why = why(url);
            assert!(why.contains(named), "{url:?}: {why}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for url in [
            "postgres://u:pa/ss@h/d",
            "postgres://u:pa?ss@h/d",
            "postgres://u:pa#ss@h/d",
            "postgres://u:pa\\ss@h/d",
            "redis://:pa ss@h",
            "redis://:pa\tss@h",
            "qdrant:http://h?api_key=a@b",
        ] {
            assert!(why(url).contains("%40"), "{url}");
        }
    }

    #[test]
    fn a_ledger_is_kept_by_fewer_stores() {
        let why = |url: &str| {
            let error = StoreUrl::from(url).parse(&LEDGER).err().unwrap_or_else(|| panic!("{url} was taken"));
            assert_eq!(error.kind(), ErrorKind::Config);
            error.to_string()
        };
        for (url, told) in [
            ("qdrant:http://h:6334", "`qdrant` keeps no ledger"),
            ("http://h:6334", "the ledger's URL has no known scheme; use one of"),
            ("postgre://h/d", "did you mean `postgres://"),
            ("", "the ledger's URL is empty"),
        ] {
            let why = why(url);
            assert!(
                why.contains(told) && why.contains("redis://") && !why.contains("qdrant:"),
                "{url}: {why}"
            );
        }
        assert!(why("sqlite::memory:").contains("a ledger that ends with the process is `inmemory`"));
        for url in ["inmemory", "sqlite:x.db", "postgres://h/d", "rediss://h"] {
            assert!(StoreUrl::from(url).parse(&LEDGER).is_ok(), "{url}");
        }
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", StoreUrl::from("redis://:p@h")), "StoreUrl(..)");
    }
}
