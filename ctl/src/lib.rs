//! Control: everything around the data path. Nothing here runs on a reactor but the short messages that it sends there.
#![forbid(unsafe_code)]

pub mod cli;
pub mod daemon;
pub mod image;
pub mod methods;
pub mod metrics;
pub mod rpc;
