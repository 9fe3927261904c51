//! iSCSI headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_spec::fuzzing::iscsi_bhs(bytes));
