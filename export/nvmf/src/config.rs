//! What is configured, as immutable snapshots.
//!
//! The target on the control thread holds the authoritative state. Every change makes a new
//! [`SubsystemConfig`] with a higher [`generation`](SubsystemConfig::generation) and sends the `Arc` to every reactor;
//! readers there never lock and never see half a change. What has to be shared live between cores (which controller
//! identifiers are taken) hangs off the snapshot as [`ControllerIds`], the same object in all generations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use penstock_bdev::Descriptor;
use penstock_security::chap::Policy;
use penstock_spec::nvme::NSID_MAX;
use penstock_spec::nvmf::Nqn;
use penstock_spec::nvmf::connect::CNTLID_MAX;
use penstock_spec::nvmf::discovery::{AdrFam, TrType};
use uuid::Uuid;

use crate::ana::{self, PathStates};
use crate::auth::HostKeys;
use crate::cntlid::ControllerIds;
use crate::io_cmd::{DMRSL_DEFAULT, WZSL_DEFAULT};
use crate::reservation::NamespaceReservations;

/// Subsystems of one target at most, discovery not counted.
pub const SUBSYSTEMS_MAX: usize = 1024;
/// Namespaces of one subsystem at most.
pub const NAMESPACES_MAX: u32 = 1024;
/// Namespaces that a subsystem may have when it is created without a number (as in SPDK).
pub const NAMESPACES_DEFAULT: u32 = 32;
/// Hosts on the list of one subsystem at most.
pub const HOSTS_MAX: usize = 4096;
/// Listeners of one subsystem at most.
pub const LISTENERS_MAX: usize = 64;
/// Portals (addresses listened on) of one target at most.
pub const PORTALS_MAX: usize = 256;
/// Referrals of one target at most.
pub const REFERRALS_MAX: usize = 64;
/// Hosts of one referral at most.
pub const REFERRAL_HOSTS_MAX: usize = 1024;
/// Serial number, in bytes of printable ASCII.
pub const SERIAL_LEN_MAX: usize = 20;
/// Model number, in bytes of printable ASCII.
pub const MODEL_LEN_MAX: usize = 40;
/// CQT unless configured, in milliseconds.
pub const COMMAND_QUIESCE_MS: u16 = 5000;
/// Data of one admin command at most, in bytes.
pub const ADMIN_DATA_LEN_MAX: usize = 1 << 20;

const _: () = assert!(NAMESPACES_MAX <= NSID_MAX);
const _: () = assert!(NAMESPACES_DEFAULT <= NAMESPACES_MAX);
// The Changed Namespace List and each page of an NSID list hold 1024 entries.
const _: () = assert!(NAMESPACES_MAX <= 1024);
const _: () = assert!(PORTALS_MAX <= u16::MAX as usize);

/// Namespace identifier: 1..=[`NAMESPACES_MAX`] in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nsid(pub u32);

impl fmt::Display for Nsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a subsystem offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubsystemKind {
    /// I/O controllers with namespaces.
    Nvm,
    /// Discovery controllers.
    Discovery,
}

/// One namespace of a subsystem.
#[derive(Clone)]
pub struct NamespaceConfig {
    /// Its identifier within the subsystem.
    pub nsid: Nsid,
    /// The bdev that it exports; each reactor opens its channel from it.
    pub descriptor: Descriptor,
    /// Its length in blocks when this snapshot was made; commands are checked against the bdev's live length.
    pub blocks: u64,
    /// Length of a logical block in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// UUID, reported in the identification descriptors.
    pub uuid: Uuid,
    /// NGUID, big-endian.
    pub nguid: [u8; 16],
    /// EUI64, big-endian; zero if none.
    pub eui64: [u8; 8],
    /// ANA group that it belongs to: 1..=[`max_ana_groups`](SubsystemConfig::max_ana_groups); its NSID unless configured.
    pub anagrpid: u32,
}

impl fmt::Debug for NamespaceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamespaceConfig")
            .field("nsid", &self.nsid)
            .field("bdev", &self.descriptor.shared().name())
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

impl NamespaceConfig {
    /// Whether a host that knew `other` under this NSID must look again: what Identify says has changed.
    #[must_use]
    pub fn differs_for_hosts(&self, other: &Self) -> bool {
        self.blocks != other.blocks
            || self.block_bytes != other.block_bytes
            || self.uuid != other.uuid
            || self.nguid != other.nguid
            || self.eui64 != other.eui64
            || self.descriptor.mode() != other.descriptor.mode()
    }
}

