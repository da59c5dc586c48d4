//! The embedder: batches off the workers that other tenants' runs need, and only so many at a time.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{AdmittedEmbed, Embedded, Embedder, Price, Result, RunContext, Usage, estimate_tokens};
use tokio::task::spawn_blocking;

use crate::config::LocalEmbedderConfig;
use crate::files::{Files, refused};
use crate::network::Network;
use crate::places::Places;

/// Embeds with a BERT model in this process, on the CPU, from a folder. It uses no network and keeps nothing of any
/// tenant.
///
/// A text is cut at the model's longest; vectors have length one. Computing happens on tokio's threads for blocking work,
/// in batches, so many at a time as [`LocalEmbedderConfig::parallel`] says. When a future is dropped, the batch that is
/// being computed ends and no other begins.
pub struct LocalEmbedder {
    network: Arc<Network>,
    name: String,
    batch: usize,
    places: Places,
}

impl LocalEmbedder {
    /// The model in `dir`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], naming the file: one is missing, damaged, of another model than its neighbours, or asks for
    /// something that is not computed here (another architecture, another pooling, another layer).
    pub async fn open(dir: impl AsRef<Path> + Send) -> Result<Self> {
        Self::with_config(LocalEmbedderConfig::new(dir.as_ref())).await
    }

    /// The model that `config` names.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub async fn with_config(config: LocalEmbedderConfig) -> Result<Self> {
        let LocalEmbedderConfig { dir, batch, parallel } = config;
        let at = dir.clone();
        let opened = spawn_blocking(move || {
            let files = Files::read(&dir)?;
            let name = format!("local/{}/{}/{}", files.label, files.config.hidden_size, files.fingerprint);
            Network::load(&dir, files).map(|network| (network, name))
        });
        // A model that no check foresaw may panic in the library that loads it.
        let (network, name) =
            opened.await.map_err(|_| refused(&at, "holds a model that cannot be loaded"))??;
        Ok(Self { network: Arc::new(network), name, batch: batch.max(1), places: Places::new(parallel) })
    }
}

impl fmt::Debug for LocalEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEmbedder").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Embedder for LocalEmbedder {
    /// `local/<what the model calls itself>/<dimensions>/<fingerprint>`. The fingerprint is of every byte that a vector
    /// depends on and not of where the folder lies: a model that was trained on is another, a moved one is not.
    fn name(&self) -> &str {
        &self.name
    }

    fn dimensions(&self) -> usize {
        self.network.dimensions()
    }

    fn price(&self) -> Option<Price> {
        Some(Price::default())
    }

    fn count_tokens(&self, text: &str) -> u64 {
        self.network.count(text).unwrap_or_else(|_| estimate_tokens(text))
    }

    async fn embed(&self, _ctx: &RunContext, call: AdmittedEmbed) -> Result<Embedded> {
        let (mut vectors, mut tokens) = (Vec::with_capacity(call.texts().len()), 0);
        for batch in call.texts().chunks(self.batch) {
            let (network, texts) = (self.network.clone(), batch.to_vec());
            let computed = self.places.compute(move || network.compute(&texts)).await?;
            vectors.extend(computed.vectors);
            tokens += computed.tokens;
        }
        Ok(Embedded::new(vectors, Some(Usage::new(tokens, 0))))
    }
}
