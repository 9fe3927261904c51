//! Getting into a session, with a socket that blocks: login, then what the LUN is.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use penstock_reactor::net::{SocketOptions, TcpSocket};
use penstock_spec::iscsi::header::{FINAL, IMMEDIATE};
use penstock_spec::iscsi::{
    BHS_LEN, Bhs, DataInHdr, DataLen, Isid, LoginReqHdr, LoginRespHdr, LoginStatus, Opcode, ScsiCommandHdr,
    TAG_NONE, pad_len, text,
};
use zerocopy::{FromBytes as _, IntoBytes as _, transmute};

use super::session::Session;
use super::{Agreed, Numbers};

/// Every step of a login.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of one login at most.
const REQUESTS_MAX: u32 = 8;
/// How often a command is sent again that ended in a unit attention.
const ATTENTIONS_MAX: u32 = 8;
const CHECK_CONDITION: u8 = 2;
/// FirstBurstLength where a target leaves it open (RFC 7143, 13.14).
const FIRST_BURST_DEFAULT: u32 = 65_536;
/// MaxRecvDataSegmentLength where a target says nothing (13.12).
const SEGMENT_DEFAULT: u32 = 8192;

/// A LUN.
#[derive(Debug)]
pub struct IscsiTarget {
    addr: SocketAddr,
    name: String,
    lun: u64,
    block_bytes: u32,
    blocks: u64,
    sessions: u8,
}

/// A connection on its way into the full feature phase.
struct Way {
    stream: TcpStream,
    numbers: Numbers,
}

/// A PDU as it came.
struct Pdu {
    bhs: Bhs,
    data: Vec<u8>,
}

impl IscsiTarget {
    /// Looks at `HOST:PORT/IQN/LUN`.
    ///
    /// # Errors
    /// When the target does not let us in, or the LUN has no blocks.
    pub fn connect(rest: &str) -> anyhow::Result<Self> {
        let usage = "a target is iscsi://HOST:PORT/IQN/LUN";
        let (place, name) = rest.split_once('/').context(usage)?;
        let (name, lun) = name.rsplit_once('/').context(usage)?;
        let lun: u16 = lun.parse().context(usage)?;
        ensure!(lun < 1 << 14, "{usage}, where LUN is 0 to 16383");
        // Peripheral addressing where it suffices, flat space addressing else (SAM-5, 4.7.7).
        let wire = if lun < 256 { lun } else { 0x4000 | lun };
        let addr = place.to_socket_addrs().context(usage)?.next().context("no such host")?;
        let lun = u64::from(wire) << 48;
        let mut target = Self { addr, name: name.to_owned(), lun, block_bytes: 0, blocks: 0, sessions: 0 };
        let (mut way, _) = target.log_in()?;
        let capacity = way.command(lun, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], 32)?;
        let field = |at: usize| capacity.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        let number = |at| field(at).map(u32::from_be_bytes).context("READ CAPACITY(16) is too short");
        let last = (u64::from(number(0)?) << 32) | u64::from(number(4)?);
        target.block_bytes = number(8)?;
        target.blocks = last.checked_add(1).context("the LUN has no valid size")?;
        ensure!(matches!(target.block_bytes, 512 | 4096), "blocks of {} bytes", target.block_bytes);
        Ok(target)
    }

    /// Bytes of a block, and how many blocks there are.
    #[must_use]
    pub fn geometry(&self) -> (u32, u64) {
        (self.block_bytes, self.blocks)
    }

    /// Opens a worker's session.
    ///
    /// # Errors
    /// When the target does not let it in.
    pub fn open_session(&mut self, depth: u32) -> anyhow::Result<Session> {
        let (mut way, agreed) = self.log_in()?;
        // Takes what attentions a new session is told of.
        way.command(self.lun, &[0; 6], 0)?;
        way.stream.set_read_timeout(None)?;
        let Way { stream, numbers } = way;
        let socket = TcpSocket::from_fd(OwnedFd::from(stream), &SocketOptions::default())?;
        Ok(Session::new(socket, self.lun, u16::try_from(depth)?, agreed, numbers))
    }

    fn log_in(&mut self) -> anyhow::Result<(Way, Agreed)> {
        self.sessions += 1;
        let stream = TcpStream::connect_timeout(&self.addr, TIMEOUT)
            .with_context(|| format!("cannot connect to {}", self.addr))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let mut way = Way { stream, numbers: Numbers { cmd_sn: 1, max_cmd_sn: 1, exp_stat_sn: 0 } };
        let keys = format!(
            "InitiatorName=iqn.2026-11.io.penstock:perf.{}\0SessionType=Normal\0TargetName={}\0HeaderDigest=None\0\
             DataDigest=None\0InitialR2T=Yes\0ImmediateData=Yes\0MaxRecvDataSegmentLength=1048576\0\
             MaxBurstLength=1048576\0FirstBurstLength=262144\0MaxOutstandingR2T=16\0MaxConnections=1\0\
             ErrorRecoveryLevel=0\0",
            std::process::id(),
            self.name
        );
        let mut answered = Vec::new();
        let mut ask = keys.into_bytes();
        for _ in 0..REQUESTS_MAX {
            let request = LoginReqHdr {
                opcode: Opcode::LOGIN_REQ.0 | IMMEDIATE,
                // From operational negotiation to the full feature phase.
                flags: 0x87,
                data_len: DataLen::new(u32::try_from(ask.len())?),
                isid: Isid([0x80, 0, 0, 0, 0, self.sessions]),
                itt: 1.into(),
                cmd_sn: way.numbers.cmd_sn.into(),
                exp_stat_sn: way.numbers.exp_stat_sn.into(),
                ..LoginReqHdr::default()
            };
            way.send(request.as_bytes(), &ask)?;
            ask.clear();
            let Pdu { bhs, mut data } = way.receive()?;
            let response: LoginRespHdr = transmute!(bhs);
            ensure!(
                Opcode(response.opcode) == Opcode::LOGIN_RESP,
                "the target answers a login by {:#x}",
                bhs.opcode
            );
            let status = LoginStatus(response.status.get());
            ensure!(status == LoginStatus::SUCCESS, "{} refuses the login: {status}", self.name);
            way.note(response.stat_sn.get(), response.max_cmd_sn.get());
            answered.append(&mut data);
            if response.flags & 0x83 == 0x83 {
                return Ok((way, agreed(&answered)?));
            }
        }
        bail!("the login at {} does not come to an end", self.name)
    }
}

