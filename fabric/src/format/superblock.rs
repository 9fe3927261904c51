//! The superblock: what a disk is, which pool it belongs to, and how it is divided.
//!
//! ```text
//!   block 0 … 255        front: superblock copies 0 (block 0) and 1 (block 255)
//!   log area             lanes × slots × segment_blocks
//!   index area           lanes × 2 × checkpoint_blocks
//!   regions              region_blocks each, handed to lanes as they need room
//!   the last 256 blocks  tail: superblock copies 2 (its first block) and 3 (its last)
//! ```
//!
//! All disks of a pool have the same lanes. A change writes copies 0 and 2, flushes, writes 1 and 3, flushes; whoever opens takes
//! the newest sound copy and mends the others.

use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FormatError, Identity, Magic, Prefix, seal};
use crate::id::{BLOCK_BYTES, DiskBlock, DiskNo, LaneNo, count32};

/// Disks of one pool on one node at most.
pub const DISKS_MAX: usize = 64;
/// Lanes of one pool at most.
pub const LANES_MAX: usize = 256;
/// Blocks before and after everything else that hold the copies.
pub const EDGE_BLOCKS: u64 = 256;
/// Copies of everything else that a pool has at most.
pub const COPIES_MAX: usize = 2;
/// Copies of the superblock.
pub const COPIES: usize = 4;
/// The lane of a structure that belongs to none.
pub(crate) const NO_LANE: LaneNo = LaneNo(0);

/// The superblock as it is on disk: one block.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SuperblockRaw {
    /// `sequence` is the generation, `address` the copy's own block.
    pub prefix: Prefix,
    /// This disk.
    pub disk: [u8; 16],
    /// Blocks of the disk that the pool uses.
    pub blocks: U64,
    /// First block of the log area.
    pub log_first: U64,
    /// First block of the index area.
    pub index_first: U64,
    /// First block of the first region.
    pub region_first: U64,
    /// Blocks of a log segment.
    pub segment_blocks: U32,
    /// Log segments of each lane.
    pub segments: U32,
    /// Blocks of one checkpoint slot; each lane has two.
    pub checkpoint_blocks: U32,
    /// Blocks of a region.
    pub region_blocks: U32,
    /// Regions of the disk.
    pub regions: U32,
    /// Lanes of the pool.
    pub lanes: U16,
    /// Disks that the pool has had, this one's number is below it.
    pub disks: U16,
    /// 0: ssd, 1: hdd.
    pub tier: u8,
    /// Copies of everything that there are to be, each on another disk; 0 is 1.
    pub copies: u8,
    /// 1: copies were lost with a disk, and have not all been made again.
    pub degraded: u8,
    /// Zero.
    pub reserved: [u8; 5],
    /// Features without which the pool must not be opened; none is defined.
    pub features: U64,
    /// What each disk is used for, by number: 0 in use, 1 leaving, 2 out.
    pub disk_states: [u8; DISKS_MAX],
    /// Zero.
    pub reserved2: [u8; 40],
    /// The pool's disks by number; a zero UUID where there is none any more.
    pub disk_table: [[u8; 16]; DISKS_MAX],
    /// The disk that holds each lane's log and index.
    pub lane_homes: [U16; LANES_MAX],
    /// The disk that holds each lane's log and index a second time, plus 1; 0: none.
    pub lane_seconds: [U16; LANES_MAX],
    /// Zero.
    pub reserved3: [u8; 1792],
}
const _: () = assert!(size_of::<SuperblockRaw>() == BLOCK_BYTES);
const _: () = assert!(core::mem::offset_of!(SuperblockRaw, blocks) == 80);
const _: () = assert!(core::mem::offset_of!(SuperblockRaw, lanes) == 132);
const _: () = assert!(core::mem::offset_of!(SuperblockRaw, disk_table) == 256);
const _: () = assert!(core::mem::offset_of!(SuperblockRaw, disk_states) == 152);
const _: () = assert!(core::mem::offset_of!(SuperblockRaw, lane_homes) == 1280);
const _: () = assert!(core::mem::offset_of!(SuperblockRaw, lane_seconds) == 1792);

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of the disk.
    pub blocks: u64,
    /// Lanes of the pool.
    pub lanes: u16,
    /// Blocks of a log segment.
    pub segment_blocks: u32,
    /// Log segments of each lane.
    pub segments: u32,
    /// Blocks of one checkpoint slot.
    pub checkpoint_blocks: u32,
    /// Blocks of a region.
    pub region_blocks: u32,
}

