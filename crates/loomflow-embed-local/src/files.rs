//! The files of a sentence-transformers model, read and checked against each other before anything is computed.

use std::path::{Path, PathBuf};

use candle_transformers::models::bert;
use loomflow_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokenizers::Tokenizer;

/// The longest weights that are read: several times the largest BERT.
const MAX_WEIGHTS: u64 = 4 << 30;
/// The longest of the other files.
const MAX_TEXT: u64 = 64 << 20;
/// Tokens of a text of one word: the two around it, too.
const SHORTEST: usize = 3;
/// Digits of the fingerprint: as good as unique among the models that anybody compares.
const FINGERPRINT: usize = 16;

/// Everything a model is made of.
pub(crate) struct Files {
    pub(crate) config: bert::Config,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) weights: Vec<u8>,
    /// Tokens of a text, the two around it included.
    pub(crate) max_tokens: usize,
    /// What people call it, as far as it says so itself.
    pub(crate) label: String,
    /// Of every byte that a vector depends on.
    pub(crate) fingerprint: String,
}

/// What is read of `config.json` beside the model's shape.
#[derive(Deserialize)]
struct About {
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default, rename = "_name_or_path")]
    name: Option<String>,
}

#[derive(Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "the file has one for each way")]
struct Pooling {
    word_embedding_dimension: usize,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

#[derive(Deserialize)]
struct Sentence {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// What is read of `config_sentence_transformers.json`.
#[derive(Deserialize)]
struct Prompts {
    #[serde(default)]
    default_prompt_name: Option<String>,
}

#[derive(Deserialize)]
struct Module {
    r#type: String,
}

impl Files {
    /// Reads and checks. Blocks.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            let why =
                "is no folder; name the one that holds config.json, tokenizer.json and model.safetensors";
            return Err(refused(dir, why));
        }
        let mut hash = Sha256::new();
        let mut take = |name: &str, limit| -> Result<(PathBuf, Vec<u8>)> {
            let path = dir.join(name);
            let bytes = read(&path, limit)?;
            hash.update(name.as_bytes());
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(&bytes);
            Ok((path, bytes))
        };
        let (config_at, config) = take("config.json", MAX_TEXT)?;
        let (pooling_at, pooling) = take("1_Pooling/config.json", MAX_TEXT)?;
        let (tokenizer_at, tokenizer) = take("tokenizer.json", MAX_TEXT)?;
        let (_, weights) = take("model.safetensors", MAX_WEIGHTS)?;

        let about: About = parse(&config_at, &config)?;
        let config = shape(&config_at, &about, &config)?;
        check_pooling(&pooling_at, &parse(&pooling_at, &pooling)?, &config)?;
        check_modules(dir)?;
        check_prompts(dir)?;
        let max_tokens = longest(dir, &config)?;
        hash.update((max_tokens as u64).to_be_bytes());
        let tokenizer = Tokenizer::from_bytes(&tokenizer).map_err(|e| broken(&tokenizer_at, &e))?;
        let words = tokenizer.get_vocab_size(true);
        if words > config.vocab_size {
            let why = format!(
                "has {words} words, and the model {}: the two are not of one model",
                config.vocab_size
            );
            return Err(refused(&tokenizer_at, &why));
        }
        let digest = hash.finalize();
        let fingerprint =
            digest.iter().take(FINGERPRINT / 2).map(|byte| format!("{byte:02x}")).collect::<String>();
        Ok(Self { config, tokenizer, weights, max_tokens, label: label(&about), fingerprint })
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let absent = |e: std::io::Error| {
        let hint = if e.kind() == std::io::ErrorKind::NotFound {
            "is not there; a model needs config.json, 1_Pooling/config.json, tokenizer.json and model.safetensors"
        } else {
            "cannot be read"
        };
        refused(path, hint).with_source(e)
    };
    let size = std::fs::metadata(path).map_err(absent)?.len();
    if size > limit {
        return Err(refused(path, &format!("has {size} bytes; at most {limit} are read")));
    }
    std::fs::read(path).map_err(absent)
}

fn optional(dir: &Path, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>> {
    let path = dir.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read(&path, MAX_TEXT)?;
    Ok(Some((path, bytes)))
}

fn parse<'b, T: Deserialize<'b>>(path: &Path, bytes: &'b [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| broken(path, &e))
}

fn shape(path: &Path, about: &About, bytes: &[u8]) -> Result<bert::Config> {
    if about.model_type != "bert" {
        let why = format!("is of a model of the type {:?}; this embedder computes `bert`", about.model_type);
        return Err(refused(path, &why));
    }
    if about.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
        return Err(refused(
            path,
            "has positions that are not absolute, which this embedder does not compute",
        ));
    }
    if about.is_decoder {
        return Err(refused(
            path,
            "is of a decoder, whose words see only what came before; this embedder computes encoders",
        ));
    }
    let config: bert::Config = serde_json::from_slice(bytes)
        .map_err(|e| refused(path, &format!("describes no model that is computed here ({e})")))?;
    let numbers = [
        config.vocab_size,
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.type_vocab_size,
    ];
    if config.max_position_embeddings < SHORTEST {
        return Err(refused(path, "leaves no room for a word in a text"));
    }
    if numbers.contains(&0) || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(refused(path, "has sizes that no model can have"));
    }
    Ok(config)
}

