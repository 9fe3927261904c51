//! The command line of pools, containers, vdisks and snapshots.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// All pools, and disks of pools that are not complete
    List,
    /// One pool in full: its disks and how full it is
    Show {
        /// Name or UUID (default: the only one)
        name: Option<String>,
    },
    /// Who uses the space, exactly, and what thin provisioning, sharing and compression save
    Usage {
        /// Name or UUID (default: the only one)
        name: Option<String>,
    },
    /// Make a pool of bdevs; what is on them is lost
    Create {
        /// Its name
        name: String,
        /// The bdevs
        #[arg(required = true)]
        bdevs: Vec<String>,
        /// Their kind: ssd or hdd
        #[arg(long)]
        tier: Option<String>,
        /// Shares of the pool, each served by one reactor: at least as many as there will ever be reactors (default: 16)
        #[arg(long)]
        lanes: Option<u16>,
        /// Length of each share's log, like 64M
        #[arg(long, value_name = "SIZE")]
        log: Option<String>,
        /// Length of the pieces by which shares take space, like 64M
        #[arg(long, value_name = "SIZE")]
        region: Option<String>,
        /// Take disks of another pool too
        #[arg(long)]
        force: bool,
    },
    /// Delete a pool; its disks are blank afterwards
    Delete {
        /// Name or UUID
        name: String,
        /// Its vdisks go with it
        #[arg(long)]
        force: bool,
    },
}

/// What a container may be told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ContainerOptions {
    /// Name or UUID of the pool (default: the only one)
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// What its vdisks may map at most, like 100G; 0: no limit
    #[arg(long, value_name = "SIZE")]
    pub(crate) limit: Option<String>,
    /// What no other container may use, like 10G
    #[arg(long, value_name = "SIZE")]
    pub(crate) reserve: Option<String>,
    /// How data written from now on are compressed
    #[arg(long)]
    pub(crate) compression: Option<Compression>,
    /// Seconds that data lie as they are before they are compressed (default: compressed when they are written)
    #[arg(long, value_name = "SECONDS", requires = "compression")]
    pub(crate) compression_delay: Option<u64>,
}

/// How data are compressed.
#[derive(Debug, Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compression {
    /// Not at all
    Off,
    /// LZ4: fast
    Lz4,
    /// Zstandard: smaller
    Zstd,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// The containers of a pool, or of all
    List {
        /// Name or UUID of the pool (default: all)
        #[arg(long)]
        pool: Option<String>,
    },
    /// Make a container
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        options: ContainerOptions,
    },
    /// Change a container; what is not given stays
    Set {
        /// Its name
        name: String,
        #[command(flatten)]
        options: ContainerOptions,
    },
    /// Delete a container without vdisks
    Delete {
        /// Its name
        name: String,
        /// Name or UUID of the pool (default: the only one)
        #[arg(long)]
        pool: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VdiskCommand {
    /// All vdisks
    List,
    /// One vdisk in full
    Show {
        /// Name or UUID
        name: String,
    },
    /// Make a thin vdisk, which is a bdev of that name
    Create {
        /// Its name
        name: String,
        /// Its length, like 100G
        size: String,
        /// Name or UUID of the pool (default: the only one)
        #[arg(long)]
        pool: Option<String>,
        /// Its container (default: default)
        #[arg(long)]
        container: Option<String>,
        /// Bytes of a block: 512 or 4096 (default: 512)
        #[arg(long)]
        block_size: Option<u32>,
        /// Shards, each served by one reactor (default: one for each lane of the pool)
        #[arg(long)]
        shards: Option<u16>,
    },
    /// Delete vdisks
    Delete {
        /// Names or UUIDs
        #[arg(required = true)]
        names: Vec<String>,
        /// Their snapshots go with them
        #[arg(long)]
        snapshots: bool,
        /// Also when somebody has them open
        #[arg(long)]
        force: bool,
    },
    /// Give a vdisk another length
    Resize {
        /// Name or UUID
        name: String,
        /// Its new length, like 200G
        size: String,
        /// It may become shorter; what is behind the new end is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Give a vdisk that nobody has open another name
    Rename {
        /// Name or UUID
        name: String,
        /// Its new name
        new_name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// The snapshots of a vdisk, or of all
    List {
        /// Name or UUID of the vdisk
        vdisk: Option<String>,
    },
    /// Take a snapshot of vdisks of one pool, all at one moment
    Create {
        /// Its name, among each vdisk's
        name: String,
        /// Names or UUIDs of the vdisks
        #[arg(required = true)]
        vdisks: Vec<String>,
    },
    /// Delete snapshots; clones of them stay
    Delete {
        /// VDISK@SNAPSHOT
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
    /// Show a snapshot as a bdev that is only read, from now on
    Show {
        /// VDISK@SNAPSHOT
        snapshot: String,
    },
    /// End that
    Hide {
        /// VDISK@SNAPSHOT
        snapshot: String,
    },
    /// Make a vdisk that begins as a snapshot
    Clone {
        /// VDISK@SNAPSHOT
        snapshot: String,
        /// Name of the new vdisk
        name: String,
    },
    /// Make a vdisk that nobody has open what its snapshot is
    Revert {
        /// VDISK@SNAPSHOT
        snapshot: String,
    },
    /// The ranges that differ from an earlier snapshot, by the maps alone
    Diff {
        /// VDISK@SNAPSHOT
        snapshot: String,
        /// The earlier snapshot (default: none, so that all that is mapped differs)
        #[arg(long, value_name = "SNAPSHOT")]
        from: Option<String>,
    },
}

/// What to import, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct ImportOptions {
    /// The image: a file or block device that the daemon can read
    pub(crate) file: PathBuf,
    /// Name of the new vdisk (default: the file's, without its ending)
    pub(crate) name: Option<String>,
    /// raw or qcow2 (default: what its first bytes say)
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// Name or UUID of the pool (default: the only one)
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// Its container (default: default)
    #[arg(long)]
    pub(crate) container: Option<String>,
    /// Bytes of a block: 512 or 4096 (default: 512)
    #[arg(long)]
    pub(crate) block_size: Option<u32>,
    /// Do not wait for its end
    #[arg(long)]
    pub(crate) detach: bool,
}

/// What to export, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportOptions {
    /// VDISK, as it is now, or VDISK@SNAPSHOT
    pub(crate) vdisk: String,
    /// The raw file, which must not be there yet
    pub(crate) file: PathBuf,
    /// Do not wait for its end
    #[arg(long)]
    pub(crate) detach: bool,
}
