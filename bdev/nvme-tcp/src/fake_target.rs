//! A target for the tests: one namespace in memory, every choice that the transport leaves a target open
//! to the test, and assertions on what the host sends.

use std::collections::BTreeMap;

use penstock_spec::nvme::feature::Fid;
use penstock_spec::nvme::identify::controller::ControllerType;
use penstock_spec::nvme::identify::{
    Cns, IdentifyCmd, IdentifyController, IdentifyNamespace, LbaFormat, NsList,
};
use penstock_spec::nvme::log::{GetLogPageCmd, Lid};
use penstock_spec::nvme::nvm::RwCmd;
use penstock_spec::nvme::sgl::TcpSgl;
use penstock_spec::nvme::{AdminOpcode, Cqe, FabricsType, NvmOpcode, Sqe, Status};
use penstock_spec::nvme_tcp::header::PduFlags;
use penstock_spec::nvme_tcp::{
    C2hDataHdr, CapsuleCmdHdr, CapsuleRespHdr, CheckedHdr, CommonHdr, DigestFlags, H2cDataHdr, IcReq, IcResp,
    PduType, R2tHdr, Receiver, RxRules, TermReqHdr, data_offset,
};
use penstock_spec::nvmf::connect::{ConnectCmd, ConnectData, ConnectResult};
use penstock_spec::nvmf::discovery::{AdrFam, DiscoveryLogEntry, DiscoveryLogHdr, SubType, TrType};
use penstock_spec::nvmf::property::{Cap, Cc, Csts, PropertyGetCmd, PropertySetCmd, Vs, offset};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::digest::crc32c;

pub(crate) const BLOCK: usize = 512;

/// What the transport leaves to the target.
#[derive(Debug, Clone)]
pub(crate) struct Choices {
    pub(crate) hdgst: bool,
    pub(crate) ddgst: bool,
    pub(crate) cpda: u8,
    pub(crate) maxh2cdata: u32,
    /// Most bytes per R2T.
    pub(crate) r2tl: u32,
    /// Most bytes per C2HData.
    pub(crate) c2hl: u32,
    /// Use SUCCESS instead of a CapsuleResp.
    pub(crate) success: bool,
    /// 16-byte units of I/O command capsules.
    pub(crate) ioccsz: u32,
    pub(crate) connect_status: Status,
    /// CSTS reads that say "not ready".
    pub(crate) ready_after: u32,
    pub(crate) event_config_status: Status,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            hdgst: false,
            ddgst: false,
            cpda: 0,
            maxh2cdata: 131_072,
            r2tl: 131_072,
            c2hl: 131_072,
            success: false,
            ioccsz: 4,
            connect_status: Status::SUCCESS,
            ready_after: 0,
            event_config_status: Status::SUCCESS,
        }
    }
}

/// A write whose data has not all come.
struct Write {
    sqe: Sqe,
    data: Vec<u8>,
    asked: u32,
    r2ts: u32,
    have: u32,
}

/// One connection of the target.
pub(crate) struct FakeTarget {
    choices: Choices,
    rules: RxRules,
    hpda: u8,
    maxr2t: u32,
    input: Vec<u8>,
    pub(crate) output: Vec<u8>,
    writes: BTreeMap<u16, Write>,
    pub(crate) disk: Vec<u8>,
    cc: Cc,
    admin: bool,
    pub(crate) term: Option<TermReqHdr>,
    pub(crate) aers: Vec<u16>,
    pub(crate) keep_alives: u32,
    pub(crate) event_config: u32,
}

impl FakeTarget {
    pub(crate) fn new(choices: Choices, blocks: usize) -> Self {
        Self {
            choices,
            rules: RxRules::before_init(Receiver::Controller),
            hpda: 0,
            maxr2t: 1,
            input: Vec::new(),
            output: Vec::new(),
            writes: BTreeMap::new(),
            disk: vec![0; blocks * BLOCK],
            cc: Cc(0),
            admin: true,
            term: None,
            aers: Vec::new(),
            keep_alives: 0,
            event_config: 0,
        }
    }

