//! The memory of a virtual machine, with the rings of a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_vhost::fuzzing::ring(bytes));
