//! Looking at a whole pool offline: what is wrong, what follows from it, what helps; and mending what is safe to mend.
//!
//! ```text
//!   superblocks ─► checkpoints and logs ─► regions and space ─► maps ─► (all data) ─► findings ─► repairs
//! ```
//!
//! Nothing is written but by a repair, and a repair never changes data: it writes damaged copies again and counts again what
//! is counted wrongly.

use std::collections::{BTreeMap, BTreeSet};

use crate::flow::{DiskError, Flow};
use crate::format::superblock::DiskState;
use crate::id::{DiskNo, EgroupId, LaneNo};
use crate::lane::check::{self, Found, Reader, Walk};
use crate::lane::rescue::cut_log;
use crate::lane::rescue::rescue as rescue_lane;
use crate::lane::{LaneError, LanePlace, WorkError};
use crate::log::ReplayError;
use crate::node::Catalog;
use crate::pool::{self, Pool, PoolError};
use crate::state::State;

pub use crate::lane::rescue::Rescued;

/// Findings of one run at most; what comes after them is counted only.
pub const FINDINGS_MAX: usize = 1000;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be, and worth knowing.
    Note,
    /// Wrong, and mended without loss.
    Repairable,
    /// Something is lost, unless another copy has it.
    Damage,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What, where.
    pub what: String,
    /// What follows from it.
    pub consequence: String,
    /// What helps.
    pub remedy: String,
    /// A repair was asked for and has mended it.
    pub repaired: bool,
}

impl Finding {
    fn new(severity: Severity, what: String, consequence: &str, remedy: &str) -> Self {
        let (consequence, remedy) = (consequence.to_owned(), remedy.to_owned());
        Self { severity, what, consequence, remedy, repaired: false }
    }

    pub(crate) fn repairable(what: String, consequence: &str, remedy: &str) -> Self {
        Self::new(Severity::Repairable, what, consequence, remedy)
    }

    pub(crate) fn damage(what: String, consequence: &str, remedy: &str) -> Self {
        Self::new(Severity::Damage, what, consequence, remedy)
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// The first of them.
    pub list: Vec<Finding>,
    /// How many there are.
    pub count: u64,
    /// How many of these are damage.
    pub damage: u64,
}

impl Findings {
    pub(crate) fn add(&mut self, finding: Finding) {
        self.count += 1;
        self.damage += u64::from(finding.severity == Severity::Damage);
        if self.list.len() < FINDINGS_MAX {
            self.list.push(finding);
        }
    }

