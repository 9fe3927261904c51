//! The discovery service's publication by mDNS (RFC 6762, RFC 6763; Base "DNS-SD", service `_nvme-disc._tcp`).
//!
//! The library answers queries on a thread of its own; here stands what is published, and it is brought up to date after
//! every change of the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use mdns_sd::{ServiceDaemon, ServiceInfo};

/// The service's type.
const SERVICE: &str = "_nvme-disc._tcp.local.";

/// Why nothing is published.
#[derive(Debug, thiserror::Error)]
#[error("the discovery service cannot be published by mDNS: {0}")]
pub struct MdnsError(#[from] mdns_sd::Error);

/// What is published; nothing any more when it goes.
pub struct Publication {
    daemon: ServiceDaemon,
    /// The instances' full names, by what they say.
    published: BTreeMap<(String, SocketAddr), String>,
}

impl std::fmt::Debug for Publication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publication").field("published", &self.published).finish_non_exhaustive()
    }
}

impl Publication {
    /// Begins to publish, as yet nothing.
    ///
    /// # Errors
    /// The sockets of mDNS cannot be had.
    pub fn begin() -> Result<Self, MdnsError> {
        Ok(Self { daemon: ServiceDaemon::new()?, published: BTreeMap::new() })
    }

    /// Brings what is published up to date: the service of that name at these addresses.
    ///
    /// # Errors
    /// What the library refuses; what was brought up to date before stays.
    pub fn update(&mut self, nqn: &str, addrs: &BTreeSet<SocketAddr>) -> Result<(), MdnsError> {
        let wanted: BTreeSet<_> = addrs.iter().map(|addr| (nqn.to_owned(), *addr)).collect();
        let gone: Vec<_> = self.published.keys().filter(|known| !wanted.contains(*known)).cloned().collect();
        for key in gone {
            if let Some(name) = self.published.remove(&key) {
                self.daemon.unregister(&name)?;
            }
        }
        for key in wanted {
            if self.published.contains_key(&key) {
                continue;
            }
            let info = service(&key.0, key.1)?;
            let name = info.get_fullname().to_owned();
            self.daemon.register(info)?;
            self.published.insert(key, name);
        }
        Ok(())
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        // It says goodbye for what is published, in its own time.
        for name in self.published.values() {
            self.daemon.unregister(name).ok();
        }
        self.daemon.shutdown().ok();
    }
}

/// One instance: "p" is the transport and "nqn" the name, as Base has the TXT record.
fn service(nqn: &str, addr: SocketAddr) -> Result<ServiceInfo, MdnsError> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().split('.').next().filter(|name| !name.is_empty()).unwrap_or("penstock").to_owned();
    let any = addr.ip().is_unspecified();
    let shown = if any { addr.port().to_string() } else { addr.to_string().replace(['.', ':'], "-") };
    let instance = format!("penstock {host} {shown}");
    let ip = if any { String::new() } else { addr.ip().to_string() };
    let txt = [("p", "tcp"), ("nqn", nqn)];
    let info =
        ServiceInfo::new(SERVICE, &instance, &format!("{host}.local."), ip.as_str(), addr.port(), &txt[..])?;
    Ok(if any { info.enable_addr_auto() } else { info })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_says_transport_name_port_and_address() {
        let info =
            service("nqn.2014-08.org.nvmexpress.discovery", "192.0.2.1:8009".parse().unwrap()).unwrap();
        assert_eq!((info.get_type(), info.get_port()), (SERVICE, 8009));
        assert_eq!(info.get_property_val_str("p"), Some("tcp"));
        assert_eq!(info.get_property_val_str("nqn"), Some("nqn.2014-08.org.nvmexpress.discovery"));
        assert!(info.get_addresses().iter().any(|ip| ip.to_string().starts_with("192.0.2.1")));
        let any = service("nqn.2014-08.org.nvmexpress.discovery", "0.0.0.0:4420".parse().unwrap()).unwrap();
        assert!(any.is_addr_auto());
    }
}
