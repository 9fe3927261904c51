//! A small NVMe/TCP host on plain blocking sockets. It shares no code with what it tests, can do what a good host never
//! does (send and not read, stop half-way, hang up), and connects a thousand times in seconds.
//!
//! Offsets and types are the NVMe/TCP Transport Specification's (section 3.6) and the NVM Express Base Specification's (connect:
//! section 6.3, properties: sections 6.4 and 6.5).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const COMMAND_BYTES: usize = 64;
const HEADER_BYTES: usize = 8;
const INIT_BYTES: usize = 128;
const CONNECT_DATA_BYTES: usize = 1024;

/// A target answers within this, or a test fails.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Any controller (CNTLID of the dynamic model).
const ANY_CONTROLLER: u16 = 0xffff;

/// The NQN that it connects with.
pub const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:22222222-3333-4444-5555-666666666666";

/// CC: enabled, NVM command set, 64-byte commands, 16-byte completions.
const ENABLED: u64 = 0x0046_0001;

/// PDU types, section 3.6.1.
pub mod pdu {
    /// Initialize Connection Request.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize Connection Response.
    pub const IC_RESP: u8 = 0x01;
    /// Controller to Host Terminate Connection Request.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// Command Capsule.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// Response Capsule.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// Host to Controller Data Transfer.
    pub const H2C_DATA: u8 = 0x06;
    /// Controller to Host Data Transfer.
    pub const C2H_DATA: u8 = 0x07;
}

/// A PDU as it came: the eight bytes of the common header, and the rest.
#[derive(Clone, Debug)]
pub struct Pdu {
    /// Its type, one of [`pdu`].
    pub kind: u8,
    /// The FLAGS byte.
    pub flags: u8,
    /// Everything behind the common header.
    pub body: Vec<u8>,
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Completion {
    /// Dwords 0 and 1.
    pub result: u64,
    /// The command's identifier.
    pub cid: u16,
    /// The status field without the phase tag.
    pub status: u16,
}

/// What a queue says of itself in its Connect command.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// The subsystem.
    pub nqn: &'a str,
    /// 0 for the admin queue.
    pub qid: u16,
    /// The controller's identifier.
    pub controller: u16,
    /// How many commands it may have outstanding, and one more.
    pub entries: u16,
    /// The admin queue's keep-alive time.
    pub keep_alive: Duration,
}

impl<'a> Connect<'a> {
    /// An admin queue, for any controller of the subsystem.
    pub fn admin(nqn: &'a str) -> Self {
        Self { nqn, qid: 0, controller: ANY_CONTROLLER, entries: 32, keep_alive: Duration::from_mins(1) }
    }

    /// An I/O queue of a controller.
    pub fn io(nqn: &'a str, controller: u16, qid: u16) -> Self {
        Self { qid, controller, entries: 128, ..Self::admin(nqn) }
    }
}

/// One connection: an admin or an I/O queue.
#[derive(Debug)]
pub struct Queue {
    stream: TcpStream,
    next_cid: u16,
}

impl Queue {
    /// Opens a TCP connection and says nothing on it.
    ///
    /// # Errors
    /// Where nobody listens.
    pub fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("cannot connect to 127.0.0.1:{port}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { stream, next_cid: 0 })
    }

    /// Exchanges ICReq and ICResp, without digests.
    ///
    /// # Errors
    /// Where the target does not answer with an ICResp.
    pub fn initialize(&mut self) -> Result<()> {
        let mut request = [0; INIT_BYTES];
        put(&mut request, 0, &[pdu::IC_REQ, 0, 128, 0, 128, 0, 0, 0]);
        self.send(&request)?;
        let answer = self.receive()?;
        ensure!(answer.kind == pdu::IC_RESP, "the target answered ICReq with PDU type {:#04x}", answer.kind);
        Ok(())
    }

    /// Sends the Fabrics Connect command and returns the controller's identifier.
    ///
    /// # Errors
    /// Where the target refuses.
    pub fn connect(&mut self, how: &Connect<'_>) -> Result<u16> {
        let mut command = fabrics(0x01);
        put(&mut command, 32, &(1024_u32).to_le_bytes()); // the data follow in the capsule
        put(&mut command, 39, &[0x01]);
        put(&mut command, 42, &how.qid.to_le_bytes());
        put(&mut command, 44, &(how.entries - 1).to_le_bytes()); // SQSIZE, 0's based
        put(&mut command, 48, &u32::try_from(how.keep_alive.as_millis())?.to_le_bytes()); // KATO
        let mut data = [0; CONNECT_DATA_BYTES];
        put(&mut data, 0, b"penstock-tests-1");
        put(&mut data, 16, &how.controller.to_le_bytes());
        put(&mut data, 256, how.nqn.as_bytes());
        put(&mut data, 512, HOST_NQN.as_bytes());
        self.submit(&mut command, &data)?;
        let completion = self.completion()?;
        let (qid, nqn, status) = (how.qid, how.nqn, completion.status);
        ensure!(status == 0, "connecting queue {qid} to {nqn}: status {status:#06x}");
        Ok(u16::try_from(completion.result & 0xffff)?)
    }

