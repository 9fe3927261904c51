//! An NVMe/TCP namespace as a device: our own initiator's machine on a socket that is polled.

use std::io::{IoSlice, IoSliceMut};

use penstock_bdev::{Busy, Io, IoFlags, IoStatus, Lba, Op, Sg};
use penstock_nvme_tcp::qpair::RejectReason;
use penstock_nvme_tcp::{Completion, Payload, Qpair, QpairState, Transfer, Tunnel, command};
use penstock_reactor::Tick;
use penstock_reactor::mem::Buf;
use penstock_reactor::net::TcpSocket;
use penstock_spec::nvme::nvm::{DsmRange, RwControl};
use penstock_spec::nvme::{NvmOpcode, Sqe, Status};
use zerocopy::IntoBytes as _;

use crate::worker::Device;

/// Bytes received at once.
const RECV_BYTES: usize = 256 << 10;
/// Bytes of a range of Dataset Management.
const RANGE_BYTES: u32 = 16;
const _: () = assert!(DsmRange::LEN == 16);
/// Pieces of one gathering write.
const PIECES_MAX: usize = 256;

/// An I/O that is its own command's payload.
#[derive(Debug)]
pub struct IoPayload(Box<Io>);

impl Payload for IoPayload {
    fn len_bytes(&self) -> usize {
        self.0.data.len_bytes()
    }

    fn chunk(&self, off: usize) -> &[u8] {
        let mut skip = off;
        for buf in self.0.data.iter() {
            match buf.get(skip..) {
                Some(rest) if !rest.is_empty() => return rest,
                _ => skip -= buf.len(),
            }
        }
        &[]
    }

    fn chunk_mut(&mut self, off: usize) -> &mut [u8] {
        let data: &mut Sg = &mut self.0.data;
        let mut skip = off;
        for buf in data.iter_mut() {
            if skip < buf.len() {
                return buf.get_mut(skip..).unwrap_or_default();
            }
            skip -= buf.len();
        }
        &mut []
    }
}

/// One connection to a namespace.
#[derive(Debug)]
pub struct Queue {
    qpair: Qpair<IoPayload>,
    socket: TcpSocket,
    recv: Box<[u8]>,
    /// Not there without TLS.
    tunnel: Option<Box<Tunnel>>,
    /// Nothing more comes; what was under way fails.
    lost: bool,
}

impl Queue {
    /// A queue pair whose Connect is through, on its socket.
    #[must_use]
    pub fn new(qpair: Qpair<IoPayload>, socket: TcpSocket) -> Self {
        Self { qpair, socket, recv: vec![0; RECV_BYTES].into_boxed_slice(), tunnel: None, lost: false }
    }

    /// With the TLS that its handshake was done by, if any.
    #[must_use]
    pub fn with_tls(mut self, tunnel: Option<Tunnel>) -> Self {
        self.tunnel = tunnel.map(Box::new);
        self
    }

    /// Sends what is queued, as far as the socket takes it, and receives what has come.
    pub fn drive(&mut self) {
        if !self.lost && (self.receive().is_err() || self.send().is_err()) {
            self.lost = true;
            self.qpair.close();
        }
    }

    /// Where the queue pair is in its life.
    #[must_use]
    pub fn state(&self) -> QpairState {
        self.qpair.state()
    }

    fn send(&mut self) -> std::io::Result<()> {
        if let Some(tunnel) = &mut self.tunnel {
            return tunnel.send(&self.socket, &mut self.qpair).map(drop);
        }
        while self.qpair.tx_len_bytes() > 0 {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let mut count = 0;
            for (piece, bytes) in pieces.iter_mut().zip(self.qpair.tx_slices()) {
                *piece = IoSlice::new(bytes);
                count += 1;
            }
            let Some(sent) = self.socket.send_vectored(pieces.get(..count).unwrap_or_default())? else {
                break;
            };
            self.qpair.tx_consume(sent);
        }
        Ok(())
    }

    fn receive(&mut self) -> std::io::Result<()> {
        if let Some(tunnel) = &mut self.tunnel {
            return tunnel.receive(&self.socket, &mut self.qpair, &mut self.recv).map(drop);
        }
        let (direct, got) = match self.qpair.rx_target() {
            Some(target) => {
                let direct = target.len();
                let mut bufs = [IoSliceMut::new(target), IoSliceMut::new(&mut self.recv)];
                (direct, self.socket.recv_vectored(&mut bufs)?)
            }
            None => (0, self.socket.recv(&mut self.recv)?),
        };
        let Some(got) = got else { return Ok(()) };
        if got == 0 {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        let placed = got.min(direct);
        let broken = |error| std::io::Error::other(error);
        if placed > 0 {
            self.qpair.rx_received(placed).map_err(broken)?;
        }
        self.qpair.recv(self.recv.get(..got - placed).unwrap_or_default()).map_err(broken)
    }
}

/// A namespace over one or several connections, used in turn.
#[derive(Debug)]
pub struct Remote {
    queues: Vec<Queue>,
    nsid: u32,
    block_bytes: u32,
    next: usize,
}

impl Remote {
    /// Namespace `nsid` with blocks of `block_bytes`, over `queues`.
    #[must_use]
    pub fn new(queues: Vec<Queue>, nsid: u32, block_bytes: u32) -> Self {
        Self { queues, nsid, block_bytes, next: 0 }
    }

