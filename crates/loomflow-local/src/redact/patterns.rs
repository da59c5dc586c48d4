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

/// Every quantifier is bounded from below, so that a prefix alone, as prose has it, is left alone.
const SHAPES: &[Shape] = &[
    all(
        &["-----BEGIN"],
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)",
    ),
    all(&["eyJ"], r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    all(&["sk-"], r"\bsk-[A-Za-z0-9_-]{16,}"),
    all(&["sk_live", "sk_test", "rk_live", "rk_test"], r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    all(&["whsec_"], r"\bwhsec_[A-Za-z0-9+/=]{16,}"),
    all(&["AKIA", "ASIA"], r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    all(&["ghp_", "gho_", "ghu_", "ghs_", "ghr_"], r"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    all(&["github_pat_"], r"\bgithub_pat_[A-Za-z0-9_]{22,}"),
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
    all(&["SK"], r"\bSK[0-9a-f]{32}\b"),
    all(&["dop_v1_", "doo_v1_", "dor_v1_"], r"\bdo[opr]_v1_[0-9a-f]{64}"),
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
    all(&["sntrys_", "sntryu_"], r"\bsntry[su]_[A-Za-z0-9+/=_-]{32,}"),
    all(&["dckr_pat_"], r"\bdckr_pat_[A-Za-z0-9_-]{20,}"),
    all(&["figd_"], r"\bfigd_[A-Za-z0-9_-]{30,}"),
    all(&["ATATT3"], r"\bATATT3[A-Za-z0-9_=-]{40,}"),
    all(&["lfk_"], r"\blfk_[A-Za-z0-9_-]{16,}"),
    after(&["earer ", "EARER "], r"\b((?i:bearer)\s+)[A-Za-z0-9._~+/=-]{16,}"),
    after(&["asic "], r"\b((?i:authorization)[\x22']?\s*[:=]\s*[\x22']?(?i:basic)\s+)[A-Za-z0-9+/=_-]{8,}"),
    after(&["://"], r"(://[^\s/:@\x22']{0,128}:)[^\s/@\x22']{1,256}@"),
    after(
        &[
            "ass",
            "PASS",
            "wd",
            "PWD",
            "key",
            "KEY",
            "Key",
            "oken",
            "TOKEN",
            "ecret",
            "SECRET",
            "redential",
            "CREDENTIAL",
        ],
        r#"((?i:password|passwd|passphrase|pwd|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|account[_-]?key|token|secret|credentials?)\\?["']?\s{0,4}[=:]\s{0,4}\\?["']?)[^\s"'\\&,;(){}\[\]<>]{8,}"#,
    ),
];

/// The shapes, compiled: a gate that clean text passes at the speed of a few vector instructions, then the shapes whose
/// literal the text has.
pub(crate) struct Patterns {
    gate: Gate,
    literals: AhoCorasick,
    /// The shape each literal belongs to.
    shape_of: Vec<usize>,
    shapes: Vec<(Regex, Takes)>,
}

enum Gate {
    Packed(packed::Searcher),
    Plain,
}

impl std::fmt::Debug for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} patterns", self.shapes.len())
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
        let gate =
            packed::Config::new().builder().extend(&literals).build().map_or(Gate::Plain, Gate::Packed);
        let shapes = SHAPES
            .iter()
            .map(|shape| (Regex::new(shape.regex).expect("the shapes are checked by a test"), shape.takes))
            .collect();
        let literals = AhoCorasick::new(&literals).expect("a hundred short literals fit");
        Self { gate, literals, shape_of, shapes }
    }

    /// The text without anything that has a known shape, if there was any.
    pub(crate) fn scrub(&self, text: &str, with: &str) -> Option<String> {
        match &self.gate {
            Gate::Packed(gate) if gate.find(text).is_none() => return None,
            _ => {}
        }
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
