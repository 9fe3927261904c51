//! What fio calls, and the structure by which it finds that.
//!
//! A job's thread calls its hooks one after the other; only `get_file_size` comes before there is such a thread, from fio's
//! main one, and what it learns is kept by the job's address until then.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_int, c_uint};
use std::ptr::{NonNull, null_mut};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use penstock_bdev::{Op, Sg};
use penstock_reactor::mem::{BUF_BYTES_MAX, Buf};

use crate::abi::{
    BUSY, COMPLETED, DDIR_DATASYNC, DDIR_READ, DDIR_SYNC, DDIR_TRIM, DDIR_WRITE, FLAGS, FioFile, IoU,
    IoengineOps, QUEUED, TYPE_BLOCK, ThreadData, Timespec, VERSION,
};
use crate::job::{Job, Request, Taken};
use crate::target::Name;

/// Bytes of one piece of a buffer at most.
const PIECE_BYTES: u32 = 1 << 20;
const _: () = assert!(PIECE_BYTES as usize == BUF_BYTES_MAX);
/// How long what is under way may take when fio wants its buffers back.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// A job, as its thread has it.
struct State {
    job: Job,
    /// fio's units by our numbers.
    units: Vec<*mut IoU>,
    /// Those that have ended and that fio has not been told of.
    ended: VecDeque<*mut IoU>,
    /// Those that the last `getevents` has told of.
    events: Vec<*mut IoU>,
}

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// The names of a job's files, by the job's address and the file's number.
static NAMES: Mutex<BTreeMap<usize, BTreeMap<usize, String>>> = Mutex::new(BTreeMap::new());

/// What fio looks for in a library: `struct ioengine_ops`.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "fio's name")]
pub(crate) static mut ioengine: IoengineOps = IoengineOps {
    list: [null_mut(); 2],
    name: c"penstock".as_ptr(),
    version: VERSION,
    flags: FLAGS,
    dlhandle: null_mut(),
    setup: None,
    init: Some(init),
    post_init: Some(post_init),
    prep: None,
    queue: Some(queue),
    commit: Some(commit),
    getevents: Some(getevents),
    event: Some(event),
    errdetails: None,
    cancel: None,
    cleanup: Some(cleanup),
    open_file: Some(open_file),
    close_file: Some(nothing),
    invalidate: Some(nothing),
    unlink_file: None,
    get_file_size: Some(get_file_size),
    prepopulate_file: None,
    terminate: None,
    iomem_alloc: None,
    iomem_free: None,
    io_u_init: Some(io_u_init),
    io_u_free: Some(io_u_free),
    zoned: [None; 4],
    option_struct_size: 0,
    options: null_mut(),
};

/// Runs `with` on the thread's job; without one, or where it fails, fio is told `EINVAL` and the user why.
fn with_state(what: &str, with: impl FnOnce(&mut State) -> anyhow::Result<()>) -> c_int {
    let outcome = STATE.with_borrow_mut(|state| match state {
        Some(state) => with(state),
        None => Err(anyhow::anyhow!("the job was not begun")),
    });
    told(what, outcome)
}

fn told(what: &str, outcome: anyhow::Result<()>) -> c_int {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("penstock: {what}: {error:#}");
            libc::EINVAL
        }
    }
}

/// Number and name of a file.
fn file_of(file: *const FioFile) -> Option<(usize, String)> {
    // SAFETY: fio hands a file of its own in, which nobody changes during the call.
    let file = unsafe { file.as_ref() }?;
    if file.file_name.is_null() {
        return None;
    }
    // SAFETY: the name of a file of fio's is a C string.
    let name = unsafe { CStr::from_ptr(file.file_name) };
    Some((usize::try_from(file.fileno).ok()?, name.to_str().ok()?.to_owned()))
}

