//! The disks of a pool: make them, know them again, put them together.
//!
//! These are control flows over a [`Flow`] whose disk numbers are whatever the caller has plugged in where; only the
//! superblocks say which disk of which pool it is.

use std::sync::Arc;

use uuid::Uuid;

use crate::alloc::Regions;

use crate::flow::{DiskError, Flow, buffer};
use crate::format::FormatError;
use crate::format::superblock::{
    COPIES, COPIES_MAX, DISKS_MAX, DiskState, EDGE_BLOCKS, Layout, Superblock, Tier, copies,
};
use crate::id::{BLOCK_BYTES, DiskNo, LaneNo};
use crate::lane::{Home, LaneDisk, LanePlace};
use crate::placement::{Candidate, ranked};

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
    /// Copies of everything, each on another disk: 1 or 2.
    pub copies: u8,
}

impl Default for PoolOptions {
    /// 16 lanes, 64 MiB of log each in segments of 4 MiB, regions of 64 MiB, one copy.
    fn default() -> Self {
        Self { lanes: 16, segment_blocks: 1024, segments: 16, region_blocks: 16384, copies: 1 }
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
    /// More copies than disks, or than there can be.
    #[error(
        "{copies} copies of everything need as many disks, at most {COPIES_MAX}, and there are {disks}; give more disks, or 1 copy"
    )]
    Copies {
        /// How many copies were asked for.
        copies: u8,
        /// How many disks there are.
        disks: usize,
    },
    /// Two disks have each gone on without the other.
    #[error(
        "disks {one} and {other} of pool {pool} have each been used without the other: what is on them differs; \
         open the pool with one of them alone, then add the other one to it as a new disk"
    )]
    Diverged {
        /// The pool.
        pool: Uuid,
        /// A disk.
        one: Uuid,
        /// The other one.
        other: Uuid,
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
    let count = u16::try_from(disks.len()).unwrap_or(u16::MAX);
    if options.copies == 0
        || usize::from(options.copies) > COPIES_MAX
        || usize::from(options.copies) > disks.len()
    {
        return Err(PoolError::Copies { copies: options.copies, disks: disks.len() });
    }
    let numbers = (0..count).map(DiskNo);
    let lane_homes: Vec<DiskNo> = numbers.clone().cycle().take(usize::from(options.lanes)).collect();
    // Every disk shares its lanes with all others.
    let second = |lane: u16| {
        let further = 1 + (lane / count) % count.saturating_sub(1).max(1);
        (options.copies > 1).then_some(DiskNo((lane + further) % count))
    };
    let lane_seconds: Vec<Option<DiskNo>> = (0..options.lanes).map(second).collect();
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
            lane_seconds: lane_seconds.clone(),
            states: vec![DiskState::In; disks.len()],
            copies: options.copies,
            degraded: false,
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

/// Disks that make up one pool.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The pool.
    pub uuid: Uuid,
    /// Where each disk that is there is plugged in, with its superblock; in the order of their numbers.
    pub disks: Vec<(DiskNo, Superblock)>,
    /// What the newest superblock says of the pool.
    pub newest: Superblock,
    /// Disks that are to be there and are not.
    pub missing: Vec<DiskNo>,
    /// Where disks are plugged in that were of the pool and are out: what is on them is not believed.
    pub stale: Vec<(DiskNo, Uuid)>,
}

/// Puts a pool together from disks that were recognised, wherever they are plugged in, and mends damaged copies of superblocks.
///
/// # Errors
/// [`PoolError`] when disks are missing, foreign or there twice.
pub async fn open(flow: &Flow, plugged: &[(DiskNo, u64)]) -> Result<Pool, PoolError> {
    let (pool, damaged) = assemble(flow, plugged).await?;
    pool.complete()?;
    for (at, superblock) in &pool.disks {
        if damaged.iter().any(|(bad, _)| bad == at) {
            write_superblock(flow, *at, superblock).await?;
        }
    }
    Ok(pool)
}

