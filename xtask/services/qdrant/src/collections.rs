//! The service of collections.

use std::sync::Arc;

use ::qdrant_client::qdrant::collections_server::Collections;
use ::qdrant_client::qdrant::vectors_config::Config;
use ::qdrant_client::qdrant::*;
use qdrant_edge::external::serde_json::{Map, Value, json};
use qdrant_edge::{CountRequest, EdgeConfig};
use tonic::{Request, Response, Status};

use crate::engine::Engine;
use crate::points::blocking;
use crate::wire;

/// See the module.
#[derive(Debug)]
pub(crate) struct Service(pub(crate) Arc<Engine>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Collections for Service {
    async fn create(&self, request: Request<CreateCollection>) -> Answer<CollectionOperationResponse> {
        let message = request.into_inner();
        let config = config(&message)?;
        let engine = self.0.clone();
        blocking(move || engine.create(&message.collection_name, config)).await?;
        Ok(Response::new(CollectionOperationResponse { result: true, time: 0.0 }))
    }

    async fn delete(&self, request: Request<DeleteCollection>) -> Answer<CollectionOperationResponse> {
        let engine = self.0.clone();
        let name = request.into_inner().collection_name;
        let result = blocking(move || engine.delete(&name)).await?;
        Ok(Response::new(CollectionOperationResponse { result, time: 0.0 }))
    }

    async fn get(&self, request: Request<GetCollectionInfoRequest>) -> Answer<GetCollectionInfoResponse> {
        let collection = self.0.get(&request.into_inner().collection_name)?;
        let points = blocking(move || {
            collection.read(|shard| shard.count(CountRequest { filter: None, exact: true }))
        })
        .await?;
        let result = CollectionInfo {
            status: CollectionStatus::Green.into(),
            points_count: Some(points as u64),
            segments_count: 1,
            ..CollectionInfo::default()
        };
        Ok(Response::new(GetCollectionInfoResponse { result: Some(result), time: 0.0 }))
    }

    async fn list(&self, _: Request<ListCollectionsRequest>) -> Answer<ListCollectionsResponse> {
        let collections = self.0.names().into_iter().map(|name| CollectionDescription { name }).collect();
        Ok(Response::new(ListCollectionsResponse { collections, time: 0.0 }))
    }

    async fn collection_exists(
        &self,
        request: Request<CollectionExistsRequest>,
    ) -> Answer<CollectionExistsResponse> {
        let exists = self.0.get(&request.into_inner().collection_name).is_ok();
        Ok(Response::new(CollectionExistsResponse { result: Some(CollectionExists { exists }), time: 0.0 }))
    }

    async fn update(&self, _: Request<UpdateCollection>) -> Answer<CollectionOperationResponse> {
        Err(absent("UpdateCollection"))
    }

    async fn update_aliases(&self, _: Request<ChangeAliases>) -> Answer<CollectionOperationResponse> {
        Err(absent("UpdateAliases"))
    }

    async fn list_collection_aliases(
        &self,
        _: Request<ListCollectionAliasesRequest>,
    ) -> Answer<ListAliasesResponse> {
        Err(absent("ListCollectionAliases"))
    }

    async fn list_aliases(&self, _: Request<ListAliasesRequest>) -> Answer<ListAliasesResponse> {
        Err(absent("ListAliases"))
    }

    async fn collection_cluster_info(
        &self,
        _: Request<CollectionClusterInfoRequest>,
    ) -> Answer<CollectionClusterInfoResponse> {
        Err(absent("CollectionClusterInfo"))
    }

    async fn update_collection_cluster_setup(
        &self,
        _: Request<UpdateCollectionClusterSetupRequest>,
    ) -> Answer<UpdateCollectionClusterSetupResponse> {
        Err(absent("UpdateCollectionClusterSetup"))
    }

    async fn create_shard_key(&self, _: Request<CreateShardKeyRequest>) -> Answer<CreateShardKeyResponse> {
        Err(absent("CreateShardKey"))
    }

    async fn delete_shard_key(&self, _: Request<DeleteShardKeyRequest>) -> Answer<DeleteShardKeyResponse> {
        Err(absent("DeleteShardKey"))
    }

    async fn list_shard_keys(&self, _: Request<ListShardKeysRequest>) -> Answer<ListShardKeysResponse> {
        Err(absent("ListShardKeys"))
    }
}

pub(crate) fn absent(method: &str) -> Status {
    Status::unimplemented(format!("{method} is not part of the test service"))
}

fn config(message: &CreateCollection) -> Result<EdgeConfig, Status> {
    if message.shard_number.is_some_and(|n| n != 1) {
        return Err(Status::unimplemented("more than one shard"));
    }
    let mut vectors = Map::new();
    match message.vectors_config.as_ref().and_then(|c| c.config.as_ref()) {
        None => {}
        Some(Config::Params(params)) => {
            vectors.insert(String::new(), vector(params)?);
        }
        Some(Config::ParamsMap(named)) => {
            for (name, params) in &named.map {
                vectors.insert(name.clone(), vector(params)?);
            }
        }
    }
    wire::read(json!({"vectors": vectors}))
}

fn vector(params: &VectorParams) -> Result<Value, Status> {
    let distance = match Distance::try_from(params.distance) {
        Ok(Distance::Cosine) => "Cosine",
        Ok(Distance::Euclid) => "Euclid",
        Ok(Distance::Dot) => "Dot",
        Ok(Distance::Manhattan) => "Manhattan",
        _ => return Err(Status::invalid_argument("Wrong input: unknown distance")),
    };
    Ok(json!({"size": params.size, "distance": distance}))
}
