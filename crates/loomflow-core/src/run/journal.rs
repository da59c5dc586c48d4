//! The run's journal: an effect is begun, made and committed; on replay what is recorded is handed back instead.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::event::EventKind;
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

/// An effect of a run, as its journal counts them.
#[derive(Debug)]
pub(crate) struct Step {
    seq: u32,
    idempotent: bool,
    repeating: Option<EventKind>,
}

impl Step {
    /// The effect number `seq`; making it twice is the same as making it once.
    pub(crate) fn idempotent(seq: u32) -> Self {
        Self { seq, idempotent: true, repeating: None }
    }

    /// The effect number `seq`; whether it may be made twice is for `idempotent` to say.
    pub(crate) fn new(seq: u32, idempotent: bool) -> Self {
        Self { seq, idempotent, repeating: None }
    }

    /// Says `event` before an effect that a crash cut off is made again.
    pub(crate) fn saying_when_repeated(mut self, event: EventKind) -> Self {
        self.repeating = Some(event);
        self
    }
}

impl RunState {
    /// Makes an effect once over all lives of the run. Without a journal the effect is simply made, in place: a run that
    /// is not journaled must not pay for one that is.
    pub(crate) async fn journaled<T, F>(
        &self,
        step: Step,
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
                let key = StepKey::new(step.seq, fingerprint(), step.idempotent);
                Box::pin(self.through_journal(&**runtime, key, step.repeating, effect)).await
            }
        }
    }

    async fn through_journal<T, F>(
        &self,
        runtime: &dyn Runtime,
        step: StepKey,
        repeating: Option<EventKind>,
        effect: impl FnOnce() -> F + Send,
    ) -> Result<Journaled<T>>
    where
        T: Serialize + DeserializeOwned + Send + Sync,
        F: Future<Output = Result<T>> + Send,
    {
        let (scope, seq) = (self.ctx.scope(), step.seq);
        let known = runtime.begin(scope, &self.lease, &step).await?;
        match &known {
            Recorded::Done(text) => {
                let value = serde_json::from_str(text).map_err(|e| {
                    Error::new(ErrorKind::Internal, format!("step {seq} of the journal cannot be read: {e}"))
                })?;
                return Ok(Journaled::Replayed(value));
            }
            Recorded::InDoubt if !step.idempotent => return Ok(Journaled::InDoubt),
            Recorded::InDoubt | Recorded::Fresh => {}
        }
        if let (Recorded::InDoubt, Some(void)) = (&known, repeating) {
            self.emit(|| void).await;
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