impl Layout {
    /// First block of the log area.
    #[must_use]
    pub fn log_first(&self, lane: LaneNo) -> DiskBlock {
        let lane_blocks = u64::from(self.segment_blocks) * u64::from(self.segments);
        DiskBlock(EDGE_BLOCKS + u64::from(lane.0) * lane_blocks)
    }

    /// First block of checkpoint slot `slot` (0 or 1) of `lane`.
    #[must_use]
    pub fn checkpoint_first(&self, lane: LaneNo, slot: u64) -> DiskBlock {
        let first = self.log_first(LaneNo(self.lanes)).0;
        DiskBlock(first + (u64::from(lane.0) * 2 + slot) * u64::from(self.checkpoint_blocks))
    }

    /// First block of region `region`.
    #[must_use]
    pub fn region_first(&self, region: u32) -> DiskBlock {
        let first = self.checkpoint_first(LaneNo(self.lanes), 0).0;
        DiskBlock(first + u64::from(region) * u64::from(self.region_blocks))
    }

    /// How many regions there are.
    #[must_use]
    pub fn regions(&self) -> u32 {
        let room = self.blocks.saturating_sub(self.region_first(0).0 + EDGE_BLOCKS);
        u32::try_from(room / u64::from(self.region_blocks.max(1))).unwrap_or(u32::MAX)
    }

    /// The blocks of the four copies.
    #[must_use]
    pub fn copies(&self) -> [DiskBlock; COPIES] {
        copies(self.blocks)
    }

    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// [`FormatError::Field`].
    pub fn check(&self) -> Result<(), FormatError> {
        let fine = |fine: bool, field| if fine { Ok(()) } else { Err(FormatError::Field { field }) };
        fine(self.blocks < 1 << 51, "blocks")?;
        fine(self.lanes >= 1 && usize::from(self.lanes) <= LANES_MAX, "lanes")?;
        fine((512..=1 << 18).contains(&self.segment_blocks), "segment_blocks")?;
        fine((4..=1 << 12).contains(&self.segments), "segments")?;
        fine((2..=1 << 22).contains(&self.checkpoint_blocks), "checkpoint_blocks")?;
        fine((2048..=1 << 20).contains(&self.region_blocks), "region_blocks")?;
        fine(self.regions() >= 1, "regions")
    }
}

/// The blocks of the four copies on a disk of `blocks` blocks.
#[must_use]
pub fn copies(blocks: u64) -> [DiskBlock; COPIES] {
    let tail = blocks.saturating_sub(EDGE_BLOCKS);
    [0, EDGE_BLOCKS - 1, tail, blocks.saturating_sub(1)].map(DiskBlock)
}

/// Which kind of disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tier {
    /// Fast.
    Ssd = 0,
    /// Slow and large.
    Hdd = 1,
}

/// What a disk of a pool is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum DiskState {
    /// Everything.
    #[default]
    In = 0,
    /// Reading: its data are moved to other disks.
    Leaving = 1,
    /// Nothing: it was lost, or has been left. What is on it is not believed, whatever it says.
    Out = 2,
}

impl DiskState {
    fn of(code: u8) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Self::In),
            1 => Ok(Self::Leaving),
            2 => Ok(Self::Out),
            _ => Err(FormatError::Field { field: "disk_states" }),
        }
    }
}

/// A checked superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The pool.
    pub pool: Uuid,
    /// Which of several superblocks is the newest.
    pub generation: u64,
    /// This disk's number.
    pub disk_no: DiskNo,
    /// This disk.
    pub disk: Uuid,
    /// Its kind.
    pub tier: Tier,
    /// How it is divided.
    pub layout: Layout,
    /// The pool's disks by number; nil where there is none any more.
    pub disks: Vec<Uuid>,
    /// The disk that holds each lane's log and index.
    pub lane_homes: Vec<DiskNo>,
    /// The disk that holds them a second time, by lane.
    pub lane_seconds: Vec<Option<DiskNo>>,
    /// What each disk is used for, by number.
    pub states: Vec<DiskState>,
    /// Copies of everything that there are to be: 1 or 2.
    pub copies: u8,
    /// Copies were lost with a disk, and have not all been made again: no other disk can be done without.
    pub degraded: bool,
}

