//! A target on two reactors over loopback, and an initiator that sends whatever PDU it is told to.
//!
//! LUN 0 is a malloc bdev, LUN 1 one behind a delay, whose reads take [`SLOW`].
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use penstock_bdev::delay::{Delay, DelayOptions};
use penstock_bdev::malloc::{Malloc, MallocOptions};
use penstock_bdev::reservation::{PersistedReservations, ReservationStore, Reservations};
use penstock_bdev::{OpenMode, Registry};
use penstock_iscsi::Sessions;
use penstock_iscsi::config::{
    InitiatorGroup, IscsiOptions, LunConfig, PortalGroup, TRANSFER_BYTES_MAX, TargetConfig,
};
use penstock_iscsi::group::{Common, GroupCell, Peers};
use penstock_iscsi::host::{ControlRequest, LuHost};
use penstock_reactor::{Clock, Cx, PollMode, Reactor, ReactorConfig, ReactorId, Started};
use penstock_scsi::{Limits, LuConfig, LuId, LuOwner, Seal};
use penstock_spec::iscsi::header::{FINAL, IMMEDIATE};
use penstock_spec::iscsi::{
    Bhs, DataInHdr, DataLen, DataOutHdr, LoginReqHdr, LoginRespHdr, Opcode, R2tHdr, ScsiCommandHdr, TAG_NONE,
    pad_len,
};
use serde_json::json;
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

pub const TARGET: &str = "iqn.2026-11.io.penstock:raw";
pub const BLOCK: usize = 512;
pub const BLOCKS: u64 = 32_768;
/// How long a read of LUN 1 takes.
pub const SLOW: Duration = Duration::from_millis(300);
pub const READ: u8 = ScsiCommandHdr::READ;
pub const WRITE: u8 = ScsiCommandHdr::WRITE;

#[derive(Debug, Default)]
struct InMemory(BTreeMap<Uuid, PersistedReservations>);

impl ReservationStore for InMemory {
    fn save(&mut self, bdev: Uuid, state: Option<&PersistedReservations>) -> std::io::Result<()> {
        match state {
            Some(state) => self.0.insert(bdev, state.clone()),
            None => self.0.remove(&bdev),
        };
        Ok(())
    }

    fn load(&mut self, bdev: Uuid) -> std::io::Result<Option<PersistedReservations>> {
        Ok(self.0.get(&bdev).cloned())
    }
}