extern "C" fn get_file_size(td: *mut ThreadData, file: *mut FioFile) -> c_int {
    let Some((number, text)) = file_of(file) else { return libc::EINVAL };
    let opened = Name::parse(&text).and_then(|name| name.open());
    let (block_bytes, blocks) = match &opened {
        Ok(target) => target.geometry(),
        Err(error) => {
            eprintln!("penstock: {text}: {error:#}");
            return libc::EINVAL;
        }
    };
    if let Ok(mut names) = NAMES.lock() {
        names.entry(td.addr()).or_default().insert(number, text);
    }
    // SAFETY: fio's file, which fio hands in to have its length written.
    if let Some(file) = unsafe { file.as_mut() } {
        file.filetype = TYPE_BLOCK;
        file.real_file_size = blocks.saturating_mul(u64::from(block_bytes));
    }
    0
}

extern "C" fn init(_td: *mut ThreadData) -> c_int {
    let begun = Job::new().map(|job| {
        let state = State { job, units: Vec::new(), ended: VecDeque::new(), events: Vec::new() };
        STATE.with_borrow_mut(|place| *place = Some(state));
    });
    told("cannot begin a job", begun)
}

extern "C" fn io_u_init(_td: *mut ThreadData, io_u: *mut IoU) -> c_int {
    with_state("cannot prepare an I/O", |state| {
        let number = state.job.add_unit()?;
        // SAFETY: a unit of fio's that is being made, and that no one else has yet.
        if let Some(unit) = unsafe { io_u.as_mut() } {
            unit.engine_data = number;
        }
        state.units.push(io_u);
        Ok(())
    })
}

extern "C" fn post_init(td: *mut ThreadData) -> c_int {
    let names = NAMES.lock().ok().and_then(|names| names.get(&td.addr()).cloned()).unwrap_or_default();
    with_state("cannot open", |state| {
        state.ended.reserve(state.units.len());
        state.events.reserve(state.units.len());
        names.iter().try_for_each(|(number, name)| {
            state.job.open(*number, name).map_err(|error| error.context(name.clone()))
        })
    })
}

extern "C" fn open_file(_td: *mut ThreadData, file: *mut FioFile) -> c_int {
    let Some((number, name)) = file_of(file) else { return libc::EINVAL };
    with_state(&name, |state| state.job.open(number, &name))
}

extern "C" fn nothing(_td: *mut ThreadData, _file: *mut FioFile) -> c_int {
    0
}

extern "C" fn queue(_td: *mut ThreadData, io_u: *mut IoU) -> c_int {
    // SAFETY: the unit is fio's; until this returns nobody else uses it.
    let Some(unit) = (unsafe { io_u.as_mut() }) else { return COMPLETED };
    let taken = STATE.with_borrow_mut(|state| {
        let state = state.as_mut().ok_or(libc::EBADF)?;
        begin(state, unit)
    });
    match taken {
        Ok(Taken::Queued) => QUEUED,
        Ok(Taken::Busy) => BUSY,
        Err(errno) => {
            unit.error = errno.unsigned_abs();
            COMPLETED
        }
    }
}

fn begin(state: &mut State, unit: &IoU) -> Result<Taken, i32> {
    // SAFETY: the file of a unit that is queued is open.
    let file = unsafe { unit.file.as_ref() }.ok_or(libc::EBADF)?;
    let number = usize::try_from(file.fileno).map_err(|_| libc::EBADF)?;
    let (op, len) = match unit.ddir {
        DDIR_READ => (Op::Read, unit.xfer_buflen),
        DDIR_WRITE => (Op::Write, unit.xfer_buflen),
        DDIR_TRIM => (Op::Unmap, unit.xfer_buflen),
        DDIR_SYNC | DDIR_DATASYNC => (Op::Flush, 0),
        _ => return Err(libc::EOPNOTSUPP),
    };
    let offset = if op == Op::Flush { 0 } else { unit.offset };
    let has_data = matches!(op, Op::Read | Op::Write);
    if has_data && len.div_ceil(u64::from(PIECE_BYTES)) > Sg::SEGMENTS_MAX as u64 {
        return Err(libc::EINVAL);
    }
    let lend = |data: &mut Sg| {
        if has_data {
            lend(unit.xfer_buf, len, data);
        }
    };
    state.job.submit(number, unit.engine_data, Request { op, offset, len }, lend)
}

