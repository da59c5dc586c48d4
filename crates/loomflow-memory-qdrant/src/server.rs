//! The requests to the server, each within its time, once more if the connection was lost, and none while it is down.
//!
//! Every request may be sent twice: reads change nothing, and each write takes hold only where the point still has the
//! token that the write expects.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use loomflow_core::resilience::{Repeat, Resilience};
use loomflow_core::{FactId, Result};
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::{
    Condition, DeletePointsBuilder, Filter, GetPointsBuilder, PayloadIncludeSelector, PointId, PointStruct,
    ScrollPointsBuilder, SetPayloadPointsBuilder, UpsertPointsBuilder, Value, WriteOrdering,
    WriteOrderingType,
};
use qdrant_client::{Payload, Qdrant, QdrantError};

use crate::config::QdrantMemoryConfig;
use crate::error::server_error;
use crate::keys::{Kind, Partition, field};
use crate::record::{self, Content, Row};

/// How many points a page of a scan has.
const PAGE: u32 = 256;
/// How many of a point's last writes it remembers.
const WRITES: usize = 16;
/// How many ids a request names.
pub(crate) const BATCH: usize = 256;

/// What of a point's content to read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fields<'a> {
    /// All of it.
    All,
    /// These alone.
    Some(&'a [&'a str]),
}

/// See the module.
pub(crate) struct Server {
    client: Qdrant,
    pub(crate) collection: String,
    pub(crate) guard: Resilience,
    pub(crate) loses_partition_filter: bool,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({}, {:?})", self.collection, self.guard)
    }
}

impl Server {
    /// A server that was not spoken to yet.
    pub(crate) fn new(config: &QdrantMemoryConfig) -> Result<Self> {
        let mut builder = Qdrant::from_url(config.url.expose())
            .connect_timeout(config.connect_timeout)
            // The guard's limit comes first; this one ends what the guard has given up.
            .timeout(config.operation_timeout + Duration::from_secs(1));
        builder.check_compatibility = false;
        builder.pool_size = config.max_connections.max(1);
        builder.api_key = config.api_key.as_ref().map(|key| key.expose().clone());
        let client = builder.build().map_err(|e| server_error(&e, "connect"))?;
        Ok(Self {
            client,
            collection: config.collection.clone(),
            guard: Resilience::new("Qdrant", config.operation_timeout),
            loses_partition_filter: config.loses_partition_filter(),
        })
    }

