//! The collection, its indexes, and the version of what is in it.

use loomflow_core::{Error, ErrorKind, Result};
use qdrant_client::Payload;
use qdrant_client::qdrant::value::Kind as Json;
use qdrant_client::qdrant::{
    Condition, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder, FieldType, Filter,
    GetPointsBuilder, KeywordIndexParamsBuilder, PointId, PointStruct, UpsertPointsBuilder,
};
use sha2::{Digest as _, Sha256};

use crate::error::already_exists;
use crate::keys::{field, uuid};
use crate::server::{Server, no_vectors, strong};

/// What this program reads and writes.
const VERSION: i64 = 1;
const VERSION_FIELD: &str = "version";
/// The first server that has updates with a condition.
const OLDEST: (u64, u64) = (1, 16);

impl Server {
    /// Whether somebody answers, and is new enough.
    pub(crate) async fn check_server(&self) -> Result<()> {
        let answer = self.call("connect", |client| client.health_check()).await?;
        let mut numbers = answer.version.split('.').map_while(|n| n.parse::<u64>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version >= OLDEST {
            return Ok(());
        }
        let (major, minor) = OLDEST;
        Err(config(format!("Qdrant is of version {}; {major}.{minor} or later is needed", answer.version)))
    }

    /// Brings the collection up to date. One that is newer is refused, untouched.
    pub(crate) async fn migrate(&self) -> Result<()> {
        match self.version().await? {
            Some(VERSION) => return Ok(()),
            Some(newer) => return Err(self.unknown(newer)),
            None => {}
        }
        let name = &self.collection;
        let create = CreateCollectionBuilder::new(name).shard_number(1).build();
        self.call("migrate", |client| {
            let create = create.clone();
            async move {
                match client.create_collection(create).await {
                    Err(e) if already_exists(&e) => Ok(()),
                    other => other.map(drop),
                }
            }
        })
        .await?;
        for (field, tenant) in [(field::PARTITION, true), (field::KIND, false)] {
            let params = KeywordIndexParamsBuilder::default().is_tenant(tenant);
            let index = CreateFieldIndexCollectionBuilder::new(name, field, FieldType::Keyword)
                .field_index_params(params)
                .wait(true)
                .build();
            self.call("migrate", |client| client.create_field_index(index.clone())).await?;
        }
        let mut payload = Payload::new();
        payload.insert(field::KIND, "schema");
        payload.insert(VERSION_FIELD, VERSION);
        let never = Filter::must([Condition::matches(VERSION_FIELD, VERSION)]);
        let upsert = UpsertPointsBuilder::new(name, vec![PointStruct::new(id(), no_vectors(), payload)])
            // One that another program wrote meanwhile stays, unless it is the same.
            .update_filter(never)
            .wait(true)
            .ordering(strong())
            .build();
        self.call("migrate", |client| client.upsert_points(upsert.clone())).await?;
        self.check_schema().await
    }

    /// Whether the collection is of this program's version.
    pub(crate) async fn check_schema(&self) -> Result<()> {
        match self.version().await? {
            Some(VERSION) => Ok(()),
            Some(other) => Err(self.unknown(other)),
            None => Err(config(format!(
                "the collection `{}` holds no memory (version 0), and this program needs version {VERSION}: run \
                 `QdrantMemory::migrate`, or connect with `migrate`",
                self.collection
            ))),
        }
    }

    /// The version of the collection; `None` when there is none, or nothing in it.
    async fn version(&self) -> Result<Option<i64>> {
        let name = &self.collection;
        if !self.call("connect", |client| client.collection_exists(name)).await? {
            return Ok(None);
        }
        let get = GetPointsBuilder::new(name, vec![PointId::from(id())]).with_payload(true).build();
        let found = self.call("connect", |client| client.get_points(get.clone())).await?;
        let Some(mut point) = found.result.into_iter().next() else { return Ok(None) };
        match point.payload.remove(VERSION_FIELD).and_then(|v| v.kind) {
            Some(Json::IntegerValue(version)) => Ok(Some(version)),
            _ => Err(config(format!("the collection `{name}` is not one of LoomFlow's memories"))),
        }
    }

    fn unknown(&self, version: i64) -> Error {
        config(format!(
            "the collection `{}` is of version {version}, and this program knows versions up to {VERSION}: it would misread \
             it, and leaves it untouched. Run a newer program",
            self.collection
        ))
    }
}

fn config(message: String) -> Error {
    Error::new(ErrorKind::Config, message).with_operation("connect")
}

/// The id of the point that holds the version.
fn id() -> String {
    uuid(&Sha256::digest(b"loomflow memory schema"))
}
