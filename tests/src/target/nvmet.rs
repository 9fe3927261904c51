//! The Linux kernel's NVMe/TCP target, in a guest of its own: the yardstick. A scenario that fails against it is wrong
//! itself.

use anyhow::Result;

use super::Target;
use crate::guest::{Guest, Kernel};
use crate::net;

const NQN: &str = "nqn.2024-01.io.test:nvmet";
const GUEST_PORT: u16 = 4420;

/// The kernel's target with one subsystem; namespaces lie in files of the guest's memory.
#[derive(Debug)]
pub struct Nvmet {
    guest: Guest,
    port: u16,
}

impl Nvmet {
    /// Boots the guest and sets the target up without a namespace.
    ///
    /// # Errors
    /// Where the guest does not boot or its kernel refuses.
    pub fn start() -> Result<Self> {
        let port = net::free_port()?;
        let mut guest = Guest::boot(Kernel::Linux6_12, &[(port, GUEST_PORT)])?;
        guest.run(&format!(
            "modprobe nvmet-tcp; modprobe loop
             mount -t configfs none /sys/kernel/config
             cd /sys/kernel/config/nvmet
             mkdir subsystems/{NQN} ports/1
             echo 1 >subsystems/{NQN}/attr_allow_any_host
             cd ports/1
             echo tcp >addr_trtype; echo ipv4 >addr_adrfam; echo 0.0.0.0 >addr_traddr; echo {GUEST_PORT} >addr_trsvcid
             ln -s ../../subsystems/{NQN} subsystems/"
        ))?;
        Ok(Self { guest, port })
    }
}

impl Target for Nvmet {
    fn nqn(&self) -> &str {
        NQN
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn add_namespace(&mut self, nsid: u32, bytes: u64) -> Result<()> {
        self.guest.run(&format!(
            "truncate -s {bytes} /run/ns{nsid}; dev=$(losetup -f); losetup $dev /run/ns{nsid}; echo $dev >/run/dev{nsid}
             cd /sys/kernel/config/nvmet/subsystems/{NQN}/namespaces
             mkdir {nsid}; cp /run/dev{nsid} {nsid}/device_path; echo 1 >{nsid}/enable"
        ))?;
        Ok(())
    }

    fn resize_namespace(&mut self, nsid: u32, bytes: u64) -> Result<()> {
        self.guest.run(&format!(
            "truncate -s {bytes} /run/ns{nsid}; losetup -c $(cat /run/dev{nsid})
             echo 1 >/sys/kernel/config/nvmet/subsystems/{NQN}/namespaces/{nsid}/revalidate_size"
        ))?;
        Ok(())
    }

    fn remove_namespace(&mut self, nsid: u32) -> Result<()> {
        self.guest.run(&format!(
            "cd /sys/kernel/config/nvmet/subsystems/{NQN}/namespaces
             echo 0 >{nsid}/enable; rmdir {nsid}; losetup -d $(cat /run/dev{nsid}); rm /run/ns{nsid}"
        ))?;
        Ok(())
    }
}
