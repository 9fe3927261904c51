//! What is driven.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::null::Null;
use penstock_bdev::uring::{Uring, UringOptions};
use penstock_bdev::{Bdev, Descriptor, OpenMode};
use penstock_nvme_tcp::blocking::BlockingController;
use penstock_nvme_tcp::controller::ControllerConfig;
use penstock_nvme_tcp::{AuthConfig, QpairConfig, Tls, TlsKey};
use penstock_reactor::ReactorHandle;
use penstock_reactor::net::{SocketOptions, TcpSocket};
use penstock_security::chap::{Keys, Policy};
use penstock_security::keyring::Keyring;
use penstock_security::psk::ConfiguredPsk;
use penstock_security::secret::Secret;
use penstock_security::tls::Context;
use penstock_spec::nvmf::Nqn;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::args::{Args, parse_bytes};
use crate::iscsi::IscsiTarget;
use crate::pcie::PcieTarget;
use crate::remote::{Queue, Remote};

const NULL_BLOCKS: u64 = 1 << 28;
const MALLOC_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: u32 = 4096;
/// Every step of connecting.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An opened target.
#[derive(Debug)]
pub enum Target {
    /// A bdev of this process.
    Bdev(Descriptor),
    /// A namespace of an NVMe device.
    Pcie(PcieTarget),
    /// A namespace of an NVMe/TCP target.
    Remote(Box<RemoteTarget>),
    /// A LUN of an iSCSI target.
    Iscsi(Box<IscsiTarget>),
}

/// A controller, and what its namespace looks like.
#[derive(Debug)]
pub struct RemoteTarget {
    controller: BlockingController,
    nsid: u32,
    block_bytes: u32,
    blocks: u64,
    next_qid: u16,
}

impl Target {
    /// Opens what `args` names, to be driven by `reactors`.
    ///
    /// # Errors
    /// When there is no such target, or it cannot be opened.
    pub fn open(args: &Args, reactors: &[ReactorHandle]) -> anyhow::Result<Self> {
        if let Some(rest) = args.target.strip_prefix("nvme-tcp://") {
            return Ok(Self::Remote(Box::new(RemoteTarget::connect(rest, args)?)));
        }
        if let Some(rest) = args.target.strip_prefix("iscsi://") {
            return Ok(Self::Iscsi(Box::new(IscsiTarget::connect(rest)?)));
        }
        if let Some(rest) = args.target.strip_prefix("pcie:") {
            return Ok(Self::Pcie(PcieTarget::attach(rest, reactors)?));
        }
        let (kind, rest) = args.target.split_once(':').unwrap_or((&args.target, ""));
        let bdev: Arc<dyn Bdev> = match kind {
            "null" if rest.is_empty() => Null::new("null0", Uuid::from_u128(1), NULL_BLOCKS, BLOCK_BYTES)?,
            "malloc" => open_malloc(rest)?,
            "file" => open_file(rest)?,
            _ => bail!("unknown target {}: --help lists them", args.target),
        };
        Ok(Self::Bdev(Descriptor::unregistered(bdev, OpenMode::ReadWrite)))
    }

    /// Bytes of a block, and how many blocks there are.
    #[must_use]
    pub fn geometry(&self) -> (u32, u64) {
        match self {
            Self::Bdev(descriptor) => geometry(descriptor),
            Self::Pcie(pcie) => geometry(pcie.descriptor()),
            Self::Remote(remote) => (remote.block_bytes, remote.blocks),
            Self::Iscsi(target) => target.geometry(),
        }
    }
}

impl RemoteTarget {
    /// Connects to `HOST:PORT/NQN[?nsid=N]`.
    fn connect(rest: &str, args: &Args) -> anyhow::Result<Self> {
        let usage = "a target is nvme-tcp://HOST:PORT/NQN[?nsid=N]";
        let (place, name) = rest.split_once('/').context(usage)?;
        let (name, nsid) = match name.split_once("?nsid=") {
            Some((name, nsid)) => (name, nsid.parse().context(usage)?),
            None => (name, 1),
        };
        let addr: SocketAddr = place.to_socket_addrs().context(usage)?.next().context("no such host")?;
        let hostid = Uuid::new_v4();
        let hostnqn = match &args.hostnqn {
            Some(name) => Nqn::parse(name.as_bytes())?,
            None => Nqn::parse(format!("nqn.2014-08.org.nvmexpress:uuid:{hostid}").as_bytes())?,
        };
        let subnqn = Nqn::parse(name.as_bytes())?;
        let mut admin = QpairConfig::admin(hostid.into_bytes(), hostnqn, subnqn);
        admin.auth = auth_config(args)?;
        admin.tls = tls_config(args, &hostnqn, &subnqn)?;
        admin.hdgst = args.hdgst;
        admin.ddgst = args.ddgst;
        admin.sq_flow_control = args.sq_flow_control;
        let workers = args.cores.as_ref().map_or(1, |cores| cores.len());
        let io_queues = u16::try_from(workers)?.checked_mul(args.queues).context("too many I/O queues")?;
        let step_timeout_ns = u64::try_from(TIMEOUT.as_nanos())?;
        let config = ControllerConfig { admin, io_queues, step_timeout_ns };
        let mut controller = BlockingController::connect(addr, config, TIMEOUT)
            .with_context(|| format!("cannot connect to {name} at {addr}"))?;
        let namespace = controller.identify_namespace(nsid)?;
        let blocks = namespace.nsze.get();
        ensure!(blocks > 0, "{name} has no active namespace {nsid}");
        let block_bytes = namespace.block_len().context("the namespace has no valid LBA format")?;
        Ok(Self { controller, nsid, block_bytes, blocks, next_qid: 1 })
    }