    /// Whether nothing is wrong that was not repaired.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damage == 0
            && self.list.iter().all(|finding| finding.severity == Severity::Note || finding.repaired)
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckOptions {
    /// Read all data and compare checksums.
    pub data: bool,
    /// Mend what is safe to mend.
    pub repair: bool,
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Lanes that are whole enough to be opened.
    pub lanes: u64,
    /// Egroups.
    pub egroups: u64,
    /// Shards.
    pub shards: u64,
    /// Snapshots of shards.
    pub snapshots: u64,
    /// Blocks that heads of shards have.
    pub mapped_blocks: u64,
    /// Blocks that egroups occupy.
    pub used_blocks: u64,
    /// Records that a log has behind its checkpoint.
    pub log_records: u64,
}

/// What was found, and what there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What was found.
    pub findings: Findings,
    /// What there is.
    pub seen: Seen,
    /// Names of vdisks by the first part of their shards' numbers, where the pool's notes can be read.
    pub vdisks: BTreeMap<u64, String>,
}

/// Looks at the pool on these disks, which nobody else has open. `progress` is told of lanes and egroups: done, of how many.
///
/// # Errors
/// [`PoolError`] when the disks do not make up a pool, or one fails while it is written.
pub async fn check(
    flow: &Flow,
    plugged: &[(DiskNo, u64)],
    options: CheckOptions,
    progress: &mut dyn FnMut(LaneNo, u64, u64),
) -> Result<Report, PoolError> {
    let (pool, damaged) = pool::assemble(flow, plugged).await?;
    if !pool.can_do_without() {
        pool.complete()?;
    }
    let mut report = Report::default();
    note_disks(&pool, &mut report.findings);
    for (at, copies) in damaged {
        let what = format!("disk {}: {copies} of 4 copies of the superblock are damaged or old", at.0);
        let mut finding = Finding::new(
            Severity::Repairable,
            what,
            "the others are good; with all of them the disk would be lost",
            "opening the pool writes them again",
        );
        if options.repair
            && let Some((_, superblock)) = pool.disks.iter().find(|(of, _)| *of == at)
        {
            pool::write_superblock(flow, at, superblock).await?;
            finding.repaired = true;
        }
        report.findings.add(finding);
    }
    let regions = pool.regions();
    let lanes = pool.newest.layout.lanes;
    let mut spaces = BTreeSet::new();
    for lane in (0..lanes).map(LaneNo) {
        let Some(place) = pool.place(lane, &regions) else { continue };
        match check::find(flow, &place).await {
            Ok(found) => {
                if lane == LaneNo(0) {
                    check_notes(&pool, &found.state, &mut report);
                }
                check_lane(flow, &place, found, options, &mut report, &mut spaces, progress).await?;
            }
            Err(error) => report.findings.add(unopenable(&pool, lane, &error)),
        }
    }
    for (one, other, disk, block) in check::overlaps(&spaces) {
        report.findings.add(Finding::damage(
            format!("egroups {one} and {other} both have block {block} of disk {}", disk.0),
            "one has overwritten the other; reads of what was overwritten end with a checksum error",
            "copy what can be read to another vdisk, then delete the damaged ones",
        ));
    }
    Ok(report)
}

/// What the pool has been told to keep: in lane 0.
fn check_notes(pool: &Pool, state: &State, report: &mut Report) {
    match Catalog::read(pool.uuid, &state.notes) {
        Ok(catalog) => {
            report.vdisks = catalog.vdisks.into_iter().map(|(number, note)| (number, note.name)).collect();
        }
        Err(error) => report.findings.add(Finding::damage(
            error.to_string(),
            "the pool is not opened; data and maps are not touched by it",
            "open it with the program that wrote it; of a damaged note, ask for help with a copy of the disks",
        )),
    }
}

/// Makes lanes that cannot be opened openable again, from what is on the disks alone; the others are left as they are.
///
/// # Errors
/// [`RescueError`].
pub async fn rescue(
    flow: &Flow,
    plugged: &[(DiskNo, u64)],
) -> Result<(Findings, Vec<(LaneNo, Rescued)>), RescueError> {
    let pool = pool::open(flow, plugged).await?;
    let mut findings = Findings::default();
    let regions = pool.regions();
    let lanes = pool.newest.layout.lanes;
    let mut broken = Vec::new();
    for place in (0..lanes).filter_map(|lane| pool.place(LaneNo(lane), &regions)) {
        match find_or_cut(flow, &place, &mut findings).await? {
            Some(found) => check_space(&place, &found.state, &mut findings, &mut BTreeSet::new()),
            None => broken.push(place),
        }
    }
    let mut done = Vec::new();
    for place in broken {
        let lane = place.log.lane;
        let made = rescue_lane(flow, &place, &mut findings).await;
        let (base, state, rescued) = made.map_err(|source| RescueError::Lane { lane, source })?;
        check::write_state(flow, &place, &base, &state).await.map_err(PoolError::from)?;
        // Its regions are taken before the next lane looks for room.
        check_space(&place, &state, &mut findings, &mut BTreeSet::new());
        done.push((lane, rescued));
    }
    Ok((findings, done))
}

/// Why a pool could not be rescued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RescueError {
    /// The disks do not make up a pool, or one fails.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A lane could not be made again.
    #[error("lane {}: {source}", lane.0)]
    Lane {
        /// Which.
        lane: LaneNo,
        /// Why.
        #[source]
        source: WorkError,
    },
}

