//! The form of memory's records in an export.

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Embedding, Episode, Fact, MemoryBlock};
use crate::tenant_data::ExportItem;

/// An episode as an export has it.
///
/// # Errors
///
/// [`ErrorKind::Internal`] when it cannot be written as JSON.
pub fn export_episode(episode: &Episode) -> Result<ExportItem> {
    Ok(ExportItem::new("episode", plain(episode)?))
}

/// A block as an export has it.
///
/// # Errors
///
/// As [`export_episode`].
pub fn export_block(block: &MemoryBlock) -> Result<ExportItem> {
    Ok(ExportItem::new("block", plain(block)?))
}

/// A fact as an export has it, with its vector.
///
/// # Errors
///
/// As [`export_episode`].
pub fn export_fact(fact: &Fact, embedding: Option<&Embedding>) -> Result<ExportItem> {
    let mut data = plain(fact)?;
    if let (Value::Object(members), Some(embedding)) = (&mut data, embedding) {
        members.insert("embedding".into(), plain(embedding)?);
    }
    Ok(ExportItem::new("fact", data))
}

fn plain(record: &impl Serialize) -> Result<Value> {
    serde_json::to_value(record).map_err(|e| {
        Error::new(ErrorKind::Internal, "a record cannot be written as JSON")
            .with_operation("export")
            .with_source(e)
    })
}
