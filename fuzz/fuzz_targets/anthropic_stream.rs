//! A streamed reply of the Messages API.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loomflow_fuzz::REQUEST;
use loomflow_model_anthropic::codec::StreamDecoder;
use loomflow_support_model::splits::check;

fuzz_target!(|body: &[u8]| {
    check(|| StreamDecoder::new(&REQUEST), body);
});
