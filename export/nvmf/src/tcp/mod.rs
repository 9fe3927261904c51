//! NVMe over TCP (NVM Express TCP Transport Specification): the sans-IO machine of one connection.
