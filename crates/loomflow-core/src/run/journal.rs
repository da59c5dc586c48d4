//! The run's journal: an effect is begun, made and committed; on replay what is recorded is handed back instead.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::message::Digest;
use crate::run::RunState;
use crate::runtime::{Recorded, Runtime, StepKey};

/// What came of a journaled effect.
#[derive(Debug)]
pub(crate) enum Journaled<T> {
    /// It was made now.
    Made(T),
    /// It was made before, and this was recorded.
    Replayed(T),
    /// It was begun before, its end is not known, and repeating it could do it twice.
    InDoubt,
}

impl RunState {
    /// Makes an effect once over all lives of the run. Without a journal the effect is simply made, in place: a run that
    /// is not journaled must not pay for one that is.
    pub(crate) async fn journaled<T, F>(
        &self,
        seq: u32,
        idempotent: bool,
        fingerprint: impl FnOnce() -> Digest + Send,
        effect: impl FnOnce() -> F + Send,
    ) -> Result<Journaled<T>>
    where
        T: Serialize + DeserializeOwned + Send + Sync,
        F: Future<Output = Result<T>> + Send,
    {
        match self.agent.runtime.as_ref().filter(|runtime| runtime.journals()) {
            None => effect().await.map(Journaled::Made),
            Some(runtime) => {
                let step = StepKey::new(seq, fingerprint(), idempotent);
                Box::pin(self.through_journal(&**runtime, step, effect)).await
            }
        }
    }

    async fn through_journal<T, F>(
        &self,
        runtime: &dyn Runtime,
        step: StepKey,
        effect: impl FnOnce() -> F + Send,
    ) -> Result<Journaled<T>>
    where
        T: Serialize + DeserializeOwned + Send + Sync,
        F: Future<Output = Result<T>> + Send,
    {
        let (scope, seq) = (self.ctx.scope(), step.seq);
        match runtime.begin(scope, &self.lease, &step).await? {
            Recorded::Done(text) => {
                let value = serde_json::from_str(&text).map_err(|e| {
                    Error::new(ErrorKind::Internal, format!("step {seq} of the journal cannot be read: {e}"))
                })?;
                return Ok(Journaled::Replayed(value));
            }
            Recorded::InDoubt if !step.idempotent => return Ok(Journaled::InDoubt),
            Recorded::InDoubt | Recorded::Fresh => {}
        }
        let value = effect().await?;
        let plain = serde_json::to_value(&value).map_err(|e| {
            Error::new(ErrorKind::Internal, format!("step {seq} cannot be written down: {e}"))
        })?;
        runtime.commit(scope, &self.lease, &step, self.ctx.redactor().json(&plain)).await?;
        Ok(Journaled::Made(value))
    }

    /// A digest of values as a journal would keep them: redacted, so that a replayed prompt has the same one.
    pub(crate) fn fingerprint(&self, what: &str, value: &impl Serialize) -> Digest {
        let plain = serde_json::to_value(value).unwrap_or_default();
        Digest::of(&[what.as_bytes(), self.ctx.redactor().json(&plain).get().as_bytes()])
    }
}