    /// Enables the controller and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not become ready.
    pub fn enable(&mut self) -> Result<()> {
        let mut set = fabrics(0x00);
        put(&mut set, 44, &0x14_u32.to_le_bytes()); // CC
        put(&mut set, 48, &ENABLED.to_le_bytes());
        self.submit(&mut set, &[])?;
        let completion = self.completion()?;
        ensure!(completion.status == 0, "enabling the controller: status {:#06x}", completion.status);
        self.until_ready(true)
    }

    /// Resets the controller and waits until it is; its I/O queues are closed by that.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn reset(&mut self) -> Result<()> {
        let mut set = fabrics(0x00);
        put(&mut set, 44, &0x14_u32.to_le_bytes()); // CC
        put(&mut set, 48, &(ENABLED & !1).to_le_bytes());
        self.submit(&mut set, &[])?;
        let completion = self.completion()?;
        ensure!(completion.status == 0, "resetting the controller: status {:#06x}", completion.status);
        self.until_ready(false)
    }

    /// Waits until CSTS.RDY is so.
    fn until_ready(&mut self, ready: bool) -> Result<()> {
        crate::wait::until(ANSWER_LIMIT, || {
            let mut get = fabrics(0x04);
            put(&mut get, 44, &0x1c_u32.to_le_bytes()); // CSTS
            self.submit(&mut get, &[])?;
            Ok(((self.completion()?.result & 1 == 1) == ready).then_some(()))
        })
        .with_context(|| format!("the controller did not become ready: {ready}"))
    }

    /// Sends a Write of `blocks` blocks whose bytes the target must ask for, without waiting for anything.
    ///
    /// # Errors
    /// Where the target takes no bytes, or hung up.
    pub fn announce_write(&mut self, nsid: u32, lba: u64, blocks: u16, block_bytes: u32) -> Result<u16> {
        self.submit(&mut transfer(0x01, nsid, lba, blocks, block_bytes), &[])
    }

    /// Sends a Read of `blocks` blocks without waiting for anything, and returns its identifier.
    ///
    /// # Errors
    /// Where the target takes no bytes, or hung up.
    pub fn submit_read(&mut self, nsid: u32, lba: u64, blocks: u16, block_bytes: u32) -> Result<u16> {
        self.submit(&mut transfer(0x02, nsid, lba, blocks, block_bytes), &[])
    }

    /// Sends a Write of one block, its bytes in the capsule, without waiting for anything, and returns its identifier.
    ///
    /// # Errors
    /// Where the target takes no bytes, or hung up.
    pub fn submit_write(&mut self, nsid: u32, lba: u64, block: &[u8]) -> Result<u16> {
        let mut command = [0; COMMAND_BYTES];
        put(&mut command, 0, &[0x01, 0x40]);
        put(&mut command, 4, &nsid.to_le_bytes());
        put(&mut command, 32, &u32::try_from(block.len())?.to_le_bytes());
        put(&mut command, 39, &[0x01]);
        put(&mut command, 40, &lba.to_le_bytes());
        self.submit(&mut command, block)
    }

    /// Reads blocks and returns their bytes and how long that took.
    ///
    /// # Errors
    /// Where the target refuses, or answers with something else.
    pub fn read(
        &mut self,
        nsid: u32,
        lba: u64,
        blocks: u16,
        block_bytes: u32,
    ) -> Result<(Vec<u8>, Duration)> {
        let start = Instant::now();
        self.submit_read(nsid, lba, blocks, block_bytes)?;
        let bytes = self.receive_read()?;
        Ok((bytes, start.elapsed()))
    }

    /// Receives the bytes and the end of a Read.
    ///
    /// # Errors
    /// Where the target refuses, or answers with something else.
    pub fn receive_read(&mut self) -> Result<Vec<u8>> {
        const SUCCESS: u8 = 0x08;
        let mut bytes = Vec::new();
        loop {
            let answer = self.receive()?;
            match answer.kind {
                pdu::C2H_DATA => {
                    bytes.extend_from_slice(answer.body.get(16..).context("a C2HData without its header")?);
                    if answer.flags & SUCCESS != 0 {
                        return Ok(bytes);
                    }
                }
                pdu::CAPSULE_RESP => {
                    let status = completion(&answer)?.status;
                    ensure!(status == 0, "a read ended with status {status:#06x}");
                    return Ok(bytes);
                }
                other => bail!("PDU type {other:#04x} instead of data"),
            }
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Where the target takes none for ten seconds, or hung up.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("the target takes no more bytes")
    }

    /// Receives one PDU.
    ///
    /// # Errors
    /// Where none comes in ten seconds, or the target hung up.
    pub fn receive(&mut self) -> Result<Pdu> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).context("the target sends no PDU")?;
        let [kind, flags, _, _, length @ ..] = header;
        let length = usize::try_from(u32::from_le_bytes(length))?;
        let body = length.checked_sub(HEADER_BYTES).context("a PDU shorter than its header")?;
        ensure!(body <= 4 << 20, "a PDU of {length} bytes");
        let mut body = vec![0; body];
        self.stream.read_exact(&mut body)?;
        Ok(Pdu { kind, flags, body })
    }

    /// Sends `command` with `data` in its capsule, and returns its identifier.
    ///
    /// # Errors
    /// Where the target takes no bytes, or hung up.
    pub fn submit(&mut self, command: &mut [u8; COMMAND_BYTES], data: &[u8]) -> Result<u16> {
        self.next_cid = self.next_cid.wrapping_add(1);
        put(command, 2, &self.next_cid.to_le_bytes());
        let length = u32::try_from(HEADER_BYTES + COMMAND_BYTES + data.len())?;
        let offset = if data.is_empty() { 0 } else { 72 };
        let mut capsule = vec![pdu::CAPSULE_CMD, 0, 72, offset];
        capsule.extend_from_slice(&length.to_le_bytes());
        capsule.extend_from_slice(command);
        capsule.extend_from_slice(data);
        self.send(&capsule)?;
        Ok(self.next_cid)
    }

    /// Receives a completion.
    ///
    /// # Errors
    /// Where something else comes.
    pub fn completion(&mut self) -> Result<Completion> {
        completion(&self.receive()?)
    }
}

