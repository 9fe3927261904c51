//! The keys of an iSCSI login, stage by stage.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_iscsi::fuzzing::login(bytes));
