//! Canaries: random texts of a recognisable shape that each tenant plants, and the search for them.
//!
//! One pass over some bytes finds every canary in them, whoever's it is: the shape is looked for, and a table says whose
//! the text is. A text of the shape that nobody minted is reported as well: somebody's data was cut or altered.

use std::sync::atomic::{AtomicU8, Ordering};

use aho_corasick::AhoCorasick;
use hashbrown::HashMap;

use crate::draw::Draw;

const PREFIX: &str = "cnry_";
const RANDOM: usize = 26;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

const PLANTED: u8 = 1;
const SEEN_BY_OWNER: u8 = 2;
const SEEN_BY_OTHERS: u8 = 4;
const ERASED: u8 = 8;

/// Every tenant's canaries, minted before the load and planted by it.
#[derive(Debug)]
pub struct Canaries {
    per_tenant: usize,
    texts: Vec<[u8; RANDOM]>,
    marks: Box<[AtomicU8]>,
    known: HashMap<[u8; RANDOM], usize>,
    finder: AhoCorasick,
}

/// What was found in some bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Canaries of the tenant who received the bytes.
    pub own: u64,
    /// Of these, canaries of data that was erased before.
    pub erased: u64,
    /// Canaries of anybody else, and texts of the shape that nobody minted.
    pub foreign: u64,
}

impl Canaries {
    /// `per_tenant` canaries of 130 random bits for each of `tenants`.
    #[must_use]
    pub fn mint(tenants: usize, per_tenant: usize, seed: u64) -> Self {
        let total = tenants * per_tenant;
        let mut texts = Vec::with_capacity(total);
        let mut known = HashMap::with_capacity(total);
        for n in 0..total {
            let mut draw = Draw::at(seed, [0xca9a_5100, n as u64]);
            let text: [u8; RANDOM] = std::array::from_fn(|_| ALPHABET[draw.below(32) as usize]);
            known.insert(text, n);
            texts.push(text);
        }
        let marks = (0..total).map(|_| AtomicU8::new(0)).collect();
        let finder = AhoCorasick::new([PREFIX]).expect("one short pattern is always accepted");
        Self { per_tenant, texts, marks, known, finder }
    }

    /// Takes the canary number `n` of `tenant` to plant it.
    #[must_use]
    pub fn plant(&self, tenant: usize, n: usize) -> String {
        let at = tenant * self.per_tenant + n % self.per_tenant;
        self.marks[at].fetch_or(PLANTED, Ordering::Relaxed);
        let mut text = String::with_capacity(PREFIX.len() + RANDOM);
        text.push_str(PREFIX);
        text.extend(self.texts[at].iter().map(|b| char::from(*b)));
        text
    }

    /// What `tenant` planted so far was erased: it must not come back.
    pub fn erase(&self, tenant: usize) {
        for mark in &self.marks[tenant * self.per_tenant..][..self.per_tenant] {
            if mark.load(Ordering::Relaxed) & PLANTED != 0 {
                mark.fetch_or(ERASED, Ordering::Relaxed);
            }
        }
    }

    /// Searches what `tenant` received.
    pub fn search(&self, tenant: usize, bytes: &[u8]) -> Found {
        let mut found = Found::default();
        for hit in self.finder.find_iter(bytes) {
            let text =
                bytes.get(hit.end()..hit.end() + RANDOM).and_then(|t| <[u8; RANDOM]>::try_from(t).ok());
            let Some(at) = text.and_then(|text| self.known.get(&text).copied()) else {
                found.foreign += 1;
                continue;
            };
            if at / self.per_tenant != tenant {
                self.marks[at].fetch_or(SEEN_BY_OTHERS, Ordering::Relaxed);
                found.foreign += 1;
                continue;
            }
            let before = self.marks[at].fetch_or(SEEN_BY_OWNER, Ordering::Relaxed);
            found.own += 1;
            found.erased += u64::from(before & ERASED != 0);
        }
        found
    }

    /// The first canary in a text.
    #[must_use]
    pub fn first_in<'t>(&self, text: &'t str) -> Option<&'t str> {
        let hit = self.finder.find(text)?;
        text.get(hit.start()..hit.end() + RANDOM)
    }

    /// How many were planted, seen by their owner, and seen by others.
    #[must_use]
    pub fn counts(&self) -> [u64; 3] {
        [PLANTED, SEEN_BY_OWNER, SEEN_BY_OTHERS].map(|bit| {
            self.marks.iter().filter(|mark| mark.load(Ordering::Relaxed) & bit != 0).count() as u64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_tells_own_from_foreign_from_erased() {
        let canaries = Canaries::mint(3, 2, 9);
        let (mine, other) = (canaries.plant(1, 0), canaries.plant(2, 1));
        let text = format!("{{\"a\":\"{mine}\",\"b\":\"x{other}y {mine}\"}}");
        assert_eq!(canaries.search(1, text.as_bytes()), Found { own: 2, erased: 0, foreign: 1 });
        assert_eq!(canaries.search(0, text.as_bytes()), Found { own: 0, erased: 0, foreign: 3 });
        assert_eq!(canaries.counts(), [2, 1, 2]);
        canaries.erase(1);
        assert_eq!(canaries.search(1, mine.as_bytes()).erased, 1);
        let later = canaries.plant(1, 1);
        assert_eq!(canaries.search(1, later.as_bytes()), Found { own: 1, erased: 0, foreign: 0 });
        assert_eq!(canaries.first_in(&text), Some(&*mine));
    }

    #[test]
    fn a_cut_or_altered_canary_is_foreign() {
        let canaries = Canaries::mint(1, 1, 9);
        let text = canaries.plant(0, 0);
        assert_eq!(canaries.search(0, &text.as_bytes()[..20]).foreign, 1);
        assert_eq!(canaries.search(0, text.to_uppercase().as_bytes()), Found::default());
        assert_eq!(canaries.search(0, text.replace(&text[30..], "0").as_bytes()).foreign, 1);
        assert_eq!(canaries.search(0, b"nothing here"), Found::default());
    }
}
