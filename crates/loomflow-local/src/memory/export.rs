//! Export: a partition's records as a stream of plain data, written out one at a time.

use futures_util::StreamExt;
use loomflow_core::{Error, ErrorKind, ExportItem, ExportStream, Owned, Owner, Result};
use serde::Serialize;
use serde_json::Value;

use super::partition::Record;

/// A stream over `records`, which share their texts with the store.
pub(super) fn stream(records: Vec<(Owner, Record)>) -> ExportStream {
    let written = |(owner, record)| write(&record).map(|item| Owned::new(owner, item));
    Box::pin(futures_util::stream::iter(records).map(written))
}

fn write(record: &Record) -> Result<ExportItem> {
    match record {
        Record::Episode(episode) => Ok(ExportItem::new("episode", plain(&**episode)?)),
        Record::Block(block) => Ok(ExportItem::new("block", plain(block)?)),
        Record::Fact(row) => {
            let mut data = plain(&row.fact)?;
            if let (Value::Object(members), Some(embedding)) = (&mut data, &row.embedding) {
                members.insert("embedding".into(), plain(embedding)?);
            }
            Ok(ExportItem::new("fact", data))
        }
    }
}

fn plain(record: &impl Serialize) -> Result<Value> {
    serde_json::to_value(record).map_err(|e| {
        Error::new(ErrorKind::Internal, "a record cannot be written as JSON")
            .with_operation("export")
            .with_source(e)
    })
}
