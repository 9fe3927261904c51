//! The disks of a pool: make them, know them again, put them together.
//!
//! These are control flows over a [`Flow`] whose disk numbers are whatever the caller has plugged in where; only the
//! superblocks say which disk of which pool it is.

use std::sync::Arc;

use uuid::Uuid;

use crate::alloc::Regions;

use crate::flow::{DiskError, Flow, buffer};
use crate::format::FormatError;
use crate::format::superblock::{COPIES, DISKS_MAX, EDGE_BLOCKS, Layout, Superblock, Tier, copies};
use crate::id::{BLOCK_BYTES, DiskNo, LaneNo};
use crate::lane::{LaneDisk, LanePlace};
use crate::log::LogPlace;

/// How a pool is laid out on its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Shares of the pool, each owned by one reactor at a time: at least as many as there will ever be reactors.
    pub lanes: u16,
    /// Blocks of a log segment.
    pub segment_blocks: u32,
    /// Log segments of each lane.
    pub segments: u32,
    /// Blocks of a region.
    pub region_blocks: u32,
}

impl Default for PoolOptions {
    /// 16 lanes, 64 MiB of log each in segments of 4 MiB, regions of 64 MiB.
    fn default() -> Self {
        Self { lanes: 16, segment_blocks: 1024, segments: 16, region_blocks: 16384 }
    }
}

/// A disk for a new pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewDisk {
    /// Where it is plugged in.
    pub at: DiskNo,
    /// Its identity.
    pub uuid: Uuid,
    /// Its length.
    pub blocks: u64,
    /// Its kind.
    pub tier: Tier,
}

/// Why a pool cannot be made or put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A disk failed.
    #[error("pool: {0}")]
    Disk(#[from] DiskError),
    /// A disk cannot be divided as asked for.
    #[error("disk {}: {source}; it has {blocks} blocks of 4 KiB: give a larger disk, or fewer lanes or segments", at.0)]
    Layout {
        /// Where it is plugged in.
        at: DiskNo,
        /// Its length.
        blocks: u64,
        /// Which number is wrong.
        #[source]
        source: FormatError,
    },
    /// No disks, or too many.
    #[error("a pool has 1 to {DISKS_MAX} disks, not {count}")]
    Disks {
        /// How many were given.
        count: usize,
    },
    /// The disk was written by a newer program, or has features that this one does not know.
    #[error("disk {}: superblock: {source}", at.0)]
    Superblock {
        /// Where it is plugged in.
        at: DiskNo,
        /// What is wrong.
        #[source]
        source: FormatError,
    },
    /// Disks of several pools.
    #[error("disk {} is of pool {found}, not of {wanted}; open one pool at a time", at.0)]
    Foreign {
        /// Where it is plugged in.
        at: DiskNo,
        /// Its pool.
        found: Uuid,
        /// The pool being opened.
        wanted: Uuid,
    },
    /// A disk became shorter.
    #[error(
        "disk {} has {found} blocks of 4 KiB of the {wanted} that it had when the pool was made: it was cut off, or is a copy that is not \
         whole; give it its length back",
        at.0
    )]
    Short {
        /// Where it is plugged in.
        at: DiskNo,
        /// Its length now, in blocks.
        found: u64,
        /// Its length then.
        wanted: u64,
    },
    /// A disk of the pool is not there.
    #[error("pool {pool} lacks disk {disk} (number {})", number.0)]
    Missing {
        /// The pool.
        pool: Uuid,
        /// The disk.
        disk: Uuid,
        /// Its number.
        number: DiskNo,
    },
    /// The same disk twice: a copy of it is plugged in as well.
    #[error("disk {disk} of pool {pool} is there twice; remove the copy")]
    Twice {
        /// The pool.
        pool: Uuid,
        /// The disk.
        disk: Uuid,
    },
}

/// Blocks of a checkpoint slot for a lane on a disk of `blocks` blocks: room for every egroup that the lane could have were
/// they of 64 KiB on average.
fn checkpoint_blocks(blocks: u64, lanes: u16) -> u32 {
    let ops = blocks / 16 / u64::from(lanes.max(1));
    u32::try_from(ops.div_ceil(64) + 64).unwrap_or(u32::MAX).min(1 << 22)
}

