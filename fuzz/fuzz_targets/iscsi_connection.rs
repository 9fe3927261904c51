//! The bytes that an iSCSI initiator sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_iscsi::fuzzing::connection(bytes));
