//! Whole vdisks from and to elsewhere: a vdisk that is being filled is not there after a crash, one that is read is read as of one
//! moment, and only where something is mapped.

use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::{Descriptor, IoStatus, OpenMode};
use penstock_reactor::ReactorHandle;

use super::{
    Change, Fabric, FabricError, NewVdisk, Phase, Pool, Seat, SnapshotNote, VdiskNote, all, on_seat,
};
use crate::flow::{DiskError, buffer};
use crate::id::{BLOCK_BYTES, DiskBlock, DiskNo};
use crate::lane::{Changed, WorkError};
use crate::vdisk::{Hub, Mesh};

/// Blocks of one I/O.
const IO_BLOCKS: usize = 256;
const BYTES: u64 = BLOCK_BYTES as u64;

/// A bdev that the control thread reads or writes, by way of a reactor.
struct Mouth {
    reactor: ReactorHandle,
    mesh: Arc<Mesh>,
    seat: u32,
}

fn failed(error: DiskError) -> WorkError {
    match error.status {
        IoStatus::NoSpace => WorkError::NoSpace,
        status => WorkError::Failed(status),
    }
}

impl Mouth {
    async fn open(fabric: &Fabric, disk: Descriptor) -> Result<Self, FabricError> {
        let (reactor, mesh) = (fabric.first()?, Arc::clone(&fabric.0.mesh));
        let of_reactor = Arc::clone(&mesh);
        let seat = reactor.call_async(move |cx| async move {
            let hub = Hub::of(&cx, &of_reactor);
            let seat = Seat::new(&cx, &[Some(disk)], &hub, true)?;
            Ok::<u32, FabricError>(hub.add_seat(seat))
        });
        let seat = seat.await??;
        Ok(Self { reactor, mesh, seat })
    }

    /// Writes what is not zero.
    async fn write(&self, offset: u64, bytes: Vec<u8>) -> Result<u64, FabricError> {
        on_seat(&self.reactor, &self.mesh, self.seat, move |seat, _| async move {
            let first = offset / BYTES;
            let mut writes = Vec::new();
            let mut written = 0;
            for (at, run) in runs(&bytes) {
                let mut buf = buffer(run.len()).await;
                buf.copy_from_slice(run);
                written += run.len() as u64;
                writes.push(seat.flow().write(DiskNo(0), DiskBlock(first + at), buf));
            }
            for done in all(writes).await {
                done.map_err(failed)?;
            }
            Ok(written)
        })
        .await
    }

    /// Reads blocks.
    async fn read(&self, offset: u64, blocks: u64) -> Result<Vec<u8>, FabricError> {
        on_seat(&self.reactor, &self.mesh, self.seat, move |seat, _| async move {
            let first = offset / BYTES;
            let pieces = (0..blocks).step_by(IO_BLOCKS).map(|at| {
                let length = u32::try_from((blocks - at).min(IO_BLOCKS as u64)).unwrap_or(0);
                seat.flow().read(DiskNo(0), DiskBlock(first + at), length)
            });
            let mut bytes = Vec::with_capacity(usize::try_from(blocks * BYTES).unwrap_or(0));
            for piece in all(pieces).await {
                bytes.extend_from_slice(&piece.map_err(failed)?);
            }
            Ok(bytes)
        })
        .await
    }

    async fn close(self) {
        let (mesh, number) = (self.mesh, self.seat);
        let closed = self.reactor.call_async(move |cx| async move {
            let hub = Hub::of(&cx, &mesh);
            if let Some(seat) = hub.remove_seat(number) {
                seat.close(&cx, &hub).await;
            }
        });
        drop(closed.await);
    }
}

/// What is still open.
fn mouth(mouth: Option<&Mouth>) -> Result<&Mouth, FabricError> {
    mouth.ok_or(FabricError::Work(WorkError::Failed(IoStatus::Gone)))
}

async fn close(mouth: Option<Mouth>) {
    if let Some(mouth) = mouth {
        mouth.close().await;
    }
}

