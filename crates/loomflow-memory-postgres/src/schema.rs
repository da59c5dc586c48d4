//! The one place where a scope becomes a row's key and a filter.

use loomflow_core::rules::Space;
use loomflow_core::{Embedding, Owner, Scope, UserId};
use loomflow_support_sql::Migration;
use loomflow_support_sql::postgres::{Component, Table};

/// The memory's part of the schema.
pub(crate) const MEMORY: Component =
    Component::new("memory", &MIGRATIONS, &TABLES).with_extensions(&["vector"]);

const MIGRATIONS: [Migration; 1] = [Migration::new(
    1,
    "partitions, episodes, blocks and facts",
    include_str!("../migrations/0001_memory.sql"),
)];

const TABLES: [Table; 4] = [
    Table::new("memory_partitions", "SELECT, INSERT, UPDATE"),
    Table::new("memory_episodes", "SELECT, INSERT, DELETE"),
    Table::new("memory_blocks", "SELECT, INSERT, UPDATE, DELETE"),
    Table::new("memory_facts", "SELECT, INSERT, UPDATE, DELETE"),
];

/// The columns that say whose a row is.
#[derive(Clone, Debug)]
pub(crate) struct Key<'s> {
    /// The partition, by which rows are found: always the parameter `$1`.
    pub(crate) partition: [u8; 32],
    /// The owner, as it is written beside a row.
    pub(crate) namespace: &'s str,
    pub(crate) user_id: Option<&'s str>,
    /// The scope's epoch.
    pub(crate) epoch: i64,
}

impl<'s> Key<'s> {
    pub(crate) fn of(scope: &'s Scope) -> Self {
        let owner: &Owner = scope.owner();
        Self {
            partition: owner.partition(),
            namespace: owner.namespace().as_str(),
            user_id: owner.user_id().map(UserId::as_str),
            // An epoch counts erasures and stays far below the largest number.
            epoch: i64::try_from(scope.epoch().get()).unwrap_or(i64::MAX),
        }
    }
}

/// The columns of a vector.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VectorColumns<'e> {
    pub(crate) components: Option<&'e [f32]>,
    /// The model's name in UTF-8.
    pub(crate) model: Option<&'e [u8]>,
    pub(crate) dimensions: Option<i32>,
}

impl<'e> VectorColumns<'e> {
    /// Those of a vector that was checked.
    pub(crate) fn of(embedding: Option<&'e Embedding>) -> Self {
        embedding.map_or_else(Self::default, |e| Self {
            components: Some(&e.vector),
            model: Some(e.model.as_bytes()),
            dimensions: Some(i32::try_from(e.vector.len()).expect("a checked vector is short")),
        })
    }
}

/// A vector's space from its columns.
pub(crate) fn space(model: Option<Vec<u8>>, dimensions: Option<i32>) -> Option<Space> {
    let model = String::from_utf8_lossy(&model?).into();
    Some(Space { model, dimensions: usize::try_from(dimensions?).unwrap_or(0) })
}

/// Terms as a column holds them. Only their equality is looked at there, which the change of sign keeps.
pub(crate) fn signed(terms: &[u64]) -> Vec<i64> {
    terms.iter().map(|term| term.cast_signed()).collect()
}

/// Terms as they were, in the order of a document.
pub(crate) fn unsigned(terms: &[i64]) -> Vec<u64> {
    terms.iter().map(|term| term.cast_unsigned()).collect()
}

/// An id as a column holds it: 16 bytes, so that the larger is the later in an index.
pub(crate) fn id_column(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}
