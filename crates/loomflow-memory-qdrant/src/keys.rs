//! The one place where an owner becomes the id of a point and a filter, and where a point says whose it is.

use loomflow_core::Owner;
use qdrant_client::qdrant::{Condition, Filter};
use sha2::{Digest as _, Sha256};

/// The names of a point's fields.
pub(crate) mod field {
    pub(crate) const PARTITION: &str = "partition";
    pub(crate) const KIND: &str = "kind";
    pub(crate) const NAMESPACE: &str = "namespace";
    pub(crate) const USER: &str = "user_id";
    /// What a write expects to find; see `cells`.
    pub(crate) const TOKEN: &str = "token";
    /// The tokens of the last writes of content.
    pub(crate) const WRITES: &str = "writes";
    /// The content; absent while there is none.
    pub(crate) const LIVE: &str = "live";
}

/// What a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The partition's epoch, vector space, and erasure under way.
    Head,
    /// An episode.
    Episode,
    /// A block.
    Block,
    /// All rows of one subject and predicate.
    Track,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Episode => "episode",
            Self::Block => "block",
            Self::Track => "track",
        }
    }
}

/// One tenant's share of the collection.
#[derive(Clone, Debug)]
pub(crate) struct Partition {
    owner: Owner,
    hex: String,
    /// A fault that a test asked for: reads lose their filter.
    lost: bool,
}

impl Partition {
    pub(crate) fn of(owner: &Owner, lost: bool) -> Self {
        Self { owner: owner.clone(), hex: owner.partition_hex(), lost }
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn hex(&self) -> &str {
        &self.hex
    }

    /// The id of the point that holds `name`, as a UUID: a hash of the partition, the kind and the name.
    pub(crate) fn id(&self, kind: Kind, name: &[&[u8]]) -> String {
        let mut hash = Sha256::new();
        for part in [self.hex.as_bytes(), kind.as_str().as_bytes()].iter().chain(name) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        uuid(&hash.finalize())
    }

    /// What a read looks at.
    pub(crate) fn read_filter(&self, kind: Kind) -> Filter {
        let kind = Condition::matches(field::KIND, kind.as_str().to_owned());
        if self.lost { Filter::must([kind]) } else { Filter::must([self.condition(), kind]) }
    }

    /// Every record of the partition, its head apart.
    pub(crate) fn records(&self) -> Filter {
        let head = Condition::matches(field::KIND, Kind::Head.as_str().to_owned());
        Filter { must: vec![self.condition()], must_not: vec![head], ..Filter::default() }
    }

    /// Those of `ids` that still have `token`.
    pub(crate) fn expecting(&self, ids: Vec<String>, token: &str) -> Filter {
        let token = Condition::matches(field::TOKEN, token.to_owned());
        Filter::must([self.condition(), Condition::has_id(ids), token])
    }

    fn condition(&self) -> Condition {
        Condition::matches(field::PARTITION, self.hex.clone())
    }
}

/// The first sixteen bytes of `bytes` in the form of a UUID.
pub(crate) fn uuid(bytes: &[u8]) -> String {
    let hex =
        bytes.iter().take(16).fold(String::with_capacity(32), |text, byte| text + &format!("{byte:02x}"));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use loomflow_core::{Identity, Namespace, UserId};

    use super::*;

    fn partition(user: &str) -> Partition {
        let identity = Identity::User(UserId::new(user).unwrap());
        Partition::of(&Owner::new(Namespace::new("n").unwrap(), identity), false)
    }

    #[test]
    fn ids_differ_by_partition_kind_and_name() {
        let (alice, bob) = (partition("alice"), partition("bob"));
        let all = [
            alice.id(Kind::Block, &[b"ab", b"c"]),
            alice.id(Kind::Block, &[b"a", b"bc"]),
            alice.id(Kind::Track, &[b"ab", b"c"]),
            bob.id(Kind::Block, &[b"ab", b"c"]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert_eq!((a.len(), a.matches('-').count()), (36, 4));
            assert!(all.iter().skip(i + 1).all(|b| a != b));
        }
    }

    #[test]
    fn every_filter_names_the_partition() {
        let alice = partition("alice");
        for filter in
            [alice.read_filter(Kind::Episode), alice.records(), alice.expecting(vec!["x".into()], "t")]
        {
            assert!(filter.must.contains(&alice.condition()), "{filter:?}");
        }
    }
}
