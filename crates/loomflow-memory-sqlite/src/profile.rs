//! The profile: what is held of a tenant, counted, with samples.

use loomflow_core::rules::PROFILE_SAMPLES;
use loomflow_core::{FactQuery, MemoryProfile, Owned, Owner, Result, Scope, SessionId, Timestamp};
use loomflow_support_sql::sqlite::failed;
use sqlx::sqlite::SqliteConnection;

use crate::schema::{self, Columns as _, Filter};
use crate::{blocks, facts};

const OPERATION: &str = "profile";

const EPISODES: &str =
    "SELECT count(*) AS n, max(k.at) AS last FROM memory_episodes AS k WHERE k.partition = ?1";
const CURRENT_FACTS: &str = "SELECT count(*) AS n FROM memory_facts AS k WHERE k.partition = ?1 AND k.known_until IS NULL \
                             AND k.valid_from <= ?2 AND (k.valid_until IS NULL OR ?2 < k.valid_until)";
const NEXT_SESSION: &str = "SELECT k.session AS key, t.session, t.namespace, t.user_id FROM memory_episodes AS k \
                            CROSS JOIN memory_episode_texts AS t ON t.content = k.content \
                            WHERE k.partition = ?1 AND k.session NOT IN (SELECT value FROM json_each(?2)) \
                            ORDER BY k.at DESC, k.id DESC LIMIT 1";

/// What is held; facts are those that hold at `now`.
pub(crate) async fn profile(
    conn: &mut SqliteConnection,
    filter: Filter,
    scope: &Scope,
    now: Timestamp,
) -> Result<Owned<MemoryProfile>> {
    let fail = failed(OPERATION);
    let mut profile = MemoryProfile::default();
    let mut owners: Vec<Owner> = Vec::new();
    let key = schema::partition(scope);
    let row = sqlx::query(filter.sql(EPISODES)).bind(&key[..]).fetch_one(&mut *conn).await.map_err(fail)?;
    profile.episodes = row.cell::<i64>("n")?.cast_unsigned();
    profile.last_seen = row.time_if_any("last")?;
    let row = sqlx::query(filter.sql(CURRENT_FACTS)).bind(&key[..]).bind(now.as_micros());
    let row = row.fetch_one(&mut *conn).await.map_err(fail)?;
    profile.facts = row.cell::<i64>("n")?.cast_unsigned();
    for (owner, _) in blocks::blocks(conn, filter, scope).await? {
        profile.blocks += 1;
        owners.push(owner);
    }
    let mut seen = Vec::new();
    while seen.len() < PROFILE_SAMPLES {
        let next =
            sqlx::query(filter.sql(NEXT_SESSION)).bind(&key[..]).bind(schema::list(seen.iter().copied()));
        let Some(row) = next.fetch_optional(&mut *conn).await.map_err(fail)? else { break };
        seen.push(row.cell("key")?);
        profile.recent_sessions.push(SessionId::new(row.cell::<&str>("session")?)?);
        owners.push(row.owner(&mut None)?);
    }
    for (owner, fact) in facts::query(conn, filter, scope, &FactQuery::current(now, PROFILE_SAMPLES)).await? {
        owners.push(owner);
        profile.sample_facts.push(fact);
    }
    // One row of somebody else's is enough for the whole to be somebody else's. A profile of nothing has no row.
    let foreign = owners.iter().find(|owner| !scope.owns(owner));
    let owner = foreign.or(owners.first()).unwrap_or(scope.owner()).clone();
    Ok(Owned::new(owner, profile))
}