    fn command(&self, io: &Io) -> Option<(Sqe, Transfer)> {
        let Lba(slba) = io.lba;
        let bytes = io.blocks.checked_mul(self.block_bytes)?;
        let fua = RwControl(0).with_fua(io.flags.contains(IoFlags::FUA));
        let rw = |opcode, transfer| Some((command::rw(opcode, self.nsid, slba, io.blocks, fua), transfer));
        match io.op {
            Op::Read => rw(NvmOpcode::READ, Transfer::Read(bytes)),
            Op::Write => rw(NvmOpcode::WRITE, Transfer::Write(bytes)),
            Op::Compare => rw(NvmOpcode::COMPARE, Transfer::Write(bytes)),
            Op::WriteZeroes => rw(NvmOpcode::WRITE_ZEROES, Transfer::None),
            Op::Flush => Some((command::flush(self.nsid), Transfer::None)),
            Op::Unmap => Some((command::deallocate(self.nsid, 1), Transfer::Write(RANGE_BYTES))),
            Op::CompareAndWrite | Op::Copy | Op::Reset => None,
        }
    }
}

impl Device for Remote {
    fn submit(&mut self, mut io: Box<Io>, now: Tick) -> Result<(), Busy> {
        let Some((sqe, transfer)) = self.command(&io) else { return Err(Busy(io)) };
        if io.op == Op::Unmap && !put_range(&mut io) {
            return Err(Busy(io));
        }
        io.submitted = now;
        self.next = (self.next + 1) % self.queues.len().max(1);
        let Some(queue) = self.queues.get_mut(self.next) else { return Err(Busy(io)) };
        match queue.qpair.submit(sqe, transfer, 0, Some(IoPayload(io))) {
            Ok(_) => Ok(()),
            Err(rejected) => {
                let busy = rejected.reason == RejectReason::Busy;
                let Some(IoPayload(mut io)) = rejected.payload else { unreachable!("it had a payload") };
                if !busy {
                    io.status = IoStatus::Gone;
                }
                Err(Busy(io))
            }
        }
    }

    fn poll(&mut self, _now: Tick, _budget: usize, done: &mut Vec<Box<Io>>) -> usize {
        let before = done.len();
        for queue in &mut self.queues {
            queue.drive();
            while let Some(completion) = queue.qpair.poll() {
                take_back(completion, done);
            }
            if queue.lost {
                while let Some(completion) = queue.qpair.abandon() {
                    take_back(completion, done);
                }
            }
        }
        done.len() - before
    }

    fn flush_queue(&mut self) {
        for queue in &mut self.queues {
            if !queue.lost && queue.send().is_err() {
                queue.lost = true;
                queue.qpair.close();
            }
        }
    }
}

/// An unmap's data are the range itself. Whether there is a buffer for it.
fn put_range(io: &mut Io) -> bool {
    let Some(mut buf) = Buf::alloc(DsmRange::LEN) else { return false };
    let range = DsmRange { len_blocks: io.blocks.into(), slba: io.lba.0.into(), ..DsmRange::default() };
    buf.copy_from_slice(range.as_bytes());
    io.data.clear();
    io.data.push(buf);
    true
}

fn take_back(completion: Completion<IoPayload>, done: &mut Vec<Box<Io>>) {
    let status = completion.status();
    let Some(IoPayload(mut io)) = completion.payload else { return };
    io.status = status_of(status);
    done.push(io);
}

/// As much of an NVMe status as a report needs.
fn status_of(status: Status) -> IoStatus {
    if status.is_success() {
        return IoStatus::Success;
    }
    match status {
        Status::LBA_OUT_OF_RANGE => IoStatus::OutOfRange,
        Status::COMPARE_FAILURE => IoStatus::Miscompare,
        Status::CAPACITY_EXCEEDED => IoStatus::NoSpace,
        Status::ABORTED_BY_HOST => IoStatus::Gone,
        _ => IoStatus::Internal,
    }
}
