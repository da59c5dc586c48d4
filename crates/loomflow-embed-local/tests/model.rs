//! A real model: `LOOMFLOW_TEST_MODEL_DIR` names the folder of `all-MiniLM-L6-v2`; `cargo xtask test --full` fetches it and
//! sets it. Without it these tests fail; none is skipped.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a model that cannot be used is a failed test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use loomflow_core::danger::{admit_embed, assume_scope, detached_context};
use loomflow_core::{EmbedPurpose, Embedded, Embedder, Epoch, ErrorKind, Identity, Namespace, UserId};
use loomflow_embed_local::{LocalEmbedder, LocalEmbedderConfig};

#[allow(clippy::disallowed_methods, reason = "the gate tells its tests by environment where the model is")]
fn model() -> PathBuf {
    match std::env::var_os("LOOMFLOW_TEST_MODEL_DIR") {
        Some(dir) => dir.into(),
        None => panic!(
            "LOOMFLOW_TEST_MODEL_DIR names no folder: run `cargo xtask test --full`, which fetches the model"
        ),
    }
}

async fn open() -> LocalEmbedder {
    LocalEmbedder::open(model()).await.unwrap()
}

async fn embed(embedder: &LocalEmbedder, texts: &[&str]) -> Embedded {
    let scope =
        assume_scope(Namespace::default(), Identity::User(UserId::new("alice").unwrap()), Epoch::default());
    let texts = texts.iter().map(|text| Arc::from(*text)).collect();
    embedder.embed(&detached_context(scope), admit_embed(texts, EmbedPurpose::Document)).await.unwrap()
}

async fn one(embedder: &LocalEmbedder, text: &str) -> Arc<[f32]> {
    embed(embedder, &[text]).await.vectors.remove(0)
}

