//! Episodes: writing a turn, reading a conversation, and the profile.

use loomflow_core::rules::{PROFILE_SAMPLES, Space, check_embedding, latest_that_fit, words};
use loomflow_core::{
    Embedding, Episode, EpisodeId, Epoch, Error, ErrorKind, HistoryLimit, MemoryProfile, Message, NewEpisode,
    Owned, Owner, Result, Scope, SessionId,
};
use loomflow_support_sql::postgres::{Access, failed};

use crate::PostgresMemory;
use crate::rows::Read;
use crate::schema::{Key, VectorColumns, id_column, signed, space};

/// Writes an episode unless its run is known, its scope is stale or its vector is of another space, and says what it
/// found. Two who bring a partition its first vector at once are told apart by `spaced`: the second settled nothing.
const REMEMBER: &str = "
WITH part AS MATERIALIZED (
  SELECT epoch, space_model, space_dimensions FROM memory_partitions WHERE partition = $1
), known AS MATERIALIZED (
  SELECT 1 FROM memory_episodes WHERE partition = $1 AND id = $5
), fits AS MATERIALIZED (
  SELECT 1 WHERE NOT EXISTS (SELECT FROM known) AND NOT EXISTS (SELECT FROM part WHERE epoch > $4
    OR ($12::bytea IS NOT NULL AND space_model IS NOT NULL AND (space_model <> $12 OR space_dimensions <> $13)))
), made AS (
  INSERT INTO memory_partitions (partition, namespace, user_id, space_model, space_dimensions)
  SELECT $1, $2, $3, $12, $13 FROM fits WHERE NOT EXISTS (SELECT FROM part)
  ON CONFLICT (partition) DO NOTHING RETURNING 1
), spaced AS (
  UPDATE memory_partitions SET namespace = $2, user_id = $3, space_model = coalesce(space_model, $12),
    space_dimensions = coalesce(space_dimensions, $13)
  WHERE partition = $1 AND EXISTS (SELECT FROM fits)
    AND (namespace = '' OR ($12 IS NOT NULL AND space_model IS NULL))
  RETURNING 1
), written AS (
  INSERT INTO memory_episodes (partition, namespace, user_id, id, session, said_at, message_count, term_count, terms,
    messages, embedding)
  SELECT $1, $2, $3, $5, $6, $7, $8, cardinality($9::bigint[]), $9, $10, $11::real[]::vector FROM fits
  ON CONFLICT (partition, id) DO NOTHING RETURNING 1
)
SELECT (SELECT epoch FROM part) AS epoch, (SELECT space_model FROM part) AS space_model,
  (SELECT space_dimensions FROM part) AS space_dimensions, EXISTS (SELECT FROM known) AS known,
  EXISTS (SELECT FROM made) OR EXISTS (SELECT FROM spaced) AS spaced,
  EXISTS (SELECT FROM written) AS written";

/// How often a write is begun again because another brought the partition its first vector meanwhile: it has one then.
const SPACE_TRIES: usize = 3;

const EPOCH: &str = "SELECT epoch FROM memory_partitions WHERE partition = $1";

const HISTORY: &str = "
SELECT namespace, user_id, message_count, messages, said_at, id FROM memory_episodes
WHERE partition = $1 AND session = $2 AND (said_at, id) < ($3, $4::bytea)
ORDER BY said_at DESC, id DESC LIMIT $5";

/// Counts, and whose the counted rows say they are: somebody else, if any row says so.
const PROFILE: &str = "
SELECT namespace, user_id,
  (SELECT count(*) FROM memory_episodes WHERE partition = $1) AS episodes,
  (SELECT max(said_at) FROM memory_episodes WHERE partition = $1) AS last_seen,
  (SELECT count(*) FROM memory_blocks WHERE partition = $1) AS blocks,
  (SELECT count(*) FROM memory_facts WHERE partition = $1 AND known_until IS NULL AND valid_from <= $2
     AND (valid_until IS NULL OR $2 < valid_until)) AS facts,
  ARRAY(SELECT session FROM (SELECT DISTINCT ON (session) session, said_at, id FROM memory_episodes
     WHERE partition = $1 ORDER BY session, said_at DESC, id DESC) newest
     ORDER BY said_at DESC, id DESC LIMIT $3) AS sessions
