//! PDU headers of NVMe/TCP.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_spec::fuzzing::pdu(bytes));
