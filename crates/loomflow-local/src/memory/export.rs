//! Export: a partition's records as a stream of plain data, written out one at a time.

use futures_util::StreamExt;
use loomflow_core::{ExportItem, ExportStream, Owned, Owner, Result, rules};

use super::partition::Record;

/// A stream over `records`, which share their texts with the store.
pub(super) fn stream(records: Vec<(Owner, Record)>) -> ExportStream {
    let written = |(owner, record)| write(&record).map(|item| Owned::new(owner, item));
    Box::pin(futures_util::stream::iter(records).map(written))
}

fn write(record: &Record) -> Result<ExportItem> {
    match record {
        Record::Episode(episode) => rules::export_episode(episode),
        Record::Block(block) => rules::export_block(block),
        Record::Fact(row) => rules::export_fact(&row.fact, row.embedding.as_ref()),
    }
}
