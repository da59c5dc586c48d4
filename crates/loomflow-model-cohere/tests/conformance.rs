//! The codec, and the embedder against a server of bytes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use loomflow_core::{EmbedPurpose, ErrorKind, Usage};
use loomflow_model_cohere::codec::{encode, read, read_error};
use serde_json::{Value, json};

fn answer(vectors: &Value, meta: &Value) -> Vec<u8> {
    json!({"id": "e1", "embeddings": {"float": vectors}, "texts": [], "meta": meta, "response_type": "embeddings_by_type"})
        .to_string()
        .into_bytes()
}

#[test]
fn requests_say_what_the_vectors_are_for() {
    let texts: [Arc<str>; 2] = ["a".into(), "b".into()];
    let body = |purpose, size| {
        serde_json::from_slice::<Value>(&encode("embed-v4.0", &texts, purpose, size).unwrap()).unwrap()
    };
    assert_eq!(
        body(EmbedPurpose::Document, Some(256)),
        json!({"model": "embed-v4.0", "texts": ["a", "b"], "input_type": "search_document",
               "embedding_types": ["float"], "output_dimension": 256, "truncate": "NONE"})
    );
    let query = body(EmbedPurpose::Query, None);
    assert_eq!((&query["input_type"], &query["output_dimension"]), (&json!("search_query"), &Value::Null));
}