/// A host on a subsystem's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Its name.
    pub nqn: Nqn,
    /// What it proves itself with.
    pub keys: Option<Arc<HostKeys>>,
}

/// An address that is listened on; shared by all subsystems with a listener there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Port ID in the discovery log: one number per address and port of the target.
    pub portid: u16,
    /// TCP.
    pub trtype: TrType,
    /// Address and port listened on; the port is the real one even where 0 was asked for.
    pub addr: SocketAddr,
    /// Whether nothing is talked there without TLS.
    pub secure: bool,
    /// The state of each ANA group for controllers that come by it.
    pub ana: PathStates,
}

impl ListenerConfig {
    /// A listener on which every group is optimized.
    #[must_use]
    pub fn tcp(portid: u16, addr: SocketAddr) -> Self {
        Self { portid, trtype: TrType::TCP, addr, secure: false, ana: PathStates::default() }
    }

    /// Address family.
    #[must_use]
    pub const fn adrfam(&self) -> AdrFam {
        if self.addr.is_ipv4() { AdrFam::IPV4 } else { AdrFam::IPV6 }
    }
}

/// What happens when a host that has a controller connects another one at the same port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DuplicateHost {
    /// It has both.
    #[default]
    Allow,
    /// It is asked to try again, as long as it has the old one.
    Reject,
    /// The old one ends first.
    Replace,
}

/// A subsystem as of one generation.
#[derive(Debug, Clone)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: Nqn,
    /// Another name of it: the unique NQN of a discovery subsystem.
    pub alias: Option<Nqn>,
    /// What it offers.
    pub kind: SubsystemKind,
    /// Grows by one with every change.
    pub generation: u64,
    /// Serial number: 1..=[`SERIAL_LEN_MAX`] printable ASCII characters.
    pub serial_number: String,
    /// Model number: 1..=[`MODEL_LEN_MAX`] printable ASCII characters.
    pub model_number: String,
    /// The largest NSID.
    pub max_namespaces: u32,
    /// The smallest controller identifier that is given out.
    pub min_cntlid: u16,
    /// The largest controller identifier that is given out.
    pub max_cntlid: u16,
    /// Whether Asymmetric Namespace Access is reported.
    pub ana_reporting: bool,
    /// The largest ANA group identifier (ANAGRPMAX), and how many there are (NANAGRPID).
    pub max_ana_groups: u32,
    /// WZSL: log2 of the longest Write Zeroes, in pages; 0: no limit.
    pub wzsl: u8,
    /// DMRSL and DMSL: blocks that one Dataset Management command deallocates at most; 0: no limit.
    pub dmrsl: u32,
    /// Whether hosts may reset the whole subsystem (NSSR).
    pub enable_nssr: bool,
    /// What happens to another controller of the same host at the same port.
    pub duplicate_host: DuplicateHost,
    /// CQT: how long commands may go on after the controller has lost its host, in milliseconds.
    pub command_quiesce_ms: u16,
    /// Whether every host may connect.
    pub allow_any_host: bool,
    /// Hosts that may connect otherwise.
    pub hosts: BTreeMap<Nqn, HostConfig>,
    /// Namespaces; all are attached to all controllers.
    pub namespaces: BTreeMap<Nsid, NamespaceConfig>,
    /// Reservations of the namespaces.
    pub reservations: BTreeMap<Nsid, NamespaceReservations>,
    /// Where it can be reached.
    pub listeners: Vec<ListenerConfig>,
    /// What hosts may agree on to authenticate themselves.
    pub auth_policy: Arc<Policy>,
    /// Controller identifiers in use: the same object in every generation.
    pub controller_ids: Arc<ControllerIds>,
}

const _: () = assert!(CNTLID_MAX == 0xffef);