FROM (
  SELECT namespace, user_id FROM memory_episodes WHERE partition = $1
  UNION SELECT namespace, user_id FROM memory_blocks WHERE partition = $1
  UNION SELECT namespace, user_id FROM memory_facts WHERE partition = $1
) owners ORDER BY namespace = $4 AND user_id IS NOT DISTINCT FROM $5 LIMIT 1";

/// An episode in the form of its columns.
#[derive(Debug)]
pub(crate) struct Prepared {
    id: EpisodeId,
    session: SessionId,
    said_at: i64,
    message_count: i32,
    terms: Vec<i64>,
    messages: String,
    embedding: Option<Embedding>,
}

impl Prepared {
    pub(crate) fn new(new: NewEpisode) -> Result<Self> {
        let episode = Episode::from(new);
        let messages = serde_json::to_string(&episode.messages).map_err(|e| {
            Error::new(ErrorKind::Internal, "an episode cannot be written as JSON")
                .with_operation("remember")
                .with_source(e)
        })?;
        Ok(Self {
            id: episode.id,
            said_at: episode.at.as_micros(),
            message_count: i32::try_from(episode.messages.len()).unwrap_or(i32::MAX),
            terms: signed(&words::of_episode(&episode.messages)),
            messages,
            session: episode.session,
            embedding: episode.embedding,
        })
    }
}

impl PostgresMemory {
    pub(crate) async fn write_episode(&self, scope: &Scope, episode: &Prepared) -> Result<EpisodeId> {
        for _ in 0..SPACE_TRIES {
            if let Some(id) = self.try_write_episode(scope, episode).await? {
                return Ok(id);
            }
        }
        let message = "others bring and erase this user's first vector all the time; try again";
        Err(Error::new(ErrorKind::Overloaded, message).with_operation("remember"))
    }

    /// `None` when another brought the partition its first vector meanwhile.
    async fn try_write_episode(&self, scope: &Scope, episode: &Prepared) -> Result<Option<EpisodeId>> {
        const OPERATION: &str = "remember";
        let key = Key::of(scope);
        // A vector that cannot be stored is not sent; whether the run is known is asked all the same.
        let invalid = check_embedding(episode.embedding.as_ref(), OPERATION).err();
        let embedding = episode.embedding.as_ref().filter(|_| invalid.is_none());
        let vector = VectorColumns::of(embedding);
        let mut tx = self.begin(scope, Access::Write, OPERATION).await?;
        let row = sqlx::query(REMEMBER)
            .bind(key.partition)
            .bind(key.namespace)
            .bind(key.user_id)
            .bind(key.epoch)
            .bind(id_column(episode.id.as_u128()))
            .bind(episode.session.as_str())
            .bind(episode.said_at)
            .bind(episode.message_count)
            .bind(&episode.terms)
            .bind(&episode.messages)
            .bind(vector.components)
            .bind(vector.model)
            .bind(vector.dimensions)
            .fetch_one(tx.conn())
            .await
            .map_err(failed(OPERATION))?;
        let row = Read { row: &row, operation: OPERATION };
        let epoch = Epoch::new(row.get::<Option<i64>>("epoch")?.unwrap_or(0).unsigned_abs());
        if let Err(e) = scope.check_epoch(epoch, OPERATION) {
            return Err(tx.refuse(e).await);
        }
        if row.get("known")? {
            tx.commit().await?;
            return Ok(Some(episode.id));
        }
        let stored = space(row.get("space_model")?, row.get("space_dimensions")?);
        if let Some(e) = invalid.or(Space::check(stored.as_ref(), embedding, OPERATION).err()) {
            return Err(tx.refuse(e).await);
        }
        let raced = embedding.is_some() && stored.is_none() && !row.get::<bool>("spaced")?;
        if raced {
            let why = Error::new(ErrorKind::Conflict, "another vector came first").with_operation(OPERATION);
            drop(tx.refuse(why).await);
            return Ok(None);
        }
        tx.commit().await?;
        Ok(Some(episode.id))
    }

