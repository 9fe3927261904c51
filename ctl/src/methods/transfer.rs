//! Methods that move whole vdisks, as jobs that go on by themselves: import of images, export to raw files.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use penstock_fabric::node::{Export, FabricError, Import, NewVdisk};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::daemon::App;
use crate::image::{Image, ImageError, WINDOW_BYTES};
use crate::params;
use crate::rpc::error::{INVALID_STATE, errno};
use crate::rpc::param::Nothing;
use crate::rpc::{Kind, RpcError, Table};

/// Jobs under way at once at most.
const RUNNING_MAX: usize = 8;
/// Jobs that are remembered when they have ended.
const ENDED_MAX: usize = 64;
/// Ranges that an export asks for at once.
const RANGES_MAX: usize = 4096;
/// A vdisk's length is a multiple of this.
const BLOCK_BYTES: u64 = 4096;

params! {
    /// Of `vdisk_import`.
    ImportOf {
        /// Name of the new vdisk.
        name: String,
        /// The image, a file that the daemon can read.
        path: String,
        /// raw or qcow2. Default: what its first bytes say.
        format: Option<String>,
        /// Name or UUID of the pool. Default: the only one.
        pool: Option<String>,
        /// Its container. Default: default.
        container: Option<String>,
        /// Length of a logical block in bytes: 512 or 4096. Default: 512.
        block_size: Option<u32>,
    }
}

params! {
    /// Of `vdisk_export`.
    ExportOf {
        /// Name or UUID of the vdisk.
        vdisk: String,
        /// Its snapshot. Default: none, the vdisk as it is now.
        snapshot: Option<String>,
        /// The raw file to be made, with holes where nothing is mapped; it must not be there yet.
        path: String,
    }
}

params! {
    /// Of `job_cancel`.
    JobId {
        /// The job's number.
        id: u64,
    }
}

pub(crate) fn add(table: &mut Table<Rc<App>>) {
    table
        .add(
            "vdisk_import",
            Kind::Change,
            "Makes a vdisk of a raw or qcow2 image; answers the number of a job that fills it.",
            import,
        )
        .add(
            "vdisk_export",
            Kind::Change,
            "Writes a vdisk, or its snapshot, as of one moment to a sparse raw file; answers the number of a job.",
            export,
        )
        .add("job_list", Kind::Read, "Imports and exports: how far they are, how they ended.", list)
        .add("job_cancel", Kind::Act, "Ends a job; what it has made goes.", cancel);
}

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    Done,
    Failed(String),
}

/// One import or export.
#[derive(Debug)]
pub(crate) struct Job {
    id: u64,
    kind: &'static str,
    vdisk: String,
    path: PathBuf,
    /// Bytes of the disk, and those that are behind it.
    bytes: u64,
    done: Cell<u64>,
    /// Bytes that were written.
    written: Cell<u64>,
    cancelled: Cell<bool>,
    state: RefCell<State>,
}

impl Job {
    fn describe(&self) -> Value {
        let (state, error) = match &*self.state.borrow() {
            State::Running => ("running", None),
            State::Done => ("done", None),
            State::Failed(error) => ("failed", Some(error.clone())),
        };
        json!({
            "id": self.id, "kind": self.kind, "vdisk": self.vdisk, "path": self.path, "state": state, "error": error,
            "bytes": self.bytes, "done_bytes": self.done.get(), "written_bytes": self.written.get(),
        })
    }

    fn is_running(&self) -> bool {
        *self.state.borrow() == State::Running
    }

    fn check_cancelled(&self) -> Result<(), JobError> {
        if self.cancelled.get() { Err(JobError::Cancelled) } else { Ok(()) }
    }

    fn end(&self, outcome: Result<(), JobError>) {
        let state = match outcome {
            Ok(()) => State::Done,
            Err(error) => State::Failed(crate::rpc::error::chain(&error)),
        };
        tracing::info!(job = self.id, kind = self.kind, vdisk = self.vdisk, ?state, "job ended");
        *self.state.borrow_mut() = state;
    }
}

