//! Wire structures of the standards and nothing else: no logic, no I/O, no allocation.
#![forbid(unsafe_code)]