/// Makes a pool of `disks`. Whatever was on them is lost. Returns the superblocks, in the order of the disks.
///
/// # Errors
/// [`PoolError`].
pub async fn create(
    flow: &Flow,
    pool: Uuid,
    disks: &[NewDisk],
    options: &PoolOptions,
) -> Result<Vec<Superblock>, PoolError> {
    let made = plan(pool, disks, options)?;
    for (disk, superblock) in disks.iter().zip(&made) {
        write_superblock(flow, disk.at, superblock).await?;
    }
    Ok(made)
}

/// Makes a disk no disk of any pool.
///
/// # Errors
/// What the disk says.
pub async fn wipe(flow: &Flow, at: DiskNo, layout: &Layout) -> Result<(), PoolError> {
    for copy in layout.copies() {
        let mut buf = buffer(BLOCK_BYTES).await;
        buf.fill(0);
        flow.write(at, copy, buf).await?;
    }
    Ok(flow.flush(at).await?)
}

/// The superblocks of a new pool, in the order of the disks. Nothing is written.
///
/// # Errors
/// [`PoolError`].
pub fn plan(pool: Uuid, disks: &[NewDisk], options: &PoolOptions) -> Result<Vec<Superblock>, PoolError> {
    if disks.is_empty() || disks.len() > DISKS_MAX {
        return Err(PoolError::Disks { count: disks.len() });
    }
    let uuids: Vec<Uuid> = disks.iter().map(|disk| disk.uuid).collect();
    // The lanes' logs on all disks in turn.
    let numbers = (0..u16::try_from(disks.len()).unwrap_or(u16::MAX)).map(DiskNo);
    let lane_homes: Vec<DiskNo> = numbers.clone().cycle().take(usize::from(options.lanes)).collect();
    let mut made = Vec::with_capacity(disks.len());
    for (disk, disk_no) in disks.iter().zip(numbers) {
        let layout = Layout {
            blocks: disk.blocks,
            lanes: options.lanes,
            segment_blocks: options.segment_blocks,
            segments: options.segments,
            checkpoint_blocks: checkpoint_blocks(disk.blocks, options.lanes),
            region_blocks: options.region_blocks,
        };
        layout.check().map_err(|source| PoolError::Layout { at: disk.at, blocks: disk.blocks, source })?;
        made.push(Superblock {
            pool,
            generation: 1,
            disk_no,
            disk: disk.uuid,
            tier: disk.tier,
            layout,
            disks: uuids.clone(),
            lane_homes: lane_homes.clone(),
        });
    }
    Ok(made)
}

/// Writes a superblock's copies so that at any moment two sound ones of the old or of the new generation are there.
///
/// # Errors
/// What the disk says.
pub async fn write_superblock(flow: &Flow, at: DiskNo, superblock: &Superblock) -> Result<(), DiskError> {
    let [first, second, third, fourth] = superblock.layout.copies();
    for half in [[first, third], [second, fourth]] {
        for copy in half {
            let mut buf = buffer(BLOCK_BYTES).await;
            buf.copy_from_slice(&superblock.to_block(copy));
            flow.write(at, copy, buf).await?;
        }
        flow.flush(at).await?;
    }
    Ok(())
}

/// What a disk says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A disk of a pool, and how many of its copies are to be mended.
    Member(Box<Superblock>, usize),
    /// No disk of any pool.
    Blank,
}

/// Looks whose disk it is.
///
/// # Errors
/// [`PoolError::Disk`] when not one copy can be read; [`PoolError::Superblock`] when a newer program wrote it.
pub async fn probe(flow: &Flow, at: DiskNo, blocks: u64) -> Result<Probe, PoolError> {
    if blocks < 2 * EDGE_BLOCKS {
        return Ok(Probe::Blank);
    }
    let (mut found, mut failed, mut refused) = (Vec::new(), None, None);
    for copy in copies(blocks) {
        match flow.read(at, copy, 1).await {
            Ok(buf) => match Superblock::parse(&buf, copy) {
                Ok(superblock) => found.push(superblock),
                Err(error @ (FormatError::Version { .. } | FormatError::Field { .. })) => {
                    refused = Some(error)
                }
                Err(_) => {}
            },
            Err(error) => failed = Some(error),
        }
    }
    let Some(newest) = found.iter().map(|superblock| superblock.generation).max() else {
        return match (refused, failed) {
            (Some(source), _) => Err(PoolError::Superblock { at, source }),
            (None, Some(error)) => Err(error.into()),
            (None, None) => Ok(Probe::Blank),
        };
    };
    found.retain(|superblock| superblock.generation == newest);
    let bad = COPIES - found.len();
    found
        .pop()
        .map(|superblock| Probe::Member(Box::new(superblock), bad))
        .ok_or(PoolError::Disks { count: 0 })
}

