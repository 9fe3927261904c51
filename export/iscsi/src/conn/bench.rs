//! Surroundings of a connection for tests and the fuzzer.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use penstock_bdev::null::Null;
use penstock_bdev::reservation::{PersistedReservations, ReservationStore, Reservations};
use penstock_bdev::{Bdev, Descriptor, IoStatus, Op, OpenMode};
use penstock_scsi::{LuConfig, LuOwner, Reply, Seal, iscsi_transport_id};
use penstock_spec::iscsi::header::IMMEDIATE;
use penstock_spec::iscsi::{DataLen, IscsiName};
use uuid::Uuid;
use zerocopy::IntoBytes;

use super::*;
use crate::auth::AuthPolicy;
use crate::chap::CHALLENGE_LEN;
use crate::config::{InitiatorGroup, IscsiOptions, LunConfig, PortalGroup, TargetConfig};

pub(super) const BLOCK: usize = 512;
const BLOCKS: usize = 8192;
pub(super) const TARGET: &str = "iqn.2026-11.io.penstock:test";

#[derive(Debug)]
struct NoStore;

impl ReservationStore for NoStore {
    fn save(&mut self, _: Uuid, _: Option<&PersistedReservations>) -> std::io::Result<()> {
        Ok(())
    }

    fn load(&mut self, _: Uuid) -> std::io::Result<Option<PersistedReservations>> {
        Ok(None)
    }
}

/// Surroundings: a disk in a vector, whose I/Os end when the test says so.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) options: IscsiOptions,
    pub(super) target: Arc<TargetConfig>,
    pub(super) discovery: AuthPolicy,
    pub(super) owner: LuOwner,
    pub(super) disk: Vec<u8>,
    pub(super) ios: VecDeque<(u16, Box<Io>)>,
    pub(super) aborted: Vec<u16>,
    pub(super) no_buffers: bool,
    pub(super) starved: Vec<u16>,
    pub(super) held: u64,
    pub(super) controls: Vec<(Control, ReplyTo)>,
    /// The session that others may join.
    pub(super) session: Option<Rc<Session>>,
    pub(super) sweeps: Vec<(u32, u8, Scope)>,
    pub(super) ends: Vec<EndOf>,
    pub(super) nudges: Vec<u32>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let bdev: Arc<dyn Bdev> =
            Null::new("Null0", Uuid::from_u128(7), BLOCKS as u64, BLOCK as u32).unwrap();
        let lu = LuConfig::new(LuId(1), Descriptor::unregistered(bdev, OpenMode::ReadWrite), TARGET);
        let reservations = Rc::new(RefCell::new(Reservations::default()));
        let portals =
            PortalGroup { tag: 1, portals: vec!["127.0.0.1:3260".parse().unwrap()], private: false };
        let maps = vec![(portals, InitiatorGroup::any(1))];
        let luns = vec![LunConfig::new(0, LuId(1))];
        let mut target = TargetConfig::new(TARGET.parse().unwrap(), maps, luns);
        target.alias = "a disk".to_owned();
        Self {
            options: IscsiOptions { max_queue_depth: 8, ..IscsiOptions::default() },
            target: Arc::new(target),
            discovery: AuthPolicy::default(),
            owner: LuOwner::new(Arc::new(lu), reservations, Rc::new(RefCell::new(NoStore))),
            disk: vec![0; BLOCK * BLOCKS],
            ios: VecDeque::new(),
            aborted: Vec::new(),
            no_buffers: false,
            starved: Vec::new(),
            held: 0,
            controls: Vec::new(),
            session: None,
            sweeps: Vec::new(),
            ends: Vec::new(),
            nudges: Vec::new(),
        }
    }

    /// Does an I/O.
    pub(super) fn perform(&mut self, io: &mut Io) {
        let at = usize::try_from(io.lba.0).unwrap() * BLOCK;
        let len = io.blocks as usize * BLOCK;
        match io.op {
            Op::Read => {
                io.data.copy_in(0, &self.disk[at..at + len]);
            }
            Op::Write => {
                io.data.copy_out(0, &mut self.disk[at..at + len]);
            }
            _ => {}
        }
        io.status = IoStatus::Success;
    }
}

impl Directory for Bench {
    fn target(&self, name: &IscsiName) -> Option<Arc<TargetConfig>> {
        Some(Arc::clone(&self.target)).filter(|target| target.name == *name)
    }

    fn options(&self) -> &IscsiOptions {
        &self.options
    }

    fn may_join(&self, _: &SessionKey, tsih: u16, _: u16) -> Result<(), LoginStatus> {
        match (tsih, &self.session) {
            (1, Some(_)) => Ok(()),
            (1, None) => Err(LoginStatus::TOO_MANY_CONNECTIONS),
            _ => Err(LoginStatus::NO_SESSION),
        }
    }

    fn discovery_auth(&self, _: u16) -> AuthPolicy {
        self.discovery.clone()
    }

    fn has_room(&self, _: &SessionKey) -> bool {
        self.options.max_sessions > 0
    }

    fn random(&self) -> Option<[u8; CHALLENGE_LEN + 1]> {
        Some([0xc5; CHALLENGE_LEN + 1])
    }
}

impl Sink for Bench {
    fn buffers(&mut self, len: u32, late: bool) -> Option<Sg> {
        let made = || if late { Some(Sg::new()) } else { crate::group::buffers_of(len) };
        let list = if self.no_buffers { None } else { made() };
        self.held += list.as_ref().map_or(0, |_| u64::from(len));
        list
    }

    fn released(&mut self, bytes: u32) {
        self.held -= u64::from(bytes);
    }

