//! Where the model lies, and how much of the machine it may take.

use std::path::PathBuf;

use serde::Deserialize;

/// Which model, and how many texts and batches at a time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LocalEmbedderConfig {
    /// The folder with `config.json`, `tokenizer.json`, `model.safetensors` and `1_Pooling/config.json`.
    pub dir: PathBuf,
    /// Texts that go through the model together.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Batches that are computed at the same time; the others wait. One already uses every core.
    #[serde(default = "parallel")]
    pub parallel: usize,
}

impl LocalEmbedderConfig {
    /// The model in `dir`, with everything else as usual.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), batch: batch(), parallel: parallel() }
    }

    /// Sets how many texts go through the model together; 32 otherwise, and at least 1.
    #[must_use]
    pub fn with_batch(mut self, texts: usize) -> Self {
        self.batch = texts;
        self
    }

    /// Sets how many batches are computed at the same time; 1 otherwise, and at least 1.
    #[must_use]
    pub fn with_parallel(mut self, batches: usize) -> Self {
        self.parallel = batches;
        self
    }
}

fn batch() -> usize {
    32
}

fn parallel() -> usize {
    1
}