impl Superblock {
    /// This disk's own superblock, with what `newest` says of the pool.
    #[must_use]
    pub fn updated(&self, newest: &Self) -> Self {
        let Self { disk_no, disk, tier, layout, .. } = *self;
        Self { disk_no, disk, tier, layout, ..newest.clone() }
    }

    /// What a disk is used for.
    #[must_use]
    pub fn state(&self, disk: DiskNo) -> DiskState {
        self.states.get(usize::from(disk.0)).copied().unwrap_or(DiskState::Out)
    }

    /// The disks that hold a lane's log and index.
    pub fn homes(&self, lane: LaneNo) -> impl Iterator<Item = DiskNo> + use<> {
        let at = usize::from(lane.0);
        let first = self.lane_homes.get(at).copied();
        [first, self.lane_seconds.get(at).copied().flatten()].into_iter().flatten()
    }

    /// Whether a disk is a home of any lane.
    #[must_use]
    pub fn homes_on(&self, disk: DiskNo) -> bool {
        (0..self.layout.lanes).any(|lane| self.homes(LaneNo(lane)).any(|home| home == disk))
    }

    /// Makes these the homes of a lane, of which there is one at least.
    pub fn set_homes(&mut self, lane: LaneNo, homes: &[DiskNo]) {
        let at = usize::from(lane.0);
        if let (Some(home), Some(first)) = (self.lane_homes.get_mut(at), homes.first()) {
            *home = *first;
        }
        self.lane_seconds.resize(self.lane_homes.len(), None);
        if let Some(second) = self.lane_seconds.get_mut(at) {
            *second = homes.get(1).copied();
        }
    }

    /// The next generation, in which a disk is out; `None` where a lane has its log nowhere else.
    #[must_use]
    pub fn without(&self, out: DiskNo) -> Option<Self> {
        let mut next = Self { generation: self.generation + 1, degraded: true, ..self.clone() };
        *next.states.get_mut(usize::from(out.0))? = DiskState::Out;
        for lane in (0..self.layout.lanes).map(LaneNo) {
            let left: Vec<DiskNo> = self.homes(lane).filter(|home| *home != out).collect();
            if left.is_empty() {
                return None;
            }
            next.set_homes(lane, &left);
        }
        Some(next)
    }
    /// The block for copy `copy`.
    #[must_use]
    pub fn to_block(&self, copy: DiskBlock) -> [u8; BLOCK_BYTES] {
        let layout = &self.layout;
        let identity = Identity {
            magic: Magic::SUPERBLOCK,
            pool: self.pool,
            disk: u32::from(self.disk_no.0),
            lane: NO_LANE,
            address: copy.0,
            sequence: self.generation,
        };
        let mut disk_table = [[0; 16]; DISKS_MAX];
        for (to, from) in disk_table.iter_mut().zip(&self.disks) {
            *to = from.into_bytes();
        }
        let mut lane_homes = [U16::ZERO; LANES_MAX];
        for (to, from) in lane_homes.iter_mut().zip(&self.lane_homes) {
            *to = U16::new(from.0);
        }
        let mut lane_seconds = [U16::ZERO; LANES_MAX];
        for (to, from) in lane_seconds.iter_mut().zip(&self.lane_seconds) {
            *to = U16::new(from.map_or(0, |disk| disk.0 + 1));
        }
        let mut disk_states = [0; DISKS_MAX];
        for (to, from) in disk_states.iter_mut().zip(&self.states) {
            *to = *from as u8;
        }
        let raw = SuperblockRaw {
            prefix: Prefix::new(&identity, count32(BLOCK_BYTES)),
            disk: self.disk.into_bytes(),
            blocks: U64::new(layout.blocks),
            log_first: U64::new(layout.log_first(NO_LANE).0),
            index_first: U64::new(layout.checkpoint_first(NO_LANE, 0).0),
            region_first: U64::new(layout.region_first(0).0),
            segment_blocks: U32::new(layout.segment_blocks),
            segments: U32::new(layout.segments),
            checkpoint_blocks: U32::new(layout.checkpoint_blocks),
            region_blocks: U32::new(layout.region_blocks),
            regions: U32::new(layout.regions()),
            lanes: U16::new(layout.lanes),
            disks: U16::new(u16::try_from(self.disks.len()).unwrap_or(u16::MAX)),
            tier: match self.tier {
                Tier::Ssd => 0,
                Tier::Hdd => 1,
            },
            copies: if self.copies > 1 { self.copies } else { 0 },
            degraded: u8::from(self.degraded),
            reserved: [0; 5],
            features: U64::ZERO,
            disk_states,
            reserved2: [0; 40],
            disk_table,
            lane_homes,
            lane_seconds,
            reserved3: [0; 1792],
        };
        let mut block = [0; BLOCK_BYTES];
        block.copy_from_slice(raw.as_bytes());
        seal(&mut block);
        block
    }

