//! Finds registered secrets exactly, also in the encodings they travel in.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use loomflow_core::Secret;
use sha2::{Digest as _, Sha256};

/// A shorter secret would take innocent text apart.
const MIN_SECRET: usize = 8;
/// A longer one is found by its beginning.
const MAX_SECRET: usize = 4_096;
/// How many new secrets are kept in a small automaton before the large one is built anew.
const RECENT: usize = 64;
/// A secret has at most this many forms: raw, JSON, two percent-encoded, six within base64.
const MAX_FORMS: usize = 10;

/// The registered secrets, oldest first, in two automatons: a large one that is built seldom, and a small one for those
/// that came since, so that registering n secrets does not cost n builds of everything.
pub(crate) struct Exact {
    max: usize,
    known: HashSet<[u8; 32]>,
    settled: Tier,
    recent: Tier,
    gate: Gate,
}

#[derive(Default)]
struct Tier {
    secrets: VecDeque<Arc<Secret<String>>>,
    automaton: Option<AhoCorasick>,
}

/// A Bloom filter over the first eight bytes of every form, so that clean text costs the same however many secrets
/// there are: about one multiplication a byte.
struct Gate {
    bits: Vec<u64>,
    shift: u32,
}

impl Gate {
    /// A filter with room for `forms` more than there are.
    fn with_room(forms: usize) -> Self {
        let words = forms.max(64).next_power_of_two();
        Self { bits: vec![0; words], shift: 64 - (words * 64).trailing_zeros() }
    }

    fn add(&mut self, form: &str) {
        if let Some(first) = form.as_bytes().first_chunk() {
            for at in self.places(*first) {
                self.bits[at / 64] |= 1 << (at % 64);
            }
        }
    }

    #[inline]
    fn places(&self, window: [u8; MIN_SECRET]) -> [usize; 2] {
        let window = u64::from_le_bytes(window);
        // Two odd constants; the high bits of a product depend on every byte.
        [0x9e37_79b9_7f4a_7c15_u64, 0xc2b2_ae3d_27d4_eb4f]
            .map(|odd| (window.wrapping_mul(odd) >> self.shift) as usize)
    }

    fn may_hold(&self, text: &str) -> bool {
        text.as_bytes().windows(MIN_SECRET).any(|window| {
            let window = window.try_into().expect("a window is eight bytes");
            self.places(window).iter().all(|at| self.bits[at / 64] >> (at % 64) & 1 == 1)
        })
    }
}

impl std::fmt::Debug for Exact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secrets", self.known.len())
    }
}

impl Tier {
    fn rebuild(&mut self) {
        let forms: Vec<String> = self.secrets.iter().flat_map(|s| forms(s.expose())).collect();
        // Only a set of patterns beyond every limit of the automaton fails; the old one then goes on.
        if let Ok(built) = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(forms) {
            self.automaton = Some(built);
        }
    }
}

impl Exact {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            known: HashSet::new(),
            settled: Tier::default(),
            recent: Tier::default(),
            gate: Gate::with_room(RECENT * MAX_FORMS),
        }
    }

    /// Whether the secret is found from now on; `false` when it is too short, or known already.
    pub(crate) fn register(&mut self, secret: &Arc<Secret<String>>) -> bool {
        let value = secret.expose();
        if value.len() < MIN_SECRET || !self.known.insert(fingerprint(value)) {
            return false;
        }
        self.recent.secrets.push_back(secret.clone());
        if self.recent.secrets.len() > RECENT || self.known.len() > self.max {
            self.settle();
        } else {
            forms(value).iter().for_each(|form| self.gate.add(form));
            self.recent.rebuild();
        }
        true
    }

    pub(crate) fn knows(&self, secret: &str) -> bool {
        self.known.contains(&fingerprint(secret))
    }

    /// Moves the new secrets to the old ones, and forgets the oldest beyond the bound.
    fn settle(&mut self) {
        self.settled.secrets.append(&mut self.recent.secrets);
        self.recent = Tier::default();
        // Some room is made at once, so that a full table is not rebuilt for every further secret.
        let room = RECENT.min(self.max / 2);
        if self.settled.secrets.len() > self.max {
            while self.settled.secrets.len() > self.max - room {
                let Some(gone) = self.settled.secrets.pop_front() else { break };
                self.known.remove(&fingerprint(gone.expose()));
            }
        }
        self.settled.rebuild();
        self.gate = Gate::with_room((self.settled.secrets.len() + RECENT) * MAX_FORMS);
        for secret in &self.settled.secrets {
            forms(secret.expose()).iter().for_each(|form| self.gate.add(form));
        }
    }

    /// The text without registered secrets, if there were any.
    pub(crate) fn scrub(&self, text: &str, with: &str) -> Option<String> {
        if !self.gate.may_hold(text) {
            return None;
        }
        let mut out = None;
        for tier in [&self.settled, &self.recent] {
            let text = out.as_deref().unwrap_or(text);
            let Some(automaton) = tier.automaton.as_ref() else {
                continue;
            };
            if automaton.is_match(text) {
                let mut clean = String::with_capacity(text.len());
                automaton.replace_all_with(text, &mut clean, |_, _, clean| {
                    clean.push_str(with);
                    true
                });
                out = Some(clean);
            }
        }
        out
    }
}