/// A connected host: a controller that is enabled, with one I/O queue.
#[derive(Debug)]
pub struct Host {
    /// The admin queue.
    pub admin: Queue,
    /// The I/O queue.
    pub io: Queue,
}

impl Host {
    /// Connects to the subsystem `nqn` of the target at 127.0.0.1:`port`.
    ///
    /// # Errors
    /// Where any step of it fails.
    pub fn connect(port: u16, nqn: &str) -> Result<Self> {
        let mut admin = Queue::open(port)?;
        admin.initialize()?;
        let controller = admin.connect(&Connect::admin(nqn))?;
        admin.enable()?;
        let mut io = Queue::open(port)?;
        io.initialize()?;
        io.connect(&Connect::io(nqn, controller, 1))?;
        Ok(Self { admin, io })
    }
}

/// A Read or Write whose data go over the connection outside of the capsule.
fn transfer(opcode: u8, nsid: u32, lba: u64, blocks: u16, block_bytes: u32) -> [u8; COMMAND_BYTES] {
    let mut command = [0; COMMAND_BYTES];
    put(&mut command, 0, &[opcode, 0x40]);
    put(&mut command, 4, &nsid.to_le_bytes());
    put(&mut command, 32, &(u32::from(blocks) * block_bytes).to_le_bytes());
    put(&mut command, 39, &[0x5a]);
    put(&mut command, 40, &lba.to_le_bytes());
    put(&mut command, 48, &(blocks - 1).to_le_bytes());
    command
}

/// A Fabrics command of this FCTYPE.
fn fabrics(kind: u8) -> [u8; COMMAND_BYTES] {
    let mut command = [0; COMMAND_BYTES];
    put(&mut command, 0, &[0x7f, 0x40, 0, 0, kind]);
    command
}

fn completion(answer: &Pdu) -> Result<Completion> {
    ensure!(
        answer.kind == pdu::CAPSULE_RESP,
        "PDU type {:#04x} instead of a response: {answer:?}",
        answer.kind
    );
    let field = |at: usize| -> Option<u16> {
        Some(u16::from_le_bytes([*answer.body.get(at)?, *answer.body.get(at + 1)?]))
    };
    let result = answer.body.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let parsed = result.zip(field(12)).zip(field(14));
    let ((result, cid), status) = parsed.context("a response shorter than a completion")?;
    Ok(Completion { result, cid, status: status >> 1 })
}

/// Copies `bytes` to `at`; the callers' offsets are constants of the standard that lie inside.
fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    for (place, byte) in into.iter_mut().skip(at).zip(bytes) {
        *place = *byte;
    }
}
