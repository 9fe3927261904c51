//! A hostile host against the NVMe/TCP target's connection machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_nvmf::tcp::fuzzing::connection(bytes));