    /// One request.
    pub(crate) async fn call<'s, T, F, Fut>(&'s self, operation: &'static str, request: F) -> Result<T>
    where
        F: Fn(&'s Qdrant) -> Fut + Send + Sync,
        Fut: Future<Output = std::result::Result<T, QdrantError>> + Send,
        T: Send,
    {
        let attempt = || async { request(&self.client).await.map_err(|e| server_error(&e, operation)) };
        self.guard.run(operation, Repeat::Safe, attempt).await
    }

    /// One point of `partition`.
    pub(crate) async fn get(
        &self,
        partition: &Partition,
        id: &str,
        fields: Fields<'_>,
        operation: &'static str,
    ) -> Result<Option<Row>> {
        Ok(self.get_all(partition, &[id], fields, operation).await?.pop())
    }

    /// Those of `ids` that are there, in any order.
    pub(crate) async fn get_all(
        &self,
        partition: &Partition,
        ids: &[&str],
        fields: Fields<'_>,
        operation: &'static str,
    ) -> Result<Vec<Row>> {
        let mut rows = Vec::with_capacity(ids.len());
        for some in ids.chunks(BATCH) {
            let ids: Vec<PointId> = some.iter().map(|id| (*id).into()).collect();
            let request = GetPointsBuilder::new(&self.collection, ids).with_payload(selector(fields)).build();
            let found = self.call(operation, |client| client.get_points(request.clone())).await?;
            for point in found.result {
                rows.push(Row::decode(point, partition, operation)?);
            }
        }
        Ok(rows)
    }

    /// Every point that a tenant's read of `kind` may look at, and that meets `also`.
    pub(crate) async fn scan(
        &self,
        partition: &Partition,
        kind: Kind,
        also: Option<Condition>,
        fields: Fields<'_>,
        operation: &'static str,
    ) -> Result<Vec<Row>> {
        let mut filter = partition.read_filter(kind);
        filter.must.extend(also);
        let mut request = ScrollPointsBuilder::new(&self.collection)
            .filter(filter)
            .limit(PAGE)
            .with_payload(selector(fields))
            .build();
        let mut rows = Vec::new();
        loop {
            let page = self.call(operation, |client| client.scroll(request.clone())).await?;
            for point in page.result {
                rows.push(Row::decode(point, partition, operation)?);
            }
            if page.next_page_offset.is_none() {
                return Ok(rows);
            }
            request.offset = page.next_page_offset;
        }
    }

    /// Makes an empty point, unless there is one.
    pub(crate) async fn mark(
        &self,
        partition: &Partition,
        kind: Kind,
        id: &str,
        operation: &'static str,
    ) -> Result<()> {
        let token = fresh_token();
        let mut payload = record::identity(partition, kind);
        payload.insert(field::TOKEN, token.clone());
        let request =
            UpsertPointsBuilder::new(&self.collection, vec![PointStruct::new(id, no_vectors(), payload)])
                // A point that is there stays: it has another token.
                .update_filter(partition.expecting(vec![id.to_owned()], &token))
                .wait(true)
                .ordering(strong())
                .build();
        self.call(operation, |client| client.upsert_points(request.clone())).await.map(drop)
    }

    /// Replaces the content of `row`, if nobody touched the point since `row` was read. Says whether it took hold.
    pub(crate) async fn fill(
        &self,
        partition: &Partition,
        row: &Row,
        content: Content,
        operation: &'static str,
    ) -> Result<bool> {
        let token = fresh_token();
        let kept = row.writes.len().saturating_sub(WRITES - 1);
        let mut writes: Vec<Value> = row.writes[kept..].iter().map(|w| w.clone().into()).collect();
        writes.push(token.clone().into());
        let mut payload = Payload::new();
        payload.insert(field::TOKEN, token.clone());
        payload.insert(field::WRITES, Value::from(writes));
        payload.insert(field::LIVE, Value::from(Payload::from(content)));
        self.set(payload, partition.expecting(vec![row.id.clone()], &row.token), operation).await?;
        let after = self.get(partition, &row.id, Fields::Some(&[]), operation).await?;
        Ok(after.is_some_and(|after| after.writes.contains(&token)))
    }

    /// Takes away the tokens that writes under way expect, of every record of the partition at once.
    pub(crate) async fn fence(&self, partition: &Partition, operation: &'static str) -> Result<()> {
        let mut payload = Payload::new();
        payload.insert(field::TOKEN, fresh_token());
        self.set(payload, partition.records(), operation).await
    }

    /// Deletes those of the points that nobody touched since they were read, given as ids and tokens.
    pub(crate) async fn remove(
        &self,
        partition: &Partition,
        points: &[(String, String)],
        operation: &'static str,
    ) -> Result<()> {
        let mut by_token: HashMap<&str, Vec<String>> = HashMap::new();
        for (id, token) in points {
            by_token.entry(token).or_default().push(id.clone());
        }
        for (token, ids) in by_token {
            for some in ids.chunks(BATCH) {
                let filter = partition.expecting(some.to_vec(), token);
                let request = DeletePointsBuilder::new(&self.collection)
                    .points(PointsSelectorOneOf::Filter(filter))
                    .wait(true)
                    .ordering(strong())
                    .build();
                self.call(operation, |client| client.delete_points(request.clone())).await?;
            }
        }
        Ok(())
    }

    async fn set(&self, payload: Payload, filter: Filter, operation: &'static str) -> Result<()> {
        let request = SetPayloadPointsBuilder::new(&self.collection, payload)
            .points_selector(PointsSelectorOneOf::Filter(filter))
            .wait(true)
            .ordering(strong())
            .build();
        self.call(operation, |client| client.set_payload(request.clone())).await.map(drop)
    }
}

/// A token that nobody had before.
fn fresh_token() -> String {
    FactId::fresh().to_string()
}

pub(crate) fn strong() -> WriteOrdering {
    WriteOrdering { r#type: WriteOrderingType::Strong.into() }
}

/// The points carry their vectors in their content.
pub(crate) fn no_vectors() -> HashMap<String, qdrant_client::qdrant::Vector> {
    HashMap::new()
}

fn selector(fields: Fields<'_>) -> qdrant_client::qdrant::with_payload_selector::SelectorOptions {
    let Fields::Some(names) = fields else { return true.into() };
    let always = [field::PARTITION, field::KIND, field::NAMESPACE, field::USER, field::TOKEN, field::WRITES];
    let mut fields: Vec<String> = always.map(str::to_owned).into();
    fields.extend(names.iter().map(|name| format!("{}.{name}", field::LIVE)));
    PayloadIncludeSelector { fields }.into()
}
