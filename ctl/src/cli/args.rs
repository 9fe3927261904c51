//! The tool's command line.

mod fabric;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;

pub(crate) use fabric::{
    ContainerCommand, ContainerOptions, ExportOptions, ImportOptions, PoolCommand, SnapshotCommand,
    VdiskCommand,
};

/// Controls the daemon of a Penstock node.
#[derive(Debug, Parser)]
#[command(name = "penstock", version, arg_required_else_help = true)]
pub struct Args {
    /// The daemon's control socket
    #[arg(long, short, global = true, env = "PENSTOCK_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print what the daemon answered, as JSON
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The daemon at a glance
    Status,
    /// Block devices
    #[command(subcommand)]
    Bdev(BdevCommand),
    /// Pools of disks
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Containers: limits, reservations and compression of vdisks
    #[command(subcommand)]
    Container(ContainerCommand),
    /// vdisks
    #[command(subcommand)]
    Vdisk(VdiskCommand),
    /// Snapshots and clones of vdisks
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make a vdisk of a raw or qcow2 image
    Import(ImportOptions),
    /// Write a vdisk, as of one moment, to a sparse raw file
    Export(ExportOptions),
    /// Why a vdisk is as it is: its state, causes, what shows them, and what to do
    Why {
        /// Name or UUID of the vdisk
        vdisk: String,
    },
    /// NVMe controllers that this node uses: local ones and remote ones
    #[command(subcommand)]
    Nvme(NvmeCommand),
    /// NVMe-oF subsystems and who is connected
    #[command(subcommand)]
    Nvmf(NvmfCommand),
    /// iSCSI targets and who is connected
    #[command(subcommand)]
    Iscsi(IscsiCommand),
    /// Disks of virtual machines on this node, and who is connected
    #[command(subcommand)]
    Vhost(VhostCommand),
    /// The reactors
    #[command(subcommand)]
    Reactor(ReactorCommand),
    /// The configuration as a whole
    #[command(subcommand)]
    Config(ConfigCommand),
    /// A live view of reactors, bdevs and hosts (q ends it)
    Top {
        /// Seconds between two views
        #[arg(long, short, default_value_t = 1.0)]
        interval: f64,
        /// End after so many views
        #[arg(long, short = 'n')]
        count: Option<u64>,
    },
    /// Look at the disks of a storage pool that no daemon has open, and say what is wrong, what follows and what helps
    Fsck {
        /// All disks of the pool: files or block devices
        #[arg(required = true)]
        disks: Vec<PathBuf>,
        /// Read all data too and compare checksums
        #[arg(long)]
        data: bool,
        /// Mend what loses nothing: copies of superblocks, a damaged checkpoint, counts
        #[arg(long)]
        repair: bool,
    },
    /// Make a storage pool openable again whose metadata is lost, from what is on its disks (copy the disks first)
    Rescue {
        /// All disks of the pool: files or block devices
        #[arg(required = true)]
        disks: Vec<PathBuf>,
    },
    /// The last records of the daemon's log
    Log,
    /// Drain and end the daemon
    Shutdown,
    /// Call any method of the control socket
    Rpc {
        /// The method; rpc_get_methods lists them
        method: String,
        /// Its parameters, a JSON object
        params: Option<String>,
    },
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print a page of the documentation
    #[command(hide = true)]
    Docs {
        /// Which page
        page: Docs,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Docs {
    /// docs/rpc.md
    Rpc,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BdevCommand {
    /// All bdevs
    List,
    /// One bdev, in full
    Show {
        /// Name, alias or UUID
        name: String,
    },
    /// Make a bdev
    #[command(subcommand)]
    Create(CreateCommand),
    /// Delete a bdev and what stands on it
    Delete {
        /// Name, alias or UUID
        name: String,
    },
    /// Give a bdev another length
    Resize {
        /// Name, alias or UUID
        name: String,
        /// Its new length, like 8G; none: what its file or device has got
        size: Option<String>,
    },
    /// Set ceilings of a bdev's I/O; 0 takes one away
    Qos {
        /// Name, alias or UUID
        name: String,
        /// Reads and writes per second
        #[arg(long, value_name = "N")]
        iops: Option<u64>,
        /// MiB read and written per second
        #[arg(long, value_name = "N")]
        mib: Option<u64>,
        /// MiB read per second
        #[arg(long, value_name = "N")]
        read_mib: Option<u64>,
        /// MiB written per second
        #[arg(long, value_name = "N")]
        write_mib: Option<u64>,
    },
    /// Change a latency of a delay bdev
    Latency {
        /// The delay bdev
        name: String,
        /// Which latency
        which: Latency,
        /// The new one, in microseconds
        us: u64,
    },
    /// Let I/Os of an error bdev fail, hang or go wrong
    Inject {
        /// The error bdev
        name: String,
        /// Which I/Os; clear takes all rules away
        io: InjectIo,
        /// What happens to them; not with clear
        error: Option<InjectError>,
        /// How many I/Os
        #[arg(long, default_value_t = 1)]
        num: u32,
        /// Only I/Os that touch blocks from this one on
        #[arg(long)]
        lba: Option<u64>,
        /// Only so many blocks from there
        #[arg(long, requires = "lba")]
        blocks: Option<u64>,
        /// Only so many of a thousand I/Os
        #[arg(long, value_name = "N")]
        per_mille: Option<u32>,
        /// With corrupt-data: what its first byte is XORed with, 1 to 255
        #[arg(long, value_name = "BYTE")]
        xor: Option<u8>,
    },
    /// What bdevs did since the last reset
    Stat {
        /// Begin anew afterwards
        #[arg(long)]
        reset: bool,
    },
    /// How long a bdev's I/Os take: percentiles and a histogram
    #[command(subcommand)]
    Histogram(HistogramCommand),
}

/// Histograms of latencies, of a bdev or an iSCSI target.
#[derive(Debug, Subcommand)]
pub(crate) enum HistogramCommand {
    /// Begin to count, or begin anew
    Start {
        /// Of what
        name: String,
        /// Of a bdev: count this operation only, like read
        #[arg(long)]
        op: Option<String>,
        /// Of a bdev: cut each power of two into 2^BITS parts, 1 to 10
        #[arg(long, value_name = "BITS")]
        granularity: Option<u8>,
    },
    /// What has been counted
    Show {
        /// Of what
        name: String,
    },
    /// Count no more
    Stop {
        /// Of what
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CreateCommand {
    /// Stores nothing
    Null {
        /// Its name
        name: String,
        /// Its length, like 1G
        size: String,
        /// Bytes of a block: 512 or 4096
        #[arg(long, default_value_t = 512)]
        block_size: u32,
    },
    /// On a file or block device
    Uring {
        /// Its name
        name: String,
        /// The file or device
        file: std::path::PathBuf,
        /// Make the file with this length, all holes, where it does not exist
        #[arg(long, value_name = "SIZE")]
        size: Option<String>,
        /// Bytes of a block: 512 or 4096 (default: the device's own)
        #[arg(long)]
        block_size: Option<u32>,
        /// Never write to it
        #[arg(long)]
        readonly: bool,
    },
    /// In memory
    Malloc {
        /// Its name
        name: String,
        /// Its length, like 1G
        size: String,
        /// Bytes of a block: 512 or 4096
        #[arg(long, default_value_t = 512)]
        block_size: u32,
    },
    /// A filter that delays completions
    Delay {
        /// Its name
        name: String,
        /// The bdev that it stands on
        base: String,
        /// Latency of most reads, in microseconds
        #[arg(long, value_name = "US", default_value_t = 0)]
        read: u64,
        /// Latency of one read in a hundred (default: as that of most)
        #[arg(long, value_name = "US")]
        read_p99: Option<u64>,
        /// Latency of most writes, in microseconds
        #[arg(long, value_name = "US", default_value_t = 0)]
        write: u64,
        /// Latency of one write in a hundred (default: as that of most)
        #[arg(long, value_name = "US")]
        write_p99: Option<u64>,
    },
    /// A filter that can make I/O fail (bdev inject), named EE_ and its base's name
    Error {
        /// The bdev that it stands on
        base: String,
    },
    /// Parts of equal length of a bdev, named by it, p and a number
    Split {
        /// The bdev to be cut up
        base: String,
        /// How many parts
        parts: u32,
        /// Length of a part, like 1G (default: as long as they can be)
        #[arg(long)]
        size: Option<String>,
    },
    /// A filter that changes nothing
    Passthru {
        /// Its name
        name: String,
        /// The bdev that it stands on
        base: String,
    },
}

/// Which latency of a delay bdev.
#[derive(Debug, Clone, Copy, ValueEnum, Serialize)]
pub(crate) enum Latency {
    /// Of most reads
    #[serde(rename = "avg_read")]
    Read,
    /// Of one read in a hundred
    #[serde(rename = "p99_read")]
    ReadP99,
    /// Of most writes
    #[serde(rename = "avg_write")]
    Write,
    /// Of one write in a hundred
    #[serde(rename = "p99_write")]
    WriteP99,
}

/// Which I/Os an error bdev lets go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InjectIo {
    /// None any more
    Clear,
    /// All
    All,
    /// Reads
    Read,
    /// Writes
    Write,
    /// Unmaps
    Unmap,
    /// Flushes
    Flush,
    /// Writes of zeroes
    WriteZeroes,
    /// Compares
    Compare,
}

/// How they go wrong.
#[derive(Debug, Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InjectError {
    /// They fail
    Failure,
    /// They hang until cleared or reset
    Pending,
    /// A byte is changed
    CorruptData,
    /// There is no memory for them
    Nomem,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum NvmeCommand {
    /// All controllers
    List,
    /// Take a controller and make bdevs of its namespaces; or add a path to a remote one
    Attach(NvmeAttach),
    /// Delete a controller's bdevs and let go of it; or of one path
    Detach {
        /// Its name
        name: String,
        /// Only the path to this address and port
        #[arg(long)]
        path: Option<SocketAddr>,
    },
    /// Reset a controller; I/O waits
    Reset {
        /// Its name
        name: String,
        /// Only the path to the controller with this ID
        #[arg(long)]
        cntlid: Option<u16>,
    },
    /// A controller's SMART / Health
    Health {
        /// Its name
        name: String,
    },
    /// A controller's error log
    Errors {
        /// Its name
        name: String,
    },
    /// Paths of remote bdevs on each reactor
    Paths {
        /// Only of this bdev
        bdev: Option<String>,
    },
    /// Use a path while it is among the best
    Prefer {
        /// The bdev
        bdev: String,
        /// ID of the controller that the path leads to
        cntlid: u16,
    },
    /// How a bdev's I/O is spread over equally good paths
    Policy {
        /// The bdev
        bdev: String,
        /// active_passive or active_active
        policy: String,
        /// Of active_active: round_robin or queue_depth
        #[arg(long)]
        selector: Option<String>,
        /// I/Os by one path before the next one's turn
        #[arg(long)]
        rr_min_io: Option<u32>,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NvmeAttach {
    /// Its name: bdevs are named by it, n and the namespace's number
    pub(crate) name: String,
    /// A PCI address, like 0000:5e:00.0, or an IP address with a port, like 192.0.2.1:4420
    pub(crate) at: String,
    /// NQN of the remote subsystem
    #[arg(long)]
    pub(crate) nqn: Option<String>,
    /// Who we are there
    #[arg(long)]
    pub(crate) hostnqn: Option<String>,
    /// Ask for digests of headers
    #[arg(long)]
    pub(crate) hdgst: bool,
    /// Ask for digests of data
    #[arg(long)]
    pub(crate) ddgst: bool,
    /// What it becomes where the name is taken: disable, failover or multipath
    #[arg(long)]
    pub(crate) multipath: Option<String>,
    /// Give it up after so many seconds without a connection; -1: never
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) ctrlr_loss_timeout: Option<i32>,
    /// Seconds between attempts to connect
    #[arg(long)]
    pub(crate) reconnect_delay: Option<u32>,
    /// Seconds without a connection after which I/O does not wait for it
    #[arg(long)]
    pub(crate) fast_io_fail_timeout: Option<u32>,
    /// Name of the key to authenticate by
    #[arg(long)]
    pub(crate) dhchap_key: Option<String>,
    /// Name of the key that the controller authenticates itself by
    #[arg(long)]
    pub(crate) dhchap_ctrlr_key: Option<String>,
    /// How a PCIe device reaches memory: auto, type1, iommufd or noiommu
    #[arg(long)]
    pub(crate) iommu: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VhostCommand {
    /// All controllers
    List,
    /// Make a controller: a socket by which a virtual machine reaches a bdev
    Create {
        /// Its name, which is that of the socket too
        ctrlr: String,
        /// The bdev
        bdev: String,
        /// The cores that it may use, like 0x3 or [0,1] (default: all reactors')
        #[arg(long)]
        cpumask: Option<String>,
        /// The guest cannot write
        #[arg(long)]
        readonly: bool,
        /// Offer packed queues
        #[arg(long)]
        packed_ring: bool,
    },
    /// Delete a controller to which nobody is connected
    Delete {
        /// Its name
        ctrlr: String,
    },
    /// Interrupt guests less often than every completion, above a rate
    SetCoalescing {
        /// The controller's name
        ctrlr: String,
        /// The base of the delay, in microseconds; 0: none
        delay_base_us: u32,
        /// Requests per second below which nothing is delayed
        iops_threshold: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NvmfCommand {
    /// All subsystems
    List,
    /// Make a subsystem (and the TCP transport, where there is none)
    Create {
        /// Its NQN
        nqn: String,
        /// Its serial number
        #[arg(long)]
        serial: Option<String>,
        /// Let every host connect
        #[arg(long)]
        any_host: bool,
        /// Listen on this address, like 0.0.0.0:4420
        #[arg(long, value_name = "ADDR")]
        listen: Vec<SocketAddr>,
        /// Add this bdev as a namespace
        #[arg(long, value_name = "BDEV")]
        ns: Vec<String>,
        /// Tell hosts which of several paths to use (see `ana`)
        #[arg(long)]
        ana: bool,
    },
    /// Delete a subsystem; its hosts lose their connections
    Delete {
        /// Its NQN
        nqn: String,
    },
    /// Add a bdev to a subsystem as a namespace
    AddNs {
        /// The subsystem's NQN
        nqn: String,
        /// The bdev
        bdev: String,
        /// Its namespace ID (default: the first that is free)
        #[arg(long)]
        nsid: Option<u32>,
    },
    /// Take a namespace out of a subsystem
    RemoveNs {
        /// The subsystem's NQN
        nqn: String,
        /// The namespace ID
        nsid: u32,
    },
    /// Let hosts reach a subsystem at an address
    Listen {
        /// The subsystem's NQN
        nqn: String,
        /// Address and port
        address: SocketAddr,
    },
    /// End that
    Unlisten {
        /// The subsystem's NQN
        nqn: String,
        /// Address and port
        address: SocketAddr,
    },
    /// Discovery services elsewhere that hosts are told of
    Referrals,
    /// Tell hosts of a discovery service elsewhere
    Refer {
        /// Address and port
        address: SocketAddr,
        /// Its NQN (default: the well-known one)
        #[arg(long)]
        nqn: Option<String>,
        /// Only tell this host
        #[arg(long, value_name = "NQN")]
        host: Vec<String>,
        /// It wants TLS
        #[arg(long)]
        tls: bool,
    },
    /// End that
    Unrefer {
        /// Address and port
        address: SocketAddr,
        /// Its NQN (default: the well-known one)
        #[arg(long)]
        nqn: Option<String>,
    },
    /// The addresses of a subsystem, with the states of their ANA groups
    Paths {
        /// The subsystem's NQN
        nqn: String,
    },
    /// Change what hosts may do by an address
    Ana {
        /// The subsystem's NQN
        nqn: String,
        /// Address and port
        address: SocketAddr,
        /// optimized, non_optimized, inaccessible, persistent_loss or change
        state: String,
        /// Only this ANA group
        #[arg(long)]
        group: Option<u32>,
    },
    /// Move a namespace to another ANA group
    AnaGroup {
        /// The subsystem's NQN
        nqn: String,
        /// The namespace ID
        nsid: u32,
        /// The group
        group: u32,
    },
    /// Let a host connect
    Allow {
        /// The subsystem's NQN
        nqn: String,
        /// The host's NQN, or "any"
        host: String,
    },
    /// End that
    Deny {
        /// The subsystem's NQN
        nqn: String,
        /// The host's NQN, or "any"
        host: String,
    },
    /// Who is connected to a subsystem
    Hosts {
        /// The subsystem's NQN
        nqn: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum IscsiCommand {
    /// All targets
    List,
    /// Make a target, with the portal groups and the initiator group that it needs
    Create {
        /// Its name; without iqn. it is completed
        name: String,
        /// Listen on this address, like 0.0.0.0:3260
        #[arg(long, value_name = "ADDR", required = true)]
        listen: Vec<SocketAddr>,
        /// Add this bdev as the next LUN
        #[arg(long, value_name = "BDEV")]
        lun: Vec<String>,
        /// Let only this initiator in (default: any)
        #[arg(long, value_name = "NAME")]
        initiator: Vec<String>,
        /// Let initiators in from this network only (default: any)
        #[arg(long, value_name = "NET")]
        netmask: Vec<String>,
    },
    /// Delete a target; its sessions end
    Delete {
        /// Its name
        name: String,
    },
    /// Add a bdev to a target as a LUN
    AddLun {
        /// The target's name
        name: String,
        /// The bdev
        bdev: String,
        /// Its number (default: the first that is free)
        #[arg(long)]
        lun: Option<u16>,
        /// Show it to the initiators of this group only
        #[arg(long, value_name = "TAG")]
        initiator_group: Vec<u32>,
    },
    /// Take a LUN out of a target
    RemoveLun {
        /// The target's name
        name: String,
        /// The LUN
        lun: u16,
    },
    /// How long the commands of a target's hosts take: percentiles and a histogram
    #[command(subcommand)]
    Histogram(HistogramCommand),
    /// All portal groups
    Portals,
    /// All initiator groups
    Initiators,
    /// All authentication groups, without their secrets
    Secrets,
    /// Add a secret to an authentication group, which is made if it is not there. The secret is read from standard
    /// input; with --muser, the target's own secret from a second line
    AddSecret {
        /// The authentication group
        group: u32,
        /// Name of the initiator
        user: String,
        /// Name of the target, for mutual CHAP
        #[arg(long, value_name = "NAME")]
        muser: Option<String>,
    },
    /// Take a secret out of an authentication group
    RemoveSecret {
        /// The authentication group
        group: u32,
        /// Name of the initiator
        user: String,
    },
    /// Say who has to prove what to log in to a target
    Auth {
        /// The target's name
        name: String,
        /// The authentication group; 0: nobody has to prove anything
        group: u32,
        /// In both directions
        #[arg(long)]
        mutual: bool,
    },
    /// Send logins at a portal group elsewhere, or take them again
    Redirect {
        /// The target's name
        name: String,
        /// The portal group
        portal_group: u32,
        /// Where to (default: take them again)
        address: Option<SocketAddr>,
    },
    /// Ask the initiators of a target to log out: they come again where they are sent
    Logout {
        /// The target's name
        name: String,
        /// Only who came by this portal group
        #[arg(long, value_name = "TAG")]
        portal_group: Option<u32>,
    },
    /// Who is connected
    Sessions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReactorCommand {
    /// All reactors and what they do with their time
    List,
    /// Change what reactors do when they are idle: adaptive or busy
    PollMode {
        /// adaptive or busy
        mode: String,
        /// Only this reactor
        #[arg(long)]
        reactor: Option<u32>,
        /// With adaptive: microseconds of polling in vain before it sleeps
        #[arg(long)]
        spin_us: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the live configuration, in the shape of SPDK's save_config
    Save,
    /// Run the calls of a configuration
    Load {
        /// A file of JSON; - reads standard input
        file: PathBuf,
    },
}