/// The jobs of a daemon.
#[derive(Debug, Default)]
pub struct Jobs(RefCell<(u64, BTreeMap<u64, Rc<Job>>)>);

impl Jobs {
    fn check_room(&self) -> Result<(), RpcError> {
        let running = self.0.borrow().1.values().filter(|job| job.is_running()).count();
        if running < RUNNING_MAX {
            return Ok(());
        }
        let message = format!("{RUNNING_MAX} jobs are under way, which is the most; wait, or job_cancel one");
        Err(RpcError::new(-i64::from(errno::BUSY), message))
    }

    fn add(&self, kind: &'static str, vdisk: String, path: PathBuf, bytes: u64) -> Rc<Job> {
        let mut jobs = self.0.borrow_mut();
        jobs.0 += 1;
        let ended: Vec<u64> = jobs.1.values().filter(|job| !job.is_running()).map(|job| job.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX - 1)) {
            jobs.1.remove(id);
        }
        let job = Rc::new(Job {
            id: jobs.0,
            kind,
            vdisk,
            path,
            bytes,
            done: Cell::new(0),
            written: Cell::new(0),
            cancelled: Cell::new(false),
            state: RefCell::new(State::Running),
        });
        jobs.1.insert(job.id, Rc::clone(&job));
        job
    }
}

/// Why a job did not do it.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error("{path} cannot be written")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("it was cancelled")]
    Cancelled,
    #[error("a thread has ended")]
    Thread(#[from] tokio::task::JoinError),
}

impl From<JobError> for RpcError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Fabric(error) => error.into(),
            JobError::Image(error @ (ImageError::Unsupported { .. } | ImageError::Damaged(_))) => {
                Self::invalid_params(error.to_string())
            }
            other => Self::of(-i64::from(errno::IO), &other),
        }
    }
}

async fn import(app: Rc<App>, params: ImportOf) -> Result<Value, RpcError> {
    app.jobs.check_room()?;
    let path = PathBuf::from(&params.path);
    let (of_thread, format) = (path.clone(), params.format);
    let open = move || Image::open(&of_thread, format.as_deref());
    let image = tokio::task::spawn_blocking(open).await.map_err(JobError::from)?.map_err(JobError::from)?;
    let pool = app.fabric.pool(params.pool.as_deref())?;
    let new = NewVdisk {
        name: params.name.clone(),
        uuid: Uuid::new_v4(),
        bytes: image.bytes().max(1).next_multiple_of(BLOCK_BYTES),
        block: params.block_size.unwrap_or(512),
        container: params.container.unwrap_or_else(|| "default".to_owned()),
        shards: None,
    };
    let mut import = app.fabric.import(&pool, &new).await?;
    let job = app.jobs.add("import", params.name, path, image.bytes());
    let id = job.id;
    tokio::task::spawn_local(async move {
        let filled = fill(&job, image, &import).await;
        import.close().await;
        let alone = app.alone().await;
        let outcome = match filled {
            Ok(()) => import.finish().await.map_err(JobError::from),
            Err(error) => {
                import.abort().await;
                Err(error)
            }
        };
        drop(alone);
        job.end(outcome);
    });
    Ok(json!(id))
}

/// A window of the image, read on a thread of its own: the image again, where the window is, and its bytes.
type Window = (Image, Option<(u64, Vec<u8>)>);

fn next_window(mut image: Image, offset: u64) -> Result<Window, ImageError> {
    let Some(at) = image.next_data(offset)? else { return Ok((image, None)) };
    let mut bytes = Vec::new();
    image.read(at, &mut bytes)?;
    Ok((image, Some((at, bytes))))
}

