//! Submission queue entries, SGL descriptors, completions.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_spec::fuzzing::sqe(bytes));
