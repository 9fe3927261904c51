//! iSCSI text keys and names.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_spec::fuzzing::iscsi_text(bytes));
