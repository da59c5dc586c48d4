//! The service of points.

use std::sync::Arc;

use ::qdrant_client::qdrant::points_server::Points;
use ::qdrant_client::qdrant::points_update_operation::Operation;
use ::qdrant_client::qdrant::query::Variant;
use ::qdrant_client::qdrant::*;
use qdrant_edge::external::serde_json::{Value, json};
use qdrant_edge::{NamedQuery, QueryEnum, ScoringQuery};
use tonic::{Request, Response, Status};

use crate::collections::absent;
use crate::engine::Engine;
use crate::wire;

/// See the module.
#[derive(Debug)]
pub(crate) struct Service(pub(crate) Arc<Engine>);

type Answer<T> = Result<Response<T>, Status>;

/// The engine waits for disks: it never runs where requests are taken in.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))?
}

impl Service {
    /// One update, given as the engine's JSON. It is done before the answer, whether or not the client waits.
    async fn update(&self, collection: &str, operations: Vec<Value>) -> Result<(), Status> {
        let collection = self.0.get(collection)?;
        let operations = operations.into_iter().map(wire::read).collect::<Result<Vec<_>, _>>()?;
        blocking(move || collection.update(operations)).await
    }

    async fn one(&self, collection: &str, operation: Value) -> Answer<PointsOperationResponse> {
        self.update(collection, vec![operation]).await?;
        Ok(Response::new(PointsOperationResponse {
            result: Some(completed()),
            ..PointsOperationResponse::default()
        }))
    }

    async fn nearest(&self, message: QueryPoints) -> Result<Vec<ScoredPoint>, Status> {
        if !message.prefetch.is_empty() {
            return Err(absent("Query with prefetch"));
        }
        let query = match message.query.and_then(|q| q.variant) {
            None => None,
            Some(Variant::Nearest(input)) => match input.variant {
                Some(vector_input::Variant::Dense(dense)) => Some(dense.data),
                _ => return Err(absent("Query by anything but a dense vector")),
            },
            Some(_) => return Err(absent("Query of that kind")),
        };
        let using = message.using.filter(|name| !name.is_empty());
        let query = query.map(|vector| {
            ScoringQuery::Vector(QueryEnum::Nearest(NamedQuery { query: vector.into(), using }))
        });
        let request = qdrant_edge::QueryRequest {
            prefetches: Vec::new(),
            query,
            filter: wire::read(wire::optional(message.filter.as_ref())?)?,
            score_threshold: message.score_threshold.map(Into::into),
            limit: message.limit.map_or(10, size),
            offset: message.offset.map_or(0, size),
            params: wire::read(
                message.params.map_or(Value::Null, |p| json!({"exact": p.exact.unwrap_or(false)})),
            )?,
            with_vector: wire::read(wire::with_vectors(message.with_vectors.as_ref()))?,
            with_payload: wire::read(wire::with_payload(message.with_payload.as_ref(), false))?,
        };
        let collection = self.0.get(&message.collection_name)?;
        let found = blocking(move || collection.read(|shard| shard.query(request))).await?;
        Ok(found.into_iter().map(wire::scored).collect())
    }
}

fn completed() -> UpdateResult {
    UpdateResult { status: UpdateStatus::Completed.into(), ..UpdateResult::default() }
}

