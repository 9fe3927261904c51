//! Identify and discovery data as a host reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_spec::fuzzing::identify(bytes));