    /// Takes bytes of the host and answers every PDU that is complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while let Some(ch) = self.input.first_chunk::<8>() {
            let ch = CommonHdr::read_from_bytes(ch).unwrap();
            if ch.pdu_type == PduType::H2C_TERM_REQ {
                self.term = Some(TermReqHdr::read_from_bytes(&self.input[..24]).unwrap());
                return;
            }
            let hdr = CheckedHdr::parse(&ch, &self.rules).expect("the host keeps the rules");
            let plen = hdr.plen as usize;
            if self.input.len() < plen {
                return;
            }
            let pdu: Vec<u8> = self.input.drain(..plen).collect();
            self.check_digests(&hdr, &pdu);
            self.pdu(&hdr, &pdu);
        }
    }

    fn check_digests(&self, hdr: &CheckedHdr, pdu: &[u8]) {
        let hlen = usize::from(hdr.hlen);
        if hdr.hdgst_len > 0 {
            assert_eq!(crc32c(&pdu[..hlen]).to_le_bytes(), pdu[hlen..hlen + 4], "header digest");
        }
        if hdr.ddgst_len > 0 {
            let data = &pdu[hdr.data_off as usize..pdu.len() - 4];
            assert_eq!(crc32c(data).to_le_bytes(), pdu[pdu.len() - 4..], "data digest");
        }
    }

    fn pdu(&mut self, hdr: &CheckedHdr, pdu: &[u8]) {
        let psh = &pdu[..usize::from(hdr.hlen)];
        let data = &pdu[hdr.data_off as usize..][..hdr.data_len as usize];
        match hdr.pdu_type {
            PduType::IC_REQ => self.ic_req(IcReq::ref_from_bytes(psh).unwrap()),
            PduType::CAPSULE_CMD => {
                let sqe = CapsuleCmdHdr::ref_from_bytes(psh).unwrap().sqe;
                self.command(sqe, data.to_vec());
            }
            PduType::H2C_DATA => {
                let h2c = *H2cDataHdr::ref_from_bytes(psh).unwrap();
                h2c.check(hdr).unwrap();
                self.h2c_data(&h2c, hdr.flags.last(), data);
            }
            other => panic!("unexpected {other}"),
        }
    }

    fn ic_req(&mut self, req: &IcReq) {
        req.check().unwrap();
        let asked = DigestFlags(req.dgst);
        let (hdgst, ddgst) = (asked.hdgst() && self.choices.hdgst, asked.ddgst() && self.choices.ddgst);
        self.hpda = req.hpda;
        self.maxr2t = req.maxr2t();
        self.rules = RxRules {
            receiver: Receiver::Controller,
            initialized: true,
            hdgst,
            ddgst,
            pda: self.choices.cpda,
            in_capsule_max: 8192,
            data_max: self.choices.maxh2cdata,
        };
        let dgst = DigestFlags(0).with_hdgst(hdgst).with_ddgst(ddgst);
        let resp = IcResp::new(self.choices.cpda, dgst, self.choices.maxh2cdata);
        self.output.extend_from_slice(resp.as_bytes());
    }

    fn command(&mut self, sqe: Sqe, data: Vec<u8>) {
        let sgl = sqe.sgl1.parse_tcp().unwrap();
        match sgl {
            TcpSgl::InCapsule { off_bytes, len } => {
                assert_eq!((off_bytes, len as usize), (0, data.len()));
                self.execute(sqe, &data);
            }
            TcpSgl::Transport { len } if sqe.opc & 0b11 == 1 && sqe.opc != 0x7f && len > 0 => {
                let write = Write { sqe, data: vec![0; len as usize], asked: 0, r2ts: 0, have: 0 };
                self.writes.insert(sqe.cid.get(), write);
                self.ask(sqe.cid.get());
            }
            TcpSgl::Transport { .. } => self.execute(sqe, &[]),
        }
    }

    /// Sends as many R2Ts as the host allows.
    fn ask(&mut self, cid: u16) {
        let Some(write) = self.writes.get_mut(&cid) else { return };
        let total = write.data.len() as u32;
        let mut pdus = Vec::new();
        while write.asked < total && write.r2ts < self.maxr2t {
            let len = self.choices.r2tl.min(total - write.asked);
            pdus.push((write.asked, len));
            write.asked += len;
            write.r2ts += 1;
        }
        for (off, len) in pdus {
            let hdr = R2tHdr {
                cccid: U16::new(cid),
                ttag: U16::new(cid ^ 0x5555),
                r2to: U32::new(off),
                r2tl: U32::new(len),
                ..R2tHdr::default()
            };
            self.send(PduType::R2T, 0, hdr.as_bytes(), &[]);
        }
    }

    fn h2c_data(&mut self, h2c: &H2cDataHdr, last: bool, data: &[u8]) {
        let cid = h2c.cccid.get();
        assert_eq!(h2c.ttag.get(), cid ^ 0x5555);
        let write = self.writes.get_mut(&cid).expect("data of a write that asked for it");
        assert_eq!(h2c.datao.get(), write.have, "data in order");
        let off = write.have as usize;
        write.data[off..off + data.len()].copy_from_slice(data);
        write.have += data.len() as u32;
        assert!(write.have <= write.asked);
        if last {
            write.r2ts -= 1;
        }
        if write.have as usize == write.data.len() {
            let write = self.writes.remove(&cid).unwrap();
            self.execute(write.sqe, &write.data);
        } else if last {
            self.ask(cid);
        }
    }

    fn execute(&mut self, sqe: Sqe, data: &[u8]) {
        let cid = sqe.cid.get();
        match sqe.opc {
            op if op == AdminOpcode::FABRICS.0 => self.fabrics(&sqe, data),
            op if self.admin => self.execute_admin(AdminOpcode(op), &sqe),
            op => {
                let rw = RwCmd::from_sqe(&sqe);
                let off = rw.slba.get() as usize * BLOCK;
                let len = rw.len_blocks() as usize * BLOCK;
                match NvmOpcode(op) {
                    NvmOpcode::FLUSH => self.respond(Cqe::new(cid, 0, Status::SUCCESS)),
                    _ if off + len > self.disk.len() => {
                        self.respond(Cqe::new(cid, 0, Status::LBA_OUT_OF_RANGE));
                    }
                    NvmOpcode::READ => {
                        let data = self.disk[off..off + len].to_vec();
                        self.read(cid, &data);
                    }
                    NvmOpcode::WRITE => {
                        self.disk[off..off + len].copy_from_slice(data);
                        self.respond(Cqe::new(cid, 0, Status::SUCCESS));
                    }
                    _ => self.respond(Cqe::new(cid, 0, Status::INVALID_OPCODE)),
                }
            }
        }
    }

    fn fabrics(&mut self, sqe: &Sqe, data: &[u8]) {
        let cqe = Cqe::new(sqe.cid.get(), 0, Status::SUCCESS);
        match FabricsType(sqe.fctype()) {
            FabricsType::CONNECT => {
                let connect = ConnectCmd::from_sqe(sqe);
                let data = ConnectData::ref_from_bytes(data).unwrap();
                data.subsystem().unwrap();
                data.host().unwrap();
                self.admin = connect.qid.get() == 0;
                let dw0 = ConnectResult(0).with_cntlid(7).0;
                let status = self.choices.connect_status.to_bits();
                self.respond(Cqe { status_raw: U16::new(status), ..cqe.with_dw0(dw0) });
            }
            FabricsType::PROPERTY_GET => {
                let value = match PropertyGetCmd::from_sqe(sqe).ofst.get() {
                    offset::CAP => Cap(0).with_mqes0(127).with_css_nvm(true).with_to(10).0,
                    offset::VS => u64::from(Vs::new(2, 1, 0).0),
                    offset::CSTS => u64::from(self.csts().0),
                    _ => 0,
                };
                self.respond(cqe.with_result(value));
            }
            FabricsType::PROPERTY_SET => {
                let set = PropertySetCmd::from_sqe(sqe);
                assert_eq!(set.ofst.get(), offset::CC);
                self.cc = Cc(set.value.get() as u32);
                self.respond(cqe);
            }
            other => panic!("unexpected {other}"),
        }
    }

    fn csts(&mut self) -> Csts {
        let waiting = self.choices.ready_after > 0;
        self.choices.ready_after = self.choices.ready_after.saturating_sub(1);
        let shst = if self.cc.shn() > 0 { 2 } else { 0 };
        Csts(0).with_rdy(self.cc.en() && !waiting).with_shst(shst)
    }

    fn execute_admin(&mut self, opcode: AdminOpcode, sqe: &Sqe) {
        let cqe = Cqe::new(sqe.cid.get(), 0, Status::SUCCESS);
        match opcode {
            AdminOpcode::IDENTIFY => {
                let cmd = IdentifyCmd::from_sqe(sqe);
                let page = self.identify(cmd.cns, cmd.nsid.get());
                self.read(sqe.cid.get(), &page);
            }
            AdminOpcode::GET_LOG_PAGE => {
                let cmd = GetLogPageCmd::from_sqe(sqe);
                assert_eq!(cmd.lid, Lid::DISCOVERY);
                let log = discovery_log();
                let off = cmd.lpo.get() as usize;
                let page = log[off..off + cmd.len_bytes() as usize].to_vec();
                self.read(sqe.cid.get(), &page);
            }
            AdminOpcode::SET_FEATURES if sqe.cdw10.get() == u32::from(Fid::ASYNC_EVENT_CONFIG.0) => {
                self.event_config = sqe.cdw11.get();
                self.respond(Cqe::new(sqe.cid.get(), 0, self.choices.event_config_status));
            }
            AdminOpcode::SET_FEATURES => self.respond(cqe.with_dw0(0x0001_0001)),
            AdminOpcode::KEEP_ALIVE => {
                self.keep_alives += 1;
                self.respond(cqe);
            }
            AdminOpcode::ASYNC_EVENT_REQUEST => self.aers.push(sqe.cid.get()),
            _ => self.respond(Cqe::new(sqe.cid.get(), 0, Status::INVALID_OPCODE)),
        }
    }

    fn identify(&self, cns: Cns, nsid: u32) -> Vec<u8> {
        match cns {
            Cns::CONTROLLER => IdentifyController {
                cntlid: U16::new(7),
                mdts: 5,
                cntrltype: ControllerType::IO,
                aerl0: 2,
                oaes: U32::new(0x8000_0b00),
                maxcmd: U16::new(64),
                ioccsz: U32::new(self.choices.ioccsz),
                iorcsz: U32::new(1),
                ..IdentifyController::default()
            }
            .as_bytes()
            .to_vec(),
            Cns::ACTIVE_NS_LIST => {
                let mut list = NsList::default();
                list.nsids[0] = U32::new(if nsid < 1 { 1 } else { 0 });
                list.as_bytes().to_vec()
            }
            _ => {
                let mut ns = IdentifyNamespace {
                    nsze: U64::new((self.disk.len() / BLOCK) as u64),
                    ..IdentifyNamespace::default()
                };
                ns.lbaf[0] = LbaFormat::new(9);
                ns.as_bytes().to_vec()
            }
        }
    }

    /// Sends data in C2HData PDUs and completes the command.
    fn read(&mut self, cid: u16, data: &[u8]) {
        let mut off = 0;
        for chunk in data.chunks(self.choices.c2hl as usize) {
            let last = off + chunk.len() == data.len();
            let flags = PduFlags(0).with_last(last).with_success(last && self.choices.success);
            let hdr = C2hDataHdr {
                cccid: U16::new(cid),
                datao: U32::new(off as u32),
                datal: U32::new(chunk.len() as u32),
                ..C2hDataHdr::default()
            };
            self.send(PduType::C2H_DATA, flags.0, hdr.as_bytes(), chunk);
            off += chunk.len();
        }
        if !self.choices.success {
            self.respond(Cqe::new(cid, 0, Status::SUCCESS));
        }
    }

    pub(crate) fn respond(&mut self, cqe: Cqe) {
        let hdr = CapsuleRespHdr { cqe, ..CapsuleRespHdr::default() };
        self.send(PduType::CAPSULE_RESP, 0, hdr.as_bytes(), &[]);
    }

    /// Sends a PDU: fills the common header in, adds digests and padding.
    pub(crate) fn send(&mut self, ty: PduType, flags: u8, psh: &[u8], data: &[u8]) {
        let (hdgst, ddgst) = (self.rules.hdgst, self.rules.ddgst && !data.is_empty());
        let end = psh.len() + if hdgst { 4 } else { 0 };
        let pdo = if data.is_empty() { 0 } else { data_offset(end as u8, self.hpda) as usize };
        let plen = end.max(pdo) + data.len() + if ddgst { 4 } else { 0 };
        let flags = PduFlags(flags).with_hdgst(hdgst).with_ddgst(ddgst).0;
        let ch = CommonHdr::new(ty, flags, psh.len() as u8, pdo as u8, plen as u32);
        let mut pdu = psh.to_vec();
        pdu[..8].copy_from_slice(ch.as_bytes());
        if hdgst {
            let crc = crc32c(&pdu);
            pdu.extend_from_slice(&crc.to_le_bytes());
        }
        pdu.resize(end.max(pdo), 0);
        pdu.extend_from_slice(data);
        if ddgst {
            pdu.extend_from_slice(&crc32c(data).to_le_bytes());
        }
        self.output.extend_from_slice(&pdu);
    }
}

/// A discovery log of one subsystem.
fn discovery_log() -> Vec<u8> {
    let hdr = DiscoveryLogHdr { genctr: U64::new(3), numrec: U64::new(1), ..DiscoveryLogHdr::default() };
    let mut entry = DiscoveryLogEntry {
        trtype: TrType::TCP,
        adrfam: AdrFam::IPV4,
        subtype: SubType::NVM,
        subnqn: "nqn.2026-11.io.penstock:t".parse::<penstock_spec::nvmf::Nqn>().unwrap().to_field(),
        ..DiscoveryLogEntry::default()
    };
    assert!(entry.set_traddr("127.0.0.1") && entry.set_trsvcid("4420"));
    [hdr.as_bytes(), entry.as_bytes()].concat()
}
