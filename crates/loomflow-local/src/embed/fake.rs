//! A double: the vectors a test wants.

use std::sync::Arc;

use async_trait::async_trait;
use hashbrown::HashMap;
use loomflow_core::{AdmittedEmbed, Embedded, Embedder, Error, Price, Result, RunContext, Usage};

/// An embedder for tests: gives each text the vector it was told, and refuses every other text by name.
///
/// It is not meant for production: it knows no language at all.
#[derive(Clone, Debug)]
pub struct FakeEmbedder {
    dimensions: usize,
    vectors: HashMap<Arc<str>, Arc<[f32]>>,
}

impl FakeEmbedder {
    /// An embedder that knows no text yet, of `dimensions` components.
    #[must_use]
    pub fn new(dimensions: usize) -> Self {
        Self { dimensions, vectors: HashMap::new() }
    }

    /// Gives `text` this vector.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](loomflow_core::ErrorKind::InvalidInput) when the vector has another length.
    pub fn with(mut self, text: impl Into<Arc<str>>, vector: impl Into<Arc<[f32]>>) -> Result<Self> {
        let (text, vector) = (text.into(), vector.into());
        if vector.len() != self.dimensions {
            return Err(Error::invalid_input(format!(
                "the vector of {text:?} has {} components and the embedder {}",
                vector.len(),
                self.dimensions
            )));
        }
        self.vectors.insert(text, vector);
        Ok(self)
    }
}

#[async_trait]
impl Embedder for FakeEmbedder {
    fn name(&self) -> &str {
        "fake"
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn price(&self) -> Option<Price> {
        Some(Price::default())
    }

    async fn embed(&self, _ctx: &RunContext, call: AdmittedEmbed) -> Result<Embedded> {
        let known = |text: &Arc<str>| {
            let vector = self.vectors.get(text).cloned();
            vector
                .ok_or_else(|| Error::invalid_input(format!("the fake embedder has no vector for {text:?}")))
        };
        let vectors = call.texts().iter().map(known).collect::<Result<Vec<_>>>()?;
        let tokens = call.texts().iter().map(|text| self.count_tokens(text)).sum();
        Ok(Embedded::new(vectors, Some(Usage::new(tokens, 0))))
    }
}

#[cfg(test)]
mod tests {
    use loomflow_core::EmbedPurpose;
    use loomflow_core::danger::{admit_embed, assume_scope, detached_context};
    use loomflow_core::{Epoch, Identity, Namespace};

    use super::*;

    #[tokio::test]
    async fn it_gives_what_it_was_told_and_names_what_it_was_not() {
        let embedder = FakeEmbedder::new(2).with("cat", [1.0, 0.0]).unwrap();
        let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
        let done =
            embedder.embed(&ctx, admit_embed(vec!["cat".into()], EmbedPurpose::Document)).await.unwrap();
        assert_eq!(&*done.vectors[0], [1.0, 0.0]);
        let error = embedder
            .embed(&ctx, admit_embed(vec!["cat".into(), "dog".into()], EmbedPurpose::Document))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("\"dog\""), "{error}");
        assert!(FakeEmbedder::new(2).with("cat", [1.0]).is_err());
    }
}