    pub(crate) async fn read_epoch(&self, scope: &Scope) -> Result<Epoch> {
        let mut tx = self.begin(scope, Access::Read, "epoch").await?;
        let stored: Option<i64> = sqlx::query_scalar(self.reads().sql(EPOCH))
            .bind(Key::of(scope).partition)
            .fetch_optional(tx.conn())
            .await
            .map_err(failed("epoch"))?;
        tx.commit().await?;
        Ok(Epoch::new(stored.unwrap_or(0).unsigned_abs()))
    }

    pub(crate) async fn read_history(
        &self,
        scope: &Scope,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        const OPERATION: &str = "history";
        if limit.messages == 0 {
            return Ok(Vec::new());
        }
        let page = limit.messages.saturating_add(1).min(1_000);
        let mut tx = self.begin(scope, Access::Read, OPERATION).await?;
        let mut latest: Vec<(usize, Owner, Vec<Message>)> = Vec::new();
        // After every row: no id has 17 bytes.
        let mut before = (i64::MAX, vec![u8::MAX; 17]);
        loop {
            let rows = sqlx::query(self.reads().sql(HISTORY))
                .bind(Key::of(scope).partition)
                .bind(session.as_str())
                .bind(before.0)
                .bind(&before.1)
                .bind(count(page))
                .fetch_all(tx.conn())
                .await
                .map_err(failed(OPERATION))?;
            for row in &rows {
                let row = Read { row, operation: OPERATION };
                let messages = row.messages()?;
                latest.push((messages.len(), row.owner()?, messages));
                before = (row.get("said_at")?, row.get("id")?);
            }
            // An episode may be without messages, so a full page may not be all that fits.
            let fit = latest_that_fit(latest.iter().map(|(n, ..)| *n), limit);
            if rows.len() < page || fit < latest.len() {
                latest.truncate(fit);
                break;
            }
        }
        tx.commit().await?;
        let oldest_first = latest.into_iter().rev();
        Ok(oldest_first
            .flat_map(|(_, owner, messages)| messages.into_iter().map(move |m| Owned::new(owner.clone(), m)))
            .collect())
    }

    pub(crate) async fn read_profile(&self, scope: &Scope) -> Result<Owned<MemoryProfile>> {
        const OPERATION: &str = "profile";
        let now = self.clock().now();
        let mut tx = self.begin(scope, Access::Read, OPERATION).await?;
        let key = Key::of(scope);
        let row = sqlx::query(self.reads().sql(PROFILE))
            .bind(key.partition)
            .bind(now.as_micros())
            .bind(count(PROFILE_SAMPLES))
            .bind(key.namespace)
            .bind(key.user_id)
            .fetch_optional(tx.conn())
            .await
            .map_err(failed(OPERATION))?;
        let facts = self.current_facts(&mut tx, scope, now, OPERATION).await?;
        tx.commit().await?;
        let Some(row) = row else {
            // A profile of nothing has no row to take an owner from.
            return Ok(Owned::new(scope.owner().clone(), MemoryProfile::default()));
        };
        let row = Read { row: &row, operation: OPERATION };
        let owner = row.owner()?;
        let mut profile = MemoryProfile::default();
        let number = |column| Ok::<_, Error>(row.get::<i64>(column)?.unsigned_abs());
        (profile.episodes, profile.facts, profile.blocks) =
            (number("episodes")?, number("facts")?, number("blocks")?);
        profile.last_seen = row.maybe_at("last_seen")?;
        let sessions: Vec<String> = row.get("sessions")?;
        profile.recent_sessions = sessions.into_iter().map(SessionId::new).collect::<Result<_>>()?;
        profile.sample_facts = facts.into_iter().map(|fact| fact.open(scope)).collect::<Result<_>>()?;
        Ok(Owned::new(owner, profile))
    }
}

/// A count as a parameter.
pub(crate) fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