    /// Opens a worker's queues.
    ///
    /// # Errors
    /// When the target refuses one.
    pub fn open_queues(&mut self, count: u16, depth: u32) -> anyhow::Result<Remote> {
        let per_queue = u16::try_from(depth.div_ceil(u32::from(count)))?;
        let mut queues = Vec::new();
        for _ in 0..count {
            let qid = self.next_qid;
            let queue = self.controller.open_io(qid, per_queue);
            let (qpair, stream, tunnel) = queue.with_context(|| format!("I/O queue {qid}"))?.into_parts();
            let socket = TcpSocket::from_fd(OwnedFd::from(stream), &SocketOptions::default())?;
            queues.push(Queue::new(qpair, socket).with_tls(tunnel));
            self.next_qid += 1;
        }
        Ok(Remote::new(queues, self.nsid, self.block_bytes))
    }

    /// Says good-bye to the controller.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn close(self) -> anyhow::Result<()> {
        Ok(self.controller.shut_down()?)
    }
}

/// What connections are secured with, if they are to be: a configured key, or one that the authentication makes.
fn tls_config(args: &Args, host: &Nqn, subsystem: &Nqn) -> anyhow::Result<Option<Tls>> {
    let Some(path) = &args.psk else {
        let tls =
            args.concat.then(|| anyhow::Ok(Tls { context: Arc::new(Context::new()?), psks: Vec::new() }));
        return tls.transpose();
    };
    let psk = ConfiguredPsk::parse(&key_in(path)?);
    let psk = psk.with_context(|| format!("{} holds no key for TLS", path.display()))?;
    Ok(Some(TlsKey { context: Arc::new(Context::new()?), psk }.between(host, subsystem)))
}

/// What a key's file holds; only its owner may read it.
fn key_in(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut keyring = Keyring::default();
    keyring.add("key", &std::path::absolute(path)?)?;
    Ok(keyring.load("key")?)
}

/// What the host authenticates itself with, if it is to.
fn auth_config(args: &Args) -> anyhow::Result<Option<Arc<AuthConfig>>> {
    let Some(path) = &args.dhchap_key else { return Ok(None) };
    let secret = |path: &Path| -> anyhow::Result<Secret> {
        Secret::parse(&key_in(path)?).with_context(|| format!("{} holds no secret", path.display()))
    };
    let controller = args.dhchap_ctrlr_key.as_deref().map(secret).transpose()?;
    let mut policy = Policy::default();
    if !args.dhchap_digests.is_empty() {
        policy.hashes.clone_from(&args.dhchap_digests);
    }
    if !args.dhchap_dhgroups.is_empty() {
        policy.groups.clone_from(&args.dhchap_dhgroups);
    }
    Ok(Some(Arc::new(AuthConfig { keys: Keys { host: secret(path)?, controller }, policy })))
}

fn geometry(descriptor: &Descriptor) -> (u32, u64) {
    (descriptor.shared().block_bytes(), descriptor.shared().blocks())
}

fn open_file(path: &str) -> anyhow::Result<Arc<Uring>> {
    let options = serde_json::json!({ "name": "file0", "filename": path });
    let options: UringOptions = serde_json::from_value(options)?;
    Ok(Uring::new(options)?)
}

fn open_malloc(size: &str) -> anyhow::Result<Arc<Malloc>> {
    let bytes = if size.is_empty() { MALLOC_BYTES } else { parse_bytes(size).map_err(anyhow::Error::msg)? };
    let options = serde_json::json!({
        "num_blocks": bytes / u64::from(BLOCK_BYTES),
        "block_size": BLOCK_BYTES,
    });
    let options: MallocOptions = serde_json::from_value(options)?;
    Ok(Malloc::new("malloc0", &options)?)
}