/// A lane that can be opened, perhaps without the end of its log that is damaged.
async fn find_or_cut(
    flow: &Flow,
    place: &LanePlace,
    findings: &mut Findings,
) -> Result<Option<Found>, PoolError> {
    match check::find(flow, place).await {
        Ok(found) => return Ok(Some(found)),
        Err(LaneError::Disk(error)) => return Err(error.into()),
        Err(LaneError::Log(ReplayError::Damaged { batch, lsn, .. })) => {
            cut_log(flow, place, batch).await?;
            let lane = place.log.lane.0;
            findings.add(Finding::damage(
                format!("lane {lane}: its log is cut before batch {}, which was damaged", batch.0),
                &format!("what was written from LSN {} on and was not drained is lost", lsn.0),
                "take it from a replica or a backup",
            ));
        }
        Err(_) => return Ok(None),
    }
    Ok(check::find(flow, place).await.ok())
}

/// What there is to be said of disks that are not there, or not believed.
fn note_disks(pool: &Pool, findings: &mut Findings) {
    let uuid = |number: &DiskNo| pool.newest.disks.get(usize::from(number.0)).copied().unwrap_or_default();
    for missing in &pool.missing {
        findings.add(Finding::new(
            Severity::Note,
            format!("disk {} ({}) is missing", missing.0, uuid(missing)),
            "the pool can be opened without it: everything on it is on the others too",
            "plug it in again before the pool is opened, or open the pool degraded; then the disk is out",
        ));
    }
    for (at, disk) in &pool.stale {
        findings.add(Finding::new(
            Severity::Note,
            format!("the disk at place {} ({disk}) was of this pool and is out", at.0),
            "what is on it is old and not looked at",
            "add it to the pool as a new disk, or use it for something else",
        ));
    }
    if pool.newest.degraded {
        findings.add(Finding::new(
            Severity::Note,
            "a disk was lost, and not everything has all its copies again".into(),
            "the loss of another disk may lose data",
            "let the open pool make copies; add a disk if there is no room",
        ));
    }
}

fn unopenable(pool: &Pool, lane: LaneNo, error: &LaneError) -> Finding {
    let what = format!("lane {} of pool {}: {error}", lane.0, pool.uuid);
    Finding::damage(
        what,
        "the pool cannot be opened",
        "penstock rescue rebuilds the lane from what is on the disks",
    )
}

async fn check_lane(
    flow: &Flow,
    place: &LanePlace,
    found: Found,
    options: CheckOptions,
    report: &mut Report,
    spaces: &mut BTreeSet<(DiskNo, u64, u64, EgroupId)>,
    progress: &mut dyn FnMut(LaneNo, u64, u64),
) -> Result<(), DiskError> {
    let lane = place.log.lane;
    let begin = report.findings.list.len();
    count(&found, &mut report.seen);
    check_space(place, &found.state, &mut report.findings, spaces);
    if found.damaged_checkpoints > 0 {
        report.findings.add(Finding::new(
            Severity::Repairable,
            format!("lane {}: {} of 2 checkpoints is damaged", lane.0, found.damaged_checkpoints),
            "the other one is good, and the log goes on from it",
            "a repair writes both again; so does the lane when it runs",
        ));
    }
    if found.single > 0 {
        report.findings.add(Finding::new(
            Severity::Note,
            format!("lane {}: {} batches or checkpoints are on one of its disks only", lane.0, found.single),
            "the others have what was acknowledged",
            "opening the pool writes them again",
        ));
    }
    if found.torn {
        report.findings.add(Finding::new(
            Severity::Note,
            format!("lane {}: the log ends with a batch that was being written when power went", lane.0),
            "nothing of it had been acknowledged",
            "nothing to do",
        ));
    }
    let mut reader = Reader::new(flow, place);
    let mut walk = Walk::default();
    for (of, root, mapped) in check::roots(&found.state) {
        let blocks = reader.walk(&found.state.egroups, root, &of, &mut walk, &mut report.findings).await;
        if blocks.is_some_and(|blocks| blocks != mapped) {
            let what = format!("{of}: its map has {} blocks, not {mapped}", blocks.unwrap_or(0));
            report.findings.add(Finding::new(
                Severity::Note,
                what,
                "reports of its size are wrong",
                "nothing to do",
            ));
        }
    }
    let whole = report.findings.damage == 0;
    let corrected = check_live(&found, &walk, lane, &mut report.findings);
    if options.data {
        let total = found.state.egroups.len() as u64;
        for (done, (id, egroup)) in (0_u64..).zip(&found.state.egroups) {
            progress(lane, done, total);
            reader.check_egroup(*id, egroup, &mut report.findings).await;
            reader.check_copies(*id, egroup, options.repair, &mut report.findings).await?;
        }
        progress(lane, total, total);
    }
    let wrong =
        report.findings.list.iter_mut().skip(begin).filter(|one| one.severity == Severity::Repairable);
    let mut wrong = wrong.peekable();
    // Counts of a map that cannot be read as a whole would be wrong.
    if options.repair && whole && wrong.peek().is_some() {
        check::write_state(flow, place, &found.checkpoint, &corrected).await?;
        wrong.for_each(|finding| finding.repaired = true);
    }
    Ok(())
}