/// Runs of blocks that are not zero, of up to an I/O: the first block of each, and its bytes.
fn runs(bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut runs = Vec::new();
    let mut begin: Option<usize> = None;
    let blocks = bytes.len() / BLOCK_BYTES;
    for at in 0..=blocks {
        let block = bytes.get(at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES);
        let ends = block.is_none_or(is_zero) || begin.is_some_and(|begin| at - begin == IO_BLOCKS);
        if let Some(first) = begin.filter(|_| ends) {
            let run = bytes.get(first * BLOCK_BYTES..at * BLOCK_BYTES).unwrap_or_default();
            runs.push((first as u64, run));
            begin = None;
        }
        if begin.is_none() && block.is_some_and(|block| !is_zero(block)) {
            begin = Some(at);
        }
    }
    runs
}

/// A vdisk that is being filled. Ends with [`Self::close`], and then, as the only change of the pool,
/// [`Self::finish`] or [`Self::abort`].
pub struct Import {
    fabric: Fabric,
    pool: Rc<Pool>,
    number: u64,
    mouth: Option<Mouth>,
}

impl std::fmt::Debug for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import").field("vdisk", &self.number).finish_non_exhaustive()
    }
}

impl Import {
    /// Writes bytes, in blocks of 4 KiB at a multiple of that, but for those that are zero; returns how many it wrote. A vdisk
    /// begins as zeroes.
    ///
    /// # Errors
    /// [`FabricError::Work`].
    pub async fn write(&self, offset: u64, mut bytes: Vec<u8>) -> Result<u64, FabricError> {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        mouth(self.mouth.as_ref())?.write(offset, bytes).await
    }

    /// Lets the bdev go: nothing can be written any more.
    pub async fn close(&mut self) {
        close(self.mouth.take()).await;
    }

    /// Says that it is whole.
    ///
    /// # Errors
    /// [`FabricError`]; then it is gone after the next opening of its pool.
    pub async fn finish(self) -> Result<(), FabricError> {
        let note = self.pool.catalog.borrow().vdisks.get(&self.number).cloned();
        let Some(note) = note else {
            return Err(FabricError::NotFound {
                what: "vdisk",
                name: self.number.to_string(),
                list: "vdisk_get",
            });
        };
        let ready = VdiskNote { phase: Phase::Ready, ..note };
        self.pool.commit(vec![Change::Vdisk(self.number, Some(ready))]).await
    }

    /// Lets it go.
    pub async fn abort(self) {
        let name = self.pool.catalog.borrow().vdisks.get(&self.number).map(|note| note.name.clone());
        if let Some(name) = name
            && let Err(error) = self.fabric.delete_vdisk(&name, true, true).await
        {
            tracing::warn!(vdisk = name, error = %super::chain(&error), "a vdisk that was not filled is still there");
        }
    }
}

/// A vdisk that is read as of one moment. Ends with [`Self::close`], and then, as the only change of the pool, [`Self::finish`].
pub struct Export {
    pool: Rc<Pool>,
    vdisk: u64,
    snapshot: SnapshotNote,
    /// Number of the snapshot that goes with it.
    own: Option<u64>,
    /// It was not there as a bdev before.
    hide: Option<u64>,
    mouth: Option<Mouth>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("vdisk", &self.vdisk).finish_non_exhaustive()
    }
}

impl Export {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.snapshot.bytes
    }

    /// What is mapped from byte `start` on, at most about `max` ranges, in bytes, in order, and where to go on.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn ranges(&self, start: u64, max: usize) -> Result<(Vec<Changed>, Option<u64>), FabricError> {
        self.pool.changed(self.vdisk, None, &self.snapshot, start, max).await
    }

    /// Reads bytes, a multiple of 4 KiB at a multiple of that.
    ///
    /// # Errors
    /// [`FabricError::Work`].
    pub async fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, FabricError> {
        mouth(self.mouth.as_ref())?.read(offset, bytes / BYTES).await
    }

    /// Lets the bdev go: nothing can be read any more.
    pub async fn close(&mut self) {
        close(self.mouth.take()).await;
    }

    /// Lets it go.
    pub async fn finish(self) {
        let mut done = Ok(());
        if let Some(number) = self.hide {
            done = self.pool.hide_snapshot(number).await;
        }
        if let (Some(number), Ok(())) = (self.own, &done) {
            done = self.pool.drop_snapshot(number, &self.snapshot).await;
        }
        if let Err(error) = done {
            tracing::warn!(error = %super::chain(&error), "the snapshot of an export goes when its pool is opened again");
        }
    }
}

