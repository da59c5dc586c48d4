//! A streamed chat completion.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loomflow_fuzz::REQUEST;
use loomflow_model_openai::codec::StreamDecoder;
use loomflow_support_model::splits::check;

fuzz_target!(|body: &[u8]| {
    check(|| StreamDecoder::new(&REQUEST.tools), body);
});
