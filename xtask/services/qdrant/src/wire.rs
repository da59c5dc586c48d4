//! The client's messages as the engine's JSON, and the engine's records as the client's messages.
//!
//! The engine reads every operation, filter and id from the same JSON that the server's REST interface takes, so a
//! message is translated word by word and the engine alone decides what it means.

use std::collections::HashMap;

use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::with_payload_selector::SelectorOptions as PayloadOptions;
use qdrant_client::qdrant::with_vectors_selector::SelectorOptions as VectorOptions;
use qdrant_client::qdrant::{
    self, Condition, FieldCondition, Filter, PointId, PointStruct, PointsSelector, RetrievedPoint,
    ScoredPoint, UpdateMode, Value as Field, Vector, VectorOutput, VectorsOutput, WithPayloadSelector,
    WithVectorsSelector,
};
use qdrant_edge::external::serde_json::{self, Map, Value, json};
use qdrant_edge::external::uuid::Uuid;
use qdrant_edge::{Payload, PointId as EngineId, VectorInternal, VectorStructInternal};
use tonic::Status;

/// What a message says, as the engine's type.
pub(crate) fn read<T: serde::de::DeserializeOwned>(json: Value) -> Result<T, Status> {
    serde_json::from_value(json).map_err(|e| Status::invalid_argument(format!("Wrong input: {e}")))
}

pub(crate) fn id(id: &PointId) -> Result<Value, Status> {
    match &id.point_id_options {
        Some(PointIdOptions::Num(n)) => Ok(json!(n)),
        Some(PointIdOptions::Uuid(text)) => {
            let uuid = Uuid::parse_str(text)
                .map_err(|_| Status::invalid_argument(format!("Unable to parse UUID: {text}")))?;
            Ok(json!(uuid))
        }
        None => Err(Status::invalid_argument("No ID options provided")),
    }
}

pub(crate) fn ids(all: &[PointId]) -> Result<Value, Status> {
    Ok(Value::Array(all.iter().map(id).collect::<Result<_, _>>()?))
}

pub(crate) fn filter(filter: &Filter) -> Result<Value, Status> {
    let mut json = Map::new();
    for (name, conditions) in
        [("must", &filter.must), ("should", &filter.should), ("must_not", &filter.must_not)]
    {
        if !conditions.is_empty() {
            json.insert(name.to_owned(), all(conditions)?);
        }
    }
    if let Some(min) = &filter.min_should {
        json.insert(
            "min_should".to_owned(),
            json!({"conditions": all(&min.conditions)?, "min_count": min.min_count}),
        );
    }
    Ok(Value::Object(json))
}

pub(crate) fn optional(given: Option<&Filter>) -> Result<Value, Status> {
    given.map_or(Ok(Value::Null), filter)
}

fn all(conditions: &[Condition]) -> Result<Value, Status> {
    Ok(Value::Array(conditions.iter().map(condition).collect::<Result<_, _>>()?))
}

fn condition(condition: &Condition) -> Result<Value, Status> {
    Ok(match &condition.condition_one_of {
        Some(ConditionOneOf::Field(given)) => field(given)?,
        Some(ConditionOneOf::IsEmpty(given)) => json!({"is_empty": {"key": given.key}}),
        Some(ConditionOneOf::IsNull(given)) => json!({"is_null": {"key": given.key}}),
        Some(ConditionOneOf::HasId(given)) => json!({"has_id": ids(&given.has_id)?}),
        Some(ConditionOneOf::HasVector(given)) => json!({"has_vector": given.has_vector}),
        Some(ConditionOneOf::Filter(given)) => filter(given)?,
        Some(ConditionOneOf::Nested(given)) => {
            json!({"nested": {"key": given.key, "filter": optional(given.filter.as_ref())?}})
        }
        Some(ConditionOneOf::Slice(_)) => return Err(Status::unimplemented("slice conditions")),
        None => return Err(Status::invalid_argument("Malformed Condition type")),
    })
}

