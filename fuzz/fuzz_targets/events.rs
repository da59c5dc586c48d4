//! The event reader, with a bound that inputs reach and with one that they do not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loomflow_support_model::splits::check_events;

fuzz_target!(|bytes: &[u8]| {
    check_events(bytes, 24);
    check_events(bytes, 1 << 20);
});