impl Fabric {
    /// Makes a vdisk to be filled; until it is finished, the next opening of its pool undoes it.
    ///
    /// # Errors
    /// As [`Self::create_vdisk`].
    pub async fn import(&self, pool: &Rc<Pool>, new: &NewVdisk) -> Result<Import, FabricError> {
        let number = self.make_vdisk(pool, new, Phase::Creating).await?;
        let opened = match self.0.registry.claim(&new.name, "import") {
            Ok(disk) => Mouth::open(self, disk).await,
            Err(error) => Err(error.into()),
        };
        match opened {
            Ok(mouth) => {
                Ok(Import { fabric: self.clone(), pool: Rc::clone(pool), number, mouth: Some(mouth) })
            }
            Err(error) => {
                drop(self.delete_vdisk(&new.name, true, true).await);
                Err(error)
            }
        }
    }

    /// Begins to read a vdisk's snapshot, or, without one, the vdisk as it is now.
    ///
    /// # Errors
    /// [`FabricError`].
    pub async fn export(&self, vdisk: &str, snapshot: Option<&str>) -> Result<Export, FabricError> {
        let (pool, vdisk, note) = self.vdisk(vdisk)?;
        let (number, snapshot, own) = match snapshot {
            Some(name) => {
                let (number, snapshot) = pool.snapshot(vdisk, &note.name, name)?;
                (number, snapshot, None)
            }
            None => {
                let (number, snapshot) = self.passing_snapshot(&pool, vdisk, &note).await?;
                (number, snapshot, Some(number))
            }
        };
        let there = pool.shown.borrow().contains_key(&number);
        let opened = self.open_snapshot(&pool, vdisk, &note, (number, &snapshot), there).await;
        match opened {
            Ok(mouth) => {
                let hide = (!there).then_some(number);
                Ok(Export { pool, vdisk, snapshot, own, hide, mouth: Some(mouth) })
            }
            Err(error) => {
                if !there {
                    drop(pool.hide_snapshot(number).await);
                }
                if own.is_some() {
                    drop(pool.drop_snapshot(number, &snapshot).await);
                }
                Err(error)
            }
        }
    }

    /// A snapshot that the next opening of the pool undoes.
    async fn passing_snapshot(
        &self,
        pool: &Rc<Pool>,
        vdisk: u64,
        note: &VdiskNote,
    ) -> Result<(u64, SnapshotNote), FabricError> {
        let (number, taken) = pool.catalog.borrow().numbers(1);
        let snapshot = SnapshotNote {
            name: format!("export-{number}"),
            vdisk,
            number,
            uuid: uuid::Uuid::new_v4(),
            bytes: note.bytes,
            created: (self.0.now)(),
            shown: false,
            phase: Phase::Creating,
        };
        pool.commit(vec![taken, Change::Snapshot(number, Some(snapshot.clone()))]).await?;
        if let Err(error) = pool.cut(&[(vdisk, note.clone())], number).await {
            drop(pool.drop_snapshot(number, &snapshot).await);
            return Err(error);
        }
        Ok((number, snapshot))
    }

    async fn open_snapshot(
        &self,
        pool: &Rc<Pool>,
        vdisk: u64,
        note: &VdiskNote,
        (number, snapshot): (u64, &SnapshotNote),
        there: bool,
    ) -> Result<Mouth, FabricError> {
        if !there {
            pool.until_made(vdisk, note, snapshot.number).await?;
            pool.show_snapshot(number, snapshot)?;
        }
        let name = pool
            .shown
            .borrow()
            .get(&number)
            .map(|bdev| penstock_bdev::Bdev::shared(&**bdev).name().to_owned());
        let name = name.unwrap_or_default();
        Mouth::open(self, self.0.registry.open(&name, OpenMode::ReadOnly, "export")?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_are_left_out_and_long_runs_are_cut() {
        let block = |byte: u8, blocks: usize| vec![byte; blocks * BLOCK_BYTES];
        let bytes = [block(0, 2), block(7, 3), block(0, 1), block(8, 600), block(0, 1)].concat();
        let found: Vec<(u64, usize)> =
            runs(&bytes).into_iter().map(|(at, run)| (at, run.len() / BLOCK_BYTES)).collect();
        assert_eq!(found, [(2, 3), (6, 256), (262, 256), (518, 88)]);
        assert!(runs(&block(0, 9)).is_empty() && runs(&[]).is_empty());
        assert_eq!(runs(&block(1, 1)).len(), 1);
    }
}
