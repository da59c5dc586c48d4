//! What a provider's bytes cost: decoding a streamed reply of a thousand pieces, and encoding a request of twenty-two
//! messages. No connection; the codecs do no I/O.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use loomflow_core::{Delta, Message, ModelRequest};
use loomflow_model_anthropic::codec as anthropic;
use loomflow_model_openai::codec as openai;
use loomflow_support_model::Decode;

const PIECES: usize = 1_000;
/// What a read of a socket gives at most.
const READ: usize = 16 << 10;

fn openai_stream() -> String {
    let mut body = String::new();
    for n in 0..PIECES {
        let _ = write!(
            body,
            "data: {{\"id\":\"chatcmpl-9\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"m\",\
             \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word{n}\"}},\"finish_reason\":null}}]}}\n\n"
        );
    }
    body.push_str("data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
    body.push_str("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1000}}\n\ndata: [DONE]\n\n");
    body
}

fn anthropic_stream() -> String {
    let mut body = String::from(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n\
         event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
    );
    for n in 0..PIECES {
        let _ = write!(
            body,
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\
             \"text\":\" word{n}\"}}}}\n\n"
        );
    }
    body.push_str(
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":1000}}\n\n\
         event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );
    body
}

fn decode(mut decoder: impl Decode, body: &[u8]) -> usize {
    let (mut out, mut pieces) = (Vec::new(), 0);
    for read in body.chunks(READ) {
        decoder.push(read, &mut out).expect("the stream is sound");
        pieces += out.drain(..).count();
    }
    decoder.finish(&mut out).expect("the stream has its end");
    assert!(matches!(out.last(), Some(Delta::Done(_))));
    pieces + out.len()
}

fn request() -> ModelRequest {
    let said = (1..22).map(|n| match n % 2 {
        0 => Message::assistant(format!("answer {n}: {}", "some words ".repeat(30))),
        _ => Message::user(format!("question {n}: {}", "some words ".repeat(30))),
    });
    ModelRequest::new(std::iter::once(Message::system("you are an assistant")).chain(said).collect(), 1_000)
}

fn bench(c: &mut Criterion) {
    let mut decoding = c.benchmark_group("wire/decode_1000_pieces");
    let body = openai_stream();
    decoding.throughput(Throughput::Bytes(body.len() as u64));
    decoding.bench_function("openai", |b| {
        b.iter(|| decode(openai::StreamDecoder::new(&[]), black_box(body.as_bytes())));
    });
    let (body, asked) = (anthropic_stream(), ModelRequest::new(Vec::new(), 1));
    decoding.throughput(Throughput::Bytes(body.len() as u64));
    decoding.bench_function("anthropic", |b| {
        b.iter(|| decode(anthropic::StreamDecoder::new(&asked), black_box(body.as_bytes())));
    });
    decoding.finish();
    let (request, options) = (request(), openai::EncodeOptions::new("m"));
    c.bench_function("wire/encode_22_messages/openai", |b| {
        b.iter(|| openai::encode(&options, black_box(&request), None));
    });
    let settings = anthropic::Settings::new("m");
    c.bench_function("wire/encode_22_messages/anthropic", |b| {
        b.iter(|| anthropic::encode(black_box(&request), &settings));
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
