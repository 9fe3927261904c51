//! A driver that blocks its thread: one `TcpStream` for each machine. For tools and tests, not for speed.

mod link;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_security::tls::{Context, TlsError};

use penstock_spec::nvme::identify::{Cns, IDENTIFY_LEN, IdentifyNamespace, NsList};
use penstock_spec::nvme::log::Lid;
use penstock_spec::nvme::opcode::Csi;
use penstock_spec::nvme::{Sqe, Status};
use penstock_spec::nvmf::discovery::{DiscoveryLogEntry, DiscoveryLogHdr};
use zerocopy::FromBytes;

use self::link::{Link, now};
use crate::command;
use crate::controller::{Controller, ControllerConfig, ControllerError, Event};
use crate::error::QpairError;
use crate::payload::Payload;
use crate::qpair::{Completion, Qpair, QpairConfig, QpairState, RejectReason, Transfer};
use crate::tls::{Tls, Tunnel};

/// The most entries of a discovery log that [`BlockingController::discover`] reads.
pub const DISCOVERY_ENTRIES_MAX: u64 = 4096;

/// Events kept while a command is waited for, at most.
const KEPT_MAX: usize = 4096;
/// What a command that is waited for is known by.
const EXECUTED: u32 = u32::MAX;

/// Why a blocking call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockingError {
    /// The socket failed.
    #[error("the connection to {addr} failed: {source}")]
    Io {
        /// The target's address.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The connection could not be secured.
    #[error("no TLS with {addr}: {source}; compare the keys of both sides, and the host NQN")]
    Tls {
        /// The target's address.
        addr: SocketAddr,
        /// What TLS says.
        source: TlsError,
    },
    /// The queue pair closed.
    #[error(transparent)]
    Qpair(#[from] QpairError),
    /// The controller was not brought up, or is lost.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// A command was not taken.
    #[error("the command was not taken: {0}")]
    Rejected(#[from] RejectReason),
    /// A command failed.
    #[error("{what} failed: {status}")]
    Command {
        /// The command.
        what: &'static str,
        /// Its status.
        status: Status,
    },
    /// Nothing came in time.
    #[error("the target at {addr} did not answer within {limit:?}")]
    Timeout {
        /// The target's address.
        addr: SocketAddr,
        /// The limit.
        limit: Duration,
    },
}

/// A queue pair with its socket.
#[derive(Debug)]
pub struct BlockingQpair<B> {
    link: Link,
    qpair: Qpair<B>,
}

impl<B: Payload> BlockingQpair<B> {
    /// Connects; returns when the queue pair is live. Every wait is limited by `timeout`.
    ///
    /// # Errors
    /// The socket, the transport or the Connect command failed.
    pub fn open(addr: SocketAddr, config: QpairConfig, timeout: Duration) -> Result<Self, BlockingError> {
        let mut link = Link::open(addr, timeout, config.tls.as_ref())?;
        let mut qpair = Qpair::new(config);
        let deadline = link.deadline();
        while !qpair.is_live() {
            link.turn(&mut qpair, deadline)?;
        }
        Ok(Self { link, qpair })
    }

    /// Queues a command; it is sent by the next [`Self::wait`].
    ///
    /// # Errors
    /// The command was not taken; the payload is dropped.
    pub fn submit(
        &mut self,
        sqe: Sqe,
        transfer: Transfer,
        user: u64,
        payload: Option<B>,
    ) -> Result<(), BlockingError> {
        self.qpair.submit(sqe, transfer, user, payload).map_err(|rejected| rejected.reason)?;
        Ok(())
    }

    /// Waits for the next completion.
    ///
    /// # Errors
    /// The connection failed or nothing came in time.
    pub fn wait(&mut self) -> Result<Completion<B>, BlockingError> {
        let deadline = self.link.deadline();
        loop {
            if let Some(completion) = self.qpair.poll() {
                return Ok(completion);
            }
            if let QpairState::Closed(error) = self.qpair.state() {
                return Err(error.into());
            }
            self.link.turn(&mut self.qpair, deadline)?;
        }
    }

    /// Sends what is queued and reads once; completions that came are told by [`Self::wait`].
    ///
    /// # Errors
    /// The connection failed.
    pub fn turn_once(&mut self) -> Result<(), BlockingError> {
        let deadline = self.link.deadline();
        self.link.turn(&mut self.qpair, deadline)
    }

    /// Submits one command and waits for it; nothing else may be outstanding.
    ///
    /// # Errors
    /// The connection failed. A status other than success is not an error here.
    pub fn execute(
        &mut self,
        sqe: Sqe,
        transfer: Transfer,
        payload: Option<B>,
    ) -> Result<Completion<B>, BlockingError> {
        self.submit(sqe, transfer, 0, payload)?;
        self.wait()
    }

    /// The machine, its socket, and the TLS on that, for a driver that does not block. The socket still does.
    pub fn into_parts(self) -> (Qpair<B>, TcpStream, Option<Tunnel>) {
        let (stream, session) = self.link.into_parts();
        (self.qpair, stream, session.map(Tunnel::new))
    }

    /// The machine.
    pub fn qpair(&self) -> &Qpair<B> {
        &self.qpair
    }
}

/// An admin queue with its socket.
#[derive(Debug)]
pub struct BlockingController {
    link: Link,
    controller: Controller,
    /// Events that came while a command was waited for.
    kept: VecDeque<Event>,
}

impl BlockingController {
    /// Connects; returns when the controller is live. Every wait is limited by `timeout`.
    ///
    /// # Errors
    /// The socket, the transport or a step of the bring-up failed.
    pub fn connect(
        addr: SocketAddr,
        config: ControllerConfig,
        timeout: Duration,
    ) -> Result<Self, BlockingError> {
        let mut this = Self::begin(addr, config.clone(), timeout)?;
        match this.bring_up(timeout) {
            Err(BlockingError::Controller(ControllerError::Qpair(QpairError::SecureChannel))) => {}
            outcome => return outcome.map(|()| this),
        }
        // The authentication has made a key: everything is done again over TLS, in place of the plain connection.
        let psks = this.controller.made_psk().cloned().into_iter().collect();
        drop(this);
        let context = match &config.admin.tls {
            Some(tls) => Arc::clone(&tls.context),
            None => Arc::new(Context::new().map_err(|source| BlockingError::Tls { addr, source })?),
        };
        let mut config = config;
        config.admin.tls = Some(Tls { context, psks });
        let mut this = Self::begin(addr, config, timeout)?;
        this.bring_up(timeout)?;
        Ok(this)
    }

    fn begin(
        addr: SocketAddr,
        mut config: ControllerConfig,
        timeout: Duration,
    ) -> Result<Self, BlockingError> {
        let link = Link::open(addr, timeout, config.admin.tls.as_ref())?;
        if let (Some(psk), Some(tls)) = (link.psk(), config.admin.tls.as_mut()) {
            // The one that the target knows, also for the queues to come.
            tls.psks = vec![psk];
        }
        Ok(Self { link, controller: Controller::new(config), kept: VecDeque::new() })
    }

    fn bring_up(&mut self, timeout: Duration) -> Result<(), BlockingError> {
        loop {
            if let Event::Live = self.next_event(timeout)? {
                return Ok(());
            }
        }
    }

    /// Waits for the next event; keep-alives are sent meanwhile.
    ///
    /// # Errors
    /// The controller is lost or nothing came within `timeout`.
    pub fn next_event(&mut self, timeout: Duration) -> Result<Event, BlockingError> {
        match self.kept.pop_front() {
            Some(event) => Ok(event),
            None => self.new_event(timeout),
        }
    }

    fn new_event(&mut self, timeout: Duration) -> Result<Event, BlockingError> {
        let deadline = now() + timeout;
        loop {
            match self.controller.poll(self.link.now_ns()) {
                Some(Event::Lost(error)) => return Err(error.into()),
                Some(event) => return Ok(event),
                None => self.turn(deadline)?,
            }
        }
    }

    /// An error of the transport is told by `poll`, which knows more; others are told here.
    fn turn(&mut self, deadline: Instant) -> Result<(), BlockingError> {
        match self.link.turn(&mut self.controller, deadline) {
            Err(BlockingError::Qpair(_)) => Ok(()),
            other => other,
        }
    }

    /// Gives an admin command to the controller; its completion is an [`Event::Command`] with `user`, which is not
    /// `u32::MAX`.
    ///
    /// # Errors
    /// The command was not taken.
    pub fn submit(
        &mut self,
        sqe: Sqe,
        transfer: Transfer,
        user: u32,
        data: Option<Box<[u8]>>,
    ) -> Result<(), BlockingError> {
        self.controller.submit(sqe, transfer, user, data).map_err(|rejected| rejected.reason)?;
        Ok(())
    }

    /// Limits every wait from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.link.set_timeout(timeout);
    }

    /// Executes one admin command. Events that come meanwhile are kept for [`Self::next_event`].
    ///
    /// # Errors
    /// The controller is lost. A status other than success is not an error here.
    pub fn execute(
        &mut self,
        sqe: Sqe,
        transfer: Transfer,
        data: Option<Box<[u8]>>,
    ) -> Result<Completion<Box<[u8]>>, BlockingError> {
        let deadline = now() + self.link.timeout();
        self.submit(sqe, transfer, EXECUTED, data)?;
        loop {
            let left = deadline.saturating_duration_since(now());
            match self.new_event(left)? {
                Event::Command { user: EXECUTED, cqe, data } => {
                    return Ok(Completion { user: 0, cqe, payload: data });
                }
                // Bounded: event requests and commands outstanding are.
                event if self.kept.len() < KEPT_MAX => self.kept.push_back(event),
                _ => {}
            }
        }
    }

    /// Executes a command that reads `len` bytes.
    ///
    /// # Errors
    /// The controller is lost or the command, called `what` in the error, failed.
    pub fn read(&mut self, what: &'static str, sqe: Sqe, len: usize) -> Result<Box<[u8]>, BlockingError> {
        let data = vec![0; len].into_boxed_slice();
        let transfer = Transfer::Read(u32::try_from(len).unwrap_or(u32::MAX));
        let done = self.execute(sqe, transfer, Some(data))?;
        let status = done.status();
        if !status.is_success() {
            return Err(BlockingError::Command { what, status });
        }
        Ok(done.payload.unwrap_or_default())
    }

    /// NSIDs of all active namespaces, in increasing order.
    ///
    /// # Errors
    /// The controller is lost or Identify failed.
    pub fn active_namespaces(&mut self) -> Result<Vec<u32>, BlockingError> {
        let mut nsids: Vec<u32> = Vec::new();
        loop {
            let after = nsids.last().copied().unwrap_or(0);
            let sqe = command::identify(Cns::ACTIVE_NS_LIST, after, Csi::NVM);
            let data = self.read("Identify (active namespaces)", sqe, IDENTIFY_LEN)?;
            let Ok(list) = NsList::ref_from_bytes(&data) else { return Ok(nsids) };
            let before = nsids.len();
            // Increasing by the standard; what is not would make this loop endless.
            nsids.extend(list.iter().filter(|nsid| *nsid > after));
            if nsids.len() - before < penstock_spec::nvme::identify::NS_LIST_MAX {
                return Ok(nsids);
            }
        }
    }

    /// Identify Namespace.
    ///
    /// # Errors
    /// The controller is lost or Identify failed.
    pub fn identify_namespace(&mut self, nsid: u32) -> Result<Box<IdentifyNamespace>, BlockingError> {
        let sqe = command::identify(Cns::NAMESPACE, nsid, Csi::NVM);
        let data = self.read("Identify (namespace)", sqe, IDENTIFY_LEN)?;
        let ns = IdentifyNamespace::read_from_bytes(&data).unwrap_or_default();
        Ok(Box::new(ns))
    }

    /// The discovery log, read again as long as it changes under the reader's hands (at most ten times).
    ///
    /// # Errors
    /// The controller is lost or Get Log Page failed.
    pub fn discover(&mut self) -> Result<Vec<DiscoveryLogEntry>, BlockingError> {
        const WHAT: &str = "Get Log Page (discovery)";
        let mut entries = Vec::new();
        for _ in 0..10 {
            let before = self.discovery_header()?;
            let count = before.numrec.get().min(DISCOVERY_ENTRIES_MAX);
            entries.clear();
            for i in 0..count {
                let entry_len = u32::try_from(DiscoveryLogEntry::LEN).unwrap_or(0);
                let off = (i + 1) * u64::from(entry_len);
                let sqe = command::get_log_page(Lid::DISCOVERY, 0, off, entry_len);
                let data = self.read(WHAT, sqe, DiscoveryLogEntry::LEN)?;
                entries.extend(DiscoveryLogEntry::read_from_bytes(&data).ok());
            }
            if self.discovery_header()?.genctr == before.genctr {
                break;
            }
        }
        Ok(entries)
    }

    fn discovery_header(&mut self) -> Result<DiscoveryLogHdr, BlockingError> {
        let len = u32::try_from(DiscoveryLogHdr::LEN).unwrap_or(0);
        let sqe = command::get_log_page(Lid::DISCOVERY, 0, 0, len);
        let data = self.read("Get Log Page (discovery)", sqe, DiscoveryLogHdr::LEN)?;
        Ok(DiscoveryLogHdr::read_from_bytes(&data).unwrap_or_default())
    }

    /// Opens an I/O queue of this controller.
    ///
    /// # Errors
    /// As [`BlockingQpair::open`].
    pub fn open_io<B: Payload>(&self, qid: u16, depth: u16) -> Result<BlockingQpair<B>, BlockingError> {
        BlockingQpair::open(self.link.addr(), self.controller.io_qpair(qid, depth), self.link.timeout())
    }

    /// Shuts the controller down and closes the connection.
    ///
    /// # Errors
    /// The controller was lost before.
    pub fn shut_down(mut self) -> Result<(), BlockingError> {
        self.controller.shut_down(self.link.now_ns());
        loop {
            if let Event::ShutDown = self.next_event(self.link.timeout())? {
                return Ok(());
            }
        }
    }

    /// The machine.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::fake_target::{BLOCK, Choices, FakeTarget};

    /// Serves `connections` connections, each with its own memory, in threads.
    fn serve(connections: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(connections) {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut target = FakeTarget::new(Choices::default(), 4096);
                    let mut buf = vec![0; 65_536];
                    while let Ok(n @ 1..) = stream.read(&mut buf) {
                        target.feed(&buf[..n]);
                        stream.write_all(&std::mem::take(&mut target.output)).unwrap();
                    }
                });
            }
        });
        addr
    }

    #[test]
    fn a_controller_is_driven_over_a_real_socket() {
        let nqn = "nqn.2026-11.io.penstock:t".parse().unwrap();
        let admin = QpairConfig::admin([1; 16], nqn, nqn);
        let config = ControllerConfig { admin, io_queues: 2, step_timeout_ns: 5_000_000_000 };
        let timeout = Duration::from_secs(5);
        let mut controller = BlockingController::connect(serve(2), config, timeout).unwrap();
        assert_eq!(controller.active_namespaces().unwrap(), [1]);
        let ns = controller.identify_namespace(1).unwrap();
        assert_eq!((ns.nsze.get(), ns.block_len()), (4096, Some(512)));
        let log = controller.discover().unwrap();
        assert_eq!((log[0].traddr(), log[0].trsvcid()), (Some("127.0.0.1"), Some("4420")));
        let mut io = controller.open_io::<Vec<u8>>(1, 32).unwrap();
        let len = 1024 * BLOCK;
        let bytes = Transfer::Write(len as u32);
        let data: Vec<u8> = (0..len).map(|i| (i / 512 + i) as u8).collect();
        let done = io.execute(command::write(1, 8, 1024, true), bytes, Some(data.clone())).unwrap();
        assert!(done.status().is_success());
        let bytes = Transfer::Read(len as u32);
        let done = io.execute(command::read(1, 8, 1024), bytes, Some(vec![0; len])).unwrap();
        assert!(done.status().is_success() && done.payload == Some(data));
        controller.shut_down().unwrap();
    }
}
