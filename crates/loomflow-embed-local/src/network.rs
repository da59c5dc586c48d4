//! The computation: texts to tokens, tokens through the network, the mean over what was said, and length one.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::BertModel;
use loomflow_core::{Error, ErrorKind, Result};
use tokenizers::{Tokenizer, TruncationParams};

use crate::files::{Files, refused};

/// What of a text is looked at: several times what fits into any model, so that a text of megabytes costs what a page does.
const MAX_BYTES: usize = 64 << 10;

/// A model, ready to compute. Everything here blocks.
pub(crate) struct Network {
    model: BertModel,
    tokenizer: Tokenizer,
    dimensions: usize,
}

/// One text in the model's words.
struct Tokens {
    ids: Vec<u32>,
}

/// The vectors of a batch and the tokens they took.
pub(crate) struct Computed {
    pub(crate) vectors: Vec<Arc<[f32]>>,
    pub(crate) tokens: u64,
}

impl Network {
    pub(crate) fn load(dir: &Path, files: Files) -> Result<Self> {
        let Files { config, mut tokenizer, weights, max_tokens, .. } = files;
        let weights_at = dir.join("model.safetensors");
        let broken = |error: candle_core::Error| {
            let why =
                format!("does not fit config.json or is damaged ({error}): copy the model's folder again");
            refused(&weights_at, &why)
        };
        let weights =
            VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).map_err(broken)?;
        let model = BertModel::load(weights, &config).map_err(broken)?;
        let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
        let tokenizer_at = dir.join("tokenizer.json");
        tokenizer.with_truncation(Some(truncation)).map_err(|error| {
            refused(&tokenizer_at, &format!("cannot cut a text to {max_tokens} tokens ({error})"))
        })?;
        // A batch is filled up to its longest text, not to whatever length the file asks for.
        tokenizer.with_padding(None);
        let network = Self { model, tokenizer, dimensions: config.hidden_size };
        // Weights that are no numbers load as well as others.
        network
            .compute(&[Arc::from("ready")])
            .map_err(|error| refused(&weights_at, "loads and computes nothing of use").with_source(error))?;
        Ok(network)
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Tokens that are computed for `text`, the two around it included.
    pub(crate) fn count(&self, text: &str) -> Result<u64> {
        Ok(self.tokens(text)?.ids.len() as u64)
    }

    /// The vectors of `texts`, in their order, each of length one.
    pub(crate) fn compute(&self, texts: &[Arc<str>]) -> Result<Computed> {
        let batch: Vec<Tokens> = texts.iter().map(|text| self.tokens(text)).collect::<Result<_>>()?;
        let tokens = batch.iter().map(|tokens| tokens.ids.len() as u64).sum();
        let rows = self.forward(&batch).map_err(|error| {
            Error::new(ErrorKind::Internal, "the model could not be computed").with_source(error)
        })?;
        let vectors = rows.into_iter().map(unit).collect::<Result<_>>()?;
        Ok(Computed { vectors, tokens })
    }

    fn tokens(&self, text: &str) -> Result<Tokens> {
        let encoding = self.tokenizer.encode_fast(head(text), true).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, format!("a text cannot be cut into tokens: {error}"))
        })?;
        Ok(Tokens { ids: encoding.get_ids().to_vec() })
    }

    fn forward(&self, batch: &[Tokens]) -> candle_core::Result<Vec<Vec<f32>>> {
        let longest = batch.iter().map(|tokens| tokens.ids.len()).max().unwrap_or_default();
        let (mut ids, mut said) = (Vec::new(), Vec::new());
        for tokens in batch {
            let blank = longest - tokens.ids.len();
            ids.extend(tokens.ids.iter().copied().chain(std::iter::repeat_n(0, blank)));
            said.extend(tokens.ids.iter().map(|_| 1_u32).chain(std::iter::repeat_n(0, blank)));
        }
        let shape = (batch.len(), longest);
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let said = Tensor::from_vec(said, shape, &Device::Cpu)?;
        let out = self.model.forward(&ids, &ids.zeros_like()?, Some(&said))?;
        // The mean over what was said: blanks carry numbers, too.
        let weights = said.to_dtype(DType::F32)?.unsqueeze(2)?;
        let sum = out.broadcast_mul(&weights)?.sum(1)?;
        sum.broadcast_div(&weights.sum(1)?)?.to_vec2::<f32>()
    }
}

/// The beginning of a text, whole characters of it.
fn head(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_BYTES)]
}

fn unit(row: Vec<f32>) -> Result<Arc<[f32]>> {
    let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length <= 0.0 {
        return Err(Error::new(ErrorKind::Internal, "the model computed a vector without a direction"));
    }
    #[allow(clippy::cast_possible_truncation, reason = "a component of a vector of length one")]
    let unit = row.into_iter().map(|x| (f64::from(x) / length) as f32).collect();
    Ok(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ä".repeat(MAX_BYTES);
        assert!(head(&text).len() <= MAX_BYTES && head(&text).len() > MAX_BYTES - 2);
        assert_eq!(head("short"), "short");
    }

    #[test]
    fn a_vector_without_a_direction_is_an_error() {
        assert_eq!(unit(vec![3.0, 4.0]).unwrap().to_vec(), [0.6, 0.8]);
        for none in [vec![], vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0]] {
            assert_eq!(unit(none).unwrap_err().kind(), ErrorKind::Internal);
        }
    }
}
