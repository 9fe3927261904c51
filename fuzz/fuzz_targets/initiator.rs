//! A hostile target against the NVMe/TCP initiator.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_nvme_tcp::fuzzing::initiator(bytes));
