//! Feature hashing: vectors of words and of what words are made of, without a model.

use std::sync::Arc;

use async_trait::async_trait;
use loomflow_core::{AdmittedEmbed, Embedded, Embedder, Price, Result, RunContext, Usage};

const DEFAULT_DIMENSIONS: usize = 256;
const GRAMS: std::ops::RangeInclusive<usize> = 3..=5;

/// An embedder without a model: signed feature hashing of words and of their character 3- to 5-grams, of length 1.
///
/// The same text gives the same vector on every machine and in every version that keeps the name. It knows spelling and
/// not meaning: `refund` is near `refunds`, and nowhere near `money back`. It is free, so that memory works without a key.
///
/// A text without letters or digits has the zero vector, which is near nothing.
#[derive(Clone, Debug)]
pub struct HashEmbedder {
    name: Arc<str>,
    dimensions: usize,
}

impl HashEmbedder {
    /// Vectors of 256 components.
    #[must_use]
    pub fn new() -> Self {
        Self::with_dimensions(DEFAULT_DIMENSIONS)
    }

    /// Vectors of `dimensions` components; 0 counts as 1. The name says how many, since vectors of different lengths
    /// are never compared.
    #[must_use]
    pub fn with_dimensions(dimensions: usize) -> Self {
        let dimensions = dimensions.max(1);
        Self { name: format!("hash-{dimensions}").into(), dimensions }
    }

    /// The vector of `text`.
    #[must_use]
    pub fn vector(&self, text: &str) -> Arc<[f32]> {
        let mut sum = vec![0.0_f32; self.dimensions];
        let lower: Vec<char> = text.chars().flat_map(char::to_lowercase).collect();
        for word in lower.split(|c| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            self.add(&mut sum, b'w', word);
            // Borders are part of the grams, so that a prefix differs from an infix.
            let padded: Vec<char> =
                std::iter::once('^').chain(word.iter().copied()).chain(std::iter::once('$')).collect();
            for n in GRAMS {
                padded.windows(n).for_each(|gram| self.add(&mut sum, b'g', gram));
            }
        }
        let norm = sum.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if norm > 0.0 {
            #[allow(clippy::cast_possible_truncation, reason = "a component is at most 1")]
            sum.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
        sum.into()
    }

    /// Adds or subtracts 1 where the feature hashes to; the sign makes collisions cancel out on average.
    fn add(&self, sum: &mut [f32], kind: u8, feature: &[char]) {
        let hash = stable_hash(kind, feature);
        #[allow(clippy::cast_possible_truncation, reason = "the remainder is below `dimensions`")]
        let at = ((hash >> 1) % self.dimensions as u64) as usize;
        sum[at] += if hash & 1 == 0 { 1.0 } else { -1.0 };
    }
}

impl Default for HashEmbedder {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Embedder for HashEmbedder {
    fn name(&self) -> &str {
        &self.name
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn price(&self) -> Option<Price> {
        Some(Price::default())
    }

    async fn embed(&self, _ctx: &RunContext, call: AdmittedEmbed) -> Result<Embedded> {
        let vectors = call.texts().iter().map(|text| self.vector(text)).collect();
        let tokens = call.texts().iter().map(|text| self.count_tokens(text)).sum();
        Ok(Embedded::new(vectors, Some(Usage::new(tokens, 0))))
    }
}

/// FNV-1a over the characters, with a final mix. Part of the name's promise: it must not change.
fn stable_hash(kind: u8, feature: &[char]) -> u64 {
    let step = |hash: u64, unit: u32| (hash ^ u64::from(unit)).wrapping_mul(0x0100_0000_01b3);
    let start = step(0xcbf2_9ce4_8422_2325, u32::from(kind));
    let mut x = feature.iter().fold(start, |hash, c| step(hash, u32::from(*c)));
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use loomflow_core::EmbedPurpose;
    use loomflow_core::danger::{admit_embed, assume_scope, detached_context};
    use loomflow_core::{Epoch, Identity, Namespace};

    use super::*;

    fn cosine(a: &str, b: &str) -> f32 {
        let embedder = HashEmbedder::new();
        embedder.vector(a).iter().zip(embedder.vector(b).iter()).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn spelling_is_near_and_everything_else_is_not() {
        assert!((cosine("Refund my order", "refund MY order!") - 1.0).abs() < 1e-5);
        assert!(cosine("refund", "refunds") > 0.4);
        assert!(cosine("refund", "weather").abs() < 0.2);
        assert!(HashEmbedder::new().vector(" … ").iter().all(|x| *x == 0.0));
    }

    #[test]
    fn a_vector_never_changes() {
        let vector = HashEmbedder::with_dimensions(8).vector("Grüße 42");
        let golden = [2.0, 0.0, 0.0, -2.0, 0.0, 1.0, -1.0, -1.0].map(|n: f32| n / 11.0_f32.sqrt());
        assert!(vector.iter().zip(golden).all(|(x, y)| (x - y).abs() < 1e-6), "{vector:?}");
    }

    #[tokio::test]
    async fn texts_and_vectors_go_in_one_order_and_cost_nothing() {
        let embedder = HashEmbedder::with_dimensions(16);
        let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
        let done = embedder
            .embed(&ctx, admit_embed(vec!["a b".into(), "c".into()], EmbedPurpose::Document))
            .await
            .unwrap();
        assert_eq!(done.vectors, [embedder.vector("a b"), embedder.vector("c")]);
        let price = embedder.price().unwrap();
        assert_eq!(price.cost(&done.usage.unwrap()), loomflow_core::NanoUsd(0));
        assert_eq!(embedder.name(), "hash-16");
    }
}