/// As [`open`], also when a disk is missing that all others can do without: it is out from then on, which their superblocks say before
/// this returns.
///
/// # Errors
/// [`PoolError`].
pub async fn open_degraded(flow: &Flow, plugged: &[(DiskNo, u64)]) -> Result<Pool, PoolError> {
    let (mut pool, _) = assemble(flow, plugged).await?;
    if pool.can_do_without()
        && let Some(next) = pool.missing.first().and_then(|missing| pool.newest.without(*missing))
    {
        pool.update(flow, next).await?;
    }
    pool.complete()?;
    open(flow, plugged).await
}

/// As [`open`], without writing, and also when disks are missing: where there are damaged or old copies of superblocks, and how many.
///
/// # Errors
/// [`PoolError`].
pub async fn assemble(
    flow: &Flow,
    plugged: &[(DiskNo, u64)],
) -> Result<(Pool, Vec<(DiskNo, usize)>), PoolError> {
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
    let (pool, mut damaged, mut stale) = (newest.pool, Vec::new(), Vec::new());
    let mut disks: Vec<Option<(DiskNo, Superblock)>> = vec![None; newest.disks.len()];
    for (at, superblock, bad) in members {
        if superblock.pool != pool {
            return Err(PoolError::Foreign { at, found: superblock.pool, wanted: pool });
        }
        let (number, disk) = (superblock.disk_no, superblock.disk);
        let known = newest.disks.get(usize::from(number.0)) == Some(&disk);
        if !known || newest.state(number) == DiskState::Out {
            let says_out = superblock.states.get(usize::from(newest.disk_no.0)) == Some(&DiskState::Out);
            if known && says_out {
                return Err(PoolError::Diverged { pool, one: newest.disk, other: disk });
            }
            stale.push((at, disk));
            continue;
        }
        let old = superblock.generation < newest.generation;
        if bad > 0 || old {
            damaged.push((at, if old { COPIES } else { bad }));
        }
        let Some(place) = disks.get_mut(usize::from(number.0)) else { continue };
        if place.replace((at, superblock.updated(&newest))).is_some() {
            return Err(PoolError::Twice { pool, disk });
        }
    }
    let wanted = (0..).map(DiskNo).zip(&disks);
    let missing = wanted.filter(|(number, disk)| disk.is_none() && newest.state(*number) != DiskState::Out);
    let missing = missing.map(|(number, _)| number).collect();
    let disks = disks.into_iter().flatten().collect();
    Ok((Pool { uuid: pool, disks, newest, missing, stale }, damaged))
}

impl Pool {
    /// What [`plan`] has made of `disks`, before anything is written.
    #[must_use]
    pub fn planned(disks: &[NewDisk], superblocks: &[Superblock]) -> Self {
        let Some(newest) = superblocks.first().cloned() else { panic!("a pool without disks was planned") };
        let disks = disks.iter().zip(superblocks).map(|(disk, superblock)| (disk.at, superblock.clone()));
        let (missing, stale) = (Vec::new(), Vec::new());
        Self { uuid: newest.pool, disks: disks.collect(), newest, missing, stale }
    }

    /// Blocks that data of vdisks may occupy, all their copies being made: what can be on two disks is what the others match of the
    /// largest one.
    #[must_use]
    pub fn capacity_blocks(&self) -> u64 {
        let blocks = |(_, superblock): &(DiskNo, Superblock)| {
            let layout = &superblock.layout;
            let is_in = self.newest.state(superblock.disk_no) == DiskState::In;
            u64::from(layout.regions()) * u64::from(layout.region_blocks) * u64::from(is_in)
        };
        let all: u64 = self.disks.iter().map(blocks).sum();
        let largest = self.disks.iter().map(blocks).max().unwrap_or(0);
        let copies = u64::from(self.newest.copies).max(1);
        if copies > 1 && self.disks.len() > 1 { (all / copies).min(all - largest) } else { all }
    }

    /// Whether no disk is missing.
    ///
    /// # Errors
    /// [`PoolError::Missing`].
    pub fn complete(&self) -> Result<(), PoolError> {
        let Some(number) = self.missing.first().copied() else { return Ok(()) };
        let disk = self.newest.disks.get(usize::from(number.0)).copied().unwrap_or_default();
        Err(PoolError::Missing { pool: self.uuid, disk, number })
    }