fn cos(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_means_the_same_is_closer_than_what_does_not() {
    let embedder = open().await;
    let pairs = [
        ("The user likes green tea in the morning", "What does the user drink at breakfast?"),
        ("How do I get my money back?", "I want a refund for this order"),
        ("The car does not start", "My vehicle's engine won't turn on"),
        ("The train is running late", "There is a delay on the railway"),
        ("Her flight lands at nine", "She arrives by plane this evening"),
    ];
    let left: Vec<&str> = pairs.iter().map(|pair| pair.0).collect();
    let right: Vec<&str> = pairs.iter().map(|pair| pair.1).collect();
    let (left, right) = (embed(&embedder, &left).await.vectors, embed(&embedder, &right).await.vectors);
    for (i, a) in left.iter().enumerate() {
        let own = cos(a, &right[i]);
        for (j, b) in right.iter().enumerate().filter(|(j, _)| *j != i) {
            assert!(own > cos(a, b), "{i} is {own} from its own and {} from {j}", cos(a, b));
        }
    }
    // Measured with another program over the same weights.
    let known = cos(&left[0], &right[0]);
    assert!((known - 0.614).abs() < 0.002, "{known}");
    let unrelated = cos(&left[0], &right[2]);
    println!("{known:.4} and {unrelated:.4}");
    assert!(unrelated.abs() < 0.1, "{unrelated}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_text_has_the_same_vector() {
    let (first, second) = (open().await, open().await);
    assert_eq!(first.name(), second.name());
    let text = "The same text, twice";
    let vector = one(&first, text).await;
    assert_eq!(vector, one(&first, text).await);
    assert_eq!(vector, one(&second, text).await);
    assert_eq!(vector.len(), first.dimensions());
    assert!((cos(&vector, &vector) - 1.0).abs() < 1e-5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_its_texts() {
    let long = "a much longer text that goes on about the weather ".repeat(9);
    let texts = ["", "tea", "Ünïcödé 漢字 🦀", &long, "one two three", "tea"];
    for batch in [1, 2, 4, 100] {
        let config = LocalEmbedderConfig::new(model()).with_batch(batch).with_parallel(2);
        let embedder = LocalEmbedder::with_config(config).await.unwrap();
        let together = embed(&embedder, &texts).await;
        let mut tokens = 0;
        for (text, vector) in texts.iter().zip(&together.vectors) {
            assert!(cos(vector, &one(&embedder, text).await) > 0.999_99, "{text:?} in batches of {batch}");
            tokens += embedder.count_tokens(text);
        }
        assert_eq!(together.usage.unwrap().input_tokens, tokens);
        assert!(embed(&embedder, &[]).await.vectors.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_cut_at_the_models_longest_and_no_earlier() {
    let embedder = open().await;
    // 254 words and the two around them.
    let fits = vec!["tea"; 254].join(" ");
    assert_eq!((embedder.count_tokens("tea"), embedder.count_tokens(&fits)), (3, 256));
    let longer = format!("{fits} {}", "coffee ".repeat(100_000));
    assert_eq!(embedder.count_tokens(&longer), 256);
    assert_eq!(one(&embedder, &fits).await, one(&embedder, &longer).await);
    let shorter = vec!["tea"; 200].join(" ");
    assert_ne!(one(&embedder, &format!("{shorter} coffee")).await, one(&embedder, &shorter).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_takes_nothing_with_it() {
    let embedder =
        Arc::new(LocalEmbedder::with_config(LocalEmbedderConfig::new(model()).with_batch(1)).await.unwrap());
    let expected = one(&embedder, "tea").await;
    for _ in 0..20 {
        let (own, texts) = (embedder.clone(), ["some text"; 50]);
        let task = tokio::spawn(async move { embed(&own, &texts).await });
        tokio::task::yield_now().await;
        task.abort();
    }
    assert_eq!(one(&embedder, "tea").await, expected);
}

/// A copy of the model whose files can be changed one by one.
struct Copy(PathBuf);

impl Copy {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let to = std::env::temp_dir().join(format!("loomflow-embed-{}-{n}", std::process::id()));
        std::fs::create_dir_all(to.join("1_Pooling")).unwrap();
        for file in FILES {
            std::os::unix::fs::symlink(std::fs::canonicalize(model().join(file)).unwrap(), to.join(file))
                .unwrap();
        }
        Self(to)
    }

    fn edit(&self, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let path = self.0.join(file);
        let bytes = change(std::fs::read(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }

    fn replace(&self, file: &str, from: &str, to: &str) {
        self.edit(file, |bytes| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from), "{file} has no {from}");
            text.replace(from, to).into_bytes()
        });
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

const FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "1_Pooling/config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

async fn refused(dir: &Path, named: &str) -> String {
    let error = LocalEmbedder::open(dir).await.err().unwrap_or_else(|| panic!("{named} was taken"));
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.message().contains(named), "{named}: {error}");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_model_keeps_its_name_and_a_changed_one_does_not() {
    let original = open().await;
    assert!(original.name().starts_with("local/MiniLM-L6-H384-uncased/384/"), "{}", original.name());
    let moved = Copy::new();
    assert_eq!(LocalEmbedder::open(&moved.0).await.unwrap().name(), original.name());
    // One bit of one weight, as training would change it: no size and no header differs.
    moved.edit("model.safetensors", |mut bytes| {
        let last = bytes.len() - 4;
        bytes[last] ^= 1;
        bytes
    });
    let trained = LocalEmbedder::open(&moved.0).await.unwrap();
    assert_ne!(trained.name(), original.name());
    let cut = Copy::new();
    cut.replace("sentence_bert_config.json", "256", "64");
    assert_ne!(LocalEmbedder::open(&cut.0).await.unwrap().name(), original.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_named() {
    refused(Path::new("no-such-folder"), "is no folder").await;
    for file in &FILES[..4] {
        let copy = Copy::new();
        std::fs::remove_file(copy.0.join(file)).unwrap();
        assert!(refused(&copy.0, file).await.contains("is not there"));
    }
    // The others only say more.
    let copy = Copy::new();
    for file in &FILES[4..] {
        std::fs::remove_file(copy.0.join(file)).unwrap();
    }
    assert!(LocalEmbedder::open(&copy.0).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named() {
    for file in FILES {
        let copy = Copy::new();
        copy.edit(file, |bytes| bytes[..bytes.len() / 2].to_vec());
        refused(&copy.0, file).await;
        copy.edit(file, |_| Vec::new());
        refused(&copy.0, file).await;
    }
    let copy = Copy::new();
    copy.edit("model.safetensors", |mut bytes| {
        let half = bytes.len() / 2;
        bytes[half..].fill(0xff);
        bytes
    });
    refused(&copy.0, "model.safetensors").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_computed_here_is_refused() {
    for (file, from, to) in [
        ("config.json", "\"bert\"", "\"roberta\""),
        ("config.json", "\"absolute\"", "\"relative_key\""),
        ("config.json", "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"swish\""),
        ("config.json", "\"num_attention_heads\": 12", "\"num_attention_heads\": 0"),
        ("config.json", "\"num_attention_heads\": 12", "\"num_attention_heads\": 7"),
        (
            "1_Pooling/config.json",
            "\"pooling_mode_mean_tokens\": true",
            "\"pooling_mode_mean_tokens\": false",
        ),
        ("1_Pooling/config.json", "\"pooling_mode_cls_token\": false", "\"pooling_mode_cls_token\": true"),
        ("1_Pooling/config.json", "384", "768"),
        ("1_Pooling/config.json", "{", "{\"pooling_mode_weightedmean_tokens\": true,"),
        ("1_Pooling/config.json", "{", "{\"pooling_mode_lasttoken\": true,"),
        ("config.json", "\"use_cache\"", "\"is_decoder\""),
        ("config.json", "\"max_position_embeddings\": 512", "\"max_position_embeddings\": 2"),
        (
            "config_sentence_transformers.json",
            "\"__version__\"",
            "\"default_prompt_name\": \"query\", \"__version__\"",
        ),
        ("sentence_bert_config.json", "\"do_lower_case\": false", "\"do_lower_case\": true"),
        ("modules.json", "models.Normalize", "models.Dense"),
        ("sentence_bert_config.json", "256", "2"),
    ] {
        let copy = Copy::new();
        copy.replace(file, from, to);
        let why = refused(&copy.0, file).await;
        assert!(!why.contains("cannot be understood"), "{why}");
    }
    // Each file is whole, and they are of different models.
    let copy = Copy::new();
    copy.replace("config.json", "\"vocab_size\": 30522", "\"vocab_size\": 1000");
    assert!(refused(&copy.0, "tokenizer.json").await.contains("not of one model"));
    let copy = Copy::new();
    copy.replace("config.json", "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 12");
    refused(&copy.0, "model.safetensors").await;
}
