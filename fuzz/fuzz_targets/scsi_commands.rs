//! CDBs and parameter lists of SCSI commands.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| penstock_scsi::fuzzing::commands(bytes));
