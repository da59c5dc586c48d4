//! Episodes: remembered, recalled, replayed.

use std::collections::HashSet;
use std::sync::Arc;

use loomflow_core::rules::rank::{self, Candidate, Probe, Scored};
use loomflow_core::rules::words::{Corpus, QueryTerms};
use loomflow_core::rules::{PROFILE_SAMPLES, Space, check_embedding, latest_that_fit};
use loomflow_core::{
    Episode, EpisodeId, EpisodeMatch, HistoryLimit, Message, NewEpisode, Owned, Owner, RecallQuery, Result,
    Scope, SessionId, Timestamp,
};

use crate::codec::{self, Entry, EpisodeRow, Row, id_of, order_key, session_key, session_order};
use crate::tenant::{Commit, Committed, Tenant};

/// How many places of an order are looked at in one exchange.
const PAGE: usize = 64;
const LARGE_PAGE: usize = 1_000;

impl Tenant<'_> {
    pub(crate) async fn remember(&self, scope: &Scope, new: NewEpisode) -> Result<EpisodeId> {
        let episode = Episode::from(new);
        let id = episode.id.as_u128();
        if let Err(refusal) = check_embedding(episode.embedding.as_ref(), "remember") {
            // A run that is known changes nothing, whatever comes with it.
            let commit = Commit::new("remember").unless_known("ep", id);
            return match self.look(scope, commit).await? {
                Committed::Known => Ok(episode.id),
                _ => Err(refusal),
            };
        }
        let row = codec::episode_row(scope.owner(), &episode)?;
        let entry = Entry::of(&episode);
        let key = id.to_be_bytes();
        let mut commit =
            Commit::new("remember").unless_known("ep", id).with_vector(episode.embedding.as_ref());
        commit.op("set", "ep", &key, row);
        commit.op("set", "ix", &key, entry.to_bytes());
        commit.op("add", "or", &order_key(episode.at, id), Vec::new());
        commit.op("add", "os", &session_order(&entry.session, episode.at, id), Vec::new());
        if let Some(embedding) = &episode.embedding {
            commit.op("set", "ev", &key, rank::vector_to_bytes(&embedding.vector));
            if self.shared.may_index(&embedding.vector).await {
                commit.op("index", "e", &key, Vec::new());
            }
        }
        self.commit(scope, commit).await?;
        Ok(episode.id)
    }

    pub(crate) async fn recall(&self, query: &RecallQuery) -> Result<Vec<Owned<EpisodeMatch>>> {
        let vector = query.embedding.as_ref();
        check_embedding(vector, "recall")?;
        let terms = QueryTerms::parse(&query.text);
        let hidden = match &query.exclude_history {
            Some((session, limit)) => self.latest_of(session, *limit).await?.into_iter().collect(),
            None => HashSet::new(),
        };
        if terms.is_empty() && vector.is_none() {
            let ids = self.newest(query.limit, &hidden).await?;
            let found: Vec<Scored> = ids.into_iter().map(unscored).collect();
            return self.matched(&found, vector).await;
        }
        let scan = self.scan("recall", "ix", if vector.is_some() { "ev" } else { "" }, false).await?;
        Space::check(scan.meta.space.as_ref(), vector, "recall")?;
        let entries: Vec<(u128, Entry)> = scan
            .entries
            .iter()
            .map(|(id, entry)| Ok((id_of(id)?, Entry::read(entry)?)))
            .collect::<Result<_>>()?;
        let cosines = match vector {
            Some(vector) => {
                let with: Vec<u128> = entries.iter().filter(|(_, e)| e.vector).map(|(id, _)| *id).collect();
                self.cosines("recall", "ev", &scan, &with, vector).await?
            }
            None => Default::default(),
        };
        let corpus = Corpus {
            documents: entries.len(),
            terms: entries.iter().map(|(_, e)| e.terms.len() as u64).sum(),
        };
        let candidates: Vec<Candidate<'_>> = entries
            .iter()
            .map(|(id, entry)| Candidate {
                at: entry.at,
                id: *id,
                terms: &entry.terms,
                cosine: cosines.get(id).copied(),
                hidden: hidden.contains(id),
            })
            .collect();
        self.matched(&rank::rank(&terms, corpus, &candidates, query.limit), vector).await
    }

    pub(crate) async fn history(
        &self,
        session: &SessionId,
        limit: HistoryLimit,
    ) -> Result<Vec<Owned<Message>>> {
        let mut ids = self.latest_of(session, limit).await?;
        ids.reverse();
        let mut out = Vec::new();
        let mut last = None;
        for fetched in self.fetch("history", "ep", "", &ids).await? {
            let Some(row) = fetched.row else { continue };
            let (owner, episode) = read_episode(&row, fetched.id, &mut last)?;
            out.extend(episode.messages.iter().map(|m| Owned::new(owner.clone(), m.clone())));
        }
        Ok(out)
    }

    /// The sessions of the newest episodes, newest first.
    pub(crate) async fn recent_sessions(&self) -> Result<Vec<SessionId>> {
        let (mut seen, mut ids): (HashSet<[u8; 16]>, Vec<u128>) = Default::default();
        let mut below: Option<Vec<u8>> = None;
        loop {
            let page = if below.is_none() { PAGE } else { LARGE_PAGE };
            let (_, found) = self.latest("profile", "or", b"", below.as_deref(), page).await?;
            for (member, head) in &found {
                if !head.is_empty() && ids.len() < PROFILE_SAMPLES && seen.insert(Entry::read(head)?.session)
                {
                    ids.push(tail_id(member)?);
                }
            }
            if found.len() < page || ids.len() == PROFILE_SAMPLES {
                break;
            }
            below = found.into_iter().next_back().map(|(member, _)| member);
        }
        let rows = self.fetch("profile", "ep", "", &ids).await?;
        let session = |row: Vec<u8>, id| Ok(read_episode(&row, id, &mut None)?.1.session);
        rows.into_iter().filter_map(|f| Some((f.row?, f.id))).map(|(row, id)| session(row, id)).collect()
    }

    /// The newest episodes that are not `hidden`, newest first.
    async fn newest(&self, limit: usize, hidden: &HashSet<u128>) -> Result<Vec<u128>> {
        let mut ids = Vec::new();
        let mut below: Option<Vec<u8>> = None;
        while ids.len() < limit {
            let page = (limit - ids.len()).saturating_add(hidden.len()).clamp(1, LARGE_PAGE);
            let (_, found) = self.latest("recall", "or", b"", below.as_deref(), page).await?;
            for (member, _) in &found {
                let id = tail_id(member)?;
                if !hidden.contains(&id) && ids.len() < limit {
                    ids.push(id);
                }
            }
            if found.len() < page {
                break;
            }
            below = found.into_iter().next_back().map(|(member, _)| member);
        }
        Ok(ids)
    }

    /// The latest episodes of a session whose messages fit, newest first.
    async fn latest_of(&self, session: &SessionId, limit: HistoryLimit) -> Result<Vec<u128>> {
        let session = session_key(session);
        let (mut ids, mut counts) = (Vec::new(), Vec::new());
        let mut below: Option<Vec<u8>> = None;
        loop {
            let (_, found) = self.latest("history", "os", &session, below.as_deref(), PAGE).await?;
            for (member, head) in &found {
                if !head.is_empty() {
                    ids.push(tail_id(member)?);
                    counts.push(Entry::read(head)?.messages);
                }
            }
            let fit = latest_that_fit(counts.iter().copied(), limit);
            if found.len() < PAGE || fit < ids.len() {
                ids.truncate(fit);
                return Ok(ids);
            }
            below = found.into_iter().next_back().map(|(member, _)| member);
        }
    }

    /// The episodes that were found, with their vectors and the cosines of those.
    async fn matched(
        &self,
        found: &[Scored],
        query: Option<&loomflow_core::Embedding>,
    ) -> Result<Vec<Owned<EpisodeMatch>>> {
        let ids: Vec<u128> = found.iter().map(|f| f.id).collect();
        let probe = query.map(Probe::new);
        let mut out = Vec::with_capacity(found.len());
        let mut last = None;
        for (fetched, found) in self.fetch("recall", "ep", "ev", &ids).await?.into_iter().zip(found) {
            // Erased since it was found.
            let Some(row) = fetched.row else { continue };
            let (owner, mut episode) = read_episode(&row, fetched.id, &mut last)?;
            episode.embedding = fetched.vector;
            let exact = probe.as_ref().zip(episode.embedding.as_ref()).and_then(|(p, v)| p.cosine(v));
            let cosine = found.cosine.and(exact);
            let matched = EpisodeMatch::new(Arc::new(episode), found.score).with_scores(found.bm25, cosine);
            out.push(Owned::new(owner, matched));
        }
        Ok(out)
    }
}

/// An episode without its vector, and whose it is. `last` is the owner of the row before.
pub(crate) fn read_episode(row: &[u8], id: u128, last: &mut Option<Owner>) -> Result<(Owner, Episode)> {
    let row = Row::<EpisodeRow>::read(row)?;
    let owner = row.owner(last.as_ref())?;
    *last = Some(owner.clone());
    Ok((owner, row.v.into_episode(id)))
}

/// The id at the end of an order's member.
pub(crate) fn tail_id(member: &[u8]) -> Result<u128> {
    id_of(member.last_chunk::<16>().ok_or_else(codec::unreadable)?)
}

fn unscored(id: u128) -> Scored {
    Scored { index: 0, at: Timestamp::MIN, id, bm25: None, cosine: None, score: 0.0 }
}
