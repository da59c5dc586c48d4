//! RediSearch, where the server has it: it compares large partitions' vectors at the server, so that they need not travel.
//!
//! It is never believed alone. What it says about whose vectors are counts for ids of the tenant's own index only, what it
//! leaves out is compared here, and so is what it puts so close together that rounding could change the order. So answers
//! are the same with and without it, while it is still indexing and after it lost its index.

use std::collections::{BTreeSet, HashMap};
use std::error::Error as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use loomflow_core::resilience::Repeat;
use loomflow_core::rules::rank::{self, Probe};
use loomflow_core::{Embedding, ErrorKind, Result};
use redis::Value;
use tokio::time::Instant;

use crate::codec::{bytes, list, text};
use crate::tenant::{Scan, Shared, Tenant};

/// A server without it is asked again after this long: it may have been replaced.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// More than what its arithmetic in single precision can be off, at any length.
const ROUNDING: f32 = 2e-5;
/// Beyond these, squares of components overflow or vanish, here and there in different ways.
const SANE: std::ops::RangeInclusive<f32> = 1e-24..=1e24;

/// What is known about the server's search.
#[derive(Debug)]
pub(crate) struct Search {
    wanted: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    has: Option<bool>,
    asked: Option<Instant>,
    /// The lengths of vectors that have an index.
    indexed: BTreeSet<usize>,
}

impl Search {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Whether the server has RediSearch. A failure to ask says nothing, and the next caller asks again.
    pub(crate) async fn has_search(&self) -> bool {
        if !self.search.wanted {
            return false;
        }
        let known = {
            let state = self.search.lock();
            let stale = state.asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN);
            state.has.filter(|has| *has || !stale)
        };
        if let Some(has) = known {
            return has;
        }
        let answer = self.link.command::<Value>("search", Repeat::Safe, &redis::cmd("FT._LIST")).await;
        let has = match answer {
            Ok(_) => true,
            // What Redis says to a command it does not know.
            Err(e) if e.kind() == ErrorKind::Internal || e.kind() == ErrorKind::Config => false,
            Err(_) => return false,
        };
        let mut state = self.search.lock();
        (state.has, state.asked) = (Some(has), Some(Instant::now()));
        has
    }

    /// Whether `vector` may be put into an index, which is made if need be.
    pub(crate) async fn may_index(&self, vector: &[f32]) -> bool {
        is_sane(vector) && self.has_search().await && self.index(vector.len()).await
    }

    async fn index(&self, dimensions: usize) -> bool {
        if self.search.lock().indexed.contains(&dimensions) {
            return true;
        }
        let prefix = format!("{}{dimensions}", self.schema.search_prefix());
        let mut create = redis::cmd("FT.CREATE");
        create.arg(&prefix).arg("ON").arg("HASH").arg("PREFIX").arg(1).arg(format!("{prefix}:"));
        create
            .arg("SCHEMA")
            .arg("p")
            .arg("TAG")
            .arg("g")
            .arg("TAG")
            .arg("v")
            .arg("VECTOR")
            .arg("FLAT")
            .arg(6);
        create.arg("TYPE").arg("FLOAT32").arg("DIM").arg(dimensions).arg("DISTANCE_METRIC").arg("COSINE");
        let made = match self.link.command::<Value>("search", Repeat::Safe, &create).await {
            Ok(_) => true,
            Err(e) => e.source().is_some_and(|e| e.to_string().contains("already exists")),
        };
        if made {
            self.search.lock().indexed.insert(dimensions);
        }
        made
    }
}

impl Tenant<'_> {
    /// The positive cosines of the vectors of `ids` with the query's.
    ///
    /// - `kind`: `ev` or `fv`, the hash that has them. `scan`: what was read of the index, vectors included where they were few.
    pub(crate) async fn cosines(
        &self,
        operation: &'static str,
        kind: &'static str,
        scan: &Scan,
        ids: &[u128],
        query: &Embedding,
    ) -> Result<HashMap<u128, f32>> {
        let probe = Probe::new(query);
        if let Some(vectors) = &scan.vectors {
            let cosine = |id: &u128| Some((*id, probe.cosine_of(vectors.get(id)?)?));
            return Ok(ids.iter().filter_map(cosine).collect());
        }
        let mut cosines = HashMap::new();
        let mut unsure: Vec<u128> = Vec::new();
        let told = self.nearest(operation, kind, &scan.generation, query, ids.len()).await;
        let mut near: Vec<(f32, u128)> = Vec::with_capacity(ids.len());
        for id in ids {
            match told.get(id) {
                Some(cosine) => near.push((*cosine, *id)),
                None => unsure.push(*id),
            }
        }
        near.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        for (n, (cosine, id)) in near.iter().enumerate() {
            let close = |other: Option<&(f32, u128)>| other.is_some_and(|o| (o.0 - cosine).abs() <= ROUNDING);
            if cosine.abs() <= ROUNDING || close(near.get(n + 1)) || (n > 0 && close(near.get(n - 1))) {
                unsure.push(*id);
            } else if *cosine > 0.0 {
                cosines.insert(*id, *cosine);
            }
        }
        for fetched in self.fetch(operation, "", kind, &unsure).await? {
            let cosine = fetched.vector.and_then(|v| probe.cosine_of(&v.vector));
            cosines.extend(cosine.map(|cosine| (fetched.id, cosine)));
        }
        Ok(cosines)
    }

    /// What the search index knows of the tenant's vectors, about as near as it says; nothing when it cannot be asked.
    async fn nearest(
        &self,
        operation: &'static str,
        kind: &str,
        generation: &str,
        query: &Embedding,
        count: usize,
    ) -> HashMap<u128, f32> {
        let shared = self.shared;
        let dimensions = query.vector.len();
        if !is_sane(&query.vector) || !shared.has_search().await || !shared.index(dimensions).await {
            return HashMap::new();
        }
        let letter = if kind == "ev" { 'e' } else { 'f' };
        let asked = shared.schema.nearest(&self.keys, generation, letter, count);
        let mut search = redis::cmd("FT.SEARCH");
        search.arg(format!("{}{dimensions}", shared.schema.search_prefix())).arg(asked);
        search.arg("PARAMS").arg(2).arg("q").arg(rank::vector_to_bytes(&query.vector));
        search.arg("RETURN").arg(1).arg("d").arg("LIMIT").arg(0).arg(count).arg("DIALECT").arg(2);
        let answer = shared.link.command::<Value>(operation, Repeat::Safe, &search).await;
        let Ok(Value::Array(found)) = answer else {
            // The index may be gone; whoever writes next makes it again.
            shared.search.lock().indexed.remove(&dimensions);
            return HashMap::new();
        };
        // How many there are, then names and fields by turns.
        found[1..].chunks_exact(2).filter_map(|pair| read_hit(&pair[0], &pair[1])).collect()
    }
}

fn read_hit(name: &Value, fields: &Value) -> Option<(u128, f32)> {
    let name = text(name.clone())?;
    let id = u128::from_str_radix(name.get(name.len().checked_sub(32)?..)?, 16).ok()?;
    let distance = list(fields.clone()).ok()?.into_iter().nth(1).and_then(bytes)?;
    let distance: f32 = std::str::from_utf8(&distance).ok()?.parse().ok()?;
    distance.is_finite().then_some((id, 1.0 - distance))
}

fn is_sane(vector: &[f32]) -> bool {
    SANE.contains(&vector.iter().map(|x| x * x).sum::<f32>())
}