fn field(given: &FieldCondition) -> Result<Value, Status> {
    if given.geo_bounding_box.is_some() || given.geo_radius.is_some() || given.geo_polygon.is_some() {
        return Err(Status::unimplemented("geo conditions"));
    }
    if given.datetime_range.is_some() {
        return Err(Status::unimplemented("datetime ranges"));
    }
    let mut json = Map::from_iter([("key".to_owned(), json!(given.key))]);
    if let Some(value) = given.r#match.as_ref().and_then(|m| m.match_value.as_ref()) {
        json.insert("match".to_owned(), matching(value));
    }
    if let Some(range) = &given.range {
        let range = json!({"lt": range.lt, "gt": range.gt, "gte": range.gte, "lte": range.lte});
        json.insert("range".to_owned(), range);
    }
    if let Some(count) = &given.values_count {
        let count = json!({"lt": count.lt, "gt": count.gt, "gte": count.gte, "lte": count.lte});
        json.insert("values_count".to_owned(), count);
    }
    for (name, value) in [("is_empty", given.is_empty), ("is_null", given.is_null)] {
        if let Some(value) = value {
            json.insert(name.to_owned(), json!(value));
        }
    }
    Ok(Value::Object(json))
}

fn matching(value: &MatchValue) -> Value {
    match value {
        MatchValue::Keyword(text) => json!({"value": text}),
        MatchValue::Integer(n) => json!({"value": n}),
        MatchValue::Boolean(yes) => json!({"value": yes}),
        MatchValue::Text(text) => json!({"text": text}),
        MatchValue::TextAny(text) => json!({"text_any": text}),
        MatchValue::Phrase(text) => json!({"phrase": text}),
        MatchValue::Keywords(any) => json!({"any": any.strings}),
        MatchValue::Integers(any) => json!({"any": any.integers}),
        MatchValue::ExceptKeywords(none) => json!({"except": none.strings}),
        MatchValue::ExceptIntegers(none) => json!({"except": none.integers}),
        other => json!({"unknown": format!("{other:?}")}),
    }
}

pub(crate) fn fields(payload: HashMap<String, Field>) -> Value {
    Value::Object(payload.into_iter().map(|(key, value)| (key, value.into_json())).collect())
}

pub(crate) fn point(point: PointStruct) -> Result<Value, Status> {
    let id = point.id.as_ref().ok_or_else(|| Status::invalid_argument("Empty ID is not allowed"))?;
    let vector = match point.vectors.and_then(|v| v.vectors_options) {
        None => json!({}),
        Some(VectorsOptions::Vector(vector)) => json!(dense(vector)?),
        Some(VectorsOptions::Vectors(named)) => Value::Object(
            named
                .vectors
                .into_iter()
                .map(|(name, vector)| Ok((name, json!(dense(vector)?))))
                .collect::<Result<_, Status>>()?,
        ),
    };
    Ok(json!({"id": self::id(id)?, "vector": vector, "payload": fields(point.payload)}))
}

fn dense(vector: Vector) -> Result<Vec<f32>, Status> {
    #[allow(deprecated, reason = "clients before 1.16 send the data in this field")]
    let data = vector.data;
    match vector.vector {
        Some(qdrant::vector::Vector::Dense(dense)) => Ok(dense.data),
        None => Ok(data),
        Some(_) => Err(Status::unimplemented("vectors that are not dense")),
    }
}

/// An upsert, conditional when the message says so.
pub(crate) fn upsert(
    points: Vec<PointStruct>,
    condition: Option<&Filter>,
    mode: Option<i32>,
) -> Result<Value, Status> {
    let points = points.into_iter().map(point).collect::<Result<Vec<_>, _>>()?;
    let points = json!({"points": points});
    if condition.is_none() && mode.is_none() {
        return Ok(json!({"upsert_points": points}));
    }
    let mode = match mode.map(UpdateMode::try_from).transpose() {
        Ok(None | Some(UpdateMode::Upsert)) => "upsert",
        Ok(Some(UpdateMode::InsertOnly)) => "insert_only",
        Ok(Some(UpdateMode::UpdateOnly)) => "update_only",
        Err(_) => return Err(Status::invalid_argument("Wrong input: unknown update mode")),
    };
    let condition = condition.map_or(Ok(json!({})), filter)?;
    Ok(json!({"upsert_points_conditional": {
        "points_op": points, "condition": condition, "update_mode": mode,
    }}))
}

/// Which points an update is for.
pub(crate) enum Chosen {
    Ids(Value),
    Filter(Value),
}

pub(crate) fn selector(given: Option<&PointsSelector>) -> Result<Chosen, Status> {
    match given.and_then(|s| s.points_selector_one_of.as_ref()) {
        Some(PointsSelectorOneOf::Points(list)) => Ok(Chosen::Ids(ids(&list.ids)?)),
        Some(PointsSelectorOneOf::Filter(given)) => Ok(Chosen::Filter(filter(given)?)),
        None => Err(Status::invalid_argument("PointsSelector is missing")),
    }
}