pub struct Bench {
    reactors: Vec<Started>,
    control: Option<JoinHandle<()>>,
    stop: mpsc::Sender<Option<ControlRequest>>,
    pub addr: SocketAddr,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(IscsiOptions { max_connections_per_session: 4, ..IscsiOptions::default() })
    }

    pub fn with(options: IscsiOptions) -> Self {
        let clock = Clock::system();
        let start = |id| {
            let (clock, mode) = (clock.clone(), PollMode::Adaptive { spin_ns: 50_000 });
            Reactor::start(ReactorConfig { id: ReactorId(id), core: None, mode, clock, seed: 1 }).unwrap()
        };
        let reactors: Vec<Started> = (0..2).map(start).collect();
        let peers = Peers::new(reactors.iter().map(|started| started.handle.clone()).collect());
        let (requests, incoming) = mpsc::channel::<Option<ControlRequest>>();
        let to_control = requests.clone();
        let common = Common {
            options: Arc::new(options),
            peers: Arc::clone(&peers),
            sessions: Arc::new(Sessions::default()),
            control: Arc::new(move |request| {
                // At the end nobody listens any more.
                to_control.send(Some(request)).ok();
            }),
            seal: Seal::new([7; 16]),
        };
        for (index, reactor) in reactors.iter().enumerate() {
            let common = common.clone();
            reactor.handle.send(move |cx| drop(GroupCell::start(cx, common, index).unwrap())).unwrap();
        }
        let (ready, is_ready) = mpsc::channel();
        let control = std::thread::spawn(move || {
            let registry = bdevs();
            let mut host = LuHost::new(peers);
            for (id, bdev) in [(1, "M"), (2, "D")] {
                let descriptor = registry.open(bdev, OpenMode::ReadWrite, "test").unwrap();
                let mut lu = LuConfig::new(LuId(id), descriptor, TARGET);
                lu.limits = Limits { transfer_bytes_max: TRANSFER_BYTES_MAX, ..Limits::default() };
                let reservations = Rc::new(RefCell::new(Reservations::default()));
                host.add(LuOwner::new(
                    Arc::new(lu),
                    reservations,
                    Rc::new(RefCell::new(InMemory::default())),
                ));
            }
            ready.send(()).unwrap();
            while let Ok(Some(request)) = incoming.recv() {
                host.handle(&request);
            }
        });
        is_ready.recv().unwrap();
        let mut bench =
            Self { reactors, control: Some(control), stop: requests, addr: "[::]:0".parse().unwrap() };
        bench.apply(&[(0, 1), (1, 2)]);
        bench.addr = bench.on(0, |_, cell| cell.listen("127.0.0.1:0".parse().unwrap(), 1).unwrap());
        bench
    }

    /// Gives the target these LUNs.
    pub fn apply(&self, luns: &[(u16, u64)]) {
        let portals =
            PortalGroup { tag: 1, portals: vec!["127.0.0.1:3260".parse().unwrap()], private: false };
        let luns = luns.iter().map(|(lun, lu)| LunConfig::new(*lun, LuId(*lu))).collect();
        let maps = vec![(portals, InitiatorGroup::any(1))];
        let target = Arc::new(TargetConfig::new(TARGET.parse().unwrap(), maps, luns));
        for reactor in 0..self.reactors.len() {
            let target = Arc::clone(&target);
            self.on(reactor, move |_, cell| cell.apply(&target));
        }
    }

    /// Runs `run` on a reactor.
    pub fn on<T: Send + 'static>(
        &self,
        reactor: usize,
        run: impl FnOnce(&Cx, &GroupCell) -> T + Send + 'static,
    ) -> T {
        let (answer, result) = mpsc::channel();
        let handle = &self.reactors[reactor].handle;
        handle.send(move |cx| answer.send(run(cx, &GroupCell::of(cx).unwrap())).unwrap()).unwrap();
        result.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// Connections of all reactors.
    pub fn connections(&self) -> Vec<usize> {
        (0..self.reactors.len()).map(|at| self.on(at, |_, cell| cell.connections())).collect()
    }

    /// Waits until it is so.
    pub fn wait(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        for _ in 0..2000 {
            if is_so(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it never came to be that {what}");
    }

    /// A session with these keys on top of the usual ones, without waiting unit attentions.
    pub fn session(&self, isid: u8, keys: &str) -> Client {
        let mut client = Client::connect(self.addr);
        let (status, _) = client.login(isid, 0, 0, keys);
        assert_eq!(status, 0, "{keys}");
        for lun in [0, 1] {
            client.command_to(lun, 0, 0, &[0; 6], &[]);
        }
        client
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.send(None).ok();
        if let Some(control) = self.control.take() {
            control.join().unwrap();
        }
        for reactor in self.reactors.drain(..) {
            reactor.handle.stop();
            reactor.join.join().unwrap();
        }
    }
}

fn bdevs() -> Registry {
    let registry = Registry::new();
    for name in ["M", "N"] {
        let options = json!({ "name": name, "num_blocks": BLOCKS, "block_size": BLOCK });
        let options: MallocOptions = serde_json::from_value(options).unwrap();
        Malloc::create(&registry, options).unwrap();
    }
    let slow = u64::try_from(SLOW.as_micros()).unwrap();
    let options: DelayOptions = serde_json::from_value(json!({
        "name": "D", "base_bdev_name": "N", "avg_read_latency": slow, "p99_read_latency": slow,
        "avg_write_latency": 0, "p99_write_latency": 0,
    }))
    .unwrap();
    Delay::create(&registry, &options).unwrap();
    registry
}

/// A PDU that came.
#[derive(Debug, Clone)]
pub struct Pdu {
    pub bhs: Bhs,
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn opcode(&self) -> Opcode {
        self.bhs.opcode()
    }

    /// SCSI status, of a response or the last Data-In.
    pub fn status(&self) -> u8 {
        assert!(matches!(self.opcode(), Opcode::SCSI_RESPONSE | Opcode::DATA_IN), "{self:?}");
        self.bhs.specific[1]
    }

    /// Response of a task management function or logout.
    pub fn response(&self) -> u8 {
        assert!(matches!(self.opcode(), Opcode::TASK_MGMT_RESP | Opcode::LOGOUT_RESP), "{self:?}");
        self.bhs.specific[0]
    }

    /// Sense key, additional sense code and qualifier, of sense data in fixed format.
    pub fn sense(&self) -> (u8, u8, u8) {
        (self.data[4] & 0x0f, self.data[14], self.data[15])
    }

    pub fn exp_cmd_sn(&self) -> u32 {
        self.bhs.exp_stat_sn.get()
    }
}

/// What a command came to.
#[derive(Debug)]
pub struct Outcome {
    pub status: u8,
    pub data: Vec<u8>,
    pub last: Pdu,
    pub r2ts: Vec<R2tHdr>,
    pub data_ins: Vec<DataInHdr>,
}

/// Digests and limits that were negotiated.
#[derive(Debug, Clone, Copy)]
pub struct Agreed {
    pub header_digest: bool,
    pub data_digest: bool,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    pub first_burst: usize,
    pub segment: usize,
}

/// One connection of an initiator.
pub struct Client {
    sock: TcpStream,
    pub agreed: Agreed,
    pub cmd_sn: u32,
    pub tsih: u16,
    itt: u32,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        let sock = TcpStream::connect(addr).unwrap();
        sock.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        sock.set_nodelay(true).unwrap();
        let agreed = Agreed {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            first_burst: 65_536,
            segment: 8192,
        };
        Self { sock, agreed, cmd_sn: 1, tsih: 0, itt: 100 }
    }

    /// Logs in straight to the full feature phase; the status and the keys that came back.
    pub fn login(&mut self, isid: u8, tsih: u16, cid: u16, keys: &str) -> (u16, BTreeMap<String, String>) {
        let keys =
            format!("InitiatorName=iqn.2026-11.h:{isid}\0TargetName={TARGET}\0{}", keys.replace(' ', "\0"));
        self.login_text(isid, tsih, cid, 0x87, &keys)
    }

    pub fn login_text(
        &mut self,
        isid: u8,
        tsih: u16,
        cid: u16,
        flags: u8,
        keys: &str,
    ) -> (u16, BTreeMap<String, String>) {
        let mut hdr = LoginReqHdr {
            opcode: Opcode::LOGIN_REQ.0 | IMMEDIATE,
            flags,
            tsih: tsih.into(),
            cid: cid.into(),
            itt: 1.into(),
            cmd_sn: self.cmd_sn.into(),
            ..LoginReqHdr::default()
        };
        hdr.isid.0[5] = isid;
        let mut text = keys.as_bytes().to_vec();
        if !text.is_empty() && text.last() != Some(&0) {
            text.push(0);
        }
        self.send(Bhs::read_from_bytes(hdr.as_bytes()).unwrap(), &text);
        let pdu = self.recv();
        let response = LoginRespHdr::read_from_bytes(pdu.bhs.as_bytes()).unwrap();
        self.tsih = response.tsih.get();
        let text = String::from_utf8(pdu.data).unwrap();
        let answers: BTreeMap<String, String> = text
            .split('\0')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let is = |key: &str, value: &str| answers.get(key).is_some_and(|said| said == value);
        if response.flags & 0x83 == 0x83 {
            self.agreed.header_digest = is("HeaderDigest", "CRC32C");
            self.agreed.data_digest = is("DataDigest", "CRC32C");
            self.agreed.initial_r2t = !is("InitialR2T", "No");
            self.agreed.immediate_data = !is("ImmediateData", "No");
            if let Some(len) = answers.get("FirstBurstLength").and_then(|len| len.parse().ok()) {
                self.agreed.first_burst = len;
            }
            if let Some(len) = answers.get("MaxRecvDataSegmentLength").and_then(|len| len.parse().ok()) {
                self.agreed.segment = len;
            }
        }
        (response.status.get(), answers)
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        // The target may have closed it already.
        self.sock.write_all(bytes).ok();
    }

    pub fn send(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs.data_len = DataLen::new(u32::try_from(data.len()).unwrap());
        let mut bytes = bhs.as_bytes().to_vec();
        if self.agreed.header_digest {
            bytes.extend(crc(&bytes));
        }
        if !data.is_empty() {
            let mut padded = data.to_vec();
            padded.resize(data.len() + pad_len(bhs.data_len.get()) as usize, 0);
            bytes.extend(&padded);
            if self.agreed.data_digest {
                bytes.extend(crc(&padded));
            }
        }
        self.send_bytes(&bytes);
    }

    pub fn recv(&mut self) -> Pdu {
        self.try_recv().expect("the connection has not ended")
    }

    /// The next PDU; `None` when the connection has ended.
    pub fn try_recv(&mut self) -> Option<Pdu> {
        let mut bytes = [0; 48];
        match self.sock.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing comes"),
            Err(_) => return None,
        }
        let bhs = Bhs::read_from_bytes(&bytes).unwrap();
        let mut digest = [0; 4];
        if self.agreed.header_digest {
            self.sock.read_exact(&mut digest).ok()?;
            assert_eq!(digest, crc(&bytes), "header digest");
        }
        let len = bhs.data_len.get();
        let mut data = vec![0; (len + pad_len(len)) as usize];
        self.sock.read_exact(&mut data).ok()?;
        if len > 0 && self.agreed.data_digest {
            self.sock.read_exact(&mut digest).ok()?;
            assert_eq!(digest, crc(&data), "data digest");
        }
        data.truncate(len as usize);
        Some(Pdu { bhs, data })
    }

    /// Whether the connection has ended; what came before goes into the bargain.
    pub fn has_ended(&mut self) -> bool {
        while self.try_recv().is_some() {}
        true
    }

    /// Nothing comes for a while.
    pub fn assert_silent(&mut self) {
        self.sock.set_read_timeout(Some(Duration::from_millis(60))).unwrap();
        let mut byte = [0];
        let came = self.sock.peek(&mut byte);
        assert!(came.is_err(), "nothing is to come: {came:?}");
        self.sock.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }

    /// The header of a command; takes a CmdSN.
    pub fn command_bhs(&mut self, lun: u16, flags: u8, edtl: u32, cdb: &[u8]) -> Bhs {
        self.itt += 1;
        let mut hdr = ScsiCommandHdr {
            opcode: Opcode::SCSI_COMMAND.0,
            flags,
            lun: (u64::from(lun) << 48).into(),
            itt: self.itt.into(),
            edtl: edtl.into(),
            cmd_sn: self.cmd_sn.into(),
            ..ScsiCommandHdr::default()
        };
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        hdr.cdb[..cdb.len()].copy_from_slice(cdb);
        Bhs::read_from_bytes(hdr.as_bytes()).unwrap()
    }

    pub fn command(&mut self, flags: u8, edtl: u32, cdb: &[u8], data: &[u8]) -> Outcome {
        self.command_to(0, flags, edtl, cdb, data)
    }

    /// Does a command with its data as they were agreed on, and checks what comes.
    pub fn command_to(&mut self, lun: u16, flags: u8, edtl: u32, cdb: &[u8], data: &[u8]) -> Outcome {
        let agreed = self.agreed;
        let immediate =
            if agreed.immediate_data { data.len().min(agreed.first_burst).min(agreed.segment) } else { 0 };
        let unsolicited = if agreed.initial_r2t { immediate } else { data.len().min(agreed.first_burst) };
        let last = if unsolicited > immediate { 0 } else { FINAL };
        let bhs = self.command_bhs(lun, flags | last, edtl, cdb);
        let itt = bhs.itt.get();
        self.send(bhs, &data[..immediate]);
        if unsolicited > immediate {
            self.data_out(itt, TAG_NONE, immediate, &data[immediate..unsolicited]);
        }
        self.finish(itt, data)
    }

    /// A sequence of Data-Out.
    pub fn data_out(&mut self, itt: u32, ttt: u32, offset: usize, data: &[u8]) {
        let pieces = data.chunks(self.agreed.segment).count();
        for (at, piece) in data.chunks(self.agreed.segment).enumerate() {
            let hdr = DataOutHdr {
                opcode: Opcode::DATA_OUT.0,
                flags: if at + 1 == pieces { FINAL } else { 0 },
                itt: itt.into(),
                ttt: ttt.into(),
                data_sn: u32::try_from(at).unwrap().into(),
                offset: u32::try_from(offset + at * self.agreed.segment).unwrap().into(),
                ..DataOutHdr::default()
            };
            self.send(Bhs::read_from_bytes(hdr.as_bytes()).unwrap(), piece);
        }
    }

    /// Takes PDUs until the command with that tag has ended; answers R2Ts.
    pub fn finish(&mut self, itt: u32, data: &[u8]) -> Outcome {
        let (mut read, mut r2ts, mut data_ins) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let pdu = self.recv();
            assert_eq!(pdu.bhs.itt.get(), itt, "{:?}", pdu.bhs);
            match pdu.opcode() {
                Opcode::R2T => {
                    let r2t = R2tHdr::read_from_bytes(pdu.bhs.as_bytes()).unwrap();
                    let from = r2t.offset.get() as usize;
                    r2ts.push(r2t);
                    self.data_out(itt, r2t.ttt.get(), from, &data[from..from + r2t.len.get() as usize]);
                }
                Opcode::DATA_IN => {
                    let hdr = DataInHdr::read_from_bytes(pdu.bhs.as_bytes()).unwrap();
                    assert_eq!(hdr.offset.get() as usize, read.len());
                    read.extend_from_slice(&pdu.data);
                    data_ins.push(hdr);
                    if hdr.flags & DataInHdr::STATUS != 0 {
                        return Outcome { status: hdr.status, data: read, last: pdu, r2ts, data_ins };
                    }
                }
                Opcode::SCSI_RESPONSE => {
                    return Outcome { status: pdu.status(), data: read, last: pdu, r2ts, data_ins };
                }
                other => panic!("{other} while a command is under way"),
            }
        }
    }

    /// Takes PDUs until the reads with those tags have ended well, in any order, each with `len` bytes.
    pub fn finish_reads(&mut self, tags: &[u32], len: usize) {
        let mut left: std::collections::BTreeMap<u32, usize> = tags.iter().map(|tag| (*tag, len)).collect();
        while !left.is_empty() {
            let pdu = self.recv();
            let tag = pdu.bhs.itt.get();
            let missing = left.get_mut(&tag).unwrap_or_else(|| panic!("nobody asked for {:?}", pdu.bhs));
            let ended = match pdu.opcode() {
                Opcode::DATA_IN => {
                    *missing = missing.checked_sub(pdu.data.len()).expect("no more than was asked for");
                    DataInHdr::read_from_bytes(pdu.bhs.as_bytes()).unwrap().flags & DataInHdr::STATUS != 0
                }
                Opcode::SCSI_RESPONSE => true,
                other => panic!("{other} while reads are under way"),
            };
            if ended {
                assert_eq!((pdu.status(), *missing), (0, 0), "{:?}", pdu.bhs);
                left.remove(&tag);
            }
        }
    }

    /// A task management request for immediate delivery.
    pub fn tmf(&mut self, function: u8, lun: u16, ref_itt: u32, ref_cmd_sn: u32) {
        let mut rest = [0; 16];
        rest[..4].copy_from_slice(&ref_cmd_sn.to_be_bytes());
        let bhs = Bhs {
            opcode: Opcode::TASK_MGMT_REQ.0 | IMMEDIATE,
            flags: 0x80 | function,
            lun: (u64::from(lun) << 48).into(),
            itt: 9000.into(),
            ttt: ref_itt.into(),
            cmd_sn: self.cmd_sn.into(),
            rest,
            ..Bhs::default()
        };
        self.send(bhs, &[]);
    }

    /// Asks for a logout: 0 of the session, 1 of a connection, 2 for recovery.
    pub fn logout(&mut self, reason: u8, cid: u16) -> u8 {
        let bhs = Bhs {
            opcode: Opcode::LOGOUT_REQ.0 | IMMEDIATE,
            flags: 0x80 | reason,
            itt: 9001.into(),
            ttt: (u32::from(cid) << 16).into(),
            cmd_sn: self.cmd_sn.into(),
            ..Bhs::default()
        };
        self.send(bhs, &[]);
        self.recv().response()
    }

    /// Sends a ping and takes its answer.
    pub fn ping(&mut self) -> Pdu {
        let bhs = Bhs {
            opcode: IMMEDIATE,
            flags: 0x80,
            itt: 9002.into(),
            ttt: TAG_NONE.into(),
            cmd_sn: self.cmd_sn.into(),
            ..Bhs::default()
        };
        self.send(bhs, b"are you there?");
        let pdu = self.recv();
        assert_eq!((pdu.opcode(), &pdu.data[..]), (Opcode::NOP_IN, &b"are you there?"[..]));
        pdu
    }
}

pub fn crc(bytes: &[u8]) -> [u8; 4] {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

pub fn rw10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [high, low] = blocks.to_be_bytes();
    [opcode, 0, a, b, c, d, 0, high, low, 0]
}

/// Bytes that tell where they are.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| seed ^ (at % 251).to_le_bytes()[0]).collect()
}