#[test]
fn answers_are_read_and_checked() {
    let two = json!([[0.5, 1], [2, -1e-3]]);
    for (meta, usage) in [
        (json!({"billed_units": {"input_tokens": 7}}), Some(7)),
        (json!({"billed_units": {"input_tokens": 7.0}}), Some(7)),
        (json!({"billed_units": {"input_tokens": 0}}), None),
        (json!({"billed_units": {"input_tokens": "7"}}), None),
        (json!({"billed_units": {"input_tokens": -7}}), None),
        (json!({"billed_units": {}}), None),
        (json!({"billed_units": null}), None),
        (json!({}), None),
        (Value::Null, None),
    ] {
        let done = read(&answer(&two, &meta), 2, 2).unwrap();
        assert_eq!(*done.vectors[1], [2.0, -1e-3]);
        assert_eq!(done.usage, usage.map(|tokens| Usage::new(tokens, 0)), "{meta}");
    }
    for (wrong, why) in [
        (json!([[1, 2]]), "1 vectors for 2 texts"),
        (json!([[1, 2], [1, 2], [1, 2]]), "3 vectors for 2 texts"),
        (json!([[1, 2], [1]]), "1 components"),
        (json!([[1, 2], [1, 1e39]]), "finite"),
        (json!([[1, 2], [1, null]]), "embed API"),
        (json!("x"), "embed API"),
    ] {
        let error = read(&answer(&wrong, &Value::Null), 2, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transport, "{error}");
        assert!(error.message().contains(why), "{error}");
    }
    for (body, kind) in [
        (&b"<html>"[..], ErrorKind::Transport),
        (b"", ErrorKind::Transport),
        (br#"{"message":"no"}"#, ErrorKind::Transport),
        (br#"{"message":"text is too long"}"#, ErrorKind::ContextTooLong),
    ] {
        assert_eq!(read(body, 2, 2).unwrap_err().kind(), kind);
    }
    assert_eq!(read_error(b"{}"), None);
}

#[cfg(feature = "client")]
mod client {
    use std::sync::Arc;

    use loomflow_core::danger::{admit_embed, assume_scope, detached_context};
    use loomflow_core::{
        EmbedPurpose, Embedded, Embedder, Epoch, ErrorKind, Identity, Namespace, Price, Result, Secret, Usage,
    };
    use loomflow_model_cohere::{ApiKey, CohereConfig, CohereEmbedder};
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::answer;

    const KEY: &str = "co-test-key";

    /// Answers one request after the other, each on a connection of its own, and tells what they were.
    async fn serve(answers: Vec<(u16, Vec<u8>)>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let mut requests = Vec::new();
            for (status, body) in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !is_whole(&request) {
                    assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
                }
                requests.push(String::from_utf8(request).unwrap());
                let head = format!(
                    "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                socket.write_all(&[head.into_bytes(), body].concat()).await.unwrap();
            }
            requests
        });
        (url, served)
    }

    fn is_whole(request: &[u8]) -> bool {
        let Some((head, body)) = std::str::from_utf8(request).unwrap().split_once("\r\n\r\n") else {
            return false;
        };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        body.len() == length.parse::<usize>().unwrap()
    }

    fn builder(url: &str) -> CohereConfig {
        CohereEmbedder::builder("embed-v4.0", Secret::new(KEY.to_owned()))
            .with_base_url(url)
            .with_output_dimension(2)
    }

    async fn embed(url: &str, texts: usize) -> Result<Embedded> {
        let ctx = detached_context(assume_scope(Namespace::default(), Identity::Anonymous, Epoch::ZERO));
        let texts = (0..texts).map(|i| format!("text {i}").into()).collect();
        builder(url).build().unwrap().embed(&ctx, admit_embed(texts, EmbedPurpose::Query)).await
    }

    /// Vectors that say of which text they are.
    fn vectors(from: usize, to: usize) -> (u16, Vec<u8>) {
        let vectors: Vec<Value> = (from..to).map(|i| json!([i, 0.5])).collect();
        (200, answer(&vectors.into(), &json!({"billed_units": {"input_tokens": to - from}})))
    }

    #[tokio::test]
    async fn many_texts_go_in_batches_and_come_back_in_order() {
        let (url, served) = serve(vec![vectors(0, 96), vectors(96, 192), vectors(192, 200)]).await;
        let done = embed(&url, 200).await.unwrap();
        assert_eq!(done.usage, Some(Usage::new(200, 0)));
        let firsts: Vec<f32> = done.vectors.iter().map(|vector| vector[0]).collect();
        assert_eq!(firsts, (0_u8..200).map(f32::from).collect::<Vec<_>>());
        let requests = served.await.unwrap();
        assert!(requests[0].starts_with("POST /v2/embed HTTP/1.1\r\n"), "{}", requests[0]);
        assert!(requests.iter().all(|request| request.contains("authorization: Bearer co-test-key\r\n")));
        let body: Value = serde_json::from_str(requests[2].split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!((&body["texts"][0], &body["input_type"]), (&json!("text 192"), &json!("search_query")));
    }

    #[tokio::test]
    async fn an_error_charges_once_a_batch_was_billed() {
        let limited = || (429, br#"{"message":"slow down, co-test-key"}"#.to_vec());
        let (url, _served) = serve(vec![limited()]).await;
        let first = embed(&url, 100).await.unwrap_err();
        assert_eq!((first.kind(), first.operation()), (ErrorKind::RateLimited, "cohere.embed"));
        assert!(!format!("{first:?}").contains(KEY), "{first:?}");
        let (url, _served) = serve(vec![vectors(0, 96), limited()]).await;
        let later = embed(&url, 100).await.unwrap_err();
        assert_eq!((later.kind(), later.is_retryable()), (ErrorKind::Transport, true), "{later}");
        let (url, _served) = serve(vec![vectors(0, 3)]).await;
        assert_eq!(embed(&url, 4).await.unwrap_err().kind(), ErrorKind::Transport, "billed, and of no use");
        for (status, kind) in
            [(401, ErrorKind::Auth), (400, ErrorKind::BadRequest), (500, ErrorKind::Overloaded)]
        {
            let (url, _served) = serve(vec![(status, br#"{"message":"no"}"#.to_vec())]).await;
            assert_eq!(embed(&url, 1).await.unwrap_err().kind(), kind);
        }
    }

    #[tokio::test]
    async fn no_text_is_no_call() {
        assert_eq!(
            embed("http://127.0.0.1:1", 0).await.unwrap(),
            Embedded::new(vec![], Some(Usage::default()))
        );
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let new = |name: &str| CohereEmbedder::builder(name, ApiKey::none());
        for (builder, names) in [
            (new(" "), "name"),
            (new("embed-v9"), "dimensions"),
            (new("embed-english-v3.0").with_output_dimension(256), "output_dimension"),
            (new("embed-v4.0").with_output_dimension(0), "component"),
            (new("embed-v4.0").with_base_url("https://api.cohere.com/v2/"), "/v2"),
        ] {
            let error = builder.build().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(names), "{error}");
        }
    }

    #[test]
    fn an_embedder_says_what_it_is() {
        let embedder = builder("http://localhost").with_price(Price::per_token(120_000, 0)).build().unwrap();
        assert_eq!((embedder.name(), embedder.dimensions()), ("embed-v4.0@2", 2));
        assert_eq!(embedder.price(), Some(Price::per_token(120_000, 0)));
        assert!(embedder.count_tokens("日本語") >= 6);
        assert!(!format!("{embedder:?}").contains(KEY), "{embedder:?}");
        let usual =
            CohereEmbedder::new("embed-english-light-v3.0", Arc::new(Secret::new(KEY.to_owned()))).unwrap();
        assert_eq!((usual.name(), usual.dimensions()), ("embed-english-light-v3.0", 384));
        assert_eq!(usual.price().map(|price| price.input), Some(100_000), "the list price");
        assert_eq!(
            builder("http://localhost").build().unwrap().price(),
            None,
            "another server's is not known"
        );
        assert_eq!(
            CohereEmbedder::builder("mine", ApiKey::none()).with_dimensions(7).build().unwrap().dimensions(),
            7
        );
    }
}