    fn starved(&mut self, id: CmdId) {
        self.starved.push(id.slot);
    }

    fn submit(&mut self, _: LuId, id: CmdId, io: Box<Io>) -> Result<(), Box<Io>> {
        self.ios.push_back((id.slot, io));
        Ok(())
    }

    fn abort(&mut self, _: LuId, id: CmdId) {
        self.aborted.push(id.slot);
    }

    fn control(&mut self, _: u32, _: LuId, _: &Nexus, control: Control, to: ReplyTo) {
        self.controls.push((control, to));
    }

    fn sweep(&mut self, conn: u32, tmf: u8, scope: Scope) -> usize {
        self.sweeps.push((conn, tmf, scope));
        1
    }

    fn end(&mut self, whom: EndOf) {
        self.ends.push(whom);
    }

    fn nudge(&mut self, conn: u32) {
        self.nudges.push(conn);
    }

    fn elsewhere(&self, tsih: u16) -> Option<usize> {
        (tsih == 99).then_some(1)
    }

    fn enter(&mut self, who: &Entering<'_>) -> Entered {
        let member = Member { cid: who.cid, conn: who.conn };
        if who.tsih != 0 {
            let Some(session) = self.session.clone() else {
                return Entered::Refused(LoginStatus::NO_SESSION);
            };
            session.join(member);
            return Entered::Now(session);
        }
        let id = iscsi_transport_id(who.key.initiator.as_str(), Some(who.key.isid.0));
        let mut nexus = Nexus::new(&id, 1, Seal::new([0; 16]));
        nexus.apply_luns(&[(0, Arc::clone(self.owner.view()))]);
        let nexus = who.key.target.map(|_| nexus);
        let session = Rc::new(Session::new(*who.key, 1, nexus, who.agreed.clone(), who.window, who.cmd_sn));
        session.join(member);
        self.session = Some(Rc::clone(&session));
        Entered::Now(session)
    }

    fn send_targets(&self, _: &SessionKey, _: (SocketAddr, SocketAddr), _: Option<&str>) -> Vec<u8> {
        format!("TargetName={TARGET}\0TargetAddress=127.0.0.1:3260,1\0").repeat(100).into_bytes()
    }

    fn now(&self) -> Tick {
        Tick::ZERO
    }
}

/// The bytes of a connection. The first byte says whether a login with digests, or one without, or none came before;
/// the second how the rest is cut in pieces.
pub(crate) fn connection(bytes: &[u8]) {
    let [mode, piece, rest @ ..] = bytes else { return };
    let mut bench = Bench::new();
    let mut conn = Conn::new(0, "127.0.0.1:1".parse().unwrap(), 1);
    if mode & 1 != 0 {
        let digests = if mode & 2 != 0 { "HeaderDigest=CRC32C\0DataDigest=CRC32C\0" } else { "" };
        let keys = format!("InitiatorName=iqn.2026-11.h:1\0TargetName={TARGET}\0InitialR2T=No\0{digests}");
        let login = Bhs {
            opcode: Opcode::LOGIN_REQ.0 | IMMEDIATE,
            flags: 0x87,
            data_len: DataLen::new(keys.len() as u32),
            ..Bhs::default()
        };
        conn.receive(login.as_bytes(), &mut bench);
        conn.receive(keys.as_bytes(), &mut bench);
        conn.receive(&[0; 3][..pad_len(keys.len() as u32) as usize], &mut bench);
        assert_eq!(conn.state(), ConnState::Full);
    }
    for piece in rest.chunks(usize::from(*piece).max(1)) {
        conn.receive(piece, &mut bench);
        while let Some((slot, mut io)) = bench.ios.pop_front() {
            bench.perform(&mut io);
            conn.io_back(slot, io, &mut bench);
        }
        while let Some((_, tmf, scope)) = bench.sweeps.pop() {
            if let Scope::Task { slot, .. } = scope {
                conn.abort_cmd(slot, &mut bench);
            } else {
                conn.abort_where(|_| true, &mut Vec::new(), &mut bench);
            }
            let reply = Reply::of(Ok(()));
            conn.replied(ReplyTo::Tmf(tmf), &reply, &mut bench);
        }
        if !std::mem::take(&mut bench.nudges).is_empty() {
            conn.go_on(&mut bench);
        }
        for (_, to) in std::mem::take(&mut bench.controls) {
            let reply = Reply::of(Ok(()));
            conn.replied(to, &reply, &mut bench);
        }
    }
    conn.close(&mut bench);
    // What was in the send queue is held until it is sent or dropped with the connection.
    assert_eq!(conn.out(), 0);
}

/// The requests of one login: the machine must not panic, answer each or end, and never get into a session by refusal.
pub(crate) fn login(bytes: &[u8]) {
    let mut bench = Bench::new();
    let mut conn = Conn::new(0, "127.0.0.1:1".parse().unwrap(), 1);
    let mut rest = bytes;
    while let Some(([flags, low, high], tail)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (keys, tail) = tail.split_at(len);
        rest = tail;
        let login = Bhs {
            opcode: Opcode::LOGIN_REQ.0 | IMMEDIATE,
            flags: *flags,
            data_len: DataLen::new(keys.len() as u32),
            ..Bhs::default()
        };
        conn.receive(login.as_bytes(), &mut bench);
        conn.receive(keys, &mut bench);
        conn.receive(&[0; 3][..pad_len(keys.len() as u32) as usize], &mut bench);
        assert_eq!(conn.state() == ConnState::Full, conn.session.is_some());
        if conn.state() != ConnState::Login {
            break;
        }
    }
    conn.close(&mut bench);
}
