//! NVMe over Fabrics (in NVM Express Base 2.x: 6 "Fabrics Command Set", 3.1.4 "Controller Properties", 4.7 NQNs).

pub mod auth;
pub mod connect;
pub mod discovery;
pub mod nqn;
pub mod property;

pub use connect::{ConnectCmd, ConnectData};
pub use nqn::{Nqn, NqnError};