fn fingerprint(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// What a secret looks like on its way, piece by piece: a long one is found as several even pieces that follow each other, so
/// that no tail of it stays.
fn forms(secret: &str) -> Vec<String> {
    let mut forms: Vec<String> = pieces(secret).flat_map(forms_of).collect();
    forms.sort_unstable();
    forms.dedup();
    forms.retain(|form| form.len() >= MIN_SECRET);
    forms
}

/// Even pieces of at most about `MAX_SECRET` bytes, cut between characters.
fn pieces(secret: &str) -> impl Iterator<Item = &str> {
    let count = secret.len().div_ceil(MAX_SECRET).max(1);
    let border = move |n: usize| {
        let at = secret.len() * n / count;
        (at..=secret.len()).find(|at| secret.is_char_boundary(*at)).unwrap_or(secret.len())
    };
    (0..count).map(move |n| &secret[border(n)..border(n + 1)])
}

/// One piece: raw, as a JSON string, percent-encoded, and within base64 at every alignment.
fn forms_of(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned()];
    if let Ok(quoted) = serde_json::to_string(secret) {
        forms.push(quoted[1..quoted.len() - 1].to_owned());
    }
    forms.push(percent(secret, b"0123456789ABCDEF"));
    forms.push(percent(secret, b"0123456789abcdef"));
    for offset in 0..3 {
        let core = base64_core(secret.as_bytes(), offset);
        forms.push(core.replace('+', "-").replace('/', "_"));
        forms.push(core);
    }
    forms
}

fn percent(text: &str, digits: &[u8; 16]) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(b));
        } else {
            out.extend([
                '%',
                char::from(digits[usize::from(b >> 4)]),
                char::from(digits[usize::from(b & 15)]),
            ]);
        }
    }
    out
}

/// The base64 digits that depend on `bytes` alone when `offset` other bytes stand before them, and any after.
fn base64_core(bytes: &[u8], offset: usize) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let first = (offset * 8).div_ceil(6);
    let last = (offset + bytes.len()) * 8 / 6;
    (first..last)
        .map(|digit| {
            (0..6).fold(0_usize, |n, bit| {
                let at = digit * 6 + bit - offset * 8;
                n << 1 | usize::from(bytes[at / 8] >> (7 - at % 8) & 1)
            })
        })
        .map(|n| char::from(DIGITS[n]))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Base64 as everybody knows it, three bytes at a time.
    fn base64(bytes: &[u8]) -> String {
        let digits: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
        let mut out = String::new();
        for three in bytes.chunks(3) {
            let n = three.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - three.len()));
            for i in 0..=three.len() {
                out.push(digits[(n >> (18 - 6 * i)) as usize & 63]);
            }
            out.extend(std::iter::repeat_n('=', 3 - three.len()));
        }
        out
    }

    fn secret(text: &str) -> Arc<Secret<String>> {
        Arc::new(Secret::new(text.to_owned()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_secret_is_found_in_base64_wherever_it_stands(key in "[!-~]{8,40}", before in "[a-z:]{0,5}", after in "[a-z]{0,5}") {
            let mut exact = Exact::new(10);
            prop_assert!(exact.register(&secret(&key)));
            let encoded = base64(format!("{before}{key}{after}").as_bytes());
            for text in [encoded.clone(), encoded.replace('+', "-").replace('/', "_"), format!("{before}{key}{after}")] {
                prop_assert!(exact.scrub(&text, "*").is_some(), "{}", text);
            }
        }
    }

    #[test]
    fn every_encoding_is_found() {
        let mut exact = Exact::new(10);
        exact.register(&secret("p\"w/d &+é1"));
        for text in [
            "x p\"w/d &+é1 y",
            r#"{"k":"p\"w/d &+é1"}"#,
            "a=p%22w%2Fd%20%26%2B%C3%A91",
            "a=p%22w%2fd%20%26%2b%c3%a91",
        ] {
            let clean = exact.scrub(text, "*").unwrap();
            assert!(clean.contains('*') && !clean.contains("&+") && !clean.contains("26%2"), "{clean}");
        }
        assert!(exact.scrub("p\"w/d &+é2", "*").is_none());
        assert!(!exact.register(&secret("short")) && !exact.register(&secret("p\"w/d &+é1")));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_newest() {
        let mut exact = Exact::new(100);
        for n in 0..1_000 {
            exact.register(&secret(&format!("secret-number-{n:04}")));
            assert!(exact.known.len() <= 100);
            assert!(exact.scrub(&format!("secret-number-{n:04}"), "*").is_some(), "{n}");
            assert_eq!(exact.known.len(), exact.settled.secrets.len() + exact.recent.secrets.len());
        }
        assert!(exact.scrub("secret-number-0000", "*").is_none());
        assert!(exact.scrub("secret-number-0970", "*").is_some());
    }
}
