//! The shapes that well-known secrets have.

use aho_corasick::{AhoCorasick, packed};
use regex::Regex;

/// Which part of a match is the secret.
#[derive(Clone, Copy, Debug)]
enum Takes {
    /// All of it.
    All,
    /// What follows group 1, which is kept: a scheme, or a name.
    After,
}

/// One shape: literals, one of which every match contains, and the expression.
struct Shape {
    literals: &'static [&'static str],
    takes: Takes,
    regex: &'static str,
}

const fn all(literals: &'static [&'static str], regex: &'static str) -> Shape {
    Shape { literals, takes: Takes::All, regex }
}

const fn after(literals: &'static [&'static str], regex: &'static str) -> Shape {
    Shape { literals, takes: Takes::After, regex }
}

/// The one literal of two bytes: too short for the vector search, and looked for by itself.
const PAIR: &str = "SK";

/// Every quantifier is bounded from below, so that a prefix alone, as prose has it, is left alone.
const SHAPES: &[Shape] = &[
    all(
        &["-----BEGIN"],
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
    ),
    all(&["eyJ"], r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    all(&["sk-"], r"\bsk-[A-Za-z0-9_-]{16,}"),
    all(&["k_live_", "k_test_"], r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    all(&["whsec_"], r"\bwhsec_[A-Za-z0-9+/=]{16,}"),
    all(&["AKIA", "ASIA"], r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    all(&["ghp_", "gho_", "ghu_", "ghs_", "ghr_"], r"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    all(&["_pat_"], r"\bgithub_pat_[A-Za-z0-9_]{22,}"),
    all(&["glpat-", "glptt-", "gldt-", "glrt-"], r"\bgl(?:pat|ptt|dt|rt)-[A-Za-z0-9_-]{20,}"),
    all(&["xox"], r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    all(&["xapp-"], r"\bxapp-[0-9]-[A-Za-z0-9-]{10,}"),
    all(&["hooks.slack.com/"], r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}"),
    all(&["discord"], r"discord(?:app)?\.com/api/webhooks/[0-9]{15,}/[A-Za-z0-9_-]{30,}"),
    all(&["AIza"], r"\bAIza[A-Za-z0-9_-]{35}"),
    all(&["GOCSPX-"], r"\bGOCSPX-[A-Za-z0-9_-]{20,}"),
    all(&["ya29."], r"\bya29\.[A-Za-z0-9_-]{20,}"),
    all(&["npm_"], r"\bnpm_[A-Za-z0-9]{36}"),
    all(&["pypi-"], r"\bpypi-[A-Za-z0-9_-]{32,}"),
    all(&["hf_"], r"\bhf_[A-Za-z0-9]{30,}"),
    all(&["SG."], r"\bSG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),
    all(&[PAIR], r"\bSK[0-9a-f]{32}\b"),
    all(&["_v1_"], r"\bdo[opr]_v1_[0-9a-f]{64}"),
    all(&["shpat_", "shpca_", "shppa_", "shpss_"], r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    all(&["sq0"], r"\bsq0(?:atp|csp)-[A-Za-z0-9_-]{22,}"),
    all(&["key-"], r"\bkey-[0-9a-f]{32}\b"),
    all(&["lin_api_"], r"\blin_api_[A-Za-z0-9]{32,}"),
    all(&["secret_", "ntn_"], r"\b(?:secret|ntn)_[A-Za-z0-9]{40,}"),
    all(&["gsk_"], r"\bgsk_[A-Za-z0-9]{32,}"),
    all(&["r8_"], r"\br8_[A-Za-z0-9]{30,}"),
    all(&["pplx-"], r"\bpplx-[A-Za-z0-9]{32,}"),
    all(&["xai-"], r"\bxai-[A-Za-z0-9]{40,}"),
    all(&["hvs.", "hvb.", "hvr."], r"\bhv[sbr]\.[A-Za-z0-9_-]{20,}"),
    all(&["dp.pt."], r"\bdp\.pt\.[A-Za-z0-9]{32,}"),
    all(&["AGE-SECRET"], r"\bAGE-SECRET-KEY-1[A-Z0-9]{40,}"),
    all(&["PMAK-"], r"\bPMAK-[0-9a-f]{20,}-[0-9a-f]{20,}"),
    all(&["NRAK-"], r"\bNRAK-[A-Z0-9]{20,}"),
    all(&["sntry"], r"\bsntry[su]_[A-Za-z0-9+/=_-]{32,}"),
    all(&["_pat_"], r"\bdckr_pat_[A-Za-z0-9_-]{20,}"),
    all(&["figd_"], r"\bfigd_[A-Za-z0-9_-]{30,}"),
    all(&["ATATT3"], r"\bATATT3[A-Za-z0-9_=-]{40,}"),
    all(&["lfk_"], r"\blfk_[A-Za-z0-9_-]{16,}"),
    after(&["earer ", "EARER "], r"\b((?i:bearer)\s+)[A-Za-z0-9._~+/=-]{16,}"),
    after(&["asic "], r"\b((?i:authorization)[\x22']?\s*[:=]\s*[\x22']?(?i:basic)\s+)[A-Za-z0-9+/=_-]{8,}"),
    after(&["://"], r"(://[^\s/:@\x22']{0,128}:)[^\s/@\x22']{1,256}@"),
];

/// A name that says its value is secret, and the value. Found by its sign, not by a literal: every spelling has one.
const ASSIGNED: &str = r#"((?i:password|passwd|passphrase|pwd|key|token|secret|credentials?)\\?["']?\s{0,4}[=:]\s{0,4}\\?["']?)[^\s"'\\&,;(){}\[\]<>]{8,}"#;
/// What the names in [`ASSIGNED`] end in, and what must stand before `key`.
const SECRET_NAMES: &[&str] =
    &["password", "passwd", "passphrase", "pwd", "token", "secret", "credential", "credentials"];
const KEYS: &[&str] = &["api", "access", "secret", "private", "account", "auth", "encryption", "signing"];

/// The shapes, compiled: a gate that clean text passes at the speed of a few vector instructions, then the shapes whose
/// literal the text has.
pub(crate) struct Patterns {
    gates: Vec<packed::Searcher>,
    /// Whether the gates hold every literal; otherwise they let everything through.
    gated: bool,
    literals: AhoCorasick,
    /// The shape each literal belongs to.
    shape_of: Vec<usize>,
    shapes: Vec<(Regex, Takes)>,
    assigned: Regex,
}

impl std::fmt::Debug for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} patterns behind {} gates", self.shapes.len() + 1, self.gates.len())
    }
}

impl Patterns {
    pub(crate) fn new() -> Self {
        let mut shape_of = Vec::new();
        let mut literals: Vec<&str> = Vec::new();
        for (n, shape) in SHAPES.iter().enumerate() {
            literals.extend(shape.literals);
            shape_of.extend(shape.literals.iter().map(|_| n));
        }
        // The vector search takes at most 64 literals of three bytes or more, and looks at four bytes of each where all
        // have four: apart, the few short ones do not blunt it for the rest.
        let mut gate_on: Vec<&str> = literals.iter().copied().filter(|literal| *literal != PAIR).collect();
        gate_on.sort_unstable();
        gate_on.dedup();
        let (short, long): (Vec<&str>, Vec<&str>) =
            gate_on.into_iter().partition(|literal| literal.len() < 4);
        let built: Option<Vec<_>> = short
            .chunks(64)
            .chain(long.chunks(64))
            .map(|some| packed::Config::new().builder().extend(some).build())
            .collect();
        let compiled = |regex| Regex::new(regex).expect("the shapes are checked by a test");
        Self {
            gated: built.is_some(),
            gates: built.unwrap_or_default(),
            literals: AhoCorasick::new(&literals).expect("a hundred short literals fit"),
            shape_of,
            shapes: SHAPES.iter().map(|shape| (compiled(shape.regex), shape.takes)).collect(),
            assigned: compiled(ASSIGNED),
        }
    }

    /// The text without anything that has a known shape, if there was any.
    pub(crate) fn scrub(&self, text: &str, with: &str) -> Option<String> {
        let mut out: Option<String> = None;
        if !self.gated || has_pair(text) || self.gates.iter().any(|gate| gate.find(text).is_some()) {
            out = self.scrub_shapes(text, with);
        }
        let current = out.as_deref().unwrap_or(text);
        if has_assignment(current) && self.assigned.is_match(current) {
            out = Some(replace_assigned(&self.assigned, current, with));
        }
        out.filter(|clean| clean != text)
    }

    fn scrub_shapes(&self, text: &str, with: &str) -> Option<String> {
        let mut present = 0_u64;
        for hit in self.literals.find_overlapping_iter(text) {
            present |= 1 << self.shape_of[hit.pattern().as_usize()];
        }
        let mut out: Option<String> = None;
        while present != 0 {
            let (regex, takes) = &self.shapes[present.trailing_zeros() as usize];
            present &= present - 1;
            let current = out.as_deref().unwrap_or(text);
            if regex.is_match(current) {
                out = Some(replace(regex, *takes, current, with));
            }
        }
        out
    }
}

/// Whether the text has [`PAIR`]; without an early end this, too, is a few vector instructions.
fn has_pair(text: &str) -> bool {
    let bytes = text.as_bytes();
    let next = bytes.get(1..).unwrap_or_default();
    bytes.iter().zip(next).fold(false, |any, (a, b)| any | ((*a == b'S') & (*b == b'K')))
}

/// Whether the text gives a value to something whose name says that it is secret.
fn has_assignment(text: &str) -> bool {
    let bytes = text.as_bytes();
    // Without an early end this is a few vector instructions, and most text has no sign at all.
    if !bytes.iter().fold(false, |any, b| any | matches!(b, b'=' | b':')) {
        return false;
    }
    bytes.iter().enumerate().any(|(at, b)| matches!(b, b'=' | b':') && is_secret_name(&bytes[..at]))
}

/// Whether what stands before a sign ends in a name of that kind, quotes and blanks in between aside.
fn is_secret_name(before: &[u8]) -> bool {
    let ignored = |b: &u8| matches!(b, b'"' | b'\'' | b'\\') || b.is_ascii_whitespace();
    let end = before.iter().rev().take(8).take_while(|b| ignored(b)).count();
    let name = &before[..before.len() - end];
    if ends_in(name, SECRET_NAMES) {
        return true;
    }
    if !ends_in(name, &["key"]) {
        return false;
    }
    let owner = &name[..name.len() - 3];
    let owner = owner.strip_suffix(b"_").or(owner.strip_suffix(b"-")).unwrap_or(owner);
    ends_in(owner, KEYS)
}

/// The names, without separators, whose whole value is a secret; a name may begin with anything else.
const SECRET_MEMBERS: &[&str] = &[
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "pwd",
    "token",
    "secret",
    "secrets",
    "credential",
    "credentials",
    "authorization",
    "apikey",
    "accesskey",
    "accesskeyid",
    "secretkey",
    "privatekey",
    "accountkey",
    "authkey",
    "encryptionkey",
    "signingkey",
];

/// Whether a member of this name holds a secret. `tokens`, the plural, is a count, and is not among them.
pub(crate) fn names_a_secret(name: &str) -> bool {
    let letters = || {
        name.bytes()
            .rev()
            .filter(|b| b.is_ascii_alphanumeric() || !b.is_ascii())
            .map(|b| b.to_ascii_lowercase())
    };
    SECRET_MEMBERS.iter().any(|word| {
        let mut letters = letters();
        word.bytes().rev().all(|wanted| letters.next() == Some(wanted))
    })
}

fn ends_in(text: &[u8], words: &[&str]) -> bool {
    words.iter().any(|word| {
        text.len() >= word.len() && text[text.len() - word.len()..].eq_ignore_ascii_case(word.as_bytes())
    })
}

/// Replaces the values, leaving alone those whose name only ends in `key` by chance, and those replaced already.
fn replace_assigned(regex: &Regex, text: &str, with: &str) -> String {
    regex
        .replace_all(text, |found: &regex::Captures<'_>| {
            let sign = found[1].find(['=', ':']).unwrap_or(0);
            let start = found.get(1).map_or(0, |name| name.start());
            if is_secret_name(&text.as_bytes()[..start + sign]) {
                format!("{}{with}", &found[1])
            } else {
                found[0].to_owned()
            }
        })
        .into_owned()
}

fn replace(regex: &Regex, takes: Takes, text: &str, with: &str) -> String {
    regex
        .replace_all(text, |found: &regex::Captures<'_>| match takes {
            Takes::All => with.to_owned(),
            Takes::After => {
                // The `@` of a URL stays, so that the host behind it can be read.
                let end = if found[0].ends_with('@') { "@" } else { "" };
                format!("{}{with}{end}", &found[1])
            }
        })
        .into_owned()
}

const _: () = assert!(SHAPES.len() <= 64, "the set of present shapes is a u64");