fn check_pooling(path: &Path, pooling: &Pooling, config: &bert::Config) -> Result<()> {
    let others = pooling.pooling_mode_cls_token
        || pooling.pooling_mode_max_tokens
        || pooling.pooling_mode_mean_sqrt_len_tokens
        || pooling.pooling_mode_weightedmean_tokens
        || pooling.pooling_mode_lasttoken;
    if others || !pooling.pooling_mode_mean_tokens {
        return Err(refused(
            path,
            "asks for another pooling than the mean of all tokens, which is what is computed",
        ));
    }
    let (pooled, hidden) = (pooling.word_embedding_dimension, config.hidden_size);
    if pooled != hidden {
        let why =
            format!("pools {pooled} components, and the model has {hidden}: the two are not of one model");
        return Err(refused(path, &why));
    }
    Ok(())
}

/// A layer that is not computed would change every vector.
fn check_modules(dir: &Path) -> Result<()> {
    let Some((path, bytes)) = optional(dir, "modules.json")? else { return Ok(()) };
    for module in parse::<Vec<Module>>(&path, &bytes)? {
        let kind = module.r#type.rsplit('.').next().unwrap_or_default();
        if !["Transformer", "Pooling", "Normalize"].contains(&kind) {
            return Err(refused(
                &path,
                &format!("has a layer {kind:?}, which this embedder does not compute"),
            ));
        }
    }
    Ok(())
}

/// Words that sentence-transformers would put before each text.
fn check_prompts(dir: &Path) -> Result<()> {
    let Some((path, bytes)) = optional(dir, "config_sentence_transformers.json")? else { return Ok(()) };
    match parse::<Prompts>(&path, &bytes)?.default_prompt_name {
        Some(_) => Err(refused(&path, "puts a prompt before each text, which this embedder does not")),
        None => Ok(()),
    }
}

/// Where texts are cut, in tokens.
fn longest(dir: &Path, config: &bert::Config) -> Result<usize> {
    let positions = config.max_position_embeddings;
    let Some((path, bytes)) = optional(dir, "sentence_bert_config.json")? else { return Ok(positions) };
    let sentence: Sentence = parse(&path, &bytes)?;
    if sentence.do_lower_case {
        return Err(refused(
            &path,
            "asks for lower case before the tokenizer, which this embedder does not compute",
        ));
    }
    match sentence.max_seq_length {
        Some(longest) if longest < SHORTEST => Err(refused(&path, "leaves no room for a word in a text")),
        Some(longest) => Ok(longest.min(positions)),
        None => Ok(positions),
    }
}

/// The model's own name for itself, in a few plain characters.
fn label(about: &About) -> String {
    let name = about.name.as_deref().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    let plain: String = last
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' })
        .take(64)
        .collect();
    if plain.is_empty() { "bert".to_owned() } else { plain }
}

/// A file that can be read and makes no sense.
fn broken(path: &Path, error: &dyn std::fmt::Display) -> Error {
    refused(path, &format!("cannot be understood ({error}): copy the model's folder again"))
}

pub(crate) fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Config, format!("{} {why}", path.display())).with_operation("open_embedder")
}
