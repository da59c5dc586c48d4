//! A reply of the Messages API in one body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loomflow_fuzz::REQUEST;
use loomflow_model_anthropic::codec::PlainDecoder;
use loomflow_support_model::splits::check;

fuzz_target!(|body: &[u8]| {
    check(|| PlainDecoder::new(&REQUEST), body);
});
