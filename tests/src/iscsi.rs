//! A disk that the daemon exports by iSCSI, and the machine's own initiators: libiscsi's programs and QEMU's.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::target::make_pool_of;
use crate::{net, paths};

/// The target's name.
pub const IQN: &str = "iqn.2026-11.io.penstock:disk";

/// A user, and its secret.
pub const USER: (&str, &str) = ("initiator", "secret-of-the-initiator");
/// The target's own user, and its secret.
pub const TARGET_USER: (&str, &str) = ("target", "secret-of-the-target");

/// A daemon with one target on two portal groups, 1 and 2, that any initiator may come by.
#[derive(Debug)]
pub struct Disk {
    /// The daemon.
    pub daemon: Daemon,
    /// The ports of the portal groups on 127.0.0.1.
    pub ports: [u16; 2],
}

impl Disk {
    /// Starts a daemon with the bdev that `method` makes of `params`, as LUN 0.
    ///
    /// # Errors
    /// Where the daemon refuses.
    pub fn start(method: &str, params: Value) -> Result<Self> {
        Self::start_on(Daemon::start(2)?, method, params)
    }

    /// As [`Disk::start`], with a daemon that has been prepared.
    ///
    /// # Errors
    /// As there.
    pub fn start_on(daemon: Daemon, method: &str, params: Value) -> Result<Self> {
        let ports = [net::free_port()?, net::free_port()?];
        let bdev = params.get("name").cloned().context("a bdev has a name")?;
        daemon.call(method, params)?;
        for (tag, port) in (1..).zip(ports) {
            let portal = json!({"host": "127.0.0.1", "port": port.to_string()});
            daemon.call("iscsi_create_portal_group", json!({"tag": tag, "portals": [portal]}))?;
        }
        let any = json!({"tag": 1, "initiators": ["ANY"], "netmasks": ["ANY"]});
        daemon.call("iscsi_create_initiator_group", any)?;
        let maps = json!([{"pg_tag": 1, "ig_tag": 1}, {"pg_tag": 2, "ig_tag": 1}]);
        let luns = json!([{"bdev_name": bdev, "lun_id": 0}]);
        let target = json!({"name": IQN, "luns": luns, "pg_ig_maps": maps});
        daemon.call("iscsi_create_target_node", target)?;
        Ok(Self { daemon, ports })
    }

    /// In memory.
    ///
    /// # Errors
    /// As [`Disk::start`].
    pub fn malloc(mib: u64) -> Result<Self> {
        let params = json!({"name": "disk", "num_blocks": mib << 11, "block_size": 512});
        Self::start("bdev_malloc_create", params)
    }

    /// On a file, with blocks of 512 or 4096 bytes.
    ///
    /// # Errors
    /// As [`Disk::start`].
    pub fn uring(mib: u64, block_bytes: u32) -> Result<Self> {
        let params = json!({"name": "disk", "filename": "disk.img", "block_size": block_bytes,
            "create_size_mib": mib});
        Self::start("bdev_uring_create", params)
    }

    /// A vdisk with blocks of 512 or 4096 bytes, of a pool of so many MiB in memory.
    ///
    /// # Errors
    /// As [`Disk::start`].
    pub fn vdisk(pool_mib: u64, mib: u64, block_bytes: u32) -> Result<Self> {
        let daemon = Daemon::start(2)?;
        let memory = json!({"name": "pool-disk", "num_blocks": pool_mib << 8, "block_size": 4096});
        daemon.call("bdev_malloc_create", memory)?;
        make_pool_of(&daemon, "pool-disk")?;
        let params = json!({"name": "disk", "bytes": mib << 20, "block_size": block_bytes});
        Self::start_on(daemon, "vdisk_create", params)
    }

    /// Lets only [`USER`] in, and proves itself by [`TARGET_USER`] where it is asked.
    ///
    /// # Errors
    /// Where the daemon refuses.
    pub fn require_chap(&self) -> Result<()> {
        let secret = json!({"user": USER.0, "secret": USER.1, "muser": TARGET_USER.0,
            "msecret": TARGET_USER.1});
        self.daemon.call("iscsi_create_auth_group", json!({"tag": 1, "secrets": [secret]}))?;
        let auth = json!({"name": IQN, "chap_group": 1, "require_chap": true});
        self.daemon.call("iscsi_target_node_set_auth", auth).map(drop)
    }

    /// LUN `lun` as libiscsi and QEMU write it, by portal group 1 or 2; with `credentials`, or nothing, before it.
    pub fn url(&self, tag: u16, lun: u16, credentials: &str) -> String {
        let [first, second] = self.ports;
        let port = if tag == 1 { first } else { second };
        format!("iscsi://{credentials}127.0.0.1:{port}/{IQN}/{lun}")
    }

    /// What `iscsi_get_connections` says, without discovery.
    ///
    /// # Errors
    /// Where the daemon does not answer.
    pub fn connections(&self) -> Result<Vec<Value>> {
        let all = self.daemon.call("iscsi_get_connections", json!({}))?;
        let all = all.as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().filter(|one| one["target_node_name"] == IQN).collect())
    }
}

/// The credentials of [`USER`], for [`Disk::url`].
pub fn credentials() -> String {
    format!("{}%{}@", USER.0, USER.1)
}

/// Runs one of the machine's programs for `limit` at most; returns whether it succeeded, and what it said.
///
/// # Errors
/// Where it is not installed.
pub fn run(program: &str, args: &[&str], limit: Duration) -> Result<(bool, String)> {
    let mut command = Command::new(paths::tool("timeout")?);
    command.arg(limit.as_secs().to_string()).arg(paths::tool(program)?).args(args);
    let out = command.output().with_context(|| format!("cannot run {program}"))?;
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok((out.status.success(), text))
}

/// As [`run`], and it must succeed.
///
/// # Errors
/// Where it does not, with what it said.
pub fn must(program: &str, args: &[&str], limit: Duration) -> Result<String> {
    let (done, said) = run(program, args, limit)?;
    ensure!(done, "{program} {} failed:\n{said}", args.join(" "));
    Ok(said)
}