fn size(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// One part of a batch.
fn operation(part: PointsUpdateOperation) -> Result<Value, Status> {
    match part.operation {
        Some(Operation::Upsert(op)) => wire::upsert(op.points, op.update_filter.as_ref(), op.update_mode),
        Some(Operation::SetPayload(op)) => {
            wire::payload("set_payload", op.payload, op.points_selector.as_ref(), op.key)
        }
        Some(Operation::OverwritePayload(op)) => {
            wire::payload("overwrite_payload", op.payload, op.points_selector.as_ref(), op.key)
        }
        Some(Operation::DeletePayload(op)) => wire::delete_payload(op.keys, op.points_selector.as_ref()),
        Some(Operation::DeletePoints(op)) => wire::delete(op.points.as_ref()),
        _ => Err(absent("UpdateBatch with that operation")),
    }
}

#[tonic::async_trait]
impl Points for Service {
    async fn upsert(&self, request: Request<UpsertPoints>) -> Answer<PointsOperationResponse> {
        let message = request.into_inner();
        if message.points.is_empty() {
            return Err(Status::invalid_argument("Wrong input: Empty update request"));
        }
        let operation = wire::upsert(message.points, message.update_filter.as_ref(), message.update_mode)?;
        self.one(&message.collection_name, operation).await
    }

    async fn delete(&self, request: Request<DeletePoints>) -> Answer<PointsOperationResponse> {
        let message = request.into_inner();
        self.one(&message.collection_name, wire::delete(message.points.as_ref())?).await
    }

    async fn get(&self, request: Request<GetPoints>) -> Answer<GetResponse> {
        let message = request.into_inner();
        let ids: Vec<qdrant_edge::PointId> = wire::read(wire::ids(&message.ids)?)?;
        let payload = wire::read(wire::with_payload(message.with_payload.as_ref(), true))?;
        let vectors = wire::read(wire::with_vectors(message.with_vectors.as_ref()))?;
        let collection = self.0.get(&message.collection_name)?;
        let found =
            blocking(move || collection.read(|shard| shard.retrieve(&ids, Some(payload), Some(vectors))))
                .await?;
        let result = found.into_iter().map(|r| wire::record(r.id, r.payload, r.vector)).collect();
        Ok(Response::new(GetResponse { result, ..GetResponse::default() }))
    }

    async fn set_payload(&self, request: Request<SetPayloadPoints>) -> Answer<PointsOperationResponse> {
        let message = request.into_inner();
        let operation =
            wire::payload("set_payload", message.payload, message.points_selector.as_ref(), message.key)?;
        self.one(&message.collection_name, operation).await
    }

    async fn overwrite_payload(&self, request: Request<SetPayloadPoints>) -> Answer<PointsOperationResponse> {
        let message = request.into_inner();
        let operation = wire::payload(
            "overwrite_payload",
            message.payload,
            message.points_selector.as_ref(),
            message.key,
        )?;
        self.one(&message.collection_name, operation).await
    }

    async fn delete_payload(&self, request: Request<DeletePayloadPoints>) -> Answer<PointsOperationResponse> {
        let message = request.into_inner();
        let operation = wire::delete_payload(message.keys, message.points_selector.as_ref())?;
        self.one(&message.collection_name, operation).await
    }

    async fn create_field_index(
        &self,
        request: Request<CreateFieldIndexCollection>,
    ) -> Answer<PointsOperationResponse> {
        let message = request.into_inner();
        let kind = match message.field_type.map(FieldType::try_from).transpose() {
            Ok(None) => return Err(Status::invalid_argument("field type is missing")),
            Ok(Some(kind)) => kind.as_str_name().trim_start_matches("FieldType").to_lowercase(),
            Err(_) => return Err(Status::invalid_argument("Malformed field type")),
        };
        let tenant = message.field_index_params.and_then(|p| p.index_params).and_then(|p| match p {
            payload_index_params::IndexParams::KeywordIndexParams(p) => p.is_tenant,
            _ => None,
        });
        let schema = match tenant {
            Some(tenant) => json!({"type": kind, "is_tenant": tenant}),
            None => json!(kind),
        };
        let operation = json!({"create_index": {"field_name": message.field_name, "field_schema": schema}});
        self.one(&message.collection_name, operation).await
    }

    async fn scroll(&self, request: Request<ScrollPoints>) -> Answer<ScrollResponse> {
        let message = request.into_inner();
        let order = match message.order_by {
            None => Value::Null,
            Some(order) if order.start_from.is_some() => return Err(absent("Scroll with start_from")),
            Some(order) => {
                let down = order.direction == Some(Direction::Desc.into());
                json!({"key": order.key, "direction": if down { "desc" } else { "asc" }})
            }
        };
        let request: qdrant_edge::ScrollRequest = wire::read(json!({
            "offset": message.offset.as_ref().map(wire::id).transpose()?,
            "limit": message.limit.unwrap_or(10),
            "filter": wire::optional(message.filter.as_ref())?,
            "with_payload": wire::with_payload(message.with_payload.as_ref(), true),
            "with_vector": wire::with_vectors(message.with_vectors.as_ref()),
            "order_by": order,
        }))?;
        let collection = self.0.get(&message.collection_name)?;
        let (found, next) = blocking(move || collection.read(|shard| shard.scroll(request))).await?;
        Ok(Response::new(ScrollResponse {
            next_page_offset: next.map(wire::engine_id),
            result: found.into_iter().map(|r| wire::record(r.id, r.payload, r.vector)).collect(),
            ..ScrollResponse::default()
        }))
    }

    async fn count(&self, request: Request<CountPoints>) -> Answer<CountResponse> {
        let message = request.into_inner();
        let request: qdrant_edge::CountRequest = wire::read(json!({
            "filter": wire::optional(message.filter.as_ref())?, "exact": message.exact.unwrap_or(true),
        }))?;
        let collection = self.0.get(&message.collection_name)?;
        let count = blocking(move || collection.read(|shard| shard.count(request))).await? as u64;
        Ok(Response::new(CountResponse { result: Some(CountResult { count }), ..CountResponse::default() }))
    }

    async fn update_batch(&self, request: Request<UpdateBatchPoints>) -> Answer<UpdateBatchResponse> {
        let message = request.into_inner();
        let operations = message.operations.into_iter().map(operation).collect::<Result<Vec<_>, _>>()?;
        let result = operations.iter().map(|_| completed()).collect();
        self.update(&message.collection_name, operations).await?;
        Ok(Response::new(UpdateBatchResponse { result, ..UpdateBatchResponse::default() }))
    }

    async fn query(&self, request: Request<QueryPoints>) -> Answer<QueryResponse> {
        let result = self.nearest(request.into_inner()).await?;
        Ok(Response::new(QueryResponse { result, ..QueryResponse::default() }))
    }

    async fn query_batch(&self, request: Request<QueryBatchPoints>) -> Answer<QueryBatchResponse> {
        let message = request.into_inner();
        let mut result = Vec::new();
        for mut query in message.query_points {
            query.collection_name.clone_from(&message.collection_name);
            result.push(BatchResult { result: self.nearest(query).await? });
        }
        Ok(Response::new(QueryBatchResponse { result, ..QueryBatchResponse::default() }))
    }

    async fn update_vectors(&self, _: Request<UpdatePointVectors>) -> Answer<PointsOperationResponse> {
        Err(absent("UpdateVectors"))
    }

    async fn delete_vectors(&self, _: Request<DeletePointVectors>) -> Answer<PointsOperationResponse> {
        Err(absent("DeleteVectors"))
    }

    async fn clear_payload(&self, _: Request<ClearPayloadPoints>) -> Answer<PointsOperationResponse> {
        Err(absent("ClearPayload"))
    }

    async fn delete_field_index(
        &self,
        _: Request<DeleteFieldIndexCollection>,
    ) -> Answer<PointsOperationResponse> {
        Err(absent("DeleteFieldIndex"))
    }

    async fn create_vector_name(
        &self,
        _: Request<CreateVectorNameRequest>,
    ) -> Answer<PointsOperationResponse> {
        Err(absent("CreateVectorName"))
    }

    async fn delete_vector_name(
        &self,
        _: Request<DeleteVectorNameRequest>,
    ) -> Answer<PointsOperationResponse> {
        Err(absent("DeleteVectorName"))
    }

    async fn search(&self, _: Request<SearchPoints>) -> Answer<SearchResponse> {
        Err(absent("Search"))
    }

    async fn search_batch(&self, _: Request<SearchBatchPoints>) -> Answer<SearchBatchResponse> {
        Err(absent("SearchBatch"))
    }

    async fn search_groups(&self, _: Request<SearchPointGroups>) -> Answer<SearchGroupsResponse> {
        Err(absent("SearchGroups"))
    }

    async fn recommend(&self, _: Request<RecommendPoints>) -> Answer<RecommendResponse> {
        Err(absent("Recommend"))
    }

    async fn recommend_batch(&self, _: Request<RecommendBatchPoints>) -> Answer<RecommendBatchResponse> {
        Err(absent("RecommendBatch"))
    }

    async fn recommend_groups(&self, _: Request<RecommendPointGroups>) -> Answer<RecommendGroupsResponse> {
        Err(absent("RecommendGroups"))
    }

    async fn discover(&self, _: Request<DiscoverPoints>) -> Answer<DiscoverResponse> {
        Err(absent("Discover"))
    }

    async fn discover_batch(&self, _: Request<DiscoverBatchPoints>) -> Answer<DiscoverBatchResponse> {
        Err(absent("DiscoverBatch"))
    }

    async fn query_groups(&self, _: Request<QueryPointGroups>) -> Answer<QueryGroupsResponse> {
        Err(absent("QueryGroups"))
    }

    async fn facet(&self, _: Request<FacetCounts>) -> Answer<FacetResponse> {
        Err(absent("Facet"))
    }

    async fn search_matrix_pairs(&self, _: Request<SearchMatrixPoints>) -> Answer<SearchMatrixPairsResponse> {
        Err(absent("SearchMatrixPairs"))
    }

    async fn search_matrix_offsets(
        &self,
        _: Request<SearchMatrixPoints>,
    ) -> Answer<SearchMatrixOffsetsResponse> {
        Err(absent("SearchMatrixOffsets"))
    }
}