/// What the target has answered to our keys.
fn agreed(answered: &[u8]) -> anyhow::Result<Agreed> {
    let (mut segment, mut first_burst, mut immediate) = (SEGMENT_DEFAULT, FIRST_BURST_DEFAULT, true);
    for pair in text::pairs(answered) {
        let pair = pair?;
        match pair.key {
            "MaxRecvDataSegmentLength" => segment = text::number(pair.value).context("no number")?,
            "FirstBurstLength" => first_burst = text::number(pair.value).context("no number")?,
            "ImmediateData" => immediate = pair.value == "Yes",
            "HeaderDigest" | "DataDigest" => ensure!(pair.value == "None", "it wants {}", pair.key),
            _ => {}
        }
    }
    ensure!(segment >= 512, "MaxRecvDataSegmentLength is {segment}");
    Ok(Agreed { segment, immediate: if immediate { segment.min(first_burst) } else { 0 } })
}

impl Way {
    fn note(&mut self, stat_sn: u32, max_cmd_sn: u32) {
        self.numbers.exp_stat_sn = stat_sn.wrapping_add(1);
        self.numbers.max_cmd_sn = max_cmd_sn;
    }

    /// A command without data to the target; what it has for us.
    fn command(&mut self, lun: u64, cdb: &[u8], len: u32) -> anyhow::Result<Vec<u8>> {
        for _ in 0..ATTENTIONS_MAX {
            let mut command = ScsiCommandHdr {
                opcode: Opcode::SCSI_COMMAND.0,
                flags: FINAL | if len > 0 { ScsiCommandHdr::READ } else { 0 },
                lun: lun.into(),
                itt: 2.into(),
                edtl: len.into(),
                cmd_sn: self.numbers.cmd_sn.into(),
                exp_stat_sn: self.numbers.exp_stat_sn.into(),
                ..ScsiCommandHdr::default()
            };
            command.cdb.iter_mut().zip(cdb).for_each(|(to, from)| *to = *from);
            self.numbers.cmd_sn = self.numbers.cmd_sn.wrapping_add(1);
            self.send(command.as_bytes(), &[])?;
            let (status, data) = self.answer()?;
            match status {
                0 => return Ok(data),
                CHECK_CONDITION => {}
                other => {
                    bail!("opcode {:#x} ended with status {other:#x}", cdb.first().copied().unwrap_or(0))
                }
            }
        }
        bail!("opcode {:#x} ends in CHECK CONDITION again and again", cdb.first().copied().unwrap_or(0))
    }

    fn answer(&mut self) -> anyhow::Result<(u8, Vec<u8>)> {
        let mut data = Vec::new();
        loop {
            let pdu = self.receive()?;
            let hdr: DataInHdr = transmute!(pdu.bhs);
            match Opcode(pdu.bhs.opcode & 0x3f) {
                Opcode::DATA_IN => {
                    data.extend(pdu.data);
                    if hdr.flags & DataInHdr::STATUS != 0 {
                        self.note(hdr.stat_sn.get(), hdr.max_cmd_sn.get());
                        return Ok((hdr.status, data));
                    }
                }
                Opcode::SCSI_RESPONSE => {
                    self.note(hdr.stat_sn.get(), hdr.max_cmd_sn.get());
                    return Ok((hdr.status, data));
                }
                // A ping that wants no answer, or an event.
                Opcode::NOP_IN if hdr.ttt.get() == TAG_NONE => {}
                other => bail!("the target sends {other} instead of an answer"),
            }
        }
    }

    fn send(&mut self, header: &[u8], data: &[u8]) -> anyhow::Result<()> {
        let pad = usize::try_from(pad_len(u32::try_from(data.len())?))?;
        let pad = [0; 3].get(..pad).unwrap_or_default().to_vec();
        Ok(self.stream.write_all(&[header, data, &pad].concat())?)
    }

    fn receive(&mut self) -> anyhow::Result<Pdu> {
        let mut header = [0; BHS_LEN];
        self.stream.read_exact(&mut header).context("the target hangs up")?;
        let bhs =
            Bhs::read_from_bytes(&header).map_err(|_| anyhow::anyhow!("a header has {BHS_LEN} bytes"))?;
        let len = bhs.data_len.get();
        let mut data =
            vec![0; usize::try_from(u64::from(bhs.ahs_words) * 4 + u64::from(len + pad_len(len)))?];
        self.stream.read_exact(&mut data)?;
        data.drain(..usize::from(bhs.ahs_words) * 4);
        data.truncate(usize::try_from(len)?);
        Ok(Pdu { bhs, data })
    }
}
