//! Ids drawn by the framework: runs, approvals, holds and steps.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::Timestamp;
use crate::error::{Error, Result};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Writes a `u128` as 26 Crockford base-32 digits, so that text order is numeric order.
pub(crate) struct Base32(pub(crate) u128);

impl Base32 {
    fn digits(&self) -> [u8; 26] {
        let mut text = [0_u8; 26];
        let mut rest = self.0;
        for slot in text.iter_mut().rev() {
            *slot = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        text
    }
}

impl fmt::Display for Base32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).expect("the alphabet is ASCII"))
    }
}

fn parse(prefix: &str, text: &str) -> Result<u128> {
    let bad =
        || Error::invalid_input(format!("{text:?} is not an id of the form {prefix}<26 base-32 digits>"));
    let digits = text.strip_prefix(prefix).ok_or_else(bad)?;
    if digits.len() != 26 || digits.as_bytes()[0] > b'7' {
        return Err(bad());
    }
    digits.bytes().try_fold(0_u128, |n, b| {
        let digit = ALPHABET.iter().position(|a| *a == b).ok_or_else(bad)?;
        Ok((n << 5) | digit as u128)
    })
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u128);

        impl $name {
            /// The id as a number, for a store's key.
            #[must_use]
            pub fn as_u128(self) -> u128 {
                self.0
            }

            /// The id with this number: what a store read back.
            #[must_use]
            pub fn from_u128(n: u128) -> Self {
                Self(n)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), Base32(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                parse($prefix, s).map(Self)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

random_id! {
    /// One `Agent::run`. The high 48 bits are milliseconds since the Unix epoch, so ids sort by age; the low 80
    /// are random.
    RunId, "run_"
}
random_id! {
    /// A request for approval: 128 random bits, so it cannot be guessed.
    ApprovalId, "appr_"
}
random_id! {
    /// An approval that is remembered. Its number is that of the request it was given on.
    GrantId, "grant_"
}
random_id! {
    /// What a ledger keeps aside, named by the ledger that keeps it.
    HoldId, "hold_"
}
random_id! {
    /// A remembered turn. Derived from its run, so that remembering the same run twice stores it once.
    EpisodeId, "ep_"
}
random_id! {
    /// A fact.
    FactId, "fact_"
}

impl RunId {
    /// Appends the id's text, without going through a formatter.
    pub(crate) fn push_to(self, out: &mut String) {
        out.push_str("run_");
        out.push_str(std::str::from_utf8(&Base32(self.0).digits()).expect("the alphabet is ASCII"));
    }

    pub(crate) fn fresh(now: Timestamp) -> Self {
        let millis = u128::from(now.as_micros().unsigned_abs() / 1_000) & ((1 << 48) - 1);
        Self((millis << 80) | (rand::random::<u128>() >> 48))
    }
}

impl ApprovalId {
    pub(crate) fn fresh() -> Self {
        Self(rand::random())
    }
}

impl FactId {
    /// A new random id, for a store that is asked to keep a new fact.
    #[must_use]
    pub fn fresh() -> Self {
        Self(rand::random())
    }
}

impl HoldId {
    /// A new random id, for a ledger that grants a hold.
    #[must_use]
    pub fn fresh() -> Self {
        Self(rand::random())
    }
}

impl From<ApprovalId> for GrantId {
    fn from(approval: ApprovalId) -> Self {
        Self(approval.0)
    }
}

impl From<RunId> for EpisodeId {
    fn from(run: RunId) -> Self {
        Self(run.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_sorts_like_numbers() {
        let a = RunId::from_u128(31);
        let b = RunId::from_u128(u128::MAX);
        assert!(a.to_string() < b.to_string());
        for id in [a, b, RunId::from_u128(0), RunId::fresh(Timestamp::from_micros(1_700_000_000_000_000))] {
            assert_eq!(id.to_string().parse::<RunId>().unwrap(), id);
        }
        for bad in [
            "",
            "run_",
            "run_zzzzzzzzzzzzzzzzzzzzzzzzzz",
            "appr_00000000000000000000000000",
            "run_0000000000000000000000000u",
        ] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
    }
}
