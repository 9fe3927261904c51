//! In-band authentication of queues (DH-HMAC-CHAP; Base 8.3.5.5): what is kept of it for a host and for a queue, and the
//! thread that does its slow parts. The protocol is `penstock_security::chap`'s.

mod keys;
mod queue;
mod worker;

pub use keys::{HostKeys, KeyNames};
pub(crate) use queue::QueueAuth;
pub(crate) use worker::{Answer, Answers, Worked, Worker};

use penstock_spec::nvme::sgl::TcpSgl;
use penstock_spec::nvme::{FabricsType, Psdt, Sqe, Status};

use crate::io_cmd::Transfer;

/// Data of an Authentication Send or Receive at most, in bytes; hosts use 4 KiB.
pub(crate) const AUTH_DATA_MAX: u32 = 16 << 10;
const _: () = assert!(AUTH_DATA_MAX as usize >= penstock_security::chap::MESSAGE_LEN_MAX);

/// How the data of an Authentication Send or Receive goes; `None` for other Fabrics commands.
///
/// # Errors
/// The status to answer with.
pub(crate) fn auth_transfer(sqe: &Sqe) -> Option<Result<Transfer, Status>> {
    let fctype = FabricsType(sqe.fctype());
    let send = fctype == FabricsType::AUTHENTICATION_SEND;
    if !send && fctype != FabricsType::AUTHENTICATION_RECEIVE {
        return None;
    }
    Some(auth_sgl(sqe).map(|sgl| if send { Transfer::FromHost(sgl) } else { Transfer::ToHost(sgl) }))
}

fn auth_sgl(sqe: &Sqe) -> Result<TcpSgl, Status> {
    if sqe.psdt() != Psdt::SglMptrContiguous {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    let sgl = sqe.sgl1.parse_tcp().map_err(|error| error.status().with_dnr())?;
    if sgl.len() <= AUTH_DATA_MAX { Ok(sgl) } else { Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr()) }
}