    /// The superblock in `block`, which was read from `copy`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(block: &[u8], copy: DiskBlock) -> Result<Self, FormatError> {
        let prefix = Prefix::parse(Magic::SUPERBLOCK, block)?;
        let (raw, _) = SuperblockRaw::read_from_prefix(block).map_err(|_| FormatError::Short)?;
        let refuse = |field| Err(FormatError::Field { field });
        if prefix.address.get() != copy.0 {
            return Err(FormatError::Misplaced);
        }
        let layout = Layout {
            blocks: raw.blocks.get(),
            lanes: raw.lanes.get(),
            segment_blocks: raw.segment_blocks.get(),
            segments: raw.segments.get(),
            checkpoint_blocks: raw.checkpoint_blocks.get(),
            region_blocks: raw.region_blocks.get(),
        };
        layout.check()?;
        if raw.features.get() != 0 {
            return refuse("features");
        }
        if raw.region_first.get() != layout.region_first(0).0 || raw.regions.get() != layout.regions() {
            return refuse("region_first");
        }
        let disks: Vec<Uuid> = raw
            .disk_table
            .iter()
            .take(usize::from(raw.disks.get()))
            .map(|bytes| Uuid::from_bytes(*bytes))
            .collect();
        let disk = Uuid::from_bytes(raw.disk);
        let disk_no =
            DiskNo(u16::try_from(prefix.disk.get()).map_err(|_| FormatError::Field { field: "disk" })?);
        if disks.get(usize::from(disk_no.0)) != Some(&disk) {
            return refuse("disk_table");
        }
        let lane_homes: Vec<DiskNo> =
            raw.lane_homes.iter().take(usize::from(layout.lanes)).map(|home| DiskNo(home.get())).collect();
        if lane_homes.iter().any(|home| usize::from(home.0) >= disks.len()) {
            return refuse("lane_homes");
        }
        let second = |raw: &U16| raw.get().checked_sub(1).map(DiskNo);
        let lane_seconds: Vec<Option<DiskNo>> =
            raw.lane_seconds.iter().take(usize::from(layout.lanes)).map(second).collect();
        if lane_seconds.iter().flatten().any(|home| usize::from(home.0) >= disks.len()) {
            return refuse("lane_seconds");
        }
        let states: Result<Vec<DiskState>, FormatError> =
            raw.disk_states.iter().take(disks.len()).map(|code| DiskState::of(*code)).collect();
        let copies = raw.copies.max(1);
        if usize::from(copies) > COPIES_MAX {
            return refuse("copies");
        }
        let tier = match raw.tier {
            0 => Tier::Ssd,
            1 => Tier::Hdd,
            _ => return refuse("tier"),
        };
        let pool = Uuid::from_bytes(prefix.pool);
        Ok(Self {
            pool,
            generation: prefix.sequence.get(),
            disk_no,
            disk,
            tier,
            layout,
            disks,
            lane_homes,
            lane_seconds,
            states: states?,
            copies,
            degraded: raw.degraded != 0,
        })
    }
}
