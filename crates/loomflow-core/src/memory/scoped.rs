//! A tenant's own memory, as tools and applications get it: no argument names a user.

use std::fmt;
use std::sync::Arc;

use crate::context::{Services, open_all, open_owned};
use crate::error::{Error, Result};
use crate::identity::SessionId;
use crate::ids::EpisodeId;
use crate::memory::{
    Asserted, EpisodeMatch, Fact, FactQuery, FactStore, HistoryLimit, MemoryBlock, MemoryProfile, NewEpisode,
    NewFact, PutBlock, RecallQuery,
};
use crate::message::{Message, Role};
use crate::scope::Scope;

/// The memory of one tenant. It takes no user argument, so there is no second tenant to mix up, and everything it
/// returns has been checked to be the tenant's own.
pub struct ScopedMemory {
    services: Arc<Services>,
    scope: Scope,
}

impl ScopedMemory {
    pub(crate) fn within(services: Arc<Services>, scope: Scope) -> Self {
        Self { services, scope }
    }

    /// Stores a turn. See [`MemoryStore::remember`](crate::MemoryStore::remember).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Erased`](crate::ErrorKind::Erased) after the tenant's data was erased,
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a system message; whatever the store fails with.
    pub async fn remember(&self, episode: NewEpisode) -> Result<EpisodeId> {
        if episode.messages.iter().any(|message| message.role == Role::System) {
            return Err(Error::invalid_input(
                "an episode holds what was said, and no system message: instructions are not remembered",
            ));
        }
        self.services.memory.remember(&self.scope, episode).await
    }

    /// The episodes that match best. See [`MemoryStore::recall`](crate::MemoryStore::recall).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::IsolationViolation`](crate::ErrorKind::IsolationViolation) when the store returned anything of
    /// another tenant; whatever the store fails with.
    pub async fn recall(&self, query: &RecallQuery) -> Result<Vec<EpisodeMatch>> {
        let found = self.services.memory.recall(&self.scope, query).await?;
        open_all(&self.services, &self.scope, "memory", found).await
    }

    /// The latest messages of a session. See [`MemoryStore::history`](crate::MemoryStore::history).
    ///
    /// # Errors
    ///
    /// As [`ScopedMemory::recall`].
    pub async fn history(&self, session: &SessionId, limit: HistoryLimit) -> Result<Vec<Message>> {
        let found = self.services.memory.history(&self.scope, session, limit).await?;
        open_all(&self.services, &self.scope, "memory", found).await
    }

    /// All blocks, in their order.
    ///
    /// # Errors
    ///
    /// As [`ScopedMemory::recall`].
    pub async fn blocks(&self) -> Result<Vec<MemoryBlock>> {
        let found = self.services.memory.blocks(&self.scope).await?;
        open_all(&self.services, &self.scope, "memory", found).await
    }

    /// Writes or removes one block.
    ///
    /// # Errors
    ///
    /// As [`ScopedMemory::remember`].
    pub async fn put_block(&self, block: PutBlock) -> Result<()> {
        self.services.memory.put_block(&self.scope, block).await
    }

    /// What is held of this tenant, counted.
    ///
    /// # Errors
    ///
    /// As [`ScopedMemory::recall`].
    pub async fn profile(&self) -> Result<MemoryProfile> {
        let found = self.services.memory.profile(&self.scope).await?;
        open_owned(&self.services, &self.scope, "memory", found).await
    }

    /// Asserts a fact. See [`FactStore`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) when the memory has no facts; otherwise as
    /// [`ScopedMemory::remember`].
    pub async fn assert_fact(&self, fact: NewFact) -> Result<Asserted> {
        self.fact_store()?.assert(&self.scope, fact).await
    }

    /// The facts that match. See [`FactStore`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) when the memory has no facts; otherwise as
    /// [`ScopedMemory::recall`].
    pub async fn facts(&self, query: &FactQuery) -> Result<Vec<Fact>> {
        let found = self.fact_store()?.query(&self.scope, query).await?;
        open_all(&self.services, &self.scope, "facts", found).await
    }

    fn fact_store(&self) -> Result<&dyn FactStore> {
        let memory = &self.services.memory;
        memory.facts().ok_or_else(|| Error::unsupported(memory.store_name(), "facts"))
    }
}

impl fmt::Debug for ScopedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScopedMemory({:?})", self.scope)
    }
}