    /// Whether one disk is missing, and everything on it is on the others too.
    #[must_use]
    pub fn can_do_without(&self) -> bool {
        let [missing] = *self.missing.as_slice() else { return false };
        self.newest.copies > 1 && !self.newest.degraded && self.newest.without(missing).is_some()
    }

    /// Writes a new generation of all superblocks. Until all of them are written nobody is to count on it.
    ///
    /// # Errors
    /// The first disk that fails; others may have it.
    pub async fn update(&mut self, flow: &Flow, newest: Superblock) -> Result<(), DiskError> {
        self.disks.retain(|(_, superblock)| newest.state(superblock.disk_no) != DiskState::Out);
        for (at, superblock) in &mut self.disks {
            *superblock = superblock.updated(&newest);
            write_superblock(flow, *at, superblock).await?;
        }
        self.missing.retain(|missing| newest.state(*missing) != DiskState::Out);
        self.newest = newest;
        Ok(())
    }

    /// Puts a new disk in; it has the next number, and there are to be `copies` of everything from then on, if that is given. Its own superblock is the first that knows of it, so that whoever finds it in another one
    /// finds it plugged in.
    ///
    /// # Errors
    /// [`PoolError`]; the pool is what it was, for this and every later opening.
    pub async fn add(&mut self, flow: &Flow, disk: &NewDisk, copies: Option<u8>) -> Result<(), PoolError> {
        let (own, next) = self.with_disk(disk, copies)?;
        write_superblock(flow, disk.at, &own).await?;
        self.disks.push((disk.at, own));
        Ok(self.update(flow, next).await?)
    }

    /// What the superblocks say when a new disk is in: its own, and what all say.
    fn with_disk(&self, disk: &NewDisk, copies: Option<u8>) -> Result<(Superblock, Superblock), PoolError> {
        let mut next = Superblock { generation: self.newest.generation + 1, ..self.newest.clone() };
        let number = next.disks.len();
        if number >= DISKS_MAX {
            return Err(PoolError::Disks { count: number + 1 });
        }
        if let Some(copies) = copies {
            let disks = self.usable().count() + 1;
            if copies == 0 || usize::from(copies) > COPIES_MAX.min(disks) {
                return Err(PoolError::Copies { copies, disks });
            }
            // Until they are made none can be done without.
            next.degraded |= copies > next.copies;
            next.copies = copies;
        }
        next.disks.push(disk.uuid);
        next.states.push(DiskState::In);
        let checkpoint_blocks = checkpoint_blocks(disk.blocks, next.layout.lanes);
        let layout = Layout { blocks: disk.blocks, checkpoint_blocks, ..next.layout };
        layout.check().map_err(|source| PoolError::Layout { at: disk.at, blocks: disk.blocks, source })?;
        let disk_no = DiskNo(u16::try_from(number).unwrap_or(u16::MAX));
        let own = Superblock { disk_no, disk: disk.uuid, tier: disk.tier, layout, ..next.clone() };
        Ok((own, next))
    }

    /// Disks that new things may go to.
    pub fn usable(&self) -> impl Iterator<Item = DiskNo> {
        let numbers = self.disks.iter().map(|(_, superblock)| superblock.disk_no);
        numbers.filter(|number| self.newest.state(*number) == DiskState::In)
    }

    /// A disk as a lane's home.
    #[must_use]
    pub fn home(&self, disk: DiskNo) -> Option<Home> {
        let (at, superblock) = self.disks.iter().find(|(_, superblock)| superblock.disk_no == disk)?;
        Some(Home { disk, at: *at, layout: superblock.layout })
    }