fn count(found: &Found, seen: &mut Seen) {
    seen.lanes += 1;
    seen.egroups += found.state.egroups.len() as u64;
    seen.shards += found.state.shards.len() as u64;
    seen.snapshots += found.state.shards.values().map(|shard| shard.snapshots.len() as u64).sum::<u64>();
    seen.mapped_blocks += found.state.shards.values().map(|shard| shard.mapped).sum::<u64>();
    seen.used_blocks += found.state.used_blocks();
    seen.log_records += found.records;
}

/// Every region has one lane, and every egroup is in its lane's regions.
fn check_space(
    place: &LanePlace,
    state: &State,
    findings: &mut Findings,
    spaces: &mut BTreeSet<(DiskNo, u64, u64, EgroupId)>,
) {
    let lane = place.log.lane;
    let is_out =
        |disk: DiskNo| place.disks.get(usize::from(disk.0)).is_some_and(|disk| disk.state == DiskState::Out);
    for (disk, region) in state.regions.iter().filter(|(disk, _)| !is_out(*disk)) {
        let regions = place.disks.get(usize::from(disk.0)).map(|disk| &disk.regions);
        if !regions.is_some_and(|regions| regions.claim(*region, lane)) {
            findings.add(Finding::damage(
                format!(
                    "lane {}: region {region} of disk {} is another lane's too, or there is none",
                    lane.0, disk.0
                ),
                "two lanes write to the same place; the pool is not opened",
                "copy the disks before anything else; then penstock rescue",
            ));
        }
    }
    for (id, egroup) in &state.egroups {
        for copy in egroup.places().filter(|copy| !is_out(copy.disk)) {
            let inside = state.regions.iter().filter(|(disk, _)| *disk == copy.disk).any(|(disk, region)| {
                place.disks.get(usize::from(disk.0)).is_some_and(|disk| {
                    let (first, blocks) = disk.regions.blocks(*region);
                    (first.0..first.0 + blocks).contains(&copy.first.0)
                })
            });
            if !inside {
                findings.add(Finding::damage(
                    format!(
                        "egroup {id} at block {} of disk {} is in no region of its lane",
                        copy.first.0, copy.disk.0
                    ),
                    "its space may be given to others",
                    "penstock rescue",
                ));
            }
            spaces.insert((copy.disk, copy.first.0, u64::from(egroup.blocks), *id));
        }
    }
}

/// Compares the counts of blocks that are referred to; returns the state with the right ones.
fn check_live(found: &Found, walk: &Walk, lane: LaneNo, findings: &mut Findings) -> State {
    let mut right = found.state.clone();
    let live = check::live_of(walk);
    let (mut low, mut garbage) = (0_u64, 0);
    for (id, egroup) in right.egroups.iter_mut().filter(|(id, _)| !found.undrained.contains(id)) {
        let now = live.get(id).copied().unwrap_or(0);
        low += u64::from(now > egroup.live);
        garbage += u64::from(egroup.decoded).saturating_sub(now);
        egroup.live = now;
    }
    right.egroups.retain(|_, egroup| egroup.live > 0);
    if low > 0 {
        findings.add(Finding::new(
            Severity::Repairable,
            format!("lane {}: {low} egroups have more blocks in use than was counted", lane.0),
            "their space would be freed too early",
            "a repair counts again; until then do not open the pool",
        ));
    }
    if garbage > 0 {
        findings.add(Finding::new(
            Severity::Note,
            format!("lane {}: {garbage} blocks in egroups are referred to by nobody", lane.0),
            "they come back when their egroups are compacted",
            "nothing to do",
        ));
    }
    right
}