/// Disks that make up one pool, by number.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The pool.
    pub uuid: Uuid,
    /// Where each disk is plugged in, with its superblock.
    pub disks: Vec<(DiskNo, Superblock)>,
}

/// Puts a pool together from disks that were recognised, wherever they are plugged in, and mends damaged copies of superblocks.
///
/// # Errors
/// [`PoolError`] when disks are missing, foreign or there twice.
pub async fn open(flow: &Flow, plugged: &[(DiskNo, u64)]) -> Result<Pool, PoolError> {
    let (pool, damaged) = assemble(flow, plugged).await?;
    for (at, superblock) in &pool.disks {
        if damaged.iter().any(|(bad, _)| bad == at) {
            write_superblock(flow, *at, superblock).await?;
        }
    }
    Ok(pool)
}

/// As [`open`], without writing: where there are damaged copies of superblocks, and how many.
///
/// # Errors
/// [`PoolError`].
pub async fn assemble(
    flow: &Flow,
    plugged: &[(DiskNo, u64)],
) -> Result<(Pool, Vec<(DiskNo, usize)>), PoolError> {
    let mut damaged = Vec::new();
    let mut members = Vec::new();
    for (at, blocks) in plugged {
        if let Probe::Member(superblock, bad) = probe(flow, *at, *blocks).await? {
            let (found, wanted) = (*blocks, superblock.layout.blocks);
            if found < wanted {
                return Err(PoolError::Short { at: *at, found, wanted });
            }
            members.push((*at, *superblock, bad));
        }
    }
    let newest = members.iter().max_by_key(|(_, superblock, _)| superblock.generation);
    let Some((_, newest, _)) = newest.cloned() else { return Err(PoolError::Disks { count: 0 }) };
    let mut disks: Vec<Option<(DiskNo, Superblock)>> = vec![None; newest.disks.len()];
    for (at, superblock, bad) in members {
        if superblock.pool != newest.pool {
            return Err(PoolError::Foreign { at, found: superblock.pool, wanted: newest.pool });
        }
        if bad > 0 {
            damaged.push((at, bad));
        }
        let disk = superblock.disk;
        let Some(place) = disks.get_mut(usize::from(superblock.disk_no.0)) else {
            return Err(PoolError::Foreign { at, found: superblock.pool, wanted: newest.pool });
        };
        if place.replace((at, superblock)).is_some() {
            return Err(PoolError::Twice { pool: newest.pool, disk });
        }
    }
    let mut complete = Vec::with_capacity(disks.len());
    for (place, (number, disk)) in disks.into_iter().zip((0..).map(DiskNo).zip(&newest.disks)) {
        complete.push(place.ok_or(PoolError::Missing { pool: newest.pool, disk: *disk, number })?);
    }
    Ok((Pool { uuid: newest.pool, disks: complete }, damaged))
}

impl Pool {
    /// Where a lane is, with the regions of all disks (in the order of their numbers); every lane of an open pool gets the same ones.
    #[must_use]
    pub fn place(&self, lane: LaneNo, regions: &[Arc<Regions>]) -> Option<LanePlace> {
        let (_, first) = self.disks.first()?;
        let home = first.lane_homes.get(usize::from(lane.0))?;
        let (at, superblock) = self.disks.get(usize::from(home.0))?;
        let layout = superblock.layout;
        let log = LogPlace {
            pool: self.uuid,
            lane,
            disk_no: superblock.disk_no,
            at: *at,
            first: layout.log_first(lane),
            segment_blocks: layout.segment_blocks,
            segments: layout.segments,
        };
        let disk = |((at, _), regions): (&(DiskNo, Superblock), &Arc<Regions>)| LaneDisk {
            at: *at,
            regions: Arc::clone(regions),
            write_cache: true,
        };
        Some(LanePlace { log, layout, disks: self.disks.iter().zip(regions).map(disk).collect() })
    }

    /// The regions of all disks, nobody's yet.
    #[must_use]
    pub fn regions(&self) -> Vec<Arc<Regions>> {
        self.disks.iter().map(|(_, superblock)| Arc::new(Regions::new(superblock.layout))).collect()
    }
}