/// One window is written while the next is read.
async fn fill(job: &Job, image: Image, import: &Import) -> Result<(), JobError> {
    let window = image.window();
    let mut reading = tokio::task::spawn_blocking(move || next_window(image, 0));
    loop {
        job.check_cancelled()?;
        let (image, found) = reading.await??;
        let Some((at, bytes)) = found else { break };
        reading = tokio::task::spawn_blocking(move || next_window(image, at.saturating_add(window)));
        let length = bytes.len() as u64;
        job.written.set(job.written.get() + import.write(at, bytes).await?);
        job.done.set(at + length);
    }
    job.done.set(job.bytes);
    Ok(())
}

async fn export(app: Rc<App>, params: ExportOf) -> Result<Value, RpcError> {
    app.jobs.check_room()?;
    let path = PathBuf::from(&params.path);
    let mut export = app.fabric.export(&params.vdisk, params.snapshot.as_deref()).await?;
    let made = std::fs::File::create_new(&path).and_then(|file| file.set_len(export.bytes()).map(|()| file));
    let file = match made {
        Ok(file) => Arc::new(file),
        Err(source) => {
            export.close().await;
            export.finish().await;
            return Err(JobError::File { path, source }.into());
        }
    };
    let job = app.jobs.add("export", params.vdisk, path, export.bytes());
    let id = job.id;
    tokio::task::spawn_local(async move {
        let outcome = drain(&job, &export, &file).await;
        export.close().await;
        let alone = app.alone().await;
        export.finish().await;
        drop(alone);
        if outcome.is_err()
            && let Err(error) = std::fs::remove_file(&job.path)
        {
            tracing::warn!(path = %job.path.display(), %error, "half of an export is left behind");
        }
        job.end(outcome);
    });
    Ok(json!(id))
}

/// Reads what is mapped and writes what of it is not zero.
async fn drain(job: &Rc<Job>, export: &Export, file: &Arc<std::fs::File>) -> Result<(), JobError> {
    let mut start = 0;
    loop {
        let (ranges, next) = export.ranges(start, RANGES_MAX).await?;
        for range in ranges.into_iter().filter(|range| !range.zero) {
            let end = range.first + range.blocks;
            let mut at = range.first;
            while at < end {
                job.check_cancelled()?;
                let length = (end - at).min(WINDOW_BYTES);
                let bytes = export.read(at, length).await?;
                let of_thread = Arc::clone(file);
                let write = tokio::task::spawn_blocking(move || write_sparse(&of_thread, at, &bytes));
                let written =
                    write.await?.map_err(|source| JobError::File { path: job.path.clone(), source })?;
                job.written.set(job.written.get() + written);
                at += length;
                job.done.set(at);
            }
        }
        match next {
            Some(next) => start = next,
            None => break,
        }
    }
    let of_thread = Arc::clone(file);
    let synced = tokio::task::spawn_blocking(move || of_thread.sync_all()).await?;
    synced.map_err(|source| JobError::File { path: job.path.clone(), source })?;
    job.done.set(job.bytes);
    Ok(())
}

/// Leaves holes where blocks are zero.
fn write_sparse(file: &std::fs::File, at: u64, bytes: &[u8]) -> std::io::Result<u64> {
    let mut written = 0;
    let block = usize::try_from(BLOCK_BYTES).unwrap_or(4096);
    for (offset, block) in (at..).step_by(block).zip(bytes.chunks(block)) {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, offset)?;
            written += block.len() as u64;
        }
    }
    Ok(written)
}

async fn list(app: Rc<App>, _params: Nothing) -> Result<Value, RpcError> {
    Ok(app.jobs.0.borrow().1.values().map(|job| job.describe()).collect())
}

async fn cancel(app: Rc<App>, params: JobId) -> Result<Value, RpcError> {
    let found = app.jobs.0.borrow().1.get(&params.id).cloned();
    let Some(job) = found else {
        let message = format!("there is no job {}; job_list lists them", params.id);
        return Err(RpcError::new(-i64::from(errno::NODEV), message));
    };
    if !job.is_running() {
        return Err(RpcError::new(INVALID_STATE, format!("job {} has ended already", job.id)));
    }
    job.cancelled.set(true);
    Ok(Value::Bool(true))
}
