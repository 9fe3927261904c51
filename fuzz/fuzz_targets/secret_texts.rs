//! Secrets and pre-shared keys as texts.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_security::chap::fuzzing::texts(bytes));
