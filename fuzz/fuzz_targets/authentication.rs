//! A host and a controller that authenticate each other, and somebody in between.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_security::chap::fuzzing::authentication(bytes));
