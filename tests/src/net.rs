//! TCP ports for the programs under test.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Below the range that the kernel picks from for outgoing connections, so that only another server can be in the way.
const FIRST: u16 = 22000;
const COUNT: u16 = 8000;

/// A port on 127.0.0.1 that nobody listens on, and that no other caller in this process gets.
///
/// Processes begin at different places of the range.
///
/// # Errors
/// Where every port of the range is taken.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let (first, count) = match std::env::var("PENSTOCK_TEST_PORTS") {
        Ok(range) => parse_range(&range)?,
        Err(_) => (FIRST, COUNT),
    };
    let start = std::process::id().wrapping_mul(61);
    for _ in 0..count {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let offset = start.wrapping_add(step) % u32::from(count);
        let port = first + u16::try_from(offset)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free TCP port in {first}..{}", u32::from(first) + u32::from(count));
}

/// Parses `FIRST-LAST`.
fn parse_range(range: &str) -> Result<(u16, u16)> {
    if let Some((first, last)) = range.split_once('-') {
        let (first, last): (u16, u16) = (first.parse()?, last.parse()?);
        if let Some(count) = last.checked_sub(first) {
            return Ok((first, count.saturating_add(1)));
        }
    }
    bail!("PENSTOCK_TEST_PORTS is `{range}`, not a range of ports such as 22000-22099");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ports_differ() {
        assert_ne!(free_port().unwrap(), free_port().unwrap());
    }

    #[test]
    fn a_range_that_is_none_is_refused() {
        assert_eq!(parse_range("5-7").unwrap(), (5, 3));
        assert!(parse_range("7-5").is_err());
        assert!(parse_range("x").is_err());
    }
}