pub(crate) fn delete(given: Option<&PointsSelector>) -> Result<Value, Status> {
    Ok(match selector(given)? {
        Chosen::Ids(ids) => json!({"delete_points": {"ids": ids}}),
        Chosen::Filter(filter) => json!({"delete_points_by_filter": filter}),
    })
}

/// `set_payload` or `overwrite_payload`.
pub(crate) fn payload(
    operation: &str,
    payload: HashMap<String, Field>,
    given: Option<&PointsSelector>,
    key: Option<String>,
) -> Result<Value, Status> {
    let (points, filter) = match selector(given)? {
        Chosen::Ids(ids) => (ids, Value::Null),
        Chosen::Filter(filter) => (Value::Null, filter),
    };
    Ok(json!({operation: {"payload": fields(payload), "points": points, "filter": filter, "key": key}}))
}

pub(crate) fn delete_payload(keys: Vec<String>, given: Option<&PointsSelector>) -> Result<Value, Status> {
    let (points, filter) = match selector(given)? {
        Chosen::Ids(ids) => (ids, Value::Null),
        Chosen::Filter(filter) => (Value::Null, filter),
    };
    Ok(json!({"delete_payload": {"keys": keys, "points": points, "filter": filter}}))
}

pub(crate) fn with_payload(given: Option<&WithPayloadSelector>, default: bool) -> Value {
    match given.and_then(|s| s.selector_options.as_ref()) {
        None => json!(default),
        Some(PayloadOptions::Enable(yes)) => json!(yes),
        Some(PayloadOptions::Include(list)) => json!({"include": list.fields}),
        Some(PayloadOptions::Exclude(list)) => json!({"exclude": list.fields}),
    }
}

pub(crate) fn with_vectors(given: Option<&WithVectorsSelector>) -> Value {
    match given.and_then(|s| s.selector_options.as_ref()) {
        None => json!(false),
        Some(VectorOptions::Enable(yes)) => json!(yes),
        Some(VectorOptions::Include(list)) => json!(list.names),
    }
}

pub(crate) fn engine_id(id: EngineId) -> PointId {
    match id {
        EngineId::NumId(n) => n.into(),
        EngineId::Uuid(uuid) => uuid.to_string().into(),
    }
}

fn out(payload: Option<Payload>) -> HashMap<String, Field> {
    payload.map_or_else(HashMap::new, |p| p.0.into_iter().map(|(k, v)| (k, Field::from(v))).collect())
}

pub(crate) fn record(
    id: EngineId,
    payload: Option<Payload>,
    vector: Option<VectorStructInternal>,
) -> RetrievedPoint {
    RetrievedPoint {
        id: Some(engine_id(id)),
        payload: out(payload),
        vectors: vectors(vector),
        ..RetrievedPoint::default()
    }
}

pub(crate) fn scored(point: qdrant_edge::ScoredPoint) -> ScoredPoint {
    ScoredPoint {
        id: Some(engine_id(point.id)),
        payload: out(point.payload),
        score: point.score,
        version: point.version,
        vectors: vectors(point.vector),
        ..ScoredPoint::default()
    }
}

fn vectors(given: Option<VectorStructInternal>) -> Option<VectorsOutput> {
    use qdrant::vectors_output::VectorsOptions as Out;
    let options = match given? {
        VectorStructInternal::Single(dense) => Out::Vector(output(dense)),
        VectorStructInternal::Named(named) => Out::Vectors(qdrant::NamedVectorsOutput {
            vectors: named
                .into_iter()
                .filter_map(|(name, vector)| match vector {
                    VectorInternal::Dense(dense) => Some((name.to_string(), output(dense))),
                    _ => None,
                })
                .collect(),
        }),
        _ => return None,
    };
    Some(VectorsOutput { vectors_options: Some(options) })
}

#[allow(
    deprecated,
    reason = "clients before 1.16 read the data from this field, so the server fills it in as well"
)]
fn output(dense: Vec<f32>) -> VectorOutput {
    VectorOutput {
        data: dense.clone(),
        vector: Some(qdrant::vector_output::Vector::Dense(qdrant::DenseVector { data: dense })),
        ..VectorOutput::default()
    }
}
