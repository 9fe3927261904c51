//! A queue pair: what Connect made of a connection.
//!
//! ```text
//!   New ── Connect, QID 0 ──► Admin      (the controller is made on this reactor)
//!    │
//!    └──── Connect, QID n ──► Joining ── the controller's reactor agrees ──► Io
//! ```

use std::sync::Arc;

use penstock_spec::nvme::{FabricsType, NvmOpcode, Psdt, Sqe, Status};
use penstock_spec::nvmf::connect::{self, ConnectAttributes};
use penstock_spec::nvmf::{ConnectCmd, ConnectData, Nqn};

use crate::auth::auth_transfer;
use crate::controller::{CtrlShared, admin_transfer};
use crate::io_cmd::Transfer;
use crate::tcp::TcpParams;

/// What a connection's queue pair is.
#[derive(Debug)]
pub(crate) enum Link {
    /// No Connect has succeeded.
    New,
    /// The Connect of an I/O queue waits for the controller's reactor.
    Joining,
    /// The admin queue of the controller in this place of the group's table.
    Admin {
        /// The place.
        controller: u32,
    },
    /// An I/O queue.
    Io(IoQueue),
}

/// An I/O queue.
#[derive(Debug)]
pub(crate) struct IoQueue {
    /// Place of the subsystem in the group's table.
    pub(crate) subsystem: u32,
    /// Its controller.
    pub(crate) shared: Arc<CtrlShared>,
    /// QID.
    pub(crate) qid: u16,
    /// The port by which the controller came: its path.
    pub(crate) portid: u16,
    /// Index of the controller's reactor among the peers.
    pub(crate) owner: usize,
    /// Place of the controller in that reactor's table.
    pub(crate) controller: u32,
    /// The host has not authenticated itself yet: no command is executed.
    pub(crate) locked: bool,
}

/// Why a Connect is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    pub(crate) dw0: u32,
}

impl Refusal {
    /// A field of the command.
    pub(crate) fn sqe(ipo: u16) -> Self {
        let cqe = connect::invalid_sqe(0, 0, ipo);
        Self { status: cqe.status(), dw0: cqe.dw0.get() }
    }

    /// A field of the data.
    pub(crate) fn data(ipo: u16) -> Self {
        let cqe = connect::invalid_data(0, 0, ipo);
        Self { status: cqe.status(), dw0: cqe.dw0.get() }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, dw0: 0 }
    }
}

/// A Connect whose fields are all valid in themselves.
#[derive(Debug, Clone)]
pub(crate) struct Connect {
    pub(crate) subnqn: Nqn,
    pub(crate) hostnqn: Nqn,
    pub(crate) hostid: [u8; 16],
    pub(crate) cntlid: u16,
    pub(crate) qid: u16,
    /// Entries of the submission queue.
    pub(crate) entries: u16,
    pub(crate) flow_control: bool,
    pub(crate) kato_ms: u32,
}

impl Connect {
    /// Checks a Connect command and its data.
    pub(crate) fn parse(cmd: &ConnectCmd, data: &ConnectData, params: &TcpParams) -> Result<Self, Refusal> {
        if cmd.recfmt.get() != connect::RECFMT {
            return Err(Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr().into());
        }
        let qid = cmd.qid.get();
        let entries_max = if qid == 0 { params.admin_entries_max } else { params.queue_entries_max };
        let sqsize0 = cmd.sqsize0.get();
        if sqsize0 == 0 || sqsize0 >= entries_max {
            return Err(Refusal::sqe(connect::SQSIZE_OFF));
        }
        let subnqn = data.subsystem().map_err(|_| Refusal::data(connect::SUBNQN_OFF))?;
        let hostnqn = data.host().map_err(|_| Refusal::data(connect::HOSTNQN_OFF))?;
        let cntlid = data.cntlid.get();
        let dynamic = matches!(cntlid, connect::CNTLID_DYNAMIC | connect::CNTLID_STATIC_ANY);
        if (qid == 0 && cntlid != connect::CNTLID_DYNAMIC) || (qid != 0 && dynamic) {
            return Err(Refusal::data(connect::CNTLID_OFF));
        }
        Ok(Self {
            subnqn,
            hostnqn,
            hostid: data.hostid,
            cntlid,
            qid,
            entries: sqsize0 + 1,
            flow_control: !ConnectAttributes(cmd.cattr).disable_sq_flow_control(),
            kato_ms: cmd.kato_ms.get(),
        })
    }
}

/// How the data of a command for the controller or the queue pair itself goes.
///
/// # Errors
/// The status to answer with.
pub(crate) fn control_transfer(link: &Link, sqe: &Sqe) -> Result<Transfer, Status> {
    let fabrics = sqe.opc == NvmOpcode::FABRICS.0;
    if fabrics
        && matches!(link, Link::Admin { .. } | Link::Io(_))
        && let Some(transfer) = auth_transfer(sqe)
    {
        return transfer;
    }
    match link {
        Link::Io(queue) if queue.locked && !fabrics => Err(Status::AUTHENTICATION_REQUIRED.with_dnr()),
        Link::Admin { .. } if !fabrics => admin_transfer(sqe),
        Link::New if fabrics && FabricsType(sqe.fctype()) == FabricsType::CONNECT => connect_transfer(sqe),
        Link::Admin { .. } | Link::Io(_) if fabrics => {
            // Property Get and Set and Disconnect move no data; what would is refused when it is executed.
            Ok(Transfer::None)
        }
        _ => Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
    }
}

fn connect_transfer(sqe: &Sqe) -> Result<Transfer, Status> {
    if sqe.psdt() != Psdt::SglMptrContiguous {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let sgl = sqe.sgl1.parse_tcp().map_err(|error| error.status().with_dnr())?;
    if usize::try_from(sgl.len()).is_ok_and(|len| len == ConnectData::LEN) {
        return Ok(Transfer::FromHost(sgl));
    }
    Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr())
}
