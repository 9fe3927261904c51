//! fio's structs, as far as the engine needs them: `ioengines.h`, `io_u.h` and `file.h` of interface version 31.
//!
//! Of `io_u` and `fio_file` only the beginning is described, before anything that depends on how fio was configured;
//! `thread_data` is a name for a job and never looked into.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::offset_of;

/// `FIO_IOOPS_VERSION` of fio 3.30 to 3.33. fio refuses an engine with another number than its own.
pub(crate) const VERSION: c_int = 31;

/// Data go straight to the device: buffers are aligned to pages.
const FIO_RAWIO: c_int = 1 << 1;
/// The engine cannot make a file longer.
const FIO_NOEXTEND: c_int = 1 << 3;
/// There is no disk in /sys to show the utilisation of.
const FIO_NODISKUTIL: c_int = 1 << 4;
const FIO_MEMALIGN: c_int = 1 << 9;
/// File names are no paths.
const FIO_NOFILEHASH: c_int = 1 << 13;
/// A job's queue belongs to the job's thread.
const FIO_NO_OFFLOAD: c_int = 1 << 15;
pub(crate) const FLAGS: c_int =
    FIO_RAWIO | FIO_NOEXTEND | FIO_NODISKUTIL | FIO_MEMALIGN | FIO_NOFILEHASH | FIO_NO_OFFLOAD;

/// `FIO_Q_COMPLETED`: over at once, as `error` says.
pub(crate) const COMPLETED: c_int = 0;
/// `FIO_Q_QUEUED`: it comes out of `getevents`.
pub(crate) const QUEUED: c_int = 1;
/// `FIO_Q_BUSY`: try again after taking events.
pub(crate) const BUSY: c_int = 2;

/// `FIO_TYPE_BLOCK`: a device of a fixed length.
pub(crate) const TYPE_BLOCK: c_int = 2;

/// `enum fio_ddir`.
pub(crate) const DDIR_READ: c_int = 0;
pub(crate) const DDIR_WRITE: c_int = 1;
pub(crate) const DDIR_TRIM: c_int = 2;
pub(crate) const DDIR_SYNC: c_int = 3;
pub(crate) const DDIR_DATASYNC: c_int = 4;

/// `struct thread_data`: a fio job.
#[repr(C)]
pub(crate) struct ThreadData {
    _opaque: [u8; 0],
}

/// The beginning of `struct fio_file`.
#[repr(C)]
pub(crate) struct FioFile {
    _hash_list: [*mut c_void; 2],
    pub(crate) filetype: c_int,
    _fd: c_int,
    _shadow_fd: c_int,
    _major: c_uint,
    _minor: c_uint,
    /// Its place among the job's files.
    pub(crate) fileno: c_int,
    pub(crate) file_name: *const c_char,
    pub(crate) real_file_size: u64,
}
const _: () = assert!(offset_of!(FioFile, filetype) == 16 && offset_of!(FioFile, fileno) == 36);
const _: () = assert!(offset_of!(FioFile, file_name) == 40 && offset_of!(FioFile, real_file_size) == 48);

/// The beginning of `struct io_u`.
#[repr(C)]
pub(crate) struct IoU {
    _times: [u64; 4],
    pub(crate) file: *const FioFile,
    _flags: c_uint,
    pub(crate) ddir: c_int,
    _acct_ddir: c_int,
    _numberio: u16,
    _ioprio: u16,
    _clat_prio_index: u16,
    _buflen: u64,
    /// Where in the file, in bytes.
    pub(crate) offset: u64,
    _verify_offset: u64,
    _buf: *mut c_void,
    _rand_seed: u64,
    pub(crate) xfer_buf: *mut u8,
    pub(crate) xfer_buflen: u64,
    _buf_filled_len: u64,
    _ipo: *mut c_void,
    _resid: u64,
    pub(crate) error: c_uint,
    /// The engine's: the number of our I/O.
    pub(crate) engine_data: usize,
}
const _: () = assert!(offset_of!(IoU, file) == 32 && offset_of!(IoU, ddir) == 44);
const _: () = assert!(offset_of!(IoU, offset) == 72 && offset_of!(IoU, xfer_buf) == 104);
const _: () = assert!(offset_of!(IoU, xfer_buflen) == 112 && offset_of!(IoU, error) == 144);
const _: () = assert!(offset_of!(IoU, engine_data) == 152);

pub(crate) type JobHook = extern "C" fn(*mut ThreadData) -> c_int;
pub(crate) type FileHook = extern "C" fn(*mut ThreadData, *mut FioFile) -> c_int;
pub(crate) type IoHook = extern "C" fn(*mut ThreadData, *mut IoU) -> c_int;
type Unused = Option<extern "C" fn()>;

/// `struct timespec`.
#[repr(C)]
pub(crate) struct Timespec {
    pub(crate) sec: i64,
    pub(crate) nsec: i64,
}

/// `struct ioengine_ops`.
#[repr(C)]
pub(crate) struct IoengineOps {
    pub(crate) list: [*mut c_void; 2],
    pub(crate) name: *const c_char,
    pub(crate) version: c_int,
    pub(crate) flags: c_int,
    /// fio's handle of the library.
    pub(crate) dlhandle: *mut c_void,
    pub(crate) setup: Unused,
    pub(crate) init: Option<JobHook>,
    pub(crate) post_init: Option<JobHook>,
    pub(crate) prep: Unused,
    pub(crate) queue: Option<IoHook>,
    pub(crate) commit: Option<JobHook>,
    pub(crate) getevents: Option<extern "C" fn(*mut ThreadData, c_uint, c_uint, *const Timespec) -> c_int>,
    pub(crate) event: Option<extern "C" fn(*mut ThreadData, c_int) -> *mut IoU>,
    pub(crate) errdetails: Unused,
    pub(crate) cancel: Unused,
    pub(crate) cleanup: Option<extern "C" fn(*mut ThreadData)>,
    pub(crate) open_file: Option<FileHook>,
    pub(crate) close_file: Option<FileHook>,
    pub(crate) invalidate: Option<FileHook>,
    pub(crate) unlink_file: Unused,
    pub(crate) get_file_size: Option<FileHook>,
    pub(crate) prepopulate_file: Unused,
    pub(crate) terminate: Unused,
    pub(crate) iomem_alloc: Unused,
    pub(crate) iomem_free: Unused,
    pub(crate) io_u_init: Option<IoHook>,
    pub(crate) io_u_free: Option<extern "C" fn(*mut ThreadData, *mut IoU)>,
    pub(crate) zoned: [Unused; 4],
    pub(crate) option_struct_size: c_int,
    pub(crate) options: *mut c_void,
}
const _: () = assert!(size_of::<IoengineOps>() == 264);

// SAFETY: fio loads engines and changes `list` and `dlhandle` on its main thread only.
unsafe impl Sync for IoengineOps {}