/// Puts fio's buffer into `data`, in pieces that a buffer may have.
fn lend(buffer: *mut u8, len: u64, data: &mut Sg) {
    let mut at = 0;
    while at < len {
        let piece = u32::try_from(len - at).unwrap_or(u32::MAX).min(PIECE_BYTES);
        let start = usize::try_from(at).ok().and_then(|at| NonNull::new(buffer.wrapping_add(at)));
        let Some(start) = start else { return };
        // SAFETY: fio's buffer has `len` bytes, is initialised, and is left alone by fio until the unit comes out of
        // `event`, or until `io_u_free` returns; by then the value is dropped.
        data.push(unsafe { Buf::foreign(start, piece) });
        at += u64::from(piece);
    }
}

extern "C" fn commit(_td: *mut ThreadData) -> c_int {
    STATE.with_borrow_mut(|state| state.iter_mut().for_each(|state| state.job.commit()));
    0
}

/// Looks what has ended.
fn poll(state: &mut State) {
    let (job, units, ended) = (&mut state.job, &state.units, &mut state.ended);
    job.poll(|number, errno| {
        let Some(io_u) = units.get(number).copied() else { return };
        // SAFETY: the unit is fio's, and ours from `queue` until `event` has given it back.
        if let Some(unit) = unsafe { io_u.as_mut() } {
            unit.error = errno.unsigned_abs();
        }
        ended.push_back(io_u);
    });
}

#[expect(clippy::disallowed_methods, reason = "fio's thread, which no reactor runs on")]
fn now() -> Instant {
    Instant::now()
}

extern "C" fn getevents(_td: *mut ThreadData, min: c_uint, max: c_uint, limit: *const Timespec) -> c_int {
    // SAFETY: null, or fio's for the time of the call.
    let limit = unsafe { limit.as_ref() }.map(|limit| {
        let (sec, nsec) = (u64::try_from(limit.sec), u32::try_from(limit.nsec));
        now() + Duration::new(sec.unwrap_or(0), nsec.unwrap_or(0))
    });
    let (min, max) = (usize::try_from(min).unwrap_or(0), usize::try_from(max).unwrap_or(0));
    STATE.with_borrow_mut(|state| {
        let Some(state) = state else { return -libc::EINVAL };
        // A look at the devices costs a system call: none while enough is there.
        while state.ended.len() < min.max(1) {
            poll(state);
            let enough = state.ended.len() >= min || state.job.in_flight() == 0;
            if enough || limit.is_some_and(|limit| now() >= limit) {
                break;
            }
        }
        let count = state.ended.len().min(max);
        state.events.clear();
        state.events.extend(state.ended.drain(..count));
        c_int::try_from(count).unwrap_or(c_int::MAX)
    })
}

extern "C" fn event(_td: *mut ThreadData, index: c_int) -> *mut IoU {
    STATE.with_borrow(|state| {
        let found = state.as_ref().and_then(|state| state.events.get(usize::try_from(index).ok()?));
        found.copied().unwrap_or(null_mut())
    })
}

/// fio is about to give its buffers back.
extern "C" fn io_u_free(_td: *mut ThreadData, _io_u: *mut IoU) {
    STATE.with_borrow_mut(|state| {
        let Some(state) = state else { return };
        let deadline = now() + DRAIN_LIMIT;
        while state.job.in_flight() > 0 {
            state.job.poll(|_, _| ());
            if now() >= deadline {
                eprintln!("penstock: a device keeps fio's buffers for more than {DRAIN_LIMIT:?}");
                std::process::abort();
            }
        }
    });
}

extern "C" fn cleanup(td: *mut ThreadData) {
    let state = STATE.with_borrow_mut(Option::take);
    drop(state);
    if let Ok(mut names) = NAMES.lock() {
        names.remove(&td.addr());
    }
}