    /// Lanes that have fewer homes than there are to be copies, not counting those on leaving disks; each with the disk to be the next.
    #[must_use]
    pub fn homes_wanted(&self) -> Vec<(LaneNo, DiskNo)> {
        let usable: Vec<DiskNo> = self.usable().collect();
        let candidate = |disk: &DiskNo| {
            let id = u64::from(disk.0);
            Candidate { id, domain: id, weight: 1, class: 0 }
        };
        let candidates: Vec<Candidate> = usable.iter().map(candidate).collect();
        let wanted = usable.len().min(usize::from(self.newest.copies));
        let next = |lane: LaneNo| {
            let homes: Vec<DiskNo> = self.newest.homes(lane).filter(|home| usable.contains(home)).collect();
            let order = ranked(u64::from(lane.0), &candidates);
            let mut free = order.into_iter().filter_map(|at| usable.get(at));
            let next = free.find(|disk| !homes.contains(disk)).copied();
            next.filter(|_| homes.len() < wanted).map(|disk| (lane, disk))
        };
        (0..self.newest.layout.lanes).map(LaneNo).filter_map(next).collect()
    }

    /// The next generation, in which disks that were [joined](crate::lane::Lane::join_home) are homes of their lanes, and leaving ones are not
    /// where others do.
    #[must_use]
    pub fn with_homes(&self, joined: &[(LaneNo, DiskNo)]) -> Superblock {
        let mut next = Superblock { generation: self.newest.generation + 1, ..self.newest.clone() };
        for (lane, disk) in joined {
            let mut homes: Vec<DiskNo> = self.newest.homes(*lane).chain([*disk]).collect();
            homes.sort_by_key(|home| self.newest.state(*home));
            homes.truncate(usize::from(self.newest.copies));
            next.set_homes(*lane, &homes);
        }
        next
    }

    /// The next generation, in which a disk has another state.
    #[must_use]
    pub fn with_state(&self, disk: DiskNo, state: DiskState) -> Superblock {
        let mut next = Superblock { generation: self.newest.generation + 1, ..self.newest.clone() };
        if let Some(place) = next.states.get_mut(usize::from(disk.0)) {
            *place = state;
        }
        next
    }

    /// The next generation, in which everything has all its copies again, or not.
    #[must_use]
    pub fn with_degraded(&self, degraded: bool) -> Superblock {
        Superblock { generation: self.newest.generation + 1, degraded, ..self.newest.clone() }
    }

    /// Where a lane is, with what [`Self::regions`] gave; every lane of an open pool gets the same. `None`: none of its homes is there.
    #[must_use]
    pub fn place(&self, lane: LaneNo, regions: &[Arc<Regions>]) -> Option<LanePlace> {
        let there = |number: DiskNo| self.disks.iter().find(|(_, superblock)| superblock.disk_no == number);
        let home = |disk: DiskNo| there(disk).map(|(at, found)| Home { disk, at: *at, layout: found.layout });
        let homes: Vec<Home> = self.newest.homes(lane).filter_map(home).collect();
        if homes.is_empty() {
            return None;
        }
        let disk = |(number, regions): (DiskNo, &Arc<Regions>)| {
            let regions = Arc::clone(regions);
            match there(number) {
                Some((at, superblock)) => LaneDisk {
                    state: self.newest.state(number),
                    ..LaneDisk::new(*at, regions, true, superblock.tier)
                },
                None => LaneDisk {
                    state: DiskState::Out,
                    ..LaneDisk::new(DiskNo(u16::MAX), regions, true, Tier::Hdd)
                },
            }
        };
        let disks = (0..).map(DiskNo).zip(regions).map(disk).collect();
        Some(LanePlace::new(self.uuid, lane, homes, disks, self.newest.copies))
    }

    /// The regions of all disks by number, nobody's yet; those that are not there have none.
    #[must_use]
    pub fn regions(&self) -> Vec<Arc<Regions>> {
        let regions = |number: DiskNo| {
            let found = self.disks.iter().find(|(_, superblock)| superblock.disk_no == number);
            Arc::new(match found {
                Some((_, superblock)) => Regions::new(superblock.layout),
                None => Regions::none(self.newest.layout),
            })
        };
        (0..).map(DiskNo).zip(&self.newest.disks).map(|(number, _)| regions(number)).collect()
    }
}