impl SubsystemConfig {
    /// A subsystem without namespaces, hosts and listeners, generation 1.
    #[must_use]
    pub fn new(nqn: Nqn, kind: SubsystemKind) -> Self {
        Self {
            nqn,
            alias: None,
            kind,
            generation: 1,
            serial_number: "00000000000000000000".to_owned(),
            model_number: "Penstock".to_owned(),
            max_namespaces: NAMESPACES_DEFAULT,
            min_cntlid: 1,
            max_cntlid: CNTLID_MAX,
            ana_reporting: false,
            max_ana_groups: ana::GROUPS_MAX,
            wzsl: WZSL_DEFAULT,
            dmrsl: DMRSL_DEFAULT,
            enable_nssr: false,
            duplicate_host: DuplicateHost::Allow,
            command_quiesce_ms: COMMAND_QUIESCE_MS,
            allow_any_host: kind == SubsystemKind::Discovery,
            hosts: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            reservations: BTreeMap::new(),
            listeners: Vec::new(),
            auth_policy: Arc::default(),
            controller_ids: Arc::new(ControllerIds::new()),
        }
    }

    /// Whether `host` may connect.
    #[must_use]
    pub fn allows(&self, host: &Nqn) -> bool {
        self.allow_any_host || self.hosts.contains_key(host)
    }

    /// Whether it goes by that name.
    #[must_use]
    pub fn is_named(&self, nqn: &Nqn) -> bool {
        self.nqn == *nqn || self.alias.as_ref() == Some(nqn)
    }

    /// The keys of a host, whether it is let in by its name or because any host is.
    #[must_use]
    pub fn keys_of(&self, host: &Nqn) -> Option<&HostKeys> {
        self.hosts.get(host)?.keys.as_deref()
    }

    /// Whether the subsystem can be reached at the portal.
    #[must_use]
    pub fn listens_on(&self, portid: u16) -> bool {
        self.listeners.iter().any(|listener| listener.portid == portid)
    }

    /// The namespace, if it is active.
    #[inline]
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<&NamespaceConfig> {
        self.namespaces.get(&Nsid(nsid))
    }

    /// What the discovery service shows of it.
    #[must_use]
    pub fn without_namespaces(&self) -> Self {
        Self {
            namespaces: BTreeMap::new(),
            reservations: BTreeMap::new(),
            nqn: self.nqn,
            serial_number: self.serial_number.clone(),
            model_number: self.model_number.clone(),
            hosts: self.hosts.clone(),
            listeners: self.listeners.clone(),
            auth_policy: Arc::clone(&self.auth_policy),
            controller_ids: Arc::clone(&self.controller_ids),
            ..*self
        }
    }

    /// NSIDs whose Identify data differ between two generations: added, removed, resized, of another identity.
    #[must_use]
    pub fn changed_namespaces(&self, before: &Self) -> BTreeSet<Nsid> {
        let mut changed = BTreeSet::new();
        for (nsid, now) in &self.namespaces {
            if before.namespaces.get(nsid).is_none_or(|was| now.differs_for_hosts(was)) {
                changed.insert(*nsid);
            }
        }
        changed.extend(before.namespaces.keys().filter(|nsid| !self.namespaces.contains_key(nsid)));
        changed
    }
}

/// A discovery service elsewhere that hosts are told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referral {
    /// Address and port, over TCP.
    pub addr: SocketAddr,
    /// Its NQN.
    pub subnqn: Nqn,
    /// Whether it wants TLS.
    pub secure_channel: bool,
    /// Whether every host is told of it.
    pub allow_any_host: bool,
    /// Hosts that are told of it otherwise.
    pub hosts: BTreeSet<Nqn>,
}

/// Which listeners a host is shown: those that agree with the one that it has come by in all that is set. (The transport
/// always agrees: there is one.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiscoveryFilter {
    /// Transport type.
    pub transport: bool,
    /// Address; "any address" agrees with all.
    pub address: bool,
    /// Port.
    pub svcid: bool,
}

/// Everything that the discovery service can show, as of one generation counter.
#[derive(Debug, Clone, Default)]
pub struct DiscoveryConfig {
    /// GENCTR: grows with every change that some host can see.
    pub genctr: u64,
    /// NVM subsystems, without their namespaces: an old generation that a reactor still has keeps no bdev open.
    pub subsystems: Vec<Arc<SubsystemConfig>>,
    /// Listeners of the discovery subsystem itself.
    pub listeners: Vec<ListenerConfig>,
    /// Its unique NQN, where it has one beside the well-known one.
    pub nqn: Option<Nqn>,
    /// Discovery services elsewhere.
    pub referrals: Vec<Referral>,
    /// What is left out.
    pub filter: DiscoveryFilter,
    /// Admin queue entries that a controller offers (ASQSZ).
    pub admin_queue_entries: u16,
}
